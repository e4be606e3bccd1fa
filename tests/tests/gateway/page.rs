//! The page, `/rates` and `/filter` at a gateway. Both nodes are this machine, so that each target is there twice.

use std::{
    io::{BufRead as _, BufReader, Write as _},
    net::TcpStream,
    time::Duration,
};

use anyhow::{Context as _, ensure};
use packetflix_tests::{
    browser::Browser,
    client::{Recorder, refusal},
    namespace::Namespace,
    raw::{self, RawSocket},
    server::{Server, percent_encoded, wait_until},
};
use serde_json::{Value, json};

use crate::{
    Cluster,
    scripted::{Script, play},
};

/// The entries of a namespace in `/targets`, by their nodes.
fn both(gateway: &Server, namespace: &Namespace) -> anyhow::Result<Vec<Value>> {
    let name = namespace.path().display().to_string();
    let mut found = Vec::new();
    wait_until(Duration::from_secs(15), || {
        let (_, mut list) = gateway.get("/targets")?;
        let Value::Array(targets) = list["targets"].take() else {
            return Ok(false);
        };
        found = targets;
        found.retain(|target| target["name"] == name);
        Ok(found.len() == 2)
    })?;
    Ok(found)
}

#[tokio::test]
async fn number_of_a_namespace_says_on_which_node_it_is() -> anyhow::Result<()> {
    let cluster = Cluster::start(&["one", "two"])?;
    let gateway = cluster.gateway(&[])?;
    let namespace = Namespace::new()?;
    let found = both(&gateway, &namespace)?;
    let inode = namespace.inode()?;
    for (target, node) in found.iter().zip(["one", "two"]) {
        assert_eq!(target["node-name"], node);
        let number = target["netns"].as_u64().context("no number")?;
        assert_eq!(number & u64::from(u32::MAX), inode);
        // As the page asks, which sends no name of a node.
        let described =
            json!({ "name": target["name"], "type": target["type"], "prefix": "", "netns": number });
        for query in [
            format!("container={}", percent_encoded(&described.to_string())),
            format!("netns={number}"),
            format!("target=netns:{number}"),
        ] {
            let recorder = Recorder::start(&gateway.url(&query)).await?;
            let recording = recorder.finish().await?;
            let said = format!("node-name: \"{node}\"");
            ensure!(
                recording.comment.contains(&said),
                "{query}: {}",
                recording.comment
            );
        }
    }
    assert_ne!(found[0]["netns"], found[1]["netns"]);
    // Of a node that there is not, and of another than is named.
    let other = found[1]["netns"].clone();
    let described = json!({ "name": found[0]["name"], "netns": other, "node-name": "one" });
    for query in [
        format!("netns={}", (7_u64 << 32) | inode),
        format!("container={}", percent_encoded(&described.to_string())),
    ] {
        let (status, sentence) = refusal(&gateway, &gateway.url(&query), &[]).await?;
        ensure!(
            status == 404 && sentence.contains("not there any more"),
            "{status} {sentence}"
        );
    }
    Ok(())
}

/// Rates of both nodes, by the numbers that their targets have.
#[test]
fn rates_of_all_nodes_come_together_and_stop_with_the_last_who_looks() -> anyhow::Result<()> {
    let cluster = Cluster::start(&["one", "two"])?;
    let gateway = cluster.gateway(&[])?;
    let (here, there) = Namespace::pair()?;
    let numbers = both(&gateway, &here)?;
    let numbers: Vec<String> = numbers.iter().map(|target| target["netns"].to_string()).collect();
    let mut stream = TcpStream::connect(("127.0.0.1", gateway.port()))?;
    write!(stream, "GET /rates HTTP/1.1\r\nHost: localhost\r\n\r\n")?;
    let socket = RawSocket::open(&there, "vb")?;
    let lines = BufReader::new(stream.try_clone()?).lines();
    let mut seen = false;
    for line in lines.map_while(Result::ok).take(2000) {
        socket.send(&raw::ethernet(0x88b5, &[1; 46]))?;
        let Some(data) = line.strip_prefix("data: {").map(|rest| format!("{{{rest}")) else {
            continue;
        };
        let said: Value = serde_json::from_str(&data)?;
        let has_traffic = |number: &String| {
            let links = said["rates"][number].as_object();
            let received = links.into_iter().flatten().map(|(_, rate)| rate[0].as_f64());
            received.flatten().any(|rate| rate > 0.0)
        };
        if numbers.iter().all(has_traffic) {
            seen = true;
            break;
        }
    }
    ensure!(seen, "no rates of both nodes: {}", gateway.log());
    drop(socket);
    let connections = || {
        let port = cluster.node("one").port();
        let ss = std::process::Command::new("ss")
            .args(["-Htn", "state", "established"])
            .output()?;
        let text = String::from_utf8_lossy(&ss.stdout).into_owned();
        anyhow::Ok(
            text.lines()
                .filter(|line| line.contains(&format!(":{port} ")))
                .count(),
        )
    };
    ensure!(connections()? > 0);
    drop(stream);
    wait_until(Duration::from_secs(15), || Ok(connections()? == 0))
}

#[test]
fn filters_are_shown_as_a_node_compiles_them() -> anyhow::Result<()> {
    let cluster = Cluster::start(&["one"])?;
    let gateway = cluster.gateway(&[])?;
    let (status, answer) = gateway.get("/filter?expr=udp+port+53")?;
    ensure!(status == 200 && answer["native"].is_array(), "{status} {answer}");
    let (status, answer) = gateway.get("/filter?expr=udp+prt")?;
    ensure!(
        status == 400 && answer["code"] == "filter_invalid",
        "{status} {answer}"
    );
    Ok(())
}

/// Watches what is called so on both nodes, in one stream, until packets are seen that this end of a link sends.
fn watch(browser: &Browser, name: &str, there: &Namespace) -> anyhow::Result<()> {
    for row in [1, 2] {
        browser.click(&format!(
            "(//div[@role='row'][.//*[@class='name'][contains(., '{name}')]])[{row}]//input"
        ))?;
    }
    browser.press("Capture 2 targets")?;
    browser.press("Watch here")?;
    browser.wait_for(
        "return document.querySelector('.status') && !document.body.innerText.includes('waiting for the service')",
    )?;
    let socket = RawSocket::open(there, "vb")?;
    wait_until(Duration::from_secs(20), || {
        socket.send(&raw::ethernet(0x88b5, &[1; 46]))?;
        let total = browser.script("return Number(document.querySelector('.total')?.dataset.total ?? 0)")?;
        Ok(total.as_u64() >= Some(20))
    })
}

#[test]
fn page_shows_and_watches_the_targets_of_all_nodes() -> anyhow::Result<()> {
    let cluster = Cluster::start(&["one", "two"])?;
    let gateway = cluster.gateway(&[])?;
    let (here, there) = Namespace::pair()?;
    both(&gateway, &here)?;
    let name = here.path().display().to_string();
    let browser = Browser::start()?;
    browser.go(&format!("http://127.0.0.1:{}/", gateway.port()))?;
    browser.type_into("//input[@type='search']", &name)?;
    browser.wait_for_text("2 targets of")?;
    watch(&browser, &name, &there)?;
    browser.check_console()
}

#[test]
fn page_shows_who_has_rights_to_some_targets_these_and_what_it_cannot_see() -> anyhow::Result<()> {
    const PART: &str = "part-0123456789abcdef";
    let cluster = Cluster::start(&["one", "two"])?;
    let (here, there) = Namespace::pair()?;
    let [name, other] = [&here, &there].map(|namespace| namespace.path().display().to_string());
    let text = format!("part {PART} discover capture:{name}\n");
    let tokens = cluster.folder.put_secret("clients", &text)?;
    // Its program is too old to heed the rights of others.
    let odd = format!("--node=odd=http://127.0.0.1:{}", play(Script::default())?);
    let gateway = cluster.gateway(&[&odd, "--token-file", &tokens.display().to_string()])?;
    let browser = Browser::start()?;
    browser.go(&format!("http://127.0.0.1:{}/", gateway.port()))?;
    browser.wait_for_text("a token is needed")?;
    browser.type_into("//input[@type='password']", &format!("{PART}\u{e007}"))?;
    browser.wait_for_text("2 targets")?;
    let shown = browser.script("return document.body.innerText")?.to_string();
    ensure!(shown.contains(&name) && !shown.contains(&other), "{shown}");
    browser.wait_for_text("1 place could not be looked at")?;
    browser.click("//details[@class='doubts']/summary")?;
    browser.wait_for_text("bounds nothing by the rights of whoever asks")?;
    watch(&browser, &name, &there)?;
    browser.click("//a[.='Captures']")?;
    browser.wait_for_text("part may not administer")?;
    browser.check_console()
}
