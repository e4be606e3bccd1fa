//! Asks all engines at the same time for what they run. One that hangs or lies costs its own targets and a second.

use std::{io::ErrorKind, time::Duration};

use futures_util::{
    StreamExt as _,
    future::{join, join_all},
    stream,
};
use tokio::{
    net::UnixStream,
    time::{Instant, timeout},
};

use super::{
    budget::{Budget, EngineBudget},
    cri::{self, CriError},
    docker::{self, DockerError},
    engine::{Engine, Heard},
    engine_socket::{Api, EngineSocket, Origin},
    peer::{PeerError, SocketPeer},
    problem::Problem,
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
    Docker(#[from] DockerError),
    #[error(transparent)]
    Cri(#[from] CriError),
    #[error("it speaks neither Docker's API ({docker}) nor the CRI ({cri})")]
    Unknown { docker: String, cri: String },
}

/// What to do about an engine that takes too long.
const SLOW: &str = "see whether the engine itself answers (docker ps, crictl ps), and try again";

impl EngineError {
    /// Whether nobody answered as an engine does, that runs or fails.
    fn is_of_no_engine(&self) -> bool {
        match self {
            Self::Docker(error) => error.is_of_no_engine(),
            Self::Cri(error) => error.is_of_no_engine(),
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
            Self::Docker(_) | Self::Cri(_) | Self::Unknown { .. } => {
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
        remedy: SLOW,
    };
    Some(Engine::unasked(socket, problem))
}

impl Problem {
    /// Of an engine that is silent.
    fn slow() -> Self {
        Self {
            sentence: format!("it did not tell everything within {} s", PATIENCE.as_secs()),
            remedy: SLOW,
        }
    }
}

/// The state of a container that does not run, as one of the engines tells it that are asked by name.
pub(super) async fn state_at_rest(sockets: &[EngineSocket], name: &str) -> Option<String> {
    let speak_docker = sockets.iter().filter(|socket| socket.api != Some(Api::Cri));
    let asked = speak_docker.map(|socket| timeout(PATIENCE, docker::state_at_rest(socket, name)));
    let answers = join_all(asked).await;
    answers.into_iter().find_map(|answer| answer.ok().flatten())
}

/// Asks one; `None` when there is no engine behind a socket at a well-known place.
async fn ask(socket: &EngineSocket, known: KnownPids, mut allowance: EngineBudget) -> Option<Engine> {
    let mut engine = Engine::of(socket);
    let asked = timeout(PATIENCE, listen_to(socket, &known, &mut allowance, &mut engine)).await;
    engine.heard = if asked.is_ok() {
        Heard::Answered
    } else {
        Heard::Silent
    };
    engine.problem = match asked {
        Ok(Ok(())) => None,
        // A socket outlives its engine, and containerd without the CRI is another's servant.
        Ok(Err(EngineError::Connect(_) | EngineError::Cri(CriError::Unimplemented { .. })))
            if socket.origin != Origin::Named =>
        {
            return None;
        }
        // An engine has sockets for other purposes, too.
        Ok(Err(error)) if socket.found_by.is_some() && error.is_of_no_engine() => return None,
        Ok(Err(error)) => {
            let blame = match &error {
                EngineError::Denied(_) => Capability::DacOverride.blame(&error),
                _ => String::new(),
            };
            Some(Problem {
                // It may have the engine's own words.
                sentence: readable(error::chain(&error).as_bytes()) + &blame,
                remedy: error.remedy(),
            })
        }
        Err(_) => Some(Problem::slow()),
    };
    Some(engine)
}

async fn listen_to(
    socket: &EngineSocket,
    known: &KnownPids,
    allowance: &mut EngineBudget,
    engine: &mut Engine,
) -> Result<(), EngineError> {
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
    engine.peer = Some(peer);
    let found = &mut engine.workloads;
    match socket.api {
        Some(Api::Docker) => Ok(docker::containers(socket, known, allowance, found).await?),
        Some(Api::Cri) => Ok(cri::pods(stream, known, allowance, found).await?),
        None => try_both(socket, stream, known, allowance, found).await,
    }
}

/// Docker's API is tried first: an engine of the CRI notices at once that it is not spoken to.
async fn try_both(
    socket: &EngineSocket,
    stream: UnixStream,
    known: &KnownPids,
    allowance: &mut EngineBudget,
    found: &mut Vec<Workload>,
) -> Result<(), EngineError> {
    let Err(docker) = docker::containers(socket, known, allowance, found).await else {
        return Ok(());
    };
    if !matches!(docker, DockerError::Request { .. }) {
        return Err(docker.into());
    }
    cri::pods(stream, known, allowance, found)
        .await
        .map_err(|cri| EngineError::Unknown {
            docker: error::chain(&docker),
            cri: error::chain(&cri),
        })
}
