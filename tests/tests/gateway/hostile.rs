//! What answers at the address of an API server may be anything: who asks there keeps within bounds of requests and memory, tells
//! what is wrong, and goes on once it is right.

use std::{
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, ensure};
use packetflix_tests::{
    kubernetes::ApiServer,
    server::{Server, wait_until},
};
use serde_json::{Value, json};

use crate::{
    Cluster, TOKEN, closed_port,
    desk::{desk, kubeconfig, said},
    endpoints::{following, slice},
};

/// An event of a watch, as a line.
fn event(kind: &str, object: &Value) -> String {
    format!("{}\n", json!({ "type": kind, "object": object }))
}

/// A slice that nobody has listed, of a version.
fn unlisted(name: &str, version: &str) -> Value {
    let mut slice = slice(name, 1);
    slice["metadata"]["resourceVersion"] = json!(version);
    slice
}

/// How much memory a server had at most, in MiB.
fn most_memory(server: &Server) -> anyhow::Result<u64> {
    let status = std::fs::read_to_string(format!("/proc/{}/status", server.pid()))?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
    let kib: u64 = line
        .and_then(|line| line.split_whitespace().next())
        .context("no VmHWM")?
        .parse()?;
    Ok(kib >> 10)
}

/// Whether a gateway knows so many nodes.
fn knows(gateway: &Server, count: usize) -> anyhow::Result<bool> {
    let (_, metrics) = gateway.ask("GET /metrics HTTP/1.1")?;
    Ok(String::from_utf8(metrics)?.contains(&format!("packetflix_gateway_nodes {count}\n")))
}

#[test]
fn api_server_is_not_asked_in_a_loop() -> anyhow::Result<()> {
    let nobody = closed_port()?;
    let gone = event(
        "ERROR",
        &json!({ "kind": "Status", "code": 410, "reason": "Expired", "message": "too old" }),
    );
    let wrongs = [
        ("a watch that ends at once", Some(Vec::new()), None),
        ("a watch that is too old", Some(vec![gone]), None),
        (
            "half a line",
            Some(vec!["{\"type\": \"ADDED\", \"obj".to_owned()]),
            None,
        ),
        ("too many requests", None, Some(429)),
        ("an error", None, Some(500)),
    ];
    // Each is waited for.
    thread::scope(|scope| {
        let each = wrongs.map(|(what, lines, answer)| {
            scope.spawn(move || is_not_asked_in_a_loop(nobody, lines, answer).with_context(|| what))
        });
        each.map(|one| one.join().expect("no panic"))
            .into_iter()
            .collect()
    })
}

/// A gateway asks an API server that answers watches with these lines, or all with this status.
fn is_not_asked_in_a_loop(
    nobody: u16,
    lines: Option<Vec<String>>,
    answer: Option<u16>,
) -> anyhow::Result<()> {
    let cluster = Cluster::start(&[])?;
    let api = ApiServer::start(None)?;
    api.put("endpointslices", slice("one", nobody));
    if let Some(lines) = lines {
        api.answer_watches_with(lines, true);
    }
    if let Some(code) = answer {
        api.refuse("/endpointslices?", code, "not now");
    }
    let begun = Instant::now();
    let gateway = following(&cluster, &api, &["--nodes-plain"])?;
    let is_loop = wait_until(Duration::from_secs(5), || Ok(api.lines().len() > 120));
    ensure!(is_loop.is_err(), "{} in {:?}", api.lines().len(), begun.elapsed());
    ensure!(api.lines().len() > 1, "{:?}", api.lines());
    // It is followed once it does as it should.
    api.answer_as_usual();
    api.put("endpointslices", slice("two", nobody));
    wait_until(Duration::from_secs(30), || knows(&gateway, 2)).with_context(|| gateway.log())?;
    Ok(())
}

#[test]
fn api_server_takes_no_more_memory_than_is_its() -> anyhow::Result<()> {
    let cluster = Cluster::start(&[])?;
    let nobody = closed_port()?;
    let mut huge = unlisted("huge", "1");
    huge["metadata"]["annotations"] = json!({ "x": "x".repeat(50 << 20) });
    let mut known = slice("one", nobody);
    known["metadata"]["resourceVersion"] = json!("1");
    // Each is small, and there are many.
    let many = (0..30_000).map(|number| event("ADDED", &unlisted(&format!("n{number}"), "1")));
    let wrong = event(
        "ADDED",
        &json!({ "kind": "EndpointSlice", "metadata": { "name": 7, "resourceVersion": [] }, "endpoints": "no" }),
    );
    let bookmark = event(
        "BOOKMARK",
        &json!({ "kind": "EndpointSlice", "metadata": { "resourceVersion": "1" } }),
    );
    let nameless = event(
        "ADDED",
        &json!({ "kind": "EndpointSlice", "apiVersion": "discovery.k8s.io/v1", "addressType": "IPv4", "endpoints": [], "metadata": {} }),
    );
    for (what, lines, told) in [
        (
            "an object of 50 MB",
            vec![event("ADDED", &huge)],
            Some("sends more than 33554432 bytes at once"),
        ),
        (
            "a line that never ends",
            vec!["x".repeat(50 << 20)],
            Some("sends more than 33554432 bytes at once"),
        ),
        (
            "wrong types",
            vec![wrong],
            Some("the API server tells what is no event of an EndpointSlice"),
        ),
        (
            "no name",
            vec![nameless],
            Some("which nodes there are is not followed"),
        ),
        ("only bookmarks", vec![bookmark; 10_000], None),
        (
            "what was never listed",
            vec![
                event("DELETED", &unlisted("never", "1")),
                event("MODIFIED", &known),
                event("ADDED", &known),
            ],
            None,
        ),
    ] {
        let api = ApiServer::start(None)?;
        api.put("endpointslices", slice("one", nobody));
        api.answer_watches_with(lines, false);
        let gateway = following(&cluster, &api, &["--nodes-plain"])?;
        if let Some(told) = told {
            wait_until(Duration::from_secs(20), || Ok(gateway.log().contains(told)))
                .with_context(|| format!("{what}: {}", gateway.log()))?;
        }
        // What was known stays known.
        wait_until(Duration::from_secs(20), || knows(&gateway, 1))
            .with_context(|| format!("{what}: {}", gateway.log()))?;
        let most = most_memory(&gateway)?;
        ensure!(most < 256, "{what}: {most} MiB");
        api.answer_as_usual();
        api.put("endpointslices", slice("two", nobody));
        wait_until(Duration::from_secs(40), || knows(&gateway, 2))
            .with_context(|| format!("{what}: {}", gateway.log()))?;
    }
    let api = ApiServer::start(None)?;
    api.answer_watches_with(many.collect(), false);
    let gateway = following(&cluster, &api, &["--nodes-plain"])?;
    wait_until(Duration::from_secs(30), || knows(&gateway, 4096)).with_context(|| gateway.log())?;
    gateway.wait_for_log("EndpointSlices are more than are kept")?;
    let most = most_memory(&gateway)?;
    ensure!(most < 256, "{most} MiB");
    Ok(())
}

/// A page of a list that leads to the same page again.
fn endless(kind: &str, item: &Value) -> String {
    json!({ "kind": kind, "apiVersion": "v1", "metadata": { "resourceVersion": "7", "continue": "again" }, "items": [item] }).to_string()
}

#[test]
fn list_without_an_end_is_given_up() -> anyhow::Result<()> {
    let cluster = Cluster::start(&[])?;
    let api = ApiServer::start(None)?;
    api.answer_with(
        "/endpointslices?",
        200,
        &endless("EndpointSliceList", &unlisted("one", "7")),
    );
    let begun = Instant::now();
    let gateway = following(&cluster, &api, &["--nodes-plain"])?;
    wait_until(Duration::from_secs(45), || {
        let (_, answer) = gateway.get("/readyz")?;
        Ok(answer
            .to_string()
            .contains("does not come to the end of its list within 30 s"))
    })
    .with_context(|| gateway.log())?;
    // As many at once as a list has, and one each second.
    let most = 110 + usize::try_from(begun.elapsed().as_secs())?;
    ensure!(
        api.lines().len() <= most,
        "{} in {:?}",
        api.lines().len(),
        begun.elapsed()
    );
    // From a desk, too.
    api.let_in(TOKEN, "desk");
    let pod = crate::desk::pod(
        "packetflix",
        "packetflix-one",
        &json!({ "app.kubernetes.io/name": "packetflix" }),
        "one",
    );
    api.answer_with("/pods?", 200, &endless("PodList", &pod));
    let config = kubeconfig(&cluster, &api, &json!({ "token": TOKEN }))?;
    let before = api.lines().len();
    let output = desk(&config, &["list", "--kube"])?;
    let asked = api.lines()[before..]
        .iter()
        .filter(|line| line.contains("/pods?"))
        .count();
    ensure!(
        !output.status.success()
            && asked <= 40
            && said(&output).contains("the namespace packetflix has more than 10000 such pods"),
        "{asked}: {}",
        said(&output)
    );
    api.answer_as_usual();
    api.answer_with(
        "/pods?",
        200,
        &format!("{{\"items\": \"{}\"}}", "x".repeat(60 << 20)),
    );
    let output = desk(&config, &["list", "--kube"])?;
    ensure!(
        said(&output)
            .contains("the API server sends more than 33554432 bytes at once, which is more than is read"),
        "{}",
        said(&output)
    );
    Ok(())
}
