//! `packetflix dial-stdio`: a connection to the server of this host over standard input and output, for clients that come by ssh.

use tokio::io::{copy_bidirectional_with_sizes, join, stdin, stdout};

use crate::{
    connect::connect,
    error::{Failure, Status},
    server::ServerArgs,
};

/// Bytes that are carried at once.
const BUFFER: usize = 256 << 10;

/// Carries bytes until the server, or whoever has started this, ends.
///
/// # Errors
/// When the server is not reached.
pub(crate) async fn dial_stdio(args: &ServerArgs) -> Result<Status, Failure> {
    let server = args.resolve().map_err(Failure::usage)?;
    let mut connection = connect(&server).await.map_err(Failure::refused)?;
    let mut client = join(stdin(), stdout());
    // Either end may be gone without a word, which is no fault of this one.
    let _ = copy_bidirectional_with_sizes(&mut client, &mut connection, BUFFER, BUFFER).await;
    Ok(Status::Done)
}
