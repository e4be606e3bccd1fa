//! Who gets whose packets: what attackers in containers, local users and holders of scoped tokens may try.

mod asker;
mod engines;
mod hidden;
mod kubernetes;
mod occupants;
mod running;
mod selections;
mod shares;

use std::{path::Path, process::Command};

use anyhow::Context as _;
use packetflix_tests::{
    client::{Capture, Recorder, Refused},
    folder::Folder,
    server::{Server, percent_encoded, program},
};
use serde_json::{Value, json};

/// May do everything.
const ADMIN: &str = "admin-0123456789abcdef";
/// May capture what a pattern says.
const PART: &str = "part-0123456789abcdef";

/// A server with two tokens: that of an administrator, and one that may capture what matches `pattern`.
struct Guarded {
    server: Server,
    folder: Folder,
}

impl Guarded {
    /// Starts it, to ask the engines at these sockets too.
    fn start(pattern: &str, sockets: &[&Path]) -> anyhow::Result<Self> {
        let socket = |socket: &&Path| format!("--engine-socket={}", socket.display());
        let flags: Vec<String> = sockets.iter().map(socket).collect();
        Self::start_with(pattern, &flags)
    }

    /// Starts it with these flags.
    fn start_with(pattern: &str, more: &[String]) -> anyhow::Result<Self> {
        Self::start_by(&mut Command::new(program("packetflix")?), pattern, more)
    }

    /// Starts it by a command that ends with the program's name.
    fn start_by(command: &mut Command, pattern: &str, more: &[String]) -> anyhow::Result<Self> {
        let folder = Folder::new()?;
        let text = format!("admin {ADMIN} admin discover capture\npart {PART} discover capture:{pattern}\n");
        let tokens = folder.put_secret("tokens", &text)?;
        let mut flags = vec![format!("--token-file={}", tokens.display())];
        flags.extend_from_slice(more);
        let flags: Vec<&str> = flags.iter().map(String::as_str).collect();
        let server = Server::start_by(command, &flags)?;
        Ok(Self { server, folder })
    }

    /// The status with which a capture is refused, and why; or 101.
    async fn status(&self, token: &str, query: &str) -> anyhow::Result<(u16, String)> {
        match self.open(token, query).await {
            Ok(mut capture) => {
                capture.close().await?;
                Ok((101, String::new()))
            }
            Err(error) => {
                let refused: Refused = error.downcast()?;
                let body: Value = serde_json::from_str(&refused.body)?;
                let sentence = body["error"].as_str().context("no sentence")?;
                Ok((refused.status, sentence.to_owned()))
            }
        }
    }

    async fn open(&self, token: &str, query: &str) -> anyhow::Result<Capture> {
        let bearer = format!("Bearer {token}");
        Capture::open(&self.server.url(query), &[("authorization", &bearer)]).await
    }

    async fn record(&self, token: &str, query: &str) -> anyhow::Result<Recorder> {
        Recorder::of(self.open(token, query).await?).await
    }

    /// All that is told of the targets.
    fn details(&self, token: &str) -> anyhow::Result<Value> {
        let request = format!("GET /targets HTTP/1.1\r\nAuthorization: Bearer {token}");
        let (_, body) = self.server.ask(&request)?;
        Ok(serde_json::from_slice(&body)?)
    }

    /// Full names and namespaces of all targets that a token is shown.
    fn targets(&self, token: &str) -> anyhow::Result<Vec<(String, u64)>> {
        let details = self.details(token)?;
        let targets = details["targets"].as_array().context("no targets")?;
        let name = |target: &Value| {
            let (name, prefix) = (target["name"].as_str()?, target["prefix"].as_str()?);
            let full = if prefix.is_empty() {
                name.to_owned()
            } else {
                format!("{prefix}:{name}")
            };
            Some((full, target["netns"].as_u64()?))
        };
        targets
            .iter()
            .map(|target| name(target).context("no name"))
            .collect()
    }
}

/// A query for a target that is described so.
fn container(description: &Value) -> String {
    format!("container={}", percent_encoded(&description.to_string()))
}

/// A query for a target of this name.
fn named(name: &str) -> String {
    container(&json!({ "name": name }))
}
