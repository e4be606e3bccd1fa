//! `packetflix open`: Wireshark on the address of a capture.

use crate::{
    address::CaptureAddress,
    error::{Failure, Status},
    extcap::{INTERFACE, TARGET, install},
    wireshark,
};

/// Which capture is meant.
#[derive(Clone, Debug, clap::Args)]
pub struct OpenArgs {
    /// Where a server captures what: packetflix:ws://HOST:PORT/capture?container=…, or wss. The server is shown what the
    /// configuration file has for it
    #[arg(value_name = "ADDRESS")]
    address: String,
}

/// Starts Wireshark, which has the capture done by our interface, and so shows what is wrong with it.
///
/// # Errors
/// When it is no such address, or Wireshark does not start.
pub(crate) fn open(args: &OpenArgs) -> Result<Status, Failure> {
    args.address.parse::<CaptureAddress>().map_err(Failure::usage)?;
    if !install::is_installed() {
        return Err(Failure::usage(
            "Wireshark has no interface packetflix yet: run `packetflix extcap install`",
        ));
    }
    let preference = format!("extcap.{INTERFACE}.{TARGET}:{}", args.address);
    wireshark::start_on(INTERFACE, &preference).map_err(Failure::usage)?;
    Ok(Status::Done)
}
