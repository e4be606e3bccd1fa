//! `cargo xtask capture`

use std::os::unix::process::CommandExt as _;

use crate::{build_ebpf::build_ebpf, run::build_programs, shell::root};

const CLIENT: &str = "target/release/capture";

#[derive(clap::Args)]
pub(crate) struct Args {
    /// The query of the capture, such as `netns=4026531840&nif=eth0`
    query: String,
    /// Where the server listens
    #[arg(long, default_value = "127.0.0.1:5001")]
    server: String,
}

/// Becomes the command-line client.
///
/// # Errors
/// When the client does not build or cannot be started.
pub(crate) fn capture(args: &Args) -> anyhow::Result<()> {
    if !root().join(CLIENT).is_file() {
        build_ebpf()?;
        build_programs()?;
    }
    let url = format!("ws://{}/capture?{}", args.server, args.query);
    Err(std::process::Command::new(root().join(CLIENT))
        .arg(url)
        .exec()
        .into())
}
