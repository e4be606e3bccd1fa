//! From a desk with nothing but a kubeconfig: through the API server to the gateway, or to nodes where there is none.

use std::{
    io::{BufRead as _, BufReader, Write as _},
    net::{TcpListener, TcpStream},
    path::Path,
    process::{Command, Output, Stdio},
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    thread,
    time::Duration,
};

use anyhow::{Context as _, ensure};
use packetflix_tests::{
    certificates::Authority,
    kubernetes::{ApiServer, OWN_TOKEN, Rule},
    namespace::Namespace,
    raw::{self, RawSocket},
    server::{Server, program, wait_until},
};
use serde_json::{Value, json};

use crate::{Cluster, TOKEN};

/// A pod as the API has it.
pub(crate) fn pod(namespace: &str, name: &str, labels: &Value, node: &str) -> Value {
    json!({
        "kind": "Pod",
        "apiVersion": "v1",
        "metadata": { "name": name, "namespace": namespace, "labels": labels },
        "spec": { "nodeName": node, "containers": [{ "name": "packetflix", "ports": [{ "name": "http", "containerPort": 5001 }] }] },
        "status": { "phase": "Running", "conditions": [{ "type": "Ready", "status": "True" }] },
    })
}

/// A kubeconfig that leads there, with what its user shows.
pub(crate) fn kubeconfig(cluster: &Cluster, api: &ApiServer, user: &Value) -> anyhow::Result<String> {
    let place = json!({ "server": format!("http://127.0.0.1:{}", api.port()) });
    kubeconfig_of(cluster, &place, user)
}

pub(crate) fn kubeconfig_of(cluster: &Cluster, place: &Value, user: &Value) -> anyhow::Result<String> {
    let config = json!({
        "kind": "Config",
        "apiVersion": "v1",
        "clusters": [{ "name": "c", "cluster": place }],
        "users": [{ "name": "u", "user": user }],
        "contexts": [
            { "name": "shop", "context": { "cluster": "c", "user": "u", "namespace": "shop" } },
            { "name": "other", "context": { "cluster": "c", "user": "u" } },
        ],
        "current-context": "shop",
    });
    let file = cluster.folder.put_secret("kubeconfig", &config.to_string())?;
    Ok(file.display().to_string())
}

/// The client, with this kubeconfig and nothing else.
pub(crate) fn desk(kubeconfig: &str, arguments: &[&str]) -> anyhow::Result<Output> {
    let mut client = Command::new(program("packetflix")?);
    client
        .args(arguments)
        .env("KUBECONFIG", kubeconfig)
        .env_remove("PACKETFLIX_SERVER");
    Ok(client.output()?)
}

/// Captures 600 packets of a namespace, as both nodes see it, which come from the other end of its pair.
fn capture(config: &str, name: &str, there: &Namespace, file: &Path) -> anyhow::Result<Output> {
    let socket = RawSocket::open(there, "vb")?;
    let mut client = Command::new(program("packetflix")?)
        .args(["capture", "--kube", "--context", "other"])
        .args([&format!("{name}*"), "--no-follow"])
        .args(["-f", "ether proto 0x88b5", "-c", "600", "-w"])
        .arg(file)
        .env("KUBECONFIG", config)
        .stderr(Stdio::piped())
        .spawn()?;
    wait_until(Duration::from_secs(30), || {
        socket.send(&raw::ethernet(0x88b5, &[1; 46]))?;
        Ok(client.try_wait()?.is_some())
    })?;
    let output = client.wait_with_output()?;
    ensure!(output.status.success(), "{}", said(&output));
    Ok(output)
}

pub(crate) fn said(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

#[test]
fn desk_reaches_the_gateway_through_the_api_server() -> anyhow::Result<()> {
    let cluster = Cluster::start(&["one", "two"])?;
    let api = ApiServer::start(None)?;
    let own = cluster.folder.put_secret("own", OWN_TOKEN)?;
    let gateway = cluster.gateway(&[
        "--kubernetes-auth",
        &format!("--kubernetes-api=http://127.0.0.1:{}", api.port()),
        &format!("--kubernetes-token-file={}", own.display()),
    ])?;
    api.let_in("token-of-alice", "alice");
    let may = |verb| Rule {
        user: "alice",
        verb,
        resource: "nodes",
        namespace: "",
        name: "",
    };
    api.set_rules(&[may("get"), may("create")]);
    let labels = json!({ "app.kubernetes.io/name": "packetflix-gateway" });
    let mut unready = pod("packetflix", "packetflix-gateway-a", &labels, "one");
    unready["status"]["conditions"][0]["status"] = json!("False");
    api.put("pods", unready);
    api.put("pods", pod("packetflix", "packetflix-gateway-b", &labels, "one"));
    api.forward("packetflix", "packetflix-gateway-b", gateway.port());
    let config = kubeconfig(&cluster, &api, &json!({ "token": "token-of-alice" }))?;
    let (here, there) = Namespace::pair()?;
    let name = here.path().display().to_string();
    wait_until(Duration::from_secs(15), || {
        let listed = desk(&config, &["list", "--kube"])?;
        ensure!(listed.status.success(), "{}", said(&listed));
        Ok(String::from_utf8_lossy(&listed.stdout).matches(&name).count() >= 2)
    })?;
    // Both nodes see each packet, and so does the stream.
    let file = cluster.folder.path().join("desk.pcapng");
    let output = capture(&config, &name, &there, &file)?;
    ensure!(
        said(&output).contains("packetflix/packetflix-gateway-b by http://127.0.0.1:"),
        "{}",
        said(&output)
    );
    let recording = packetflix_tests::recording::Recording::parse(&std::fs::read(&file)?)?;
    ensure!(recording.packets.len() == 600, "{}", recording.packets.len());
    for node in ["one", "two"] {
        ensure!(
            !recording.packets_of(&format!("{node}/{name}/va")).is_empty(),
            "{node}"
        );
    }
    // What kubectl calls -n and -l becomes words of the selection.
    let nobody = desk(
        &config,
        &["capture", "--kube", "-n", "shop", "-l", "app=web,tier", "-w", "-"],
    )?;
    let sentence = said(&nobody);
    ensure!(
        nobody.status.code() == Some(1)
            && sentence.contains("none of 2 nodes has pod:shop/*&label:app=web&label:tier"),
        "{sentence}"
    );
    let nobody = desk(&config, &["capture", "--kube", "web-1", "-w", "-"])?;
    ensure!(
        said(&nobody).contains("none of 2 nodes has shop/web-1"),
        "{}",
        said(&nobody)
    );
    check_whose_token_is_shown(&cluster, &config)?;
    // The right is taken away.
    api.set_rules(&[]);
    wait_until(Duration::from_secs(20), || {
        let listed = desk(&config, &["list", "--kube"])?;
        Ok(!listed.status.success() && said(&listed).contains("may not"))
    })
}

/// Of variables, which have that of another server, none is: nobody here knows it. Those of flags are.
fn check_whose_token_is_shown(cluster: &Cluster, config: &str) -> anyhow::Result<()> {
    const OTHERS: &str = "token-for-another-server";
    let others = cluster.folder.put_secret("others", OTHERS)?.display().to_string();
    let alices = cluster
        .folder
        .put_secret("alices", "token-of-alice")?
        .display()
        .to_string();
    let list = |flags: &[&str]| {
        let mut client = Command::new(program("packetflix")?);
        client
            .args(["list", "--kube"])
            .args(flags)
            .env("KUBECONFIG", config);
        client.env("PACKETFLIX_SERVER", "http://127.0.0.1:1");
        anyhow::Ok(client)
    };
    for (variable, value) in [
        ("PACKETFLIX_TOKEN", OTHERS),
        ("PACKETFLIX_CLIENT_TOKEN_FILE", &others),
    ] {
        for (flags, is_let_in) in [
            (&[][..], true),
            (&["--token-file", &alices], true),
            (&["--token", "token-of-alice"], true),
            (&["--token", "token-of-nobody"], false),
        ] {
            let listed = list(flags)?.env(variable, value).output()?;
            ensure!(
                listed.status.success() == is_let_in,
                "{variable} {flags:?}: {}",
                said(&listed)
            );
        }
    }
    let both = list(&["--token", "token-of-alice", "--token-file", &alices])?.output()?;
    ensure!(
        both.status.code() == Some(2) && said(&both).contains("leave one of them away"),
        "{}",
        said(&both)
    );
    Ok(())
}

#[test]
fn without_a_gateway_the_desk_reaches_the_node_of_the_pods() -> anyhow::Result<()> {
    let cluster = Cluster::start(&["one", "two"])?;
    let api = ApiServer::start(None)?;
    api.let_in(TOKEN, "desk");
    let config = kubeconfig(&cluster, &api, &json!({ "token": TOKEN }))?;
    let nothing = desk(&config, &["list", "--kube"])?;
    ensure!(
        said(&nothing).contains("there is no packetflix in the namespace packetflix"),
        "{}",
        said(&nothing)
    );
    for node in ["one", "two"] {
        let name = format!("packetflix-{node}");
        api.put(
            "pods",
            pod(
                "packetflix",
                &name,
                &json!({ "app.kubernetes.io/name": "packetflix" }),
                node,
            ),
        );
        api.forward("packetflix", &name, cluster.node(node).port());
    }
    for (name, app, node) in [
        ("web-1", "web", "two"),
        ("web-2", "web", "two"),
        ("db-1", "db", "one"),
    ] {
        api.put("pods", pod("shop", name, &json!({ "app": app }), node));
    }
    for (arguments, expected) in [
        (&["-l", "app=web"][..], "packetflix-two"),
        (&["web-2"], "packetflix-two"),
        (&["db-1"], "packetflix-one"),
        (&["-n", "shop", "-l", "app=db"], "packetflix-one"),
    ] {
        let before = api.lines().len();
        let all: Vec<&str> = ["capture", "--kube", "-w", "-"]
            .iter()
            .chain(arguments)
            .copied()
            .collect();
        // No container of these pods runs here, which the node says that was asked.
        let output = desk(&config, &all)?;
        ensure!(output.status.code() == Some(1), "{}", said(&output));
        let lines = api.lines()[before..].join("\n");
        ensure!(
            lines.contains(&format!(
                "GET /api/v1/namespaces/packetflix/pods/{expected}/portforward"
            )),
            "{arguments:?}: {lines}\n{}",
            said(&output)
        );
    }
    for (arguments, expected) in [
        (&["web-1", "db-1"][..], "packetflix on several nodes (one, two)"),
        (
            &["-n", "nowhere", "web-1"],
            "there is no pod web-1 in the namespace nowhere that is on a node",
        ),
        (&["**"], "packetflix on several nodes (one, two)"),
    ] {
        let all: Vec<&str> = ["capture", "--kube", "-w", "-"]
            .iter()
            .chain(arguments)
            .copied()
            .collect();
        let output = desk(&config, &all)?;
        ensure!(
            said(&output).contains(expected),
            "{arguments:?}: {}",
            said(&output)
        );
    }
    Ok(())
}

#[test]
fn what_is_in_the_way_is_said() -> anyhow::Result<()> {
    let cluster = Cluster::start(&["one"])?;
    let api = ApiServer::start(None)?;
    api.let_in(TOKEN, "desk");
    api.put(
        "pods",
        pod(
            "packetflix",
            "packetflix-x",
            &json!({ "app.kubernetes.io/name": "packetflix" }),
            "one",
        ),
    );
    // By a plugin, as clouds have them.
    let plugin = cluster.folder.path().join("plugin");
    let credential = json!({ "kind": "ExecCredential", "apiVersion": "client.authentication.k8s.io/v1", "status": { "token": TOKEN } });
    std::fs::write(&plugin, format!("#!/bin/sh\necho '{credential}'\n"))?;
    std::fs::set_permissions(&plugin, std::os::unix::fs::PermissionsExt::from_mode(0o700))?;
    let by_plugin = json!({ "exec": { "apiVersion": "client.authentication.k8s.io/v1", "command": plugin, "interactiveMode": "Never" } });
    let config = kubeconfig(&cluster, &api, &by_plugin)?;
    // Nobody listens in the pod.
    let output = desk(&config, &["list", "--kube"])?;
    ensure!(
        !output.status.success() && !said(&output).is_empty(),
        "{}",
        said(&output)
    );
    api.forward("packetflix", "packetflix-x", cluster.node("one").port());
    let output = desk(&config, &["list", "--kube"])?;
    ensure!(output.status.success(), "{}", said(&output));
    // A token that is nobody's, one that is never shown, and no cluster.
    let config = kubeconfig(&cluster, &api, &json!({ "token": "nobody-0123456789" }))?;
    let output = desk(&config, &["list", "--kube"])?;
    ensure!(said(&output).contains("(401)"), "{}", said(&output));
    let config = kubeconfig(&cluster, &api, &json!({ "username": "u", "password": "p" }))?;
    let output = desk(&config, &["list", "--kube"])?;
    ensure!(
        said(&output).contains("shows the API server no token"),
        "{}",
        said(&output)
    );
    for arguments in [
        &["list", "--kube", "--context", "none"][..],
        &["list", "--kube", "--server", "http://x"],
    ] {
        let output = desk(&config, arguments)?;
        ensure!(
            !output.status.success() && !said(&output).contains("panicked"),
            "{}",
            said(&output)
        );
    }
    let output = desk("/nowhere/kubeconfig", &["list", "--kube"])?;
    ensure!(
        said(&output).contains("there is no kubeconfig at /nowhere/kubeconfig"),
        "{}",
        said(&output)
    );
    api.set_down(true);
    let config = kubeconfig(&cluster, &api, &json!({ "token": TOKEN }))?;
    let output = desk(&config, &["list", "--kube"])?;
    ensure!(
        said(&output).contains("(503): the server is down"),
        "{}",
        said(&output)
    );
    Ok(())
}

/// A gateway that asks the API server of tokens, and its pod behind it.
fn gateway_in(cluster: &Cluster, api: &ApiServer, authority: Option<&Authority>) -> anyhow::Result<Server> {
    let own = cluster.folder.put_secret("own", OWN_TOKEN)?;
    let scheme = if authority.is_some() { "https" } else { "http" };
    let ca = authority.map(|authority| format!("--kubernetes-ca={}", authority.certificate().display()));
    let flags = [
        "--kubernetes-auth".to_owned(),
        format!("--kubernetes-api={scheme}://127.0.0.1:{}", api.port()),
        format!("--kubernetes-token-file={}", own.display()),
    ];
    let flags: Vec<&str> = flags.iter().chain(&ca).map(String::as_str).collect();
    let gateway = cluster.gateway(&flags)?;
    let labels = json!({ "app.kubernetes.io/name": "packetflix-gateway" });
    api.put("pods", pod("packetflix", "gateway", &labels, "one"));
    api.forward("packetflix", "gateway", gateway.port());
    let may = |verb| Rule {
        user: "alice",
        verb,
        resource: "nodes",
        namespace: "",
        name: "",
    };
    api.set_rules(&[may("get"), may("create")]);
    Ok(gateway)
}

#[test]
fn tokens_that_expire_are_asked_for_anew() -> anyhow::Result<()> {
    let cluster = Cluster::start(&["one"])?;
    let api = ApiServer::start(None)?;
    let _gateway = gateway_in(&cluster, &api, None)?;
    let shown = cluster.folder.put_secret("shown", "token-1-of-alice")?;
    let plugin = cluster.folder.path().join("plugin");
    std::fs::write(
        &plugin,
        format!(
            r#"#!/bin/sh
printf '{{"kind": "ExecCredential", "apiVersion": "client.authentication.k8s.io/v1", "status": {{"token": "%s"}}}}' "$(cat {})"
"#,
            shown.display()
        ),
    )?;
    std::fs::set_permissions(&plugin, std::os::unix::fs::PermissionsExt::from_mode(0o700))?;
    let by_plugin = json!({ "exec": { "apiVersion": "client.authentication.k8s.io/v1", "command": plugin, "interactiveMode": "Never" } });
    let by_file = json!({ "tokenFile": shown });
    let (here, there) = Namespace::pair()?;
    let name = here.path().display().to_string();
    let socket = RawSocket::open(&there, "vb")?;
    for (user, is_by_plugin) in [(&by_plugin, true), (&by_file, false)] {
        cluster.folder.put_secret("shown", "token-1-of-alice")?;
        api.let_in("token-1-of-alice", "alice");
        let config = kubeconfig(&cluster, &api, user)?;
        let file = cluster.folder.path().join(format!("{is_by_plugin}.pcapng"));
        let path = file.display().to_string();
        let mut client = Command::new(program("packetflix")?)
            .args([
                "capture",
                "--kube",
                &name,
                "--reconnect",
                "-f",
                "ether proto 0x88b5",
                "-w",
                &path,
            ])
            .env("KUBECONFIG", &config)
            .stderr(Stdio::piped())
            .spawn()?;
        let forwards = || {
            api.lines()
                .iter()
                .filter(|line| line.contains("/portforward"))
                .count()
        };
        let has = |payload: u8| {
            socket.send(&raw::ethernet(0x88b5, &[payload; 46]))?;
            let bytes = std::fs::read(&file).unwrap_or_default();
            anyhow::Ok(bytes.windows(46).any(|bytes| bytes == [payload; 46]))
        };
        let begun = wait_until(Duration::from_secs(30), || has(1));
        // It expires, and there is no other yet: the API server refuses, again and again.
        api.revoke("token-1-of-alice");
        let refused = api.lines().len();
        let tried = wait_until(Duration::from_secs(30), || {
            let lines = api.lines();
            Ok(lines[refused..]
                .iter()
                .filter(|line| line.contains("/pods?"))
                .count()
                >= 2)
        });
        let before = forwards();
        cluster.folder.put_secret("shown", "token-2-of-alice")?;
        api.let_in("token-2-of-alice", "alice");
        let again = wait_until(Duration::from_secs(60), || has(2));
        nix::sys::signal::kill(
            nix::unistd::Pid::from_raw(i32::try_from(client.id())?),
            nix::sys::signal::Signal::SIGINT,
        )?;
        let mut left = None;
        wait_until(Duration::from_secs(30), || {
            left = client.try_wait()?;
            Ok(left.is_some())
        })?;
        let told = said(&client.wait_with_output()?);
        begun.and(tried).and(again).with_context(|| told.clone())?;
        ensure!(forwards() > before, "{told}");
        ensure!(told.contains("connected again"), "{told}");
        api.revoke("token-2-of-alice");
    }
    Ok(())
}

#[test]
fn api_server_in_tls_is_reached_where_its_certificate_is_of_the_cluster() -> anyhow::Result<()> {
    let cluster = Cluster::start(&["one", "two"])?;
    let authority = Authority::new(cluster.folder.path(), "cluster")?;
    let api = ApiServer::start(Some(&authority.issue("api", "/CN=api")?))?;
    let _gateway = gateway_in(&cluster, &api, Some(&authority))?;
    api.let_in("token-of-alice", "alice");
    let user = json!({ "token": "token-of-alice" });
    let url = format!("https://127.0.0.1:{}", api.port());
    let place = json!({ "server": url, "certificate-authority": authority.certificate() });
    let config = kubeconfig_of(&cluster, &place, &user)?;
    let (here, there) = Namespace::pair()?;
    let name = here.path().display().to_string();
    wait_until(Duration::from_secs(15), || {
        let listed = desk(&config, &["list", "--kube"])?;
        ensure!(listed.status.success(), "{}", said(&listed));
        Ok(String::from_utf8_lossy(&listed.stdout).matches(&name).count() >= 2)
    })?;
    capture(&config, &name, &there, &cluster.folder.path().join("tls.pcapng"))?;
    let asked = api.lines().len();
    // Of another CA, and for another name.
    let other = Authority::new(cluster.folder.path(), "other")?;
    let of_other = json!({ "server": url, "certificate-authority": other.certificate() });
    let for_other = json!({ "server": url, "certificate-authority": authority.certificate(), "tls-server-name": "elsewhere" });
    for (place, why) in [(of_other, "UnknownIssuer"), (for_other, "not valid for name")] {
        let config = kubeconfig_of(&cluster, &place, &user)?;
        for arguments in [&["list", "--kube"][..], &["capture", "--kube", &name, "-w", "-"]] {
            let output = desk(&config, arguments)?;
            let sentence = said(&output);
            ensure!(
                output.status.code() == Some(1)
                    && sentence.contains(&format!(
                        "the certificate of the API server at {url} is not trusted: the kubeconfig says"
                    ))
                    && sentence.contains(why),
                "{sentence}"
            );
        }
    }
    // It was told no token.
    let lines = api.lines();
    ensure!(
        lines[asked..].iter().all(|line| !line.contains("/pods")),
        "{:?}",
        &lines[asked..]
    );
    Ok(())
}

/// A proxy that takes one connection after the other to where it is told (`CONNECT`), and how many it has taken.
fn proxy() -> anyhow::Result<(u16, Arc<AtomicUsize>)> {
    let listener = TcpListener::bind("127.0.0.1:0")?;
    let (port, count) = (listener.local_addr()?.port(), Arc::new(AtomicUsize::new(0)));
    let taken = Arc::clone(&count);
    thread::spawn(move || {
        for stream in listener.incoming().map_while(Result::ok) {
            taken.fetch_add(1, Ordering::Relaxed);
            thread::spawn(move || tunnel(stream));
        }
    });
    Ok((port, count))
}

fn tunnel(stream: TcpStream) -> anyhow::Result<()> {
    let mut reader = BufReader::new(stream.try_clone()?);
    let mut line = String::new();
    reader.read_line(&mut line)?;
    let to = line.split(' ').nth(1).context("no place")?;
    let target = TcpStream::connect(to)?;
    let mut rest = String::new();
    while rest != "\r\n" {
        rest.clear();
        reader.read_line(&mut rest)?;
    }
    (&stream).write_all(b"HTTP/1.1 200 OK\r\n\r\n")?;
    let (mut from_target, mut to_client) = (target.try_clone()?, stream);
    thread::spawn(move || std::io::copy(&mut from_target, &mut to_client));
    std::io::copy(&mut reader, &mut &target)?;
    Ok(target.shutdown(std::net::Shutdown::Write)?)
}

#[test]
fn api_server_is_reached_through_the_proxy_that_is_named() -> anyhow::Result<()> {
    let cluster = Cluster::start(&["one"])?;
    let api = ApiServer::start(None)?;
    api.let_in(TOKEN, "desk");
    let labels = json!({ "app.kubernetes.io/name": "packetflix" });
    api.put("pods", pod("packetflix", "packetflix-x", &labels, "one"));
    api.forward("packetflix", "packetflix-x", cluster.node("one").port());
    let (port, count) = proxy()?;
    let proxy = format!("http://127.0.0.1:{port}");
    let place = json!({ "server": format!("http://127.0.0.1:{}", api.port()), "proxy-url": proxy });
    let config = kubeconfig_of(&cluster, &place, &json!({ "token": TOKEN }))?;
    let listed = desk(&config, &["list", "--kube"])?;
    ensure!(listed.status.success(), "{}", said(&listed));
    let taken = count.load(Ordering::Relaxed);
    ensure!(taken > 0, "{:?}", api.lines());
    // What the environment has is not for this machine.
    let config = kubeconfig(&cluster, &api, &json!({ "token": TOKEN }))?;
    let listed = Command::new(program("packetflix")?)
        .args(["list", "--kube"])
        .env("KUBECONFIG", &config)
        .env("HTTP_PROXY", &proxy)
        .output()?;
    ensure!(listed.status.success(), "{}", said(&listed));
    assert_eq!(count.load(Ordering::Relaxed), taken);
    Ok(())
}

/// The scripted API server is held against a client that others have made.
#[test]
fn kubectl_reads_and_watches_what_the_scripted_server_has() -> anyhow::Result<()> {
    let cluster = Cluster::start(&[])?;
    // Over plain HTTP, kubectl shows no token.
    let authority = Authority::new(cluster.folder.path(), "cluster")?;
    let api = ApiServer::start(Some(&authority.issue("api", "/CN=api")?))?;
    api.let_in(TOKEN, "desk");
    let place = json!({ "server": format!("https://127.0.0.1:{}", api.port()), "certificate-authority": authority.certificate() });
    let config = kubeconfig_of(&cluster, &place, &json!({ "token": TOKEN }))?;
    for (name, app) in [("web-1", "web"), ("web-2", "web"), ("db-1", "db")] {
        api.put("pods", pod("shop", name, &json!({ "app": app }), "one"));
    }
    api.put("endpointslices", super::endpoints::slice("one", 5001));
    let kubectl = |arguments: &[&str]| {
        let output = Command::new("kubectl")
            .args([
                "--kubeconfig",
                &config,
                "--cache-dir",
                &cluster.folder.path().join("cache").display().to_string(),
            ])
            .args(arguments)
            .output()?;
        ensure!(output.status.success(), "{}", said(&output));
        anyhow::Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    };
    assert_eq!(
        kubectl(&["get", "pods", "-o", "name"])?,
        "pod/db-1\npod/web-1\npod/web-2\n"
    );
    assert_eq!(
        kubectl(&["get", "pods", "-l", "app=web", "-o", "name", "--chunk-size=1"])?,
        "pod/web-1\npod/web-2\n"
    );
    assert_eq!(
        kubectl(&["get", "pod", "db-1", "-o", "jsonpath={.spec.nodeName}"])?,
        "one"
    );
    let slices = kubectl(&[
        "-n",
        "packetflix",
        "get",
        "endpointslices",
        "-o",
        "jsonpath={.items[*].endpoints[*].nodeName}",
    ])?;
    assert_eq!(slices, "one");
    // As docs/cluster.md has it.
    let role =
        "create role packetflix-web-1 --verb=get,create --resource=pods/packetflix --resource-name=web-1";
    let role: Vec<&str> = role
        .split(' ')
        .chain(["--dry-run=client", "-o", "json"])
        .collect();
    let role: Value = serde_json::from_str(&kubectl(&role)?)?;
    assert_eq!(
        role["rules"],
        json!([{ "apiGroups": [""], "resources": ["pods/packetflix"], "resourceNames": ["web-1"], "verbs": ["get", "create"] }])
    );
    // A watch tells of what comes.
    let mut watching = Command::new("kubectl")
        .args(["--kubeconfig", &config, "get", "pods", "-w", "-o", "name"])
        .stdout(Stdio::piped())
        .spawn()?;
    wait_until(Duration::from_secs(30), || {
        Ok(api
            .lines()
            .iter()
            .any(|line| line.contains("/pods?") && line.contains("watch=true")))
    })?;
    api.put("pods", pod("shop", "late-1", &json!({}), "one"));
    let lines = BufReader::new(watching.stdout.take().context("no output")?).lines();
    let is_seen = lines
        .map_while(Result::ok)
        .take(8)
        .any(|line| line == "pod/late-1");
    watching.kill()?;
    watching.wait()?;
    ensure!(is_seen, "{:?}", api.lines());
    Ok(())
}
