//! A session is one client's stream of a capture. Clients that ask for the same share one tap: its reader
//! (`reader.rs`) encodes each packet once and publishes it in a queue (`window.rs`), from which each session takes it
//! between blocks of its own (`stream.rs`).

mod feed;
mod feeds;
mod names;
pub(crate) mod packets;
mod reader;
mod statistics;
mod stream;
pub(crate) mod window;

use std::{collections::VecDeque, sync::Arc, time::Duration};

use bytes::Bytes;
use tokio::{
    sync::watch,
    time::{Instant, sleep_until},
};
use tokio_util::{sync::CancellationToken, task::AbortOnDropHandle};

pub(crate) use self::feeds::{CaptureKey, Claimed, Feeds, Joined};
#[cfg(any(test, feature = "fuzzing"))]
pub(crate) use self::packets::fuzzing;
use self::{
    feed::Subscription,
    names::Names,
    packets::MAX_BATCH_LEN,
    statistics::Statistics,
    stream::{Stream, StreamInfo},
    window::{Batch, Next, PacketCount},
};
use crate::{discovery::AddressBook, target::TargetDescription};

/// How long the end of a capture may take: what is still in the rings is sent as far as the client takes it.
const FINISH_TIMEOUT: Duration = Duration::from_secs(3);

/// So many bytes of packets are kept back while the first names are looked for, and no more.
const MAX_KEPT_BACK: usize = 64 * 1024;

/// Why a session ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Ended {
    /// It was asked to.
    Stopped,
    /// Nobody but us holds the namespace any more.
    NamespaceGone(u64),
    /// It could not go on.
    Failed(String),
}

/// What a whole session amounted to, for the log.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Totals {
    pub(crate) delivered: u64,
    pub(crate) dropped: u64,
}

/// What a client's stream says of itself.
pub(crate) struct SessionInfo<'a> {
    /// Inode number of the namespace.
    pub(crate) netns: u64,
    /// Name and type of who holds it, unless the description names one.
    pub(crate) holder: (String, &'static str),
    pub(crate) description: &'a TargetDescription,
    pub(crate) node_name: &'a str,
    pub(crate) chaste: bool,
    /// The filter as the client wrote it, or empty.
    pub(crate) filter: &'a str,
}

/// The names of addresses that a client is told.
pub(crate) struct KnownNames {
    /// As they are known, and then as they change.
    pub(crate) names: watch::Receiver<Arc<AddressBook>>,
    /// Ends when the first are known, or when they are not worth waiting for any longer.
    pub(crate) first: AbortOnDropHandle<()>,
}

/// One client's stream.
#[derive(Debug)]
pub(crate) struct Session {
    netns: u64,
    subscription: Subscription,
    stream: Stream,
    /// What was last known of all packets.
    known: Statistics,
    /// How many interfaces are described.
    described: usize,
    names: Names,
    known_names: Option<watch::Receiver<Arc<AddressBook>>>,
    /// While it is there, packets are kept back.
    first_names: Option<AbortOnDropHandle<()>>,
    /// What is sent next.
    blocks: VecDeque<Bytes>,
    /// What is sent after that, unless it is kept back.
    packets: VecDeque<Bytes>,
    stop: CancellationToken,
    /// Since when all is to come to an end, on the records' clock and on ours.
    stopping: Option<(u64, Instant)>,
    ended: Option<Ended>,
}

impl Session {
    /// Begins a stream with its section header and the descriptions of all interfaces.
    fn new(subscription: Subscription, info: SessionInfo<'_>, stop: CancellationToken) -> Self {
        let mut stream = Stream::begin(
            &StreamInfo {
                holder: info.holder,
                description: info.description,
                node_name: info.node_name,
                chaste: info.chaste,
                filter: info.filter,
            },
            &subscription.before,
        );
        stream.describe(0, &subscription.interfaces);
        Self {
            netns: info.netns,
            described: subscription.interfaces.len(),
            known: subscription.before.clone(),
            subscription,
            blocks: stream.take().into_iter().collect(),
            stream,
            names: Names::default(),
            known_names: None,
            first_names: None,
            packets: VecDeque::new(),
            stop,
            stopping: None,
            ended: None,
        }
    }

    /// Tells the names of addresses: those that are known soon before the first packet, and from then on each that is
    /// new before the packets that follow.
    pub(crate) fn tell_names(&mut self, names: KnownNames) {
        self.known_names = Some(names.names);
        self.first_names = Some(names.first);
    }

    /// What is sent next: whole blocks; `None` at the end. May be dropped while it waits.
    ///
    /// When `stop` is cancelled, all that was captured until then is still to come, with the final statistics.
    pub(crate) async fn next(&mut self) -> Option<Bytes> {
        loop {
            if let Some(blocks) = self.blocks.pop_front() {
                return Some(blocks);
            }
            if !self.is_kept_back()
                && let Some(packets) = self.packets.pop_front()
            {
                return Some(packets);
            }
            if self.ended.is_some() {
                return None;
            }
            let deadline = self.stopping.map(|(_, since)| since + FINISH_TIMEOUT);
            tokio::select! {
                biased;
                () = self.stop.cancelled(), if self.stopping.is_none() => self.begin_to_stop().await,
                // Without its end the stream still holds the statistics of a moment ago.
                () = until(deadline) => self.ended = Some(Ended::Stopped),
                () = first(&mut self.first_names) => {
                    self.first_names = None;
                    self.take_names();
                }
                () = changed(&mut self.known_names), if self.first_names.is_none() => self.take_names(),
                next = self.subscription.next() => self.accept(next),
            }
        }
    }

    /// Inode number of the namespace.
    pub(crate) fn netns(&self) -> u64 {
        self.netns
    }

    /// Why it ended, and what it amounted to.
    pub(crate) fn end(self) -> (Ended, Totals) {
        let totals = self.stream.totals();
        (self.ended.unwrap_or(Ended::Stopped), totals)
    }

    /// Whether packets wait for the names of their addresses.
    fn is_kept_back(&self) -> bool {
        let len: usize = self.packets.iter().map(Bytes::len).sum();
        self.first_names.is_some() && self.stopping.is_none() && self.ended.is_none() && len < MAX_KEPT_BACK
    }

    async fn begin_to_stop(&mut self) {
        let since = self.known.clock.now();
        self.stopping = Some((since, Instant::now()));
        self.subscription.settle(since).await;
    }

    fn take_names(&mut self) {
        if let Some(names) = &mut self.known_names {
            let names = Arc::clone(&names.borrow_and_update());
            self.names.set(names.seen_from(self.netns));
        }
        let mut is_done = false;
        while !is_done {
            is_done = self.names.write(MAX_BATCH_LEN, self.stream.blocks());
            self.blocks.extend(self.stream.take());
        }
    }

    fn accept(&mut self, next: Next) {
        match next {
            Next::Batch { batch, lost, .. } => self.pass_on(&batch, &lost),
            Next::End(ended) => self.ended = Some(ended),
            Next::Nothing => {}
        }
    }

    fn pass_on(&mut self, batch: &Batch, lost: &[PacketCount]) {
        if self.described < batch.interfaces {
            let interfaces = self.subscription.interfaces();
            self.stream
                .describe(self.described, &interfaces[..batch.interfaces]);
            self.described = batch.interfaces;
        }
        if !lost.is_empty() {
            self.stream.lose(lost);
            self.known.taken = self.known.clock.now();
            self.stream.write_statistics(&self.known, false);
        }
        self.stream.deliver(&batch.counts);
        self.packets.extend(self.stream.take());
        if !batch.packets.is_empty() {
            self.packets.push_back(batch.packets.clone());
        }
        if let Some(statistics) = &batch.statistics {
            self.known = Statistics::clone(statistics);
            let is_end = self
                .stopping
                .is_some_and(|(since, _)| statistics.written.reaches(since));
            self.stream.write_statistics(statistics, is_end);
            self.packets.extend(self.stream.take());
            if is_end {
                self.ended = Some(Ended::Stopped);
            }
        }
    }
}

/// Waits until a time; for ever without one.
async fn until(deadline: Option<Instant>) {
    match deadline {
        Some(deadline) => sleep_until(deadline).await,
        None => std::future::pending().await,
    }
}

/// Waits until the first names are known; for ever where none are waited for.
async fn first(names: &mut Option<AbortOnDropHandle<()>>) {
    match names {
        // One that failed has nothing to tell.
        Some(names) => drop(names.await),
        None => std::future::pending().await,
    }
}

/// Waits until there are other names; for ever where none are told.
async fn changed(names: &mut Option<watch::Receiver<Arc<AddressBook>>>) {
    if let Some(names) = names
        && names.changed().await.is_ok()
    {
        return;
    }
    std::future::pending::<()>().await;
}
