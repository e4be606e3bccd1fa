//! A session between a feed without a tap and a client that is not there.

use std::collections::BTreeMap;

use tokio::{
    sync::{mpsc, watch},
    time::timeout,
};
use tokio_util::task::AbortOnDropHandle;

use super::{
    backlog::Backlog,
    feed::{Command, Shared},
    statistics::{InterfaceCounts, Written},
    window::tests::interface,
    *,
};
use crate::{
    access::Rights,
    captures::tests::{captures, facts},
    description::TargetDescription,
    discovery::AddressBook,
    pcapng::{EncodedBlock, EnhancedPacket, Offloads, PacketDirection, Reception, SNAPLEN},
    tap::{CaptureClock, ClockSource, OwnTraffic, Positions, RateLimits},
};

/// A session, and what it stands between.
struct Setup {
    session: Session,
    shared: Arc<Shared>,
    commands: mpsc::Receiver<Command>,
    sender: mpsc::Sender<Command>,
    stop: CancellationToken,
    capture: Arc<Capture>,
    clock: CaptureClock,
}

impl Setup {
    fn new(limits: Limits) -> Self {
        let clock = CaptureClock::new(ClockSource::Tai).unwrap();
        let shared = Arc::new(Shared::new(1, &Backlog::new(u64::MAX), Positions::default()));
        shared.window().describe(None, interface());
        let (sender, commands) = mpsc::channel(1);
        let before = Statistics {
            clock,
            taken: 0,
            written: Written::default(),
            may_miss: false,
            interfaces: BTreeMap::new(),
        };
        let subscription = Subscription::new(&shared, &sender, OwnTraffic::default(), before);
        let stop = CancellationToken::new();
        let capture = capture(stop.clone());
        let description = TargetDescription::namespace(5);
        let info = SessionInfo {
            netns: 5,
            holder: ("web".to_owned(), "proc"),
            description: &description,
            node_name: "node",
            chaste: false,
            filter: "",
            left_out: "",
            is_one_of_several: false,
            snaplen: 1500,
            rates: RateLimits::default(),
            limits,
            statistics: StatisticsPace::AtEnd,
        };
        let session = Session::new(subscription, &info, stop.clone(), Arc::clone(&capture)).unwrap();
        Self {
            session,
            shared,
            commands,
            sender,
            stop,
            capture,
            clock,
        }
    }

    /// One whose packets wait for names, until the sender is used or dropped.
    fn naming(limits: Limits) -> (Self, tokio::sync::oneshot::Sender<()>) {
        let mut setup = Self::new(limits);
        let (named, first) = tokio::sync::oneshot::channel();
        let first = tokio::spawn(async move { drop(first.await) });
        let names = watch::channel(Arc::new(AddressBook::default())).1;
        let rights = watch::channel(Arc::new(Rights::ALL)).1;
        let known = KnownNames { names, rights };
        setup.session.tell_names(known, AbortOnDropHandle::new(first));
        (setup, named)
    }

    /// Publishes so many packets, all that were captured until now, and the statistics with them if wanted.
    fn publish(&self, packets: u64, with_statistics: bool) {
        self.publish_of(0, packets, with_statistics);
    }

    /// The same with the time of the packets.
    fn publish_of(&self, time: u64, packets: u64, with_statistics: bool) {
        let written = Written {
            until: self.clock.now(),
            emptied: Some(Instant::now()),
        };
        let counts = InterfaceCounts {
            delivered: packets,
            ..InterfaceCounts::default()
        };
        let statistics = Statistics {
            clock: self.clock,
            taken: self.clock.now(),
            written,
            may_miss: false,
            interfaces: BTreeMap::from([(0, counts)]),
        };
        let mut blocks = bytes::BytesMut::new();
        (0..packets).for_each(|_| packet(time).encode(&mut blocks));
        let batch = Batch {
            packets: blocks.freeze(),
            counts: vec![PacketCount {
                interface: 0,
                packets,
                told_lost: 0,
            }],
            interfaces: 1,
            statistics: with_statistics.then(|| Arc::new(statistics)),
            ..Batch::default()
        };
        self.shared.publish(|window| window.publish(batch));
    }

    /// What the session says next, as the number of its packets; `None` at the end. Nothing for a moment is an error.
    async fn next(&mut self) -> Result<Option<u64>, tokio::time::error::Elapsed> {
        let message = timeout(Duration::from_millis(50), self.session.next()).await?;
        Ok(message.map(|message| {
            let packets = message.packets;
            self.session.sent(message);
            packets
        }))
    }
}

fn packet(time: u64) -> EnhancedPacket<'static> {
    EnhancedPacket {
        interface_id: 0,
        timestamp: time,
        original_len: 60,
        cooked: None,
        data: &[0; 60],
        snaplen: 1500,
        vlan: None,
        direction: PacketDirection::Inbound,
        reception: Reception::Unicast,
        offloads: Offloads::default(),
        dropped_before: 0,
    }
}

fn capture(stop: CancellationToken) -> Arc<Capture> {
    captures().prepare(facts(1), stop)
}

#[tokio::test]
async fn what_was_captured_until_the_stop_still_comes() {
    let mut setup = Setup::new(Limits::default());
    assert_eq!(setup.next().await, Ok(Some(0)));
    setup.publish(3, true);
    assert_eq!(setup.next().await, Ok(Some(3)));
    assert!(setup.next().await.is_err());
    setup.stop.cancel();
    assert!(setup.next().await.is_err());
    assert!(matches!(setup.commands.try_recv(), Ok(Command::Settle { .. })));
    setup.publish(2, true);
    assert_eq!(setup.next().await, Ok(Some(2)));
    // The final statistics.
    assert_eq!(setup.next().await, Ok(Some(0)));
    setup.publish(1, true);
    assert_eq!(setup.next().await, Ok(None));
    assert_eq!(setup.capture.amount().packets, 5);
    let (ended, totals) = setup.session.end();
    assert_eq!((ended, totals.delivered), (Ended::Stopped, 5));
}

#[tokio::test]
async fn what_does_not_come_in_time_after_the_stop_is_told_as_lost() {
    let mut setup = Setup::new(Limits::default());
    assert_eq!(setup.next().await, Ok(Some(0)));
    setup.publish(2, true);
    assert_eq!(setup.next().await, Ok(Some(2)));
    setup.stop.cancel();
    assert!(setup.next().await.is_err());
    assert!(matches!(setup.commands.try_recv(), Ok(Command::Settle { .. })));
    // The reader has five of it by then, and two that the kernel lost. Four are still in the rings.
    let counts = InterfaceCounts {
        delivered: 5,
        dropped: 2,
        in_rings: 4,
        ..InterfaceCounts::default()
    };
    let statistics = Statistics {
        clock: setup.clock,
        taken: setup.clock.now(),
        written: Written::default(),
        may_miss: false,
        interfaces: BTreeMap::from([(0, counts)]),
    };
    let mut commands = mem::replace(&mut setup.commands, mpsc::channel(1).1);
    let reader = tokio::spawn(async move {
        let Some(Command::Count { reply }) = commands.recv().await else {
            panic!("no count is asked for");
        };
        let _ = reply.send(statistics);
    });
    // The final statistics.
    let message = timeout(FINISH_TIMEOUT * 2, setup.session.next())
        .await
        .unwrap()
        .unwrap();
    assert_eq!((message.packets, message.blocks.is_empty()), (0, false));
    assert_eq!(setup.next().await, Ok(None));
    reader.await.unwrap();
    let (ended, totals) = setup.session.end();
    assert_eq!((ended, totals.delivered, totals.dropped), (Ended::Stopped, 2, 9));
}

#[tokio::test]
async fn packets_wait_for_names_until_these_are_known_or_it_is_stopped() {
    for is_stopped in [false, true] {
        let (mut setup, named) = Setup::naming(Limits::default());
        assert_eq!(setup.next().await, Ok(Some(0)));
        setup.publish(3, false);
        assert!(setup.next().await.is_err());
        if is_stopped {
            setup.stop.cancel();
        } else {
            drop(named);
        }
        assert_eq!(setup.next().await, Ok(Some(3)));
    }
}

#[tokio::test]
async fn a_limit_that_is_reached_while_names_are_looked_for_ends_it_after_them() {
    let limit = Limits {
        packets: Some(2),
        ..Limits::default()
    };
    let (mut setup, named) = Setup::naming(limit);
    assert_eq!(setup.next().await, Ok(Some(0)));
    setup.publish(3, true);
    assert!(setup.next().await.is_err());
    // There is no reader that could be asked for the counts.
    setup.commands.close();
    drop(named);
    assert_eq!(setup.next().await, Ok(Some(2)));
    assert_eq!(setup.next().await, Ok(Some(0)));
    assert_eq!(setup.next().await, Ok(None));
    let (ended, totals) = setup.session.end();
    assert_eq!((ended, totals.delivered), (Ended::Limit(Limit::Packets(2)), 2));
}

#[tokio::test]
async fn a_stop_that_finds_no_room_with_the_reader_is_begun_again() {
    let mut setup = Setup::new(Limits::default());
    assert_eq!(setup.next().await, Ok(Some(0)));
    let other = Command::Settle { client: 7, since: 0 };
    setup.sender.try_send(other).unwrap();
    setup.stop.cancel();
    assert!(setup.next().await.is_err());
    assert!(matches!(
        setup.commands.try_recv(),
        Ok(Command::Settle { client: 7, .. })
    ));
    assert!(setup.next().await.is_err());
    assert!(matches!(
        setup.commands.try_recv(),
        Ok(Command::Settle { client: 0, .. })
    ));
}

#[tokio::test]
async fn nothing_follows_when_it_may_go_on_no_more() {
    let mut setup = Setup::new(Limits::default());
    assert_eq!(setup.next().await, Ok(Some(0)));
    setup.publish(3, false);
    setup.capture.revoke("the token is gone".to_owned());
    assert_eq!(setup.next().await, Ok(None));
    assert_eq!(
        setup.session.end().0,
        Ended::Revoked("the token is gone".to_owned())
    );
}

#[tokio::test]
async fn what_is_not_sent_is_not_counted() {
    let mut setup = Setup::new(Limits::default());
    assert_eq!(setup.next().await, Ok(Some(0)));
    let beginning = setup.capture.amount().bytes;
    setup.publish(3, false);
    let message = setup.session.next().await.unwrap();
    assert_eq!(setup.capture.amount().packets, 0);
    let len = message.blocks.len() as u64;
    setup.session.sent(message);
    let amount = setup.capture.amount();
    assert_eq!((amount.packets, amount.bytes), (3, beginning + len));
}

/// A stream of two captures.
struct Merged {
    session: MergedSession,
    one: Setup,
    other: Setup,
    _arrivals: Arrivals,
    /// Times of the packets that it has given.
    times: Vec<u64>,
    text: String,
}

impl Merged {
    fn new() -> Self {
        let stop = CancellationToken::new();
        let info = MergedInfo {
            words: "web db",
            node_name: "node",
            filter: "",
            chaste: false,
            snaplen: SNAPLEN,
            limits: Limits::default(),
        };
        let stream = captures().begin_stream(1, stop.clone());
        let (mut session, arrivals) = MergedSession::begin(&info, stream, stop).unwrap();
        let namespaces = Namespaces::default();
        let mut join = |netns: u64| {
            let mut setup = Setup::new(Limits::default());
            let spare = Setup::new(Limits::default()).session;
            session.join(Member {
                session: mem::replace(&mut setup.session, spare),
                running: captures().begin(Arc::clone(&setup.capture)).unwrap(),
                companion: Box::new(()),
                place: namespaces.enter(netns).unwrap(),
                span: tracing::Span::none(),
            });
            setup
        };
        let (one, other) = (join(5), join(6));
        Self {
            session,
            one,
            other,
            _arrivals: arrivals,
            times: Vec::new(),
            text: String::new(),
        }
    }

    /// Takes what the stream gives within a time, or until it has given so many packets in all.
    async fn read(&mut self, time: Duration, packets: usize) {
        let end = Instant::now() + time;
        while self.times.len() < packets
            && let Ok(message) = tokio::time::timeout_at(end, self.session.next()).await
        {
            let message = message.expect("it goes on");
            let mut rest = &message.as_ref()[..];
            self.text += &String::from_utf8_lossy(rest);
            while let Some(block) = EncodedBlock::first(rest) {
                let len = block.len();
                if let EncodedBlock::Packet(packet) = block {
                    self.times.push(packet.timestamp);
                }
                rest = &rest[len..];
            }
        }
    }

    /// Takes what the stream gives until it has given so many packets in all.
    async fn read_until(&mut self, packets: usize) {
        self.read(watermark::PATIENCE * 10, packets).await;
    }

    /// Takes what the stream gives for a while.
    async fn read_for_a_while(&mut self) {
        self.read(watermark::PATIENCE / 6, usize::MAX).await;
    }
}

/// Some seconds ago, in nanoseconds since 1970.
fn ago(seconds: u64) -> u64 {
    let clock = CaptureClock::new(ClockSource::Tai).unwrap();
    clock.realtime(clock.now()) - seconds * 1_000_000_000
}

#[tokio::test]
async fn packets_of_several_wait_for_a_capture_as_long_as_it_comes_on() {
    let mut merged = Merged::new();
    // There is always more in its rings.
    merged.other.shared.set_reading(true);
    let time = ago(20);
    merged.one.publish_of(time, 1, false);
    for behind in (1..10).rev() {
        merged.other.shared.window().complete(time - behind);
        merged.read_for_a_while().await;
        assert!(merged.times.is_empty());
    }
    merged.other.publish_of(time - 1, 1, false);
    merged.other.shared.window().complete(time);
    merged.read_until(2).await;
    assert_eq!(merged.times, [time - 1, time]);
    assert!(!merged.text.contains("stand behind younger ones"));
}

#[tokio::test]
async fn a_packet_of_several_waits_for_none_that_has_told_all() {
    let mut merged = Merged::new();
    merged.read_for_a_while().await;
    let begun = Instant::now();
    merged.one.publish_of(ago(1), 1, false);
    merged.read_until(1).await;
    // One in whose rings there is more, and which was read until then.
    merged.other.shared.set_reading(true);
    let time = ago(1);
    merged.other.shared.window().complete(time);
    merged.one.publish_of(time, 1, false);
    merged.read_until(2).await;
    assert_eq!(merged.times.len(), 2);
    assert!(begun.elapsed() < watermark::PATIENCE);
}

#[tokio::test]
async fn a_capture_that_does_not_come_on_is_told_in_the_stream_of_several() {
    let mut merged = Merged::new();
    merged.other.shared.set_reading(true);
    let time = ago(20);
    merged.one.publish_of(time, 1, false);
    merged.read_for_a_while().await;
    assert!(merged.times.is_empty());
    merged.read_until(1).await;
    assert_eq!(merged.times, [time]);
    let sentence = "for 3 s it was not known whether there are any";
    assert_eq!(
        merged.text.matches(sentence).count(),
        2,
        "a description and a comment"
    );
    // What it has after all comes at once, and then it is waited for again.
    merged.other.publish_of(time - 1, 1, false);
    merged.other.shared.window().complete(time + 1);
    merged.read_until(2).await;
    merged.one.publish_of(time + 2, 1, false);
    merged.read_for_a_while().await;
    assert_eq!(merged.times, [time, time - 1]);
    merged.read_until(3).await;
    assert_eq!(merged.times, [time, time - 1, time + 2]);
    assert_eq!(merged.text.matches(sentence).count(), 2, "it is told once");
}
