//! How many connections there may be at a time, in all and from one address, and what they may have sent of their heads.
//!
//! Connections are bounded before anything is read, and none waits for another's permit. Where there are too many, the one goes
//! that is missed least (`ConnectionSlot::reluctance`). Where none can, whoever is one too many is told so by a task of its own, of
//! which there are few. A place proves its worth when a caller that is let in asks for what is not for everyone.
//!
//! Heads that are not complete have a bound of their own, in bytes of all together, beyond which the longest goes.

use std::{
    cmp::Reverse,
    collections::{BTreeMap, HashMap, hash_map::Entry},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, AtomicUsize, Ordering},
    },
    time::Duration,
};

use tokio::{
    io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _},
    sync::Semaphore,
    time::{sleep, timeout},
};
use tokio_util::sync::CancellationToken;

use super::connection::Exchange;
use crate::http::api::{code::Code, plain_answer::plain_answer};
use crate::{
    memory,
    service::{ClientId, Peer},
};

/// Most connections at a time that are no WebSockets: these are bounded as captures.
const MAX_CONNECTIONS: usize = 1024;

/// Where memory is short there are fewer: one for each so many bytes of it. One that speaks TLS takes a third of that.
const MEMORY_OF_CONNECTION: u64 = 128 << 10;
const LEAST_CONNECTIONS: usize = 256;

/// Most connections beside these when none of them can make room: what is for everyone is answered there, that is, probes.
const MAX_RESERVED: usize = 32;

/// Most connections at Unix sockets, which have places of their own.
const MAX_LOCAL: usize = 64;

/// So much of the memory is for heads that are not complete, and at least so many bytes.
const SHARE_OF_HEADS: u64 = 32;
const LEAST_OF_HEADS: u64 = 2 << 20;

/// How long a connection may stay that has shown nothing.
const UNPROVEN_TIMEOUT: Duration = Duration::from_secs(60);

/// How many connections are told at a time that they are one too many; others are closed without a word.
const MAX_FAREWELLS: usize = 64;

/// How long one that is told may take to listen.
const FAREWELL_TIMEOUT: Duration = Duration::from_secs(1);

/// Lets connections in.
pub(crate) struct Admission {
    per_address: usize,
    /// Most connections of all addresses.
    most: usize,
    /// Most bytes of all heads that are not complete.
    heads: usize,
    farewells: Arc<Semaphore>,
    present: Mutex<Present>,
}

/// The connections that there are.
#[derive(Default)]
struct Present {
    next: u64,
    /// In the order in which they came.
    places: BTreeMap<u64, Arc<ConnectionSlot>>,
    /// How many of them each address has.
    clients: HashMap<ClientId, usize>,
    /// How many of them are at Unix sockets.
    local: usize,
    /// How many of them are reserved for what everyone may ask.
    reserved: usize,
    /// Bytes of all heads that are not complete.
    heads: usize,
}

/// What is known of a connection that was let in.
#[derive(Debug)]
pub(crate) struct ConnectionSlot {
    client: Option<ClientId>,
    is_reserved: bool,
    exchange: Exchange,
    /// Bytes of a head that is not complete.
    head: AtomicUsize,
    /// Requests so far, counted over all connections, when somebody who is let in last asked for what is not for everyone;
    /// 0 before that.
    proven: AtomicU64,
    /// Cancelled when the place is needed by another.
    turned_out: CancellationToken,
}

/// A connection that was let in, until it is dropped.
pub(crate) struct Admitted {
    admission: Arc<Admission>,
    number: u64,
    place: Arc<ConnectionSlot>,
}

/// What has come of the head that a connection is to send next.
pub(crate) struct AwaitedHead {
    admission: Arc<Admission>,
    number: u64,
    len: usize,
}

/// Why a connection is not let in.
#[derive(Clone, Copy, Debug, thiserror::Error, PartialEq, Eq)]
pub(crate) enum TurnedAway {
    #[error("there are as many connections as may be: try again in a moment")]
    Full,
    #[error("there are {most} connections from {client} already, and no more are let in")]
    TooMany { client: ClientId, most: usize },
}

impl ConnectionSlot {
    /// Somebody who is let in asks for what is not for everyone.
    pub(crate) fn prove(&self) {
        static ASKED: AtomicU64 = AtomicU64::new(1);
        self.proven
            .store(ASKED.fetch_add(1, Ordering::Relaxed), Ordering::Relaxed);
    }

    /// Whether it is one for what everyone may ask, and nothing else.
    pub(crate) fn is_reserved(&self) -> bool {
        self.is_reserved
    }

    /// Waits until the connection has to end: another needs the place, or it has shown nothing for too long.
    pub(crate) async fn turned_out(&self) {
        self.turned_out_after(UNPROVEN_TIMEOUT).await;
    }

    async fn turned_out_after(&self, patience: Duration) {
        let has_shown_nothing = async {
            sleep(patience).await;
            while self.proven.load(Ordering::Relaxed) > 0 || self.exchange.is_answered() {
                sleep(patience).await;
            }
        };
        tokio::select! {
            () = self.turned_out.cancelled() => {}
            () = has_shown_nothing => {}
        }
    }

    /// How much it takes to turn this connection out, if that may be: first those that have shown nothing, then those on
    /// which nothing is answered, of which it is longest ago.
    fn reluctance(&self) -> Option<u64> {
        match self.proven.load(Ordering::Relaxed) {
            0 => Some(0),
            proven => (!self.exchange.is_answered()).then_some(proven),
        }
    }
}

impl AwaitedHead {
    /// So many bytes more have come. Where all heads are too much, the longest goes.
    pub(crate) fn grow(&mut self, bytes: usize) {
        if bytes > 0 {
            self.len += bytes;
            self.tell();
        }
    }

    /// It is complete.
    pub(crate) fn end(&mut self) {
        if self.len > 0 {
            self.len = 0;
            self.tell();
        }
    }

    fn tell(&self) {
        let bound = self.admission.heads;
        self.admission.lock().bound_heads(self.number, self.len, bound);
    }
}

impl Present {
    /// The head of a connection has this length by now.
    fn bound_heads(&mut self, number: u64, len: usize, bound: usize) {
        // One that was turned out counts no more.
        let Some(place) = self.places.get(&number) else {
            return;
        };
        self.heads = self.heads + len - place.head.swap(len, Ordering::Relaxed);
        while self.heads > bound
            && let Some(number) = self.longest_head()
        {
            self.turn_out(number);
        }
    }

    /// The connection with the longest head, of those that have shown nothing before others; the oldest of several.
    fn longest_head(&self) -> Option<u64> {
        let heads = self.places.iter().filter_map(|(number, place)| {
            let len = place.head.load(Ordering::Relaxed);
            let is_unproven = place.proven.load(Ordering::Relaxed) == 0;
            (len > 0).then_some((is_unproven, len, Reverse(*number)))
        });
        heads.max().map(|(_, _, Reverse(number))| number)
    }

    fn turn_out(&mut self, number: u64) {
        if let Some(place) = self.remove(number) {
            place.turned_out.cancel();
        }
    }

    /// Turns out whoever may be, of those that `may` be, and gives whether there was one.
    fn make_room(&mut self, may: impl Fn(&ConnectionSlot) -> bool) -> bool {
        let mut least: Option<(u64, u64)> = None;
        for (number, place) in self.places.iter().filter(|(_, place)| may(place)) {
            match (place.reluctance(), least) {
                (None, _) => {}
                (Some(reluctance), Some((known, _))) if known <= reluctance => {}
                (Some(reluctance), _) => least = Some((reluctance, *number)),
            }
            // Nobody comes before the first of these.
            if least.is_some_and(|(reluctance, _)| reluctance == 0) {
                break;
            }
        }
        let Some((_, number)) = least else {
            return false;
        };
        self.turn_out(number);
        true
    }

    /// Takes a connection from the list, if it still is there.
    fn remove(&mut self, number: u64) -> Option<Arc<ConnectionSlot>> {
        let place = self.places.remove(&number)?;
        self.heads -= place.head.load(Ordering::Relaxed);
        match place.client {
            None => self.local -= 1,
            Some(client) => {
                if place.is_reserved {
                    self.reserved -= 1;
                }
                if let Entry::Occupied(mut entry) = self.clients.entry(client) {
                    *entry.get_mut() -= 1;
                    if *entry.get() == 0 {
                        entry.remove();
                    }
                }
            }
        }
        Some(place)
    }

    /// Connections at TCP addresses that are no reserved ones.
    fn ordinary(&self) -> usize {
        self.places.len() - self.local - self.reserved
    }
}

impl Admission {
    pub(crate) fn new(per_address: usize) -> Arc<Self> {
        Self::of_memory(per_address, memory::usable())
    }

    /// One for a process that may use so many bytes of memory.
    fn of_memory(per_address: usize, memory: u64) -> Arc<Self> {
        let number = |bytes| usize::try_from(bytes).unwrap_or(usize::MAX);
        let most = number(memory / MEMORY_OF_CONNECTION).clamp(LEAST_CONNECTIONS, MAX_CONNECTIONS);
        Self::with(
            per_address,
            most,
            number((memory / SHARE_OF_HEADS).max(LEAST_OF_HEADS)),
        )
    }

    /// One for so many connections, and bytes of heads that are not complete.
    fn with(per_address: usize, most: usize, heads: usize) -> Arc<Self> {
        Arc::new(Self {
            per_address,
            most,
            heads,
            farewells: Arc::new(Semaphore::new(MAX_FAREWELLS)),
            present: Mutex::default(),
        })
    }

    /// Lets a connection in, about which `exchange` knows. Where there are too many, the one that is missed least goes.
    ///
    /// # Errors
    /// When none can go.
    pub(crate) fn admit(self: &Arc<Self>, peer: Peer, exchange: Exchange) -> Result<Admitted, TurnedAway> {
        let client = peer.ip().map(|address| ClientId::new(Some(address)));
        let mut present = self.lock();
        let mut is_reserved = false;
        match client {
            None => {
                if present.local >= MAX_LOCAL && !present.make_room(|place| place.client.is_none()) {
                    return Err(TurnedAway::Full);
                }
                present.local += 1;
            }
            Some(client) => {
                let most = self.per_address;
                let count = present.clients.get(&client).copied().unwrap_or_default();
                if count >= most && !present.make_room(|place| place.client == Some(client)) {
                    return Err(TurnedAway::TooMany { client, most });
                }
                let is_full = present.ordinary() >= self.most;
                if is_full && !present.make_room(|place| place.client.is_some() && !place.is_reserved) {
                    let is_free = present.reserved < MAX_RESERVED;
                    if !is_free && !present.make_room(|place| place.is_reserved) {
                        return Err(TurnedAway::Full);
                    }
                    is_reserved = true;
                    present.reserved += 1;
                }
                *present.clients.entry(client).or_default() += 1;
            }
        }
        let place = Arc::new(ConnectionSlot {
            client,
            is_reserved,
            exchange,
            head: AtomicUsize::new(0),
            proven: AtomicU64::new(0),
            turned_out: CancellationToken::new(),
        });
        let number = present.next;
        present.next += 1;
        present.places.insert(number, Arc::clone(&place));
        drop(present);
        Ok(Admitted {
            admission: Arc::clone(self),
            number,
            place,
        })
    }

    fn lock(&self) -> MutexGuard<'_, Present> {
        self.present.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Tells a client why it is not let in, unless too many are told already.
    pub(crate) async fn turn_away(&self, stream: impl AsyncRead + AsyncWrite + Unpin, why: TurnedAway) {
        let Ok(_permit) = self.farewells.try_acquire() else {
            return;
        };
        // Whoever does not listen has had their chance.
        let _ = timeout(FAREWELL_TIMEOUT, say(stream, why)).await;
    }
}

impl Drop for Admitted {
    fn drop(&mut self) {
        self.admission.lock().remove(self.number);
    }
}

impl Admitted {
    /// What is known of it.
    pub(crate) fn place(&self) -> &Arc<ConnectionSlot> {
        &self.place
    }

    /// The head that is awaited, to count it.
    pub(crate) fn head(&self) -> AwaitedHead {
        AwaitedHead {
            admission: Arc::clone(&self.admission),
            number: self.number,
            len: 0,
        }
    }
}

impl TurnedAway {
    pub(crate) fn code(self) -> Code {
        match self {
            Self::Full => Code::ServiceFull,
            Self::TooMany { .. } => Code::TooManyConnections,
        }
    }
}

/// Answers, whatever the client asks, and takes what it says until it leaves: closed before that, the connection would
/// be reset, and the answer with it.
async fn say(mut stream: impl AsyncRead + AsyncWrite + Unpin, why: TurnedAway) -> std::io::Result<()> {
    stream
        .write_all(&plain_answer(why.code(), &why.to_string()))
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
    use crate::http::api::plain_answer::instead_of_a_list;

    fn peer(address: &str) -> Peer {
        Peer::Tcp(SocketAddr::new(address.parse().unwrap(), 7))
    }

    /// One that is let in, and that has been shown something if `proven`; `answers` keeps it busy.
    fn admit(
        admission: &Arc<Admission>,
        peer: Peer,
        proven: bool,
    ) -> Result<(Admitted, Exchange), TurnedAway> {
        let exchange = Exchange::new();
        let admitted = admission.admit(peer, exchange.clone())?;
        if proven {
            admitted.place().prove();
        }
        Ok((admitted, exchange))
    }

    fn is_turned_out((admitted, _): &(Admitted, Exchange)) -> bool {
        admitted.place.turned_out.is_cancelled()
    }

    #[test]
    fn one_address_cannot_take_all() {
        let admission = Admission::new(2);
        let first = [(); 2].map(|()| admit(&admission, peer("192.0.2.1"), true).unwrap());
        let answers = first.each_ref().map(|(_, exchange)| exchange.answer());
        let why = admit(&admission, peer("::ffff:192.0.2.1"), false).err().unwrap();
        assert_eq!(
            why.to_string(),
            "there are 2 connections from 192.0.2.1 already, and no more are let in"
        );
        assert_eq!(why.code(), Code::TooManyConnections);
        assert!(admit(&admission, peer("192.0.2.2"), false).is_ok());
        // A network of IPv6 is one client.
        let _held = ["2001:db8::1", "2001:db8::2"].map(|address| {
            let held = admit(&admission, peer(address), true).unwrap();
            let answer = held.1.answer();
            (held, answer)
        });
        assert!(admit(&admission, peer("2001:db8::3"), false).is_err());
        assert!(admit(&admission, peer("2001:db8:0:1::3"), false).is_ok());
        // One on which nothing is going on makes room for another of its address.
        drop(answers);
        let third = admit(&admission, peer("192.0.2.1"), false);
        assert!(third.is_ok() && is_turned_out(&first[0]) && !is_turned_out(&first[1]));
    }

    #[test]
    fn those_who_show_nothing_go_first_and_the_oldest_of_them() {
        let admission = Admission::new(4);
        let from = |proven| admit(&admission, peer("192.0.2.1"), proven).unwrap();
        let (proven, silent, late) = (from(true), from(false), from(false));
        let busy = from(true);
        let _answer = busy.1.answer();
        // What everyone may ask shows nothing, however often it is asked.
        let public = silent.1.answer();
        let _next = from(true);
        assert!(is_turned_out(&silent) && !is_turned_out(&late) && !is_turned_out(&proven));
        drop(public);
        let _next = from(true);
        assert!(is_turned_out(&late) && !is_turned_out(&proven));
        let _next = from(true);
        assert!(is_turned_out(&proven) && !is_turned_out(&busy));
        // One that was turned out gives nothing back that it no longer has.
        drop((silent, late, proven));
        assert_eq!(admission.lock().clients.values().sum::<usize>(), 4);
    }

    #[test]
    fn there_is_an_end_to_all_connections_and_places_for_probes_and_this_host() {
        let admission = Admission::new(10);
        let from = |n: usize| peer(&format!("192.0.{}.1", n % 250));
        let all: Vec<_> = (0..MAX_CONNECTIONS)
            .map(|n| admit(&admission, from(n), true).unwrap())
            .collect();
        let answers: Vec<_> = all.iter().map(|(_, exchange)| exchange.answer()).collect();
        let probes: Vec<_> = (0..2 * MAX_RESERVED)
            .map(|n| admit(&admission, from(n), false).unwrap())
            .collect();
        assert!(probes.iter().all(|(probe, _)| probe.place().is_reserved()));
        assert_eq!(
            probes.iter().filter(|probe| is_turned_out(probe)).count(),
            MAX_RESERVED
        );
        let asked: Vec<_> = probes
            .iter()
            .map(|(probe, exchange)| {
                probe.place().prove();
                exchange.answer()
            })
            .collect();
        assert_eq!(admit(&admission, from(0), false).err(), Some(TurnedAway::Full));
        let local: Vec<_> = (0..MAX_LOCAL)
            .map(|_| admit(&admission, Peer::Unix(0), true).unwrap())
            .collect();
        let _busy: Vec<_> = local.iter().map(|(_, exchange)| exchange.answer()).collect();
        assert_eq!(
            admit(&admission, Peer::Unix(0), false).err(),
            Some(TurnedAway::Full)
        );
        assert!(!all.iter().chain(&local).any(is_turned_out));
        drop((answers, asked, all, probes, local));
        let present = admission.lock();
        assert!(present.clients.is_empty() && present.places.is_empty());
        assert_eq!((present.local, present.reserved), (0, 0));
    }

    #[test]
    fn there_are_fewer_connections_where_memory_is_short() {
        for (memory, most) in [(0, 256), (32 << 20, 256), (64 << 20, 512), (1 << 40, 1024)] {
            assert_eq!(Admission::of_memory(10, memory).most, most);
        }
        let admission = Admission::with(10, 2, 100);
        let [one, two] =
            ["192.0.2.1", "192.0.2.2"].map(|address| admit(&admission, peer(address), false).unwrap());
        let three = admit(&admission, peer("192.0.2.3"), false).unwrap();
        assert!(is_turned_out(&one) && !is_turned_out(&two) && !is_turned_out(&three));
    }

    #[test]
    fn the_longest_heads_go_where_all_are_too_much() {
        let admission = Admission::with(10, MAX_CONNECTIONS, 100);
        let from = |proven| admit(&admission, peer("192.0.2.1"), proven).unwrap();
        let all = [from(true), from(false), from(false), from(false)];
        let mut heads = all.each_ref().map(|(admitted, _)| admitted.head());
        for (head, len) in heads.iter_mut().zip([60, 10, 15, 15]) {
            head.grow(len);
        }
        assert!(!all.iter().any(is_turned_out));
        // Those that have shown something go last.
        heads[1].grow(1);
        assert!(is_turned_out(&all[2]) && !is_turned_out(&all[0]) && !is_turned_out(&all[3]));
        assert_eq!(admission.lock().heads, 60 + 11 + 15);
        heads[2].grow(1000);
        heads[0].end();
        heads[1].grow(70);
        assert!(!is_turned_out(&all[1]));
        heads[3].grow(10);
        assert!(is_turned_out(&all[1]) && !is_turned_out(&all[3]));
        heads[0].grow(101);
        assert!(is_turned_out(&all[0]) && is_turned_out(&all[3]));
        drop(all);
        assert_eq!(admission.lock().heads, 0);
    }

    #[tokio::test]
    async fn who_shows_nothing_does_not_stay() {
        const PATIENCE: Duration = Duration::from_millis(50);

        let admission = Admission::new(4);
        let (silent, exchange) = admit(&admission, peer("192.0.2.1"), false).unwrap();
        let answer = exchange.answer();
        let ends = silent.place().turned_out_after(PATIENCE);
        assert!(timeout(3 * PATIENCE, ends).await.is_err());
        drop(answer);
        silent.place().turned_out_after(PATIENCE).await;
        let (proven, _) = admit(&admission, peer("192.0.2.1"), true).unwrap();
        let ends = proven.place().turned_out_after(PATIENCE);
        assert!(timeout(5 * PATIENCE, ends).await.is_err());
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
        let sentence = "there are as many connections as may be: try again in a moment";
        let body = instead_of_a_list(Code::ServiceFull, sentence);
        assert!(said.ends_with(&format!("\r\n\r\n{body}")), "{said}");
    }
}
