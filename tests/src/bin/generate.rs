//! Sends packets as planned: `generate PLAN`, a `generator::Plan` in JSON. Prints what it has sent.

use anyhow::Context as _;
use packetflix_tests::generator::generate;

fn main() -> anyhow::Result<()> {
    let plan = std::env::args().nth(1).context("usage: generate PLAN")?;
    let sent = generate(&serde_json::from_str(&plan)?)?;
    println!("{}", serde_json::to_string(&sent)?);
    Ok(())
}
