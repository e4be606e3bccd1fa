//! The Helm chart: by values, it has what the kustomizations have.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    process::Command,
};

use anyhow::{Context as _, bail, ensure};
use packetflix_tests::{namespace::output_of, root};
use serde_json::{Value, json};

use crate::{
    manifests::{VERSIONS, checked, container, objects},
    read,
};

const CHART: &str = "deploy/helm/packetflix";

/// Values of which no kustomization is made.
const MORE: [&str; 9] = [
    "image.repository=registry.example/packetflix",
    "image.digest=sha256:0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef",
    "image.pullSecrets={registry}",
    "env.PACKETFLIX_LOG_FORMAT=json",
    "gateway.env.PACKETFLIX_LOG_FORMAT=json",
    "resources.limits.memory=2Gi",
    "maxCaptures=300",
    "gateway.replicas=3",
    "networkPolicy.apiServerPorts={16443}",
];

/// Helm, in the root of the project.
fn helm() -> Command {
    let mut helm = Command::new(root().join("target/tools/bin/helm"));
    helm.current_dir(root());
    helm
}

/// What Helm would install with these values.
fn template<'a>(namespace: &str, values: impl IntoIterator<Item = &'a str>) -> Command {
    let mut template = helm();
    template.args(["template", "packetflix", "--namespace", namespace]);
    template.arg(root().join(CHART));
    template.args(values.into_iter().flat_map(|value| ["--set", value]));
    template
}

/// A row of the documents' table of kustomizations.
struct Row {
    /// Below `deploy/kubernetes`.
    sources: Vec<String>,
    values: Vec<String>,
}

fn rows() -> anyhow::Result<Vec<Row>> {
    let page = read("docs/deployment.md")?;
    let lines = page
        .lines()
        .skip_while(|line| *line != "| kustomization | values |");
    let rows = lines.skip(2).take_while(|line| line.starts_with('|'));
    let code = |cell: &str| cell.split('`').skip(1).step_by(2).map(str::to_owned).collect();
    rows.map(|row| {
        let [sources, values] = row.split(" | ").collect::<Vec<_>>()[..] else {
            bail!("two columns: {row}");
        };
        Ok(Row {
            sources: code(sources),
            values: code(values),
        })
    })
    .collect()
}

/// What is of no order is put into one.
fn ordered(value: &mut Value) {
    match value {
        Value::Array(elements) => {
            elements.iter_mut().for_each(ordered);
            if elements.iter().all(|element| element["name"].is_string()) {
                elements.sort_by_key(|element| element["name"].to_string());
            }
        }
        Value::Object(members) => members.values_mut().for_each(ordered),
        _ => {}
    }
}

fn by_name(objects: Vec<Value>) -> anyhow::Result<BTreeMap<String, Value>> {
    let mut named = BTreeMap::new();
    for mut object in objects {
        ordered(&mut object);
        let metadata = &object["metadata"];
        let name = format!(
            "{} {} {}",
            object["kind"], metadata["namespace"], metadata["name"]
        );
        ensure!(named.insert(name.clone(), object).is_none(), "twice: {name}");
    }
    Ok(named)
}

#[test]
fn chart_has_what_the_kustomizations_have() -> anyhow::Result<()> {
    let mut compared = BTreeSet::new();
    for Row { sources, values } in rows()? {
        for version in VERSIONS {
            let mut meant = Vec::new();
            for source in &sources {
                let path = root().join("deploy/kubernetes").join(source);
                meant.extend(if path.is_dir() {
                    objects(source, version)?
                } else {
                    checked(version, Command::new("cat").arg(path))?
                });
                compared.insert(source.clone());
            }
            // Which Helm itself makes no object of.
            let values = values.iter().map(String::as_str).chain(["namespace.create=true"]);
            let mut template = template("packetflix", values);
            template.args(["--kube-version", version]);
            let (meant, found) = (by_name(meant)?, by_name(checked(version, &template)?)?);
            assert!(
                meant.keys().eq(found.keys()),
                "{sources:?}: {meant:#?}\n{found:#?}"
            );
            for (name, object) in &meant {
                ensure!(
                    found[name] == *object,
                    "{sources:?}: {name}: {object:#}\n{:#}",
                    found[name]
                );
            }
        }
    }
    let overlays = fs::read_dir(root().join("deploy/kubernetes/overlays"))?;
    let mut all: BTreeSet<String> = overlays
        .map(|entry| Ok(format!("overlays/{}", entry?.file_name().display())))
        .collect::<anyhow::Result<_>>()?;
    all.extend(["base", "cert-manager.yaml"].map(str::to_owned));
    assert_eq!(compared, all);
    Ok(())
}

#[test]
fn values_of_the_chart_go_together_and_into_any_namespace() -> anyhow::Result<()> {
    let rows = rows()?;
    let values: BTreeSet<&str> = rows
        .iter()
        .flat_map(|row| row.values.iter().map(String::as_str))
        // Which goes with no others.
        .filter(|value| !value.starts_with("ghostwire."))
        .chain(MORE)
        .collect();
    for version in VERSIONS {
        let objects = checked(version, &template("capture", values.iter().copied()))?;
        // Nobody makes a namespace but who asks for it.
        ensure!(objects.iter().all(|object| object["kind"] != "Namespace"));
        let namespaces = objects.iter().map(|object| &object["metadata"]["namespace"]);
        let subjects = objects
            .iter()
            .flat_map(|object| object["subjects"].as_array().into_iter().flatten());
        for namespace in namespaces.chain(subjects.map(|subject| &subject["namespace"])) {
            ensure!(
                namespace.is_null() || namespace == "capture",
                "{namespace}: {objects:#?}"
            );
        }
        let named = |kind: &str, name: &str| {
            let is_meant = |one: &&Value| one["kind"] == kind && one["metadata"]["name"] == name;
            let found = objects.iter().find(is_meant);
            found.with_context(|| format!("no {kind} {name}"))
        };
        assert_eq!(
            named("Certificate", "packetflix-nodes")?["spec"]["dnsNames"],
            json!(["packetflix.capture.svc"])
        );

        let deployment = &named("Deployment", "packetflix-gateway")?["spec"];
        assert_eq!(deployment["replicas"], 3);
        let gateway = &deployment["template"]["spec"]["containers"][0];
        let node = container(&objects, "packetflix")?;
        let format = json!({ "name": "PACKETFLIX_LOG_FORMAT", "value": "json" });
        let image = "registry.example/packetflix@sha256:0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef";
        for container in [gateway, &node] {
            assert_eq!(container["image"], image);
            let env = container["env"].as_array().context("no env")?;
            ensure!(env.contains(&format), "{env:?}");
        }
        for variable in ["PACKETFLIX_MAX_CAPTURES", "PACKETFLIX_MAX_CAPTURES_PER_CLIENT"] {
            let captures = json!({ "name": variable, "value": "300" });
            ensure!(node["env"].as_array().is_some_and(|env| env.contains(&captures)));
        }
        assert_eq!(node["resources"]["limits"]["memory"], "2Gi");
        for pod in [deployment, &named("DaemonSet", "packetflix")?["spec"]] {
            assert_eq!(
                pod["template"]["spec"]["imagePullSecrets"],
                json!([{ "name": "registry" }])
            );
        }
        for (policy, rule) in [("packetflix", 0), ("packetflix-gateway", 1)] {
            assert_eq!(
                named("NetworkPolicy", policy)?["spec"]["egress"][rule]["ports"],
                json!([{ "port": 16443, "protocol": "TCP" }])
            );
        }
    }
    Ok(())
}

#[test]
fn bad_values_of_the_chart_are_refused_with_a_sentence() -> anyhow::Result<()> {
    for (values, sentence) in [
        (
            "gateway.enabeld=true",
            "at '/gateway': additional properties 'enabeld' not allowed",
        ),
        ("gateway=true", "at '/gateway': got boolean, want object"),
        ("gateway=null", "missing property 'gateway'"),
        (
            "seccompProfile=Unconfined",
            "at '/seccompProfile': value must be one of 'Localhost', 'RuntimeDefault'",
        ),
        (
            "kubernetesAuth=yes",
            "at '/kubernetesAuth': got string, want boolean",
        ),
        ("maxCaptures=0", "at '/maxCaptures': minimum: got 0, want 1"),
        ("ringMemory=1GB", "at '/ringMemory': '1GB' does not match pattern"),
        (
            "gateway.replicas=0",
            "at '/gateway/replicas': minimum: got 0, want 1",
        ),
        (
            "tokensSecret=My_Tokens",
            "at '/tokensSecret': 'My_Tokens' does not match pattern",
        ),
        (
            "networkPolicy.apiServerPorts={70000}",
            "at '/networkPolicy/apiServerPorts/0': maximum: got 70,000, want 65,535",
        ),
        (
            "env.LOG_FORMAT=json",
            "at '/env': additional properties 'LOG_FORMAT' not allowed",
        ),
        (
            "env.PACKETFLIX_CLIENT_TIMEOUT=5",
            "at '/env/PACKETFLIX_CLIENT_TIMEOUT': got number, want string",
        ),
        (
            "env.PACKETFLIX_PORT=x",
            "env.PACKETFLIX_PORT: the chart sets this variable itself, or relies on its default",
        ),
        (
            "gateway.enabled=true,gateway.env.PACKETFLIX_NODE_CACERT=x",
            "gateway.env.PACKETFLIX_NODE_CACERT: the chart sets this variable itself",
        ),
        (
            "gateway.certManager=true",
            "gateway.certManager: the certificate is for nodes behind a gateway, which gateway.enabled=true makes",
        ),
        (
            "ghostwire.enabled=true,gateway.enabled=true",
            "ghostwire.enabled: GhostWire asks nobody who they are",
        ),
        (
            "ghostwire.enabled=true,kubernetesAuth=true",
            "ghostwire.enabled: GhostWire asks nobody who they are",
        ),
        // What `docs/deployment.md` says of memory.
        (
            "ringMemory=1GiB",
            "resources.limits.memory: 1Gi is less than the 1536 MiB that ringMemory (1GiB), 4 MiB for each of maxCaptures (64) and \
             256 MiB for the program may take",
        ),
    ] {
        let ran = template("packetflix", [values]).output()?;
        let said = String::from_utf8(ran.stderr)?;
        ensure!(
            !ran.status.success() && said.contains(sentence),
            "{values}: {said}"
        );
    }
    let mut old = template("packetflix", []);
    let ran = old.args(["--kube-version", "1.29"]).output()?;
    let said = String::from_utf8(ran.stderr)?;
    ensure!(said.contains("requires kubeVersion: >=1.30.0"), "{said}");
    Ok(())
}

#[test]
fn chart_is_as_it_should_be_and_as_the_documents_say() -> anyhow::Result<()> {
    output_of(helm().args(["lint", "--strict", CHART]))?;
    let chart = read(&format!("{CHART}/Chart.yaml"))?;
    for version in ["version", "appVersion"] {
        let line = format!("\n{version}: {}\n", env!("CARGO_PKG_VERSION"));
        ensure!(chart.contains(&line), "{chart}");
    }

    let mut commands = 0;
    for page in ["docs/deployment.md", "docs/cluster.md"] {
        let page = read(page)?;
        for line in page.lines().filter(|line| line.starts_with("helm ")) {
            let arguments = line
                .strip_prefix("helm upgrade --install ")
                .context("another command")?;
            // A tag may be a number, such as a date.
            let arguments = arguments.replace("TAG", "20260101");
            output_of(helm().arg("template").args(arguments.split(' '))).with_context(|| line.to_owned())?;
            commands += 1;
        }
    }
    assert_eq!(commands, 2);

    // What the chart has no object of.
    let label = "pod-security.kubernetes.io/enforce";
    ensure!(read("deploy/kubernetes/base/namespace.yaml")?.contains(&format!("{label}: privileged")));
    let said = output_of(
        helm()
            .args([
                "install",
                "packetflix",
                CHART,
                "--dry-run=client",
                "--namespace",
                "capture",
            ])
            .args(["--set", "gateway.enabled=true"]),
    )?;
    for asked in [
        format!("kubectl label namespace capture {label}=privileged\n"),
        "create secret generic packetflix-tokens --from-file=tokens=".to_owned(),
        "create secret generic packetflix-gateway-token --from-file=token=".to_owned(),
        "a certificate for packetflix.capture.svc:".to_owned(),
    ] {
        ensure!(said.contains(&asked), "{asked}: {said}");
    }
    Ok(())
}
