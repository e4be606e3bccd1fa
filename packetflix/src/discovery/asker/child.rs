//! The process that asks one engine: our own program, executed anew, which gives up its rights before it is told what to ask.
//!
//! What remains to it are memory, what it is given to read, and saying what it has heard, all of it bounded.

use std::{
    collections::VecDeque,
    ffi::{OsStr, OsString},
    io,
    os::{fd::AsFd as _, unix::net::UnixStream as StdUnixStream},
    process::ExitCode,
    sync::{Arc, Mutex, PoisonError},
};

use futures_util::future::join;
use nix::libc;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _, Interest},
    net::{UnixStream, unix::OwnedReadHalf},
    runtime::{self, Runtime},
    sync::{
        mpsc::{UnboundedSender, unbounded_channel},
        oneshot,
    },
};

use super::{
    super::{
        budget::{Bounds, EngineBudget},
        cri::{self, CriError},
        docker::{self, DockerError},
        docker_starts,
        engine_socket::Api,
        starts::Starting,
        workload::{KnownPids, Workload},
    },
    Failure,
    wire::{LEN_LEN, MAX_ORDER_LEN, Order, Question, Told},
};
use crate::{
    confined::{self, SystemCall, begin, give_up_rights},
    error, sys,
};

/// First argument of a process that is to ask: no flag of ours, nor one that may ever be.
pub(super) const VERB: &str = "ask-engine";

/// Bytes of memory that it may take beside what it has when it begins: its bounds for what it keeps, and lists while they are read.
const ROOM: u64 = 256 << 20;
/// Seconds of CPU time, of which it is given one by the clock.
const CPU_SECONDS: u64 = 5;
/// Descriptors that it may have: its standard ones, the line, what it waits with, and where answers come.
const DESCRIPTORS: u64 = 48;

/// What the kernel does for the process after it has given up its rights, beside what it does for all such processes.
const SYSTEM_CALLS: &[libc::c_long] = &[
    libc::SYS_readv,
    libc::SYS_recvfrom,
    libc::SYS_recvmsg,
    libc::SYS_writev,
    libc::SYS_sendto,
    libc::SYS_sendmsg,
    libc::SYS_shutdown,
    libc::SYS_fcntl,
    libc::SYS_epoll_ctl,
    libc::SYS_epoll_pwait,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_epoll_wait,
    libc::SYS_mprotect,
];

/// Why an engine told nothing, or not everything.
#[derive(Debug, thiserror::Error)]
enum AskError {
    #[error(transparent)]
    Docker(#[from] DockerError),
    #[error(transparent)]
    Cri(#[from] CriError),
    #[error("it speaks neither Docker's API ({docker}) nor the CRI ({cri})")]
    Unknown { docker: String, cri: String },
    #[error("it tells more of a container or pod than is taken")]
    TooLong,
    #[error("it cannot be connected to")]
    Connect(#[source] io::Error),
}

impl From<AskError> for Failure {
    fn from(error: AskError) -> Self {
        Self {
            is_of_no_engine: match &error {
                AskError::Docker(error) => error.is_of_no_engine(),
                AskError::Cri(error) => error.is_of_no_engine(),
                _ => false,
            },
            is_unimplemented: matches!(error, AskError::Cri(CriError::Unimplemented { .. })),
            sentence: error::chain(&error),
        }
    }
}

/// Asks an engine, and tells how the process is to end, when its arguments say that this is what it is for: to be called before
/// anything was opened and while there is one thread.
pub fn ask_engine_if_asked(mut arguments: impl Iterator<Item = OsString>) -> Option<ExitCode> {
    let is_asked = arguments.nth(1).as_deref() == Some(OsStr::new(VERB)) && arguments.next().is_none();
    is_asked.then(|| serve().map_or(ExitCode::FAILURE, |()| ExitCode::SUCCESS))
}

fn serve() -> Result<(), confined::Failure> {
    let failed = confined::Failure::of;
    begin(ROOM, CPU_SECONDS)?;
    let line = io::stdin().as_fd().try_clone_to_owned();
    let line = StdUnixStream::from(line.map_err(failed("there is nobody to answer"))?);
    let set = line.set_nonblocking(true);
    set.map_err(failed("the line cannot be waited for"))?;
    let runtime = runtime().map_err(failed("connections could not be waited for"))?;
    give_up_rights(DESCRIPTORS, &SystemCall::of_all(SYSTEM_CALLS))?;
    let answered = runtime.block_on(answer(line));
    answered.map_err(failed("an answer could not be given"))
}

/// One that takes no thread.
pub(super) fn runtime() -> io::Result<Runtime> {
    runtime::Builder::new_current_thread().enable_all().build()
}

/// Does what it is ordered to do over a line that does not block, for as long as anybody listens.
pub(super) async fn answer(line: StdUnixStream) -> io::Result<()> {
    let (mut read, mut write) = UnixStream::from_std(line)?.into_split();
    if let Some(ready) = Told::Ready.encode() {
        write.write_all(&ready).await?;
    }
    let order = order(&mut read).await?;
    let (says, mut said) = unbounded_channel::<Vec<u8>>();
    let waiting = Waiting::default();
    let telling = async {
        while let Some(words) = said.recv().await {
            write.write_all(&words).await?;
        }
        Ok(())
    };
    let line = Line {
        says,
        waiting: Arc::clone(&waiting),
    };
    let asking = carry_out(order, line);
    tokio::select! {
        ((), told) = join(asking, telling) => told,
        error = take_connections(&read, &waiting) => Err(error),
    }
}

async fn order(read: &mut OwnedReadHalf) -> io::Result<Order> {
    let mut len = [0; LEN_LEN];
    read.read_exact(&mut len).await?;
    let len = u32::from_ne_bytes(len) as usize;
    if len > MAX_ORDER_LEN {
        return Err(io::ErrorKind::InvalidData.into());
    }
    let mut order = vec![0; len];
    read.read_exact(&mut order).await?;
    Order::decode(&order).ok_or_else(|| io::ErrorKind::InvalidData.into())
}

/// Takes what the server gives, until that is gone; says why there will be no more.
async fn take_connections(read: &OwnedReadHalf, waiting: &Waiting) -> io::Error {
    let line: &UnixStream = read.as_ref();
    loop {
        let mut errno = [0; size_of::<i32>()];
        let receive = || sys::receive_with(line, &mut errno);
        let (len, connection) = match line.async_io(Interest::READABLE, receive).await {
            Ok(received) => received,
            Err(error) => return error,
        };
        if len != size_of::<i32>() {
            return io::ErrorKind::UnexpectedEof.into();
        }
        let connection = match connection {
            Some(connection) => UnixStream::from_std(connection.into()),
            None => Err(io::Error::from_raw_os_error(i32::from_ne_bytes(errno))),
        };
        let first = waiting.lock().unwrap_or_else(PoisonError::into_inner).pop_front();
        // Whoever has waited for it may have given up.
        let _ = first.map(|first| first.send(connection));
    }
}

/// Who waits for what the server gives, in the order in which it was asked for that.
type Waiting = Arc<Mutex<VecDeque<oneshot::Sender<io::Result<UnixStream>>>>>;

/// To the server.
pub(in crate::discovery) struct Line {
    /// All that is told in one ask is bounded by what may be kept.
    says: UnboundedSender<Vec<u8>>,
    waiting: Waiting,
}

impl Line {
    /// Where the engine's answer to a question comes.
    ///
    /// # Errors
    /// When nobody listens, or too many wait already.
    pub(in crate::discovery) async fn ask(&self, question: Question) -> io::Result<UnixStream> {
        self.connection_for(&Told::Ask(question)).await
    }

    async fn connection_for(&self, told: &Told) -> io::Result<UnixStream> {
        let (gives, given) = oneshot::channel();
        let waiting = self.waiting.lock();
        waiting.unwrap_or_else(PoisonError::into_inner).push_back(gives);
        self.tell(told);
        given
            .await
            .unwrap_or_else(|_| Err(io::ErrorKind::BrokenPipe.into()))
    }

    /// Says something; `false` if that is longer than may be.
    fn tell(&self, told: &Told) -> bool {
        let words = told.encode();
        // Nobody listens once the server is gone.
        words.is_some_and(|words| self.says.send(words).is_ok())
    }
}

/// What was found, which the server is told at once.
struct Found<'a> {
    line: &'a Line,
    has_more: bool,
}

impl Extend<Workload> for Found<'_> {
    fn extend<I: IntoIterator<Item = Workload>>(&mut self, found: I) {
        for workload in found {
            self.has_more |= !self.line.tell(&Told::Workload(workload));
        }
    }
}

async fn carry_out(order: Order, line: Line) {
    match order {
        Order::Workloads { api, bounds, known } => {
            let found = Found {
                line: &line,
                has_more: false,
            };
            let asked = find(api, bounds, &known, found).await;
            line.tell(&Told::Done(asked.map_err(Failure::from)));
        }
        Order::AtRest(name) => {
            let state = docker::state_at_rest(&line, &name).await;
            line.tell(&Told::AtRest(state));
        }
        Order::Starting(api) => {
            let failed = tell_starts(api, &line).await;
            line.tell(&Told::Done(Err(failed.into())));
        }
    }
}

/// Tells what is being started, again and again, until that cannot be asked for.
async fn tell_starts(api: Option<Api>, line: &Line) -> AskError {
    // One that is longer than may be is not told.
    let tell = |starting: Starting| {
        line.tell(&Told::Starting(starting));
    };
    let docker = match api {
        Some(Api::Cri) => None,
        _ => Some(docker_starts::follow(line, tell).await),
    };
    match docker {
        Some(error) if api.is_some() || !matches!(error, DockerError::Request { .. }) => error.into(),
        _ => match checked(line).await {
            Ok(connection) => cri::follow_starts(connection, tell).await.into(),
            Err(error) => error,
        },
    }
}

async fn find(
    api: Option<Api>,
    bounds: Bounds,
    known: &KnownPids,
    mut found: Found<'_>,
) -> Result<(), AskError> {
    let mut allowance = EngineBudget::within(bounds);
    let line = found.line;
    match api {
        Some(Api::Docker) => docker::containers(line, known, &mut allowance, &mut found).await?,
        Some(Api::Cri) => cri::pods(checked(line).await?, known, &mut allowance, &mut found).await?,
        None => try_both(line, known, &mut allowance, &mut found).await?,
    }
    if found.has_more {
        return Err(AskError::TooLong);
    }
    Ok(())
}

/// The connection of which the server knows who listens.
async fn checked(line: &Line) -> Result<UnixStream, AskError> {
    line.connection_for(&Told::Connect)
        .await
        .map_err(AskError::Connect)
}

/// Docker's API is tried first: an engine of the CRI notices at once that it is not spoken to.
async fn try_both(
    line: &Line,
    known: &KnownPids,
    allowance: &mut EngineBudget,
    found: &mut Found<'_>,
) -> Result<(), AskError> {
    let Err(docker) = docker::containers(line, known, allowance, found).await else {
        return Ok(());
    };
    if !matches!(docker, DockerError::Request { .. }) {
        return Err(docker.into());
    }
    cri::pods(checked(line).await?, known, allowance, found)
        .await
        .map_err(|cri| AskError::Unknown {
            docker: error::chain(&docker),
            cri: error::chain(&cri),
        })
}
