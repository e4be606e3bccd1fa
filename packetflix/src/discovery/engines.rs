//! Asks all engines at the same time for what they run. One that hangs or lies costs its own targets and a second.

use std::{io::ErrorKind, path::PathBuf, time::Duration};

use futures_util::{
    StreamExt as _,
    future::{join, join_all},
    stream,
    stream::FuturesUnordered,
};
use tokio::{
    net::UnixStream,
    time::{Instant, timeout},
};

use super::{
    asker::{Asker, AskerError},
    budget::{Budget, EngineBudget},
    docker::may_be_name,
    engine::{Engine, Heard},
    engine_socket::{Api, EngineSocket, Origin},
    peer::{PeerError, SocketPeer},
    problem::Problem,
    starts::IsOf,
    turns::EngineTurns,
    workload::{KnownPids, Workload},
};
use crate::{
    capabilities::Capability,
    error::{self, is_exhaustion},
    lookout::Owner,
    text::readable,
};

/// How long an engine gets for all that it tells.
const PATIENCE: Duration = Duration::from_secs(1);

/// How long all engines get that are not the host's, and how many of them are asked at the same time.
const PATIENCE_WITH_OTHERS: Duration = Duration::from_secs(2);
const OTHERS_AT_ONCE: usize = 8;

/// Why an engine told nothing.
#[derive(Debug, thiserror::Error)]
enum EngineError {
    #[error("nobody listens")]
    Connect(#[source] std::io::Error),
    #[error("too many want to be connected to it, or there are too few descriptors for that")]
    Busy(#[source] std::io::Error),
    #[error("it may not be connected to")]
    Denied(#[source] std::io::Error),
    #[error(transparent)]
    Peer(#[from] PeerError),
    #[error("who listens there is not the user {user}, whose place it is")]
    NotTheirs { user: u32 },
    #[error(
        "process {pid} listens there, and not process {found_by} that has the socket, which may be another's"
    )]
    NotItself { pid: u32, found_by: u32 },
    #[error(transparent)]
    Asker(#[from] AskerError),
}

/// What to do about an engine that takes too long.
const SLOW: &str = "see whether the engine itself answers (docker ps, crictl ps), and try again";

impl EngineError {
    /// Whether nobody answered as an engine does, that runs or fails.
    fn is_of_no_engine(&self) -> bool {
        matches!(self, Self::Asker(AskerError::Engine(failure)) if failure.is_of_no_engine)
    }

    /// Whether there is no engine, though something is there.
    fn is_no_engine(&self) -> bool {
        match self {
            Self::Connect(_) => true,
            Self::Asker(AskerError::Engine(failure)) => failure.is_unimplemented,
            _ => false,
        }
    }

    /// What to do about it.
    fn remedy(&self) -> &'static str {
        match self {
            Self::Connect(_) => {
                "start the engine, or name the socket at which it listens with --engine-socket"
            }
            Self::Busy(_) => "see why so many ask the engine, and whether the service may open more files",
            Self::Denied(_) => Problem::DENIED,
            Self::NotItself { .. } => "if it is an engine's, name the socket with --engine-socket",
            Self::Peer(_) | Self::NotTheirs { .. } => {
                "start the engine anew, so that its own process listens at its socket"
            }
            Self::Asker(AskerError::Start(_) | AskerError::Ended(_)) => {
                "see whether the service may start processes, and has memory for them (dmesg)"
            }
            Self::Asker(AskerError::Forged | AskerError::TooMuch | AskerError::Engine(_)) => {
                "see the log of the engine; if it is none, name the socket of one with --engine-socket"
            }
        }
    }
}

/// Asks them all, and gives their answers in the order of the sockets: the host's at once, and of the others some at a time,
/// whose turn it is first. `known` has the PIDs for each engine's identifier.
pub(super) async fn ask_all(
    sockets: &[EngineSocket],
    turns: &EngineTurns,
    known: impl Fn((u64, u64)) -> KnownPids,
) -> Vec<Engine> {
    let budget = Budget::new();
    let deadline = Instant::now() + PATIENCE_WITH_OTHERS;
    let (mut of_host, mut others, mut answers) = (Vec::new(), Vec::new(), Vec::new());
    for index in turns.order(sockets) {
        let socket = &sockets[index];
        let (known, owner) = (known(socket.id), socket.place.owner);
        let allowance = budget.allow(owner);
        match owner {
            Owner::Host => of_host.push(async move { (index, ask(socket, known, allowance).await) }),
            _ if turns.may_be_asked(socket) => {
                let asked = ask_in_time(socket, known, allowance, deadline);
                others.push(async move { (index, asked.await) });
            }
            // As it was when it was asked: that is no news.
            _ => answers.push((index, Some(Engine::unasked(socket, Problem::slow())))),
        }
    }
    let others = stream::iter(others).buffer_unordered(OTHERS_AT_ONCE);
    let (of_host, others) = join(join_all(of_host), others.collect::<Vec<_>>()).await;
    answers.extend(of_host.into_iter().chain(others));
    answers.sort_by_key(|(index, _)| *index);
    answers.into_iter().filter_map(|(_, engine)| engine).collect()
}

/// Asks one, unless it is too late.
async fn ask_in_time(
    socket: &EngineSocket,
    known: KnownPids,
    allowance: EngineBudget,
    deadline: Instant,
) -> Option<Engine> {
    if Instant::now() < deadline {
        return ask(socket, known, allowance).await;
    }
    let problem = Problem {
        sentence: "it was not asked: others took too long".to_owned(),
        remedy: SLOW.into(),
    };
    Some(Engine::unasked(socket, problem))
}

impl Problem {
    /// Of an engine that is silent.
    fn slow() -> Self {
        Self {
            sentence: format!("it did not tell everything within {} s", PATIENCE.as_secs()),
            remedy: SLOW.into(),
        }
    }
}

/// The state of a container that does not run, as one of the engines tells it that are asked by name.
pub(super) async fn state_at_rest(sockets: &[EngineSocket], name: &str) -> Option<String> {
    if !may_be_name(name) {
        return None;
    }
    let speak_docker = sockets.iter().filter(|socket| socket.api != Some(Api::Cri));
    let asked = speak_docker.map(|socket| async move {
        let asker = Asker::start().await.ok()?;
        let state = timeout(PATIENCE, asker.state_at_rest(socket, name)).await;
        state.ok().flatten()
    });
    join_all(asked).await.into_iter().flatten().next()
}

/// The container that has a network namespace which has come, as `is_of` says, and one of the host's engines tells that is starting it, and the socket
/// of that.
pub(super) async fn starting_in(sockets: &[EngineSocket], is_of: IsOf<'_>) -> Option<(PathBuf, Workload)> {
    let asked = sockets.iter().map(|socket| async move {
        let told = start_told_by(socket, is_of).await?;
        let told = told.inspect_err(|error| {
            tracing::debug!(error = %error::chain(error), "an engine does not tell what it starts");
        });
        Some((socket.path.clone(), told.ok()?))
    });
    let mut answers = asked.collect::<FuturesUnordered<_>>();
    while let Some(answer) = answers.next().await {
        if answer.is_some() {
            return answer;
        }
    }
    None
}

/// What an engine of the host's starts in a namespace; nothing where it is another's engine.
async fn start_told_by(socket: &EngineSocket, is_of: IsOf<'_>) -> Option<Result<Workload, AskerError>> {
    let is_hosts = matches!(socket.origin, Origin::Host | Origin::Named);
    if !is_hosts || socket.place.owner != Owner::Host {
        return None;
    }
    let stream = socket.connect().await.ok()?;
    // What an engine elsewhere mounts, it mounts elsewhere.
    SocketPeer::of(&stream).ok()?.has_mounts_of_host().then_some(())?;
    match Asker::start().await {
        Ok(asker) => Some(asker.starting(socket, stream, is_of).await),
        Err(error) => Some(Err(error)),
    }
}

/// Asks one; `None` when there is no engine behind a socket at a well-known place.
async fn ask(socket: &EngineSocket, known: KnownPids, mut allowance: EngineBudget) -> Option<Engine> {
    let mut engine = Engine::of(socket);
    let asked = listen_to(socket, &known, &mut allowance, &mut engine).await;
    engine.heard = if asked.is_some() {
        Heard::Answered
    } else {
        Heard::Silent
    };
    engine.problem = match asked {
        Some(Ok(())) => None,
        // A socket outlives its engine, and containerd without the CRI is another's servant.
        Some(Err(error)) if socket.origin != Origin::Named && error.is_no_engine() => return None,
        // An engine has sockets for other purposes, too.
        Some(Err(error)) if socket.found_by.is_some() && error.is_of_no_engine() => return None,
        Some(Err(error)) => {
            let blame = match &error {
                EngineError::Denied(_) => Capability::DacOverride.blame(&error),
                _ => String::new(),
            };
            Some(Problem {
                // It may have the engine's own words.
                sentence: readable(error::chain(&error).as_bytes()) + &blame,
                remedy: error.remedy().into(),
            })
        }
        None => Some(Problem::slow()),
    };
    Some(engine)
}

/// Listens to an engine for as long as it is given; `None` when it takes longer.
async fn listen_to(
    socket: &EngineSocket,
    known: &KnownPids,
    allowance: &mut EngineBudget,
    engine: &mut Engine,
) -> Option<Result<(), EngineError>> {
    let began = Instant::now();
    let (stream, peer) = match timeout(PATIENCE, meet(socket, engine)).await.ok()? {
        Ok(met) => met,
        Err(error) => return Some(Err(error)),
    };
    engine.peer = Some(peer);
    let left = PATIENCE.saturating_sub(began.elapsed());
    let asker = match Asker::start().await {
        Ok(asker) => asker,
        Err(error) => return Some(Err(error.into())),
    };
    let asked = asker.workloads(socket, stream, known, allowance, &mut engine.workloads);
    let told = timeout(left, asked).await.ok()?;
    Some(told.map_err(EngineError::from))
}

/// Connects to an engine, if who listens there may.
async fn meet(socket: &EngineSocket, engine: &mut Engine) -> Result<(UnixStream, SocketPeer), EngineError> {
    let stream = socket.connect().await.map_err(|error| match error.kind() {
        ErrorKind::PermissionDenied => EngineError::Denied(error),
        _ if is_exhaustion(&error) => EngineError::Busy(error),
        _ => EngineError::Connect(error),
    })?;
    let peer = SocketPeer::of(&stream)?;
    if let Origin::User(user) = socket.origin
        && user != peer.uid
    {
        return Err(EngineError::NotTheirs { user });
    }
    if let Some(process) = &socket.found_by
        && !peer.is_still(process)
    {
        // It stands for nobody, and so for nobody's containers that are not told of.
        engine.origin = Origin::Elsewhere;
        return Err(EngineError::NotItself {
            pid: peer.pid,
            found_by: process.pid,
        });
    }
    Ok((stream, peer))
}
