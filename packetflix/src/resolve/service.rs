//! Asks a GhostWire discovery service for its list of targets.

use std::{io, time::Duration};

use hyper::StatusCode;
use serde::Deserialize;
use tokio::{net::TcpStream, time::timeout};

use crate::{
    config::ServiceAddress,
    description::TargetDescription,
    http_client::{Connection, RequestError},
};

/// How long the service gets: it looks at the whole host for an answer.
const PATIENCE: Duration = Duration::from_secs(20);

/// Most bytes of a list: some hundred thousand targets.
const MAX_LIST_LEN: usize = 32 << 20;

/// Where the service has its list.
const LIST_PATH: &str = "/mobyshark";

/// A GhostWire discovery service.
#[derive(Clone, Debug)]
pub(crate) struct DiscoveryService {
    address: ServiceAddress,
    patience: Duration,
}

/// Why there is no list.
#[derive(Debug, thiserror::Error)]
#[error("the discovery service at {address} {problem}")]
pub(crate) struct ServiceError {
    address: ServiceAddress,
    pub(crate) problem: ServiceProblem,
}

/// What is wrong with the service.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ServiceProblem {
    #[error("cannot be reached: {0}")]
    Unreachable(io::Error),
    #[error("did not answer within {} s", .0.as_secs())]
    Slow(Duration),
    #[error("gave no list of targets: {}", crate::error::chain(.0))]
    Request(RequestError),
    #[error("gave no list of targets but the status {0}")]
    Status(StatusCode),
    #[error("gave something that is no list of targets: {0}")]
    NoList(serde_json::Error),
}

#[derive(Deserialize)]
struct TargetList {
    containers: Vec<TargetDescription>,
}

impl DiscoveryService {
    pub(crate) fn new(address: ServiceAddress) -> Self {
        Self {
            address,
            patience: PATIENCE,
        }
    }

    /// All targets that it knows now.
    ///
    /// # Errors
    /// When it is down, slow, or gives anything but a list.
    pub(crate) async fn targets(&self) -> Result<Vec<TargetDescription>, ServiceError> {
        timeout(self.patience, self.list())
            .await
            .unwrap_or(Err(ServiceProblem::Slow(self.patience)))
            .map_err(|problem| ServiceError {
                address: self.address.clone(),
                problem,
            })
    }

    async fn list(&self) -> Result<Vec<TargetDescription>, ServiceProblem> {
        let stream = TcpStream::connect((&self.address.host[..], self.address.port))
            .await
            .map_err(ServiceProblem::Unreachable)?;
        let mut connection = Connection::open(stream, &self.address.to_string(), MAX_LIST_LEN)
            .await
            .map_err(ServiceProblem::Request)?;
        let answer = connection.get(LIST_PATH).await.map_err(ServiceProblem::Request)?;
        if answer.status != StatusCode::OK {
            return Err(ServiceProblem::Status(answer.status));
        }
        let list: TargetList = serde_json::from_slice(&answer.body).map_err(ServiceProblem::NoList)?;
        Ok(list.containers)
    }
}

#[cfg(any(test, feature = "fuzzing"))]
pub(crate) mod fuzzing {
    use super::*;

    /// What a discovery service answers.
    pub fn mobyshark(data: &[u8]) {
        if let Ok(list) = serde_json::from_slice::<TargetList>(data) {
            for target in list.containers {
                assert!(target.netns != Some(0) && target.full_name().len() >= target.name.len());
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use tokio::{
        io::{AsyncReadExt as _, AsyncWriteExt as _},
        net::TcpListener,
    };

    use super::*;

    /// A service that gives `answer` on its one connection, whatever is asked, and then waits.
    async fn answering(answer: Vec<u8>) -> DiscoveryService {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        tokio::spawn(async move {
            let (mut stream, _) = listener.accept().await.unwrap();
            let _ = stream.read(&mut [0; 1024]).await;
            let _ = stream.write_all(&answer).await;
            let _ = stream.read_to_end(&mut Vec::new()).await;
        });
        DiscoveryService {
            address: ServiceAddress {
                host: "127.0.0.1".to_owned(),
                port,
            },
            patience: Duration::from_millis(300),
        }
    }

    fn ok(body: &str) -> Vec<u8> {
        format!("HTTP/1.1 200 OK\r\ncontent-length: {}\r\n\r\n{body}", body.len()).into_bytes()
    }

    async fn sentence(answer: Vec<u8>) -> String {
        answering(answer).await.targets().await.unwrap_err().to_string()
    }

    #[tokio::test]
    async fn reads_a_list() {
        let targets = answering(ok(r#"{"metadata":{},"containers":[{"name":"a"},{"name":"b"}]}"#))
            .await
            .targets()
            .await
            .unwrap();
        let names: Vec<&str> = targets.iter().map(|target| &target.name[..]).collect();
        assert_eq!(names, ["a", "b"]);
    }

    #[tokio::test]
    async fn says_what_is_wrong() {
        for (answer, words) in [
            (Vec::new(), "did not answer within"),
            (
                b"HTTP/1.1 200 OK\r\ncontent-length: 9\r\n\r\n{".to_vec(),
                "did not answer within",
            ),
            (
                b"220 mail\r\n\r\n".to_vec(),
                "does not answer as an HTTP service should",
            ),
            (
                b"HTTP/1.1 500 No\r\ncontent-length: 0\r\n\r\n".to_vec(),
                "the status 500",
            ),
            (ok("<html></html>"), "line 1 column 1"),
            (ok(r#"{"containers":7}"#), "expected a sequence"),
            (ok("{}"), "missing field `containers`"),
        ] {
            let found = sentence(answer).await;
            assert!(found.contains(words), "{words}: {found}");
        }
        let endless = [&b"HTTP/1.1 200 OK\r\n\r\n"[..], &vec![b' '; MAX_LIST_LEN + 1]].concat();
        let mut service = answering(endless).await;
        service.patience = PATIENCE;
        let found = service.targets().await.unwrap_err().to_string();
        assert!(found.contains("longer than 33554432 bytes"), "{found}");
    }

    #[tokio::test]
    async fn says_that_nobody_is_there() {
        let mut service = answering(Vec::new()).await;
        service.address.port = 1;
        let found = service.targets().await.unwrap_err().to_string();
        assert!(
            found.starts_with("the discovery service at 127.0.0.1:1 cannot be reached: "),
            "{found}"
        );
    }
}
