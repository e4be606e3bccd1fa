//! What the client costs that writes a stream into a file, beside `cat` of the same bytes: both read them from a TCP connection on
//! loopback, and write them to memory.

use std::{
    fs::{self, File},
    io::{BufRead as _, BufReader, Write as _},
    net::{TcpListener, TcpStream},
    os::fd::OwnedFd,
    path::Path,
    process::{Command, ExitStatus, Stdio},
    thread,
    time::Instant,
};

use anyhow::{Context as _, bail, ensure};
use nix::{
    mount::{MsFlags, mount},
    sys::{
        resource::{UsageWho, getrusage},
        time::TimeValLike as _,
    },
};
use packetflix_tests::{folder::Folder, server::program};
use tokio_tungstenite::tungstenite::handshake::derive_accept_key;

use crate::{
    Args,
    interrupt::check,
    table::{Figures, Table},
};

const ROUNDS: u32 = 5;

/// Bytes of packets, as they are captured.
const PACKETS: [usize; 3] = [64, 512, 1514];

/// Bytes of a stream, at least.
const STREAM_LEN: usize = 512 << 20;

/// Bytes of a message, as a server under load sends them.
const MESSAGE_LEN: usize = 256 << 10;

/// Bytes that a thing has in a billion.
const GIGA: f64 = 1e9;

pub(crate) fn run(args: &Args) -> anyhow::Result<()> {
    let rounds = args.rounds(ROUNDS);
    let folder = Folder::new()?;
    let (none, memory) = (None::<&str>, Some("tmpfs"));
    mount(memory, folder.path(), memory, MsFlags::empty(), none)?;
    let file = folder.file("stream.pcapng");
    for len in PACKETS {
        let message = message(len);
        let mut client = [Figures::default(), Figures::default()];
        let mut cat = [Figures::default(), Figures::default()];
        let mut ratios = [Figures::default(), Figures::default()];
        for round in 0..=rounds {
            check()?;
            let one = measure(&message, &file, Reader::Client)?;
            let other = measure(&message, &file, Reader::Cat)?;
            // The first one is slower than all others.
            if round == 0 {
                continue;
            }
            for (at, (one, other)) in one.into_iter().zip(other).enumerate() {
                client[at].push(one);
                cat[at].push(other);
                ratios[at].push(one / other);
            }
        }
        let mut table = Table::new(format!(
            "A stream of {} MiB with packets of {len} bytes into a file in memory, medians of {rounds} rounds",
            STREAM_LEN >> 20
        ));
        for (name, [speed, cost]) in [("packetflix capture", &client), ("cat", &cat), ("ratio", &ratios)] {
            table.column(name);
            table.figure("speed", "GB/s", speed.p50());
            table.figure("CPU time for a gigabyte", "s", cost.p50());
        }
        table.print();
    }
    Ok(())
}

/// Who reads.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Reader {
    Client,
    Cat,
}

/// A message of as many packets as one has.
fn message(packet: usize) -> Vec<u8> {
    const PACKET_BLOCK: u32 = 6;

    let mut body = Vec::new();
    // Interface, both halves of the time, length in the file and of the packet (pcapng, section "Enhanced Packet Block").
    for word in [0, 0x0006_0000, 7, packet as u32, packet as u32] {
        body.extend_from_slice(&u32::to_le_bytes(word));
    }
    body.resize(body.len() + packet.next_multiple_of(4), 0x5a);
    let block = block(PACKET_BLOCK, &body);
    block.repeat(MESSAGE_LEN / block.len())
}

fn block(kind: u32, body: &[u8]) -> Vec<u8> {
    let len = u32::to_le_bytes(body.len() as u32 + 12);
    [&kind.to_le_bytes()[..], &len, body, &len].concat()
}

/// What every stream begins with: the header of a section, and an interface of Ethernet without options.
fn beginning() -> Vec<u8> {
    let mut header = u32::to_le_bytes(0x1a2b_3c4d).to_vec();
    header.extend_from_slice(&[1, 0, 0, 0]);
    header.extend_from_slice(&[0xff; 8]);
    let interface = [1, 0, 0, 0, 0, 0, 4, 0];
    [block(0x0a0d_0d0a, &header), block(1, &interface)].concat()
}

/// Gigabytes in a second, and CPU seconds for each.
fn measure(message: &[u8], file: &Path, reader: Reader) -> anyhow::Result<[f64; 2]> {
    let _ = fs::remove_file(file);
    let listener = TcpListener::bind("127.0.0.1:0")?;
    let port = listener.local_addr()?.port();
    let count = STREAM_LEN.div_ceil(message.len());
    let before = cpu_of_children()?;
    let begun = Instant::now();
    let status = thread::scope(|scope| {
        let serving = scope.spawn(|| {
            let (stream, _) = listener.accept()?;
            match reader {
                Reader::Client => serve(stream, message, count),
                Reader::Cat => send(stream, &beginning(), message, count),
            }
        });
        let status = match reader {
            Reader::Client => client(port, file)?,
            Reader::Cat => cat(port, file)?,
        };
        match serving.join() {
            Ok(served) => served.map(|()| status),
            Err(_) => bail!("the server has ended"),
        }
    })?;
    let seconds = begun.elapsed().as_secs_f64();
    ensure!(status.success(), "{status}");
    let len = fs::metadata(file)?.len();
    ensure!(len >= (count * message.len()) as u64, "only {len} bytes");
    let gigabytes = len as f64 / GIGA;
    let cpu = cpu_of_children()? - before;
    Ok([gigabytes / seconds, cpu / gigabytes])
}

/// CPU seconds of all children that have ended.
fn cpu_of_children() -> anyhow::Result<f64> {
    let usage = getrusage(UsageWho::RUSAGE_CHILDREN)?;
    let microseconds = usage.user_time().num_microseconds() + usage.system_time().num_microseconds();
    Ok(microseconds as f64 / 1e6)
}

fn client(port: u16, file: &Path) -> anyhow::Result<ExitStatus> {
    Ok(Command::new(program("packetflix")?)
        .args(["capture", "replayed", "--quiet", "--server"])
        .arg(format!("http://127.0.0.1:{port}"))
        .arg("--write")
        .arg(file)
        .stdin(Stdio::null())
        .status()?)
}

fn cat(port: u16, file: &Path) -> anyhow::Result<ExitStatus> {
    let stream = TcpStream::connect(("127.0.0.1", port))?;
    Ok(Command::new("cat")
        .stdin(OwnedFd::from(stream))
        .stdout(File::create(file)?)
        .status()?)
}

/// Sends a stream over a WebSocket, as fast as it is taken, and ends it.
fn serve(mut stream: TcpStream, message: &[u8], count: usize) -> anyhow::Result<()> {
    const NORMAL: u16 = 1000;

    let mut key = None;
    for line in BufReader::new(stream.try_clone()?).lines() {
        let line = line?;
        if line.is_empty() {
            break;
        }
        if let Some((name, value)) = line.split_once(": ")
            && name.eq_ignore_ascii_case("sec-websocket-key")
        {
            key = Some(value.to_owned());
        }
    }
    let accepted = derive_accept_key(key.context("no key")?.as_bytes());
    write!(
        stream,
        "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Accept: {accepted}\r\n\r\n"
    )?;
    send(
        stream.try_clone()?,
        &framed(&beginning()),
        &framed(message),
        count,
    )?;
    stream.write_all(&[&[0x88, 2][..], &NORMAL.to_be_bytes()].concat())?;
    // The client closes.
    std::io::copy(&mut stream, &mut std::io::sink())?;
    Ok(())
}

fn send(mut stream: TcpStream, first: &[u8], message: &[u8], count: usize) -> anyhow::Result<()> {
    stream.write_all(first)?;
    for _ in 0..count {
        stream.write_all(message)?;
    }
    Ok(())
}

/// A message as a frame that is not masked (RFC 6455, section 5.2).
fn framed(message: &[u8]) -> Vec<u8> {
    [&[0x82, 127][..], &(message.len() as u64).to_be_bytes(), message].concat()
}
