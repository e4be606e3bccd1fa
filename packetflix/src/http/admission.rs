//! How many connections there may be at a time, in all and from one address.

use std::{
    collections::{HashMap, hash_map::Entry},
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use tokio::{
    io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _},
    sync::{OwnedSemaphorePermit, Semaphore},
    time::timeout,
};
use warp::http::StatusCode;

use super::{
    caller::{ClientId, Peer},
    refusal::plain_answer,
};

/// Most connections at a time that are no WebSockets: these are bounded as captures.
const MAX_CONNECTIONS: usize = 1024;

/// How many connections are told at a time that they are one too many; others are closed without a word.
const MAX_FAREWELLS: usize = 64;

/// How long one that is told may take to listen.
const FAREWELL_TIMEOUT: Duration = Duration::from_secs(1);

/// Lets connections in.
pub(super) struct Admission {
    per_address: usize,
    all: Arc<Semaphore>,
    farewells: Arc<Semaphore>,
    clients: Mutex<HashMap<ClientId, usize>>,
}

/// A connection that was let in, until it is dropped.
pub(super) struct Admitted {
    admission: Arc<Admission>,
    client: Option<ClientId>,
    _permit: OwnedSemaphorePermit,
}

/// Why a connection is not let in.
#[derive(Clone, Copy, Debug, thiserror::Error, PartialEq, Eq)]
pub(super) enum TurnedAway {
    #[error("there are {MAX_CONNECTIONS} connections already: try again in a moment")]
    Full,
    #[error("there are {most} connections from {client} already, and no more are let in")]
    TooMany { client: ClientId, most: usize },
}

impl Admission {
    pub(super) fn new(per_address: usize) -> Arc<Self> {
        Arc::new(Self {
            per_address,
            all: Arc::new(Semaphore::new(MAX_CONNECTIONS)),
            farewells: Arc::new(Semaphore::new(MAX_FAREWELLS)),
            clients: Mutex::default(),
        })
    }

    /// Lets a connection in.
    ///
    /// # Errors
    /// When there are too many.
    pub(super) fn admit(self: &Arc<Self>, peer: Peer) -> Result<Admitted, TurnedAway> {
        let client = peer.ip().map(|address| ClientId::new(Some(address)));
        if let Some(client) = client {
            let mut clients = self.clients.lock().unwrap_or_else(PoisonError::into_inner);
            let most = self.per_address;
            let count = clients.entry(client).or_default();
            if *count >= most {
                return Err(TurnedAway::TooMany { client, most });
            }
            *count += 1;
        }
        match Arc::clone(&self.all).try_acquire_owned() {
            Ok(permit) => Ok(Admitted {
                admission: Arc::clone(self),
                client,
                _permit: permit,
            }),
            Err(_) => {
                self.leave(client);
                Err(TurnedAway::Full)
            }
        }
    }

    /// Tells a client why it is not let in, unless too many are told already.
    pub(super) async fn turn_away(&self, stream: impl AsyncRead + AsyncWrite + Unpin, why: TurnedAway) {
        let Ok(_permit) = self.farewells.try_acquire() else {
            return;
        };
        // Whoever does not listen has had their chance.
        let _ = timeout(FAREWELL_TIMEOUT, say(stream, why)).await;
    }

    fn leave(&self, client: Option<ClientId>) {
        let Some(client) = client else {
            return;
        };
        let mut clients = self.clients.lock().unwrap_or_else(PoisonError::into_inner);
        if let Entry::Occupied(mut entry) = clients.entry(client) {
            *entry.get_mut() -= 1;
            if *entry.get() == 0 {
                entry.remove();
            }
        }
    }
}

impl Drop for Admitted {
    fn drop(&mut self) {
        self.admission.leave(self.client);
    }
}

impl TurnedAway {
    fn status(self) -> StatusCode {
        match self {
            Self::Full => StatusCode::SERVICE_UNAVAILABLE,
            Self::TooMany { .. } => StatusCode::TOO_MANY_REQUESTS,
        }
    }
}

/// Answers, whatever the client asks, and takes what it says until it leaves: closed before that, the connection would
/// be reset, and the answer with it.
async fn say(mut stream: impl AsyncRead + AsyncWrite + Unpin, why: TurnedAway) -> std::io::Result<()> {
    stream
        .write_all(&plain_answer(why.status(), &why.to_string()))
        .await?;
    stream.shutdown().await?;
    let mut said = [0; 4096];
    while stream.read(&mut said).await? > 0 {}
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::net::SocketAddr;

    use super::*;

    fn peer(address: &str) -> Peer {
        Peer::Tcp(SocketAddr::new(address.parse().unwrap(), 7))
    }

    #[test]
    fn one_address_cannot_take_all() {
        let admission = Admission::new(2);
        let first = [(); 2].map(|()| admission.admit(peer("192.0.2.1")).ok().unwrap());
        let why = admission.admit(peer("::ffff:192.0.2.1")).err().unwrap();
        assert_eq!(
            why.to_string(),
            "there are 2 connections from 192.0.2.1 already, and no more are let in"
        );
        assert_eq!(why.status(), StatusCode::TOO_MANY_REQUESTS);
        let second = admission.admit(peer("192.0.2.2"));
        assert!(second.is_ok());
        // A network of IPv6 is one client.
        let networks = ["2001:db8::1", "2001:db8::2"].map(|address| admission.admit(peer(address)).is_ok());
        assert_eq!(networks, [true, true]);
        let _held = ["2001:db8::1", "2001:db8::2"].map(|address| admission.admit(peer(address)).ok());
        assert!(admission.admit(peer("2001:db8::3")).is_err());
        assert!(admission.admit(peer("2001:db8:0:1::3")).is_ok());
        drop(first);
        assert!(admission.admit(peer("192.0.2.1")).is_ok());
    }

    #[test]
    fn there_is_an_end_to_all_connections() {
        let admission = Admission::new(10);
        let admit = |n: usize| admission.admit(peer(&format!("192.0.{}.1", n % 250)));
        let all: Vec<_> = (0..MAX_CONNECTIONS).map(|n| admit(n).ok().unwrap()).collect();
        assert_eq!(admit(0).err(), Some(TurnedAway::Full));
        assert_eq!(admission.admit(Peer::Unix(0)).err(), Some(TurnedAway::Full));
        drop(all);
        assert!(admission.clients.lock().unwrap().is_empty());
        assert!(admission.admit(Peer::Unix(0)).is_ok());
    }

    #[tokio::test]
    async fn those_who_are_turned_away_are_told() {
        let admission = Admission::new(1);
        let (ours, mut theirs) = tokio::io::duplex(1024);
        let told = tokio::spawn(async move {
            theirs.write_all(b"GET / HTTP/1.1\r\n\r\n").await.unwrap();
            let mut said = String::new();
            theirs.read_to_string(&mut said).await.unwrap();
            said
        });
        admission.turn_away(ours, TurnedAway::Full).await;
        let said = told.await.unwrap();
        assert!(said.starts_with("HTTP/1.1 503 Service Unavailable\r\n"), "{said}");
        assert!(
            said.ends_with("{\"error\":\"there are 1024 connections already: try again in a moment\"}"),
            "{said}"
        );
    }
}
