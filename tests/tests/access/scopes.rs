//! Tokens and their scopes.

use std::{
    collections::BTreeSet,
    net::IpAddr,
    os::unix::{
        fs::{MetadataExt as _, PermissionsExt as _},
        net::UnixListener,
    },
    process::Command,
    time::Duration,
};

use anyhow::{Context as _, ensure};
use packetflix_tests::{
    client::{Capture, Recorder, Refused},
    engine::FakeEngine,
    folder::Folder,
    namespace::Namespace,
    process::Sleeper,
    server::{Server, percent_encoded, program, wait_until},
};
use serde_json::{Value, json};

use crate::{bearer, curl, sentence, server_with};

const ALICE: &str = "alice-0123456789abcdef";
const LOOKER: &str = "looker-0123456789abcdef";
const BLIND: &str = "blind-0123456789abcdef";
const PART: &str = "part-0123456789abcdef";

/// The status with which a capture is refused, and why; or 101.
async fn capture(server: &Server, query: &str, token: &str) -> anyhow::Result<(u16, String)> {
    let headers = [("authorization", &bearer(token)[..])];
    match Capture::open(&server.url(query), &headers).await {
        Ok(mut capture) => {
            capture.close().await?;
            Ok((101, String::new()))
        }
        Err(error) => {
            let refused: Refused = error.downcast()?;
            Ok((refused.status, sentence(&refused.body)?))
        }
    }
}

fn get(server: &Server, path: &str, token: Option<&str>) -> anyhow::Result<(u16, String)> {
    let url = format!("http://127.0.0.1:{}{path}", server.port());
    match token {
        None => curl(&[&url]),
        Some(token) => curl(&["--oauth2-bearer", token, &url]),
    }
}

fn names(list: &str, member: &str) -> anyhow::Result<BTreeSet<String>> {
    let list: Value = serde_json::from_str(list)?;
    let targets = list[member].as_array().context("no list")?;
    let name = |target: &Value| Some(target["name"].as_str()?.to_owned());
    targets
        .iter()
        .map(|target| name(target).context("no name"))
        .collect()
}

#[tokio::test]
async fn each_token_may_do_what_its_scopes_say() -> anyhow::Result<()> {
    let (web, db) = (
        Sleeper::unshared_as("web", &[])?,
        Sleeper::unshared_as("db", &[])?,
    );
    let (web_name, db_name) = (format!("web({})", web.pid()), format!("db({})", db.pid()));
    let folder = Folder::new()?;
    let text = format!(
        "# who may do what\nalice {ALICE}\nlooker {LOOKER} discover\nblind {BLIND} capture\n\
         part {PART} discover capture:web(*)\n"
    );
    let tokens = folder.put_secret("tokens", &text)?;
    let account = folder.file("account");
    let audit = format!("--audit-log={}", account.display());
    let server = server_with(&tokens, &["--log-requests", "--log-headers", &audit])?;

    for token in [None, Some("unknown-0123456789abcdef"), Some("x")] {
        for path in [
            "/targets",
            "/mobyshark",
            "/filter?expr=tcp",
            "/openapi.json",
            "/capture",
            "/nothing",
        ] {
            let (status, body) = get(&server, path, token)?;
            ensure!(
                status == 401 && sentence(&body)?.contains("token"),
                "{path}: {status} {body}"
            );
        }
        // Everyone may know who we are.
        ensure!(get(&server, "/version", token)?.0 == 200);
    }
    let (head, _) = server.ask("GET /targets HTTP/1.1")?;
    assert_eq!(head.values("www-authenticate"), ["Bearer"]);
    assert_eq!(capture(&server, "netns=1", "x").await?.0, 401);

    for (token, targets, filter) in [
        (ALICE, 200, 200),
        (LOOKER, 200, 200),
        (BLIND, 403, 200),
        (PART, 200, 200),
    ] {
        assert_eq!(get(&server, "/targets", Some(token))?.0, targets, "{token}");
        assert_eq!(get(&server, "/mobyshark", Some(token))?.0, targets, "{token}");
        assert_eq!(
            get(&server, "/filter?expr=tcp", Some(token))?.0,
            filter,
            "{token}"
        );
    }
    let both = BTreeSet::from([web_name.clone(), db_name.clone()]);
    for token in [ALICE, LOOKER] {
        ensure!(names(&get(&server, "/targets", Some(token))?.1, "targets")?.is_superset(&both));
    }
    // Who may capture some may know of these.
    let own = BTreeSet::from([web_name.clone()]);
    let (_, list) = get(&server, "/targets", Some(PART))?;
    assert_eq!(names(&list, "targets")?, own);
    ensure!(list.contains("\"engines\":[]"), "{list}");
    assert_eq!(
        names(&get(&server, "/mobyshark", Some(PART))?.1, "containers")?,
        own
    );

    let (web_netns, db_netns) = (
        format!("netns={}", web.netns()?),
        format!("netns={}", db.netns()?),
    );
    let container = |value: &Value| format!("container={}", percent_encoded(&value.to_string()));
    let identity = |sleeper: &Sleeper, name: &str| -> anyhow::Result<String> {
        let mut identity = sleeper.identity()?;
        identity["name"] = json!(name);
        Ok(container(&identity))
    };
    for (token, query, status) in [
        (ALICE, &db_netns, 101),
        (BLIND, &db_netns, 101),
        (LOOKER, &web_netns, 403),
        (PART, &web_netns, 101),
        (PART, &identity(&web, &web_name)?, 101),
        (PART, &container(&json!({ "name": web_name })), 101),
        (PART, &db_netns, 404),
        (PART, &identity(&db, &db_name)?, 404),
        (PART, &container(&json!({ "name": db_name })), 404),
        // Somebody else's process is as one that has ended: the name decides, if it is one of theirs,
        (PART, &identity(&db, &web_name)?, 101),
        (PART, &identity(&db, "web(1)")?, 404),
        (PART, &container(&db.identity()?), 404),
        // and it learns nothing of other names.
        (PART, &container(&json!({ "name": "nobody" })), 404),
        (PART, &container(&json!({ "name": "web(0)" })), 404),
        (
            PART,
            &format!("netns={}", std::fs::metadata("/proc/self/ns/net")?.ino()),
            404,
        ),
    ] {
        let (found, sentence) = capture(&server, query, token).await?;
        ensure!(found == status, "{token} {query}: {found} {sentence}");
        ensure!(
            ![403, 404].contains(&found) || sentence.contains(token.split('-').next().context("no name")?),
            "{sentence}"
        );
    }
    ensure!(!server.log().contains("0123456789abcdef"), "a token is logged");

    // and what is captured is theirs.
    let account = std::fs::read_to_string(&account)?;
    let lines: Vec<Value> = account
        .lines()
        .map(serde_json::from_str)
        .collect::<Result<_, _>>()?;
    let of_db = lines.iter().find(|line| {
        line["message"] == "capture started" && line["client"] == "part" && line["asked_pid"] == db.pid()
    });
    let of_db = of_db.context(account)?;
    assert_eq!(
        (&of_db["netns"], &of_db["name"]),
        (&json!(web.netns()?), &json!(web_name))
    );
    Ok(())
}

#[tokio::test]
async fn refusals_list_nothing_for_those_who_may_not_discover() -> anyhow::Result<()> {
    let folder = Folder::new()?;
    let text = format!("alice {ALICE}\nblind {BLIND} capture\n");
    let tokens = folder.put_secret("tokens", &text)?;
    // Two engines, each of which has one of the name, and one that is none.
    let sleepers = [Sleeper::unshared()?, Sleeper::unshared()?];
    let start = |number: usize| {
        let containers = [("twin", sleepers[number].pid())];
        FakeEngine::start(&folder.file(&format!("engine{number}")), &containers, &[])
    };
    let engines = [start(0)?, start(1)?];
    let broken = folder.file("broken");
    let _listener = UnixListener::bind(&broken)?;
    let sockets = engines.iter().map(FakeEngine::socket).chain([&*broken]);
    let flags: Vec<String> = sockets
        .map(|socket| format!("--engine-socket={}", socket.display()))
        .collect();
    let flags: Vec<&str> = flags.iter().map(String::as_str).collect();
    let server = server_with(&tokens, &flags)?;

    let pid = format!("pid {}", sleepers[0].pid());
    let ask = async |name: &str, token: &str| {
        let query = format!(
            "container={}",
            percent_encoded(&json!({ "name": name }).to_string())
        );
        capture(&server, &query, token).await
    };
    let (status, words) = ask("twim", ALICE).await?;
    let is_told = ["others are known", "twin", "broken"].map(|word| words.contains(word));
    assert_eq!((status, is_told), (404, [true; 3]), "{words}");
    assert_eq!(
        ask("twim", BLIND).await?,
        (
            404,
            "there is no target twim; which there are is told to those who may discover targets; not everything \
             could be looked at"
                .to_owned()
        )
    );
    let (status, words) = ask("twin", ALICE).await?;
    ensure!(status == 409 && words.contains(&pid), "{status} {words}");
    assert_eq!(
        ask("twin", BLIND).await?,
        (
            409,
            "twin may mean several targets: which is meant, a netns or pid tells; they are listed for those who may \
             discover targets"
                .to_owned()
        )
    );
    Ok(())
}

#[tokio::test]
async fn names_are_not_found_out_by_their_parts() -> anyhow::Result<()> {
    let folder = Folder::new()?;
    let tokens = folder.put_secret("tokens", &format!("alice {ALICE}\nblind {BLIND} capture\n"))?;
    let server = server_with(&tokens, &[])?;
    let sleeper = Sleeper::unshared_as("pf-scope-part", &["setpriv"])?;
    let ask = async |name: &str, token: &str| {
        let container = percent_encoded(&json!({ "name": name }).to_string());
        capture(&server, &format!("container={container}"), token).await
    };
    assert_eq!(ask("pf-scope-p", ALICE).await?.0, 101);
    let (status, words) = ask("pf-scope-p", BLIND).await?;
    ensure!(
        status == 404 && words.starts_with("there is no target pf-scope-p; "),
        "{status} {words}"
    );
    let whole = format!("pf-scope-part({})", sleeper.pid());
    assert_eq!(ask(&whole, BLIND).await?.0, 101);
    Ok(())
}

#[tokio::test]
async fn streams_name_only_what_may_be_known() -> anyhow::Result<()> {
    let (here, there) = Namespace::pair()?;
    let here_path = here.path().display().to_string();
    let folder = Folder::new()?;
    let text = format!("alice {ALICE}\nblind {BLIND} capture\npart {PART} discover capture:{here_path}\n");
    let server = server_with(&folder.put_secret("tokens", &text)?, &[])?;
    let (own, other): (IpAddr, IpAddr) = ("10.9.1.1".parse()?, "10.9.1.2".parse()?);
    for (token, sees_other) in [(ALICE, true), (BLIND, false), (PART, false)] {
        let headers = [("authorization", &bearer(token)[..])];
        let url = server.url(&format!("netns={}", here.inode()?));
        let mut recorder = Recorder::of(Capture::open(&url, &headers).await?).await?;
        recorder
            .read_until(|recording| recording.names.iter().any(|name| name.address == own))
            .await?;
        // All names that are known come together.
        let recording = recorder.finish().await?;
        let names = recording.names.iter().any(|name| name.address == other);
        assert_eq!(names, sees_other, "{token}");
    }
    drop(there);
    Ok(())
}

#[test]
fn token_files_that_others_may_read_are_refused() -> anyhow::Result<()> {
    let folder = Folder::new()?;
    let path = folder.put_secret("tokens", &format!("alice {ALICE}\n"))?;
    let set_mode = |mode| std::fs::set_permissions(&path, std::fs::Permissions::from_mode(mode));
    set_mode(0o640)?;
    let start = || -> anyhow::Result<String> {
        let output = Command::new(program("packetflix")?)
            .args(["--port", "0", "--token-file"])
            .arg(&path)
            .output()?;
        ensure!(output.status.code() == Some(1));
        Ok(String::from_utf8(output.stderr)?)
    };
    let log = start()?;
    ensure!(
        log.contains("may be read or altered by others (mode 0640)"),
        "{log}"
    );
    std::fs::write(&path, format!("alice {ALICE}\nbob short\n"))?;
    set_mode(0o600)?;
    let log = start()?;
    ensure!(
        log.contains("line 2 of the token file cannot be used: the token has fewer"),
        "{log}"
    );

    // A running server keeps what it has.
    folder.put_secret("tokens", &format!("alice {ALICE}\n"))?;
    let server = server_with(&path, &[])?;
    std::fs::write(&path, "bob bob-0123456789abcdef\n")?;
    set_mode(0o644)?;
    server.wait_for_log("the token file stays as it was")?;
    ensure!(get(&server, "/targets", Some(ALICE))?.0 == 200);
    set_mode(0o600)?;
    wait_until(Duration::from_secs(5), || {
        Ok(get(&server, "/targets", Some(ALICE))?.0 == 401)
    })?;
    ensure!(get(&server, "/targets", Some("bob-0123456789abcdef"))?.0 == 200);
    Ok(())
}

#[tokio::test]
async fn tokens_stand_in_the_query_where_that_is_allowed() -> anyhow::Result<()> {
    let namespace = Namespace::new()?;
    let folder = Folder::new()?;
    let tokens = folder.put_secret("tokens", &format!("alice {ALICE}\n"))?;
    let query = format!("netns={}&token={ALICE}", namespace.inode()?);
    for (flags, status) in [(&[][..], 401), (&["--allow-query-token"], 101)] {
        let flags = [flags, &["--debug", "--log-requests", "--log-headers"]].concat();
        let server = server_with(&tokens, &flags)?;
        let found = match Capture::open(&server.url(&query), &[]).await {
            Ok(_) => 101,
            Err(error) => error.downcast::<Refused>()?.status,
        };
        assert_eq!(found, status);
        // Pages can set headers for whatever is no WebSocket.
        assert_eq!(get(&server, &format!("/targets?token={ALICE}"), None)?.0, 401);
        ensure!(
            !server.log().contains(ALICE),
            "a token is logged:\n{}",
            server.log()
        );
    }
    Ok(())
}

#[tokio::test]
async fn what_is_proxied_needs_the_right_and_gets_no_token() -> anyhow::Result<()> {
    use packetflix_tests::upstream::{Upstream, answer};
    let upstream = Upstream::start(|_, stream| answer(&stream, "200 OK", "", "{}"))?;
    let folder = Folder::new()?;
    let text = format!("alice {ALICE}\nblind {BLIND} capture\npart {PART} discover capture:web\n");
    let port = upstream.port().to_string();
    let server = server_with(
        &folder.put_secret("tokens", &text)?,
        &["--proxy-discovery", "--gw-port", &port, "--allow-query-token"],
    )?;
    for (token, status) in [
        (None, 401),
        (Some(ALICE), 200),
        (Some(BLIND), 403),
        (Some(PART), 403),
    ] {
        for path in ["/", "/mobyshark", "/discover/x?a=1&token=abc", "/healthz/x"] {
            assert_eq!(get(&server, path, token)?.0, status, "{path}");
        }
    }
    let heads = upstream.heads();
    assert_eq!(heads.len(), 4);
    ensure!(
        heads.iter().any(|head| head.line == "GET /x?a=1 HTTP/1.1"),
        "{heads:?}"
    );
    ensure!(!format!("{heads:?}").contains("authorization"), "{heads:?}");
    Ok(())
}
