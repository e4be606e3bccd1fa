//! Has an engine asked by a process without rights: what it answers is HTTP, JSON and messages of gRPC in the words of whoever
//! has the socket, which may be anybody.
//!
//! There is one process for each engine that is asked (`child.rs`). The server finds and opens the socket, connects to it, and
//! looks who listens there. It puts the process's questions to an engine of Docker's API, and hands the answers over
//! (`relay.rs`); gRPC takes turns of both sides, for which it hands over the connection. It is told one container after the
//! other (`wire.rs`). Whoever takes the process over can say what the engine could have said, and no more than an engine may say
//! is listened to.

mod child;
mod relay;
mod wire;

use std::{io, time::Duration};

use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _, Interest},
    net::UnixStream,
    process::Child,
    time::timeout,
};

pub use self::child::ask_engine_if_asked;
#[cfg(any(test, feature = "fuzzing"))]
pub(super) use self::wire::fuzzing;
pub(super) use self::{
    child::Line,
    wire::{Question, is_word},
};
use self::{
    relay::Relay,
    wire::{LEN_LEN, MAX_TOLD_LEN, Order, Told},
};
use super::{
    budget::{EngineBudget, MAX_DETAILS_LEN},
    docker_starts::MAX_EVENTS_LEN,
    engine_socket::{Api, EngineSocket},
    starts::IsOf,
    workload::{KnownPids, Workload},
};
use crate::{error::note_want, sys};

/// How long the process may take until it has given up its rights. That is none of the engine's time.
const START_PATIENCE: Duration = Duration::from_secs(2);

/// Most questions that are put to an engine beside one for each container: one for the list.
const LISTS: usize = 1;

/// Most questions that are put to an engine to learn what it starts, and how many at the same time: one may be answered only
/// once the engine has started what it is about.
const MAX_START_QUESTIONS: usize = 8192;
const START_QUESTIONS_AT_ONCE: usize = 8;

/// Why an engine told nothing, or not everything.
#[derive(Debug, thiserror::Error)]
pub(super) enum AskerError {
    /// There is nobody to ask it.
    #[error("the process that asks it could not be started")]
    Start(#[source] io::Error),
    /// As for want of memory, or of time that the CPU has for it.
    #[error("the process that asks it was ended")]
    Ended(#[source] io::Error),
    /// It has been taken over, or is none of ours.
    #[error("the process that asks it says what it never would")]
    Forged,
    /// All engines together have told enough.
    #[error("it tells of more than is kept of all engines")]
    TooMuch,
    /// What became of asking.
    #[error("{}", .0.sentence)]
    Engine(Failure),
}

/// What an engine did not tell, and why not.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Failure {
    /// Whether nobody answered as an engine does, that runs or fails.
    pub(super) is_of_no_engine: bool,
    /// Whether it speaks the CRI, and has nothing to say there.
    pub(super) is_unimplemented: bool,
    pub(super) sentence: String,
}

/// A process that asks one engine, ended when dropped.
pub(super) struct Asker {
    line: UnixStream,
    #[expect(dead_code, reason = "ends the process when it is dropped")]
    child: Option<Child>,
}

impl Asker {
    /// Starts one, which waits for its order.
    ///
    /// # Errors
    /// When there is none in time.
    pub(super) async fn start() -> Result<Self, AskerError> {
        let begin = || {
            let (line, theirs) = std::os::unix::net::UnixStream::pair().inspect_err(note_want)?;
            line.set_nonblocking(true)?;
            let child = start(theirs).inspect_err(note_want)?;
            let line = UnixStream::from_std(line)?;
            Ok(Self { line, child })
        };
        let mut asker = begin().map_err(AskerError::Start)?;
        match timeout(START_PATIENCE, asker.hear()).await {
            Ok(Ok((Told::Ready, _))) => Ok(asker),
            Ok(Ok(_)) => Err(AskerError::Forged),
            Ok(Err(error)) => Err(error),
            Err(_) => Err(AskerError::Start(io::ErrorKind::TimedOut.into())),
        }
    }

    /// Finds what an engine runs: `found` has it as soon as it is known. An engine of the CRI is asked by `checked`, a connection
    /// to `socket` of which is known who listens. What is in `known` is not asked for.
    ///
    /// # Errors
    /// When the engine cannot be asked, or says something wrong. What was found before that is found.
    pub(super) async fn workloads(
        mut self,
        socket: &EngineSocket,
        checked: UnixStream,
        known: &KnownPids,
        allowance: &mut EngineBudget,
        found: &mut Vec<Workload>,
    ) -> Result<(), AskerError> {
        let order = Order::Workloads {
            api: socket.api,
            bounds: allowance.bounds(),
            known: known.clone(),
        };
        self.order(&order).await?;
        self.listen(socket, checked, allowance, found).await
    }

    /// The state of a container that does not run, by its name or identifier; nothing when there is none.
    pub(super) async fn state_at_rest(mut self, socket: &EngineSocket, name: &str) -> Option<String> {
        let order = Order::AtRest(name.to_owned());
        self.order(&order).await.ok()?;
        let mut relay = Relay::new(1);
        let answer = match self.hear().await.ok()? {
            (Told::Ask(question), _) => relay.ask(socket, &question, MAX_DETAILS_LEN).await.ok()?,
            _ => return None,
        };
        self.give(answer).await.ok()?;
        match self.hear().await.ok()? {
            (Told::AtRest(state), _) => state,
            _ => None,
        }
    }

    /// The container that is being started in a namespace, as `is_of` says, as soon as the engine tells of it. An engine of the CRI is asked by
    /// `checked`. Asks again and again, and so has to be bounded in time.
    ///
    /// # Errors
    /// When the engine cannot be asked, or says something wrong.
    pub(super) async fn starting(
        mut self,
        socket: &EngineSocket,
        checked: UnixStream,
        is_of: IsOf<'_>,
    ) -> Result<Workload, AskerError> {
        self.order(&Order::Starting(socket.api)).await?;
        let mut checked = Some(checked);
        let mut relay = Relay::new(START_QUESTIONS_AT_ONCE);
        let mut questions = MAX_START_QUESTIONS;
        loop {
            match self.hear().await?.0 {
                Told::Starting(starting) => {
                    let workload = starting.workload.clone();
                    if is_of(starting).await {
                        return Ok(workload);
                    }
                }
                Told::Connect => self.give_checked(socket, &relay, &mut checked).await?,
                Told::Ask(_) if socket.api == Some(Api::Cri) => return Err(AskerError::Forged),
                Told::Ask(question) if question != Question::List => {
                    questions = questions.checked_sub(1).ok_or(AskerError::Forged)?;
                    match relay.ask(socket, &question, MAX_EVENTS_LEN).await {
                        Ok(answer) => self.give(answer).await?,
                        Err(error) => self.refuse(&error).await?,
                    }
                }
                Told::Done(Err(failure)) => return Err(AskerError::Engine(failure)),
                _ => return Err(AskerError::Forged),
            }
        }
    }

    async fn order(&mut self, order: &Order) -> Result<(), AskerError> {
        let written = self.line.write_all(&order.encode()).await;
        written.map_err(AskerError::Ended)
    }

    /// Gives the process what it asks for, and takes what it tells, within its bounds.
    async fn listen(
        &mut self,
        socket: &EngineSocket,
        checked: UnixStream,
        allowance: &mut EngineBudget,
        found: &mut Vec<Workload>,
    ) -> Result<(), AskerError> {
        let mut checked = Some(checked);
        let mut relay = Relay::new(allowance.parallel);
        let mut questions = allowance.workloads + LISTS;
        let mut has_left_out = false;
        loop {
            let (told, len) = self.hear().await?;
            match told {
                Told::Workload(_) if found.len() == allowance.workloads => return Err(AskerError::Forged),
                Told::Workload(workload) if allowance.take(size_of::<Workload>() + len) => {
                    found.push(workload);
                }
                Told::Workload(_) => has_left_out = true,
                Told::Ask(_) if socket.api == Some(Api::Cri) => return Err(AskerError::Forged),
                Told::Ask(question) => {
                    questions = questions.checked_sub(1).ok_or(AskerError::Forged)?;
                    let most = match &question {
                        Question::List => allowance.list,
                        Question::Details(_) => allowance.details,
                        Question::Recent | Question::RecentOfPodman | Question::Network(_) => {
                            return Err(AskerError::Forged);
                        }
                    };
                    match relay.ask(socket, &question, most).await {
                        Ok(answer) => self.give(answer).await?,
                        Err(error) => self.refuse(&error).await?,
                    }
                }
                Told::Connect => self.give_checked(socket, &relay, &mut checked).await?,
                Told::Ready | Told::AtRest(_) | Told::Starting(_) => return Err(AskerError::Forged),
                Told::Done(_) if has_left_out => return Err(AskerError::TooMuch),
                Told::Done(done) => return done.map_err(AskerError::Engine),
            }
        }
    }

    /// What it says next, and how many bytes that is.
    async fn hear(&mut self) -> Result<(Told, usize), AskerError> {
        let mut len = [0; LEN_LEN];
        let read = self.line.read_exact(&mut len).await;
        read.map_err(AskerError::Ended)?;
        let len = u32::from_ne_bytes(len) as usize;
        if len > MAX_TOLD_LEN {
            return Err(AskerError::Forged);
        }
        let mut told = vec![0; len];
        let read = self.line.read_exact(&mut told).await;
        read.map_err(AskerError::Ended)?;
        let told = Told::decode(&told).ok_or(AskerError::Forged)?;
        Ok((told, len))
    }

    /// Hands the connection over to an engine of the CRI, and no other: at a socket of Docker's API one may have it do anything.
    async fn give_checked(
        &self,
        socket: &EngineSocket,
        relay: &Relay,
        checked: &mut Option<UnixStream>,
    ) -> Result<(), AskerError> {
        let is_of_cri = match socket.api {
            Some(api) => api == Api::Cri,
            None => relay.is_of_another_api(),
        };
        let checked = checked.take().filter(|_| is_of_cri);
        self.give(checked.ok_or(AskerError::Forged)?).await
    }

    /// Hands a connection over.
    async fn give(&self, connection: UnixStream) -> Result<(), AskerError> {
        self.answer(0, Some(connection)).await
    }

    /// Tells that there is no connection.
    async fn refuse(&self, error: &io::Error) -> Result<(), AskerError> {
        let errno = error.raw_os_error().unwrap_or(nix::libc::ETIMEDOUT);
        self.answer(errno, None).await
    }

    async fn answer(&self, errno: i32, connection: Option<UnixStream>) -> Result<(), AskerError> {
        let send = || sys::send_with(&self.line, &errno.to_ne_bytes(), connection.as_ref());
        let sent = self.line.async_io(Interest::WRITABLE, send).await;
        sent.map_err(AskerError::Ended)
    }
}

/// Starts the process, at the other end.
#[cfg(not(test))]
fn start(theirs: std::os::unix::net::UnixStream) -> io::Result<Option<Child>> {
    use std::{os::fd::OwnedFd, process::Stdio};

    let child = tokio::process::Command::new("/proc/self/exe")
        .arg0("packetflix")
        .arg(child::VERB)
        .env_clear()
        .current_dir("/")
        .stdin(OwnedFd::from(theirs))
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        // Whoever gives up waiting for it ends it too.
        .kill_on_drop(true)
        .spawn()?;
    Ok(Some(child))
}

/// A thread in its place: the program that runs these tests is not ours.
#[cfg(test)]
fn start(theirs: std::os::unix::net::UnixStream) -> io::Result<Option<Child>> {
    theirs.set_nonblocking(true)?;
    std::thread::spawn(move || child::runtime().unwrap().block_on(child::answer(theirs)));
    Ok(None)
}

#[cfg(test)]
mod tests;
