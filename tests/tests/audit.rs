//! The account of captures: what it tells, and what becomes of it, and of captures, when it cannot be written.

use std::{
    fs::{self, OpenOptions},
    io::{BufRead as _, BufReader},
    net::TcpListener,
    os::unix::fs::{OpenOptionsExt as _, PermissionsExt as _},
    path::Path,
    process::{Command, Stdio},
    time::Duration,
};

use anyhow::{Context as _, ensure};
use nix::{libc, sys::stat::Mode, unistd::mkfifo};
use packetflix_tests::{
    client::{Capture, Recorder, refusal},
    folder::Folder,
    metrics::Metrics,
    namespace::{Namespace, run},
    process::Sleeper,
    server::{Server, program, wait_until},
};
use serde_json::{Value, json};

/// Longer than anything here may take.
const PATIENCE: Duration = Duration::from_secs(10);

fn text(path: &Path) -> anyhow::Result<&str> {
    path.to_str().context("no UTF-8")
}

/// The lines of an account once there are so many.
fn lines(path: &Path, count: usize) -> anyhow::Result<Vec<Value>> {
    let mut lines = Vec::new();
    wait_until(PATIENCE, || {
        let text = fs::read_to_string(path)?;
        let parsed: Result<Vec<Value>, _> = text.lines().map(serde_json::from_str).collect();
        lines = parsed?;
        Ok(lines.len() >= count)
    })
    .with_context(|| format!("{lines:?}"))?;
    Ok(lines)
}

/// Captures a namespace, and ends.
async fn capture(server: &Server, namespace: &Namespace) -> anyhow::Result<()> {
    let url = server.url(&format!("netns={}&names=0", namespace.inode()?));
    Recorder::start(&url).await?.finish().await.map(drop)
}

#[tokio::test]
async fn names_are_those_that_were_found_with_the_clients_beside_them() -> anyhow::Result<()> {
    let folder = Folder::new()?;
    let path = folder.file("audit.log");
    let sleeper = Sleeper::unshared_as("secret", &[])?;
    let server = Server::start(&["--audit-log", text(&path)?])?;
    let mut asked = sleeper.identity()?;
    asked["name"] = json!("innocent");
    asked["type"] = json!("docker");
    asked["prefix"] = json!("elsewhere");
    Recorder::start(&server.url_of(&asked, ""))
        .await?
        .finish()
        .await?;
    let found = format!("secret({})", sleeper.pid());
    for line in lines(&path, 2)? {
        for (member, value) in [
            ("name", json!(found)),
            ("type", json!("proc")),
            ("prefix", json!("")),
            ("names", json!([found])),
            ("asked_name", json!("innocent")),
            ("asked_type", json!("docker")),
            ("asked_prefix", json!("elsewhere")),
            ("asked_pid", json!(sleeper.pid())),
            ("netns", json!(sleeper.netns()?)),
        ] {
            assert_eq!(line[member], value, "{member}: {line}");
        }
    }
    Ok(())
}

/// A stream that has no room for packets never begins.
#[tokio::test]
async fn a_stream_that_is_too_short_is_accounted_for_once() -> anyhow::Result<()> {
    let folder = Folder::new()?;
    let path = folder.file("audit.log");
    let namespace = Namespace::new()?;
    let server = Server::start(&["--audit-log", text(&path)?])?;
    let url = server.url(&format!("netns={}&bytes=100", namespace.inode()?));
    let (status, sentence) = refusal(&server, &url, &[]).await?;
    ensure!(
        status == 400 && sentence.starts_with("bytes=100 has no room for packets"),
        "{status} {sentence}"
    );
    let metrics = Metrics::of(&server)?;
    for (name, value) in [
        ("packetflix_captures_refused_total{status=\"400\"}", 1),
        ("packetflix_captures_ended_total{reason=\"limit\"}", 0),
    ] {
        assert_eq!(metrics.count(name)?, value, "{name}");
    }
    // Two more lines, behind whatever else there might be of the first.
    capture(&server, &namespace).await?;
    let lines = lines(&path, 3)?;
    let messages: Vec<&Value> = lines.iter().map(|line| &line["message"]).collect();
    assert_eq!(messages, ["capture refused", "capture started", "capture ended"]);
    Ok(())
}

#[tokio::test]
async fn what_a_client_wrote_is_repeated_up_to_a_bound() -> anyhow::Result<()> {
    let (folder, namespace) = (Folder::new()?, Namespace::new()?);
    let path = folder.file("audit.log");
    let server = Server::start(&["--audit-log", text(&path)?])?;
    let interfaces = (0..3000).map(|number| format!("q{number}"));
    let interfaces: Vec<String> = ["lo".to_owned()].into_iter().chain(interfaces).collect();
    let container = json!({
        "name": namespace.path(),
        "network-interfaces": interfaces,
    });
    let filter = format!("tcp{}port+80", "+".repeat(4000));
    let url = server.url(&format!("names=0&filter={filter}"));
    let headers = [("clustershark-container", &container.to_string()[..])];
    let recorder = Recorder::of(Capture::open(&url, &headers).await?).await?;

    let (_, list) = server.get("/captures")?;
    let capture = &list["captures"][0];
    ensure!(capture.to_string().len() < 4096, "{capture}");
    let shown = capture["network-interfaces"]
        .as_array()
        .context("no interfaces")?;
    assert_eq!(shown[..2], [json!("lo"), json!("q0")]);
    assert_eq!(capture["more-network-interfaces"], 3001 - shown.len());
    let filter = capture["filter"].as_str().context("no filter")?;
    ensure!(filter.starts_with("tcp ") && filter.ends_with('…'), "{filter}");

    recorder.finish().await?;
    for line in lines(&path, 2)? {
        ensure!(line.to_string().len() < 4096, "{line}");
    }
    Ok(())
}

#[tokio::test]
async fn who_ends_captures_and_who_is_not_let_in_is_accounted_for() -> anyhow::Result<()> {
    let folder = Folder::new()?;
    let path = folder.file("audit.log");
    let tokens = folder.put_secret(
        "tokens",
        "alice 0123456789abcdef-a\nroot 0123456789abcdef-r admin capture\neve 0123456789abcdef-e discover\n",
    )?;
    let namespace = Namespace::new()?;
    let server = Server::start(&["--token-file", text(&tokens)?, "--audit-log", text(&path)?])?;
    let ask = |method: &str, path: &str, token: &str| {
        let request = format!("{method} {path} HTTP/1.1\r\nAuthorization: Bearer 0123456789abcdef-{token}");
        server.ask(&request)?.0.status()
    };
    let url = server.url(&format!("netns={}", namespace.inode()?));
    let recorder =
        Recorder::of(Capture::open(&url, &[("authorization", "Bearer 0123456789abcdef-a")]).await?).await?;
    let id = lines(&path, 1)?[0]["id"].clone();
    let own = format!("/captures/{id}");
    assert_eq!(ask("DELETE", &own, "wrong")?, 401);
    assert_eq!(ask("DELETE", &own, "a")?, 403);
    assert_eq!(ask("GET", "/captures", "e")?, 403);
    assert_eq!(ask("DELETE", "/captures/999", "r")?, 404);
    assert_eq!(ask("DELETE", "/captures/x", "r")?, 404);
    assert_eq!(ask("DELETE", &own, "r")?, 204);
    let (_, code, _) = recorder.read_to_end().await?;
    assert_eq!(code, 1000);
    for token in ["wrong", "e"] {
        let headers = [("authorization", &format!("Bearer 0123456789abcdef-{token}")[..])];
        ensure!(Capture::open(&url, &headers).await.is_err());
    }
    let asked = "end of a capture asked for";
    let refused = "request refused";
    let lines = lines(&path, 10)?;
    for (message, client, status, more) in [
        (refused, "", 401, json!({ "method": "DELETE", "path": own })),
        (refused, "alice", 403, json!({ "method": "DELETE", "path": own })),
        (
            refused,
            "eve",
            403,
            json!({ "method": "GET", "path": "/captures" }),
        ),
        (asked, "root", 404, json!({ "id": 999 })),
        (asked, "root", 404, json!({ "id": "x" })),
        (asked, "root", 204, json!({ "id": id })),
        (refused, "", 401, json!({ "path": "/capture" })),
        ("capture refused", "eve", 403, json!({})),
    ] {
        let is_told = |line: &&Value| {
            let has = |(member, value): (&String, &Value)| line[member] == *value;
            line["message"] == message
                && line["client"] == client
                && line["status"] == status
                && more.as_object().into_iter().flatten().all(has)
        };
        let told: Vec<&Value> = lines.iter().filter(is_told).collect();
        let [line] = &told[..] else {
            anyhow::bail!("{message} {client} {status}: {lines:#?}");
        };
        let address = line["address"].as_str().unwrap_or_default();
        ensure!(address.starts_with("127.0.0.1:"), "{line}");
    }
    assert_eq!(lines.len(), 10, "{lines:#?}");
    ensure!(!fs::read_to_string(&path)?.contains("0123456789abcdef"));
    Ok(())
}

#[test]
fn lines_about_those_who_are_not_let_in_are_bounded() -> anyhow::Result<()> {
    let folder = Folder::new()?;
    let path = folder.file("audit.log");
    let tokens = folder.put_secret("tokens", "alice 0123456789abcdef\n")?;
    let server = Server::start(&["--token-file", text(&tokens)?, "--audit-log", text(&path)?])?;
    for _ in 0..80 {
        server.ask("GET /targets HTTP/1.1\r\nAuthorization: Bearer wrong")?;
    }
    let is_over = || Ok(fs::read_to_string(&path)?.contains("more refused than have lines"));
    wait_until(Duration::from_secs(20), is_over)?;
    let lines = lines(&path, 1)?;
    let count = |message: &str| lines.iter().filter(|line| line["message"] == message).count() as u64;
    let more = lines
        .iter()
        .find(|line| line["message"] == "more refused than have lines");
    let more = more.and_then(|line| line["count"].as_u64()).context("no count")?;
    ensure!(
        count("request refused") + more >= 80 && count("request refused") <= 100,
        "{lines:#?}"
    );
    Ok(())
}

#[tokio::test]
async fn a_full_disk_ends_nothing_and_is_told() -> anyhow::Result<()> {
    let namespace = Namespace::new()?;
    for required in [false, true] {
        let flags = ["--audit-log", "/dev/full", "--audit-required"];
        let server = Server::start(&flags[..if required { 3 } else { 2 }])?;
        if required {
            let url = server.url(&format!("netns={}", namespace.inode()?));
            for _ in 0..2 {
                let (status, sentence) = refusal(&server, &url, &[]).await?;
                ensure!(
                    status == 503
                        && sentence.starts_with("the account of captures cannot be written")
                        && sentence.contains("No space left on device"),
                    "{status} {sentence}"
                );
            }
            let (status, body) = server.get("/readyz")?;
            ensure!(
                status == 503 && body["error"].to_string().contains("--audit-required"),
                "{status} {body}"
            );
        } else {
            capture(&server, &namespace).await?;
            capture(&server, &namespace).await?;
            assert_eq!(server.get("/readyz")?.0, 200);
            wait_until(PATIENCE, || {
                Ok(Metrics::of(&server)?.count("packetflix_audit_lines_lost_total")? == 4)
            })?;
        }
        // Once.
        let told = server
            .log()
            .matches("the account of captures cannot be written problem=")
            .count();
        assert_eq!(told, 1, "{}", server.log());
    }
    Ok(())
}

/// As when the disk is full in the middle of a line.
#[tokio::test]
async fn a_file_that_may_not_grow_ends_nothing_and_its_lines_are_not_glued() -> anyhow::Result<()> {
    let folder = Folder::new()?;
    let path = folder.file("audit.log");
    let namespace = Namespace::new()?;
    let server = Server::start(&["--audit-log", text(&path)?])?;
    let bound = |most: &str| {
        let limit = format!("--fsize={most}:unlimited");
        server.limit(&limit)
    };
    capture(&server, &namespace).await?;
    lines(&path, 2)?;
    let len = fs::metadata(&path)?.len();
    bound(&(len + 50).to_string())?;
    for _ in 0..3 {
        capture(&server, &namespace).await?;
    }
    wait_until(PATIENCE, || {
        Ok(Metrics::of(&server)?.count("packetflix_audit_lines_lost_total")? == 6)
    })?;
    assert_eq!(fs::metadata(&path)?.len(), len + 50);
    bound("unlimited")?;
    capture(&server, &namespace).await?;
    wait_until(PATIENCE, || Ok(fs::read_to_string(&path)?.lines().count() == 6))?;
    let text = fs::read_to_string(&path)?;
    let read: Vec<Option<Value>> = text.lines().map(|line| serde_json::from_str(line).ok()).collect();
    let messages: Vec<Option<&str>> = read
        .iter()
        .map(|line| line.as_ref().and_then(|line| line["message"].as_str()))
        .collect();
    assert_eq!(
        messages,
        [
            Some("capture started"),
            Some("capture ended"),
            None,
            Some("lines are missing"),
            Some("capture started"),
            Some("capture ended"),
        ],
        "{text}"
    );
    assert_eq!(read[3].as_ref().context("no line")?["lost"], 6);
    server.wait_for_log("the account of captures is written again")
}

#[tokio::test]
async fn a_pipe_is_not_waited_for() -> anyhow::Result<()> {
    let folder = Folder::new()?;
    let path = folder.file("pipe");
    mkfifo(&path, Mode::S_IRUSR | Mode::S_IWUSR)?;
    let namespace = Namespace::new()?;
    let server = Server::start(&["--audit-log", text(&path)?, "--audit-required"])?;
    server.wait_for_log("nobody reads the pipe")?;
    assert_eq!(server.get("/readyz")?.0, 503);
    let url = server.url(&format!("netns={}", namespace.inode()?));
    let (status, sentence) = refusal(&server, &url, &[]).await?;
    ensure!(
        status == 503 && sentence.ends_with("nobody reads the pipe"),
        "{status} {sentence}"
    );

    let reader = OpenOptions::new()
        .read(true)
        .custom_flags(libc::O_NONBLOCK)
        .open(&path)?;
    assert_eq!(server.get("/readyz")?.0, 200);
    capture(&server, &namespace).await?;
    wait_until(PATIENCE, || Ok(server.log().contains("ended")))?;
    drop(server);
    let read: Vec<Value> = BufReader::new(reader)
        .lines()
        .map(|line| Ok(serde_json::from_str(&line?)?))
        .collect::<anyhow::Result<_>>()?;
    let messages: Vec<&Value> = read.iter().map(|line| &line["message"]).collect();
    assert_eq!(
        messages,
        ["lines are missing", "capture started", "capture ended"]
    );
    Ok(())
}

#[test]
fn files_of_others_and_for_others_are_refused() -> anyhow::Result<()> {
    let folder = Folder::new()?;
    let path = folder.file("audit.log");
    fs::write(&path, "")?;
    for (mode, owner, words) in [
        (
            0o644,
            "0",
            "it may be read or altered by others (mode 0644): chmod 600 it",
        ),
        (0o620, "0", "(mode 0620)"),
        (0o600, "65534", "it belongs to the user 65534"),
    ] {
        fs::set_permissions(&path, fs::Permissions::from_mode(mode))?;
        run("chown", &[owner, text(&path)?])?;
        let output = Command::new("timeout")
            .arg("20")
            .arg(program("packetflix")?)
            .args(["--port", "0", "--audit-log", text(&path)?])
            .output()?;
        let said = String::from_utf8(output.stderr)?;
        ensure!(
            output.status.code() == Some(1) && said.contains(words),
            "{mode:o} {owner}: {said}"
        );
    }
    Ok(())
}

/// The log may be a file on that disk, too.
#[test]
fn a_log_that_cannot_be_written_ends_nothing() -> anyhow::Result<()> {
    for format in ["text", "json"] {
        let port = TcpListener::bind("127.0.0.1:0")?.local_addr()?.port();
        let full = OpenOptions::new().write(true).open("/dev/full")?;
        let mut server = Command::new(program("packetflix")?)
            .args([
                "--port",
                &port.to_string(),
                "--log-format",
                format,
                "--log-requests",
            ])
            .stdin(Stdio::null())
            .stderr(Stdio::from(full))
            .spawn()?;
        let asked = || {
            let answer = Command::new("curl")
                .args(["--silent", "--max-time", "5"])
                .arg(format!("http://127.0.0.1:{port}/readyz"))
                .output()?;
            Ok(String::from_utf8(answer.stdout)?.contains("ready"))
        };
        let answered = wait_until(PATIENCE, asked);
        let ended = server.try_wait()?;
        server.kill()?;
        server.wait()?;
        answered.with_context(|| format!("{format}: {ended:?}"))?;
        assert_eq!(ended, None, "{format}");
    }
    Ok(())
}

#[test]
fn an_account_that_is_required_has_a_file() -> anyhow::Result<()> {
    let output = Command::new(program("packetflix")?)
        .args(["--port", "0", "--audit-required"])
        .stderr(Stdio::piped())
        .output()?;
    let said = String::from_utf8(output.stderr)?;
    assert_eq!(said, "packetflix: --audit-required takes an --audit-log\n");
    Ok(())
}
