//! What is tried: each thing as a capture does it.

use std::{
    collections::BTreeSet, error::Error, fs, io, net::UdpSocket, os::fd::OwnedFd, path::Path, process,
    sync::Arc, thread, time::Duration,
};

use nix::sched::{CloneFlags, setns};
use tokio::{
    task::block_in_place,
    time::{Instant, sleep},
};

use super::{Finding, State};
use crate::{
    capabilities::Capability,
    config::Config,
    confined::try_to_give_up,
    discovery::{Discovery, EngineReport, Gap},
    error::chain,
    filter::compile::{CompileError, Compiler, Options},
    keeper::Keeper,
    metrics::Metrics,
    netns::{Namespaces, Netns, ProcessIdentity},
    pcapng::{LinkType, SNAPLEN},
    proc_fs::{namespace_link, numbers_in, proc_path},
    tap::{
        CaptureFilters, Cause, ClockSource, Hook, InterfaceSelection, MIN_RING_SIZE, OwnTraffic, RateLimits,
        RingConfig, Tap, TapConfig, TapError, TapRequest, clock_source,
    },
};

/// The loopback device has the first index of every network namespace.
const LOOPBACK: u32 = 1;

/// The process that all others come from.
const FIRST_PROCESS: u32 = 1;

/// What podman is called, and, as `comm` has it, the process that it leaves with each of its containers.
const PODMAN: &str = "podman";
const MONITOR: &[u8] = b"conmon\n";

/// How long a packet may take to its ring.
const PATIENCE: Duration = Duration::from_secs(2);

/// Tries all, and says whether captures can work.
pub(super) async fn all(config: &Config, findings: &mut Vec<Finding>) -> bool {
    let processes = block_in_place(processes);
    let entered = processes.state != State::Fails;
    let tcx = hook(config, Hook::Tcx, "hook tcx").await;
    let socket = hook(config, Hook::Socket, "hook socket").await;
    let [tcx_works, socket_works] = [&tcx, &socket].map(|hook| hook.state == State::Works);
    let hooked = match config.tap.hook {
        Hook::Auto => tcx_works || socket_works,
        Hook::Tcx => tcx_works,
        Hook::Socket => socket_works,
    };
    findings.extend([processes, front(), tcx, socket, clock(hooked), btf()]);
    findings.push(filters("filters", "tcp port 80").await);
    findings.push(filters("filters with vlan", "vlan 5 and tcp port 80").await);
    findings.extend(engines(config).await);
    hooked && entered
}

/// Looks at all processes, and enters the network namespace of one: of another than ours, if there is one.
fn processes() -> Finding {
    const SUBJECT: &str = "other processes";
    let own = namespace_link(Path::new("/proc/self/ns/net")).ok();
    let (mut seen, mut hidden, mut first_is_hidden) = (0, 0, false);
    let mut chosen = None;
    for pid in numbers_in(Path::new("/proc")).into_iter().flatten() {
        match namespace_link(&proc_path(pid, "ns/net")) {
            Ok(namespace) => {
                seen += 1;
                let foreign = own.as_ref().is_some_and(|own| *own != namespace);
                if pid != process::id() && (chosen.is_none() || foreign) {
                    chosen = Some((pid, namespace.1));
                }
            }
            Err(error) if error.kind() != io::ErrorKind::PermissionDenied => {}
            // Some machines keep it from everybody, root too; it is in the host's own namespaces.
            Err(_) if pid == FIRST_PROCESS => first_is_hidden = true,
            Err(_) => hidden += 1,
        }
    }
    let entered = chosen.map(|(pid, netns)| {
        let identity = ProcessIdentity {
            pid,
            starttime: None,
            netns: Some(netns),
        };
        let opened = Netns::of_process(&identity).map_err(|error| {
            let blame = Capability::SysPtrace.blame(&error);
            chain(&error) + &blame
        })?;
        opened.enter(|| ()).map_err(|error| {
            let blame = Capability::SysAdmin.blame(&error);
            chain(&error) + &blame
        })
    });
    match entered {
        Some(Err(sentence)) => Finding::fails(SUBJECT, sentence)
            .costs("there are no captures")
            .remedy("see the capabilities above"),
        _ if hidden > 0 => {
            let denied = io::Error::from(nix::errno::Errno::EACCES);
            let blame = Capability::SysPtrace.blame(&denied);
            let found = format!("{hidden} of {} could not be looked at{blame}", seen + hidden);
            Finding::limited(SUBJECT, found)
                .costs("their namespaces are found only if they are mounted somewhere, and not by name")
                .remedy("see the capabilities above")
        }
        Some(Ok(())) => {
            let but = if first_is_hidden {
                "; the first one is hidden"
            } else {
                ""
            };
            Finding::works(
                SUBJECT,
                format!("the namespaces of {seen} could be looked at, and one was entered{but}"),
            )
        }
        None => Finding::limited(SUBJECT, "there are none")
            .costs("there is nothing to capture but mounted namespaces")
            .remedy("use the host's PID namespace"),
    }
}

/// What is left of the rights of the process that serves clients.
fn front() -> Finding {
    const SUBJECT: &str = "two processes";
    match block_in_place(try_to_give_up) {
        Ok(left) => Finding::works(
            SUBJECT,
            format!("the one that serves clients has no rights: {left}"),
        ),
        Err(sentence) => Finding::fails(
            SUBJECT,
            format!("the one that serves clients cannot give up its rights: {sentence}"),
        )
        .costs("the service does not start")
        .remedy("let the service call prctl and seccomp, as deploy/seccomp.json does"),
    }
}

/// Captures a packet of a namespace that is made for it.
async fn hook(config: &Config, hook: Hook, subject: &str) -> Finding {
    match capture(config, hook).await {
        Ok(true) => Finding::works(subject, "a packet was captured with it"),
        Ok(false) => Finding::works(
            subject,
            "it could be attached; no packet was sent, for want of CAP_NET_ADMIN to set an interface up",
        ),
        Err(CaptureError::Tap(error)) => match error.cause() {
            Some(Cause::NoTcx) => {
                return Finding::limited(subject, error.to_string())
                    .costs("the hook is a socket filter: what TC programs redirect or drop is not seen as it arrived")
                    .remedy("update the kernel to 6.6 or later, if that matters");
            }
            Some(Cause::Refused(refused)) => Finding::fails(subject, refused.fact()).remedy(refused.remedy()),
            _ => Finding::fails(subject, chain(&error) + &error.needs().blame(&error))
                .remedy("see the capabilities above; a seccomp profile must allow bpf"),
        }
        .costs("there are no captures with this hook"),
        Err(CaptureError::Keeper(error)) => Finding::fails(subject, chain(&*error))
            .costs("there are no captures")
            .remedy(match Capability::SysAdmin.is_effective() {
                true => "see how many threads and descriptors the service may have",
                false => "see the capabilities above",
            }),
        Err(CaptureError::Lost) => Finding::fails(subject, "a packet that was sent did not come to a ring")
            .costs("captures with this hook may miss packets")
            .remedy("take the other hook with --hook, and report this"),
    }
}

/// Why a packet was not captured.
enum CaptureError {
    Tap(TapError),
    Keeper(Box<dyn Error>),
    Lost,
}

impl From<TapError> for CaptureError {
    fn from(error: TapError) -> Self {
        Self::Tap(error)
    }
}

/// Whether a packet was sent and captured.
async fn capture(config: &Config, hook: Hook) -> Result<bool, CaptureError> {
    let rings = RingConfig {
        size: MIN_RING_SIZE as u32,
        is_fixed: true,
        ..config.tap.rings
    };
    let tap = TapConfig {
        hook,
        rings,
        rates: RateLimits::default(),
        log_programs: false,
    };
    let keeper = Keeper::within(config, tap).map_err(|error| CaptureError::Keeper(error.into()))?;
    let namespaces = Namespaces::new(keeper.control());
    let fresh = block_in_place(|| namespaces.fresh());
    let (netns, namespace) = fresh.map_err(|error| CaptureError::Keeper(error.into()))?;
    let request = TapRequest {
        selection: InterfaceSelection::All,
        filters: CaptureFilters::default(),
        own: OwnTraffic::default(),
        snaplen: SNAPLEN,
        promiscuous: false,
        is_admin: true,
    };
    let mut tap = Tap::open(&netns, request, &Arc::default()).await?;
    let sent = send_in(namespace);
    let deadline = Instant::now() + PATIENCE;
    let captured = loop {
        tap.count();
        // Without an interface that is up there is no way to the address.
        if sent.is_err() || tap.counters(LOOPBACK).delivered > 0 {
            break Ok(sent.is_ok());
        }
        if Instant::now() > deadline {
            break Err(CaptureError::Lost);
        }
        sleep(Duration::from_millis(1)).await;
    };
    tap.detach_all();
    captured
}

/// Sends a packet in a network namespace, from a thread of its own.
fn send_in(namespace: OwnedFd) -> io::Result<usize> {
    let send = move || {
        setns(namespace, CloneFlags::CLONE_NEWNET)?;
        UdpSocket::bind("127.0.0.1:0")?.send_to(b"packetflix", "127.0.0.1:9")
    };
    let sender = thread::Builder::new().spawn(send)?;
    sender
        .join()
        .unwrap_or_else(|panic| std::panic::resume_unwind(panic))
}

/// Which clock programs can read; that can be found out only where they can be loaded.
fn clock(programs_load: bool) -> Finding {
    const SUBJECT: &str = "clock";
    if !programs_load {
        return Finding::limited(SUBJECT, "not known, since no program could be loaded");
    }
    match clock_source() {
        ClockSource::Tai => Finding::works(SUBJECT, "programs read CLOCK_TAI"),
        ClockSource::Boottime => Finding::limited(SUBJECT, "programs read CLOCK_BOOTTIME, and not CLOCK_TAI")
            .costs("timestamps follow corrections of the host's clock within a second, and not at once")
            .remedy("update the kernel to 6.1 or later, if that matters"),
    }
}

fn btf() -> Finding {
    let present = Path::new("/sys/kernel/btf/vmlinux").exists();
    let found = if present {
        "the kernel has it"
    } else {
        "the kernel has none"
    };
    Finding::works("BTF", format!("{found}, and captures do not need it"))
}

/// Compiles a filter, in the process without rights that does so.
async fn filters(subject: &str, expression: &str) -> Finding {
    let compiler = Compiler::new(Options::default());
    match compiler.compile(expression, LinkType::Ethernet, &"".into()).await {
        Ok(_) => Finding::works(subject, "libpcap compiles them, in a process without rights"),
        Err(error) => {
            let blame = match &error {
                CompileError::Setup {
                    needs: Some(needs), ..
                } => needs.blame(&error),
                _ => String::new(),
            };
            Finding::limited(subject, chain(&error) + &blame)
                .costs("requests with such filters are refused")
                .remedy("see the capabilities above; a seccomp profile must allow seccomp and execve")
        }
    }
}

/// podman, which has no daemon, runs containers, and nothing answers for it.
fn podman_without_socket() -> Option<Finding> {
    let is_its_monitor = |pid: &u32| {
        let read = |file| fs::read(proc_path(*pid, file)).unwrap_or_default();
        let line = read("cmdline");
        read("comm") == MONITOR && line.windows(PODMAN.len()).any(|part| part == PODMAN.as_bytes())
    };
    let mut pids = numbers_in(Path::new("/proc")).into_iter().flatten();
    pids.any(|pid| is_its_monitor(&pid)).then(|| {
        Finding::limited("engine", "podman runs containers, and its API socket is not there")
            .costs("they are listed as processes, without their names")
            .remedy("systemctl enable --now podman.socket; for containers of a user: systemctl --user enable --now podman.socket")
    })
}

/// Asks the engines what they run, as a scan for targets does.
async fn engines(config: &Config) -> Vec<Finding> {
    let keeper = match Keeper::within(config, config.tap.clone()) {
        Ok(keeper) => keeper,
        Err(error) => return vec![Finding::limited("targets", chain(&error)).costs("they are not found")],
    };
    let discovery = Discovery::new(
        keeper.control(),
        config.engine_sockets.clone(),
        config.node_name.clone(),
        Arc::new(Metrics::new()),
    );
    let scan = match discovery.scan_now().await {
        Ok(scan) => scan,
        Err(late) => {
            let finding = Finding::limited("targets", late.to_string());
            return vec![
                finding
                    .costs("they are not found")
                    .remedy("try again when the machine is less busy"),
            ];
        }
    };
    let engine = |engine: &EngineReport| {
        let subject = "engine";
        let path = format!("{}, {}", engine.path.display(), engine.whose());
        match &engine.problem {
            None => Finding::works(
                subject,
                format!("{path}, tells of {} containers or pods", engine.workloads),
            ),
            Some(problem) => Finding::limited(subject, format!("{path}: {}", problem.sentence))
                .costs("its containers have no names")
                .remedy(&*problem.remedy),
        }
    };
    let mut findings: Vec<Finding> = scan.engines.iter().map(engine).collect();
    if findings.is_empty() {
        findings.push(
            Finding::limited("engine", "no container engine was found")
                .costs("containers and pods have no names; processes and mounted namespaces are listed")
                .remedy("nothing, if there is none; else name its socket with --engine-socket"),
        );
    }
    if !scan
        .engines
        .iter()
        .any(|engine| engine.path.to_string_lossy().contains(PODMAN))
    {
        findings.extend(podman_without_socket());
    }
    let targets = scan.targets.len();
    // What engines did not tell is said of each.
    let gaps: Vec<_> = scan
        .gaps
        .iter()
        .filter(|gap| !matches!(gap, Gap::Engine { .. }))
        .collect();
    let found = format!("{targets} were found");
    findings.push(if gaps.is_empty() {
        Finding::works("targets", found)
    } else {
        let sentences: Vec<String> = gaps.iter().map(ToString::to_string).collect();
        let remedies: BTreeSet<&str> = gaps.iter().map(|gap| gap.remedy()).collect();
        let remedies: Vec<&str> = remedies.into_iter().collect();
        Finding::limited("targets", format!("{found}; {}", sentences.join("; ")))
            .costs("others are not found")
            .remedy(remedies.join("; "))
    });
    findings
}
