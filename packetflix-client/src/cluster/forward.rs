//! A connection to a port of a pod, by port-forward.

use std::{
    fmt, io,
    pin::Pin,
    sync::{Arc, Mutex, PoisonError},
    task::{Context, Poll},
};

use kube::api::Portforwarder;
use tokio::io::{AsyncRead, AsyncWrite, DuplexStream, ReadBuf};

/// A port of a pod, for people.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PodPort {
    pub(super) namespace: String,
    pub(super) pod: String,
    pub(super) port: u16,
    /// The API server that leads there.
    pub(super) url: String,
}

impl fmt::Display for PodPort {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "port {} of the pod {} in the namespace {} (by port-forward through {})",
            self.port, self.pod, self.namespace, self.url
        )
    }
}

/// Why a connection by port-forward carries nothing any more.
#[derive(Clone, Debug, thiserror::Error)]
pub enum ForwardError {
    /// The API server, or the node, says so.
    #[error(
        "{0} takes no connection: does packetflix run there, and listen at that port? The cluster says: {1}"
    )]
    Refused(PodPort, String),
    /// Nobody says why.
    #[error(
        "the connection to {0} has ended: the pod, its node or the API server is gone, or the network between"
    )]
    Ended(PodPort),
}

/// What the last connection ended by: those who asked over it may be told no more than that it has.
pub(super) type Broken = Arc<Mutex<Option<ForwardError>>>;

type Told = Pin<Box<dyn Future<Output = Option<String>> + Send>>;

/// A connection by port-forward.
pub(crate) struct Forwarded {
    stream: DuplexStream,
    forwarder: Portforwarder,
    to: PodPort,
    /// What is wrong, if something is.
    told: Option<Told>,
    broken: Broken,
}

impl Forwarded {
    /// The only one that a forwarder has.
    pub(super) fn new(mut forwarder: Portforwarder, to: PodPort, broken: Broken) -> Option<Self> {
        let told = forwarder.take_error(to.port);
        Some(Self {
            stream: forwarder.take_stream(to.port)?,
            forwarder,
            told: told.map(|told| Box::pin(told) as Told),
            to,
            broken,
        })
    }

    /// Where it leads.
    pub(crate) fn port(&self) -> &PodPort {
        &self.to
    }

    /// What was told to be wrong until now.
    fn refusal(&mut self, context: &mut Context<'_>) -> Option<ForwardError> {
        const MOST: usize = 300;
        let Poll::Ready(told) = self.told.as_mut()?.as_mut().poll(context) else {
            return None;
        };
        self.told = None;
        let told: String = told?.trim().chars().take(MOST).collect();
        Some(ForwardError::Refused(self.to.clone(), told))
    }
}

impl Drop for Forwarded {
    fn drop(&mut self) {
        self.forwarder.abort();
    }
}

impl AsyncRead for Forwarded {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        into: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = into.filled().len();
        let read = Pin::new(&mut self.stream).poll_read(context, into);
        let is_over =
            matches!(read, Poll::Ready(Ok(()))) && into.filled().len() == before && into.remaining() > 0;
        if !is_over && !read.is_pending() {
            return read;
        }
        let error = match self.refusal(context) {
            Some(error) => error,
            None if is_over => ForwardError::Ended(self.to.clone()),
            None => return Poll::Pending,
        };
        *self.broken.lock().unwrap_or_else(PoisonError::into_inner) = Some(error.clone());
        Poll::Ready(Err(io::Error::new(io::ErrorKind::ConnectionAborted, error)))
    }
}

impl AsyncWrite for Forwarded {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        data: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(context, data)
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(context)
    }
}
