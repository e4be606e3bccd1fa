//! What somebody learns of others who may capture some targets only.

use std::process::Command;

use anyhow::ensure;
use packetflix_tests::{
    engine::FakeEngine,
    folder::Folder,
    hoard::Hoard,
    process::{Sleeper, WORDS, speak_in, starttime_of},
    server::program,
};
use serde_json::json;

use crate::{ADMIN, Guarded, PART, container, named};

#[tokio::test]
async fn what_is_not_theirs_is_not_there() -> anyhow::Result<()> {
    let folder = Folder::new()?;
    let (web, db) = (Sleeper::unshared()?, Sleeper::unshared()?);
    let engine = FakeEngine::start(
        &folder.file("engine"),
        &[("web", web.pid()), ("db", db.pid())],
        &[],
    )?;
    let server = Guarded::start("web", &[engine.socket()])?;
    let (netns, pid, starttime) = (db.netns()?, db.pid(), db.starttime()?);
    let whole = |netns: u64, pid: u32, starttime: u64| {
        container(&json!({ "netns": netns, "pid": pid, "starttime": starttime }))
    };
    // Each with how it is named in the sentence. The numbers are those of the other's namespace and process, and of none.
    let asked = [
        (format!("netns={netns}"), format!("network namespace {netns}")),
        (
            "netns=4000000001".to_owned(),
            "network namespace 4000000001".to_owned(),
        ),
        (whole(netns, pid, starttime), format!("network namespace {netns}")),
        (
            whole(netns, pid, starttime + 1),
            format!("network namespace {netns}"),
        ),
        (
            whole(netns + 1, pid, starttime),
            format!("network namespace {}", netns + 1),
        ),
        (whole(0, pid, starttime), format!("process {pid}")),
        (whole(0, pid, starttime + 1), format!("process {pid}")),
        (whole(0, 4_000_001, starttime), "process 4000001".to_owned()),
        (named("db"), "target db".to_owned()),
        (named("nobody"), "target nobody".to_owned()),
        (
            container(&json!({ "name": "db", "netns": netns, "pid": pid, "starttime": starttime })),
            "target db".to_owned(),
        ),
    ];
    for (query, words) in asked {
        let (status, sentence) = server.status(PART, &query).await?;
        assert_eq!(
            (status, sentence),
            (404, format!("there is no {words} that part may capture")),
            "{query}"
        );
    }
    // Their own is found by its name, whatever else is said of it: a process that is there and not theirs is as one that is
    // not there. The sentence of an administrator has all that is known.
    for (netns, pid, starttime) in [
        (web.netns()?, web.pid(), web.starttime()? + 1),
        (netns, pid, starttime),
        (netns, pid, starttime + 1),
    ] {
        let described =
            container(&json!({ "name": "web", "netns": netns, "pid": pid, "starttime": starttime }));
        let mut part = server.record(PART, &described).await?;
        speak_in(web.pid())?;
        part.read_until(|recording| recording.has(WORDS)).await?;
        part.finish().await?;
    }
    let (status, sentence) = server.status(ADMIN, &whole(netns, pid, starttime + 1)).await?;
    ensure!(
        status == 409 && sentence.contains(&starttime.to_string()),
        "{status} {sentence}"
    );

    let details = server.details(PART)?;
    let text = details.to_string();
    ensure!(
        details["engines"] == json!([]) && !text.contains("engine\"") && !text.contains("\"db\""),
        "{details}"
    );
    ensure!(server.details(ADMIN)?.to_string().contains("\"engine\""));
    for (token, wanted) in [(PART, 403), (ADMIN, 200)] {
        let (head, _) = server
            .server
            .ask(&format!("GET /metrics HTTP/1.1\r\nAuthorization: Bearer {token}"))?;
        assert_eq!(head.status()?, wanted);
    }
    Ok(())
}

/// Whoever searches for a namespace where a user has more mounts than are looked at does not learn whether it is there.
#[tokio::test]
async fn what_is_not_theirs_is_not_there_where_not_everything_is_looked_at() -> anyhow::Result<()> {
    let _hoard = Hoard::of_user(&["mounts", "18000"])?;
    let db = Sleeper::unshared()?;
    let server = Guarded::start("web", &[])?;
    for netns in [db.netns()?, 4_026_000_001] {
        let (status, sentence) = server.status(PART, &format!("netns={netns}")).await?;
        assert_eq!(
            (status, sentence),
            (
                404,
                format!("there is no network namespace {netns} that part may capture")
            )
        );
    }
    ensure!(server.status(ADMIN, "netns=4026000001").await?.0 == 504);
    Ok(())
}

/// Whoever asks for processes by their numbers and start times does not learn which there are, whether the service may look at
/// them or not.
#[tokio::test]
async fn processes_that_may_not_be_looked_at_are_not_there() -> anyhow::Result<()> {
    let db = Sleeper::unshared()?;
    let mut all = Command::new(program("packetflix")?);
    // Then our own processes may not be looked at either, since they have more rights.
    let mut less = Command::new("setpriv");
    less.arg("--bounding-set=-sys_ptrace").arg(program("packetflix")?);
    for (command, wanted) in [(&mut all, 404), (&mut less, 503)] {
        let server = Guarded::start_by(command, "web", &[])?;
        for pid in [1, db.pid()] {
            let starttime = starttime_of(pid)?;
            let mut told = Vec::new();
            for starttime in [starttime, starttime + 1] {
                let process = container(&json!({ "pid": pid, "starttime": starttime }));
                told.push(server.status(PART, &process).await?);
            }
            assert_eq!(told[0], told[1], "{pid}");
            assert_eq!(told[0].0, wanted, "{told:?}");
        }
    }
    Ok(())
}
