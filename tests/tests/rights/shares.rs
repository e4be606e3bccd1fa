//! What each may have of what all share, and what is kept for those who administer the service.

use anyhow::ensure;
use packetflix_tests::namespace::Namespace;

use crate::{ADMIN, Guarded, PART};

#[tokio::test]
async fn memory_of_rings_is_kept_for_who_administers() -> anyhow::Result<()> {
    /// More captures than there is memory for.
    const MOST: usize = 60;

    let namespace = Namespace::new()?;
    let flags = ["--ring-memory=16MiB", "--max-captures-per-client=64"].map(str::to_owned);
    let server = Guarded::start_with("**", &flags)?;
    let netns = format!("netns={}", namespace.inode()?);
    // Each with rings of its own.
    let mut taken = Vec::new();
    let refused = loop {
        ensure!(taken.len() < MOST, "there is room for {MOST}");
        let query = format!("{netns}&snaplen={}", 100 + taken.len());
        match server.open(PART, &query).await {
            Ok(capture) => taken.push(capture),
            Err(_) => break server.status(PART, &query).await?,
        }
    };
    let (status, sentence) = refused;
    ensure!(
        status == 429 && sentence.contains("--ring-memory") && sentence.ends_with("are kept for admin"),
        "{} captures, then {status} {sentence}",
        taken.len()
    );
    ensure!(taken.len() >= 4, "{} captures, then {sentence}", taken.len());
    let (status, sentence) = server.status(ADMIN, &format!("{netns}&snaplen=99")).await?;
    ensure!(status == 101, "{status} {sentence}");
    Ok(())
}

/// Those behind one proxy, or one port-forward, come from one address.
#[tokio::test]
async fn captures_are_counted_by_name_and_not_by_address() -> anyhow::Result<()> {
    let namespace = Namespace::new()?;
    let server = Guarded::start_with("**", &["--max-captures-per-client=1".to_owned()])?;
    let netns = format!("netns={}", namespace.inode()?);
    let _running = server.open(PART, &netns).await?;
    let (status, sentence) = server.status(PART, &netns).await?;
    ensure!(
        status == 429 && sentence.contains("and token part has 1"),
        "{status} {sentence}"
    );
    let (status, sentence) = server.status(ADMIN, &netns).await?;
    ensure!(status == 101, "{status} {sentence}");
    Ok(())
}
