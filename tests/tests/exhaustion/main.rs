//! What users and containers have in their hands is looked at by the service: however much it is, and whether it answers or
//! not, that costs neither the service nor others anything to speak of.

mod answers;
mod crowds;
mod filters;
mod hanging;
mod heads;
mod laggards;

use anyhow::bail;
use packetflix_tests::server::Server;
use serde_json::Value;

fn has_not_panicked(server: &Server) -> anyhow::Result<()> {
    match server.log().lines().find(|line| line.contains("panicked")) {
        Some(line) => bail!("{line}"),
        None => Ok(()),
    }
}

/// What a list of targets says of what could not be looked at.
fn gaps(details: &Value) -> Vec<&str> {
    let gaps = details["gaps"].as_array();
    gaps.into_iter().flatten().filter_map(Value::as_str).collect()
}

/// Whether one of them speaks of this.
fn has_gap(details: &Value, words: &str) -> bool {
    gaps(details).iter().any(|gap| gap.contains(words))
}
