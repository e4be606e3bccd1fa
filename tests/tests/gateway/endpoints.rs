//! A gateway finds its nodes as Kubernetes tells of them.

use std::{process::Command, time::Duration};

use anyhow::{Context as _, ensure};
use packetflix_tests::{
    certificates::Authority,
    client::{Capture, Recorder, Refused},
    folder::Folder,
    kubernetes::{ApiServer, OWN_TOKEN},
    namespace::Namespace,
    raw::{self, RawSocket},
    server::{Server, percent_encoded, program, wait_until},
};
use serde_json::{Value, json};

use crate::{Cluster, TOKEN, closed_port, gateway};

/// The EndpointSlice of one node.
pub(crate) fn slice(node: &str, port: u16) -> Value {
    json!({
        "kind": "EndpointSlice",
        "apiVersion": "discovery.k8s.io/v1",
        "metadata": { "name": format!("nodes-{node}"), "namespace": "packetflix",
            "labels": { "kubernetes.io/service-name": "nodes" } },
        "addressType": "IPv4",
        "ports": [{ "name": "http", "port": port, "protocol": "TCP" }],
        "endpoints": [{ "addresses": ["127.0.0.1"], "nodeName": node, "conditions": { "ready": true } }],
    })
}

/// Tells the API server of a node.
fn announce(api: &ApiServer, cluster: &Cluster, node: &str) {
    api.put("endpointslices", slice(node, cluster.node(node).port()));
}

/// A gateway to the nodes of which an API server tells.
pub(crate) fn following(cluster: &Cluster, api: &ApiServer, more: &[&str]) -> anyhow::Result<Server> {
    let own = cluster.folder.put_secret("own", OWN_TOKEN)?;
    let token = cluster.folder.path().join("token");
    let flags = [
        "--nodes-service=packetflix/nodes".to_owned(),
        format!("--kubernetes-api=http://127.0.0.1:{}", api.port()),
        format!("--kubernetes-token-file={}", own.display()),
        format!("--node-token-file={}", token.display()),
        "--node-timeout=30".to_owned(),
    ];
    let flags: Vec<&str> = flags
        .iter()
        .map(String::as_str)
        .chain(more.iter().copied())
        .collect();
    gateway(&flags)
}

/// The names of the nodes that it tells of; none where it tells of none.
fn nodes(gateway: &Server) -> anyhow::Result<Vec<String>> {
    let (_, list) = gateway.get("/targets")?;
    let nodes = list["nodes"].as_array().map_or(&[][..], Vec::as_slice);
    let names = nodes.iter().filter_map(|node| node["name"].as_str());
    Ok(names.map(str::to_owned).collect())
}

fn wait_for_nodes(gateway: &Server, expected: &[&str]) -> anyhow::Result<()> {
    let waited = wait_until(Duration::from_secs(15), || Ok(nodes(gateway)? == expected));
    waited.map_err(|error| error.context(format!("{expected:?}; {:?}\n{}", nodes(gateway), gateway.log())))
}

#[tokio::test]
async fn nodes_come_and_go_as_their_slices_do() -> anyhow::Result<()> {
    let cluster = Cluster::start(&["one", "two"])?;
    let api = ApiServer::start(None)?;
    let gateway = following(&cluster, &api, &["--nodes-plain"])?;
    wait_until(Duration::from_secs(10), || {
        let (status, answer) = gateway.get("/readyz")?;
        let said = answer["error"].as_str().unwrap_or_default().to_owned();
        Ok(status == 503 && said.contains("there are no nodes: no pod is behind their Service"))
    })?;
    for path in [
        "/targets",
        "/targets?target=node:one",
        "/mobyshark",
        "/filter?expr=tcp",
    ] {
        let (status, answer) = gateway.get(path)?;
        let is_told = answer["error"] == "there are no nodes: no pod is behind their Service";
        ensure!(status == 502 && is_told, "{path}: {status} {answer}");
    }
    let described = format!("container={}", percent_encoded(r#"{"name": "web"}"#));
    for target in ["target=web", "target=web-*", &described] {
        let refused = Capture::open(&gateway.url(target), &[]).await;
        let refused = refused.err().context("it begins")?.downcast::<Refused>()?;
        let is_told = refused
            .body
            .contains("there are no nodes: no pod is behind their Service");
        ensure!(refused.status == 502 && is_told, "{refused:?}");
    }
    announce(&api, &cluster, "one");
    wait_for_nodes(&gateway, &["one"])?;
    announce(&api, &cluster, "two");
    wait_for_nodes(&gateway, &["one", "two"])?;
    // Of another Service, and of another namespace.
    let mut others = slice("three", 1);
    others["metadata"]["labels"]["kubernetes.io/service-name"] = json!("others");
    api.put("endpointslices", others.clone());
    others["metadata"]["namespace"] = json!("elsewhere");
    api.put("endpointslices", others);
    api.remove("endpointslices", "packetflix", "nodes-one");
    wait_for_nodes(&gateway, &["two"])?;
    // The pod is another now, at another port.
    let elsewhere = Cluster::start(&["two"])?;
    announce(&api, &elsewhere, "two");
    let port = elsewhere.node("two").port().to_string();
    gateway.wait_for_log(&port)?;
    wait_for_nodes(&gateway, &["two"])?;
    wait_until(Duration::from_secs(20), || Ok(gateway.get("/readyz")?.0 == 200))?;
    let listed = elsewhere.node("two").log();
    ensure!(gateway.get("/targets")?.0 == 200, "{listed}");
    Ok(())
}

#[test]
fn nodes_are_found_over_tls_where_the_system_trusts_nobody() -> anyhow::Result<()> {
    let folder = Folder::new()?;
    let authority = Authority::new(folder.path(), "cluster")?;
    let api = ApiServer::start(Some(&authority.issue("api", "/CN=kube-apiserver")?))?;
    let own = folder.put_secret("own", OWN_TOKEN)?;
    let mut program = Command::new(program("packetflix")?);
    // As in an image, which has no certificates.
    for place in ["SSL_CERT_FILE", "SSL_CERT_DIR"] {
        program.env(place, folder.path().join("nothing"));
    }
    let flags = [
        "--nodes-service=packetflix/nodes".to_owned(),
        "--nodes-plain".to_owned(),
        format!("--kubernetes-api=https://127.0.0.1:{}", api.port()),
        format!("--kubernetes-ca={}", authority.certificate().display()),
        format!("--kubernetes-token-file={}", own.display()),
    ];
    let flags = flags.iter().map(String::as_str).collect::<Vec<_>>();
    let gateway = Server::start_by(program.arg("gateway"), &flags)?;
    api.put("endpointslices", slice("one", closed_port()?));
    gateway.wait_for_log("a node is found node=\"one\"")
}

#[test]
fn api_server_that_is_not_there_is_told_of_in_our_words_alone() -> anyhow::Result<()> {
    let cluster = Cluster::start(&[])?;
    let own = cluster.folder.put_secret("own", OWN_TOKEN)?;
    let gateway = gateway(&[
        "--nodes-service=packetflix/nodes",
        "--nodes-plain",
        &format!("--kubernetes-api=http://127.0.0.1:{}", closed_port()?),
        &format!("--kubernetes-token-file={}", own.display()),
    ])?;
    gateway.wait_for_log("which nodes there are is not followed")?;
    let log = gateway.log();
    ensure!(log.lines().all(|line| !line.contains("kube_")), "{log}");
    Ok(())
}

#[test]
fn endpoints_that_are_no_nodes_are_told() -> anyhow::Result<()> {
    const SAID: &str = "not all of the Service is asked: 1 endpoint has no nodeName (127.0.0.1), 1 endpoint has no IP \
        address (web.example), 1 endpoint is another ready one of its node (packetflix-b)";
    let cluster = Cluster::start(&["one"])?;
    let api = ApiServer::start(None)?;
    let mut nameless = slice("two", 1);
    let endpoint = nameless["endpoints"][0].as_object_mut();
    endpoint.map(|endpoint| endpoint.remove("nodeName"));
    api.put("endpointslices", nameless.clone());
    let gateway = following(&cluster, &api, &["--nodes-plain"])?;
    wait_until(Duration::from_secs(10), || {
        let said = gateway.get("/readyz")?.1["error"].to_string();
        Ok(said.contains("there are no nodes: not all of the Service is asked: 1 endpoint has no nodeName"))
    })?;
    let port = cluster.node("one").port();
    let mut several = slice("one", port);
    several["endpoints"] = json!([
        { "addresses": ["127.0.0.1"], "nodeName": "one", "targetRef": { "name": "packetflix-a" } },
        { "addresses": ["127.0.0.2"], "nodeName": "one", "targetRef": { "name": "packetflix-b" } },
        { "addresses": ["web.example"], "nodeName": "three" },
        // These come and go.
        { "addresses": ["127.0.0.3"], "nodeName": "one", "conditions": { "ready": false } },
        { "addresses": ["127.0.0.4"], "nodeName": "one", "conditions": { "ready": true, "terminating": true } },
    ]);
    api.put("endpointslices", several);
    wait_for_nodes(&gateway, &["one"])?;
    wait_until(Duration::from_secs(20), || {
        let (status, answer) = gateway.get("/readyz")?;
        Ok(status == 200 && answer["doubt"] == SAID)
    })
    .map_err(|error| error.context(format!("{:?}", gateway.get("/readyz"))))?;
    let (_, list) = gateway.get("/targets")?;
    let gaps = list["gaps"]
        .as_array()
        .is_some_and(|gaps| gaps.contains(&json!(SAID)));
    ensure!(gaps, "{}", list["gaps"]);
    let left_out = |count: usize| {
        let (_, metrics) = gateway.ask("GET /metrics HTTP/1.1")?;
        let metrics = String::from_utf8(metrics)?;
        anyhow::Ok(metrics.contains(&format!("packetflix_gateway_endpoints_left_out {count}\n")))
    };
    ensure!(left_out(3)?);
    gateway.wait_for_log("endpoints of the nodes' Service are left out")?;
    api.put("endpointslices", slice("one", port));
    api.remove("endpointslices", "packetflix", "nodes-two");
    wait_until(Duration::from_secs(10), || {
        Ok(gateway.get("/readyz")?.1["doubt"].is_null())
    })?;
    ensure!(left_out(0)?);
    Ok(())
}

#[test]
fn nodes_go_on_while_the_api_server_is_away() -> anyhow::Result<()> {
    let cluster = Cluster::start(&["one", "two"])?;
    let api = ApiServer::start(None)?;
    announce(&api, &cluster, "one");
    let gateway = following(&cluster, &api, &["--nodes-plain"])?;
    wait_for_nodes(&gateway, &["one"])?;
    wait_until(Duration::from_secs(20), || Ok(gateway.get("/readyz")?.0 == 200))?;
    api.set_down(true);
    announce(&api, &cluster, "two");
    wait_until(Duration::from_secs(10), || {
        let (status, answer) = gateway.get("/readyz")?;
        ensure!(status == 200, "{answer}");
        let doubt = answer["doubt"].as_str().unwrap_or_default();
        Ok(doubt.contains("which nodes there are is what it was") && doubt.contains("the server is down"))
    })?;
    let (status, list) = gateway.get("/targets")?;
    ensure!(status == 200 && nodes(&gateway)? == ["one"], "{list}");
    let gaps = list["gaps"].to_string();
    ensure!(gaps.contains("which nodes there are is what it was"), "{gaps}");
    let (_, metrics) = gateway.ask("GET /metrics HTTP/1.1")?;
    let metrics = String::from_utf8(metrics)?;
    ensure!(metrics.contains("packetflix_gateway_nodes 1\n"), "{metrics}");
    let age = metrics
        .lines()
        .find_map(|line| line.strip_prefix("packetflix_gateway_nodes_age_seconds "));
    ensure!(
        age.is_some_and(|age| age.parse().is_ok_and(|age: f64| age > 0.0)),
        "{age:?}"
    );
    gateway.wait_for_log("which nodes there are is not followed")?;
    let asked = api.lines().len();
    api.set_down(false);
    wait_for_nodes(&gateway, &["one", "two"])?;
    wait_until(Duration::from_secs(10), || {
        Ok(gateway.get("/readyz")?.1["doubt"].is_null())
    })?;
    // It was not asked in a loop.
    ensure!(asked < 20, "{:?}", api.lines());
    Ok(())
}

#[test]
fn expired_watch_and_ended_ones_lose_no_node() -> anyhow::Result<()> {
    let cluster = Cluster::start(&["one", "two"])?;
    let api = ApiServer::start(None)?;
    announce(&api, &cluster, "one");
    let gateway = following(&cluster, &api, &["--nodes-plain"])?;
    wait_for_nodes(&gateway, &["one"])?;
    let lists = || {
        let lines = api.lines();
        lines
            .iter()
            .filter(|line| line.starts_with("GET") && !line.contains("watch=true"))
            .count()
    };
    let before = lists();
    // 410, in the midst of a watch: what was missed is only in a new list.
    announce(&api, &cluster, "two");
    api.forget();
    wait_for_nodes(&gateway, &["one", "two"])?;
    wait_until(Duration::from_secs(10), || Ok(lists() > before))?;
    api.end_watches();
    api.remove("endpointslices", "packetflix", "nodes-one");
    wait_for_nodes(&gateway, &["two"])
}

#[test]
fn hundreds_of_slices_come_in_pages() -> anyhow::Result<()> {
    let cluster = Cluster::start(&[])?;
    let api = ApiServer::start(None)?;
    let nobody = closed_port()?;
    for number in 0..250 {
        api.put("endpointslices", slice(&format!("n{number}"), nobody));
    }
    let gateway = following(&cluster, &api, &["--nodes-plain"])?;
    wait_until(Duration::from_secs(15), || {
        let (_, metrics) = gateway.ask("GET /metrics HTTP/1.1")?;
        Ok(String::from_utf8(metrics)?.contains("packetflix_gateway_nodes 250\n"))
    })?;
    let pages = api
        .lines()
        .iter()
        .filter(|line| line.contains("continue="))
        .count();
    ensure!(pages == 4, "{:?}", api.lines());
    Ok(())
}

#[test]
fn certificates_of_found_nodes_are_for_their_service() -> anyhow::Result<()> {
    let files = Folder::new()?;
    let authority = Authority::new(files.path(), "nodes")?;
    let right = authority.issue_for("right", "/CN=nodes", "DNS:nodes.packetflix.svc")?;
    let wrong = authority.issue_for("wrong", "/CN=nodes", "DNS:others.packetflix.svc,IP:127.0.0.1")?;
    let tokens = files.put_secret("tokens", &format!("gateway {TOKEN} discover capture admin\n"))?;
    let start = |name: &str, identity: &packetflix_tests::certificates::Identity| {
        Server::start(&[
            "--node-name",
            name,
            "--token-file",
            &tokens.display().to_string(),
            "--tls-cert",
            &identity.certificate.display().to_string(),
            "--tls-key",
            &identity.key.display().to_string(),
        ])
    };
    let (one, two) = (start("one", &right)?, start("two", &wrong)?);
    let api = ApiServer::start(None)?;
    api.put("endpointslices", slice("one", one.port()));
    api.put("endpointslices", slice("two", two.port()));
    let cluster = Cluster::start(&[])?;
    let ca = authority.certificate().display().to_string();
    let gateway = following(&cluster, &api, &["--node-cacert", &ca])?;
    wait_for_nodes(&gateway, &["one", "two"])?;
    let (_, list) = gateway.get("/targets")?;
    ensure!(list["nodes"][0]["problem"].is_null(), "{}", list["nodes"]);
    let problem = list["nodes"][1]["problem"].as_str().unwrap_or_default();
    ensure!(problem.contains("is for another name"), "{}", list["nodes"]);
    Ok(())
}

#[tokio::test]
async fn nodes_that_come_join_the_streams_that_run() -> anyhow::Result<()> {
    let cluster = Cluster::start(&["one", "two"])?;
    let api = ApiServer::start(None)?;
    announce(&api, &cluster, "one");
    let gateway = following(&cluster, &api, &["--nodes-plain"])?;
    wait_for_nodes(&gateway, &["one"])?;
    let (here, there) = Namespace::pair()?;
    let word = here.path().display().to_string();
    wait_until(Duration::from_secs(10), || {
        Ok(gateway.targets()?.iter().any(|target| target["name"] == word))
    })?;
    let url = gateway.url(&format!("target={word}&follow=1&filter=ether+proto+0x88b5"));
    let mut recorder = Recorder::start(&url).await?;
    let described = |node: &str| format!("{node}/{word}/va");
    let has = |recording: &packetflix_tests::recording::Recording, name: &str| {
        recording.interfaces.iter().any(|one| one.name == name)
    };
    recorder
        .read_until(|recording| has(recording, &described("one")))
        .await?;
    announce(&api, &cluster, "two");
    recorder
        .read_until(|recording| has(recording, &described("two")))
        .await?;
    let socket = RawSocket::open(&there, "vb")?;
    for number in 0..20 {
        socket.send(&raw::ethernet(0x88b5, &[number; 46]))?;
    }
    // Both nodes are this machine, and see each packet.
    recorder
        .read_until(|recording| recording.packets.len() == 40)
        .await?;
    // A node that nobody tells of any more goes on with what runs.
    api.remove("endpointslices", "packetflix", "nodes-one");
    wait_for_nodes(&gateway, &["two"])?;
    socket.send(&raw::ethernet(0x88b5, &[99; 46]))?;
    recorder
        .read_until(|recording| recording.packets.len() == 42)
        .await?;
    // In what order is no matter here: a node that follows holds packets back while others make namespaces.
    let recording = recorder.finish().await?;
    recording.check_complete()?;
    for node in ["one", "two"] {
        let statistics = recording.final_statistics(&described(node))?;
        assert_eq!((statistics.delivered, statistics.dropped), (21, 0), "{node}");
    }
    Ok(())
}
