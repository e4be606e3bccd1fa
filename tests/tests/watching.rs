//! What operators watch: counts that agree with the streams, who captures what, how the service is, and the account of
//! captures.

use std::{
    collections::BTreeSet,
    fs,
    os::unix::{fs::PermissionsExt as _, net::UnixDatagram},
    path::PathBuf,
    process::Command,
    sync::Arc,
    time::{Duration, Instant},
};

use anyhow::{Context as _, ensure};
use nix::sys::signal::Signal;
use packetflix_tests::{
    bpf_run::take_run_times,
    client::{Capture, Recorder},
    hook::hooks,
    metrics::Metrics,
    namespace::{Namespace, output_of},
    process::Sleeper,
    raw::{self, RawSocket},
    recording::Recording,
    server::{Server, descriptors_of, program, status_of, wait_until},
};
use serde_json::{Value, json};

/// Longer than anything here may take.
const PATIENCE: Duration = Duration::from_secs(10);

fn frame(number: u8) -> Vec<u8> {
    raw::ethernet(0x88b5, &[number; 46])
}

/// The captures that a server lists.
fn captures(server: &Server) -> anyhow::Result<Vec<Value>> {
    let (status, mut list) = server.get("/captures")?;
    ensure!(status == 200 && list["version"] == 1, "{list}");
    match list["captures"].take() {
        Value::Array(captures) => Ok(captures),
        other => anyhow::bail!("no list: {other}"),
    }
}

/// The metrics when all captures have ended, in the kernel too.
fn metrics_at_rest(server: &Server) -> anyhow::Result<Metrics> {
    let mut metrics = Metrics::default();
    wait_until(PATIENCE, || {
        metrics = Metrics::of(server)?;
        Ok(metrics.count("packetflix_captures")? == 0 && metrics.count("packetflix_taps")? == 0)
    })?;
    Ok(metrics)
}

/// Stops a capture; gives its stream as bytes, and what is in them.
async fn close(mut recorder: Recorder) -> anyhow::Result<(usize, Recording)> {
    recorder.capture().stop().await?;
    while recorder.read().await?.is_none() {}
    let recording = Recording::parse(recorder.stream())?;
    recording.check_complete()?;
    Ok((recorder.stream().len(), recording))
}

/// A folder for what a test writes; removed when dropped.
struct Folder(PathBuf);

impl Folder {
    fn new(name: &str) -> anyhow::Result<Self> {
        let path = std::env::temp_dir().join(format!("packetflix-{name}-{}", std::process::id()));
        fs::create_dir_all(&path)?;
        Ok(Self(path))
    }

    fn file(&self, name: &str) -> anyhow::Result<String> {
        let path = self.0.join(name);
        path.to_str().map(str::to_owned).context("no UTF-8")
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

#[tokio::test]
async fn counts_agree_with_the_streams() -> anyhow::Result<()> {
    for hook in hooks()? {
        let (here, there) = Namespace::pair()?;
        let server = Server::start(&["--hook", hook])?;
        let _times = take_run_times()?;
        let start = Metrics::of(&server)?;
        let filtered = format!("netns={}&nif=va&filter=ether[14]=1", here.inode()?);
        let mut recorder = Recorder::start(&server.url(&filtered)).await?;
        let socket = RawSocket::open(&there, "vb")?;
        for _ in 0..300 {
            socket.send(&frame(1))?;
            socket.send(&frame(2))?;
        }
        recorder
            .read_until(|recording| recording.packets.len() == 300)
            .await?;

        // What a client has is counted a moment later.
        let mut running = Vec::new();
        wait_until(PATIENCE, || {
            running = captures(&server)?;
            Ok(running.iter().all(|one| one["packets"] == 300))
        })?;
        let [capture] = &running[..] else {
            anyhow::bail!("{running:?}");
        };
        assert_eq!(capture["filter"], "ether[14]=1");
        assert_eq!(capture["network-interfaces"], json!(["va"]));
        let target = json!({ "name": here.path(), "type": "bindmount", "netns": here.inode()? });
        assert_eq!(capture["target"], target);
        assert_eq!(capture["tap"], capture["id"]);
        assert_eq!(capture["dropped"], json!({ "kernel": 0, "slow-client": 0 }));
        let address = capture["client"]["address"].as_str().context("no address")?;
        ensure!(address.starts_with("127.0.0.1:"), "{address}");
        ensure!(capture["packets-per-second"].as_f64() > Some(1.0), "{capture}");
        let during = Metrics::of(&server)?;
        assert_eq!(during.count("packetflix_captures")?, 1);
        assert_eq!(during.count("packetflix_taps")?, 1);
        during.check_grown_since(&start)?;

        let (bytes, recording) = close(recorder).await?;
        let statistics = recording.final_statistics("va")?;
        let end = metrics_at_rest(&server)?;
        end.check_grown_since(&during)?;
        for (name, value) in [
            ("packetflix_seen_packets_total", statistics.received),
            ("packetflix_accepted_packets_total", statistics.accepted),
            ("packetflix_accepted_bytes_total", 300 * frame(1).len() as u64),
            ("packetflix_captured_packets_total", 300),
            ("packetflix_delivered_packets_total", 300),
            ("packetflix_delivered_bytes_total", bytes as u64),
            ("packetflix_captures_ended_total{reason=\"closed\"}", 1),
            ("packetflix_dropped_packets_total{cause=\"ring_full\"}", 0),
            ("packetflix_dropped_packets_total{cause=\"slow_client\"}", 0),
            // Each packet runs a program, as do those that passed on their way in.
            ("packetflix_program_runs_total", statistics.received),
        ] {
            assert_eq!(end.count(name)?, value, "{hook}: {name}");
        }
        assert_eq!(statistics.accepted, 300);
        let seen = end.count("packetflix_seen_bytes_total")?;
        ensure!(seen >= 600 * frame(1).len() as u64, "{hook}: {seen}");
        let (ran, delays) = (
            end.get("packetflix_program_run_seconds_total")?,
            end.count("packetflix_delivery_delay_seconds_count")?,
        );
        ensure!(ran > 0.0 && ran < 0.1, "{hook}: {ran} s");
        ensure!((1..=300).contains(&delays), "{hook}: {delays}");
        ensure!(end.get("packetflix_delivery_delay_seconds_sum")? / (delays as f64) < 1.0);

        // What has ended stays in the sums.
        let url = server.url(&format!("netns={}&nif=va", here.inode()?));
        let mut recorder = Recorder::start(&url).await?;
        socket.send(&frame(3))?;
        recorder
            .read_until(|recording| recording.count(&frame(3)) == 1)
            .await?;
        let (_, recording) = close(recorder).await?;
        let last = metrics_at_rest(&server)?;
        last.check_grown_since(&end)?;
        let delivered = last.count("packetflix_delivered_packets_total")?;
        assert_eq!(delivered, 300 + recording.packets.len() as u64);
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn losses_are_counted_by_their_cause() -> anyhow::Result<()> {
    let (here, there) = Namespace::pair()?;
    let server = Server::start(&["--ring-size", "512KiB"])?;
    let url = server.url(&format!(
        "netns={}&nif=va&filter=ether+proto+0x88b5",
        here.inode()?
    ));

    // Alone, a client that stalls fills the rings.
    let stalling = Recorder::start(&url).await?;
    let socket = Arc::new(RawSocket::open(&there, "vb")?);
    // Piece by piece, so that what the client takes with it is full before the rings are, however slow the reader is.
    let mut sent = 0;
    wait_until(PATIENCE, || {
        if sent < 100_000 {
            socket.flood(&raw::ethernet(0x88b5, &[0; 1400]), 1000, 14)?;
            sent += 1000;
        }
        let metrics = Metrics::of(&server)?;
        let all = metrics.count("packetflix_ring_fill_ratio_count")?;
        let below = metrics.count("packetflix_ring_fill_ratio_bucket{le=\"0.95\"}")?;
        Ok(all > below)
    })
    .context("no full ring is told")?;
    let (_, recording) = close(stalling).await?;
    let statistics = recording.final_statistics("va")?;
    let alone = metrics_at_rest(&server)?;
    let dropped = |metrics: &Metrics, cause| {
        metrics.count(&format!("packetflix_dropped_packets_total{{cause=\"{cause}\"}}"))
    };
    assert_eq!(statistics.delivered + statistics.dropped, sent);
    ensure!(statistics.dropped > 0, "{statistics:?}");
    assert_eq!(dropped(&alone, "ring_full")?, statistics.dropped);
    assert_eq!(dropped(&alone, "slow_client")?, 0);

    // Beside another, it loses alone.
    let server = Server::start(&[])?;
    let url = server.url(&format!(
        "netns={}&nif=va&filter=ether+proto+0x88b5",
        here.inode()?
    ));
    let mut slow = Recorder::start(&url).await?;
    let mut fast = Recorder::start(&format!("{url}&statistics=1s")).await?;
    let sending = tokio::task::spawn_blocking(move || {
        for round in 0..30 {
            socket.flood(&raw::ethernet(0x88b5, &[round; 1400]), 1000, 14)?;
            std::thread::sleep(Duration::from_millis(10));
        }
        anyhow::Ok(())
    });
    fast.read_during(sending).await?;
    fast.read_until_statistics(|statistics| statistics.delivered == 30_000)
        .await?;
    // It is told of its loss when it takes something again.
    slow.capture().stop().await?;
    while slow.read().await?.is_none() {}
    let slow = Recording::parse(slow.stream())?.final_statistics("va")?;
    let (_, fast) = close(fast).await?;
    let fast = fast.final_statistics("va")?;
    let metrics = metrics_at_rest(&server)?;
    assert_eq!((fast.delivered, fast.dropped), (30_000, 0));
    ensure!(slow.dropped > 0, "{slow:?}");
    assert_eq!(dropped(&metrics, "slow_client")?, slow.dropped);
    assert_eq!(dropped(&metrics, "ring_full")?, 0);
    assert_eq!(metrics.count("packetflix_captured_packets_total")?, 30_000);
    let delivered = metrics.count("packetflix_delivered_packets_total")?;
    assert_eq!(delivered, fast.delivered + slow.delivered);
    Ok(())
}

#[tokio::test]
async fn operator_ends_a_capture_and_its_stream_is_whole() -> anyhow::Result<()> {
    let (here, there) = Namespace::pair()?;
    let server = Server::start(&[])?;
    let url = server.url(&format!("netns={}&nif=va", here.inode()?));
    let mut ended = Recorder::start(&url).await?;
    let mut other = Recorder::start(&url).await?;
    let running = captures(&server)?;
    let ids: Vec<u64> = running.iter().filter_map(|one| one["id"].as_u64()).collect();
    let [first, second] = ids[..] else {
        anyhow::bail!("{running:?}");
    };
    ensure!(running.iter().all(|one| one["tap"] == first), "{running:?}");
    let socket = RawSocket::open(&there, "vb")?;
    socket.send(&frame(1))?;
    for recorder in [&mut ended, &mut other] {
        recorder
            .read_until(|recording| recording.count(&frame(1)) == 1)
            .await?;
    }

    let status = |request: &str| server.ask(request)?.0.status();
    let path = format!("/captures/{first}");
    let foreign = "HTTP/1.1\r\nOrigin: http://evil.example";
    assert_eq!(status(&format!("DELETE {path} {foreign}"))?, 403);
    assert_eq!(status(&format!("GET /captures {foreign}"))?, 403);
    for nobody in ["/captures/0", "/captures/999", "/captures/x", "/captures/"] {
        assert_eq!(status(&format!("DELETE {nobody} HTTP/1.1"))?, 404, "{nobody}");
        assert_eq!(status(&format!("GET {nobody} HTTP/1.1"))?, 404, "{nobody}");
    }
    let (head, _) = server.ask(&format!("POST {path} HTTP/1.1"))?;
    assert_eq!(
        (head.status()?, head.values("allow")),
        (405, vec!["GET, HEAD, DELETE"])
    );
    assert_eq!(status("DELETE /captures HTTP/1.1")?, 405);
    assert_eq!(server.get(&path)?.1["id"], first);
    assert_eq!(captures(&server)?.len(), 2);

    let (head, body) = server.ask(&format!("DELETE {path} HTTP/1.1"))?;
    assert_eq!((head.status()?, body.len()), (204, 0));
    let (recording, code, reason) = ended.read_to_end().await?;
    assert_eq!((code, reason.as_str()), (1000, "ended by the operator"));
    recording.check_complete()?;
    assert_eq!(recording.count(&frame(1)), 1);
    wait_until(
        PATIENCE,
        || Ok(status(&format!("DELETE {path} HTTP/1.1"))? == 404),
    )?;

    // The one that shared it goes on.
    socket.send(&frame(2))?;
    other
        .read_until(|recording| recording.count(&frame(2)) == 1)
        .await?;
    assert_eq!(server.get(&format!("/captures/{second}"))?.0, 200);
    other.finish().await?;
    let metrics = metrics_at_rest(&server)?;
    assert_eq!(
        metrics.count("packetflix_captures_ended_total{reason=\"operator\"}")?,
        1
    );
    assert_eq!(
        metrics.count("packetflix_captures_ended_total{reason=\"closed\"}")?,
        1
    );
    Ok(())
}

/// A client may call what it captures what it likes.
#[tokio::test]
async fn captures_are_told_with_what_is_found_in_their_namespace() -> anyhow::Result<()> {
    let sleeper = Sleeper::unshared_as("secret", &[])?;
    let server = Server::start(&["--log-format", "json"])?;
    let mut asked = sleeper.identity()?;
    asked["name"] = json!("innocent");
    asked["type"] = json!("docker");
    let recorder = Recorder::start(&server.url_of(&asked, "")).await?;
    let name = format!("secret({})", sleeper.pid());
    let found = json!({ "name": name, "type": "proc", "names": [name] });
    let mut running = Vec::new();
    wait_until(PATIENCE, || {
        running = captures(&server)?;
        Ok(running.iter().all(|one| one["found"].is_object()))
    })?;
    let netns = sleeper.netns()?;
    let target = json!({ "name": "innocent", "type": "docker", "netns": netns });
    assert_eq!((&running[0]["target"], &running[0]["found"]), (&target, &found));
    recorder.finish().await?;
    server.wait_for_log("\"ended\"")?;
    let log = server.log();
    let lines: Vec<Value> = log
        .lines()
        .filter_map(|line| serde_json::from_str(line).ok())
        .collect();
    for (message, told) in [("started", "innocent"), ("found there", &name)] {
        let line = lines.iter().find(|line| line["message"] == message);
        let line = line.with_context(|| format!("{message}: {log}"))?;
        assert_eq!(
            (&line["name"], &line["span"]["id"]),
            (&json!(told), &json!(1)),
            "{log}"
        );
    }
    Ok(())
}

#[tokio::test]
async fn requests_and_refusals_are_counted_by_status() -> anyhow::Result<()> {
    let server = Server::start(&["--engine-socket", "/nowhere.sock"])?;
    for path in ["/version", "/version", "/nothing", "/targets"] {
        server.get(path)?;
    }
    let refused = Capture::open(&server.url("netns=1&names=0"), &[]).await;
    ensure!(refused.is_err());
    let metrics = Metrics::of(&server)?;
    for (name, value) in [
        ("packetflix_http_requests_total{status=\"200\"}", 3),
        ("packetflix_http_requests_total{status=\"404\"}", 2),
        ("packetflix_captures_refused_total{status=\"404\"}", 1),
        ("packetflix_engine_problems_total{engine=\"/nowhere.sock\"}", 1),
    ] {
        assert_eq!(metrics.count(name)?, value, "{name}");
    }
    ensure!(metrics.count("packetflix_scan_duration_seconds_count")? >= 1);
    let version = env!("CARGO_PKG_VERSION");
    assert_eq!(
        metrics.count(&format!("packetflix_build_info{{version=\"{version}\"}}"))?,
        1
    );
    let descriptors = metrics.count("process_open_fds")?;
    let really = descriptors_of(server.pid())?.len() as u64;
    // The connection that asks is one of them.
    ensure!(descriptors.abs_diff(really) <= 3, "{descriptors} {really}");
    let (descriptors, most) = (
        metrics.count("packetflix_keeper_open_fds")?,
        metrics.count("packetflix_keeper_max_fds")?,
    );
    let really = descriptors_of(server.keeper()?)?.len() as u64;
    // What asks is one of them, and another object may be loaded meanwhile.
    ensure!(
        descriptors.abs_diff(really) <= 40 && descriptors > 10 && most == metrics.count("process_max_fds")?,
        "{descriptors} {really} {most}"
    );
    let (memory, really) = (
        metrics.count("process_resident_memory_bytes")?,
        status_of(server.pid(), "VmRSS")? * 1024,
    );
    ensure!(memory.abs_diff(really) < really / 2, "{memory} {really}");
    let (used, limit) = (
        metrics.count("packetflix_ring_memory_bytes")?,
        metrics.count("packetflix_ring_memory_limit_bytes")?,
    );
    ensure!(used > 0 && used <= limit, "{used} {limit}");
    Ok(())
}

#[test]
fn an_engine_that_was_named_and_is_not_there_is_told_at_the_start() -> anyhow::Result<()> {
    let folder = Folder::new("engines")?;
    let (missing, stale) = (folder.file("missing.sock")?, folder.file("stale.sock")?);
    drop(std::os::unix::net::UnixListener::bind(&stale)?);
    let flags = ["--engine-socket", &missing[..], "--engine-socket", &stale];
    let server = Server::start(&flags)?;
    for (socket, words) in [
        (&missing, "No such file or directory"),
        (&missing, "write --engine-socket as its socket is called"),
        (&stale, "nobody listens: Connection refused"),
        (&stale, "start the engine, or name the socket"),
    ] {
        let told = || {
            let log = server.log();
            let mut lines = log.lines();
            Ok(lines.any(|line| line.contains(&format!("engine={socket} ")) && line.contains(words)))
        };
        wait_until(PATIENCE, told).with_context(|| format!("{words}: {}", server.log()))?;
    }
    // Once, and not with every scan.
    server.get("/targets")?;
    assert_eq!(
        server
            .log()
            .matches("an engine does not tell what it runs")
            .count(),
        2
    );

    let check = Command::new(program("packetflix")?)
        .args(["check", "--json"])
        .args(flags)
        .output()?;
    let report: Value = serde_json::from_slice(&check.stdout)?;
    let findings = report["findings"].as_array().context("no findings")?;
    for socket in [&missing, &stale] {
        let about = findings.iter().find(|finding| {
            finding["subject"] == "engine"
                && finding["found"]
                    .as_str()
                    .is_some_and(|found| found.contains(socket))
        });
        let remedy = about.and_then(|finding| finding["remedy"].as_str());
        let remedy = remedy.with_context(|| report.to_string())?;
        ensure!(remedy.starts_with("start the engine"), "{remedy}");
    }
    Ok(())
}

#[tokio::test]
async fn dashboard_names_only_what_is_counted() -> anyhow::Result<()> {
    let server = Server::start(&["--engine-socket", "/nowhere.sock"])?;
    server.get("/targets")?;
    let refused = Capture::open(&server.url("netns=1"), &[]).await;
    ensure!(refused.is_err());
    let metrics = Metrics::of(&server)?;
    let mut known = metrics.names();
    // Some there are only with files of tokens.
    let folder = Folder::new("dashboard")?;
    let tokens = folder.file("tokens")?;
    fs::write(&tokens, "alice 0123456789abcdef\n")?;
    fs::set_permissions(&tokens, fs::Permissions::from_mode(0o600))?;
    let asking = Server::start(&["--token-file", &tokens])?;
    let (_, body) = asking.ask("GET /metrics HTTP/1.1\r\nAuthorization: Bearer 0123456789abcdef")?;
    let metrics = Metrics::parse(&String::from_utf8(body)?)?;
    known.extend(metrics.names());
    let file = concat!(env!("CARGO_MANIFEST_DIR"), "/../deploy/grafana/packetflix.json");
    let dashboard: Value = serde_json::from_slice(&fs::read(file)?)?;
    let mut used = BTreeSet::new();
    for panel in dashboard["panels"].as_array().context("no panels")? {
        for target in panel["targets"].as_array().into_iter().flatten() {
            let expression = target["expr"].as_str().context("no expression")?;
            let words = expression.split(|one: char| !one.is_ascii_alphanumeric() && one != '_');
            let names = words.filter(|word| word.starts_with("packetflix_") || word.starts_with("process_"));
            let names: Vec<String> = names.map(str::to_owned).collect();
            ensure!(!names.is_empty(), "{expression}");
            used.extend(names);
        }
    }
    for name in &used {
        ensure!(known.contains(name.as_str()), "{name} is not counted: {known:?}");
    }
    // And what is counted is shown; of a histogram the buckets.
    let hidden: Vec<&&str> = known
        .iter()
        .filter(|name| {
            name.starts_with("packetflix_") && !name.ends_with("_sum") && !name.ends_with("_count")
        })
        .filter(|name| !used.contains(**name))
        .collect();
    ensure!(hidden.is_empty(), "{hidden:?} are shown nowhere");
    Ok(())
}

#[tokio::test]
async fn alerts_name_only_what_is_counted_and_fire_when_they_should() -> anyhow::Result<()> {
    let server = Server::start(&[])?;
    let metrics = Metrics::of(&server)?;
    // There when something has happened only: `dashboard_names_only_what_is_counted`.
    let later = [
        "packetflix_engine_problems_total",
        "packetflix_captures_refused_total",
    ];
    let root = concat!(env!("CARGO_MANIFEST_DIR"), "/..");
    let alerts = fs::read_to_string(format!("{root}/deploy/prometheus/alerts.yaml"))?;
    let expressions: Vec<&str> = alerts
        .lines()
        .filter_map(|line| line.trim().strip_prefix("expr: "))
        .collect();
    ensure!(expressions.len() > 5, "{alerts}");
    for expression in expressions {
        let mut counted = 0;
        for (at, _) in expression
            .match_indices("packetflix_")
            .chain(expression.match_indices("process_"))
        {
            let rest = &expression[at..];
            let end = rest.find(|one: char| !one.is_ascii_alphanumeric() && one != '_');
            let (name, labels) = rest.split_at(end.unwrap_or(rest.len()));
            counted += 1;
            if later.contains(&name) {
                continue;
            }
            ensure!(
                metrics.names().contains(name),
                "{name} is not counted: {expression}"
            );
            let labels = labels.strip_prefix('{').and_then(|labels| labels.split_once('}'));
            let Some((label, values)) = labels.and_then(|(labels, _)| labels.split_once('=')) else {
                continue;
            };
            // The job is not ours to name.
            if label != "job" {
                for value in values.trim_matches(['~', '"']).split('|') {
                    metrics.get(&format!("{name}{{{label}=\"{value}\"}}"))?;
                }
            }
        }
        ensure!(counted > 0 || expression.starts_with("up{"), "{expression}");
    }
    let promtool = format!("{root}/target/tools/bin/promtool");
    output_of(
        Command::new(&promtool)
            .args(["check", "rules", "deploy/prometheus/alerts.yaml"])
            .current_dir(root),
    )
    .context("`cargo xtask test` installs promtool")?;
    let fire = output_of(
        Command::new(&promtool)
            .args(["test", "rules", "tests/data/alerts.yaml"])
            .current_dir(root),
    );
    fire.map(drop)
}

#[test]
fn check_tells_whether_the_service_lives() -> anyhow::Result<()> {
    let ask = |listen: &str| -> anyhow::Result<(bool, String)> {
        let mut check = Command::new(program("packetflix")?);
        let asked = check.args(["check", "--live", "--listen", listen]).output()?;
        Ok((asked.status.success(), String::from_utf8(asked.stderr)?))
    };
    let folder = Folder::new("live")?;
    let socket = format!("unix:{}", folder.0.join("socket").display());
    let server = Server::start(&["--listen", "127.0.0.1:0", "--listen", &socket])?;
    let address = format!("127.0.0.1:{}", server.port());
    for listen in [&address, &socket, &format!("127.0.0.1:1,{address}")] {
        assert_eq!(ask(listen)?, (true, String::new()), "{listen}");
    }
    let (lives, said) = ask("127.0.0.1:1")?;
    ensure!(
        !lives && said.contains("no service answers: 127.0.0.1:1: it cannot be connected to"),
        "{said}"
    );
    // It takes connections, and answers nothing.
    server.signal(Signal::SIGSTOP)?;
    let (lives, said) = ask(&address)?;
    ensure!(!lives && said.contains("does not answer in 3 s"), "{said}");
    server.signal(Signal::SIGCONT)?;
    Ok(())
}

#[tokio::test]
async fn readiness_goes_first_and_a_second_signal_ends_at_once() -> anyhow::Result<()> {
    let mut setpriv = Command::new("setpriv");
    setpriv
        .arg("--bounding-set=-sys_admin,-bpf,-net_admin")
        .arg(program("packetflix")?);
    let weak = Server::start_by(&mut setpriv, &[])?;
    let (status, answer) = weak.get("/readyz")?;
    assert_eq!(status, 503, "{answer}");
    ensure!(
        answer["error"]
            .to_string()
            .contains("the service lacks CAP_SYS_ADMIN"),
        "{answer}"
    );
    assert_eq!(weak.get("/healthz")?, (200, json!({ "status": "alive" })));
    drop(weak);

    let (here, there) = Namespace::pair()?;
    let mut server = Server::start(&["--shutdown-timeout", "60", "--client-timeout", "60"])?;
    assert_eq!(server.get("/readyz")?, (200, json!({ "status": "ready" })));
    let url = server.url(&format!("netns={}", here.inode()?));
    let stalling = Recorder::start(&url).await?;
    RawSocket::open(&there, "vb")?.flood(&raw::ethernet(0x88b5, &[0; 1400]), 30_000, 14)?;
    server.signal(Signal::SIGTERM)?;
    server.wait_for_log("shutting down")?;
    // The client that stalls has some seconds left, in which others are told.
    let (status, answer) = server.get("/readyz")?;
    assert_eq!(
        (status, answer["error"].as_str()),
        (503, Some("the service is shutting down"))
    );
    assert_eq!(server.get("/healthz")?.0, 200);
    assert_eq!(captures(&server)?.len(), 1);
    let refused = Capture::open(&url, &[]).await.err().context("not refused")?;
    ensure!(refused.to_string().starts_with("503 "), "{refused}");
    let begin = Instant::now();
    server.signal(Signal::SIGTERM)?;
    assert_eq!(server.wait()?.code(), Some(0));
    ensure!(begin.elapsed() < Duration::from_secs(2), "{:?}", begin.elapsed());
    ensure!(server.log().contains("a second signal"), "{}", server.log());
    drop(stalling);
    Ok(())
}

#[tokio::test]
async fn shutting_down_takes_no_longer_than_configured() -> anyhow::Result<()> {
    let (here, there) = Namespace::pair()?;
    let mut server = Server::start(&["--shutdown-timeout", "1"])?;
    let stalling = Recorder::start(&server.url(&format!("netns={}", here.inode()?))).await?;
    RawSocket::open(&there, "vb")?.flood(&raw::ethernet(0x88b5, &[0; 1400]), 30_000, 14)?;
    let begin = Instant::now();
    server.signal(Signal::SIGTERM)?;
    assert_eq!(server.wait()?.code(), Some(0));
    let took = begin.elapsed();
    ensure!(
        (Duration::from_secs(1)..Duration::from_millis(2500)).contains(&took),
        "{took:?}"
    );
    server.wait_for_log("not everything ended in time")?;
    drop(stalling);
    Ok(())
}

#[tokio::test]
async fn service_manager_is_told() -> anyhow::Result<()> {
    let folder = Folder::new("notify")?;
    let path = folder.file("socket")?;
    let manager = UnixDatagram::bind(&path)?;
    manager.set_read_timeout(Some(PATIENCE))?;
    let hear = || -> anyhow::Result<String> {
        let mut message = [0; 512];
        let len = manager.recv(&mut message)?;
        Ok(String::from_utf8(message[..len].to_vec())?)
    };
    let mut command = Command::new(program("packetflix")?);
    command.env("NOTIFY_SOCKET", &path).env("WATCHDOG_USEC", "200000");
    let mut server = Server::start_by(&mut command, &["--shutdown-timeout", "7"])?;
    wait_until(PATIENCE, || Ok(hear()? == "READY=1\nSTATUS=no captures"))?;
    assert_eq!(hear()?, "WATCHDOG=1\nSTATUS=no captures");
    let here = Namespace::new()?;
    let recorder = Recorder::start(&server.url(&format!("netns={}", here.inode()?))).await?;
    wait_until(PATIENCE, || Ok(hear()? == "WATCHDOG=1\nSTATUS=1 capture"))?;
    server.signal(Signal::SIGTERM)?;
    let mut last = String::new();
    wait_until(PATIENCE, || {
        last = hear()?;
        Ok(last.starts_with("STOPPING=1\n"))
    })?;
    assert_eq!(
        last,
        "STOPPING=1\nEXTEND_TIMEOUT_USEC=9000000\nSTATUS=1 capture; the service is shutting down"
    );
    recorder.read_to_end().await?;
    assert_eq!(server.wait()?.code(), Some(0));
    Ok(())
}

#[tokio::test]
async fn account_of_captures_is_kept_apart_from_the_log() -> anyhow::Result<()> {
    let folder = Folder::new("audit")?;
    let path = folder.file("audit.log")?;
    let (here, there) = Namespace::pair()?;
    let netns = here.inode()?;
    let server = Server::start(&["--audit-log", &path])?;
    let url = server.url(&format!("netns={netns}&nif=va&filter=ether+proto+0x88b5"));
    let mut recorder = Recorder::start(&url).await?;
    (0..20).try_for_each(|_| {
        RawSocket::open(&there, "vb")?
            .send(&frame(1))
            .map_err(anyhow::Error::from)
    })?;
    recorder
        .read_until(|recording| recording.count(&frame(1)) == 20)
        .await?;
    let (bytes, _) = close(recorder).await?;
    ensure!(Capture::open(&server.url("netns=1"), &[]).await.is_err());

    let mut lines = Vec::new();
    wait_until(PATIENCE, || {
        let text = fs::read_to_string(&path)?;
        lines = text
            .lines()
            .map(serde_json::from_str)
            .collect::<Result<Vec<Value>, _>>()?;
        Ok(lines.len() == 3)
    })
    .with_context(|| format!("{lines:?}"))?;
    let messages = ["capture started", "capture ended", "capture refused"];
    for (line, message) in lines.iter().zip(messages) {
        assert_eq!(line["message"], message);
        assert_eq!(line["target"], "packetflix::audit");
        ensure!(line["timestamp"].is_string(), "{line}");
        ensure!(line["client"] == "anyone", "{line}");
        let client = line["address"].as_str().context("no address")?;
        ensure!(client.starts_with("127.0.0.1:"), "{client}");
    }
    let [started, ended, refused] = &lines[..] else {
        anyhow::bail!("{lines:?}");
    };
    for (member, value) in [
        ("netns", json!(netns)),
        ("name", json!(here.path())),
        ("type", json!("bindmount")),
        ("interfaces", json!("va")),
        ("filter", json!("ether proto 0x88b5")),
    ] {
        assert_eq!(started[member], value);
    }
    assert_eq!((&ended["id"], &ended["netns"]), (&started["id"], &json!(netns)));
    for (member, value) in [
        ("packets", json!(20)),
        ("bytes", json!(bytes)),
        ("lost_in_kernel", json!(0)),
        ("lost_by_client", json!(0)),
        ("end", json!("closed")),
        ("reason", json!("stopped by the client")),
    ] {
        assert_eq!(ended[member], value, "{ended}");
    }
    ensure!(
        ended["seconds"]
            .as_f64()
            .is_some_and(|seconds| seconds > 0.0 && seconds < 10.0)
    );
    assert_eq!((&refused["status"], &refused["netns"]), (&json!(404), &json!(1)));
    ensure!(refused["reason"].to_string().contains("namespace 1"), "{refused}");

    // Where the service listens is no client's address.
    let log = server.log();
    let lines: Vec<&str> = log
        .lines()
        .filter(|line| !line.contains("listening address="))
        .collect();
    let log = lines.join("\n");
    ensure!(log.contains("started") && log.contains("ended"), "{log}");
    for secret in ["127.0.0.1:", "0x88b5", "audit"] {
        ensure!(!log.contains(secret), "{secret}: {log}");
    }
    Ok(())
}

#[tokio::test]
async fn account_is_bounded_and_counts_what_it_leaves_out() -> anyhow::Result<()> {
    const TRIES: usize = 400;
    /// Most bytes of what a client has written.
    const MOST: usize = 1024;

    let folder = Folder::new("audit")?;
    let path = folder.file("audit.log")?;
    let here = Namespace::new()?;
    let mut server = Server::start(&["--audit-log", &path])?;
    let lines = || -> anyhow::Result<Vec<Value>> {
        let text = fs::read_to_string(&path)?;
        Ok(text.lines().map(serde_json::from_str).collect::<Result<_, _>>()?)
    };
    // What is long is cut, in each kind of line.
    let long = "\u{e9}\"".repeat(600);
    let mut target = json!({ "name": long, "type": long, "prefix": long });
    let refused = server.url_of(&target, "");
    ensure!(Capture::open(&refused, &[]).await.is_err());
    for (member, value) in [
        ("netns", json!(here.inode()?)),
        ("name", json!("")),
        ("prefix", json!("")),
        ("type", json!(long)),
    ] {
        target[member] = value;
    }
    let filter = vec!["tcp"; 700].join("+or+");
    close(Recorder::start(&server.url_of(&target, &format!("&filter={filter}"))).await?).await?;
    wait_until(PATIENCE, || Ok(lines()?.len() == 3)).with_context(|| format!("{:?}", lines()))?;
    let mut cut = 0;
    for line in lines()? {
        for (member, value) in line.as_object().context("no object")? {
            let len = value.as_str().map_or(0, str::len);
            ensure!(len <= MOST, "{member}: {len} bytes");
            cut += usize::from(len >= MOST - 1);
        }
    }
    ensure!(cut >= 4, "{cut}");

    // Of many refusals some are told, and the others are counted.
    let origin = [("origin", "http://elsewhere.example")];
    for _ in 0..TRIES {
        ensure!(Capture::open(&server.url("netns=1"), &origin).await.is_err());
    }
    server.signal(Signal::SIGTERM)?;
    server.wait()?;
    let lines = lines()?;
    let of = |message| lines.iter().filter(move |line| line["message"] == message);
    let told = of("capture refused").count() - 1;
    ensure!((1..TRIES / 2).contains(&told), "{told} lines");
    let counted: u64 = of("more refused than have lines")
        .filter(|line| line["account"] == "127.0.0.1")
        .filter_map(|line| line["count"].as_u64())
        .sum();
    // The one with the long name is among those of its window.
    assert_eq!(told as u64 + counted, TRIES as u64, "{told} lines");
    Ok(())
}

#[tokio::test]
async fn log_is_json_for_who_wants_that() -> anyhow::Result<()> {
    let here = Namespace::new()?;
    let mut server = Server::start(&["--log-format", "json", "--log-requests"])?;
    let recorder = Recorder::start(&server.url(&format!("netns={}", here.inode()?))).await?;
    recorder.finish().await?;
    ensure!(Capture::open(&server.url("netns=1"), &[]).await.is_err());
    server.signal(Signal::SIGTERM)?;
    server.wait()?;
    server.wait_for_log("shutting down")?;
    let log = server.log();
    let lines: Vec<Value> = log
        .lines()
        .map(|line| serde_json::from_str(line).with_context(|| line.to_owned()))
        .collect::<anyhow::Result<_>>()?;
    for line in &lines {
        for member in ["timestamp", "level", "target", "message"] {
            ensure!(line[member].is_string(), "{member}: {line}");
        }
    }
    let find = |message| {
        let found = lines.iter().find(|line| line["message"] == message);
        found.with_context(|| format!("{message}: {log}"))
    };
    ensure!(find("listening")?["version"].is_string());
    assert_eq!(find("started")?["netns"], here.inode()?);
    let ended = find("ended")?;
    assert_eq!((&ended["code"], &ended["span"]["id"]), (&json!(1000), &json!(1)));
    let refused = find("refused")?;
    assert_eq!(
        (&refused["status"], &refused["span"]["id"]),
        (&json!(404), &json!(2))
    );
    Ok(())
}
