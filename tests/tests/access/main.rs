//! Who may use the service: real clients with tokens, certificates, Unix sockets and pages in a browser.

mod bounds;
mod browser;
mod listeners;
mod pages;
mod rotation;
mod scopes;
mod tls;

use std::{path::Path, process::Command};

use anyhow::{Context as _, ensure};
use packetflix_tests::server::Server;
use serde_json::Value;

/// Asks with curl and these arguments, of which one is the URL; gives status and body.
fn curl(arguments: &[&str]) -> anyhow::Result<(u16, String)> {
    let output = Command::new("curl")
        .args(["--silent", "--show-error", "--max-time", "20"])
        .args(["--write-out", "\n%{http_code}"])
        .args(arguments)
        .output()?;
    ensure!(
        output.status.success(),
        "curl: {}",
        String::from_utf8_lossy(&output.stderr)
    );
    let text = String::from_utf8(output.stdout)?;
    let (body, status) = text.rsplit_once('\n').context("no status")?;
    Ok((status.parse()?, body.to_owned()))
}

/// The sentence of a refusal.
fn sentence(body: &str) -> anyhow::Result<String> {
    let body: Value = serde_json::from_str(body).with_context(|| body.to_owned())?;
    Ok(body["error"].as_str().context("no error")?.to_owned())
}

/// What an `Authorization` header says.
fn bearer(token: &str) -> String {
    format!("Bearer {token}")
}

/// Starts a server that follows a token file.
fn server_with(tokens: &Path, flags: &[&str]) -> anyhow::Result<Server> {
    let tokens = tokens.to_str().context("no text")?;
    Server::start(&[&["--token-file", tokens], flags].concat())
}
