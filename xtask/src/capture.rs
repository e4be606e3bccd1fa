//! `cargo xtask capture`

use std::{os::unix::process::CommandExt as _, path::PathBuf};

use crate::{build_ebpf::build_ebpf, run::build_programs, shell::root};

const CLIENT: &str = "target/release/capture";

#[derive(clap::Args)]
pub(crate) struct Args {
    /// Name of a container, pod or other target, as `/targets` lists it; or the query of the capture, such as
    /// `netns=4026531840&nif=eth0`
    #[arg(value_name = "NAME|QUERY")]
    target: String,
    /// Where the server listens
    #[arg(long, default_value = "127.0.0.1:5001")]
    server: String,
    /// Most bytes that are captured of a packet
    #[arg(long, value_name = "BYTES")]
    snaplen: Option<String>,
    /// End after so many packets
    #[arg(long, value_name = "COUNT")]
    packets: Option<String>,
    /// End before the stream is longer, such as `10MiB`
    #[arg(long, value_name = "SIZE")]
    bytes: Option<String>,
    /// End after this time, such as `10s`
    #[arg(long, value_name = "TIME")]
    duration: Option<String>,
    /// Have statistics beside the final ones after each such time, such as `10s`. Without this there are none, so that Wireshark
    /// shows the lost packets of the whole file
    #[arg(long, value_name = "TIME|end")]
    statistics: Option<String>,
    /// Speak TLS with a server whose certificate is of a CA in this file, in PEM
    #[arg(long, value_name = "FILE")]
    cacert: Option<PathBuf>,
}

impl Args {
    /// The query, with the limits behind what is captured.
    fn query(&self) -> String {
        // Ctrl-C asks for the end of the stream, and so for the final statistics.
        let usual = Some("end".to_owned()).filter(|_| !self.target.contains("statistics="));
        let statistics = self.statistics.clone().or(usual);
        let limits = [
            ("snaplen", &self.snaplen),
            ("packets", &self.packets),
            ("bytes", &self.bytes),
            ("duration", &self.duration),
            ("statistics", &statistics),
        ];
        let given = limits
            .iter()
            .filter_map(|(name, value)| Some((name, value.as_ref()?)));
        given.fold(query(&self.target), |query, (name, value)| {
            format!("{query}&{name}={}", escaped(value))
        })
    }
}

/// Becomes the command-line client, which sends `PACKETFLIX_TOKEN` as its token, if that is set.
///
/// # Errors
/// When the client does not build or cannot be started.
pub(crate) fn capture(args: &Args) -> anyhow::Result<()> {
    if !root().join(CLIENT).is_file() {
        build_ebpf()?;
        build_programs()?;
    }
    let scheme = if args.cacert.is_some() { "wss" } else { "ws" };
    let url = format!("{scheme}://{}/capture?{}", args.server, args.query());
    let mut client = std::process::Command::new(root().join(CLIENT));
    if let Some(cacert) = &args.cacert {
        client.env("PACKETFLIX_CACERT", cacert);
    }
    Err(client.arg(url).exec().into())
}

/// The query for all interfaces of a target; each query has an equals sign, and hardly a name has one.
fn query(target: &str) -> String {
    if target.contains('=') {
        return target.to_owned();
    }
    let name = target.replace('\\', "\\\\").replace('"', "\\\"");
    let container = escaped(&format!("{{\"name\":\"{name}\"}}"));
    format!("container={container}&nif=all")
}

fn escaped(value: &str) -> String {
    value.bytes().map(|byte| format!("%{byte:02X}")).collect()
}

#[cfg(test)]
mod tests {
    use super::{Args, query};

    #[test]
    fn names_become_descriptions() {
        assert_eq!(query("netns=5&nif=lo"), "netns=5&nif=lo");
        assert_eq!(
            query("a"),
            "container=%7B%22%6E%61%6D%65%22%3A%22%61%22%7D&nif=all"
        );
    }

    #[test]
    fn limits_follow() {
        let args = Args {
            target: "netns=5".to_owned(),
            server: String::new(),
            snaplen: None,
            packets: Some("7".to_owned()),
            bytes: None,
            statistics: None,
            cacert: None,
            duration: Some("1s".to_owned()),
        };
        let limits = "packets=%37&duration=%31%73";
        assert_eq!(args.query(), format!("netns=5&{limits}&statistics=%65%6E%64"));
        let seldom = Args {
            statistics: Some("1h".to_owned()),
            ..args
        };
        assert_eq!(seldom.query(), format!("netns=5&{limits}&statistics=%31%68"));
        let written = Args {
            target: "netns=5&statistics=1s".to_owned(),
            statistics: None,
            ..seldom
        };
        assert_eq!(written.query(), format!("netns=5&statistics=1s&{limits}"));
    }
}
