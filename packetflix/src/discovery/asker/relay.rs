//! Puts questions to engines of Docker's API, in words of ours, and hands their answers over as they come.
//!
//! At the socket of such an engine one may have it do anything. So the process that reads what it answers has no connection to
//! it, and says only which question it means.

use std::{
    io,
    sync::{Arc, OnceLock},
};

use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _, copy, sink},
    net::UnixStream,
    task::JoinSet,
};

use super::{super::engine_socket::EngineSocket, wire::Question};
use crate::error::note_want;

/// What every answer in HTTP begins with.
const HTTP: &[u8] = b"HTTP/";

/// Most bytes of the head of an answer, and of what the process says where it takes us for the engine.
const MAX_HEAD_LEN: usize = 64 << 10;

/// Questions that are put to an engine.
pub(super) struct Relay {
    tasks: JoinSet<()>,
    /// How many of them at the same time.
    parallel: usize,
    /// Whether the first answer was one in HTTP.
    is_http: Arc<OnceLock<bool>>,
}

impl Relay {
    pub(super) fn new(parallel: usize) -> Self {
        Self {
            tasks: JoinSet::new(),
            parallel,
            is_http: Arc::default(),
        }
    }

    /// Whether the engine has answered, and not in HTTP.
    pub(super) fn is_of_another_api(&self) -> bool {
        self.is_http.get() == Some(&false)
    }

    /// Puts a question to an engine; gives where its answer comes, of which `most` bytes are taken beside its head.
    ///
    /// # Errors
    /// When the engine cannot be connected to.
    pub(super) async fn ask(
        &mut self,
        socket: &EngineSocket,
        question: &Question,
        most: usize,
    ) -> io::Result<UnixStream> {
        while self.tasks.len() > self.parallel {
            self.tasks.join_next().await;
        }
        let engine = socket.connect().await?;
        let (ours, theirs) = UnixStream::pair().inspect_err(note_want)?;
        let (path, is_http) = (question.path(), Arc::clone(&self.is_http));
        self.tasks.spawn(async move {
            if let Err(error) = relay(engine, ours, &path, most + MAX_HEAD_LEN, &is_http).await {
                tracing::debug!(%error, path, "an engine's answer broke off");
            }
        });
        Ok(theirs)
    }
}

/// Puts a question, and hands the answer over until there is no more of it, or nobody wants it any more.
async fn relay(
    mut engine: UnixStream,
    mut asker: UnixStream,
    path: &str,
    most: usize,
    is_http: &OnceLock<bool>,
) -> io::Result<()> {
    let (mut says, mut hears) = asker.split();
    // Its own words are not for the engine: they tell that it is ready for an answer.
    if says.read(&mut [0; 4096]).await? == 0 {
        return Ok(());
    }
    let answering = async {
        let question = format!(
            "GET {path} HTTP/1.1\r\nHost: localhost\r\nAccept: application/json\r\nConnection: close\r\n\r\n"
        );
        engine.write_all(question.as_bytes()).await?;
        let mut answer = engine.take(most as u64);
        let mut beginning = Vec::new();
        let mut first = (&mut answer).take(HTTP.len() as u64);
        first.read_to_end(&mut beginning).await?;
        let _ = is_http.set(!beginning.is_empty() && HTTP.starts_with(&beginning));
        hears.write_all(&beginning).await?;
        copy(&mut answer, &mut hears).await.map(drop)
    };
    let mut unheard = sink();
    tokio::select! {
        answered = answering => answered,
        gone = copy(&mut says, &mut unheard) => gone.map(drop),
    }
}
