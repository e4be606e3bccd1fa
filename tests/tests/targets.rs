//! The namespace that is captured is the one that was meant, or the client is told why not.

use std::{
    io::Write as _,
    process::{Command, Stdio},
    thread,
    time::Duration,
};

use anyhow::ensure;
use packetflix_tests::{
    client::{Recorder, refusal},
    namespace::Namespace,
    process::{Sleeper, capture_is_of, netns_of, starttime_of, with_pid},
    recording::Recording,
    server::{Server, percent_encoded, wait_until},
    upstream::{Upstream, answer},
};
use serde_json::{Value, json};

/// What a GhostWire service answers.
const RECORDED: &str = include_str!("../data/mobyshark.json");

/// A discovery service that knows these targets.
fn service(targets: &[Value]) -> anyhow::Result<Upstream> {
    let list = json!({ "metadata": {}, "containers": targets }).to_string();
    Upstream::start(move |_, stream| answer(&stream, "200 OK", "Content-Type: application/json\r\n", &list))
}

/// A server that asks the service.
fn server_with(service: &Upstream) -> anyhow::Result<Server> {
    // Rings are mapped before there is a capture, and are to be little of what it takes.
    Server::start(&["--gw-port", &service.port().to_string(), "--ring-size=512KiB"])
}

fn names(recording: &Recording) -> Vec<&str> {
    recording
        .interfaces
        .iter()
        .map(|interface| &interface.name[..])
        .collect()
}

/// A copy of `target` with other members.
fn with(target: &Value, members: &Value) -> Value {
    let mut target = target.clone();
    if let (Value::Object(target), Value::Object(members)) = (&mut target, members) {
        target.extend(members.clone());
    }
    target
}

#[tokio::test]
async fn process_that_is_meant_is_captured_whatever_it_calls_itself() -> anyhow::Result<()> {
    let server = Server::start(&[])?;
    for name in ["a b) S 1 (c", "sleep"] {
        let sleeper = Sleeper::unshared_as(name, &[])?;
        let identity = sleeper.identity()?;
        let without_netns = json!({ "pid": sleeper.pid(), "starttime": sleeper.starttime()? });
        let namespace_alone = json!({ "netns": sleeper.netns()?, "pid": 0, "starttime": 0, "name": "" });
        let without_starttime = json!({ "netns": sleeper.netns()?, "pid": sleeper.pid() });
        for target in [identity, without_netns, namespace_alone, without_starttime] {
            let recording = capture_is_of(&server, &target, "", sleeper.pid()).await?;
            let words = format!("container-name: {}", json!(format!("{name}({})", sleeper.pid())));
            ensure!(recording.comment.contains(&words), "{}", recording.comment);
        }
    }
    Ok(())
}

#[tokio::test]
async fn process_of_another_user_is_captured() -> anyhow::Result<()> {
    let user = ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups"];
    let sleeper = Sleeper::unshared_as("sleep", &user)?;
    let server = Server::start(&[])?;
    capture_is_of(&server, &sleeper.identity()?, "", sleeper.pid()).await?;

    let mut setpriv = Command::new("setpriv");
    setpriv
        .arg("--bounding-set=-sys_ptrace")
        .arg(packetflix_tests::server::program("packetflix")?);
    let server = Server::start_by(&mut setpriv, &[])?;
    let (status, sentence) = refusal(&server, &server.url_of(&sleeper.identity()?, ""), &[]).await?;
    ensure!(
        status == 500 && sentence.contains("CAP_SYS_PTRACE"),
        "{status} {sentence}"
    );
    Ok(())
}

#[tokio::test]
async fn stale_target_without_a_name_is_refused() -> anyhow::Result<()> {
    let mut sleeper = Sleeper::unshared()?;
    // Another that began at another time.
    let mut other = Sleeper::unshared()?;
    while other.starttime()? == sleeper.starttime()? {
        other = Sleeper::unshared()?;
    }
    let server = Server::start(&[])?;
    let identity = sleeper.identity()?;
    let starttime = sleeper.starttime()? + 1;
    for (members, words) in [
        (json!({ "starttime": starttime }), "it is another one"),
        (json!({ "netns": other.netns()? }), "and not in"),
        (json!({ "pid": 4_000_000_000_u32 }), "has ended"),
        (json!({ "pid": other.pid() }), "it is another one"),
    ] {
        let target = with(&identity, &members);
        let (status, sentence) = refusal(&server, &server.url_of(&target, ""), &[]).await?;
        ensure!(
            status == 409 && sentence.starts_with("the target is stale: ") && sentence.contains(words),
            "{target}: {status} {sentence}"
        );
    }
    sleeper.end()?;
    let (status, sentence) = refusal(&server, &server.url_of(&identity, ""), &[]).await?;
    ensure!(
        status == 409 && sentence == format!("the target is stale: process {} has ended", sleeper.pid()),
        "{status} {sentence}"
    );
    Ok(())
}

#[tokio::test]
async fn process_that_got_a_pid_and_a_namespace_of_another_is_not_captured() -> anyhow::Result<()> {
    let namespace = Namespace::new()?;
    let mut sleeper = Sleeper::inside(&namespace)?;
    let (pid, identity) = (sleeper.pid(), sleeper.identity()?);
    let server = Server::start(&[])?;
    capture_is_of(&server, &identity, "", pid).await?;
    sleeper.end()?;
    // Even in the same namespace: only its start time is another.
    thread::sleep(Duration::from_millis(20));
    let mut reused = with_pid(pid, || {
        Ok(namespace
            .command("sleep")
            .arg("60")
            .stdin(Stdio::null())
            .spawn()?)
    })?;
    // It enters the namespace a moment after it began.
    let entered = wait_until(Duration::from_secs(5), || {
        Ok(json!(netns_of(pid)?) == identity["netns"])
    });
    let refused = refusal(&server, &server.url_of(&identity, ""), &[]).await;
    let starttime = starttime_of(pid);
    reused.kill()?;
    reused.wait()?;
    entered?;
    let (status, sentence) = refused?;
    let words = format!(
        "process {pid} began at {} clock ticks after boot and not at {}",
        starttime?, identity["starttime"]
    );
    ensure!(status == 409 && sentence.contains(&words), "{status} {sentence}");
    Ok(())
}

#[tokio::test]
async fn stale_target_with_a_name_is_looked_up_once() -> anyhow::Result<()> {
    let (old, new) = (Sleeper::unshared()?, Sleeper::unshared()?);
    let known = with(
        &new.identity()?,
        &json!({ "name": "web", "type": "docker", "prefix": "", "network-interfaces": ["lo"] }),
    );
    let service = service(&[known])?;
    let server = server_with(&service)?;
    let fresh = with(&old.identity()?, &json!({ "name": "web" }));
    capture_is_of(&server, &fresh, "", old.pid()).await?;
    ensure!(service.heads().is_empty(), "{:?}", service.heads());

    let stale = with(&fresh, &json!({ "starttime": 1 }));
    let recording = capture_is_of(&server, &stale, "", new.pid()).await?;
    assert_eq!(names(&recording), ["lo"]);
    ensure!(
        recording
            .comment
            .contains("container-name: \"web\"\ncontainer-type: \"docker\"\n"),
        "{}",
        recording.comment
    );
    let heads = service.heads();
    assert_eq!(heads.len(), 1);
    assert_eq!(heads[0].line, "GET /mobyshark HTTP/1.1");

    let renamed = with(&stale, &json!({ "name": "db" }));
    let (status, sentence) = refusal(&server, &server.url_of(&renamed, ""), &[]).await?;
    ensure!(
        status == 409 && sentence.starts_with("the target db is stale and could not be found again: process"),
        "{status} {sentence}"
    );
    Ok(())
}

#[tokio::test]
async fn target_without_a_process_is_always_looked_up() -> anyhow::Result<()> {
    let (old, new) = (Sleeper::unshared()?, Sleeper::unshared()?);
    let known = |prefix: &str, sleeper: &Sleeper| -> anyhow::Result<Value> {
        let members =
            json!({ "name": "web", "type": "docker", "prefix": prefix, "network-interfaces": ["lo"] });
        Ok(with(&sleeper.identity()?, &members))
    };
    let server = server_with(&service(&[known("", &new)?, known("kind", &old)?])?)?;
    for target in [
        json!({ "name": "web" }),
        json!({ "name": "web", "netns": old.netns()? }),
        json!({ "name": "web", "netns": old.netns()?, "pid": 0, "starttime": old.starttime()? }),
        json!({ "name": "web", "netns": 0, "pid": old.pid() }),
    ] {
        capture_is_of(&server, &target, "", new.pid()).await?;
    }
    let nested = json!({ "name": "web", "prefix": "kind" });
    let recording = capture_is_of(&server, &nested, "", old.pid()).await?;
    ensure!(recording.comment.contains("container-name: \"kind:web\""));

    for (target, name) in [
        (
            json!({ "name": "db" }),
            "there is no target db; 2 others are known",
        ),
        (
            json!({ "name": "web", "prefix": "x" }),
            "there is no target x:web",
        ),
    ] {
        let (status, sentence) = refusal(&server, &server.url_of(&target, ""), &[]).await?;
        ensure!(status == 404 && sentence.starts_with(name), "{status} {sentence}");
    }
    Ok(())
}

#[tokio::test]
async fn interfaces_are_those_of_the_request_however_the_target_is_found() -> anyhow::Result<()> {
    let (namespace, _there) = Namespace::pair()?;
    let sleeper = Sleeper::inside(&namespace)?;
    let members = json!({ "name": "web", "network-interfaces": ["va"] });
    let server = server_with(&service(&[with(&sleeper.identity()?, &members)])?)?;
    for (target, rest, captured) in [
        // What the service lists at the moment is nobody's wish.
        (json!({ "name": "web" }), "", vec!["lo", "va"]),
        (json!({ "name": "web" }), "&nif=lo", vec!["lo"]),
        (json!({ "name": "web" }), "&nif=all", vec!["lo", "va"]),
        (json!({ "name": "web" }), "&nif=", vec!["lo", "va"]),
        (
            json!({ "name": "web", "network-interfaces": ["lo"] }),
            "",
            vec!["lo"],
        ),
        (
            json!({ "name": "web", "network-interfaces": ["lo"] }),
            "&nif=va",
            vec!["va"],
        ),
        (
            with(&sleeper.identity()?, &json!({ "network-interfaces": ["lo"] })),
            "",
            vec!["lo"],
        ),
        (sleeper.identity()?, "", vec!["lo", "va"]),
    ] {
        let recorder = Recorder::start(&server.url_of(&target, rest)).await?;
        let recording = recorder.finish().await?;
        assert_eq!(names(&recording), captured, "{target} {rest}");
    }
    let (status, sentence) = refusal(
        &server,
        &server.url_of(&json!({ "name": "web" }), "&nif=eth7"),
        &[],
    )
    .await?;
    ensure!(status == 404 && sentence.contains("eth7"), "{status} {sentence}");
    Ok(())
}

#[tokio::test]
async fn description_comes_in_the_header_too_and_tells_of_its_host() -> anyhow::Result<()> {
    let sleeper = Sleeper::unshared()?;
    let server = Server::start(&[])?;
    let target = with(
        &sleeper.identity()?,
        &json!({ "name": "web", "type": "pod", "node-name": "worker-7", "cluster": { "context": "c", "uid": "u-1" },
                 "capture-service": "x", "captureport": 5001 }),
    );
    let header = target.to_string();
    let headers = [
        ("clustershark-container", &header[..]),
        ("clustershark-nif", "all"),
    ];
    let mut capture =
        packetflix_tests::client::Capture::open(&server.url("container=%7B%7D&nif=eth7"), &headers).await?;
    let packetflix_tests::client::Piece::Data(first) = capture.next().await? else {
        anyhow::bail!("no stream")
    };
    let comment = Recording::parse(&first)?.comment;
    for line in [
        "container-name: \"web\"",
        "container-type: \"pod\"",
        "node-name: \"worker-7\"",
        "cluster: {uid: \"u-1\"}",
    ] {
        ensure!(comment.contains(line), "{comment}");
    }
    Ok(())
}

#[tokio::test]
async fn several_targets_of_one_name_are_listed_unless_they_are_one() -> anyhow::Result<()> {
    let (first, second) = (Sleeper::unshared()?, Sleeper::unshared()?);
    let known = |kind: &str, sleeper: &Sleeper| -> anyhow::Result<Value> {
        Ok(with(
            &sleeper.identity()?,
            &json!({ "name": "web", "type": kind }),
        ))
    };
    let twice = service(&[known("docker", &first)?, known("podman", &second)?])?;
    let server = server_with(&twice)?;
    let stale = json!({ "name": "web", "netns": 1, "pid": 1, "starttime": 1 });
    for target in [json!({ "name": "web" }), stale] {
        let (status, sentence) = refusal(&server, &server.url_of(&target, ""), &[]).await?;
        ensure!(
            status == 409
                && sentence.starts_with("web may mean several targets: ")
                && sentence.contains(&format!(
                    "docker web (netns {}, pid {})",
                    first.netns()?,
                    first.pid()
                ))
                && sentence.contains(&format!(
                    "podman web (netns {}, pid {})",
                    second.netns()?,
                    second.pid()
                )),
            "{status} {sentence}"
        );
    }
    let told = json!({ "name": "web", "type": "podman" });
    capture_is_of(&server, &told, "", second.pid()).await?;

    let same = service(&[known("docker", &first)?, known("podman", &first)?])?;
    capture_is_of(&server_with(&same)?, &json!({ "name": "web" }), "", first.pid()).await?;
    Ok(())
}

#[tokio::test]
async fn target_that_ends_after_it_was_found_is_told() -> anyhow::Result<()> {
    let sleeper = Sleeper::unshared()?;
    let members = json!({ "name": "web", "starttime": sleeper.starttime()? + 1 });
    let server = server_with(&service(&[with(&sleeper.identity()?, &members)])?)?;
    let (status, sentence) = refusal(&server, &server.url_of(&json!({ "name": "web" }), ""), &[]).await?;
    ensure!(
        status == 409 && sentence.starts_with("the target web was found, but ended before"),
        "{status} {sentence}"
    );
    Ok(())
}

#[tokio::test]
async fn answer_of_ghostwire_is_understood() -> anyhow::Result<()> {
    let sleeper = Sleeper::unshared()?;
    let text = RECORDED
        .replace("4026533001", &sleeper.netns()?.to_string())
        .replace("\"pid\":9001", &format!("\"pid\":{}", sleeper.pid()))
        .replace(
            "\"starttime\":9002",
            &format!("\"starttime\":{}", sleeper.starttime()?),
        );
    let service = Upstream::start(move |_, stream| {
        answer(&stream, "200 OK", "Content-Type: application/json\r\n", &text)
    })?;
    let server = server_with(&service)?;
    let target = json!({ "name": "default/shop-0", "type": "pod" });
    let recording = capture_is_of(&server, &target, "", sleeper.pid()).await?;
    assert_eq!(names(&recording), ["lo"]);
    let (status, sentence) = refusal(&server, &server.url_of(&json!({ "name": "gone" }), ""), &[]).await?;
    ensure!(
        status == 404 && sentence.contains("; 6 others are known"),
        "{status} {sentence}"
    );
    // The list is the service's to give.
    assert_eq!(server.get("/mobyshark")?.0, 404);
    Ok(())
}

#[tokio::test]
async fn faults_of_the_discovery_service_are_told() -> anyhow::Result<()> {
    for (status_line, body, words) in [
        (
            "200 OK",
            "<!doctype html><html>",
            "no list of targets: expected value at line 1 column 1",
        ),
        ("200 OK", "{\"containers\":[{\"netns\":\"x\"}]}", "expected u64"),
        ("503 Sorry", "", "gave no list of targets but the status 503"),
        ("302 Found", "", "the status 302"),
    ] {
        let service = Upstream::start(move |_, stream| answer(&stream, status_line, "", body))?;
        let server = server_with(&service)?;
        let (status, sentence) = refusal(&server, &server.url_of(&json!({ "name": "web" }), ""), &[]).await?;
        ensure!(status == 502 && sentence.contains(words), "{status} {sentence}");
    }
    let endless = Upstream::start(|_, stream| {
        let mut stream = stream.get_ref();
        stream.write_all(b"HTTP/1.1 200 OK\r\n\r\n{\"containers\":[")?;
        loop {
            stream.write_all(&[b' '; 65_536])?;
        }
    })?;
    let server = server_with(&endless)?;
    let (status, sentence) = refusal(&server, &server.url_of(&json!({ "name": "web" }), ""), &[]).await?;
    ensure!(
        status == 502 && sentence.contains("its answer is longer than"),
        "{status} {sentence}"
    );
    let resident = server.status("VmHWM")?;
    ensure!(resident < 150 * 1024, "{resident} KiB");

    let gone = std::net::TcpListener::bind("127.0.0.1:0")?.local_addr()?.port();
    let server = Server::start(&["--gw-port", &gone.to_string()])?;
    let (status, sentence) = refusal(&server, &server.url_of(&json!({ "name": "web" }), ""), &[]).await?;
    let words = format!("the discovery service at 127.0.0.1:{gone} cannot be reached: Connection refused");
    ensure!(
        status == 502 && sentence.starts_with(&words),
        "{status} {sentence}"
    );

    // The slow one is tested with a shorter patience beside the code.
    let sleeper = Sleeper::unshared()?;
    let stale = with(&sleeper.identity()?, &json!({ "name": "web", "starttime": 1 }));
    let (status, _) = refusal(&server, &server.url_of(&stale, ""), &[]).await?;
    assert_eq!(status, 502);
    Ok(())
}

#[tokio::test]
async fn absurd_descriptions_are_refused() -> anyhow::Result<()> {
    let server = Server::start(&[])?;
    let many: Vec<String> = (0..5000).map(|number| format!("i{number}")).collect();
    let deep = format!("{}{}", "[".repeat(200), "]".repeat(200));
    let long = json!({ "name": "x".repeat(20_000) }).to_string();
    for (text, status, words) in [
        (
            "{\"name\":7}",
            400,
            "invalid type: integer `7`, expected a string at line 1 column 9",
        ),
        ("{\"pid\":-5}", 400, "line 1 column 9"),
        ("{\"pid\":5000000000}", 400, "line 1 column 17"),
        ("{\"netns\":1.5}", 400, "floating point"),
        (
            "{\"netns\":4026531840",
            400,
            "EOF while parsing an object at line 1 column 19",
        ),
        ("[]", 400, "no target is given"),
        ("[7]", 400, "7 is no object"),
        ("\u{fffd}", 400, "line 1 column 1"),
        (&deep, 400, "recursion limit exceeded"),
        (&format!("{{\"x\":{deep}}}"), 400, "no target is given"),
        (&long, 404, "there is no target xxx"),
    ] {
        let url = server.url(&format!("container={}", percent_encoded(text)));
        let (found, sentence) = refusal(&server, &url, &[]).await?;
        ensure!(sentence.len() < 1100, "{sentence}");
        ensure!(
            found == status && sentence.contains(words),
            "{text}: {found} {sentence}"
        );
    }
    // More than a namespace can have, and more than a request may hold.
    let sleeper = Sleeper::unshared()?;
    let target = with(&sleeper.identity()?, &json!({ "network-interfaces": many })).to_string();
    let (status, sentence) =
        refusal(&server, &server.url(""), &[("clustershark-container", &target)]).await?;
    ensure!(
        status == 400 && sentence.contains("5000 interfaces"),
        "{status} {sentence}"
    );
    Ok(())
}
