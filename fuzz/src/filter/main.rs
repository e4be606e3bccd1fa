//! From a filter expression to the kernel's verdict on packets: whatever the text, nothing panics, libpcap looks no name
//! up, the verifier takes every program that has a translation, and this gives for packets what libpcap's interpreter
//! does. `cargo xtask fuzz` builds and runs it, as root.

#![no_main]

mod mutate;

use std::{
    collections::HashSet,
    hash::{DefaultHasher, Hash as _, Hasher as _},
    process::Command,
    sync::{Mutex, OnceLock, PoisonError},
};

use anyhow::{Context as _, bail, ensure};
use libfuzzer_sys::{Corpus, fuzz_mutator, fuzz_target, fuzzer_mutate};
use nix::sched::{CloneFlags, unshare};

use packetflix_filter::{
    Language, Names, TranslateError,
    classic::{self, Ancillary, Instruction, Operation, opcode},
    native, translate,
};
use packetflix_tests::{
    bpf_run::{Program, ProgramType},
    differential::{
        packets,
        pcap::{self, Interpreter, Pcap},
        reference::{Beside, MARK, beside_classified, beside_filtered, interpret, is_for_libpcap},
    },
};

/// What each libpcap has that the server runs with: words that this one has besides are taken for names.
const LANGUAGE: Language = Language::of_libpcap((1, 10));
/// Packets that each program is compared on, half of them for a classifier too.
const PACKETS: usize = 160;
/// Programs that are remembered, so as not to compare them again: eight bytes each.
const REMEMBERED: usize = 4 << 20;

/// Sentences of libpcap that begin as that of a name it does not find, and are of words it knows itself or of numbers.
const NO_NAMES: [&str; 7] = [
    "unknown ether proto",
    "unknown osi proto",
    "unknown LLC",
    "unknown 802.11",
    "unknown PF",
    "unknown protocol",
    "unknown port in range",
];

fuzz_target!(
    init: {
        state();
    },
    |data: &[u8]| -> Corpus {
        let Ok(expression) = str::from_utf8(data) else {
            return Corpus::Reject;
        };
        // The server refuses these before all else.
        if expression.contains('\0') {
            return Corpus::Reject;
        }
        let state = state().lock();
        if let Err(error) = state.unwrap_or_else(PoisonError::into_inner).try_expression(expression) {
            panic!("{expression:?}: {error:#}");
        }
        Corpus::Keep
    }
);

fuzz_mutator!(|data: &mut [u8], size: usize, max_size: usize, seed: u32| {
    let changed = mutate::mutate(&data[..size], max_size, seed);
    match changed {
        Some(changed) => {
            data[..changed.len()].copy_from_slice(&changed);
            changed.len()
        }
        // By bytes and the dictionary.
        None => fuzzer_mutate(data, size, max_size),
    }
});

fn state() -> &'static Mutex<State> {
    static STATE: OnceLock<Mutex<State>> = OnceLock::new();
    STATE.get_or_init(|| Mutex::new(State::new().expect("needs root, ip and libpcap")))
}

struct State {
    ethernet: Pcap,
    /// For expressions with VLAN tags, as in the server.
    live: Pcap,
    raw: Pcap,
    packets: Vec<Vec<u8>>,
    /// Of these, those that the kernel makes packets of for a classifier.
    classified: Vec<Vec<u8>>,
    seen: HashSet<u64>,
    compared: u64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum LinkType {
    Ethernet,
    Raw,
}

impl State {
    fn new() -> anyhow::Result<Self> {
        unshare(CloneFlags::CLONE_NEWNET)?;
        let up = Command::new("ip").args(["link", "set", "lo", "up"]).status()?;
        ensure!(up.success(), "ip: {up}");
        let packets = packets::packets(PACKETS, 1);
        let accept = translate(&[Instruction::new(opcode::RET, 1)])?;
        let accept = Program::load(ProgramType::Classifier, &native::encode(&accept))?;
        let classified = packets.iter().skip(1).step_by(2);
        let classified = classified.filter(|packet| packet.len() >= 14 && accept.run(packet, 0).is_ok());
        Ok(Self {
            ethernet: Pcap::dead(pcap::ETHERNET)?,
            live: Pcap::live("lo")?,
            raw: Pcap::dead(pcap::RAW_IP)?,
            classified: classified.cloned().collect(),
            packets,
            seen: HashSet::new(),
            compared: 0,
        })
    }

    fn try_expression(&mut self, expression: &str) -> anyhow::Result<()> {
        let Ok(checked) = LANGUAGE.check(expression, &Names::Refused) else {
            return Ok(());
        };
        for link_type in [LinkType::Ethernet, LinkType::Raw] {
            let handle = match link_type {
                LinkType::Ethernet if checked.contains("vlan") => &mut self.live,
                LinkType::Ethernet => &mut self.ethernet,
                LinkType::Raw => &mut self.raw,
            };
            match handle.compile(&checked, true) {
                Ok(program) => self
                    .try_program(&program, link_type)
                    .with_context(|| format!("{link_type:?}\n{}", classic::Listing(&program)))?,
                Err(error) => {
                    // After the expression, which may hold anything.
                    let error = error.to_string();
                    let sentence = error.get(checked.len() + 2..).unwrap_or_default();
                    ensure!(
                        !sentence.starts_with("unknown ")
                            || NO_NAMES.iter().any(|start| sentence.starts_with(start)),
                        "a name is looked up: {sentence}"
                    );
                }
            }
        }
        Ok(())
    }

    fn try_program(&mut self, program: &[Instruction], link_type: LinkType) -> anyhow::Result<()> {
        let operations = classic::check(program);
        let filter = match (&operations, translate(program)) {
            (Ok(_), Ok(filter)) => filter,
            (Err(_), Err(TranslateError::Invalid(_))) => return Ok(()),
            (
                Ok(_),
                Err(
                    TranslateError::Ancillary { .. }
                    | TranslateError::RelativeIndex { .. }
                    | TranslateError::TooLarge { .. },
                ),
            ) => return Ok(()),
            (checked, translated) => bail!("checked: {checked:?}, translated: {translated:?}"),
        };
        let operations = operations?;

        let mut hasher = DefaultHasher::new();
        (link_type, native::encode(&filter)).hash(&mut hasher);
        for instruction in program {
            (instruction.code, instruction.jt, instruction.jf, instruction.k).hash(&mut hasher);
        }
        if self.seen.len() >= REMEMBERED {
            self.seen.clear();
        }
        if !self.seen.insert(hasher.finish()) {
            return Ok(());
        }

        let load = |kind| {
            Program::load(kind, &native::encode(&filter))
                .with_context(|| format!("{kind:?}\n{}", native::Listing(&filter)))
        };
        let (socket, classifier) = (load(ProgramType::SocketFilter)?, load(ProgramType::Classifier)?);
        if operations.iter().any(is_of_the_moment) {
            return Ok(());
        }
        let libpcap = Interpreter::new(program)?;
        let for_libpcap = is_for_libpcap(&operations) && loads_what_it_stored(&operations);
        let compare = |kind: &Program, packet: &[u8], beside: &Beside| {
            let expected = if for_libpcap {
                libpcap.run(packet)
            } else {
                interpret(&operations, packet, beside)
            };
            let returned = kind.run(packet, MARK)?;
            ensure!(
                returned == expected,
                "{returned} instead of {expected} for {packet:02x?}\n{}",
                native::Listing(&filter)
            );
            Ok(())
        };
        // A test's socket filter has the Ethernet header before its packet, where loads from headers find it.
        if !operations.iter().any(is_from_header) {
            for packet in &self.packets {
                let packet = match link_type {
                    LinkType::Ethernet => packet,
                    LinkType::Raw => packet.get(14..).unwrap_or_default(),
                };
                compare(&socket, packet, &beside_filtered())?;
            }
        }
        if link_type == LinkType::Ethernet {
            for packet in &self.classified {
                compare(&classifier, packet, &beside_classified(packet, None))?;
            }
        }
        self.compared += 1;
        if self.compared.is_power_of_two() {
            eprintln!("{} programs compared", self.compared);
        }
        Ok(())
    }
}

/// Whether no word of scratch memory is loaded before it was stored, on any path. libpcap 1.10's interpreter finds
/// there what its stack holds; programs of `geneve` do that.
fn loads_what_it_stored(operations: &[Operation]) -> bool {
    let mut stored = vec![u32::MAX; operations.len() + 1];
    stored[0] = 0;
    for (at, operation) in operations.iter().enumerate() {
        let mut words = stored[at];
        match *operation {
            Operation::LoadScratch(_, k) if words & 1 << k == 0 => return false,
            Operation::Store(_, k) => words |= 1 << k,
            _ => {}
        }
        let next = match *operation {
            Operation::Jump(k) => [k as usize; 2],
            Operation::Branch { jt, jf, .. } => [jt.into(), jf.into()],
            Operation::ReturnConstant(_) | Operation::ReturnA => continue,
            _ => [0; 2],
        };
        for skip in next {
            stored[at + 1 + skip] &= words;
        }
    }
    true
}

/// Whether it loads what is another thing each time.
fn is_of_the_moment(operation: &Operation) -> bool {
    matches!(
        operation,
        Operation::LoadAbsolute(_, k) if matches!(Ancillary::at(*k), Some(Ancillary::Cpu | Ancillary::Random))
    )
}

fn is_from_header(operation: &Operation) -> bool {
    match operation {
        Operation::LoadAbsolute(_, k) | Operation::LoadHeaderLength(k) => {
            *k >= classic::LINK_OFFSET && Ancillary::at(*k).is_none()
        }
        _ => false,
    }
}
