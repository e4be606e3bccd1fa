//! The pcapng stream of a session: what is written into it, in which order, and what it has accounted for.

use std::{net::IpAddr, sync::LazyLock};

use bytes::{Bytes, BytesMut};
use nix::sys::utsname::uname;
use packetflix_common::{Direction, InterfaceCounters, RecordHeader};

use super::names::Names;
use crate::{
    netns::Netns,
    pcapng::{
        CaptureComment, EnhancedPacket, InterfaceAddress, InterfaceDescription, InterfaceStatistics,
        PacketDirection, Reception, SectionHeader, VlanTag,
    },
    tap::{CaptureClock, Drained, Head, Tap, TappedInterface},
    target::TargetDescription,
};

/// Most bytes of a batch. One packet always fits.
const MAX_BATCH_LEN: usize = 256 * 1024;

/// Room that a new batch begins with: enough for a quiet capture.
const INITIAL_BATCH_LEN: usize = 4 * 1024;

/// What the section header tells.
pub(super) struct StreamInfo<'a> {
    pub(super) netns: &'a Netns,
    pub(super) description: &'a TargetDescription,
    pub(super) node_name: &'a str,
    pub(super) chaste: bool,
    pub(super) filter: &'a str,
}

/// The stream, up to what was last taken from it.
#[derive(Debug)]
pub(super) struct Stream {
    batch: BytesMut,
    /// By the interface's number in the capture; `None` for one that vanished before it had joined.
    interfaces: Vec<Option<InterfaceState>>,
    /// How many interfaces are described.
    described: u32,
    /// Interfaces that were detached, by their index, with the time since which no record of them can come.
    leaving: Vec<(u32, u64)>,
    names: Names,
    statistics_due: bool,
    has_let_go: bool,
    /// The filter as the client wrote it.
    filter: String,
}

/// What the stream has said of an interface.
#[derive(Clone, Copy, Debug, Default)]
struct InterfaceState {
    /// Place of its description in the stream.
    number: u32,
    /// Packets written.
    delivered: u64,
    /// Packets lost, all that is known.
    dropped: u64,
    /// The counts last written: received, delivered and dropped.
    told: [u64; 3],
}

impl Stream {
    /// Begins with the section header and the descriptions of all interfaces.
    pub(super) fn begin(tap: &Tap, info: &StreamInfo<'_>) -> Self {
        let TargetDescription {
            name, kind, cluster, ..
        } = info.description;
        let (container_name, container_type) = if name.is_empty() {
            info.netns.name_and_type()
        } else {
            (info.description.full_name(), &kind[..])
        };
        let mut batch = BytesMut::with_capacity(INITIAL_BATCH_LEN);
        SectionHeader {
            hardware: std::env::consts::ARCH,
            os: &OS,
            application: concat!("packetflix ", env!("CARGO_PKG_VERSION")),
            comment: CaptureComment {
                container_name: &container_name,
                container_type,
                node_name: match &info.description.node_name[..] {
                    "" => info.node_name,
                    told => told,
                },
                cluster_uid: &cluster.uid,
                filter: info.filter,
                chaste: info.chaste,
            },
        }
        .encode(&mut batch);
        let mut stream = Self {
            batch,
            interfaces: Vec::new(),
            described: 0,
            leaving: Vec::new(),
            names: Names::default(),
            statistics_due: false,
            has_let_go: false,
            filter: info.filter.to_owned(),
        };
        stream.describe_new(tap);
        stream
    }

    /// Describes interfaces that joined since the last time.
    pub(super) fn describe_new(&mut self, tap: &Tap) {
        let mut new: Vec<&TappedInterface> = tap
            .interfaces()
            .filter(|interface| interface.id as usize >= self.interfaces.len())
            .collect();
        new.sort_by_key(|interface| interface.id);
        for interface in new {
            let addresses: Vec<InterfaceAddress> = interface
                .link
                .addresses
                .iter()
                .map(|link| InterfaceAddress {
                    address: link.address,
                    prefix_len: link.prefix_len,
                })
                .collect();
            let comment = interface.excluded.as_ref().map_or_else(String::new, |reason| {
                format!("nothing is captured here, since the filter cannot be applied: {reason}")
            });
            InterfaceDescription {
                link_type: interface.link_type,
                name: &interface.link.name,
                description: &interface.link.alias,
                addresses: &addresses,
                mac: interface.link.mac,
                speed: interface.link.speed,
                filter: &self.filter,
                comment: &comment,
                os: &OS,
            }
            .encode(&mut self.batch);
            self.interfaces.resize(interface.id as usize, None);
            self.interfaces.push(Some(InterfaceState {
                number: self.described,
                ..InterfaceState::default()
            }));
            self.described += 1;
        }
    }

    /// Notes that an interface was detached; its final statistics follow its last packet.
    pub(super) fn leave(&mut self, tap: &Tap, ifindex: u32) {
        self.leaving.push((ifindex, tap.clock().now()));
    }

    /// Notes that all interfaces were detached.
    pub(super) fn end(&mut self, tap: &Tap) {
        let now = tap.clock().now();
        self.leaving = tap
            .interfaces()
            .map(|interface| (interface.link.ifindex, now))
            .collect();
    }

    /// Takes names of addresses. Those not yet told, and those that have changed, are written before any packet
    /// that is not written yet. An address has one name: with two, both would be written each time.
    pub(super) fn name<'a>(&mut self, names: impl IntoIterator<Item = (IpAddr, &'a str)>) {
        self.names.set(names);
    }

    /// Statistics are to be written with the next batch.
    pub(super) fn statistics_due(&mut self) {
        self.statistics_due = true;
    }

    /// Whether an interface has left for good since the last time that this was asked.
    pub(super) fn has_let_go(&mut self) -> bool {
        std::mem::take(&mut self.has_let_go)
    }

    /// What there is to send, if anything.
    pub(super) fn take_batch(&mut self) -> Option<Bytes> {
        (!self.batch.is_empty()).then(|| self.batch.split().freeze())
    }

    /// Packets delivered and dropped on all interfaces, as far as it is known.
    pub(super) fn totals(&self) -> super::Totals {
        super::Totals {
            delivered: self
                .interfaces
                .iter()
                .flatten()
                .map(|interface| interface.delivered)
                .sum(),
            dropped: self
                .interfaces
                .iter()
                .flatten()
                .map(|interface| interface.dropped)
                .sum(),
        }
    }

    /// Writes the statistics that are due, then the names that wait, then records that are not younger than
    /// `until`, as long as they fit into the batch.
    pub(super) fn fill(&mut self, tap: &mut Tap, until: u64) -> Drained {
        if std::mem::take(&mut self.statistics_due) {
            self.write_statistics(tap);
        }
        if !self
            .names
            .write(MAX_BATCH_LEN.saturating_sub(self.batch.len()), &mut self.batch)
        {
            // The packets wait until all names are told: the next batch has room for more of them.
            return Drained::Full(0);
        }
        let clock = *tap.clock();
        let now = clock.now();
        let Self {
            batch, interfaces, ..
        } = self;
        let drained = tap.drain(until, |record| write_record(record, &clock, batch, interfaces));
        let written_until = match drained {
            // The clock was set back: that all that is older is written does not follow.
            Drained::Full(next) if next > now => 0,
            Drained::Full(next) => next.saturating_sub(1).min(until),
            Drained::Held | Drained::Empty => until,
        };
        self.let_go(tap, written_until);
        drained
    }

    /// Writes the final statistics of interfaces that left before `until`, up to which all records are written.
    fn let_go(&mut self, tap: &mut Tap, until: u64) {
        let (done, leaving) = self.leaving.drain(..).partition(|(_, since)| *since <= until);
        self.leaving = leaving;
        let done: Vec<(u32, u64)> = done;
        for (ifindex, since) in done {
            if let Some((interface, counters)) = tap.remove(ifindex) {
                self.write_final_statistics(&interface, &counters, tap.clock(), since);
                self.has_let_go = true;
            }
        }
    }

    /// Writes the statistics of interfaces whose counts have changed.
    ///
    /// They speak of the packets that the stream accounts for up to this place: those in it, and those that
    /// are known to be lost. Packets that are still in the rings come with the next ones.
    fn write_statistics(&mut self, tap: &Tap) {
        for interface in tap.interfaces() {
            let Some(state) = state_of(&mut self.interfaces, interface.id) else {
                continue;
            };
            let counters = tap.counters(interface.link.ifindex);
            state.dropped = counters.dropped();
            let accepted = state.delivered + state.dropped;
            let rejected = counters.seen.saturating_sub(counters.accepted);
            let told = [accepted + rejected, state.delivered, state.dropped];
            if std::mem::replace(&mut state.told, told) == told {
                continue;
            }
            let clock = tap.clock();
            InterfaceStatistics {
                interface_id: state.number,
                timestamp: clock.realtime(clock.now()),
                start: clock.realtime(interface.since),
                end: None,
                received: accepted + rejected,
                accepted,
                delivered: state.delivered,
                dropped: state.dropped,
            }
            .encode(&mut self.batch);
        }
    }

    fn write_final_statistics(
        &mut self,
        interface: &TappedInterface,
        counters: &InterfaceCounters,
        clock: &CaptureClock,
        end: u64,
    ) {
        let Some(state) = state_of(&mut self.interfaces, interface.id) else {
            return;
        };
        state.dropped = counters.accepted.saturating_sub(state.delivered);
        if state.delivered != counters.delivered || state.dropped != counters.dropped() {
            tracing::error!(
                interface = interface.link.name,
                ?counters,
                delivered = state.delivered,
                "the stream and the kernel count differently"
            );
        }
        let end = clock.realtime(end);
        InterfaceStatistics {
            interface_id: state.number,
            timestamp: end,
            start: clock.realtime(interface.since),
            end: Some(end),
            received: counters.seen,
            accepted: counters.accepted,
            delivered: state.delivered,
            dropped: state.dropped,
        }
        .encode(&mut self.batch);
    }
}

/// Writes one record, unless the batch is full.
#[inline]
fn write_record(
    record: &[u8],
    clock: &CaptureClock,
    batch: &mut BytesMut,
    interfaces: &mut [Option<InterfaceState>],
) -> Head {
    let Some((header, data)) = RecordHeader::decode(record) else {
        tracing::error!(len = record.len(), "a record is shorter than it says");
        return Head::Remove;
    };
    let Some(interface) = state_of(interfaces, header.interface_id) else {
        tracing::debug!(
            ?header,
            "a packet is of an interface that vanished before it had joined"
        );
        return Head::Remove;
    };
    let packet = EnhancedPacket {
        interface_id: interface.number,
        timestamp: clock.realtime(header.timestamp),
        original_len: header.original_len,
        data,
        vlan: (header.vlan_protocol != 0).then_some(VlanTag {
            protocol: header.vlan_protocol,
            tci: header.vlan_tci,
        }),
        direction: direction(&header),
        reception: reception(&header),
        dropped_before: header.dropped_before,
    };
    if batch.len() + packet.encoded_len() > MAX_BATCH_LEN && !batch.is_empty() {
        return Head::Keep;
    }
    packet.encode(batch);
    interface.delivered += 1;
    Head::Remove
}

#[inline]
fn state_of(interfaces: &mut [Option<InterfaceState>], id: u32) -> Option<&mut InterfaceState> {
    interfaces.get_mut(id as usize)?.as_mut()
}

fn direction(header: &RecordHeader) -> PacketDirection {
    if header.direction == Direction::Outbound as u8 {
        PacketDirection::Outbound
    } else {
        PacketDirection::Inbound
    }
}

/// From the packet type of `linux/if_packet.h`, which means something for received packets only.
fn reception(header: &RecordHeader) -> Reception {
    match (direction(header), header.packet_type) {
        (PacketDirection::Outbound, _) => Reception::Unspecified,
        (PacketDirection::Inbound, 0) => Reception::Unicast,
        (PacketDirection::Inbound, 1) => Reception::Broadcast,
        (PacketDirection::Inbound, 2) => Reception::Multicast,
        (PacketDirection::Inbound, 3) => Reception::Promiscuous,
        (PacketDirection::Inbound, _) => Reception::Unspecified,
    }
}

/// Name and release of the operating system.
static OS: LazyLock<String> = LazyLock::new(|| {
    uname().map_or_else(
        |_| "Linux".to_owned(),
        |name| {
            format!(
                "{} {}",
                name.sysname().to_string_lossy(),
                name.release().to_string_lossy()
            )
        },
    )
});
