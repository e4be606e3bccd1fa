//! Machines that may get more CPUs than they have: rings are made for those that are online, and nothing is lost when
//! another one comes.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::Duration,
};

use anyhow::{Context as _, ensure};
use futures_util::future::try_join_all;
use nix::{
    sched::{CpuSet, sched_setaffinity},
    unistd::Pid,
};
use packetflix_tests::{
    bpf_objects::Objects,
    client::Recorder,
    control_group::ControlGroup,
    folder::Folder,
    hook::hooks,
    namespace::Namespace,
    raw::{self, RawSocket},
    recording::Recording,
    server::{Server, program, wait_until},
};

/// Where the kernel lists CPUs.
const CPUS: &str = "/sys/devices/system/cpu";

/// A command behind which the kernel seems to list CPUs differently: `file` has `text`.
fn told(folder: &Folder, file: &str, text: &str) -> anyhow::Result<Command> {
    let told = folder.file(file);
    fs::write(&told, text)?;
    let mut command = Command::new("unshare");
    command
        .args([
            "--mount",
            "sh",
            "-c",
            "mount --bind \"$0\" \"$1\" && shift && exec \"$@\"",
        ])
        .arg(told)
        .arg(Path::new(CPUS).join(file));
    Ok(command)
}

/// How many rings a server has, those that it keeps ready among them.
fn rings(server: &Server) -> anyhow::Result<usize> {
    let kinds = Objects::held_by(server.keeper()?)?.kinds();
    Ok(kinds.lines().filter(|line| line.contains(" ring ")).count())
}

/// Whether the kernel takes further CPUs, which its list of possible ones tells. The places that the emulator has for them are
/// mistakes of the firmware to those from Linux 6.9 on, where they know no hypervisor.
fn takes_further_ones() -> anyhow::Result<bool> {
    let list = |file: &str| fs::read_to_string(Path::new(CPUS).join(file));
    if list("possible")? != list("present")? {
        return Ok(true);
    }
    let release = fs::read_to_string("/proc/sys/kernel/osrelease")?;
    let mut numbers = release.split('.').map(str::parse);
    let version: (u32, u32) = (
        numbers.next().context("no major version")??,
        numbers.next().context("no minor version")??,
    );
    ensure!(version >= (6, 9), "Linux {release} takes no further CPU");
    Ok(false)
}

fn online() -> anyhow::Result<usize> {
    Ok(std::thread::available_parallelism()?.get())
}

/// A common default of hypervisors: there may be 240 CPUs, and there are two.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn ten_captures_run_where_there_may_be_240_cpus_and_four_gibibytes() -> anyhow::Result<()> {
    const CAPTURES: usize = 10;
    /// Descriptors of a capture in both processes, beside its rings; programs with its filter are its own, beside those of its object.
    const OTHERS: usize = 28;

    let (here, there) = Namespace::pair()?;
    let folder = Folder::new()?;
    let group = ControlGroup::with_memory(4 << 30)?;
    let mut by = told(&folder, "possible", "0-239\n")?;
    let inside = group.server()?;
    by.arg(inside.get_program()).args(inside.get_args());
    let server = Server::start_by(&mut by, &[])?;
    // One for each that is online, and one for the 238 that are not.
    let of_capture = online()? + 1;
    wait_until(Duration::from_secs(5), || Ok(rings(&server)? == of_capture))
        .with_context(|| format!("{} rings are kept ready", rings(&server).unwrap_or_default()))?;
    let held = Objects::held_by(server.keeper()?)?.kinds();
    ensure!(
        held.lines()
            .any(|line| line.contains("RINGS") && line.ends_with("entries 241")),
        "{held}"
    );
    let before = server.descriptors()?;

    let inode = here.inode()?;
    let recorders = try_join_all((0..CAPTURES).map(|number| {
        // Each asks for something else, and so is a capture of its own.
        let url = server.url(&format!("netns={inode}&nif=va&names=0&filter=len+%3E+{number}"));
        async move { Recorder::start(&url).await }
    }))
    .await?;
    let used = server.descriptors()? - before;
    eprintln!(
        "{CAPTURES} captures take {used} descriptors, and {} rings",
        rings(&server)?
    );
    ensure!(used <= CAPTURES * (of_capture + OTHERS), "{used} descriptors");
    assert_eq!(rings(&server)?, (CAPTURES + 1) * of_capture);

    let frame = raw::ethernet(0x88b5, &[7; 46]);
    RawSocket::open(&there, "vb")?.send(&frame)?;
    for mut recorder in recorders {
        recorder
            .read_until(|recording| recording.count(&frame) == 1)
            .await?;
        let statistics = recorder.finish().await?.final_statistics("va")?;
        assert_eq!((statistics.delivered, statistics.dropped), (1, 0));
    }
    Ok(())
}

/// Sends numbered frames from one CPU, which is also where they are received, until it is told to stop.
struct Stream {
    stop: Arc<AtomicBool>,
    sent: Arc<AtomicU64>,
    task: tokio::task::JoinHandle<anyhow::Result<u64>>,
}

impl Stream {
    fn start(there: &Namespace, cpu: usize) -> anyhow::Result<Self> {
        let socket = RawSocket::open(there, "vb")?;
        let stop = Arc::new(AtomicBool::new(false));
        let sent = Arc::new(AtomicU64::new(0));
        let (stops, counts) = (Arc::clone(&stop), Arc::clone(&sent));
        let task = tokio::task::spawn_blocking(move || {
            let mut cpus = CpuSet::new();
            cpus.set(cpu)?;
            sched_setaffinity(Pid::from_raw(0), &cpus)?;
            while !stops.load(Ordering::Relaxed) {
                let number = counts.load(Ordering::Relaxed);
                socket.send(&numbered(cpu, number))?;
                counts.store(number + 1, Ordering::Relaxed);
                std::thread::sleep(Duration::from_micros(200));
            }
            // Its thread may be used again.
            let mut all = CpuSet::new();
            (0..CpuSet::count()).try_for_each(|cpu| all.set(cpu))?;
            sched_setaffinity(Pid::from_raw(0), &all)?;
            Ok(counts.load(Ordering::Relaxed))
        });
        Ok(Self { stop, sent, task })
    }

    /// How many were sent.
    async fn stop(self) -> anyhow::Result<u64> {
        self.stop.store(true, Ordering::Relaxed);
        self.task.await?
    }
}

/// A frame that says from which CPU it comes, and which one it is of those.
fn numbered(cpu: usize, number: u64) -> Vec<u8> {
    let mut payload = vec![0; 46];
    payload[0] = cpu as u8;
    payload[1..9].copy_from_slice(&number.to_be_bytes());
    raw::ethernet(0x88b5, &payload)
}

/// All frames of each CPU came, in the order in which they were sent.
fn is_whole(recording: &Recording, sent: &[(usize, u64)]) -> anyhow::Result<()> {
    for (cpu, count) in sent {
        let of_cpu = recording
            .packets
            .iter()
            .filter(|packet| packet.data[14] == *cpu as u8);
        let numbers: Vec<u64> = of_cpu
            .map(|packet| packet.data[15..23].try_into().map(u64::from_be_bytes))
            .collect::<Result<_, _>>()?;
        ensure!(
            numbers.iter().copied().eq(0..*count),
            "{} of {count} frames of CPU {cpu} came in order",
            numbers
                .iter()
                .zip(0..)
                .take_while(|(number, expected)| **number == *expected)
                .count()
        );
    }
    let statistics = recording.final_statistics("va")?;
    let all = sent.iter().map(|(_, count)| count).sum::<u64>();
    ensure!(
        (statistics.received, statistics.delivered, statistics.dropped) == (all, all, 0),
        "{all} were sent: {statistics:?}"
    );
    Ok(())
}

/// Packets come on a CPU that was not online when the capture began: it shares a ring, and then gets its own.
async fn cpu_comes_online(hook: &str, way: Way) -> anyhow::Result<()> {
    let (here, there) = Namespace::pair()?;
    let folder = Folder::new()?;
    way.take_away()?;
    let of_capture = online()?.min(if way == Way::Told { 1 } else { usize::MAX }) + 1;
    let flags = ["--hook", hook, "--debug"];
    let server = if way == Way::Told {
        let mut by = told(&folder, "online", "0\n")?;
        Server::start_by(by.arg(program("packetflix")?), &flags)?
    } else {
        Server::start(&flags)?
    };
    wait_until(Duration::from_secs(5), || Ok(rings(&server)? == of_capture)).with_context(|| {
        format!(
            "{way:?}: {} rings are kept ready",
            rings(&server).unwrap_or_default()
        )
    })?;
    let mut recorder =
        Recorder::start(&server.url(&format!("netns={}&nif=va&names=0", here.inode()?))).await?;
    // Those of the capture, and of the one that is kept ready.
    wait_until(Duration::from_secs(5), || Ok(rings(&server)? == 2 * of_capture))?;
    let first = Stream::start(&there, 0)?;
    recorder
        .read_until(|recording| recording.packets.len() > 100)
        .await?;
    tokio::time::sleep(Duration::from_millis(1500)).await;
    assert_eq!(rings(&server)?, 2 * of_capture, "a ring that nobody needs");

    let comes = way.bring()?;
    let second = Stream::start(&there, comes)?;
    let counted = Arc::clone(&second.sent);
    let server = Arc::new(server);
    let watched = Arc::clone(&server);
    let growing = tokio::task::spawn_blocking(move || {
        wait_until(Duration::from_secs(10), || {
            Ok(rings(&watched)? == 2 * of_capture + 1)
        })?;
        anyhow::Ok(counted.load(Ordering::Relaxed))
    });
    let shared = recorder.read_during(growing).await?;
    tokio::time::sleep(Duration::from_millis(300)).await;
    let sent = [(0, first.stop().await?), (comes, second.stop().await?)];
    eprintln!(
        "{hook}, {way:?}: {shared} frames of CPU {comes} went to the shared ring, of {}",
        sent[1].1
    );
    ensure!(shared > 0 && sent[1].1 > shared);
    is_whole(&recorder.finish().await?, &sent)?;
    server.wait_for_log("CPUs that came online have rings")
}

/// How a CPU comes online.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Way {
    /// It always was, but was not said to be.
    Told,
    /// It is switched off before, and on again.
    Switched,
    /// It is plugged in, into a machine that had fewer.
    Plugged,
}

impl Way {
    fn take_away(self) -> anyhow::Result<()> {
        if self == Self::Switched {
            fs::write(switch_of(COMES), "0")?;
        }
        Ok(())
    }

    /// Which one has come.
    fn bring(self) -> anyhow::Result<usize> {
        match self {
            Self::Told => {}
            Self::Switched => fs::write(switch_of(COMES), "1")?,
            Self::Plugged => return plug_in(),
        }
        Ok(COMES)
    }
}

/// Where a CPU is switched on and off.
fn switch_of(cpu: usize) -> PathBuf {
    Path::new(CPUS).join(format!("cpu{cpu}/online"))
}

/// Has whoever runs this machine plug in another CPU, and switches it on. Gives its number.
fn plug_in() -> anyhow::Result<usize> {
    let present = |cpu: usize| Path::new(CPUS).join(format!("cpu{cpu}")).exists();
    let new = (0..).find(|cpu| !present(*cpu)).context("CPUs without end")?;
    let machine = std::env::var_os(MACHINE).context("no machine of our own")?;
    let wish = Path::new(&machine).join("add-cpu");
    match fs::write(&wish, "") {
        // Whoever grants it may have removed it before this kernel looked at what it had made.
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
        written => written.with_context(|| format!("cannot write {}", wish.display()))?,
    }
    wait_until(Duration::from_secs(10), || Ok(!wish.exists() && present(new)))
        .with_context(|| format!("CPU {new} is not plugged in"))?;
    let switch = switch_of(new);
    wait_until(Duration::from_secs(5), || {
        // Many kernels do that by themselves.
        let _ = fs::write(&switch, "1");
        Ok(fs::read_to_string(&switch).is_ok_and(|state| state.trim() == "1"))
    })
    .with_context(|| format!("CPU {new} is not switched on"))?;
    Ok(new)
}

/// The CPU that comes.
const COMES: usize = 1;

/// Where a machine that is there for tests alone, and is thrown away, takes wishes.
const MACHINE: &str = "PACKETFLIX_TEST_MACHINE";

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn cpu_that_comes_online_shares_a_ring_and_then_gets_its_own() -> anyhow::Result<()> {
    ensure!(online()? >= 2, "this takes two CPUs");
    for hook in hooks()? {
        cpu_comes_online(hook, Way::Told).await?;
    }
    // On a machine that others use, none is switched off.
    if std::env::var_os(MACHINE).is_some() {
        cpu_comes_online("socket", Way::Switched).await?;
        // The emulated ones of other architectures take none while they run.
        if cfg!(target_arch = "x86_64") && takes_further_ones()? {
            cpu_comes_online("socket", Way::Plugged).await?;
        }
    }
    Ok(())
}
