//! A stand-in for the packetflix that went before this one, to compare with: each capture is a dumpcap in the namespace,
//! whose output is sent over a WebSocket in the pieces of 32 KiB in which Go's `io.Copy` reads it. `original` prints its
//! port, and serves `/?netns=FILE&nif=NAME&filter=EXPRESSION`.

use std::{
    io::Read as _,
    net::{TcpListener, TcpStream},
    process::{Child, Command, Stdio},
    thread,
};

use anyhow::{Context as _, bail};
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use tokio_tungstenite::tungstenite::{
    Bytes, Message, accept_hdr,
    handshake::server::{Request, Response},
};

/// What `io.Copy` reads at once.
const PIECE: usize = 32 * 1024;

fn main() -> anyhow::Result<()> {
    let listener = TcpListener::bind("127.0.0.1:0")?;
    println!("{}", listener.local_addr()?.port());
    for stream in listener.incoming() {
        // One client's failure, before it was accepted too, is not the others'.
        thread::spawn(move || {
            if let Err(error) = stream.map_err(Into::into).and_then(serve) {
                eprintln!("original: {error:#}");
            }
        });
    }
    Ok(())
}

/// Sends what dumpcap writes, until the client says anything or goes: then dumpcap writes its statistics and ends.
fn serve(stream: TcpStream) -> anyhow::Result<()> {
    stream.set_nodelay(true)?;
    let mut client = stream.try_clone()?;
    let mut query = String::new();
    #[expect(clippy::result_large_err, reason = "the library has it so")]
    let keep = |request: &Request, response: Response| {
        query = request.uri().query().unwrap_or_default().to_owned();
        Ok(response)
    };
    let mut socket = match accept_hdr(stream, keep) {
        Ok(socket) => socket,
        Err(error) => bail!("no handshake: {error}"),
    };
    let mut child = dumpcap(&query)?;
    let mut output = child.stdout.take().context("no output")?;
    let pid = Pid::from_raw(i32::try_from(child.id())?);
    thread::spawn(move || {
        let _ = client.read(&mut [0]);
        let _ = kill(pid, Signal::SIGINT);
    });
    let mut piece = vec![0; PIECE];
    let sent = loop {
        match output.read(&mut piece)? {
            0 => break Ok(()),
            len => {
                let message = Message::Binary(Bytes::copy_from_slice(&piece[..len]));
                if let Err(error) = socket.send(message) {
                    break Err(error);
                }
            }
        }
    };
    drop(output);
    let _ = child.kill();
    child.wait()?;
    sent?;
    socket.close(None)?;
    socket.flush()?;
    Ok(())
}

fn dumpcap(query: &str) -> anyhow::Result<Child> {
    let parameter = |name: &str| {
        let mut pairs = query.split('&').filter_map(|pair| pair.split_once('='));
        let (_, value) = pairs.find(|(key, _)| *key == name)?;
        Some(value.replace("%20", " "))
    };
    let netns = parameter("netns").context("no netns")?;
    let nif = parameter("nif").context("no nif")?;
    let filter = parameter("filter");
    let mut command = Command::new("nsenter");
    command.arg(format!("--net={netns}"));
    command.args(["dumpcap", "-q", "-i", &nif, "-w", "-"]);
    command.args(filter.iter().flat_map(|filter| ["-f", filter]));
    command
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .spawn()
        .context("cannot start nsenter")
}
