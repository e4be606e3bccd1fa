//! `packetflix dial-stdio`: a connection to the server of this host over standard input and output, for clients that come by ssh.

use std::{future::pending, io};

use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _, split, stdin, stdout};

use crate::{
    connect::connect,
    error::{Failure, Status},
    local::StartLocal,
    server::ServerArgs,
};

/// Bytes that are carried at once.
const BUFFER: usize = 256 << 10;

/// Carries bytes until the server, or whoever has started this, ends.
///
/// # Errors
/// When the server is not reached.
pub(crate) async fn dial_stdio(args: &ServerArgs, local: Option<StartLocal>) -> Result<Status, Failure> {
    let server = args.resolve(local)?;
    let connection = connect(&server).await.map_err(Failure::refused)?;
    let (server, to_server) = split(connection);
    let asked = async {
        // Whoever asks may be gone without a word, which is no fault of this one.
        let _ = carry(stdin(), to_server).await;
        pending::<()>().await;
    };
    tokio::select! {
        () = asked => {}
        // Once the server has ended, it answers nothing that is still asked.
        _ = carry(server, stdout()) => {}
    }
    Ok(Status::Done)
}

/// Carries bytes to their end, which is passed on.
async fn carry(mut from: impl AsyncRead + Unpin, mut to: impl AsyncWrite + Unpin) -> io::Result<()> {
    let mut buffer = vec![0; BUFFER];
    loop {
        let len = from.read(&mut buffer).await?;
        if len == 0 {
            return to.shutdown().await;
        }
        to.write_all(&buffer[..len]).await?;
        to.flush().await?;
    }
}
