//! What kustomize makes of `deploy/kubernetes`.

use std::{collections::BTreeSet, fs, process::Command};

use anyhow::{Context as _, anyhow, ensure};
use packetflix_tests::{namespace::output_of, root};
use serde_json::{Value, json};

use crate::{listed_capabilities, names, read};

/// The oldest Kubernetes that its makers keep, and the newest that the schemas are there for.
pub(crate) const VERSIONS: [&str; 2] = ["1.30", "1.37"];

/// What `docs/operation.md` says of ends and of who looks at it.
#[test]
fn manifests_let_captures_end_and_prometheus_in() -> anyhow::Result<()> {
    for folder in [
        "base",
        "overlays/runtime-default",
        "overlays/ghostwire",
        "overlays/kubernetes-auth",
    ] {
        let objects = objects(folder, "1.37")?;
        let of_kind = |kind: &str| objects.iter().find(|object| object["kind"] == kind);
        let packetflix = container(&objects, "packetflix")?;
        for (probe, path) in [
            ("startupProbe", "/healthz"),
            ("livenessProbe", "/healthz"),
            ("readinessProbe", "/readyz"),
        ] {
            assert_eq!(packetflix[probe]["httpGet"]["path"], path, "{folder}");
        }
        // The default of --shutdown-timeout is ten.
        let pause = packetflix["lifecycle"]["preStop"]["sleep"]["seconds"]
            .as_u64()
            .context("no pause")?;
        let spec = &of_kind("DaemonSet").context("no DaemonSet")?["spec"]["template"]["spec"];
        let grace = spec["terminationGracePeriodSeconds"]
            .as_u64()
            .context("no time")?;
        assert_eq!((pause, grace), (5, 30), "{folder}");

        let policy = &of_kind("NetworkPolicy").context("no NetworkPolicy")?["spec"];
        let prometheus = json!({
            "namespaceSelector": { "matchLabels": { "kubernetes.io/metadata.name": "monitoring" } },
            "podSelector": { "matchLabels": { "app.kubernetes.io/name": "prometheus" } },
        });
        let from = policy["ingress"][0]["from"].as_array().context("no rule")?;
        ensure!(from.contains(&prometheus) && from.len() == 2, "{policy:#}");
    }
    Ok(())
}

#[test]
fn manifests_are_what_kubernetes_takes() -> anyhow::Result<()> {
    let all = names(&listed_capabilities()?);
    for version in VERSIONS {
        let base = container(&objects("base", version)?, "packetflix")?;
        let context = &base["securityContext"];
        let added: Vec<String> = serde_json::from_value(context["capabilities"]["add"].clone())?;
        let added: BTreeSet<String> = added.iter().map(|name| format!("CAP_{name}")).collect();
        assert_eq!(added, all);
        assert_eq!(context["capabilities"]["drop"], json!(["ALL"]));
        assert_eq!(context["readOnlyRootFilesystem"], true);
        assert_eq!(context["seccompProfile"]["type"], "Localhost");

        let overlay = container(&objects("overlays/runtime-default", version)?, "packetflix")?;
        assert_eq!(
            overlay["securityContext"]["seccompProfile"],
            json!({ "type": "RuntimeDefault" })
        );

        let node_name = json!({ "name": "PACKETFLIX_NODE_NAME", "valueFrom": { "fieldRef": { "fieldPath": "spec.nodeName" } } });
        let env = base["env"].as_array().context("no env")?;
        ensure!(env.contains(&node_name), "{env:?}");

        let overlay = objects("overlays/kubernetes-auth", version)?;
        let asks = json!({ "name": "PACKETFLIX_KUBERNETES_AUTH", "value": "true" });
        let packetflix = container(&overlay, "packetflix")?;
        let env = packetflix["env"].as_array().context("no env")?;
        ensure!(env.contains(&asks) && env.contains(&node_name), "{env:?}");
        let binding = overlay
            .iter()
            .find(|object| object["kind"] == "ClusterRoleBinding");
        let binding = binding.context("no binding")?;
        assert_eq!(binding["roleRef"]["name"], "system:auth-delegator");
        // What the service asks for is what the roles grant.
        for (role, verbs) in [
            ("packetflix-capture", json!(["create", "get"])),
            ("packetflix-view", json!(["get"])),
        ] {
            let is_meant =
                |object: &&Value| object["kind"] == "ClusterRole" && object["metadata"]["name"] == role;
            let found = overlay.iter().find(is_meant);
            let rules = &found.context(role)?["rules"];
            assert_eq!(
                rules[0]["resources"],
                json!(["pods/packetflix", "nodes/packetflix"])
            );
            assert_eq!(
                (&rules[0]["apiGroups"], &rules[0]["verbs"]),
                (&json!([""]), &verbs)
            );
        }

        let overlay = objects("overlays/ghostwire", version)?;
        container(&overlay, "ghostwire")?;
        let packetflix = container(&overlay, "packetflix")?;
        let proxy = json!({ "name": "PACKETFLIX_PROXY_DISCOVERY", "value": "true" });
        ensure!(
            packetflix["env"]
                .as_array()
                .is_some_and(|env| env.contains(&proxy))
        );
    }
    Ok(())
}

#[test]
fn every_file_is_of_its_kustomization() -> anyhow::Result<()> {
    let overlays = fs::read_dir(root().join("deploy/kubernetes/overlays"))?;
    let overlays: Vec<_> = overlays
        .map(|entry| Ok(entry?.path()))
        .collect::<anyhow::Result<_>>()?;
    for folder in overlays.iter().chain([&root().join("deploy/kubernetes/base")]) {
        let listed = fs::read_to_string(folder.join("kustomization.yaml"))?;
        for entry in fs::read_dir(folder)? {
            let name = entry?.file_name().into_string().map_err(|_| anyhow!("no text"))?;
            let ends = [format!("- {name}\n"), format!("- path: {name}\n")];
            ensure!(
                name == "kustomization.yaml" || ends.iter().any(|end| listed.contains(end)),
                "{}: nobody uses {name}",
                folder.display()
            );
        }
    }
    Ok(())
}

/// What a variable of a container is set to.
fn variable(container: &Value, name: &str) -> Option<Value> {
    let mut env = container["env"].as_array()?.iter();
    let found = env.find(|one| one["name"] == name)?;
    Some(found["value"].clone())
}

/// What `docs/cluster.md` says of the gateway, and of the nodes behind it.
#[test]
fn gateway_of_a_cluster_has_what_it_needs_and_nothing_more() -> anyhow::Result<()> {
    for version in VERSIONS {
        let objects = objects("overlays/gateway", version)?;
        let named = |kind: &str, name: &str| {
            let is_meant = |one: &&Value| one["kind"] == kind && one["metadata"]["name"] == name;
            let found = objects.iter().find(is_meant);
            found.with_context(|| format!("no {kind} {name}"))
        };
        let deployment = &named("Deployment", "packetflix-gateway")?["spec"];
        let pod = &deployment["template"]["spec"];
        let gateway = &pod["containers"][0];
        assert_eq!(
            (&deployment["replicas"], &gateway["args"]),
            (&json!(2), &json!(["gateway"]))
        );
        let of = |name: &str| variable(gateway, name);
        assert_eq!(of("PACKETFLIX_KUBERNETES_AUTH"), Some(json!("true")));
        assert_eq!(of("PACKETFLIX_NODES_PLAIN"), None);
        // It takes no right of the kernel, and says so.
        assert_eq!(
            gateway["securityContext"],
            json!({ "allowPrivilegeEscalation": false, "readOnlyRootFilesystem": true, "capabilities": { "drop": ["ALL"] } })
        );
        assert_eq!(pod["securityContext"]["runAsNonRoot"], true);
        ensure!(gateway["resources"]["limits"]["memory"].is_string() && pod["hostNetwork"].is_null());
        for (probe, path) in [("livenessProbe", "/healthz"), ("readinessProbe", "/readyz")] {
            assert_eq!(gateway[probe]["httpGet"], json!({ "path": path, "port": "http" }));
        }
        assert_eq!(
            (
                &gateway["lifecycle"]["preStop"]["sleep"]["seconds"],
                &pod["terminationGracePeriodSeconds"]
            ),
            (&json!(5), &json!(30))
        );
        assert_eq!(
            named("PodDisruptionBudget", "packetflix-gateway")?["spec"]["maxUnavailable"],
            1
        );

        // What it may ask the API server for is what it asks for.
        assert_eq!(
            named("Role", "packetflix-gateway")?["rules"],
            json!([{ "apiGroups": ["discovery.k8s.io"], "resources": ["endpointslices"], "verbs": ["list", "watch"] }])
        );
        assert_eq!(
            named("ClusterRoleBinding", "packetflix-gateway")?["roleRef"]["name"],
            "system:auth-delegator"
        );

        // Whoever captures from a desk, by packetflix or by kubectl. A WebSocket is a `get` there, and since 1.35 a `create`, too.
        assert_eq!(
            named("Role", "packetflix-desk")?["rules"],
            json!([
                { "apiGroups": [""], "resources": ["pods"], "verbs": ["get", "list"] },
                { "apiGroups": [""], "resources": ["pods/portforward"], "verbs": ["create", "get"] },
                { "apiGroups": [""], "resources": ["services"], "resourceNames": ["packetflix-gateway"], "verbs": ["get"] },
            ])
        );

        // The nodes are found by their Service, whose name is that of their certificate.
        let service = named("Service", "packetflix")?;
        assert_eq!(
            of("PACKETFLIX_NODES_SERVICE"),
            Some(service["metadata"]["name"].clone())
        );
        assert_eq!(service["spec"]["clusterIP"], "None");
        let node = container(&objects, "packetflix")?;
        let certificate = json!({ "name": "PACKETFLIX_TLS_CERT", "value": "/etc/packetflix-tls/tls.crt" });
        ensure!(
            node["env"]
                .as_array()
                .is_some_and(|env| env.contains(&certificate))
        );
        for probe in ["startupProbe", "livenessProbe", "readinessProbe"] {
            assert_eq!(node[probe]["httpGet"]["scheme"], "HTTPS");
        }
        // All that it captures there is one client's, and all who come to it by port-forward are at one address.
        let captures = variable(&node, "PACKETFLIX_MAX_CAPTURES_PER_CLIENT");
        ensure!(
            captures.is_some() && captures == variable(&node, "PACKETFLIX_MAX_CAPTURES"),
            "{captures:?}"
        );
        assert_eq!(of("PACKETFLIX_MAX_CONNECTIONS_PER_ADDRESS"), Some(json!("1024")));
        let manager = read("deploy/kubernetes/cert-manager.yaml")?;
        ensure!(
            manager.contains("secretName: packetflix-nodes-tls\n")
                && manager.contains("- packetflix.packetflix.svc\n")
        );
        // It is given their CA, and not their key.
        let volumes = pod["volumes"].as_array().context("no volumes")?;
        let ca = volumes
            .iter()
            .find(|one| one["secret"]["secretName"] == "packetflix-nodes-tls");
        assert_eq!(
            ca.context("no CA")?["secret"]["items"],
            json!([{ "key": "ca.crt", "path": "ca.crt" }])
        );

        // Nobody but the gateway reaches the nodes, and the gateway nobody but them and API servers.
        let own = json!({ "matchLabels": { "app.kubernetes.io/name": "packetflix-gateway" } });
        let nodes = json!({ "matchLabels": { "app.kubernetes.io/name": "packetflix" } });
        let policy = &named("NetworkPolicy", "packetflix")?["spec"];
        assert_eq!(
            policy["ingress"],
            json!([{ "from": [{ "podSelector": own }], "ports": [{ "port": "http", "protocol": "TCP" }] }])
        );
        let policy = &named("NetworkPolicy", "packetflix-gateway")?["spec"];
        assert_eq!((&policy["podSelector"], &deployment["selector"]), (&own, &own));
        assert_eq!(policy["egress"][0]["to"], json!([{ "podSelector": nodes }]));
        ensure!(policy["egress"].as_array().is_some_and(|rules| rules.len() == 2));
    }
    Ok(())
}

/// The objects of a kustomization.
pub(crate) fn objects(folder: &str, version: &str) -> anyhow::Result<Vec<Value>> {
    let folder = root().join("deploy/kubernetes").join(folder);
    checked(version, Command::new("kubectl").arg("kustomize").arg(folder))
}

/// The objects that a program prints, each checked against its schema.
pub(crate) fn checked(version: &str, prints: &Command) -> anyhow::Result<Vec<Value>> {
    let printed = output_of(
        Command::new(root().join("target/tools/python/bin/python"))
            .arg(root().join("tests/src/manifests.py"))
            .arg(version)
            .arg(prints.get_program())
            .args(prints.get_args()),
    )
    .context("`cargo xtask test` installs the schemas")?;
    Ok(serde_json::from_str(&printed)?)
}

/// A container of the DaemonSet.
pub(crate) fn container(objects: &[Value], name: &str) -> anyhow::Result<Value> {
    let set = objects.iter().find(|object| object["kind"] == "DaemonSet");
    let spec = &set.context("no DaemonSet")?["spec"]["template"]["spec"];
    assert_eq!(spec["hostPID"], true);
    let containers = spec["containers"].as_array().context("no containers")?;
    let found = containers.iter().find(|container| container["name"] == name);
    found.cloned().with_context(|| format!("no container {name}"))
}
