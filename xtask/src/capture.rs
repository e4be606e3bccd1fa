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
    /// Speak TLS with a server whose certificate is of a CA in this file, in PEM
    #[arg(long, value_name = "FILE")]
    cacert: Option<PathBuf>,
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
    let url = format!("{scheme}://{}/capture?{}", args.server, query(&args.target));
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
    let escaped = |byte| format!("%{byte:02X}");
    let container: String = format!("{{\"name\":\"{name}\"}}").bytes().map(escaped).collect();
    format!("container={container}&nif=all")
}

#[cfg(test)]
mod tests {
    use super::query;

    #[test]
    fn names_become_descriptions() {
        assert_eq!(query("netns=5&nif=lo"), "netns=5&nif=lo");
        assert_eq!(
            query("a"),
            "container=%7B%22%6E%61%6D%65%22%3A%22%61%22%7D&nif=all"
        );
    }
}
