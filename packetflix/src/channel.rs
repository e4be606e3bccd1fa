//! Questions and answers between the process that serves clients and the one that has the rights, over pairs of sockets.
//!
//! A line is a stream socket: one asks, the other answers, and then the next question may come. Messages are written by postcard,
//! behind their length; descriptors come with the length. What is longer or has more descriptors than any message is none. Whoever
//! loses the line, loses what was asked for there: the other end lets go of it.

use std::{
    error::Error,
    fmt,
    io::{self, IoSlice, Read as _, Write as _},
    os::{
        fd::{AsFd, AsRawFd as _, BorrowedFd, OwnedFd, RawFd},
        unix::net::UnixStream,
    },
    sync::{Mutex, PoisonError},
    time::Duration,
};

use nix::{
    errno::Errno as Number,
    sys::socket::{ControlMessage, MsgFlags, Shutdown, recv, sendmsg, shutdown},
};
use serde::{Deserialize, Serialize, de::DeserializeOwned};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, Interest};
use tokio_util::sync::CancellationToken;

use crate::{error::is_exhaustion, sys};

/// Most bytes of an answer: a list of all targets of a host is the longest.
const MAX_LEN: usize = 256 << 20;

/// Most bytes of a question, and of what else a task takes from a line: thousands of interfaces to attach to are the longest.
const MAX_QUESTION_LEN: usize = 16 << 20;

/// Most descriptors that come with a message: as many as there may be rings.
const MAX_DESCRIPTORS: usize = 1 << 14;

/// Most descriptors that the kernel passes at once: `SCM_MAX_FD` of `net/scm.h` is 253.
const AT_ONCE: usize = 128;

/// Bytes before a message: how long it is, and how many descriptors come with it.
const HEAD_LEN: usize = 8;

/// How long who has the rights may take for what takes no time.
const PATIENCE: Duration = Duration::from_secs(20);

/// What a line is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Kind {
    /// A network namespace that is opened, and what is captured there.
    Namespace,
    /// Who holds namespaces that are open.
    Holders,
    /// Whether and how captures can begin.
    Taps,
    /// Rings that no capture reads.
    Rings,
    /// The service's own connections.
    Connections,
    /// What there is to capture.
    Targets,
    /// What comes into being.
    Arrivals,
    /// Processes that help with filters.
    Helpers,
    /// Files that the service is configured with.
    Files,
    /// The account of captures.
    Account,
}

/// Nobody is at the other end any more, or what is said there cannot be understood, or there are too few descriptors to hear it.
#[derive(Debug, thiserror::Error)]
#[error("{}", match is_exhaustion(.0) {
    true => "what takes rights could not be asked for",
    false => "the process that has the service's rights does not answer",
})]
pub struct Broken(#[source] io::Error);

impl From<io::Error> for Broken {
    fn from(error: io::Error) -> Self {
        Self(error)
    }
}

/// The end at which is asked. Blocks.
pub(crate) struct Line(Mutex<UnixStream>);

/// Where lines are had.
pub(crate) struct Control {
    line: Line,
    /// Nobody answers there any more.
    broken: CancellationToken,
}

/// The end at which is answered.
pub(crate) struct Served(tokio::net::UnixStream);

/// Both ends of a new line.
pub(crate) fn pair() -> io::Result<(UnixStream, UnixStream)> {
    UnixStream::pair()
}

impl Control {
    pub(crate) fn new(socket: UnixStream) -> Self {
        Self {
            line: Line::new(socket),
            broken: CancellationToken::new(),
        }
    }

    /// A line for this.
    ///
    /// # Errors
    /// When there is nobody at the other end who answers in time, or there are too few descriptors.
    pub(crate) fn open(&self, kind: Kind) -> Result<Line, Broken> {
        let opened = self.line.ask_soon_for_descriptors::<_, Result<(), i32>>(&kind);
        let (opened, descriptors) = opened.inspect_err(|Broken(error)| {
            if !is_exhaustion(error) {
                self.broken.cancel();
            }
        })?;
        opened.map_err(io::Error::from_raw_os_error)?;
        let [socket] =
            <[OwnedFd; 1]>::try_from(descriptors).map_err(|_| io::Error::from(io::ErrorKind::InvalidData))?;
        Ok(Line::new(socket.into()))
    }

    /// Waits until no line can be had any more.
    pub(crate) async fn is_broken(&self) {
        self.broken.cancelled().await;
    }

    /// No more lines are had, and the other end knows.
    pub(crate) fn close(&self) {
        let socket = self.line.0.lock().unwrap_or_else(PoisonError::into_inner);
        // Who has left knows already.
        let _ = shutdown(socket.as_raw_fd(), Shutdown::Both);
    }

    /// Asks one question on a line of its own.
    ///
    /// # Errors
    /// When it is not answered.
    pub(crate) fn ask<Q: Serialize, A: DeserializeOwned>(
        &self,
        kind: Kind,
        question: &Q,
    ) -> Result<A, Broken> {
        self.open(kind)?.ask(question)
    }
}

impl Line {
    pub(crate) fn new(socket: UnixStream) -> Self {
        Self(Mutex::new(socket))
    }

    /// What is answered to a question.
    ///
    /// # Errors
    /// When it is not, or by something else. Nothing more can be asked then.
    pub(crate) fn ask<Q: Serialize, A: DeserializeOwned>(&self, question: &Q) -> Result<A, Broken> {
        Ok(self.ask_for_descriptors(question)?.0)
    }

    /// The same, for what does not wait for anything: an answer that takes long is none.
    ///
    /// # Errors
    /// As [`Self::ask`].
    pub(crate) fn ask_soon<Q: Serialize, A: DeserializeOwned>(&self, question: &Q) -> Result<A, Broken> {
        Ok(self.ask_soon_for_descriptors(question)?.0)
    }

    /// The same, with the descriptors that come with it.
    ///
    /// # Errors
    /// As [`Self::ask`].
    pub(crate) fn ask_soon_for_descriptors<Q: Serialize, A: DeserializeOwned>(
        &self,
        question: &Q,
    ) -> Result<(A, Vec<OwnedFd>), Broken> {
        self.ask_within(question, PATIENCE)
    }

    fn ask_within<Q: Serialize, A: DeserializeOwned>(
        &self,
        question: &Q,
        patience: Duration,
    ) -> Result<(A, Vec<OwnedFd>), Broken> {
        self.with(|socket| {
            socket.set_read_timeout(Some(patience))?;
            socket.set_write_timeout(Some(patience))?;
            let answer = ask(socket, question).map_err(late)?;
            socket.set_read_timeout(None)?;
            socket.set_write_timeout(None)?;
            Ok(answer)
        })
    }

    /// What is answered, with the descriptors that come with it.
    ///
    /// # Errors
    /// As [`Self::ask`].
    pub(crate) fn ask_for_descriptors<Q: Serialize, A: DeserializeOwned>(
        &self,
        question: &Q,
    ) -> Result<(A, Vec<OwnedFd>), Broken> {
        self.with(|socket| ask(socket, question))
    }

    fn with<T>(&self, work: impl FnOnce(&mut UnixStream) -> io::Result<io::Result<T>>) -> Result<T, Broken> {
        let mut socket = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let answer = work(&mut socket).map_err(|error| {
            // Whatever comes there is no answer to the next question.
            let _ = shutdown(socket.as_raw_fd(), Shutdown::Both);
            Broken(error)
        })?;
        answer.map_err(Broken)
    }

    /// The same line, to be waited for by a task. Must be called within a tokio runtime.
    ///
    /// # Errors
    /// When it cannot be polled.
    pub(crate) fn into_served(self) -> io::Result<Served> {
        Served::new(self.0.into_inner().unwrap_or_else(PoisonError::into_inner))
    }
}

/// Who has not answered in time, does not: that is no want of anything, though the kernel has one number for both.
fn late(error: io::Error) -> io::Error {
    match error.kind() {
        io::ErrorKind::WouldBlock => io::ErrorKind::TimedOut.into(),
        _ => error,
    }
}

/// What is answered; or that descriptors which came with it could not be had, after which others may be asked for.
fn ask<Q: Serialize, A: DeserializeOwned>(
    socket: &mut UnixStream,
    question: &Q,
) -> io::Result<io::Result<(A, Vec<OwnedFd>)>> {
    let question = encode(question)?;
    socket.write_all(&head(question.len(), 0))?;
    socket.write_all(&question)?;
    let mut head = [0; HEAD_LEN];
    let mut descriptors = receive(socket.as_fd(), &mut head)?;
    let (len, count) = checked(head)?;
    for _ in 1..count.div_ceil(AT_ONCE) {
        descriptors.extend(receive(socket.as_fd(), &mut [0])?);
    }
    let mut answer = vec![0; len];
    socket.read_exact(&mut answer)?;
    let answer = decode(&answer)?;
    Ok(match descriptors.len() == count {
        true => Ok((answer, descriptors)),
        false => Err(Number::EMFILE.into()),
    })
}

impl Served {
    /// Must be called within a tokio runtime.
    ///
    /// # Errors
    /// When it cannot be polled.
    pub(crate) fn new(socket: UnixStream) -> io::Result<Self> {
        socket.set_nonblocking(true)?;
        Ok(Self(tokio::net::UnixStream::from_std(socket)?))
    }

    /// The next that is said; `None` when nobody is at the other end any more.
    ///
    /// # Errors
    /// When it cannot be understood.
    pub(crate) async fn next<Q: DeserializeOwned>(&mut self) -> io::Result<Option<Q>> {
        let mut head = [0; HEAD_LEN];
        match self.0.read_exact(&mut head).await {
            Err(error) if is_end(&error) => return Ok(None),
            read => read?,
        };
        let (len, 0) = checked(head)? else {
            return Err(io::ErrorKind::InvalidData.into());
        };
        if len > MAX_QUESTION_LEN {
            return Err(io::ErrorKind::InvalidData.into());
        }
        let mut question = vec![0; len];
        self.0.read_exact(&mut question).await?;
        decode(&question).map(Some)
    }

    /// Waits until nobody is at the other end any more, or something more is said.
    pub(crate) async fn is_left(&self) {
        let peek = || Ok(recv(self.0.as_fd().as_raw_fd(), &mut [0], MsgFlags::MSG_PEEK)?);
        // Whatever goes wrong with waiting goes wrong with reading.
        let _ = self.0.async_io(Interest::READABLE, peek).await;
    }

    /// Says something.
    ///
    /// # Errors
    /// When nobody hears it.
    pub(crate) async fn say<A: Serialize>(&mut self, answer: &A) -> io::Result<()> {
        self.say_with(answer, &[]).await
    }

    /// Says something, and hands over descriptors.
    ///
    /// # Errors
    /// When nobody hears it, or there are too many.
    pub(crate) async fn say_with<A: Serialize>(
        &mut self,
        answer: &A,
        descriptors: &[BorrowedFd<'_>],
    ) -> io::Result<()> {
        let answer = encode(answer)?;
        if descriptors.len() > MAX_DESCRIPTORS {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        let mut groups = descriptors.chunks(AT_ONCE);
        let head = head(answer.len(), descriptors.len());
        self.send(&head, groups.next().unwrap_or_default()).await?;
        for group in groups {
            self.send(&[0], group).await?;
        }
        self.0.write_all(&answer).await
    }

    async fn send(&self, bytes: &[u8], descriptors: &[BorrowedFd<'_>]) -> io::Result<()> {
        let send = || send(self.0.as_fd(), bytes, descriptors);
        self.0.async_io(Interest::WRITABLE, send).await
    }
}

/// Opens lines for who asks for them, until nobody does any more; `begin` serves each.
///
/// # Errors
/// When what is asked cannot be understood.
pub(crate) async fn open_lines(mut control: Served, mut begin: impl FnMut(Kind, Served)) -> io::Result<()> {
    while let Some(kind) = control.next::<Kind>().await? {
        match pair().and_then(|(ours, theirs)| Ok((Served::new(ours)?, theirs))) {
            Ok((line, theirs)) => {
                begin(kind, line);
                control.say_with(&Ok::<(), i32>(()), &[theirs.as_fd()]).await?;
            }
            Err(error) => {
                let errno = error.raw_os_error().unwrap_or(nix::libc::EIO);
                control.say(&Err::<(), i32>(errno)).await?;
            }
        }
    }
    Ok(())
}

fn is_end(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::UnexpectedEof | io::ErrorKind::ConnectionReset | io::ErrorKind::BrokenPipe
    )
}

fn head(len: usize, descriptors: usize) -> [u8; HEAD_LEN] {
    let mut head = [0; HEAD_LEN];
    head[..4].copy_from_slice(&(len as u32).to_ne_bytes());
    head[4..].copy_from_slice(&(descriptors as u32).to_ne_bytes());
    head
}

/// How long the message is, and how many descriptors come with it.
fn checked([a, b, c, d, e, f, g, h]: [u8; HEAD_LEN]) -> io::Result<(usize, usize)> {
    let [len, descriptors] = [[a, b, c, d], [e, f, g, h]].map(|bytes| u32::from_ne_bytes(bytes) as usize);
    match len <= MAX_LEN && descriptors <= MAX_DESCRIPTORS {
        true => Ok((len, descriptors)),
        false => Err(io::ErrorKind::InvalidData.into()),
    }
}

/// Few bytes, which the kernel takes at once.
fn send(socket: BorrowedFd<'_>, bytes: &[u8], descriptors: &[BorrowedFd<'_>]) -> io::Result<()> {
    let descriptors: Vec<RawFd> = descriptors.iter().map(std::os::fd::AsRawFd::as_raw_fd).collect();
    let rights = [ControlMessage::ScmRights(&descriptors)];
    let rights = if descriptors.is_empty() { &[] } else { &rights[..] };
    let parts = [IoSlice::new(bytes)];
    let sent = sendmsg::<()>(socket.as_raw_fd(), &parts, rights, MsgFlags::MSG_NOSIGNAL, None)?;
    match sent == bytes.len() {
        true => Ok(()),
        false => Err(io::ErrorKind::WriteZero.into()),
    }
}

/// Fills this; gives the descriptors that came with it, as far as there is room for them.
fn receive(socket: BorrowedFd<'_>, bytes: &mut [u8]) -> io::Result<Vec<OwnedFd>> {
    let whole = bytes.len();
    let (len, descriptors) = sys::receive_all_with(socket, bytes, AT_ONCE)?;
    match len == whole {
        true => Ok(descriptors),
        false => Err(io::ErrorKind::UnexpectedEof.into()),
    }
}

fn encode(message: &impl Serialize) -> io::Result<Vec<u8>> {
    let bytes = postcard::to_stdvec(message).map_err(not_understood)?;
    match bytes.len() <= MAX_LEN {
        true => Ok(bytes),
        false => Err(io::ErrorKind::InvalidData.into()),
    }
}

/// All of the bytes, or nothing: what is behind a message is no part of it.
fn decode<T: DeserializeOwned>(bytes: &[u8]) -> io::Result<T> {
    match postcard::take_from_bytes(bytes).map_err(not_understood)? {
        (message, []) => Ok(message),
        _ => Err(io::ErrorKind::InvalidData.into()),
    }
}

fn not_understood(error: postcard::Error) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, error)
}

impl fmt::Debug for Line {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Line")
    }
}

impl fmt::Debug for Control {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Control")
    }
}

/// Paths, which need be no text.
pub(crate) mod path {
    use std::{
        ffi::OsString,
        os::unix::ffi::{OsStrExt as _, OsStringExt as _},
        path::{Path, PathBuf},
    };

    use serde::{Deserialize as _, Deserializer, Serializer};

    pub(crate) fn serialize<S: Serializer>(path: &Path, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_bytes(path.as_os_str().as_bytes())
    }

    pub(crate) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<PathBuf, D::Error> {
        let bytes = Vec::<u8>::deserialize(deserializer)?;
        Ok(OsString::from_vec(bytes).into())
    }
}

/// An error of the kernel, by its number; any other by its words.
pub(crate) mod kernel_error {
    use std::io::{Error, ErrorKind};

    use serde::{Deserialize, Deserializer, Serialize, Serializer};

    /// Kinds that somebody looks at, of errors that have no number.
    const KINDS: [ErrorKind; 5] = [
        ErrorKind::NotFound,
        ErrorKind::PermissionDenied,
        ErrorKind::TimedOut,
        ErrorKind::InvalidData,
        ErrorKind::Unsupported,
    ];

    #[derive(Serialize, Deserialize)]
    enum Sent {
        Number(i32),
        Words(Option<u8>, String),
    }

    pub(crate) fn serialize<S: Serializer>(error: &Error, serializer: S) -> Result<S::Ok, S::Error> {
        let sent = match error.raw_os_error() {
            Some(number) => Sent::Number(number),
            None => {
                let kind = KINDS.iter().position(|kind| *kind == error.kind());
                Sent::Words(kind.map(|kind| kind as u8), error.to_string())
            }
        };
        sent.serialize(serializer)
    }

    pub(crate) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Error, D::Error> {
        Ok(match Sent::deserialize(deserializer)? {
            Sent::Number(number) => Error::from_raw_os_error(number),
            Sent::Words(kind, words) => {
                let kind = kind.and_then(|kind| KINDS.get(usize::from(kind)));
                Error::new(kind.copied().unwrap_or(ErrorKind::Other), words)
            }
        })
    }
}

/// An error of the kernel, to be sent.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Errno(#[serde(with = "kernel_error")] io::Error);

impl From<io::Error> for Errno {
    fn from(error: io::Error) -> Self {
        Self(error)
    }
}

impl From<Errno> for io::Error {
    fn from(Errno(error): Errno) -> Self {
        error
    }
}

impl From<Broken> for io::Error {
    fn from(error: Broken) -> Self {
        let error: Box<dyn Error + Send + Sync> = error.into();
        Self::other(error)
    }
}

#[cfg(any(test, feature = "fuzzing"))]
pub(crate) mod fuzzing {
    use super::*;

    /// A message, if bytes are one; then it survives the way.
    pub(crate) fn message<T: Serialize + DeserializeOwned>(bytes: &[u8]) -> Option<T> {
        let message: T = decode(bytes).ok()?;
        let again = encode(&message).expect("it came as one");
        decode::<T>(&again).expect("it has just been written");
        Some(message)
    }
}

#[cfg(test)]
mod tests {
    use std::{fs::File, os::fd::AsFd as _};

    use super::*;

    #[tokio::test(flavor = "multi_thread")]
    async fn questions_are_answered_with_descriptors() {
        let (ours, theirs) = pair().unwrap();
        let answering = tokio::spawn(async move {
            let mut served = Served::new(theirs).unwrap();
            while let Some(count) = served.next::<u32>().await.unwrap() {
                let files: Vec<File> = (0..count).map(|_| File::open("/dev/null").unwrap()).collect();
                let descriptors: Vec<_> = files.iter().map(|file| file.as_fd()).collect();
                let words = "x".repeat(count as usize * 1000);
                served.say_with(&words, &descriptors).await.unwrap();
            }
        });
        let line = Line::new(ours);
        for count in [0u32, 1, 128, 129, 300, 2] {
            let asked = tokio::task::block_in_place(|| line.ask_for_descriptors::<_, String>(&count));
            let (words, descriptors) = asked.unwrap();
            assert_eq!(
                (words.len(), descriptors.len()),
                (count as usize * 1000, count as usize)
            );
        }
        drop(line);
        answering.await.unwrap();
    }

    /// Those that come too many are not kept, and the line goes on.
    #[tokio::test(flavor = "multi_thread")]
    async fn descriptors_that_cannot_be_had_cost_one_answer() {
        let (ours, theirs) = pair().unwrap();
        tokio::spawn(async move {
            let mut served = Served::new(theirs).unwrap();
            let file = File::open("/dev/null").unwrap();
            while let Some(count) = served.next::<usize>().await.unwrap() {
                let len = head(encode(&count).unwrap().len(), 3);
                served.send(&len, &vec![file.as_fd(); count]).await.unwrap();
                served.0.write_all(&encode(&count).unwrap()).await.unwrap();
            }
        });
        let line = Line::new(ours);
        for (count, is_heard) in [(3usize, true), (2, false), (3, true)] {
            let asked = tokio::task::block_in_place(|| line.ask_for_descriptors::<_, usize>(&count));
            assert_eq!(asked.is_ok_and(|(said, _)| said == count), is_heard);
        }
    }

    #[test]
    fn who_is_late_does_not_answer() {
        let (ours, _theirs) = pair().unwrap();
        let asked = Line::new(ours).ask_within::<_, u32>(&1u32, Duration::from_millis(1));
        let said = asked.unwrap_err().to_string();
        assert_eq!(said, "the process that has the service's rights does not answer");
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn what_is_no_message_ends_the_line() {
        for said in [
            head(MAX_LEN + 1, 0).to_vec(),
            head(MAX_QUESTION_LEN + 1, 0).to_vec(),
            head(1, 0).to_vec(),
            [&head(3, 0)[..], &[5, 0, 0]].concat(),
            head(0, 1).to_vec(),
        ] {
            let (ours, mut theirs) = pair().unwrap();
            let mut served = Served::new(ours).unwrap();
            theirs.write_all(&said).unwrap();
            drop(theirs);
            assert!(served.next::<u32>().await.is_err(), "{said:?}");
        }
        let (ours, mut theirs) = pair().unwrap();
        let line = Line::new(ours);
        theirs.write_all(&head(1, MAX_DESCRIPTORS + 1)).unwrap();
        for _ in 0..2 {
            assert!(line.ask::<_, u32>(&1u32).is_err());
        }
    }

    #[test]
    fn errors_and_paths_are_what_they_were() {
        for error in [
            io::Error::from_raw_os_error(nix::libc::EMFILE),
            io::ErrorKind::TimedOut.into(),
            io::Error::other("no"),
        ] {
            let (kind, words) = (error.kind(), error.to_string());
            let sent = encode(&Errno(error)).unwrap();
            let Errno(error) = decode(&sent).unwrap();
            assert_eq!((error.kind(), error.to_string()), (kind, words));
        }
        #[derive(Debug, PartialEq, Serialize, Deserialize)]
        struct At(#[serde(with = "path")] std::path::PathBuf);
        let path: std::ffi::OsString = std::os::unix::ffi::OsStringExt::from_vec(vec![b'/', 0xff, b'x']);
        let at = At(path.into());
        assert_eq!(decode::<At>(&encode(&at).unwrap()).unwrap(), at);
    }
}
