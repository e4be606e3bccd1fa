//! What may stand between a desk and packetflix in a cluster, and what people are told of it: what has happened, where, and what to
//! do.

use std::{
    io::{BufRead as _, BufReader},
    process::{Command, Stdio},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, ensure};
use packetflix_tests::{
    certificates::Authority,
    kubernetes::ApiServer,
    namespace::Namespace,
    server::{program, wait_until},
};
use serde_json::{Value, json};

use crate::{
    Cluster, TOKEN, closed_port,
    desk::{desk, kubeconfig, kubeconfig_of, pod, said},
    silent_port,
};

/// A pod of the gateway, or of a node, that is ready or not.
fn packetflix(name: &str, app: &str, node: &str, is_ready: bool) -> Value {
    let mut pod = pod(
        "packetflix",
        name,
        &json!({ "app.kubernetes.io/name": app }),
        node,
    );
    if !is_ready {
        pod["status"]["conditions"][0]["status"] = json!("False");
    }
    pod
}

/// What the desk says when it asks for this, where that fails.
fn refused(config: &str, arguments: &[&str]) -> anyhow::Result<String> {
    let output = desk(config, arguments)?;
    let told = said(&output);
    ensure!(!output.status.success(), "{arguments:?}: {told}");
    Ok(told)
}

/// That it is told in one line that says just this, but for what stands for `…`.
fn check(told: &str, expected: &str) -> anyhow::Result<()> {
    let line = told.trim_end().lines().last().unwrap_or_default();
    let mut rest = line;
    for (place, piece) in expected.split('…').enumerate() {
        let found = rest.find(piece).filter(|found| place > 0 || *found == 0);
        let found = found.with_context(|| format!("not {piece:?} in\n{told}\nbut expected\n{expected}"))?;
        rest = &rest[found + piece.len()..];
    }
    ensure!(
        rest.is_empty() || expected.ends_with('…'),
        "more than expected: {rest:?} in\n{told}"
    );
    Ok(())
}

const LIST: &[&str] = &["list", "--kube"];

#[test]
fn kubeconfig_that_leads_nowhere_is_told_of() -> anyhow::Result<()> {
    let cluster = Cluster::start(&[])?;
    let folder = cluster.folder.path();
    let user = json!({ "token": TOKEN });
    let put = |text: &str| -> anyhow::Result<String> {
        Ok(cluster.folder.put_secret("other", text)?.display().to_string())
    };
    let place = json!({ "server": "http://127.0.0.1:1" });
    let with = |cluster: &Value, user: &Value, context: &Value| {
        json!({ "kind": "Config", "apiVersion": "v1", "current-context": "shop",
            "clusters": [{ "name": "c", "cluster": cluster }], "users": [{ "name": "ann", "user": user }],
            "contexts": [{ "name": "shop", "context": context }] })
        .to_string()
    };
    let context = json!({ "cluster": "c", "user": "ann" });
    let file = folder.join("other").display().to_string();
    let no_file = folder.join("ca").display().to_string();
    for (text, arguments, expected) in [
        ("not: [yaml".to_owned(), LIST, format!("packetflix: {file} is no kubeconfig: …")),
        (String::new(), LIST, format!("packetflix: the kubeconfig {file} has no current context: name one with --context; it has none")),
        (
            with(&place, &user, &context),
            &["list", "--kube", "--context", "prod"],
            format!("packetflix: the kubeconfig {file} has no context prod: it has shop"),
        ),
        (
            with(&place, &user, &json!({ "cluster": "gone", "user": "ann" })),
            LIST,
            format!("packetflix: the context shop of the kubeconfig {file} is of the cluster gone, which does not stand there"),
        ),
        (
            with(&place, &user, &json!({ "cluster": "c", "user": "bob" })),
            LIST,
            format!("packetflix: the context shop of the kubeconfig {file} is of the user bob, who does not stand there"),
        ),
        (
            with(&place, &user, &json!({ "cluster": "c", "user": "ann", "namespace": "../x" })),
            LIST,
            format!(
                "packetflix: the namespace ../x of the context shop of the kubeconfig {file} is none: names have letters, digits and dashes"
            ),
        ),
        (
            with(&place, &user, &json!({ "cluster": "c" })),
            LIST,
            "packetflix: the kubeconfig shows the API server no token: the context shop names no user: show packetflix one of the cluster \
             with --token-file, such as `kubectl create token NAME` prints"
                .to_owned(),
        ),
        (
            with(&place, &json!({ "username": "u", "password": "p" }), &context),
            LIST,
            "packetflix: the kubeconfig shows the API server no token, but a password, which packetflix never sees: show packetflix one of \
             the cluster with --token-file, such as `kubectl create token NAME` prints"
                .to_owned(),
        ),
        (
            with(&place, &json!({ "token": "abcdé" }), &context),
            LIST,
            "packetflix: the token of the kubeconfig's user ann (token) is empty, or has a character that no token has, such as a line break \
             or a letter with an accent: was it copied whole?"
                .to_owned(),
        ),
        (
            with(&json!({}), &user, &context),
            LIST,
            format!("packetflix: the kubeconfig {file} cannot be used: its cluster has no server"),
        ),
        (
            with(&json!({ "server": "https://127.0.0.1:1", "certificate-authority": no_file }), &user, &context),
            LIST,
            format!(
                "packetflix: the kubeconfig {file} cannot be used: the CA of its cluster (certificate-authority) cannot be read from \
                 {no_file}: No such file or directory (os error 2)"
            ),
        ),
        (
            with(&place, &json!({ "client-certificate": no_file, "client-key": no_file }), &context),
            LIST,
            format!(
                "packetflix: the kubeconfig cannot be used for the API server at http://127.0.0.1:1: the certificate of its user \
                 (client-certificate) cannot be read from {no_file}: No such file or directory (os error 2)"
            ),
        ),
        (
            with(&json!({ "server": "http://127.0.0.1:1", "proxy-url": "socks5://127.0.0.1:3128" }), &user, &context),
            LIST,
            "packetflix: the kubeconfig cannot be used for the API server at http://127.0.0.1:1: the proxy socks5://127.0.0.1:3128/ \
             (proxy-url, or HTTPS_PROXY) is none of http:// or https://"
                .to_owned(),
        ),
    ] {
        check(&refused(&put(&text)?, arguments)?, &expected)?;
    }
    let told = refused("/nowhere/kubeconfig", LIST)?;
    check(
        &told,
        "packetflix: there is no kubeconfig at /nowhere/kubeconfig: have KUBECONFIG name the file by which kubectl reaches the cluster",
    )?;
    let told = refused(
        &format!("/nowhere/kubeconfig:{}", put(&with(&place, &user, &context))?),
        LIST,
    )?;
    check(
        &told,
        "packetflix: the API server at http://127.0.0.1:1 cannot be reached: …",
    )?;
    for namespace in ["../x", "A"] {
        let told = refused(&file, &["capture", "--kube", "-n", namespace, "web"])?;
        ensure!(
            told.contains(
                "a namespace has small letters, digits and dashes between them, and 63 of these at most"
            ),
            "{told}"
        );
    }
    Ok(())
}

#[test]
fn api_server_that_does_not_do_it_is_told_of() -> anyhow::Result<()> {
    let cluster = Cluster::start(&["one"])?;
    let api = ApiServer::start(None)?;
    api.let_in(TOKEN, "desk");
    let url = format!("http://127.0.0.1:{}", api.port());
    let config = kubeconfig(&cluster, &api, &json!({ "token": TOKEN }))?;
    let expect = |arguments: &[&str], expected: &str| -> anyhow::Result<()> {
        check(&refused(&config, arguments)?, &expected.replace("URL", &url))
    };
    expect(
        LIST,
        "packetflix: there is no packetflix in the namespace packetflix: docs/cluster.md says how it is installed, and --kube-namespace \
         names another",
    )?;
    api.put("pods", packetflix("packetflix-one", "packetflix", "one", false));
    expect(
        LIST,
        "packetflix: packetflix is not ready on the node one (packetflix-one): `kubectl -n packetflix get pods -o wide` shows on which it is",
    )?;
    api.put(
        "pods",
        packetflix("gateway-a", "packetflix-gateway", "one", false),
    );
    expect(
        LIST,
        "packetflix: the gateway in the namespace packetflix is not ready (gateway-a): `kubectl -n packetflix describe pods -l \
         app.kubernetes.io/name=packetflix-gateway` tells why",
    )?;
    api.remove("pods", "packetflix", "gateway-a");
    api.put("pods", packetflix("packetflix-one", "packetflix", "one", true));
    // Nobody listens there.
    expect(
        LIST,
        "packetflix: port 5001 of the pod packetflix-one in the namespace packetflix (by port-forward through URL) takes no connection: \
         does packetflix run there, and listen at that port? The cluster says: an error occurred forwarding 5001: connection refused",
    )?;
    // What listens there is something else.
    api.forward("packetflix", "packetflix-one", api.port());
    expect(
        LIST,
        "packetflix: what answers at packetflix/packetflix-one by URL is no packetflix: is that its address?",
    )?;
    api.forward("packetflix", "packetflix-one", cluster.node("one").port());
    ensure!(desk(&config, LIST)?.status.success());
    // Of pods that are meant, where there is no gateway.
    api.put("pods", packetflix("packetflix-two", "packetflix", "two", true));
    expect(
        &[
            "capture", "--kube", "-n", "gone", "-l", "app=web", "web-1", "web-2",
        ],
        "packetflix: there is no pod web-1, web-2 with the labels app=web in the namespace gone that is on a node: `kubectl -n gone get \
         pods -o wide --show-labels` shows those that there are, and -n names another namespace",
    )?;
    api.remove("pods", "packetflix", "packetflix-two");
    for (word, code, message, expected) in [
        (
            "/pods?",
            401,
            "Unauthorized",
            "packetflix: the API server at URL refuses to list pods in the namespace packetflix (401): Unauthorized. It does not know what the \
             user u of the kubeconfig shows, or no longer: log in again, until `kubectl get pods` works",
        ),
        (
            "/pods?",
            403,
            "pods is forbidden: User \"desk\" cannot list resource \"pods\"",
            "packetflix: the API server at URL refuses to list pods in the namespace packetflix (403): pods is forbidden: User \"desk\" cannot \
             list resource \"pods\". The Role packetflix-desk of that namespace gives the right to the user u: docs/cluster.md says how it is \
             bound",
        ),
        (
            "/portforward",
            403,
            "pods \"packetflix-one\" is forbidden.",
            "packetflix: the API server at URL refuses to forward to the pod packetflix-one in the namespace packetflix (403): pods \
             \"packetflix-one\" is forbidden. The Role packetflix-desk of that namespace gives the right to the user u: docs/cluster.md says \
             how it is bound",
        ),
        (
            "/portforward",
            404,
            "pods \"packetflix-one\" not found",
            "packetflix: the API server at URL refuses to forward to the pod packetflix-one in the namespace packetflix (404): pods \
             \"packetflix-one\" not found. It is gone, or that is no API server of Kubernetes: try again",
        ),
        (
            "/pods?",
            429,
            "too many requests",
            "packetflix: the API server at URL refuses to list pods in the namespace packetflix (429): too many requests. Try again; `kubectl \
             get --raw /readyz` tells how it is",
        ),
        (
            "/pods?",
            503,
            "etcd\nis\naway",
            "packetflix: the API server at URL refuses to list pods in the namespace packetflix (503): etcd is away. Try again; `kubectl get \
             --raw /readyz` tells how it is",
        ),
    ] {
        api.refuse(word, code, message);
        expect(LIST, expected)?;
        api.answer_as_usual();
    }
    api.answer_with("/pods?", 200, "<html>Log in</html>");
    expect(
        LIST,
        "packetflix: what answers at URL is no API server of Kubernetes: is that the address of the cluster in the kubeconfig? expected \
         value at line 1 column 1",
    )?;
    api.answer_as_usual();
    // Pods that no pod is called by, and one whose name would be another path.
    api.remove("pods", "packetflix", "packetflix-one");
    api.put("pods", packetflix("../../x?a=", "packetflix", "one", true));
    let before = api.lines().len();
    expect(
        LIST,
        "packetflix: the API server at URL names a pod ../../x?a=, which no pod can be called",
    )?;
    ensure!(
        !api.lines()[before..]
            .iter()
            .any(|line| line.contains("portforward")),
        "{:?}",
        api.lines()
    );
    Ok(())
}

#[test]
fn api_server_that_is_not_reached_is_told_of() -> anyhow::Result<()> {
    let cluster = Cluster::start(&[])?;
    let authority = Authority::new(cluster.folder.path(), "cluster")?;
    let user = json!({ "token": TOKEN });
    let closed = closed_port()?;
    let config = kubeconfig_of(
        &cluster,
        &json!({ "server": format!("https://127.0.0.1:{closed}") }),
        &user,
    )?;
    check(
        &refused(&config, LIST)?,
        &format!(
            "packetflix: the API server at https://127.0.0.1:{closed} cannot be reached: is it that of the cluster that is meant, and does \
             the network (a VPN?) lead there? Connection refused (os error 111)"
        ),
    )?;
    // Its certificate is too old.
    let old = authority.issue_until("old", "/CN=api", "20200102000000Z")?;
    let api = ApiServer::start(Some(&old))?;
    let url = format!("https://127.0.0.1:{}", api.port());
    let place = json!({ "server": url, "certificate-authority": authority.certificate() });
    let config = kubeconfig_of(&cluster, &place, &user)?;
    check(
        &refused(&config, LIST)?,
        &format!(
            "packetflix: the certificate of the API server at {url} is not valid today: have it renewed, or set the clock of this machine: \
             invalid peer certificate: Expired"
        ),
    )?;
    // It speaks no TLS.
    let plain = ApiServer::start(None)?;
    let url = format!("https://127.0.0.1:{}", plain.port());
    let place = json!({ "server": url, "certificate-authority": authority.certificate() });
    let config = kubeconfig_of(&cluster, &place, &user)?;
    let told = refused(&config, LIST)?;
    ensure!(told.contains(&url) && told.contains("API server"), "{told}");
    // It takes connections, and says nothing.
    let silent = silent_port()?;
    let config = kubeconfig_of(
        &cluster,
        &json!({ "server": format!("http://127.0.0.1:{silent}") }),
        &user,
    )?;
    let begun = Instant::now();
    let told = refused(&config, LIST)?;
    ensure!(
        begun.elapsed() < Duration::from_secs(25),
        "{:?}: {told}",
        begun.elapsed()
    );
    let (waiting, late) = told.split_once('\n').context("one line")?;
    check(
        waiting,
        &format!(
            "packetflix: waiting for the API server at http://127.0.0.1:{silent} to list pods in the namespace packetflix, 15 s at most"
        ),
    )?;
    check(
        late,
        &format!(
            "packetflix: the API server at http://127.0.0.1:{silent} does not list pods in the namespace packetflix within 15 s: try again, \
             or look how it is"
        ),
    )
}

#[test]
fn pod_that_says_nothing_is_told_of() -> anyhow::Result<()> {
    thread::scope(|scope| {
        let each = ["HTTP", "HTTPS"].map(|scheme| scope.spawn(move || says_nothing(scheme)));
        each.map(|one| one.join().expect("no panic"))
            .into_iter()
            .collect()
    })
}

/// A pod is asked that says nothing, by what its probe says that it speaks.
fn says_nothing(scheme: &str) -> anyhow::Result<()> {
    let cluster = Cluster::start(&[])?;
    let api = ApiServer::start(None)?;
    api.let_in(TOKEN, "desk");
    let config = kubeconfig(&cluster, &api, &json!({ "token": TOKEN }))?;
    let port = format!(
        "port 5001 of the pod packetflix-one in the namespace packetflix (by port-forward through http://127.0.0.1:{})",
        api.port()
    );
    api.forward("packetflix", "packetflix-one", silent_port()?);
    let notice = match scheme {
        "HTTP" => format!("packetflix: waiting for an answer of {port}"),
        _ => format!("packetflix: waiting for {port}, 10 s at most"),
    };
    let mut pod = packetflix("packetflix-one", "packetflix", "one", true);
    pod["spec"]["containers"][0]["readinessProbe"] = json!({ "httpGet": { "scheme": scheme } });
    api.put("pods", pod);
    let begun = Instant::now();
    let config = &config;
    let all: Vec<_> = thread::scope(|scope| {
        let verbs = [LIST, &["capture", "--kube", "**", "-w", "-"]];
        let waiting = verbs.map(|arguments| scope.spawn(move || refused(config, arguments)));
        waiting.map(|told| told.join().expect("no panic")).into()
    });
    for told in all {
        let told = told?;
        ensure!(
            begun.elapsed() < Duration::from_secs(25),
            "{:?}: {told}",
            begun.elapsed()
        );
        let (waiting, silent) = told.split_once('\n').with_context(|| told.clone())?;
        check(waiting, &notice)?;
        check(
            silent,
            &format!(
                "packetflix: {port} takes connections, and has said nothing for … s: look whether packetflix hangs there (kubectl logs), \
                     and whether `kubectl port-forward` does better"
            ),
        )?;
    }
    Ok(())
}

#[test]
fn plugin_is_waited_for_aloud() -> anyhow::Result<()> {
    let cluster = Cluster::start(&[])?;
    let api = ApiServer::start(None)?;
    let sleeper = cluster.folder.path().join("login");
    let pid = cluster.folder.path().join("pid");
    std::fs::write(
        &sleeper,
        format!("#!/bin/sh\nsleep 1000 &\necho $! > {}\nwait\n", pid.display()),
    )?;
    std::fs::set_permissions(&sleeper, std::os::unix::fs::PermissionsExt::from_mode(0o700))?;
    let by_plugin = |command: &str, arguments: &[&str]| {
        json!({ "exec": { "apiVersion": "client.authentication.k8s.io/v1", "command": command, "args": arguments,
            "interactiveMode": "Never" } })
    };
    let config = kubeconfig(&cluster, &api, &by_plugin(&sleeper.display().to_string(), &[]))?;
    let mut client = Command::new(program("packetflix")?)
        .args(LIST)
        .env("KUBECONFIG", &config)
        .env_remove("PACKETFLIX_SERVER")
        .stderr(Stdio::piped())
        .spawn()?;
    let mut stderr = BufReader::new(client.stderr.take().context("no output")?);
    let told = thread::spawn(move || {
        let mut told = String::new();
        stderr.read_line(&mut told)?;
        anyhow::Ok(told)
    });
    let is_told = wait_until(Duration::from_secs(15), || Ok(told.is_finished()));
    client.kill()?;
    client.wait()?;
    let left: i32 = std::fs::read_to_string(&pid)?.trim().parse()?;
    nix::sys::signal::kill(
        nix::unistd::Pid::from_raw(left),
        nix::sys::signal::Signal::SIGKILL,
    )?;
    is_told?;
    let told = told.join().ok().context("it panicked")??;
    check(
        &told,
        "packetflix: waiting for the plugin login, by which the user u of the kubeconfig logs in, 180 s at most",
    )?;
    // It prints and prints, and is not waited for.
    for (script, expected) in [
        (
            "yes",
            "packetflix: the plugin sh, by which the user u of the kubeconfig logs in, has printed more than 1048576 bytes, and was ended: a \
             credential has a few thousand",
        ),
        (
            "echo 'the session has expired' >&2; exit 1",
            "packetflix: the plugin sh, by which the user u of the kubeconfig logs in, has failed (exit status: 1): the session has expired",
        ),
    ] {
        let config = kubeconfig(&cluster, &api, &by_plugin("sh", &["-c", script]))?;
        let begun = Instant::now();
        check(&refused(&config, LIST)?, expected)?;
        ensure!(begun.elapsed() < Duration::from_secs(10), "{:?}", begun.elapsed());
    }
    Ok(())
}

#[test]
fn stream_that_breaks_off_says_where() -> anyhow::Result<()> {
    let cluster = Cluster::start(&["one"])?;
    let api = ApiServer::start(None)?;
    api.let_in(TOKEN, "desk");
    api.put("pods", packetflix("packetflix-one", "packetflix", "one", true));
    api.forward("packetflix", "packetflix-one", cluster.node("one").port());
    let config = kubeconfig(&cluster, &api, &json!({ "token": TOKEN }))?;
    let (here, _there) = Namespace::pair()?;
    let name = here.path().display().to_string();
    wait_until(Duration::from_secs(15), || {
        let listed = desk(&config, LIST)?;
        Ok(String::from_utf8_lossy(&listed.stdout).contains(&name))
    })?;
    let file = cluster.folder.path().join("broken.pcapng");
    let client = Command::new(program("packetflix")?)
        .args(["capture", "--kube", &name, "-w"])
        .arg(&file)
        .env("KUBECONFIG", &config)
        .stderr(Stdio::piped())
        .spawn()?;
    let begun = wait_until(Duration::from_secs(15), || {
        Ok(std::fs::metadata(&file).is_ok_and(|about| about.len() > 0))
    });
    api.cut();
    let output = client.wait_with_output()?;
    begun?;
    ensure!(output.status.code() == Some(3), "{}", said(&output));
    check(
        &said(&output),
        &format!(
            "packetflix: the connection is broken: the connection to port 5001 of the pod packetflix-one in the namespace packetflix (by \
             port-forward through http://127.0.0.1:{}) has ended: the pod, its node or the API server is gone, or the network between. \
             With --reconnect, it goes on as soon as there is another",
            api.port()
        ),
    )
}
