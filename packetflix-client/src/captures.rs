//! `packetflix captures`: who captures what, and the end of a capture.

use std::time::Duration;

use serde::Deserialize;

use crate::{
    cluster::Meant,
    error::{Failure, Status},
    http::{delete, get, get_json},
    list::print,
    local::StartLocal,
    server::{Server, ServerArgs},
    table::table,
    terminal::{answered, shown, shown_json},
    units::{shown_duration, shown_size},
};

const PATH: &str = "/captures";

/// Who captures what.
#[derive(Clone, Debug, clap::Args)]
#[command(args_conflicts_with_subcommands = true)]
pub struct CapturesArgs {
    #[command(subcommand)]
    verb: Option<CapturesVerb>,
    /// Print the server's answer, which is JSON
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    server: ServerArgs,
}

/// What there is to do beside listing them.
#[derive(Clone, Debug, clap::Subcommand)]
enum CapturesVerb {
    /// End captures; their clients get what was captured until now, and the final statistics
    Stop {
        /// Numbers of the captures, as listed; that of a stream ends all that it has
        #[arg(value_name = "[NODE/]ID", required = true, value_parser = parse_id)]
        ids: Vec<String>,
        #[command(flatten)]
        server: ServerArgs,
    },
}

/// The number of a capture, behind the name of its node where it is one of a gateway's nodes.
fn parse_id(text: &str) -> Result<String, String> {
    let (node, number) = text.rsplit_once('/').unwrap_or(("-", text));
    let is_of_name = |c: char| c.is_ascii_alphanumeric() || "-._".contains(c);
    let is_name = !node.is_empty() && !node.starts_with('.') && node.chars().all(is_of_name);
    match (is_name, number.parse::<u64>()) {
        (true, Ok(_)) => Ok(text.to_owned()),
        _ => Err("write the number of a capture as it is listed: 7, or NODE/7".to_owned()),
    }
}

/// The answer of `/captures`, as far as it is shown.
#[derive(Deserialize)]
struct Captures {
    captures: Vec<Capture>,
    /// Those of a gateway.
    #[serde(default)]
    nodes: Vec<Node>,
}

#[derive(Deserialize)]
struct Node {
    name: String,
    #[serde(default)]
    problem: Option<String>,
}

#[derive(Deserialize)]
#[serde(rename_all = "kebab-case")]
struct Capture {
    id: u64,
    /// On which node of a gateway it is; it is one of the gateway's own without.
    #[serde(default)]
    node_name: String,
    /// That of the stream it is in, with other targets.
    #[serde(default)]
    stream: Option<u64>,
    client: Client,
    target: Target,
    #[serde(default)]
    filter: String,
    duration: f64,
    packets: u64,
    bytes: u64,
    dropped: Dropped,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct Client {
    name: String,
    address: String,
}

#[derive(Deserialize)]
struct Target {
    #[serde(default)]
    name: String,
    netns: u64,
}

#[derive(Deserialize)]
#[serde(rename_all = "kebab-case")]
struct Dropped {
    kernel: u64,
    slow_client: u64,
}

/// Lists captures, or ends some.
///
/// # Errors
/// When the server refuses.
pub(crate) async fn captures(args: &CapturesArgs, local: Option<StartLocal>) -> Result<Status, Failure> {
    if let Some(CapturesVerb::Stop { ids, server }) = &args.verb {
        let server = reach(server, local).await?;
        for id in ids {
            delete(&server, &format!("{PATH}/{id}"))
                .await
                .map_err(Failure::refused)?;
        }
        return Ok(Status::Done);
    }
    let server = reach(&args.server, local).await?;
    let text = if args.json {
        let body = answered(&server, get(&server, PATH)).await;
        let body = body.map_err(Failure::refused)?;
        shown_json(&String::from_utf8_lossy(&body)).into_owned() + "\n"
    } else {
        let captures = answered(&server, get_json(&server, PATH)).await;
        let captures: Captures = captures.map_err(Failure::refused)?;
        captures.shown()
    };
    print(&text)?;
    Ok(Status::Done)
}

/// One in this process has captures of nobody else, and is an answer only to those who ask for it.
async fn reach(server: &ServerArgs, local: Option<StartLocal>) -> Result<Server, Failure> {
    server
        .reach(local.filter(|_| server.local), Meant::default())
        .await
}

impl Captures {
    fn shown(&self) -> String {
        let head = [
            "ID", "STREAM", "CLIENT", "TARGET", "FOR", "PACKETS", "BYTES", "DROPPED", "FILTER",
        ];
        let rows: Vec<Vec<String>> = self.captures.iter().map(Capture::row).collect();
        let mut text = table(&head, &rows);
        for Node { name, problem } in &self.nodes {
            if let Some(problem) = problem {
                text += &format!("not looked at: node {}: {}\n", shown(name), shown(problem));
            }
        }
        text
    }
}

impl Capture {
    fn row(&self) -> Vec<String> {
        let client = [&self.client.name[..], &self.client.address[..]];
        let mut client: Vec<&str> = client.into_iter().filter(|word| !word.is_empty()).collect();
        // At a Unix socket, who asks has the name of where they are.
        client.dedup();
        let target = match &self.target.name[..] {
            "" => format!("netns:{}", self.target.netns),
            name => name.to_owned(),
        };
        let duration = Duration::try_from_secs_f64(self.duration).unwrap_or_default();
        let of_node = match &self.node_name[..] {
            "" => String::new(),
            node => format!("{node}/"),
        };
        vec![
            format!("{of_node}{}", self.id),
            self.stream.map(|stream| stream.to_string()).unwrap_or_default(),
            client.join(" "),
            target,
            shown_duration(duration),
            self.packets.to_string(),
            shown_size(self.bytes),
            (self.dropped.kernel + self.dropped.slow_client).to_string(),
            self.filter.clone(),
        ]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn captures_of_nodes_are_named_with_these() {
        let captures: Captures = serde_json::from_str(
            r#"{"version": 1, "nodes": [{"name": "n1"}, {"name": "n2", "problem": "it is gone"}], "captures": [
                {"id": 3, "client": {"name": "ann"}, "target": {"name": "web", "netns": 5}, "duration": 1.0, "packets": 0,
                "bytes": 0, "dropped": {"kernel": 0, "slow-client": 0}},
                {"id": 3, "node-name": "n1", "client": {"name": "gateway"}, "target": {"name": "web", "netns": 5},
                "duration": 1.0, "packets": 0, "bytes": 0, "dropped": {"kernel": 0, "slow-client": 0}}]}"#,
        )
        .unwrap();
        assert_eq!(
            captures.shown(),
            "ID    STREAM  CLIENT   TARGET  FOR    PACKETS  BYTES  DROPPED  FILTER\n\
             3             ann      web     1.0 s  0        0 B    0\n\
             n1/3          gateway  web     1.0 s  0        0 B    0\n\
             not looked at: node n2: it is gone\n"
        );
    }

    #[test]
    fn numbers_of_captures_may_have_nodes() {
        for right in ["7", "web-1/7", "n_1.example/7"] {
            assert_eq!(parse_id(right), Ok(right.to_owned()));
        }
        for wrong in ["", "x", "/7", "a/", "a/b/7", "../7", "a b/7", "a/7?"] {
            assert!(parse_id(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn captures_are_rows() {
        let captures: Captures = serde_json::from_str(
            r#"{"version": 1, "captures": [
                {"id": 3, "tap": 1, "client": {"name": "ann", "address": "10.0.0.7"},
                "target": {"netns": 5}, "filter": "tcp port 80", "started-at": 1.0, "duration": 61.5, "packets": 10,
                "bytes": 1500, "packets-per-second": 1.0, "bytes-per-second": 1.0,
                "dropped": {"kernel": 1, "slow-client": 2}},
                {"id": 5, "tap": 2, "stream": 4, "client": {"name": "uid:0", "address": "uid:0"}, "target": {"name": "web", "netns": 6},
                "started-at": 1.0, "duration": 1.0, "packets": 0, "bytes": 0, "dropped": {"kernel": 0, "slow-client": 0}}]}"#,
        )
        .unwrap();
        assert_eq!(
            captures.shown(),
            "ID  STREAM  CLIENT        TARGET   FOR       PACKETS  BYTES   DROPPED  FILTER\n\
             3           ann 10.0.0.7  netns:5  1:01 min  10       1.5 kB  3        tcp port 80\n\
             5   4       uid:0         web      1.0 s     0        0 B     0\n"
        );
    }
}
