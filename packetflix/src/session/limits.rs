//! Where a client's stream ends although there is more to capture.
//!
//! A client's limits are nothing to others of its tap. A batch that goes beyond them is cut at the end of a block: a slice, no
//! copy. Each packet tells how many of its interface and CPU were lost before it, and batches come with those sums, so that the
//! last statistics have what was lost up to the cut, and not what was lost while the end was written. How many were rejected up
//! to there nobody knows, but how many were by now. Of `bytes=`, room for the final statistics is kept. Names, and the
//! statistics before those, that have no room are left out; the first packet or interface that has none is the end. Time is a
//! task of its own that stops the session, so that a client that takes nothing does not outstay it.

use std::{fmt, time::Duration};

use bytes::Bytes;
use tokio::time::{Instant, sleep_until};
use tokio_util::{sync::CancellationToken, task::AbortOnDropHandle};

use super::{
    schedule::StatisticsPace,
    window::{MAX_DESCRIPTIONS, PacketCount},
};
use crate::{pcapng::EncodedPacket, timeline::Bound};

/// What a client gets at most; `None` is any amount.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Limits {
    /// Packets.
    pub(crate) packets: Option<u64>,
    /// Bytes of the whole stream.
    pub(crate) bytes: Option<u64>,
    /// Time from the first byte of the stream on.
    pub(crate) duration: Option<Duration>,
    /// The same, by the will of the operator.
    pub(crate) max_duration: Option<Duration>,
}

impl Limits {
    /// When statistics come, unless the client says so: what it has bounded is to come to its own end, and to have its
    /// statistics there alone, as Wireshark wants them.
    pub(crate) fn usual_statistics(&self) -> StatisticsPace {
        match self {
            Self {
                packets: None,
                bytes: None,
                duration: None,
                ..
            } => StatisticsPace::OnLoss,
            _ => StatisticsPace::AtEnd,
        }
    }
}

/// The limit that a stream has reached.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Limit {
    Packets(u64),
    Bytes(u64),
    Duration(Duration),
    /// The operator's.
    MaxDuration(Duration),
    /// Descriptions of interfaces that are kept for a client.
    Untold,
}

impl From<Bound> for Limit {
    fn from(bound: Bound) -> Self {
        match bound {
            Bound::Packets(packets) => Self::Packets(packets),
            Bound::Bytes(bytes) => Self::Bytes(bytes),
        }
    }
}

/// Not even what every stream begins and ends with can be sent.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("bytes={bytes} has no room for packets: the stream begins and ends with {least} bytes")]
pub(crate) struct TooFewBytes {
    pub(crate) bytes: u64,
    pub(crate) least: u64,
}

impl Limits {
    /// The time after which the stream ends, and the limit that it then has reached.
    fn time(&self) -> Option<(Duration, Limit)> {
        let own = self.duration.map(|time| (time, Limit::Duration(time)));
        let operators = self.max_duration.map(|time| (time, Limit::MaxDuration(time)));
        // What was asked for is what is told where both are the same.
        own.into_iter().chain(operators).min_by_key(|(time, _)| *time)
    }
}

impl fmt::Display for Limit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Untold => write!(
                f,
                "interfaces come and go faster than the client takes what is told of them: {MAX_DESCRIPTIONS} wait for it"
            ),
            Self::Packets(1) => f.write_str("the limit of 1 packet is reached"),
            Self::Packets(packets) => write!(f, "the limit of {packets} packets is reached"),
            Self::Bytes(bytes) => write!(f, "the limit of {bytes} bytes is reached"),
            Self::Duration(time) => write!(f, "the limit of {time:?} is reached"),
            Self::MaxDuration(time) => {
                write!(
                    f,
                    "the limit of {time:?} that the service sets every capture is reached"
                )
            }
        }
    }
}

/// Stops a session when its time is over.
#[derive(Debug)]
pub(crate) struct Timer {
    deadline: Instant,
    limit: Limit,
    _stops: AbortOnDropHandle<()>,
}

impl Timer {
    /// Begins now; `None` where time has no limit. A task of its own cancels `stop`, so that a client that takes nothing
    /// does not outstay its time.
    pub(crate) fn start(limits: &Limits, stop: CancellationToken) -> Option<Self> {
        let (time, limit) = limits.time()?;
        let deadline = Instant::now().checked_add(time)?;
        let stops = tokio::spawn(async move {
            sleep_until(deadline).await;
            stop.cancel();
        });
        Some(Self {
            deadline,
            limit,
            _stops: AbortOnDropHandle::new(stops),
        })
    }

    /// The limit that a session has reached which stopped at that time, if it is this one.
    pub(crate) fn over(&self, stopped: Instant) -> Option<Limit> {
        (self.deadline <= stopped).then_some(self.limit)
    }
}

/// The beginning of a batch.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Beginning {
    /// Whole blocks.
    pub(super) packets: Bytes,
    /// How many packets of which interface that is.
    pub(super) counts: Vec<PacketCount>,
    /// How many packets that is in all.
    pub(super) total: u64,
}

/// As much of a batch of packet blocks as are at most so many packets and bytes. Copies nothing.
pub(super) fn beginning(batch: &Bytes, max_packets: u64, max_bytes: u64) -> Beginning {
    let mut counts: Vec<PacketCount> = Vec::new();
    let (mut len, mut total) = (0, 0);
    while total < max_packets
        && let Some(packet) = EncodedPacket::first(&batch[len..])
        && (len + packet.len) as u64 <= max_bytes
    {
        len += packet.len;
        total += 1;
        let interface = packet.interface_id as usize;
        let place = counts.iter().position(|count| count.interface == interface);
        let place = place.unwrap_or_else(|| {
            counts.push(PacketCount {
                interface,
                ..PacketCount::default()
            });
            counts.len() - 1
        });
        counts[place].packets += 1;
        counts[place].told_lost += packet.dropped_before;
    }
    Beginning {
        packets: batch.slice(..len),
        counts,
        total,
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use bytes::BytesMut;
    use proptest::prelude::*;

    use super::*;
    use crate::pcapng::{EnhancedPacket, Offloads, PacketDirection, Reception, VlanTag};

    #[derive(Clone, Debug)]
    struct Packet {
        interface: u32,
        len: usize,
        lost: u32,
        is_tagged: bool,
    }

    fn packet() -> impl Strategy<Value = Packet> {
        let lost = prop_oneof![Just(0), 1u32..1000];
        (0u32..4, 0usize..200, lost, any::<bool>()).prop_map(|(interface, len, lost, is_tagged)| Packet {
            interface,
            len,
            lost,
            is_tagged,
        })
    }

    /// The blocks, and where each ends.
    fn encode(packets: &[Packet]) -> (Bytes, Vec<usize>) {
        let mut blocks = BytesMut::new();
        let ends = packets.iter().map(|packet| {
            EnhancedPacket {
                interface_id: packet.interface,
                timestamp: 0,
                original_len: 1000,
                cooked: None,
                data: &vec![0xff; packet.len],
                snaplen: 150,
                vlan: packet.is_tagged.then_some(VlanTag {
                    protocol: 0x8100,
                    tci: 7,
                }),
                direction: PacketDirection::Inbound,
                reception: Reception::Unicast,
                offloads: Offloads::default(),
                dropped_before: packet.lost,
            }
            .encode(&mut blocks);
            blocks.len()
        });
        let ends = ends.collect();
        (blocks.freeze(), ends)
    }

    proptest! {
        /// Any cut gives whole blocks, as many as fit, and counts them by interface.
        #[test]
        fn beginning_is_whole_blocks_and_their_counts(
            packets in proptest::collection::vec(packet(), 0..60),
            max_packets in prop_oneof![0u64..70, Just(u64::MAX)],
            max_bytes in prop_oneof![0u64..12_000, Just(u64::MAX)],
        ) {
            let (batch, ends) = encode(&packets);
            let taken = beginning(&batch, max_packets, max_bytes);
            let fitting = ends.iter().take_while(|end| **end as u64 <= max_bytes).count();
            let expected = fitting.min(usize::try_from(max_packets).unwrap_or(usize::MAX));
            prop_assert_eq!(taken.total, expected as u64);
            let end = if expected == 0 { 0 } else { ends[expected - 1] };
            prop_assert_eq!(&taken.packets[..], &batch[..end]);
            let mut by_interface: BTreeMap<usize, (u64, u64)> = BTreeMap::new();
            for packet in &packets[..expected] {
                let (packets, lost) = by_interface.entry(packet.interface as usize).or_default();
                *packets += 1;
                *lost += u64::from(packet.lost);
            }
            let counted = taken.counts.iter().map(|one| (one.interface, (one.packets, one.told_lost)));
            prop_assert_eq!(counted.collect::<BTreeMap<_, _>>(), by_interface.clone());
            prop_assert_eq!(taken.counts.len(), by_interface.len());
        }

        #[test]
        fn takes_any_bytes(batch in proptest::collection::vec(any::<u8>(), 0..300)) {
            let batch = Bytes::from(batch);
            prop_assert!(beginning(&batch, u64::MAX, u64::MAX).packets.len() <= batch.len());
        }
    }

    #[test]
    fn shorter_time_counts_and_says_whose_it_is() {
        let [short, long] = [1, 60].map(Duration::from_secs);
        let limits = |duration, max_duration| Limits {
            duration,
            max_duration,
            ..Limits::default()
        };
        assert_eq!(limits(None, None).time(), None);
        for (limits, limit) in [
            (limits(Some(short), Some(long)), Limit::Duration(short)),
            (limits(Some(short), Some(short)), Limit::Duration(short)),
            (limits(Some(long), Some(short)), Limit::MaxDuration(short)),
            (limits(None, Some(short)), Limit::MaxDuration(short)),
        ] {
            assert_eq!(limits.time(), Some((short, limit)));
        }
        let [packet, packets] = [1, 100].map(|packets| Limit::Packets(packets).to_string());
        assert_eq!(packet, "the limit of 1 packet is reached");
        assert_eq!(packets, "the limit of 100 packets is reached");
        let time = Limit::Duration(Duration::from_millis(1500)).to_string();
        assert_eq!(time, "the limit of 1.5s is reached");
        assert!(!Limit::Untold.to_string().contains("  "));
    }
}
