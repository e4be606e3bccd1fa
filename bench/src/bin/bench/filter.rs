//! What filters cost: nanoseconds per run of an eBPF program, and CPU time of the whole machine per packet, beside that
//! of tcpdump and dumpcap.

use std::{
    fs,
    io::{BufRead as _, BufReader, Lines},
    process::{Child, ChildStderr, Command, Stdio},
    sync::Arc,
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, bail, ensure};
use nix::{
    sys::signal::{Signal, kill},
    unistd::{Pid, SysconfVar, sysconf},
};
use packetflix_filter::{
    classic::{Instruction, opcode::*},
    native, translate,
};
use packetflix_tests::{
    bpf_run::{Program, ProgramType, take_run_times},
    client::{Capture, Piece},
    namespace::Namespace,
    raw::{RawSocket, ethernet, ipv4_udp},
    server::{Server, program, wait_until},
};
use tokio::runtime::{self, Runtime};

use crate::{
    Args,
    crowd::Folder,
    interrupt::{check, sleep_until},
    table::{Figures, Table},
    usage::{cpu_of, time_per_run},
};

/// Each takes more than half a minute.
const MAX_ROUNDS: u32 = 7;

/// Runs of a program in a row.
const RUNS: u32 = 1_000_000;

/// Packets that are sent for each figure: where little is to be told from the noise, more.
const REJECTED_PACKETS: u64 = 2_000_000;
const ACCEPTED_PACKETS: u64 = 1_000_000;
/// The same where the kernel takes the time of each run.
const TIMED_PACKETS: u64 = 200_000;

/// Interface at which packets are sent, and the one that is captured.
const SENDER: &str = "va";
const RECEIVER: &str = "vb";

/// What of the packets that are sent is only found wrong at the end.
const REJECTING: &str =
    "udp and src host 10.9.9.1 and dst host 10.9.9.2 and src port 12345 and dst port 12347";

/// Bytes of all headers of these packets, and of a packet.
const HEADERS_LEN: usize = 42;
const PACKET_LEN: usize = 64;

/// After the last packet, until all have been worked upon.
const SETTLE: Duration = Duration::from_millis(300);

/// Programs of libpcap are given their last packets after a second.
const LAST_PACKETS: Duration = Duration::from_millis(1500);

const HOOKS: [&str; 2] = ["tcx", "socket"];

pub(crate) fn run(args: &Args) -> anyhow::Result<()> {
    let rounds = args.rounds(MAX_ROUNDS).min(MAX_ROUNDS);
    programs(rounds)?;
    let bed = Bed::new()?;
    capture_programs(&bed, rounds)?;
    machine(&bed, rounds)
}

/// Filters alone, without a capture.
fn programs(rounds: u32) -> anyhow::Result<()> {
    let reject = [Instruction::new(RET | K, 0)];
    let (nine, tcp_port) = (nine_loads(), tcp_port());
    let mut packet = vec![2, 0, 0, 0, 0, 1, 2, 0, 0, 0, 0, 2, 8, 0];
    packet.extend([
        0x45, 0, 0x05, 0xdc, 0, 1, 0, 0, 64, 6, 0, 0, 10, 0, 0, 1, 10, 0, 0, 2,
    ]);
    packet.extend([0, 80, 1, 0xbb]);
    packet.resize(1514, 0);
    let mut options = packet.clone();
    options[14] = 0x46;

    let mut table = Table::new(format!(
        "Filters alone, all of which reject: time per run of BPF_PROG_TEST_RUN, {rounds} rounds of {RUNS} runs"
    ));
    for (hook, columns) in [
        (ProgramType::Classifier, ["classifier, p50", "min"]),
        (ProgramType::SocketFilter, ["socket filter, p50", "min"]),
    ] {
        let mut results = Vec::new();
        for (name, program, packet, len) in [
            ("empty program", &reject[..], &packet, 64),
            ("nine loads, 64 bytes", &nine, &packet, 64),
            ("nine loads, 1514 bytes", &nine, &packet, 1514),
            ("nine loads, 47 bytes: one too few", &nine, &packet, 47),
            ("tcp port, 64 bytes", &tcp_port, &packet, 64),
            ("tcp port, 64 bytes, with IP options", &tcp_port, &options, 64),
        ] {
            let loaded = Program::load(hook, &native::encode(&translate(program)?))?;
            let mut times = Figures::default();
            for _ in 0..rounds {
                check()?;
                times.push(f64::from(loaded.measure(&packet[..len], RUNS)?));
            }
            results.push((name, times));
        }
        for (column, figure) in columns.into_iter().zip([Figures::p50, Figures::min]) {
            table.column(column);
            for (name, times) in &results {
                table.figure(name, "ns", figure(times));
            }
        }
    }
    table.print();
    Ok(())
}

const ACCEPT: Instruction = Instruction::new(RET | K, 262_144);
const REJECT: Instruction = Instruction::new(RET | K, 0);

fn load(code: u16, at: u32) -> Instruction {
    Instruction::new(LD | code, at)
}

fn unless(k: u32, jf: u8) -> Instruction {
    Instruction::branch(JMP | JEQ | K, k, 0, jf)
}

/// Nine loads of which each is compared, the last in vain.
fn nine_loads() -> Vec<Instruction> {
    let loads = [
        (H | ABS, 12, 0x800),
        (B | ABS, 23, 6),
        (H | ABS, 20, 0),
        (W | ABS, 26, 0x0a00_0001),
        (W | ABS, 30, 0x0a00_0002),
        (H | ABS, 34, 80),
        (H | ABS, 36, 443),
        (B | ABS, 14, 0x45),
        (B | ABS, 47, 0xff),
    ];
    let mut program = Vec::new();
    for (number, (code, at, value)) in (0_u8..).zip(loads) {
        program.extend([load(code, at), unless(value, 2 * (8 - number) + 1)]);
    }
    program.extend([ACCEPT, REJECT]);
    program
}

/// `ip and tcp port 8080`
fn tcp_port() -> Vec<Instruction> {
    vec![
        load(H | ABS, 12),
        unless(0x800, 10),
        load(B | ABS, 23),
        unless(6, 8),
        load(H | ABS, 20),
        Instruction::branch(JMP | JSET | K, 0x1fff, 6, 0),
        Instruction::new(LDX | B | MSH, 14),
        load(H | IND, 14),
        Instruction::branch(JMP | JEQ | K, 8080, 2, 0),
        load(H | IND, 16),
        unless(8080, 1),
        ACCEPT,
        REJECT,
    ]
}

/// The whole programs of captures.
fn capture_programs(bed: &Bed, rounds: u32) -> anyhow::Result<()> {
    let rejecting = query(Some(REJECTING));
    let cases = [
        ("no filter at all, accepted", "&self=1".to_owned(), true),
        ("own traffic rejected, accepted", String::new(), true),
        ("filter alone, rejected", format!("{rejecting}&self=1"), false),
        ("own traffic and filter, rejected", rejecting, false),
    ];
    eprintln!("bench: programs of captures");
    let _taken = take_run_times().context("the kernel takes no times")?;
    let mut results = HOOKS.map(|_| cases.each_ref().map(|_| Figures::default()));
    for _ in 0..rounds {
        for (server, results) in bed.servers.iter().zip(&mut results) {
            for ((name, query, is_accepted), result) in cases.iter().zip(results) {
                let (socket, pids) = (Arc::clone(&bed.socket), server.processes());
                let (time, counts) = bed.with_packetflix(server, query, move || {
                    let (time, ()) = time_per_run(&pids, TIMED_PACKETS, || flood(&socket, TIMED_PACKETS))?;
                    Ok(time)
                })?;
                counts
                    .expect(TIMED_PACKETS, *is_accepted)
                    .with_context(|| (*name).to_owned())?;
                result.push(time);
            }
        }
    }

    let mut table = Table::new(format!(
        "Programs of captures: time per run, taken by the kernel, {rounds} rounds of {TIMED_PACKETS} packets of \
         {PACKET_LEN} bytes"
    ));
    for (hook, results) in HOOKS.iter().zip(&results) {
        for (column, figure) in [
            ("p50", Figures::p50 as fn(&Figures) -> f64),
            ("min", Figures::min),
        ] {
            table.column(format!("{hook}, {column}"));
            for ((name, ..), result) in cases.iter().zip(results) {
                table.figure(name, "ns", figure(result));
            }
        }
    }
    table.print();
    Ok(())
}

/// Who captures.
#[derive(Clone, Copy)]
enum Capturer {
    Nobody,
    /// With the hook of this number.
    Packetflix(usize),
    Tcpdump,
    Dumpcap,
}

/// CPU time of the whole machine, and of those processes that have to do with it, each time beside that of the same
/// packets without a capture.
fn machine(bed: &Bed, rounds: u32) -> anyhow::Result<()> {
    let mut capturers = vec![
        ("packetflix, tcx", Capturer::Packetflix(0)),
        ("packetflix, socket", Capturer::Packetflix(1)),
        ("tcpdump", Capturer::Tcpdump),
    ];
    if Command::new("dumpcap").arg("--version").output().is_ok() {
        capturers.push(("dumpcap", Capturer::Dumpcap));
    }
    for (title, filter, packets) in [
        ("that rejects all", Some(REJECTING), REJECTED_PACKETS),
        ("of all, unfiltered", None, ACCEPTED_PACKETS),
    ] {
        eprintln!("bench: a capture {title}");
        // The first packets after a rest are others.
        bed.cost(Capturer::Nobody, None, packets)?;
        let mut nobody = Results::default();
        let mut results: Vec<Results> = capturers.iter().map(|_| Results::default()).collect();
        for _ in 0..rounds {
            for ((name, capturer), results) in capturers.iter().zip(&mut results) {
                let without = bed.cost(Capturer::Nobody, None, packets)?;
                let with = bed.cost(*capturer, filter, packets);
                nobody.push(without, Cost::default());
                results.push(with.with_context(|| (*name).to_owned())?, without);
            }
        }
        let mut table = Table::new(format!(
            "A capture {title}: CPU time per million packets of {PACKET_LEN} bytes, {rounds} rounds of {packets}"
        ));
        table.column("nobody");
        table.figure("whole machine, p50", "s", nobody.machine.p50());
        table.figure("whole machine, min", "s", nobody.machine.min());
        table.figure("whole machine, max", "s", nobody.machine.max());
        table.figure("those involved, p50", "s", nobody.involved.p50());
        table.figure("those involved, min", "s", nobody.involved.min());
        table.figure("those involved, max", "s", nobody.involved.max());
        let is_tcpdump = |capturer| matches!(capturer, Capturer::Tcpdump);
        let tcpdump = capturers.iter().position(|(_, capturer)| is_tcpdump(*capturer));
        let tcpdump = &results[tcpdump.context("no tcpdump")?];
        for ((name, _), results) in capturers.iter().zip(&results) {
            table.column(*name);
            table.figure("whole machine, p50", "s", results.machine.p50());
            table.figure("whole machine, min", "s", results.machine.min());
            table.figure("whole machine, max", "s", results.machine.max());
            table.figure("those involved, p50", "s", results.involved.p50());
            table.figure("those involved, min", "s", results.involved.min());
            table.figure("those involved, max", "s", results.involved.max());
            let (machine, involved) = (results.machine_added.p50(), results.involved_added.p50());
            table.figure("added to the machine, p50", "s", machine);
            table.figure("added to those involved, p50", "s", involved);
            table.figure(
                "added to the machine / tcpdump",
                "",
                machine / tcpdump.machine_added.p50(),
            );
            table.figure(
                "added to those involved / tcpdump",
                "",
                involved / tcpdump.involved_added.p50(),
            );
            table.figure("packets lost, p50", "", results.lost.p50());
        }
        table.print();
    }
    println!("\nThe time that packetflix adds is that of its client, too, which reads and forgets.");
    Ok(())
}

/// What a flood of packets costs.
#[derive(Clone, Copy, Default)]
struct Cost {
    /// CPU seconds of the machine per million packets, with all that others did meanwhile.
    machine: f64,
    /// CPU seconds per million packets of the sender, the capturer, its client, and the kernel's threads that handle
    /// packets: others are not in this.
    involved: f64,
    /// Packets that the capturer lost.
    lost: u64,
}

/// Of the rounds of one capturer.
#[derive(Default)]
struct Results {
    machine: Figures,
    involved: Figures,
    machine_added: Figures,
    involved_added: Figures,
    lost: Figures,
}

impl Results {
    fn push(&mut self, with: Cost, without: Cost) {
        self.machine.push(with.machine);
        self.involved.push(with.involved);
        self.machine_added.push(with.machine - without.machine);
        self.involved_added.push(with.involved - without.involved);
        self.lost.push(with.lost as f64);
    }
}

/// Two namespaces with a pair of virtual Ethernet devices, and a server for each hook.
struct Bed {
    servers: Vec<Server>,
    runtime: Runtime,
    socket: Arc<RawSocket>,
    receiver: Namespace,
    _sender: Namespace,
    /// Their names are there; gone after them, and with us when we are killed.
    _names: Folder,
}

impl Bed {
    fn new() -> anyhow::Result<Self> {
        let names = Folder::mount()?;
        let (sender, receiver) = Namespace::pair()?;
        let servers = HOOKS
            .iter()
            .map(|hook| {
                let mut command = Command::new("setpriv");
                command.args(["--pdeathsig", "KILL"]).arg(program("packetflix")?);
                Server::start_by(&mut command, &["--hook", hook])
            })
            .collect::<anyhow::Result<_>>()?;
        Ok(Self {
            servers,
            runtime: runtime::Builder::new_current_thread().enable_all().build()?,
            socket: Arc::new(RawSocket::open(&sender, SENDER)?),
            receiver,
            _sender: sender,
            _names: names,
        })
    }

    fn cost(&self, capturer: Capturer, filter: Option<&str>, packets: u64) -> anyhow::Result<Cost> {
        check()?;
        let is_accepted = filter.is_none();
        let socket = Arc::clone(&self.socket);
        let work = |capturers| move || cost_of_flood(&socket, packets, capturers);
        let (cost, counts) = match capturer {
            Capturer::Nobody => return work(Vec::new())(),
            Capturer::Packetflix(hook) => {
                let server = &self.servers[hook];
                self.with_packetflix(server, &query(filter), work(server.processes()))?
            }
            Capturer::Tcpdump => Dumper::tcpdump(&self.receiver, filter)?.meanwhile(work)?,
            Capturer::Dumpcap => Dumper::dumpcap(&self.receiver, filter)?.meanwhile(work)?,
        };
        counts.expect(packets, is_accepted)?;
        Ok(Cost {
            lost: counts.lost,
            ..cost
        })
    }

    /// Does work while a server captures, whose stream is read and forgotten.
    fn with_packetflix<T: Send + 'static>(
        &self,
        server: &Server,
        query: &str,
        work: impl FnOnce() -> anyhow::Result<T> + Send + 'static,
    ) -> anyhow::Result<(T, Counts)> {
        check()?;
        let netns = self.receiver.inode()?;
        let url = server.url(&format!("netns={netns}&nif={RECEIVER}&names=0{query}"));
        self.runtime.block_on(async {
            let mut capture = Capture::open(&url, &[]).await?;
            // From the first piece on packets are captured.
            capture.next().await?;
            let mut work = tokio::task::spawn_blocking(work);
            let done = loop {
                tokio::select! {
                    done = &mut work => break done??,
                    piece = capture.next() => if let Piece::Closed(code, reason) = piece? {
                        bail!("ended with {code} {reason}");
                    }
                }
            };
            capture.stop().await?;
            let mut last = None;
            loop {
                match capture.next().await? {
                    Piece::Data(blocks) => last = last_counts(&blocks).or(last),
                    Piece::Closed(1000, _) => break,
                    Piece::Closed(code, reason) => bail!("ended with {code} {reason}"),
                }
            }
            Ok((done, last.context("no statistics")?))
        })
    }
}

/// The parameter of a filter.
fn query(filter: Option<&str>) -> String {
    filter.map_or_else(String::new, |filter| {
        format!("&filter={}", filter.replace(' ', "%20"))
    })
}

/// What a capture says of its packets.
#[derive(Clone, Copy, Debug, Default)]
struct Counts {
    accepted: u64,
    lost: u64,
}

impl Counts {
    /// Checks that all of the packets that were sent are there, or none.
    fn expect(&self, sent: u64, is_accepted: bool) -> anyhow::Result<()> {
        let expected = if is_accepted { sent } else { 0 };
        ensure!(self.accepted == expected, "{self:?} of {sent} packets");
        Ok(())
    }
}

/// The last statistics among these pcapng blocks.
fn last_counts(mut blocks: &[u8]) -> Option<Counts> {
    /// Type of a block, and codes of its options: draft-ietf-opsawg-pcapng, section 4.6.
    const INTERFACE_STATISTICS: u32 = 5;
    const FILTER_ACCEPT: u16 = 6;
    const IF_DROP: u16 = 5;
    /// Type and length, number of the interface, timestamp.
    const BEFORE_OPTIONS: usize = 20;

    let mut last = None;
    while let Some((kind, rest)) = blocks.split_first_chunk() {
        let len = usize::try_from(u32::from_le_bytes(*rest.first_chunk()?)).ok()?;
        let (block, after) = blocks.split_at_checked(len)?;
        blocks = after;
        if u32::from_le_bytes(*kind) != INTERFACE_STATISTICS {
            continue;
        }
        let mut counts = Counts::default();
        let mut options = block.get(BEFORE_OPTIONS..)?;
        while let Some(([code_low, code_high, len_low, len_high], rest)) = options.split_first_chunk() {
            let len = usize::from(u16::from_le_bytes([*len_low, *len_high]));
            let number = || rest.first_chunk().copied().map(u64::from_le_bytes);
            match u16::from_le_bytes([*code_low, *code_high]) {
                0 => break,
                FILTER_ACCEPT => counts.accepted = number()?,
                IF_DROP => counts.lost = number()?,
                _ => {}
            }
            options = rest.get(len.next_multiple_of(4)..)?;
        }
        last = Some(counts);
    }
    last
}

/// A capture by another program, into nowhere; ended when dropped.
struct Dumper {
    child: Child,
    lines: Lines<BufReader<ChildStderr>>,
    count: fn(&str) -> Option<Counts>,
}

impl Dumper {
    fn tcpdump(namespace: &Namespace, filter: Option<&str>) -> anyhow::Result<Self> {
        let arguments = ["tcpdump", "-i", RECEIVER, "-s", "0", "-w", "/dev/null"];
        Self::start(namespace, &arguments, filter.as_slice(), "listening on", |said| {
            let number = |what| {
                let line = said.lines().find_map(|line| line.strip_suffix(what))?;
                line.parse::<u64>().ok()
            };
            let lost = number(" packets dropped by kernel")?;
            let captured = number(" packets captured")?;
            Some(Counts {
                accepted: captured + lost,
                lost,
            })
        })
    }

    fn dumpcap(namespace: &Namespace, filter: Option<&str>) -> anyhow::Result<Self> {
        let arguments = ["dumpcap", "-q", "-i", RECEIVER, "-s", "0", "-w", "/dev/null"];
        let filter: Vec<&str> = filter.into_iter().flat_map(|filter| ["-f", filter]).collect();
        Self::start(namespace, &arguments, &filter, "File: ", |said| {
            let (_, numbers) = said.split_once("received/dropped on interface")?;
            let (received, rest) = numbers.split_once(": ")?.1.split_once('/')?;
            let (received, lost) = (
                received.parse::<u64>().ok()?,
                rest.split_once(' ')?.0.parse().ok()?,
            );
            Some(Counts {
                accepted: received + lost,
                lost,
            })
        })
    }

    /// Starts a program in a namespace, and waits until it says that it is `ready`. To be called by the main thread,
    /// with which it dies.
    fn start(
        namespace: &Namespace,
        arguments: &[&str],
        more: &[&str],
        ready: &str,
        count: fn(&str) -> Option<Counts>,
    ) -> anyhow::Result<Self> {
        let mut child = namespace
            .command("setpriv")
            .args(["--pdeathsig", "KILL"])
            .args(arguments)
            .args(more)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .context("cannot start nsenter")?;
        let lines = BufReader::new(child.stderr.take().context("no output")?).lines();
        let mut dumper = Self { child, lines, count };
        let mut said = Vec::new();
        for line in &mut dumper.lines {
            let line = line?;
            if line.contains(ready) {
                return Ok(dumper);
            }
            said.push(line);
        }
        bail!("{arguments:?}: {}", said.join("\n"))
    }

    /// Does work that is told the processes.
    fn meanwhile<W: FnOnce() -> anyhow::Result<Cost>>(
        self,
        work: impl FnOnce(Vec<u32>) -> W,
    ) -> anyhow::Result<(Cost, Counts)> {
        let cost = work(vec![self.child.id()])()?;
        sleep_until(Instant::now() + LAST_PACKETS)?;
        Ok((cost, self.finish()?))
    }

    /// Ends it as Ctrl-C does.
    fn finish(mut self) -> anyhow::Result<Counts> {
        kill(Pid::from_raw(i32::try_from(self.child.id())?), Signal::SIGINT)?;
        let mut ended = None;
        wait_until(Duration::from_secs(10), || {
            ended = self.child.try_wait()?;
            Ok(ended.is_some())
        })?;
        let said: Vec<String> = (&mut self.lines).collect::<Result<_, _>>()?;
        let said = said.join("\n");
        (self.count)(&said).with_context(|| format!("no counts: {ended:?}: {said}"))
    }
}

impl Drop for Dumper {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Sends packets, and waits until they must have been worked upon.
fn flood(socket: &RawSocket, count: u64) -> anyhow::Result<()> {
    let frame = ethernet(0x0800, &ipv4_udp(&[0; PACKET_LEN - HEADERS_LEN]));
    socket.flood(&frame, count, HEADERS_LEN)?;
    thread::sleep(SETTLE);
    Ok(())
}

/// What it costs to send so many packets, while these processes capture.
fn cost_of_flood(socket: &RawSocket, packets: u64, capturers: Vec<u32>) -> anyhow::Result<Cost> {
    let mut pids = kernel_threads()?;
    pids.push(std::process::id());
    pids.extend(capturers);

    let (begin, idle, before) = (Instant::now(), unused()?, cpu_of(&pids)?);
    flood(socket, packets)?;
    let (wall, idle, used) = (begin.elapsed(), unused()? - idle, cpu_of(&pids)? - before);
    let all = wall.as_secs_f64() * thread::available_parallelism()?.get() as f64;
    let per_million = |seconds: f64| seconds * 1e6 / packets as f64;
    Ok(Cost {
        machine: per_million(all - idle),
        involved: per_million(used.as_secs_f64()),
        lost: 0,
    })
}

/// Those of the kernel's threads that handle packets when there are too many for the sender's own call.
fn kernel_threads() -> anyhow::Result<Vec<u32>> {
    let pids = fs::read_dir("/proc")?.filter_map(|entry| {
        let entry = entry.ok()?;
        let pid = entry.file_name().to_str()?.parse().ok()?;
        let name = fs::read_to_string(entry.path().join("comm")).ok()?;
        name.starts_with("ksoftirqd/").then_some(pid)
    });
    Ok(pids.collect())
}

/// Seconds for which the CPUs were idle, or not ours. The rest is what was used: more exact than what `/proc/stat` says
/// of that, which is but what was found running at each tick.
fn unused() -> anyhow::Result<f64> {
    let ticks = sysconf(SysconfVar::CLK_TCK)?.context("no ticks")? as f64;
    let stat = fs::read_to_string("/proc/stat")?;
    let all = stat.lines().next().context("nothing in /proc/stat")?;
    let columns: Vec<&str> = all.split_whitespace().collect();
    // Idle, waiting for I/O, stolen: proc_stat(5).
    let mut sum = 0.0;
    for at in [4, 5, 8] {
        sum += columns.get(at).context("no such column")?.parse::<f64>()?;
    }
    Ok(sum / ticks)
}
