//! Engines and discovery services that die while they are asked. `engines.rs` and `targets.rs` beside this have those that
//! hang, lie, or were never there.

use std::{
    io::Write as _,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use anyhow::{Context as _, ensure};
use packetflix_tests::{
    client::refusal,
    process::{Sleeper, capture_is_of},
    server::{Server, program, wait_until},
    upstream::Upstream,
};
use serde_json::{Value, json};

/// A scripted engine, killed when dropped.
struct Engine {
    child: Child,
    socket: PathBuf,
}

impl Engine {
    /// Runs `name` as process `pid`; dies when it has said so many bytes.
    fn start(socket: &Path, name: &str, pid: u32, dies_after: Option<usize>) -> anyhow::Result<Self> {
        let _ = std::fs::remove_file(socket);
        let mut command = Command::new(program("fake-engine")?);
        command
            .arg(socket)
            .args([name, &pid.to_string()])
            .stdin(Stdio::null())
            .stdout(Stdio::null());
        if let Some(bytes) = dies_after {
            command.env("FAKE_ENGINE_DIES_AFTER", bytes.to_string());
        }
        let engine = Self {
            child: command.spawn()?,
            socket: socket.to_owned(),
        };
        wait_until(Duration::from_secs(5), || Ok(socket.exists()))?;
        Ok(engine)
    }
}

impl Drop for Engine {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        let _ = std::fs::remove_file(&self.socket);
    }
}

fn has_target(server: &Server, name: &str) -> anyhow::Result<bool> {
    Ok(server.targets()?.iter().any(|target| target["name"] == name))
}

#[tokio::test]
async fn engine_that_dies_in_the_middle_of_a_scan_costs_its_own_targets_alone() -> anyhow::Result<()> {
    let (here, there) = (Sleeper::unshared()?, Sleeper::unshared()?);
    let folder = std::env::temp_dir().join(format!("packetflix-dying-{}", std::process::id()));
    std::fs::create_dir_all(&folder)?;
    let (well, ill) = (folder.join("well"), folder.join("ill"));
    let _well = Engine::start(&well, "well", here.pid(), None)?;
    let sockets = [&well, &ill].map(|socket| format!("--engine-socket={}", socket.display()));
    let mut slowest = Duration::ZERO;
    // In the head of the list, in the list, at its end, in the head of the details, and in them.
    for dies_after in [1, 20, 90, 150, 190, 230] {
        let mut dying = Engine::start(&ill, "ill", there.pid(), Some(dies_after))?;
        let server = Server::start(&[&sockets[0], &sockets[1]])?;
        let begin = Instant::now();
        let (_, details) = server.get("/targets")?;
        slowest = slowest.max(begin.elapsed());
        ensure!(has_target(&server, "well")?, "{dies_after}: {details}");
        ensure!(!has_target(&server, "ill")?, "{dies_after}: it has not died");
        dying.child.wait()?;
        capture_is_of(&server, &json!({ "name": "well" }), "", here.pid()).await?;

        let again = Engine::start(&ill, "ill", there.pid(), None)?;
        let listed = server.target("ill")?;
        ensure!(listed["pid"] == there.pid(), "{listed}");
        capture_is_of(&server, &json!({ "name": "ill" }), "", there.pid()).await?;
        drop(again);
    }
    eprintln!("scans in which an engine died took at most {slowest:.1?}");
    ensure!(slowest < Duration::from_secs(2), "{slowest:?}");
    std::fs::remove_dir_all(&folder)?;
    Ok(())
}

#[tokio::test]
async fn discovery_service_that_dies_in_the_middle_of_its_answer_is_told() -> anyhow::Result<()> {
    let sleeper = Sleeper::unshared()?;
    let mut target = sleeper.identity()?;
    target["name"] = "web".into();
    let list = json!({ "containers": [target] }).to_string();
    let whole = format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n{list}", list.len());
    let fully = whole.len();
    for said in [0, 9, 30, fully - 20, fully - 1] {
        let answer = whole[..said].to_owned();
        let service = Upstream::start(move |_, stream| Ok(stream.get_ref().write_all(answer.as_bytes())?))?;
        let server = Server::start(&["--gw-port", &service.port().to_string()])?;
        let begin = Instant::now();
        let url = server.url_of(&json!({ "name": "web" }), "");
        let (status, sentence) = refusal(&server, &url, &[]).await?;
        ensure!(
            status == 502 && sentence.starts_with("the discovery service at 127.0.0.1:"),
            "{said}: {status} {sentence}"
        );
        ensure!(
            begin.elapsed() < Duration::from_secs(5),
            "{said}: {:?}",
            begin.elapsed()
        );
        // Who says all that identifies the target needs no service.
        let described: Value = sleeper.identity()?;
        capture_is_of(&server, &described, "", sleeper.pid())
            .await
            .context("without a name")?;
    }
    Ok(())
}
