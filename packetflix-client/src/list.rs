//! `packetflix list`: what there is to capture.

use std::{
    io::{self, Write as _},
    time::Duration,
};

use serde::Deserialize;
use tokio::time::sleep;

use crate::{
    error::{Failure, Status},
    http::{RequestError, get, get_json},
    interrupts::Interrupts,
    local::StartLocal,
    output::standard_output,
    pods::PodArgs,
    server::{Address, Server, ServerArgs},
    table::table,
    terminal::{answered, say, shown, shown_json},
    watch::reader_gone,
};

/// How often a list that is watched is asked for: the server looks at most once a second.
const INTERVAL: Duration = Duration::from_secs(1);

const PATH: &str = "/targets";

/// The column of the nodes, where a gateway has several.
const NODE: usize = 2;

/// What there is to capture.
#[derive(Clone, Debug, clap::Args)]
pub struct ListArgs {
    /// Those only that one of these words means: a name, a pattern such as `shop-*`, label:KEY=VALUE, compose:PROJECT,
    /// image:PATTERN, type:TYPE, pod:PATTERN, pid:NUMBER, netns:NUMBER or host; `!` before a word leaves out what it means
    #[arg(value_name = "WORD")]
    words: Vec<String>,
    #[command(flatten)]
    pods: PodArgs,
    /// Print the server's answer, which is JSON
    #[arg(long)]
    json: bool,
    /// Print the list again whenever it has changed, until Ctrl-C
    #[arg(long)]
    watch: bool,
    /// Which server.
    #[command(flatten)]
    server: ServerArgs,
}

/// The answer of `/targets`, as far as it is shown.
#[derive(Deserialize)]
pub(crate) struct Targets {
    pub(crate) targets: Vec<Target>,
    #[serde(default)]
    gaps: Vec<String>,
}

#[derive(Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) struct Target {
    name: String,
    pub(crate) r#type: String,
    #[serde(default)]
    prefix: String,
    /// On which node of a gateway it is.
    #[serde(default)]
    pub(crate) node_name: String,
    pub(crate) netns: u64,
    #[serde(default)]
    pid: Option<u32>,
    network_interfaces: Vec<Interface>,
}

#[derive(Deserialize)]
pub(crate) struct Interface {
    name: String,
    #[serde(default)]
    addresses: Vec<String>,
}

/// Prints the targets, once or for as long as is wanted.
///
/// # Errors
/// When the server refuses.
pub(crate) async fn list(args: &ListArgs, local: Option<StartLocal>) -> Result<Status, Failure> {
    args.pods.check(&args.server)?;
    let server = args.server.reach(local, args.pods.meant(&args.words)).await?;
    let path = path(&args.pods.words(&args.words, &server)).map_err(Failure::usage)?;
    if matches!(server.address, Address::Local(_)) && !args.server.local {
        say("no server answers on this host: this process looks itself");
    }
    if !args.watch {
        print(&read(&server, &path, args.json).await?)?;
        return Ok(Status::Done);
    }
    let mut interrupts = Interrupts::listen().map_err(Failure::refused)?;
    let output = standard_output().map_err(Failure::broken)?;
    tokio::select! {
        failed = watch(&server, &path, args.json) => failed,
        () = reader_gone(&output) => Ok(Status::Done),
        _ = interrupts.first() => Ok(Status::Done),
    }
}

/// Where the targets are that these words select.
fn path(words: &[String]) -> Result<String, serde_urlencoded::ser::Error> {
    let pairs: Vec<(&str, &String)> = words.iter().map(|word| ("target", word)).collect();
    Ok(match words {
        [] => PATH.to_owned(),
        _ => format!("{PATH}?{}", serde_urlencoded::to_string(pairs)?),
    })
}

async fn watch(server: &Server, path: &str, json: bool) -> Result<Status, Failure> {
    let mut printed = String::new();
    loop {
        let text = read(server, path, json).await?;
        if text != printed {
            let gap = if printed.is_empty() || json { "" } else { "\n" };
            print(&format!("{gap}{text}"))?;
            printed = text;
        }
        sleep(INTERVAL).await;
    }
}

async fn read(server: &Server, path: &str, json: bool) -> Result<String, Failure> {
    if json {
        let body = answered(server, get(server, path)).await?;
        return Ok(shown_json(&String::from_utf8_lossy(&body)).into_owned() + "\n");
    }
    let targets = answered(server, Targets::read_at(server, path)).await?;
    Ok(targets.shown())
}

/// Whoever reads may have had enough.
pub(crate) fn print(text: &str) -> Result<(), Failure> {
    match io::stdout().write_all(text.as_bytes()) {
        Err(error) if error.kind() != io::ErrorKind::BrokenPipe => Err(Failure::broken(error)),
        _ => Ok(()),
    }
}

impl Targets {
    /// Asks a server.
    ///
    /// # Errors
    /// When it refuses.
    pub(crate) async fn read(server: &Server) -> Result<Self, RequestError> {
        Self::read_at(server, PATH).await
    }

    async fn read_at(server: &Server, path: &str) -> Result<Self, RequestError> {
        get_json(server, path).await
    }

    fn shown(&self) -> String {
        let mut head = vec!["TARGET", "TYPE", "NETNS", "PID", "INTERFACES"];
        let mut rows: Vec<Vec<String>> = self.targets.iter().map(Target::row).collect();
        if self.targets.iter().any(|target| !target.node_name.is_empty()) {
            head.insert(NODE, "NODE");
            for (row, target) in rows.iter_mut().zip(&self.targets) {
                row.insert(NODE, target.node_name.clone());
            }
        }
        let mut text = table(&head, &rows);
        if self.targets.is_empty() {
            text += "there is none\n";
        }
        for gap in &self.gaps {
            text += &format!("not looked at: {}\n", shown(gap));
        }
        text
    }
}

impl Target {
    /// Its name, with its prefix if it has one.
    pub(crate) fn full_name(&self) -> String {
        match &self.prefix[..] {
            "" => self.name.clone(),
            prefix => format!("{prefix}:{}", self.name),
        }
    }

    fn row(&self) -> Vec<String> {
        let interfaces: Vec<String> = self.network_interfaces.iter().map(Interface::shown).collect();
        vec![
            self.full_name(),
            self.r#type.clone(),
            self.netns.to_string(),
            self.pid.map(|pid| pid.to_string()).unwrap_or_default(),
            interfaces.join(", "),
        ]
    }
}

impl Interface {
    /// Its name, and its first address.
    fn shown(&self) -> String {
        match self.addresses.first() {
            Some(address) => format!("{} {address}", self.name),
            None => self.name.clone(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn targets_of_a_gateway_have_their_nodes() {
        let targets: Targets = serde_json::from_str(
            r#"{"version": 1, "targets": [
                {"name": "web", "type": "docker", "node-name": "rack-7", "netns": 5, "pid": 7, "network-interfaces": []},
                {"name": "db", "type": "docker", "node-name": "n2", "netns": 6, "pid": 8, "network-interfaces": []}]}"#,
        )
        .unwrap();
        assert_eq!(
            targets.shown(),
            "TARGET  TYPE    NODE    NETNS  PID  INTERFACES\n\
             web     docker  rack-7  5      7\n\
             db      docker  n2      6      8\n"
        );
    }

    #[test]
    fn targets_are_rows() {
        let targets: Targets = serde_json::from_str(
            r#"{"version": 1, "gaps": ["one engine"], "targets": [
                {"name": "web", "type": "docker", "prefix": "", "netns": 5, "pid": 7, "host": false,
                 "network-interfaces": [{"name": "lo", "index": 1, "state": "up", "addresses": ["127.0.0.1/8", "::1/128"]}]},
                {"name": "s1", "type": "bindmount", "prefix": "a", "netns": 6, "host": false, "network-interfaces": []}]}"#,
        )
        .unwrap();
        assert_eq!(
            targets.shown(),
            "TARGET  TYPE       NETNS  PID  INTERFACES\n\
             web     docker     5      7    lo 127.0.0.1/8\n\
             a:s1    bindmount  6\n\
             not looked at: one engine\n"
        );
    }
}
