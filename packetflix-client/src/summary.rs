//! What a stream amounts to.

use std::{collections::HashMap, fmt, time::Duration};

use crate::{
    pcapng::{Kind, blocks},
    terminal::shown,
    units::{shown_duration, shown_size},
};

/// Most interfaces that are told of by their names.
const MAX_TOLD: usize = 32;

/// Most sentences of a stream that people are told.
const MAX_SENTENCES: usize = 100;

/// What has come so far.
#[derive(Debug, Default)]
pub struct Tally {
    /// Packets.
    pub packets: u64,
    /// Bytes of pcapng.
    pub bytes: u64,
    sections: Vec<SectionTally>,
    /// What the stream has told in the place of packets, until it is taken.
    sentences: Vec<String>,
    told: usize,
}

/// What has come of one section.
#[derive(Debug, Default)]
struct SectionTally {
    /// By their numbers.
    interfaces: Vec<InterfaceTally>,
    /// Of interfaces that the section does not describe.
    others: InterfaceTally,
}

/// What has come of one interface.
#[derive(Debug, Default)]
struct InterfaceTally {
    name: String,
    packets: u64,
    /// As later packets tell it.
    dropped: u64,
    /// As the statistics tell it, which know of losses that no packet followed.
    told: u64,
    /// Whether its statistics do not tell it.
    is_untold: bool,
    /// Whether it has statistics.
    has_ended: bool,
}

/// What a whole capture came to, or one interface of it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Totals {
    /// Packets that the filter accepted.
    pub captured: u64,
    /// Those that came.
    pub delivered: u64,
    /// Those that were lost, as far as it is known.
    pub dropped: u64,
    /// Whether there may be more of these.
    pub is_untold: bool,
}

impl Tally {
    /// Takes note of whole blocks.
    pub fn note(&mut self, whole: &[u8]) {
        self.note_first(whole, u64::MAX);
    }

    /// Takes note of whole blocks, up to the packet after the first `count`.
    pub fn note_first(&mut self, whole: &[u8], count: u64) {
        let most = self.packets.saturating_add(count);
        for block in blocks(whole) {
            let kind = block.kind();
            if matches!(kind, Kind::Packet(_)) && self.packets == most {
                return;
            }
            self.bytes += block.bytes().len() as u64;
            if kind == Kind::Section {
                self.sections.push(SectionTally::default());
            }
            let Some(section) = self.sections.last_mut() else {
                continue;
            };
            match kind {
                Kind::Interface(interface) => {
                    let name = String::from_utf8_lossy(interface.name).into_owned();
                    if let Some(sentence) = interface.sentence() {
                        self.told += 1;
                        if self.told <= MAX_SENTENCES {
                            self.sentences
                                .push(about(&name, &String::from_utf8_lossy(sentence)));
                        }
                    }
                    section.interfaces.push(InterfaceTally {
                        name,
                        ..InterfaceTally::default()
                    });
                }
                Kind::Packet(packet) => {
                    self.packets += 1;
                    let interface = section.interface(packet.interface);
                    interface.packets += 1;
                    interface.dropped = interface.dropped.saturating_add(packet.dropped_before());
                }
                Kind::Statistics(statistics) => {
                    let interface = section.interface(statistics.interface);
                    interface.told = statistics.dropped;
                    interface.is_untold = statistics.is_untold;
                    interface.has_ended = true;
                }
                _ => {}
            }
        }
    }

    /// The stream broke off: how many packets were lost of the interfaces without statistics, nobody tells any more.
    pub fn note_break(&mut self) {
        let last = self.sections.last_mut();
        for interface in last.into_iter().flat_map(|section| &mut section.interfaces) {
            interface.is_untold |= !interface.has_ended;
        }
    }

    /// What the stream has told since this was last asked for, up to a bound for all of it.
    pub fn take_sentences(&mut self) -> Vec<String> {
        std::mem::take(&mut self.sentences)
    }

    /// What that comes to.
    pub fn totals(&self) -> Totals {
        let mut totals = Totals::default();
        for interface in self.interfaces() {
            totals.add(interface);
        }
        totals
    }

    /// What that comes to for each name of an interface that had packets, in the order of their descriptions.
    fn totals_by_name(&self) -> Vec<(&str, Totals)> {
        let mut places: HashMap<&str, usize> = HashMap::new();
        let mut all: Vec<(&str, Totals)> = Vec::new();
        for interface in self.interfaces() {
            let place = *places.entry(&interface.name).or_insert(all.len());
            if place == all.len() {
                all.push((&interface.name, Totals::default()));
            }
            all[place].1.add(interface);
        }
        all.retain(|(_, totals)| totals.captured > 0);
        all
    }

    fn interfaces(&self) -> impl Iterator<Item = &InterfaceTally> {
        self.sections
            .iter()
            .flat_map(|section| section.interfaces.iter().chain([&section.others]))
    }
}

impl SectionTally {
    fn interface(&mut self, number: u32) -> &mut InterfaceTally {
        self.interfaces
            .get_mut(number as usize)
            .unwrap_or(&mut self.others)
    }
}

impl Totals {
    fn add(&mut self, interface: &InterfaceTally) {
        let dropped = interface.told.max(interface.dropped);
        self.captured = self
            .captured
            .saturating_add(interface.packets.saturating_add(dropped));
        self.delivered += interface.packets;
        self.dropped = self.dropped.saturating_add(dropped);
        self.is_untold |= interface.is_untold;
    }
}

impl fmt::Display for Totals {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{} packets captured, {} delivered, {} dropped",
            self.captured, self.delivered, self.dropped
        )?;
        match self.is_untold {
            true => f.write_str(", and how many more were lost is not known"),
            false => Ok(()),
        }
    }
}

/// A sentence that names what it is about.
fn about(name: &str, sentence: &str) -> String {
    match sentence.contains(name) {
        true => sentence.to_owned(),
        false => format!("{name}: {sentence}"),
    }
}

/// The lines that tell how a capture went.
pub(crate) struct Summary<'a> {
    pub(crate) tally: &'a Tally,
    pub(crate) duration: Duration,
    /// Why it ended, where it did not fail.
    pub(crate) reason: Option<&'a str>,
}

impl fmt::Display for Summary<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(reason) = self.reason {
            writeln!(f, "packetflix: {}", shown(reason))?;
        }
        write!(
            f,
            "packetflix: {} ({} in {})",
            self.tally.totals(),
            shown_size(self.tally.bytes),
            shown_duration(self.duration),
        )?;
        let untold = self.tally.told.saturating_sub(MAX_SENTENCES);
        if untold > 0 {
            write!(
                f,
                "\npacketflix: the stream has told {untold} sentences more, as interfaces without packets"
            )?;
        }
        let interfaces = self.tally.totals_by_name();
        if interfaces.len() < 2 {
            return Ok(());
        }
        for (name, totals) in interfaces.iter().take(MAX_TOLD) {
            write!(f, "\npacketflix: {}: {totals}", shown(name))?;
        }
        match interfaces.len().saturating_sub(MAX_TOLD) {
            0 => Ok(()),
            others => write!(f, "\npacketflix: and {others} interfaces more"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        pcapng::{ENHANCED_PACKET, INTERFACE_DESCRIPTION, SECTION_HEADER, Statistics, write},
        section::Section,
    };

    fn tally(section: SectionTally) -> Tally {
        Tally {
            sections: vec![section],
            ..Tally::default()
        }
    }

    fn interface(name: &str, packets: u64, dropped: u64, told: u64) -> InterfaceTally {
        InterfaceTally {
            name: name.to_owned(),
            packets,
            dropped,
            told,
            ..InterfaceTally::default()
        }
    }

    #[test]
    fn losses_that_are_not_told_are_no_zero() {
        let mut section = Vec::new();
        write::block(&mut section, SECTION_HEADER, &[0; 16]);
        section.extend(interface_of(&[]));
        let mut tally = Tally::default();
        tally.note(&section);
        for (is_untold, end) in [
            (false, "0 dropped"),
            (true, "0 dropped, and how many more were lost is not known"),
        ] {
            let mut end_of = Vec::new();
            let statistics = Statistics {
                is_untold,
                ..Statistics::default()
            };
            write::statistics(&mut end_of, 0, 0, &statistics);
            tally.note(&end_of);
            let told = tally.totals().to_string();
            assert!(told.ends_with(end), "{told}");
        }
    }

    #[test]
    fn counts_that_none_can_have_are_no_end_of_it() {
        let mut section = Vec::new();
        write::block(&mut section, SECTION_HEADER, &[0; 16]);
        section.extend(interface_of(&[]));
        let mut body = [0, 0, 0, 4, 4, 0x0403_0201_u32].map(u32::to_le_bytes).concat();
        const EPB_DROPCOUNT: u16 = 4;
        write::option(&mut body, EPB_DROPCOUNT, &u64::MAX.to_le_bytes());
        write::block(&mut section, ENHANCED_PACKET, &body);
        let mut twice = section.clone();
        write::block(&mut twice, ENHANCED_PACKET, &body);
        let mut tally = Tally::default();
        tally.note(&twice);
        assert_eq!(tally.totals().dropped, u64::MAX);
        let (mut out, mut taken) = (Vec::new(), 0);
        let mut all = blocks(&twice);
        let header = all.next().map(|block| block.bytes().to_vec()).unwrap_or_default();
        let mut file = Section::begin(header.into(), &mut out);
        for block in all {
            taken += usize::from(file.takes(&block, &block.kind(), &mut out));
        }
        file.end_file(false, &mut out);
        assert_eq!(taken, 3);
    }

    #[test]
    fn losses_are_counted_once() {
        for (told, dropped) in [(0, 3), (5, 5)] {
            let tally = tally(SectionTally {
                interfaces: vec![interface("eth0", 10, 3, told)],
                ..SectionTally::default()
            });
            let expected = Totals {
                captured: 10 + dropped,
                delivered: 10,
                dropped,
                is_untold: false,
            };
            assert_eq!(tally.totals(), expected);
        }
    }

    /// The description of an interface with options of these codes and texts.
    fn interface_of(options: &[(u16, &str)]) -> Vec<u8> {
        let mut body = vec![1, 0, 0, 0, 0, 0, 0, 0];
        for (code, text) in options {
            write::option(&mut body, *code, text.as_bytes());
        }
        let mut block = Vec::new();
        write::block(&mut block, INTERFACE_DESCRIPTION, &body);
        block
    }

    #[test]
    fn what_is_told_in_the_place_of_packets_is_said_within_a_bound() {
        const NAME: u16 = 2;
        const DESCRIPTION: u16 = 3;
        const COMMENT: u16 = 1;
        let mut section = Vec::new();
        write::block(&mut section, SECTION_HEADER, &[0; 16]);
        let mut tally = Tally::default();
        tally.note(&section);
        for (options, expected) in [
            (
                &[
                    (NAME, "n4"),
                    (DESCRIPTION, "node n4: gone"),
                    (COMMENT, "node n4: gone; its clock"),
                ][..],
                Some("node n4: gone"),
            ),
            (
                &[
                    (COMMENT, "not captured: why"),
                    (NAME, "web"),
                    (DESCRIPTION, "not captured: why"),
                ],
                Some("web: not captured: why"),
            ),
            (
                &[
                    (NAME, "eth0"),
                    (DESCRIPTION, "web: eth0"),
                    (COMMENT, "nothing is captured here: why"),
                ],
                Some("eth0: nothing is captured here: why"),
            ),
            (
                &[
                    (NAME, "eth0"),
                    (DESCRIPTION, "web: eth0"),
                    (COMMENT, "at most 7 packets/s"),
                ],
                None,
            ),
            (&[(NAME, "eth0"), (COMMENT, "at most 7 packets/s")], None),
            (&[(NAME, "eth0"), (DESCRIPTION, "web: eth0")], None),
        ] {
            tally.note(&interface_of(options));
            let expected: Vec<String> = expected.map(str::to_owned).into_iter().collect();
            assert_eq!(tally.take_sentences(), expected, "{options:?}");
        }
        let one = interface_of(&[(NAME, "a"), (DESCRIPTION, "a: gone"), (COMMENT, "a: gone")]);
        tally.note(&one.repeat(MAX_SENTENCES));
        assert_eq!(tally.take_sentences().len(), MAX_SENTENCES - 3);
        let summary = Summary {
            tally: &tally,
            duration: Duration::from_secs(1),
            reason: None,
        };
        let more = "the stream has told 3 sentences more";
        assert!(summary.to_string().contains(more), "{summary}");
    }

    #[test]
    fn each_interface_has_its_account() {
        let told = |interfaces| {
            let tally = tally(SectionTally {
                interfaces,
                others: interface("", 1, 0, 0),
            });
            let summary = Summary {
                tally: &tally,
                duration: Duration::from_secs(1),
                reason: None,
            };
            let told = summary.to_string();
            let lines = told.lines().skip(1).map(|line| line.replace("packetflix: ", ""));
            lines.collect::<Vec<_>>()
        };
        let interfaces = vec![
            interface("web/eth0", 2, 0, 0),
            interface("web/lo", 0, 0, 0),
            interface("db/eth0", 4, 1, 0),
            // It has come again.
            interface("web/eth0", 3, 0, 2),
        ];
        assert_eq!(
            told(interfaces),
            [
                "web/eth0: 7 packets captured, 5 delivered, 2 dropped",
                "db/eth0: 5 packets captured, 4 delivered, 1 dropped",
                ": 1 packets captured, 1 delivered, 0 dropped",
            ]
        );
        let many = (0..40).map(|number| interface(&format!("eth{number}"), 1, 0, 0));
        let told = told(many.collect());
        assert_eq!((told.len(), &told[32][..]), (33, "and 9 interfaces more"));
    }
}
