//! What somebody learns of others who may capture some targets only.

use anyhow::ensure;
use packetflix_tests::{engine::FakeEngine, folder::Folder, process::Sleeper};
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
            container(&json!({ "name": "web", "netns": netns, "pid": pid, "starttime": starttime })),
            "target web".to_owned(),
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
    // Their own is found again when it is stale, and the sentence of an administrator has all that is known.
    let stale =
        json!({ "name": "web", "netns": web.netns()?, "pid": web.pid(), "starttime": web.starttime()? + 1 });
    ensure!(server.status(PART, &container(&stale)).await?.0 == 101);
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
