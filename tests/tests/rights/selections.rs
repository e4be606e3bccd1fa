//! Streams of several targets, for who may capture some targets only.

use std::time::Duration;

use anyhow::ensure;
use packetflix_tests::{namespace::Namespace, server::percent_encoded};
use tokio::time::timeout;

use crate::{ADMIN, Guarded, PART};

#[tokio::test]
async fn patterns_mean_what_may_be_captured_and_names_of_others_are_refused() -> anyhow::Result<()> {
    let (theirs, others) = (Namespace::new()?, Namespace::new()?);
    let (theirs_at, others_at) = (
        theirs.path().display().to_string(),
        others.path().display().to_string(),
    );
    let server = Guarded::start(&theirs_at, &[])?;
    let query = |words: &[&str]| {
        let words: Vec<String> = words
            .iter()
            .map(|word| format!("target={}", percent_encoded(word)))
            .collect();
        format!("{}&names=0", words.join("&"))
    };
    let all = format!("/run/netns/pf-test-{}-*", std::process::id());
    let lo = |path: &str| format!("{path}/lo");
    let mut part = server.record(PART, &query(&[&all])).await?;
    part.read_until(|recording| recording.interfaces.iter().any(|one| one.name == lo(&theirs_at)))
        .await?;
    // One that comes while it is followed is none of theirs either.
    let later = Namespace::new()?;
    let mut admin = server.record(ADMIN, &query(&[&all])).await?;
    let known = [
        lo(&theirs_at),
        lo(&others_at),
        lo(&later.path().display().to_string()),
    ];
    admin
        .read_until(|recording| {
            let has = |name: &String| recording.interfaces.iter().any(|one| one.name == *name);
            known.iter().all(has)
        })
        .await?;
    let looks = part.read_until(|recording| recording.interfaces.len() > 1);
    ensure!(
        timeout(Duration::from_secs(4), looks).await.is_err(),
        "it is told of others"
    );
    let recording = part.finish().await?;
    ensure!(recording.interfaces.len() == 1, "{:?}", recording.interfaces);
    admin.finish().await?;

    for words in [&[&theirs_at[..], &others_at][..], &[&others_at, "host"]] {
        let (status, sentence) = server.status(PART, &query(words)).await?;
        ensure!(
            status == 404 && !sentence.contains("pid"),
            "{words:?}: {status} {sentence}"
        );
    }
    // What is not theirs is as if it were not there.
    let nothing = server.status(PART, &query(&["/run/netns/nobody-*"])).await?;
    let hidden = server.status(PART, &query(&[&format!("{others_at}*")])).await?;
    let counted =
        |(status, sentence): (u16, String)| (status, sentence.split("means").nth(1).map(str::to_owned));
    assert_eq!(counted(nothing), counted(hidden));
    Ok(())
}

#[tokio::test]
async fn what_joins_is_judged_by_the_rights_of_then() -> anyhow::Result<()> {
    let theirs = Namespace::new()?;
    let at = theirs.path().display().to_string();
    let server = Guarded::start("**", &[])?;
    let all = format!(
        "target={}&names=0",
        percent_encoded(&format!("/run/netns/pf-test-{}-*", std::process::id()))
    );
    let mut recorder = server.record(PART, &all).await?;
    let lo = format!("{at}/lo");
    recorder
        .read_until(|recording| recording.interfaces.iter().any(|one| one.name == lo))
        .await?;
    let put = |scopes: &str| {
        let lines = format!("admin {ADMIN} admin discover capture\npart {PART} {scopes}\n");
        server.folder.put_secret("tokens", &lines)
    };
    put(&format!("discover capture:{at}"))?;
    // Until the file is read.
    tokio::time::sleep(Duration::from_secs(3)).await;
    let later = Namespace::new()?;
    let others = later.path().display().to_string();
    let joins = recorder.read_until(|recording| {
        recording
            .interfaces
            .iter()
            .any(|one| one.name.starts_with(&others))
    });
    ensure!(
        timeout(Duration::from_secs(5), joins).await.is_err(),
        "it joins by rights that are gone"
    );
    // Who may capture nothing any more has no stream, whatever it waits for.
    put("discover")?;
    let end = async {
        loop {
            if let Some(end) = recorder.read().await? {
                return anyhow::Ok(end);
            }
        }
    };
    let (code, reason) = timeout(Duration::from_secs(15), end).await??;
    ensure!(code == 1008, "{code} {reason}");

    // What a pattern means shows what there is.
    put("capture")?;
    tokio::time::sleep(Duration::from_secs(3)).await;
    let (status, sentence) = server.status(PART, &all).await?;
    ensure!(
        status == 403 && sentence.contains("discover"),
        "{status} {sentence}"
    );
    let (status, sentence) = server
        .status(PART, &format!("target={}", percent_encoded(&at)))
        .await?;
    ensure!(status == 101, "{status} {sentence}");
    Ok(())
}
