//! A client for one HTTP/1.1 connection: to the discovery service, or to the API of a container engine.

use bytes::Bytes;
use http_body_util::{BodyExt as _, Full, LengthLimitError, Limited};
use hyper::{
    HeaderMap, Request, StatusCode,
    client::conn::http1::{self, SendRequest},
    header::{ACCEPT, AUTHORIZATION, CONTENT_TYPE, HOST, HeaderValue},
};
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio_util::task::AbortOnDropHandle;

/// Most bytes that are read at once, and of the head of an answer.
const MAX_BUFFER_LEN: usize = 64 << 10;

/// A connection on which one request follows the other.
pub(crate) struct Connection {
    sender: SendRequest<Full<Bytes>>,
    host: HeaderValue,
    /// Most bytes of an answer.
    max_len: usize,
    _driver: AbortOnDropHandle<()>,
}

/// An answer, read whole.
#[derive(Debug)]
pub(crate) struct Answer {
    pub(crate) status: StatusCode,
    pub(crate) headers: HeaderMap,
    pub(crate) body: Bytes,
}

/// Why there is no answer.
#[derive(Debug, thiserror::Error)]
pub(crate) enum RequestError {
    /// It does not speak HTTP, or the connection broke.
    #[error("it does not answer as an HTTP service should")]
    Http(#[source] hyper::Error),
    /// The answer is longer than anybody needs.
    #[error("its answer is longer than {0} bytes")]
    TooLong(usize),
    /// The answer broke off.
    #[error("its answer broke off")]
    Body(#[source] Box<dyn std::error::Error + Send + Sync>),
    /// What is asked for cannot be written into a request.
    #[error("the request cannot be made")]
    Request(#[source] hyper::http::Error),
}

impl Connection {
    /// Takes over a connection to `host`, whose answers may have `max_len` bytes each.
    ///
    /// # Errors
    /// When `host` cannot stand in a header.
    pub(crate) async fn open(
        stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static,
        host: &str,
        max_len: usize,
    ) -> Result<Self, RequestError> {
        let host = HeaderValue::from_str(host).map_err(|error| RequestError::Request(error.into()))?;
        let (sender, connection) = http1::Builder::new()
            .max_buf_size(MAX_BUFFER_LEN)
            .handshake(TokioIo::new(stream))
            .await
            .map_err(RequestError::Http)?;
        let driver = tokio::spawn(async move {
            if let Err(error) = connection.await {
                tracing::debug!(%error, "a connection to a service ended");
            }
        });
        Ok(Self {
            sender,
            host,
            max_len,
            _driver: AbortOnDropHandle::new(driver),
        })
    }

    /// Asks for `path`, and reads the answer whole. Takes as long as the other side does.
    ///
    /// # Errors
    /// When there is no answer, or it is too long.
    pub(crate) async fn get(&mut self, path: &str) -> Result<Answer, RequestError> {
        let request = Request::get(path)
            .header(HOST, &self.host)
            .header(ACCEPT, "application/json")
            .body(Full::default());
        self.send(request.map_err(RequestError::Request)?).await
    }

    /// Sends JSON to `path` with a token, and reads the answer whole. Takes as long as the other side does.
    ///
    /// # Errors
    /// When there is no answer, or it is too long.
    pub(crate) async fn post(
        &mut self,
        path: &str,
        token: &[u8],
        body: Vec<u8>,
    ) -> Result<Answer, RequestError> {
        let request = Request::post(path)
            .header(HOST, &self.host)
            .header(ACCEPT, "application/json")
            .header(CONTENT_TYPE, "application/json")
            .header(AUTHORIZATION, [b"Bearer ", token].concat())
            .body(Full::from(body));
        self.send(request.map_err(RequestError::Request)?).await
    }

    async fn send(&mut self, request: Request<Full<Bytes>>) -> Result<Answer, RequestError> {
        self.sender.ready().await.map_err(RequestError::Http)?;
        let response = self
            .sender
            .send_request(request)
            .await
            .map_err(RequestError::Http)?;
        let (head, body) = response.into_parts();
        let body = Limited::new(body, self.max_len)
            .collect()
            .await
            .map_err(|error| self.body_error(error))?;
        Ok(Answer {
            status: head.status,
            headers: head.headers,
            body: body.to_bytes(),
        })
    }

    fn body_error(&self, error: Box<dyn std::error::Error + Send + Sync>) -> RequestError {
        if error.is::<LengthLimitError>() {
            RequestError::TooLong(self.max_len)
        } else {
            RequestError::Body(error)
        }
    }
}

#[cfg(any(test, feature = "fuzzing"))]
pub(crate) mod fuzzing {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

    use super::*;

    /// What a service or an engine answers: its head, and a body of whatever length it says.
    pub fn answer(data: &[u8]) {
        const MAX_LEN: usize = 4096;

        let (stream, mut service) = tokio::io::duplex(data.len().max(MAX_LEN));
        let answers = async {
            // An answer that comes before it was asked for is none.
            let _ = service.read(&mut [0; MAX_LEN]).await;
            let _ = service.write_all(data).await;
            drop(service);
        };
        let asks = async {
            let mut connection = Connection::open(stream, "localhost", MAX_LEN).await?;
            connection.get("/").await
        };
        let runtime = tokio::runtime::Builder::new_current_thread().build();
        let runtime = runtime.expect("a runtime without drivers");
        let (answered, ()) = runtime.block_on(async { tokio::join!(asks, answers) });
        match answered {
            Ok(answer) => assert!(answer.body.len() <= MAX_LEN && answer.body.len() <= data.len()),
            Err(error) => assert!(!crate::error::chain(&error).is_empty()),
        }
    }
}
