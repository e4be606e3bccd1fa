//! Who captures: packetflix with each of its hooks, what went before it, and the programs that people use.

use std::{
    io::{BufRead as _, BufReader},
    process::{Child, ChildStderr, Stdio},
    thread,
    time::Duration,
};

use anyhow::{Context as _, bail};
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use packetflix_bench::analysis::{Delays, Found};
use packetflix_tests::server::{Server, percent_encoded, wait_until};

use super::{
    bed::{Bed, End as BedEnd},
    reader::{Reader, Source},
    websocket::{Closer, WebSocket},
};
use crate::usage::tree;

/// After a capture has begun, until it surely has.
const WARM_UP: Duration = Duration::from_millis(100);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Contestant {
    Nobody,
    /// packetflix with the hook `tcx`.
    Tcx,
    /// packetflix with the hook `socket`.
    Socket,
    /// dumpcap behind a WebSocket.
    Original,
    Tcpdump,
    NetsniffNg,
}

impl Contestant {
    pub(crate) const ALL: [Self; 6] = [
        Self::Nobody,
        Self::Tcx,
        Self::Socket,
        Self::Original,
        Self::Tcpdump,
        Self::NetsniffNg,
    ];

    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Nobody => "none",
            Self::Tcx => "packetflix-tcx",
            Self::Socket => "packetflix-socket",
            Self::Original => "original",
            Self::Tcpdump => "tcpdump",
            Self::NetsniffNg => "netsniff-ng",
        }
    }

    /// The server that runs all the time.
    pub(crate) fn server(self, bed: &Bed) -> Option<&Server> {
        match self {
            Self::Tcx => Some(&bed.tcx),
            Self::Socket => Some(&bed.socket),
            _ => None,
        }
    }

    /// Begins to capture; by the main thread, with which it dies.
    ///
    /// # Errors
    /// When it cannot.
    pub(crate) fn start(self, bed: &Bed, wish: &Wish<'_>) -> anyhow::Result<Running> {
        let running = match self {
            Self::Nobody => Running::default(),
            Self::Tcx => packetflix(bed, &bed.tcx, wish)?,
            Self::Socket => packetflix(bed, &bed.socket, wish)?,
            Self::Original => original(bed, wish)?,
            Self::Tcpdump => tcpdump(bed, wish)?,
            Self::NetsniffNg => netsniff_ng(bed, wish)?,
        };
        thread::sleep(WARM_UP);
        Ok(running)
    }
}

/// What of a capture is asked for.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Wish<'a> {
    pub(crate) filter: Option<&'a str>,
    /// How many packets of the generator are told apart.
    pub(crate) packets: u64,
    /// Each packet as soon as it can be, for those that have a flag for it.
    pub(crate) is_prompt: bool,
    /// Packets of up to 64 KiB, for those that have a flag for it.
    pub(crate) is_jumbo: bool,
    /// Which end of the pair is captured.
    pub(crate) at: BedEnd,
}

/// A capture that goes on.
#[derive(Default)]
pub(crate) struct Running {
    root: Option<u32>,
    reader: Option<Reader>,
    end: Option<End>,
    /// For so long nothing may come although there is something.
    quiet: Duration,
}

/// How a capture is ended.
enum End {
    WebSocket(Closer),
    Program(Program),
}

/// What was captured.
#[derive(Clone, Debug, Default)]
pub(crate) struct Outcome {
    pub(crate) found: Found,
    pub(crate) delays: Delays,
    /// Packets that are lost, as it says itself.
    pub(crate) dropped: Option<u64>,
}

impl Running {
    /// Its processes.
    ///
    /// # Errors
    /// When there is no `/proc`.
    pub(crate) fn processes(&self) -> anyhow::Result<Vec<u32>> {
        self.root.map_or(Ok(Vec::new()), tree)
    }

    /// Waits until it has delivered all.
    ///
    /// # Errors
    /// Upon an interruption.
    pub(crate) fn settle(&self) -> anyhow::Result<()> {
        self.reader
            .as_ref()
            .map_or(Ok(()), |reader| reader.settle(self.quiet))
    }

    /// Ends it.
    ///
    /// # Errors
    /// When it does not end well.
    pub(crate) fn finish(self) -> anyhow::Result<Outcome> {
        let (Some(reader), Some(end)) = (self.reader, self.end) else {
            return Ok(Outcome::default());
        };
        let program = match end {
            End::WebSocket(closer) => {
                closer.stop()?;
                None
            }
            End::Program(program) => {
                program.interrupt()?;
                Some(program)
            }
        };
        let analysis = reader.finish()?;
        let found = *analysis.found();
        Ok(Outcome {
            found,
            delays: analysis.delays().clone(),
            dropped: program.map_or(Ok(found.reported_drops), Program::dropped)?,
        })
    }
}

fn packetflix(bed: &Bed, server: &Server, wish: &Wish<'_>) -> anyhow::Result<Running> {
    let netns = bed.namespace(wish.at).inode()?;
    let interface = wish.at.interface();
    let filter = wish
        .filter
        .map(|filter| format!("&filter={}", percent_encoded(filter)));
    let filter = filter.unwrap_or_default();
    let path = format!("/capture?netns={netns}&nif={interface}&names=0{filter}");
    web_socket(server.pid(), server.port(), &path, wish)
}

fn original(bed: &Bed, wish: &Wish<'_>) -> anyhow::Result<Running> {
    let netns = bed.namespace(wish.at).path();
    let interface = wish.at.interface();
    let filter = wish
        .filter
        .map(|filter| format!("&filter={}", filter.replace(' ', "%20")));
    let filter = filter.unwrap_or_default();
    let path = format!("/?netns={}&nif={interface}{filter}", netns.display());
    web_socket(bed.original.pid(), bed.original.port(), &path, wish)
}

fn web_socket(root: u32, port: u16, path: &str, wish: &Wish<'_>) -> anyhow::Result<Running> {
    let socket = WebSocket::open(port, path)?;
    let closer = socket.closer()?;
    let reader = Reader::start(Source::WebSocket(socket), wish.packets);
    // From the first piece on packets are captured.
    reader.wait_for_begin()?;
    Ok(Running {
        root: Some(root),
        reader: Some(reader),
        end: Some(End::WebSocket(closer)),
        quiet: Duration::from_millis(600),
    })
}

fn tcpdump(bed: &Bed, wish: &Wish<'_>) -> anyhow::Result<Running> {
    let mut arguments = vec!["tcpdump", "-i", wish.at.interface(), "-w", "-"];
    arguments.extend(wish.is_prompt.then_some("-U"));
    arguments.extend(wish.filter);
    let mut program = Program::start(bed, wish.at, &arguments, Some(" packets dropped by kernel"))?;
    program.wait_for("listening on")?;
    program.running(wish, Duration::from_millis(1300))
}

/// It writes to a pipe in pieces, or each packet by itself, and tells no numbers when it does. It is kept from changing
/// settings of the kernel, and from a ring of gigabytes, which is what it takes for a link as fast as this.
fn netsniff_ng(bed: &Bed, wish: &Wish<'_>) -> anyhow::Result<Running> {
    let write = if wish.is_prompt { "--clrw" } else { "--sg" };
    let mut arguments = vec![
        "netsniff-ng",
        "--silent",
        "--no-sock-mem",
        "--ring-size",
        "64MiB",
        write,
        "--in",
        wish.at.interface(),
        "--out",
        "-",
    ];
    arguments.extend(wish.is_jumbo.then_some("--jumbo-support"));
    arguments.extend(wish.filter.iter().flat_map(|filter| ["--filter", filter]));
    let running =
        Program::start(bed, wish.at, &arguments, None)?.running(wish, Duration::from_millis(600))?;
    // It begins with the header of the file; packets that it has only begun to collect come at the end.
    if let Some(reader) = &running.reader {
        reader.wait_for_begin()?;
    }
    Ok(running)
}

/// A program that writes what it captures to a pipe; killed when dropped.
struct Program {
    child: Child,
    errors: BufReader<ChildStderr>,
    /// What stands behind the number of lost packets that it tells at the end, if it tells it.
    lost: Option<&'static str>,
}

impl Program {
    fn start(bed: &Bed, at: BedEnd, arguments: &[&str], lost: Option<&'static str>) -> anyhow::Result<Self> {
        let mut child = bed
            .namespace(at)
            .command("setpriv")
            .args(["--pdeathsig", "KILL"])
            .args(arguments)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .context("cannot start nsenter")?;
        let errors = BufReader::new(child.stderr.take().context("no errors")?);
        Ok(Self { child, errors, lost })
    }

    /// Waits until it has said something.
    fn wait_for(&mut self, words: &str) -> anyhow::Result<()> {
        let mut said = String::new();
        while self.errors.read_line(&mut said)? > 0 {
            if said.contains(words) {
                return Ok(());
            }
        }
        bail!("it said {said}")
    }

    fn running(mut self, wish: &Wish<'_>, quiet: Duration) -> anyhow::Result<Running> {
        let output = self.child.stdout.take().context("no output")?;
        Ok(Running {
            root: Some(self.child.id()),
            reader: Some(Reader::start(Source::Pipe(output), wish.packets)),
            end: Some(End::Program(self)),
            quiet,
        })
    }

    /// Ends it as Ctrl-C does.
    fn interrupt(&self) -> anyhow::Result<()> {
        Ok(kill(
            Pid::from_raw(i32::try_from(self.child.id())?),
            Signal::SIGINT,
        )?)
    }

    /// How many packets it has lost, as far as it tells, once it has ended.
    fn dropped(mut self) -> anyhow::Result<Option<u64>> {
        wait_until(Duration::from_secs(10), || Ok(self.child.try_wait()?.is_some()))?;
        let Some(lost) = self.lost else {
            return Ok(None);
        };
        let said = std::io::read_to_string(&mut self.errors)?;
        let number = |line: &str| line.strip_suffix(lost)?.trim().parse().ok();
        let dropped = said.lines().find_map(number);
        Ok(Some(dropped.with_context(|| {
            format!("no number of lost packets: {said:?}")
        })?))
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
