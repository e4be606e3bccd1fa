//! A client's own blocks: what stands in its stream beside the packets, and what it has accounted for.
//!
//! The section header goes out at once. Only packets are kept back, for a tenth of a second or 64 KiB at most, for the names
//! that Wireshark wants to know before them.

use std::{
    collections::BTreeMap,
    sync::{Arc, LazyLock},
};

use bytes::{Bytes, BytesMut};
use nix::sys::utsname::uname;

use super::{
    Totals,
    statistics::{InterfaceCounts, Statistics, TapInterface},
    window::PacketCount,
};
use crate::{
    description::TargetDescription,
    pcapng::{
        CaptureComment, InterfaceAddress, InterfaceDescription, InterfaceStatistics, LinkType,
        MAX_STATISTICS_LEN, SEVERAL_LINK_TYPES, SectionHeader,
    },
    tap::{MAY_MISS_INTERFACES, RateLimits},
};

/// What the section header tells.
pub(super) struct StreamInfo<'a> {
    /// Name and type of who holds the namespace, unless the description names one.
    pub(super) holder: (&'a str, &'static str),
    pub(super) description: &'a TargetDescription,
    pub(super) node_name: &'a str,
    pub(super) chaste: bool,
    pub(super) filter: &'a str,
    pub(super) left_out: &'a str,
    /// Inode number of the namespace.
    pub(super) netns: u64,
    /// Whether interfaces of other targets are in the same section.
    pub(super) is_one_of_several: bool,
    pub(super) snaplen: u32,
    pub(super) rates: RateLimits,
}

/// Most images of a pod that are told with each interface, and most bytes of a name.
const MAX_IMAGES: usize = 4;
const MAX_FACT_LEN: usize = 256;

/// Of an interface that a client can have no packets of.
const GONE: &str = "this interface was gone, or had another name, when the capture began";

/// Of an interface whose packets are not seen where tcpdump sees them: behind its name, and what that means.
const BY_TCX: &str = " (TCX)";
const SEEN_BY_TCX: &str = "the hook is TCX: what is sent is shown before the queueing discipline, and before it is cut into segments \
    and has its checksums, also where the device offloads nothing; what is redirected through another device, such as an ifb, is \
    shown twice";

/// The stream, up to what was last taken from it.
#[derive(Debug)]
pub(super) struct Stream {
    blocks: BytesMut,
    /// By the places of their descriptions, those without final statistics.
    interfaces: BTreeMap<usize, Interface>,
    /// Packets of those that have them.
    done: Sums,
    /// When the client joined, in nanoseconds of the records' clock.
    since: u64,
    /// The link type of the first interface.
    link_type: Option<LinkType>,
    /// Whose interfaces they are.
    belongs_to: String,
    /// What stands before their names, where there are those of several targets.
    path: String,
    /// The filter as the client wrote it.
    filter: String,
    /// What is left out for other reasons, or nothing.
    left_out: String,
    snaplen: u32,
    rates: RateLimits,
}

/// What the stream has said of an interface.
#[derive(Clone, Copy, Debug, Default)]
struct Interface {
    /// What had become of its packets when the client joined.
    before: InterfaceCounts,
    /// When its capture began.
    start: u64,
    /// Packets in the stream.
    delivered: u64,
    /// Packets that the client took too late.
    lost: u64,
    /// Packets that the kernel lost before those, by what they tell, as counted since the tap began.
    told_lost: u64,
    /// Packets lost in all, as far as it is known.
    dropped: u64,
    /// The counts last written: received, delivered and dropped.
    told: [u64; 3],
    /// Whether it is said that interfaces may be missing.
    says_may_miss: bool,
}

/// Packets of several interfaces.
#[derive(Clone, Copy, Debug, Default)]
struct Sums {
    delivered: u64,
    dropped: u64,
    lost: u64,
}

impl Sums {
    fn with(self, interface: &Interface) -> Self {
        Self {
            delivered: self.delivered + interface.delivered,
            dropped: self.dropped + interface.dropped,
            lost: self.lost + interface.lost,
        }
    }
}

/// Which interfaces' statistics are written, beside the final ones of those that have left.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Which {
    /// No others.
    Ended,
    /// Those of which losses are known that none has told.
    Lossy,
    /// Those whose counts have changed.
    Changed,
    /// All, as their final ones.
    All,
}

impl Stream {
    /// Begins with the section header. What `before` tells is not this client's.
    pub(super) fn begin(
        info: &StreamInfo<'_>,
        before: &BTreeMap<usize, InterfaceCounts>,
        since: u64,
    ) -> Self {
        let TargetDescription {
            name, kind, cluster, ..
        } = info.description;
        let full_name = info.description.full_name();
        let (container_name, container_type) = if name.is_empty() {
            info.holder
        } else {
            (&full_name[..], &kind[..])
        };
        let node_name = match &info.description.node_name[..] {
            "" => info.node_name,
            told => told,
        };
        let mut blocks = BytesMut::new();
        let comment = CaptureComment {
            container_name,
            container_type,
            node_name,
            cluster_uid: &cluster.uid,
            filter: info.filter,
            chaste: info.chaste,
        };
        encode_section_header(&comment, &mut blocks);
        let place = match info.is_one_of_several {
            true => vec![format!("node {node_name}"), format!("netns {}", info.netns)],
            false => Vec::new(),
        };
        let interfaces = before.iter().map(|(place, before)| {
            let interface = Interface {
                before: *before,
                told_lost: before.told_lost,
                ..Interface::default()
            };
            (*place, interface)
        });
        Self {
            blocks,
            interfaces: interfaces.collect(),
            done: Sums::default(),
            since,
            link_type: None,
            belongs_to: belongs_to(container_name, container_type, &info.description.images, &place),
            path: match info.is_one_of_several {
                true => format!(
                    "{}/",
                    &container_name[..container_name.floor_char_boundary(MAX_FACT_LEN)]
                ),
                false => String::new(),
            },
            filter: info.filter.to_owned(),
            left_out: info.left_out.to_owned(),
            snaplen: info.snaplen,
            rates: info.rates,
        }
    }

    /// Describes the interfaces from the place `from` on.
    pub(super) fn describe(&mut self, from: usize, interfaces: &[Arc<TapInterface>]) {
        for (place, interface) in (from..).zip(interfaces) {
            let (since, bounds) = (self.since, self.bounds());
            let first = *self.link_type.get_or_insert(interface.link_type);
            let state = self.interfaces.entry(place).or_default();
            state.start = interface.since.max(since);
            let sentences = [
                match &interface.left_out {
                    _ if state.before.end.is_some() => GONE,
                    Some(reason) => reason,
                    None => &bounds,
                },
                interface.note.as_deref().unwrap_or_default(),
                if interface.link_type == first {
                    ""
                } else {
                    SEVERAL_LINK_TYPES
                },
                if interface.is_seen_by_tcx && interface.left_out.is_none() {
                    SEEN_BY_TCX
                } else {
                    ""
                },
            ];
            let comment = sentences
                .map(str::to_owned)
                .into_iter()
                .filter(|one| !one.is_empty());
            let comment = comment.collect::<Vec<_>>().join("; ");
            let link = &interface.link;
            // Wireshark shows this in the place of the name, not beside it.
            let alias = Some(&link.alias).filter(|alias| !alias.is_empty());
            let alias = alias.map_or_else(String::new, |alias| format!(", {alias}"));
            let hook = if interface.is_seen_by_tcx { BY_TCX } else { "" };
            let description = format!("{}: {}{alias}{hook}", self.belongs_to, link.name);
            let name = format!("{}{}", self.path, link.name);
            let addresses = link.addresses.iter().map(|link| InterfaceAddress {
                address: link.address,
                prefix_len: link.prefix_len,
            });
            InterfaceDescription {
                link_type: interface.link_type,
                snaplen: self.snaplen,
                name: &name,
                description: &description,
                addresses: &addresses.collect::<Vec<_>>(),
                mac: link.mac,
                speed: link.speed,
                filter: &self.filter,
                comment: &comment,
                os: &OS,
            }
            .encode(&mut self.blocks);
        }
    }

    /// What of the packets of an interface is not in the stream, beside what the filter rejects.
    fn bounds(&self) -> String {
        let rates = self.rates.to_string();
        let told = [&rates[..], &self.left_out]
            .into_iter()
            .filter(|text| !text.is_empty());
        told.collect::<Vec<_>>().join("\n")
    }

    /// Takes back the descriptions from the place `from` on, and whatever else is not taken yet.
    pub(super) fn forget(&mut self, from: usize) {
        self.interfaces.split_off(&from);
        self.blocks.clear();
    }

    /// Bytes of the final statistics that are still to come, at most.
    pub(super) fn end_len(&self) -> u64 {
        (self.interfaces.len() * MAX_STATISTICS_LEN) as u64
    }

    /// Whether an interface is described, and has no final statistics yet.
    pub(super) fn is_open(&self, place: usize) -> bool {
        self.interfaces.contains_key(&place)
    }

    /// Takes account of packets that follow in the stream.
    pub(super) fn deliver(&mut self, counts: &[PacketCount]) {
        for count in counts {
            if let Some(interface) = self.interfaces.get_mut(&count.interface) {
                interface.delivered += count.packets;
                interface.told_lost += count.told_lost;
            }
        }
    }

    /// Takes account of packets that the client took too late.
    pub(super) fn lose(&mut self, counts: &[PacketCount]) {
        for count in counts {
            if let Some(interface) = self.interfaces.get_mut(&count.interface) {
                interface.lost += count.packets;
                interface.told_lost += count.told_lost;
            }
        }
    }

    /// Takes account of all packets that were captured and do not stand in the stream: the client loses them. Gives how many.
    pub(super) fn lose_the_rest(&mut self, statistics: &Statistics) -> u64 {
        let mut lost = 0;
        for (place, interface) in &mut self.interfaces {
            let Some(counts) = statistics.interfaces.get(place) else {
                continue;
            };
            let captured = counts.delivered + counts.in_rings;
            let captured = captured.saturating_sub(interface.before.delivered);
            let rest = captured.saturating_sub(interface.delivered + interface.lost);
            interface.lost += rest;
            lost += rest;
        }
        lost
    }

    /// Takes account of what has become of all packets.
    pub(super) fn account(&mut self, statistics: &Statistics) {
        for (place, interface) in &mut self.interfaces {
            let Some(counts) = statistics.interfaces.get(place) else {
                continue;
            };
            // The packets may know more than these statistics, if those are of a place before them.
            let by_kernel = counts.dropped.max(interface.told_lost);
            interface.dropped = by_kernel.saturating_sub(interface.before.dropped) + interface.lost;
        }
    }

    /// Whether losses are known that no statistics have told.
    pub(super) fn has_untold_losses(&self) -> bool {
        let mut open = self.interfaces.values();
        open.any(|interface| interface.dropped > interface.told[2])
    }

    /// Writes statistics, as far as all that is not taken yet has `room` bytes with them; there is room for final ones
    /// always.
    ///
    /// They speak of the packets that the stream accounts for up to this place: those in it, and those that are
    /// known to be lost.
    pub(super) fn write_statistics(&mut self, statistics: &Statistics, which: Which, room: u64) {
        self.account(statistics);
        let Statistics {
            clock,
            taken,
            may_miss,
            ..
        } = statistics;
        let with_comment = MAX_STATISTICS_LEN + 8 + MAY_MISS_INTERFACES.len();
        // There may be just enough room for final ones without it.
        let has_comment =
            *may_miss && (self.blocks.len() + self.interfaces.len() * with_comment) as u64 <= room;
        let (comment, most_len) = if has_comment {
            (MAY_MISS_INTERFACES, with_comment)
        } else {
            ("", MAX_STATISTICS_LEN)
        };
        let Self {
            interfaces,
            blocks,
            done,
            ..
        } = self;
        interfaces.retain(|place, interface| {
            let Some(counts) = statistics.interfaces.get(place) else {
                return true;
            };
            let end = counts.end.or((which == Which::All).then_some(*taken));
            // One that was gone when the client joined has its end then.
            let end = end.map(|end| end.max(interface.start));
            let accepted = interface.delivered + interface.dropped;
            let received = accepted + counts.rejected.saturating_sub(interface.before.rejected);
            let told = [received, interface.delivered, interface.dropped];
            let is_wanted = match which {
                Which::Ended | Which::All => false,
                Which::Lossy => interface.dropped > interface.told[2],
                Which::Changed => interface.told != told || (has_comment && !interface.says_may_miss),
            };
            let has_room = (blocks.len() + most_len) as u64 <= room;
            if end.is_none() && !(is_wanted && has_room) {
                return true;
            }
            interface.told = told;
            interface.says_may_miss = has_comment;
            InterfaceStatistics {
                interface_id: *place as u32,
                timestamp: clock.realtime(end.unwrap_or(*taken)),
                start: clock.realtime(interface.start),
                end: end.map(|end| clock.realtime(end)),
                received: Some(received),
                accepted: Some(accepted),
                delivered: interface.delivered,
                dropped: Some(interface.dropped),
                comment,
            }
            .encode(blocks);
            if end.is_some() {
                *done = done.with(interface);
            }
            end.is_none()
        });
    }

    /// The blocks to add others to.
    pub(super) fn blocks(&mut self) -> &mut BytesMut {
        &mut self.blocks
    }

    /// What there is to send, if anything.
    pub(super) fn take(&mut self) -> Option<Bytes> {
        (!self.blocks.is_empty()).then(|| self.blocks.split().freeze())
    }

    fn sums(&self) -> Sums {
        self.interfaces.values().fold(self.done, Sums::with)
    }

    /// Packets delivered and lost on all interfaces, as far as it is known.
    pub(super) fn totals(&self) -> Totals {
        let Sums {
            delivered, dropped, ..
        } = self.sums();
        Totals { delivered, dropped }
    }

    /// Packets that the kernel lost on all interfaces, as far as it is known.
    pub(super) fn lost_in_kernel(&self) -> u64 {
        let sums = self.sums();
        sums.dropped.saturating_sub(sums.lost)
    }
}

/// Begins a section.
pub(crate) fn encode_section_header(comment: &CaptureComment<'_>, out: &mut BytesMut) {
    SectionHeader {
        hardware: std::env::consts::ARCH,
        os: &OS,
        application: concat!("packetflix ", env!("CARGO_PKG_VERSION")),
        comment: *comment,
    }
    .encode(out);
}

/// What an interface belongs to, as people would say it.
fn belongs_to(name: &str, kind: &str, images: &[String], place: &[String]) -> String {
    let facts: Vec<&str> = [kind]
        .into_iter()
        .chain(images.iter().take(MAX_IMAGES).map(String::as_str))
        .chain(place.iter().map(String::as_str))
        .filter(|fact| !fact.is_empty())
        .map(|fact| &fact[..fact.floor_char_boundary(MAX_FACT_LEN)])
        .collect();
    let name = &name[..name.floor_char_boundary(MAX_FACT_LEN)];
    match &facts[..] {
        [] => name.to_owned(),
        facts => format!("{name} ({})", facts.join(", ")),
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn interfaces_belong_to_whoever_has_them() {
        let image = ["nginx:1.27".to_owned()];
        assert_eq!(
            belongs_to("web", "docker", &image, &[]),
            "web (docker, nginx:1.27)"
        );
        assert_eq!(belongs_to("sleep(7)", "proc", &[], &[]), "sleep(7) (proc)");
        assert_eq!(belongs_to("web", "", &[], &[]), "web");
        let long = belongs_to(&"ü".repeat(500), "pod", &vec!["i".repeat(500); 9], &[]);
        assert_eq!(
            (long.len(), long.matches(", ").count()),
            (256 + 2 + 3 + 4 * 258 + 1, 4)
        );
    }
}
