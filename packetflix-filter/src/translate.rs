//! From classic BPF to eBPF.
//!
//! What classic BPF means is told by two interpreters: the kernel's, which has itself become a translation
//! (`bpf_convert_filter` in `net/core/filter.c`), and libpcap's (`bpf_filter.c`). They differ in a few
//! things, of which expressions can meet the first two and the last, as in `1 << ip[8]`, `udp[udp[4:2] - 1]` and
//! `not geneve and port 7`:
//!
//! | | kernel | libpcap | here |
//! |---|---|---|---|
//! | shift by X ≥ 32 | by X mod 32, on most machines | zero | libpcap's |
//! | load at X + k that exceeds 32 bits | at X + k mod 2³² | rejects | libpcap's |
//! | load at `SKF_AD_OFF`, `SKF_NET_OFF`, `SKF_LL_OFF` | what these mean | rejects, but for two of the VLAN tag | the kernel's |
//! | load at X and `SKF_NET_OFF`, `SKF_LL_OFF` | what these mean | rejects | program is refused |
//! | scratch memory before it is stored | program is refused | zero; anything in 1.10 | zero |
//!
//! # The function
//!
//! | | |
//! |---|---|
//! | R6 | the `__sk_buff` |
//! | R7 | A |
//! | R8 | X |
//! | R9 | the packet's length |
//! | stack | a word for helpers to write to, the words of scratch memory that are used, the packet's type, the packet's head |
//!
//! A call of a helper costs about as much as the rest of a filter, so the packet's head is copied to the stack at
//! once, as far as the filter loads at constant offsets. A load from there takes a comparison with the packet's length,
//! or none where a load before it on every path has shown the packet to be long enough. Where X is the length of an
//! IPv4 header, loads at X + k have a short way for the header without options.
//!
//! The verifier wants loads from the stack to be aligned, always. So the head is put where the most loads are: for
//! Ethernet this is two bytes after a multiple of four, as in the kernel itself. Loads that are not are made of pieces.

use thiserror::Error;

use crate::{
    classic::{
        self, Ancillary, Arithmetic, Comparison, InvalidProgram, LINK_OFFSET, NETWORK_OFFSET, Operand,
        Operation, Register, SCRATCH_WORDS, Size,
    },
    native::{self, Condition, Helper, Instruction, R0, R1, R2, R3, R4, R6, R7, R8, R9, R10},
};

/// Bytes of the packet that are copied to the stack at most.
const MAX_HEAD: u32 = 128;

/// Length of an IPv4 header without options.
const PLAIN_HEADER: u32 = 20;

/// Why a program has no translation.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
#[expect(missing_docs, reason = "the sentences say it")]
pub enum TranslateError {
    #[error("the filter is invalid")]
    Invalid(#[from] InvalidProgram),
    #[error("instruction {at} loads SKF_AD_{name}, which eBPF programs cannot")]
    Ancillary { at: usize, name: &'static str },
    #[error("instruction {at} loads at an index from a header, which only classic BPF can")]
    RelativeIndex { at: usize },
    #[error("the filter takes {instructions} instructions, and jumps do not reach as far")]
    TooLarge { instructions: usize },
}

/// Offsets in `struct __sk_buff` of `linux/bpf.h`.
mod sk_buff {
    pub(super) const LEN: i16 = 0;
    pub(super) const PKT_TYPE: i16 = 4;
    pub(super) const MARK: i16 = 8;
    pub(super) const QUEUE_MAPPING: i16 = 12;
    pub(super) const PROTOCOL: i16 = 16;
    pub(super) const VLAN_PRESENT: i16 = 20;
    pub(super) const VLAN_TCI: i16 = 24;
    pub(super) const VLAN_PROTO: i16 = 28;
    pub(super) const IFINDEX: i16 = 40;
    pub(super) const HASH: i16 = 68;
}

/// Translates a filter to a whole program, of the type `BPF_PROG_TYPE_SCHED_CLS` or `BPF_PROG_TYPE_SOCKET_FILTER`, which
/// returns what the filter does: zero to reject the packet.
///
/// It needs less than 232 bytes of stack, has no loops and no maps, and uses what kernel 5.8 has.
///
/// # Errors
/// [`TranslateError`]; only instructions that can be reached count.
pub fn translate(program: &[classic::Instruction]) -> Result<Vec<Instruction>, TranslateError> {
    translate_to(Form::Program, program)
}

/// Translates a filter to the body of the function `extern "C" fn(skb: *mut __sk_buff, packet_type: u32) -> u32`, which
/// returns the same.
///
/// Its caller says of what type the packet is, since a packet itself does not always know: at TC egress many are not yet
/// marked as outgoing.
///
/// # Errors
/// As [`translate`].
pub fn translate_to_function(program: &[classic::Instruction]) -> Result<Vec<Instruction>, TranslateError> {
    translate_to(Form::Function, program)
}

/// What a translation is to be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Form {
    /// A program, which finds the packet's type in the `__sk_buff`.
    Program,
    /// A function, which is given it in R2.
    Function,
}

fn translate_to(form: Form, program: &[classic::Instruction]) -> Result<Vec<Instruction>, TranslateError> {
    let operations = classic::check(program)?;
    let facts = follow(&operations)?;
    let layout = Layout::new(form, &operations, &facts);
    let mut assembler = Assembler::new(operations.len());
    prologue(&mut assembler, &operations, &facts, &layout);
    for (at, operation) in operations.iter().enumerate() {
        if let Some(fact) = facts[at] {
            let next = (at + 1..operations.len()).find(|&next| facts[next].is_some());
            assembler.place(at);
            Translation {
                assembler: &mut assembler,
                layout: &layout,
                fact,
                at,
                next,
            }
            .operation(*operation);
        }
    }
    assembler.finish()
}

/// Where an absolute load finds what it loads.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Place {
    /// In the packet, before this offset.
    Packet { end: u32 },
    /// After one of the headers: 0 for the link layer's, 1 for the network's.
    Header { which: i32, offset: i32 },
    /// Beside the packet.
    Ancillary(Ancillary),
    /// Nowhere: no packet is so long.
    Nowhere,
}

impl Place {
    fn of(size: Size, k: u32) -> Self {
        Ancillary::at(k).map_or_else(|| Self::in_packet(size, k), Self::Ancillary)
    }

    fn in_packet(size: Size, k: u32) -> Self {
        /// The helper takes no larger offset, and the kernel's own load finds nothing there either: it looks
        /// at the linear part of the packet only.
        const MAX_RELATIVE: u32 = 0xffff;

        let (which, offset) = match k {
            NETWORK_OFFSET.. => (1, k - NETWORK_OFFSET),
            LINK_OFFSET.. => (0, k - LINK_OFFSET),
            _ => {
                return match k.checked_add(size.bytes()) {
                    Some(end) if i32::try_from(end).is_ok() => Self::Packet { end },
                    _ => Self::Nowhere,
                };
            }
        };
        if offset <= MAX_RELATIVE {
            Self::Header {
                which,
                offset: offset as i32,
            }
        } else {
            Self::Nowhere
        }
    }
}

/// What is known when an instruction is reached.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Fact {
    /// The packet is at least as long.
    len: u32,
    /// X was set by [`Operation::LoadHeaderLength`], and so is likely to be [`PLAIN_HEADER`].
    header_length_in_x: bool,
}

/// Goes through the program on all paths at once, which can be done in its order as there are no jumps backwards. Tells
/// what is known before each instruction; `None` when it is never reached.
fn follow(operations: &[Operation]) -> Result<Vec<Option<Fact>>, TranslateError> {
    let mut facts: Vec<Option<Fact>> = vec![None; operations.len()];
    if let Some(first) = facts.first_mut() {
        *first = Some(Fact {
            len: 0,
            header_length_in_x: false,
        });
    }
    for (at, operation) in operations.iter().enumerate() {
        let Some(mut fact) = facts[at] else { continue };
        let targets = match *operation {
            Operation::LoadAbsolute(size, k) => match Place::of(size, k) {
                Place::Packet { end } => {
                    fact.len = fact.len.max(end);
                    [Some(at + 1), None]
                }
                Place::Nowhere => [None, None],
                Place::Header { .. } => [Some(at + 1), None],
                Place::Ancillary(
                    unsupported @ (Ancillary::NetlinkAttribute
                    | Ancillary::NestedNetlinkAttribute
                    | Ancillary::HardwareType
                    | Ancillary::PayloadOffset),
                ) => {
                    let name = unsupported.name();
                    return Err(TranslateError::Ancillary { at, name });
                }
                Place::Ancillary(_) => [Some(at + 1), None],
            },
            Operation::LoadHeaderLength(k) => match Place::in_packet(Size::Byte, k) {
                Place::Nowhere => [None, None],
                place => {
                    if let Place::Packet { end } = place {
                        fact.len = fact.len.max(end);
                    }
                    fact.header_length_in_x = true;
                    [Some(at + 1), None]
                }
            },
            Operation::LoadIndirect(size, k) => match Place::of(size, k) {
                Place::Packet { end } => {
                    fact.len = fact.len.max(end);
                    [Some(at + 1), None]
                }
                Place::Header { .. } => return Err(TranslateError::RelativeIndex { at }),
                Place::Ancillary(_) | Place::Nowhere => [None, None],
            },
            Operation::LoadConstant(Register::X, _)
            | Operation::LoadScratch(Register::X, _)
            | Operation::LoadLength(Register::X)
            | Operation::Move(Register::X) => {
                fact.header_length_in_x = false;
                [Some(at + 1), None]
            }
            Operation::Jump(k) => [Some(at + 1 + k as usize), None],
            Operation::Branch { jt, jf, .. } => {
                [Some(at + 1 + usize::from(jt)), Some(at + 1 + usize::from(jf))]
            }
            Operation::ReturnConstant(_) | Operation::ReturnA => [None, None],
            _ => [Some(at + 1), None],
        };
        for target in targets.into_iter().flatten() {
            // The last instruction returns, so that all targets are in the program.
            let known = &mut facts[target];
            *known = Some(known.map_or(fact, |known| Fact {
                len: known.len.min(fact.len),
                header_length_in_x: known.header_length_in_x && fact.header_length_in_x,
            }));
        }
    }
    Ok(facts)
}

/// A set of A, X and the words of scratch memory.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Variables(u32);

impl Variables {
    const A: Self = Self(1 << 16);
    const X: Self = Self(1 << 17);

    fn scratch(k: u32) -> Self {
        Self(1 << k)
    }

    fn register(register: Register) -> Self {
        match register {
            Register::A => Self::A,
            Register::X => Self::X,
        }
    }

    fn contains(self, other: Self) -> bool {
        self.0 & other.0 != 0
    }

    fn with(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }

    fn without(self, other: Self) -> Self {
        Self(self.0 & !other.0)
    }
}

/// What is used before it is set, on some path: it must be zero at the start.
fn live_at_start(operations: &[Operation], facts: &[Option<Fact>]) -> Variables {
    let operand_of = |operand| match operand {
        Operand::X => Variables::X,
        Operand::K(_) => Variables::default(),
    };
    let mut live = vec![Variables::default(); operations.len() + 1];
    for (at, operation) in operations.iter().enumerate().rev() {
        if facts[at].is_none() {
            continue;
        }
        let after = live[at + 1];
        live[at] = match *operation {
            Operation::LoadAbsolute(size, k) => match Place::of(size, k) {
                Place::Ancillary(Ancillary::XorX) => after.with(Variables::A).with(Variables::X),
                Place::Nowhere => Variables::default(),
                _ => after.without(Variables::A),
            },
            Operation::LoadIndirect(..) => after.without(Variables::A).with(Variables::X),
            Operation::LoadHeaderLength(_) => after.without(Variables::X),
            Operation::LoadConstant(register, _) | Operation::LoadLength(register) => {
                after.without(Variables::register(register))
            }
            Operation::LoadScratch(register, k) => after
                .without(Variables::register(register))
                .with(Variables::scratch(k)),
            Operation::Store(register, k) => after
                .without(Variables::scratch(k))
                .with(Variables::register(register)),
            Operation::Arithmetic(_, operand) => after.with(Variables::A).with(operand_of(operand)),
            Operation::Negate => after.with(Variables::A),
            Operation::Jump(k) => live[at + 1 + k as usize],
            Operation::Branch { jt, jf, .. } if jt == jf => live[at + 1 + usize::from(jt)],
            Operation::Branch { operand, jt, jf, .. } => live[at + 1 + usize::from(jt)]
                .with(live[at + 1 + usize::from(jf)])
                .with(Variables::A)
                .with(operand_of(operand)),
            Operation::ReturnConstant(_) => Variables::default(),
            Operation::ReturnA => Variables::A,
            Operation::Move(Register::X) => after.without(Variables::X).with(Variables::A),
            Operation::Move(Register::A) => after.without(Variables::A).with(Variables::X),
        };
    }
    live[0]
}

/// Copy of the packet's head.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Head {
    /// Where it begins on the stack.
    address: i16,
    len: u32,
}

/// What is where on the stack. Addresses are relative to R10.
#[derive(Clone, Debug)]
struct Layout {
    scratch: [i16; SCRATCH_WORDS as usize],
    /// Where the packet's type is kept that the function was given, if it is used.
    packet_type: Option<i16>,
    /// End of the head; a multiple of eight.
    head_end: i16,
    head: Option<Head>,
}

/// Where helpers write one word.
const WORD_OF_HELPERS: i16 = -4;

impl Layout {
    fn new(form: Form, operations: &[Operation], facts: &[Option<Fact>]) -> Self {
        let mut lowest = WORD_OF_HELPERS;
        let mut packet_type = None;
        let mut scratch = [0; SCRATCH_WORDS as usize];
        let mut loads = Vec::new();
        for (operation, fact) in operations.iter().zip(facts) {
            let Some(fact) = fact else { continue };
            match *operation {
                Operation::Store(_, k) | Operation::LoadScratch(_, k) => {
                    let address = &mut scratch[k as usize];
                    if *address == 0 {
                        lowest -= 4;
                        *address = lowest;
                    }
                }
                Operation::LoadAbsolute(size, k) if k < MAX_HEAD => loads.push((size, k)),
                Operation::LoadAbsolute(_, k)
                    if form == Form::Function
                        && packet_type.is_none()
                        && Ancillary::at(k) == Some(Ancillary::PacketType) =>
                {
                    lowest -= 4;
                    packet_type = Some(lowest);
                }
                Operation::LoadHeaderLength(k) if k < MAX_HEAD => loads.push((Size::Byte, k)),
                Operation::LoadIndirect(size, k) if fact.header_length_in_x && k < MAX_HEAD => {
                    loads.push((size, k + PLAIN_HEADER));
                }
                _ => {}
            }
        }
        loads.retain(|(size, k)| k + size.bytes() <= MAX_HEAD);
        let head_end = lowest.div_euclid(8) * 8;
        let head = loads.iter().map(|(size, k)| k + size.bytes()).max().map(|len| {
            let pieces = |shift: &u32| -> usize {
                loads
                    .iter()
                    .map(|(size, k)| pieces(*size, (k + shift) as i16).count())
                    .sum()
            };
            let shift = [2, 0, 1, 3].into_iter().min_by_key(pieces).unwrap_or_default();
            let highest = head_end - len as i16;
            let address = (highest - 3..=highest)
                .find(|address| address.rem_euclid(4) == shift as i16)
                .unwrap_or(highest);
            Head { address, len }
        });
        Self {
            scratch,
            packet_type,
            head_end,
            head,
        }
    }

    /// Where the packet's bytes before `end` are on the stack, the last `size` of them.
    fn in_head(&self, size: Size, end: u32) -> Option<i16> {
        let head = self.head.filter(|head| end <= head.len)?;
        Some(head.address + (end - size.bytes()) as i16)
    }
}

/// Splits a load from the stack into aligned ones: address and size of each, in their order.
fn pieces(size: Size, address: i16) -> impl Iterator<Item = (i16, native::Size)> {
    let end = address + size.bytes() as i16;
    let mut from = address;
    std::iter::from_fn(move || {
        let at = from;
        let (size, bytes) = match end - at {
            ..=0 => return None,
            4.. if at % 4 == 0 => (native::Size::Word, 4),
            2.. if at % 2 == 0 => (native::Size::Half, 2),
            _ => (native::Size::Byte, 1),
        };
        from += bytes;
        Some((at, size))
    })
}

/// A place to jump to: the instruction of classic BPF with this number, or one of the assembler's own.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Label(usize);

/// Instructions whose jumps are filled in at the end.
struct Assembler {
    code: Vec<Instruction>,
    /// Where each label is.
    places: Vec<Option<usize>>,
    jumps: Vec<(usize, Label)>,
    reject: Label,
}

impl Assembler {
    /// For a program of so many instructions.
    fn new(instructions: usize) -> Self {
        Self {
            code: Vec::new(),
            places: vec![None; instructions + 1],
            jumps: Vec::new(),
            reject: Label(instructions),
        }
    }

    fn label(&mut self) -> Label {
        self.places.push(None);
        Label(self.places.len() - 1)
    }

    /// The next instruction is that of classic BPF with this number.
    fn place(&mut self, instruction: usize) {
        self.place_label(Label(instruction));
    }

    fn place_label(&mut self, label: Label) {
        self.places[label.0] = Some(self.code.len());
    }

    fn emit(&mut self, instruction: Instruction) {
        self.code.push(instruction);
    }

    /// Emits a jump, whose offset is filled in later.
    fn jump(&mut self, instruction: Instruction, to: Label) {
        self.jumps.push((self.code.len(), to));
        self.code.push(instruction);
    }

    fn finish(mut self) -> Result<Vec<Instruction>, TranslateError> {
        if self.jumps.iter().any(|(_, to)| *to == self.reject) {
            self.place_label(self.reject);
            self.emit(Instruction::alu32_imm(native::Arithmetic::Move, R0, 0));
            self.emit(Instruction::exit());
        }
        let instructions = self.code.len();
        for (at, to) in self.jumps {
            let offset = self.places[to.0]
                .and_then(|place| place.checked_sub(at + 1))
                .and_then(|offset| i16::try_from(offset).ok())
                .ok_or(TranslateError::TooLarge { instructions })?;
            self.code[at].offset = offset;
        }
        Ok(self.code)
    }
}

fn prologue(assembler: &mut Assembler, operations: &[Operation], facts: &[Option<Fact>], layout: &Layout) {
    use native::Arithmetic::{Add, Move};

    let mut uses_packet = false;
    let mut uses_len = false;
    for (operation, _) in operations.iter().zip(facts).filter(|(_, fact)| fact.is_some()) {
        match operation {
            Operation::LoadAbsolute(..) | Operation::LoadIndirect(..) | Operation::LoadHeaderLength(_) => {
                uses_packet = true;
                uses_len = true;
            }
            Operation::LoadLength(_) => uses_len = true,
            _ => {}
        }
    }
    if uses_packet {
        assembler.emit(Instruction::alu64(Move, R6, R1));
    }
    if let Some(address) = layout.packet_type {
        assembler.emit(Instruction::store(native::Size::Word, R10, address, R2));
    }
    if uses_len {
        assembler.emit(Instruction::load(native::Size::Word, R9, R1, sk_buff::LEN));
    }
    if let Some(head) = layout.head {
        let len = head.len as i32;
        let (copy, start) = (assembler.label(), assembler.label());
        assembler.emit(Instruction::alu32_imm(Move, R4, len));
        assembler.jump(
            Instruction::jump_if_imm(Condition::GreaterOrEqual, R9, len, 0),
            copy,
        );
        // Of a shorter packet there is a number of bytes that the verifier does not know, and then it wants all of
        // the memory to be set before.
        let first = head.address.div_euclid(8) * 8;
        for address in (first..layout.head_end).step_by(8) {
            assembler.emit(Instruction::store_imm(native::Size::Double, R10, address, 0));
        }
        // The helper copies no zero bytes; and only by this comparison does every verifier see that it need not.
        assembler.jump(Instruction::jump_if_imm(Condition::Less, R9, 1, 0), start);
        assembler.emit(Instruction::alu64(Move, R4, R9));
        assembler.place_label(copy);
        assembler.emit(Instruction::alu32_imm(Move, R2, 0));
        assembler.emit(Instruction::alu64(Move, R3, R10));
        assembler.emit(Instruction::alu64_imm(Add, R3, i32::from(head.address)));
        assembler.emit(Instruction::call(Helper::SkbLoadBytes));
        assembler.jump(
            Instruction::jump_if_imm(Condition::NotEqual, R0, 0, 0),
            assembler.reject,
        );
        assembler.place_label(start);
    }
    let live = live_at_start(operations, facts);
    for (variable, register) in [(Variables::A, R7), (Variables::X, R8)] {
        if live.contains(variable) {
            assembler.emit(Instruction::alu32_imm(Move, register, 0));
        }
    }
    for (k, address) in (0..).zip(layout.scratch) {
        if live.contains(Variables::scratch(k)) {
            assembler.emit(Instruction::store_imm(native::Size::Word, R10, address, 0));
        }
    }
}

/// Translation of one instruction.
struct Translation<'a> {
    assembler: &'a mut Assembler,
    layout: &'a Layout,
    fact: Fact,
    /// Its number.
    at: usize,
    /// Number of the instruction that is translated after it.
    next: Option<usize>,
}

impl Translation<'_> {
    fn operation(&mut self, operation: Operation) {
        use native::Arithmetic as Native;

        match operation {
            Operation::LoadAbsolute(size, k) => match Place::of(size, k) {
                Place::Ancillary(ancillary) => self.load_ancillary(ancillary),
                place => self.load_absolute(R7, size, place),
            },
            Operation::LoadIndirect(size, k) => self.load_indirect(size, k),
            Operation::LoadHeaderLength(k) => {
                let place = Place::in_packet(Size::Byte, k);
                self.load_absolute(R8, Size::Byte, place);
                if place != Place::Nowhere {
                    self.emit(Instruction::alu32_imm(Native::And, R8, 0x0f));
                    self.emit(Instruction::alu32_imm(Native::ShiftLeft, R8, 2));
                }
            }
            Operation::LoadConstant(to, k) => {
                self.emit(Instruction::alu32_imm(
                    Native::Move,
                    native_register(to),
                    k as i32,
                ));
            }
            Operation::LoadScratch(to, k) => {
                let address = self.layout.scratch[k as usize];
                self.emit(Instruction::load(
                    native::Size::Word,
                    native_register(to),
                    R10,
                    address,
                ));
            }
            Operation::LoadLength(to) => {
                self.emit(Instruction::alu32(Native::Move, native_register(to), R9));
            }
            Operation::Store(from, k) => {
                let address = self.layout.scratch[k as usize];
                self.emit(Instruction::store(
                    native::Size::Word,
                    R10,
                    address,
                    native_register(from),
                ));
            }
            Operation::Arithmetic(arithmetic, operand) => self.arithmetic(arithmetic, operand),
            Operation::Negate => self.emit(Instruction::alu32_imm(Native::Negate, R7, 0)),
            Operation::Jump(k) => self.go_to(self.at + 1 + k as usize),
            Operation::Branch {
                comparison,
                operand,
                jt,
                jf,
            } => self.branch(comparison, operand, usize::from(jt), usize::from(jf)),
            Operation::ReturnConstant(k) => {
                self.emit(Instruction::alu32_imm(Native::Move, R0, k as i32));
                self.emit(Instruction::exit());
            }
            Operation::ReturnA => {
                self.emit(Instruction::alu32(Native::Move, R0, R7));
                self.emit(Instruction::exit());
            }
            Operation::Move(Register::X) => self.emit(Instruction::alu32(Native::Move, R8, R7)),
            Operation::Move(Register::A) => self.emit(Instruction::alu32(Native::Move, R7, R8)),
        }
    }

    fn emit(&mut self, instruction: Instruction) {
        self.assembler.emit(instruction);
    }

    fn reject_if(&mut self, jump: Instruction) {
        let reject = self.assembler.reject;
        self.assembler.jump(jump, reject);
    }

    /// Rejects packets that end before `end`.
    fn require(&mut self, end: u32) {
        if end > self.fact.len {
            self.reject_if(Instruction::jump_if_imm(Condition::Less, R9, end as i32, 0));
        }
    }

    fn load_absolute(&mut self, to: u8, size: Size, place: Place) {
        match place {
            Place::Packet { end } => {
                self.require(end);
                if let Some(address) = self.layout.in_head(size, end) {
                    self.read_stack(to, size, address);
                } else {
                    let offset = end - size.bytes();
                    self.emit(Instruction::alu32_imm(
                        native::Arithmetic::Move,
                        R2,
                        offset as i32,
                    ));
                    self.call(to, size, Helper::SkbLoadBytes);
                }
            }
            Place::Header { which, offset } => {
                self.emit(Instruction::alu32_imm(native::Arithmetic::Move, R2, offset));
                self.emit(Instruction::alu32_imm(
                    native::Arithmetic::Move,
                    native::R5,
                    which,
                ));
                self.call(to, size, Helper::SkbLoadBytesRelative);
            }
            Place::Nowhere | Place::Ancillary(_) => self.reject_if(Instruction::jump(0)),
        }
    }

    fn load_indirect(&mut self, size: Size, k: u32) {
        let Place::Packet { end } = Place::of(size, k) else {
            self.reject_if(Instruction::jump(0));
            return;
        };
        let plain = end.saturating_add(PLAIN_HEADER);
        let head = self
            .layout
            .in_head(size, plain)
            .filter(|_| self.fact.header_length_in_x);
        let (general, done) = (self.assembler.label(), self.assembler.label());
        if let Some(address) = head {
            let differs = Instruction::jump32_if_imm(Condition::NotEqual, R8, PLAIN_HEADER as i32, 0);
            self.assembler.jump(differs, general);
            self.require(plain);
            self.read_stack(R7, size, address);
            self.assembler.jump(Instruction::jump(0), done);
        }
        self.assembler.place_label(general);
        // With 64 bits, so that the sum does not wrap; the helper would take its lower half only.
        self.emit(Instruction::alu32(native::Arithmetic::Move, R2, R8));
        if k != 0 {
            self.emit(Instruction::alu64_imm(native::Arithmetic::Add, R2, k as i32));
        }
        self.reject_if(Instruction::jump_if(Condition::GreaterOrEqual, R2, R9, 0));
        self.call(R7, size, Helper::SkbLoadBytes);
        self.assembler.place_label(done);
    }

    /// Calls a helper that copies of the packet from R2 on, and rejects the packet when it cannot.
    fn call(&mut self, to: u8, size: Size, helper: Helper) {
        use native::Arithmetic::{Add, Move};

        self.emit(Instruction::alu64(Move, R1, R6));
        self.emit(Instruction::alu64(Move, R3, R10));
        self.emit(Instruction::alu64_imm(Add, R3, i32::from(WORD_OF_HELPERS)));
        self.emit(Instruction::alu32_imm(Move, R4, size.bytes() as i32));
        self.emit(Instruction::call(helper));
        self.reject_if(Instruction::jump_if_imm(Condition::NotEqual, R0, 0, 0));
        self.read_stack(to, size, WORD_OF_HELPERS);
    }

    /// Loads from the stack in network byte order. R0 is lost.
    fn read_stack(&mut self, to: u8, size: Size, address: i16) {
        for (number, (address, size)) in pieces(size, address).enumerate() {
            let piece = if number == 0 { to } else { R0 };
            self.emit(Instruction::load(size, piece, R10, address));
            let bits = match size {
                native::Size::Byte => 8,
                native::Size::Half => 16,
                native::Size::Word | native::Size::Double => 32,
            };
            if bits > 8 {
                self.emit(Instruction::from_big_endian(piece, bits));
            }
            if number > 0 {
                self.emit(Instruction::alu32_imm(native::Arithmetic::ShiftLeft, to, bits));
                self.emit(Instruction::alu32(native::Arithmetic::Or, to, R0));
            }
        }
    }

    fn load_ancillary(&mut self, ancillary: Ancillary) {
        if let (Ancillary::PacketType, Some(address)) = (ancillary, self.layout.packet_type) {
            return self.emit(Instruction::load(native::Size::Word, R7, R10, address));
        }
        let field = match ancillary {
            Ancillary::Protocol => sk_buff::PROTOCOL,
            Ancillary::PacketType => sk_buff::PKT_TYPE,
            Ancillary::Ifindex => sk_buff::IFINDEX,
            Ancillary::Mark => sk_buff::MARK,
            Ancillary::Queue => sk_buff::QUEUE_MAPPING,
            Ancillary::RxHash => sk_buff::HASH,
            Ancillary::VlanTag => sk_buff::VLAN_TCI,
            Ancillary::VlanTagPresent => sk_buff::VLAN_PRESENT,
            Ancillary::VlanTpid => sk_buff::VLAN_PROTO,
            Ancillary::Cpu => return self.load_result(Helper::GetSmpProcessorId),
            Ancillary::Random => return self.load_result(Helper::GetPrandomU32),
            Ancillary::XorX => return self.emit(Instruction::alu32(native::Arithmetic::Xor, R7, R8)),
            // Refused before.
            Ancillary::NetlinkAttribute
            | Ancillary::NestedNetlinkAttribute
            | Ancillary::HardwareType
            | Ancillary::PayloadOffset => return,
        };
        self.emit(Instruction::load(native::Size::Word, R7, R6, field));
        match ancillary {
            // These two are as on the wire.
            Ancillary::Protocol | Ancillary::VlanTpid => self.emit(Instruction::from_big_endian(R7, 16)),
            // A packet without a device, of which the kernel's interpreter rejected this load.
            Ancillary::Ifindex => self.reject_if(Instruction::jump_if_imm(Condition::Equal, R7, 0, 0)),
            _ => {}
        }
    }

    fn load_result(&mut self, helper: Helper) {
        self.emit(Instruction::call(helper));
        self.emit(Instruction::alu32(native::Arithmetic::Move, R7, R0));
    }

    fn arithmetic(&mut self, arithmetic: Arithmetic, operand: Operand) {
        use native::Arithmetic as Native;

        let operation = match arithmetic {
            Arithmetic::Add => Native::Add,
            Arithmetic::Subtract => Native::Subtract,
            Arithmetic::Multiply => Native::Multiply,
            Arithmetic::Divide => Native::Divide,
            Arithmetic::Modulo => Native::Modulo,
            Arithmetic::And => Native::And,
            Arithmetic::Or => Native::Or,
            Arithmetic::Xor => Native::Xor,
            Arithmetic::ShiftLeft => Native::ShiftLeft,
            Arithmetic::ShiftRight => Native::ShiftRight,
        };
        if let Operand::K(k) = operand {
            self.emit(Instruction::alu32_imm(operation, R7, k as i32));
            return;
        }
        match arithmetic {
            Arithmetic::Divide | Arithmetic::Modulo => {
                self.reject_if(Instruction::jump32_if_imm(Condition::Equal, R8, 0, 0));
                self.emit(Instruction::alu32(operation, R7, R8));
            }
            Arithmetic::ShiftLeft | Arithmetic::ShiftRight => {
                self.emit(Instruction::jump32_if_imm(Condition::Less, R8, 32, 2));
                self.emit(Instruction::alu32_imm(Native::Move, R7, 0));
                self.emit(Instruction::jump(1));
                self.emit(Instruction::alu32(operation, R7, R8));
            }
            _ => self.emit(Instruction::alu32(operation, R7, R8)),
        }
    }

    /// Goes on with another instruction of the program.
    fn go_to(&mut self, target: usize) {
        if self.next != Some(target) {
            self.assembler.jump(Instruction::jump(0), Label(target));
        }
    }

    fn branch(&mut self, comparison: Comparison, operand: Operand, jt: usize, jf: usize) {
        let (holds, fails) = (self.at + 1 + jt, self.at + 1 + jf);
        if holds == fails {
            return self.go_to(holds);
        }
        let (condition, opposite) = match comparison {
            Comparison::Equal => (Condition::Equal, Some(Condition::NotEqual)),
            Comparison::Greater => (Condition::Greater, Some(Condition::LessOrEqual)),
            Comparison::GreaterOrEqual => (Condition::GreaterOrEqual, Some(Condition::Less)),
            Comparison::BitsSet => (Condition::BitsSet, None),
        };
        let jump = |condition| match operand {
            Operand::K(k) => Instruction::jump32_if_imm(condition, R7, k as i32, 0),
            Operand::X => Instruction::jump32_if(condition, R7, R8, 0),
        };
        match opposite.filter(|_| self.next == Some(holds)) {
            Some(opposite) => self.assembler.jump(jump(opposite), Label(fails)),
            None => {
                self.assembler.jump(jump(condition), Label(holds));
                self.go_to(fails);
            }
        }
    }
}

fn native_register(register: Register) -> u8 {
    match register {
        Register::A => R7,
        Register::X => R8,
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::classic::{Instruction as Classic, Listing, opcode::*};

    const fn op(code: u16, k: u32) -> Classic {
        Classic::new(code, k)
    }

    const fn jump(code: u16, k: u32, jt: u8, jf: u8) -> Classic {
        Classic::branch(JMP | code, k, jt, jf)
    }

    fn listing(program: &[Classic]) -> String {
        native::Listing(&translate(program).unwrap()).to_string()
    }

    /// How often an instruction's text occurs.
    fn count(program: &[Classic], text: &str) -> usize {
        listing(program).matches(text).count()
    }

    #[test]
    fn needs_nothing_for_a_constant() {
        assert_eq!(
            listing(&[op(RET | K, 262_144)]),
            "   0: (b4) w0 = 262144\n   1: (95) exit\n"
        );
    }

    #[test]
    fn translates_a_filter() {
        // udp port 53 of IPv4, without its test for fragments.
        let program = [
            op(LD | H | ABS, 12),
            jump(JEQ, 0x800, 0, 6),
            op(LD | B | ABS, 23),
            jump(JEQ, 17, 0, 4),
            op(LDX | B | MSH, 14),
            op(LD | H | IND, 16),
            jump(JEQ, 53, 0, 1),
            op(RET | K, 65_535),
            op(RET | K, 0),
        ];
        // The head is 38 bytes from -46 on, so that what begins after 14 bytes begins at a multiple of four.
        let expected = [
            "(bf) r6 = r1",
            "(61) r9 = *(u32 *)(r1 +0)",
            "(b4) w4 = 38",
            "(35) if r9 >= 0x26 goto pc+7",
            "(7a) *(u64 *)(r10 -48) = 0",
            "(7a) *(u64 *)(r10 -40) = 0",
            "(7a) *(u64 *)(r10 -32) = 0",
            "(7a) *(u64 *)(r10 -24) = 0",
            "(7a) *(u64 *)(r10 -16) = 0",
            "(a5) if r9 < 0x1 goto pc+6",
            "(bf) r4 = r9",
            "(b4) w2 = 0",
            "(bf) r3 = r10",
            "(07) r3 += -46",
            "(85) call bpf_skb_load_bytes#26",
            "(55) if r0 != 0x0 goto pc+31",
            // ldh [12]
            "(a5) if r9 < 0xe goto pc+30",
            "(69) r7 = *(u16 *)(r10 -34)",
            "(dc) r7 = be16 r7",
            "(56) if w7 != 0x800 goto pc+25",
            // ldb [23]
            "(a5) if r9 < 0x18 goto pc+26",
            "(71) r7 = *(u8 *)(r10 -23)",
            "(56) if w7 != 0x11 goto pc+22",
            // ldxb 4*([14]&0xf): that there are 15 bytes is known
            "(71) r8 = *(u8 *)(r10 -32)",
            "(54) w8 &= 15",
            "(64) w8 <<= 2",
            // ldh [x + 16]
            "(56) if w8 != 0x14 goto pc+4",
            "(a5) if r9 < 0x26 goto pc+19",
            "(69) r7 = *(u16 *)(r10 -10)",
            "(dc) r7 = be16 r7",
            "(05) goto pc+11",
            "(bc) w2 = w8",
            "(07) r2 += 16",
            "(3d) if r2 >= r9 goto pc+13",
            "(bf) r1 = r6",
            "(bf) r3 = r10",
            "(07) r3 += -4",
            "(b4) w4 = 2",
            "(85) call bpf_skb_load_bytes#26",
            "(55) if r0 != 0x0 goto pc+7",
            "(69) r7 = *(u16 *)(r10 -4)",
            "(dc) r7 = be16 r7",
            "(56) if w7 != 0x35 goto pc+2",
            "(b4) w0 = 65535",
            "(95) exit",
            "(b4) w0 = 0",
            "(95) exit",
            // Whatever rejects the packet before.
            "(b4) w0 = 0",
            "(95) exit",
        ];
        let listing = listing(&program);
        assert_eq!(listing.lines().count(), expected.len(), "{listing}");
        for (line, expected) in listing.lines().zip(expected) {
            assert!(line.ends_with(expected), "{expected} in\n{listing}");
        }
    }

    #[test]
    fn leaves_out_what_is_never_reached() {
        let program = [
            op(JMP | JA, 2),
            op(LD | W | ABS, 4),
            op(LD | H | ABS, ANCILLARY_NLATTR),
            jump(JGT, 1, 1, 1),
            op(LD | W | ABS, 8),
            op(RET | K, 1),
        ];
        assert_eq!(listing(&program), "   0: (b4) w0 = 1\n   1: (95) exit\n");

        // No packet has two thousand million bytes, so that the rest is not reached.
        for load in [LD | W | ABS, LD | W | IND] {
            let program = [op(load, 0x7fff_fffc), op(ALU | NEG, 0), op(RET | A, 0)];
            assert_eq!(count(&program, "= -w7"), 0);
        }
    }

    const ANCILLARY_NLATTR: u32 = classic::ANCILLARY_OFFSET + 12;

    #[test]
    fn compares_the_length_once() {
        let twice = [
            op(LD | W | ABS, 26),
            op(LD | B | ABS, 29),
            op(LD | H | ABS, 12),
            op(RET | K, 1),
        ];
        assert_eq!(count(&twice, "if r9 < 0x1e"), 1);
        assert_eq!(count(&twice, "if r9 < "), 2, "{}", listing(&twice));

        // Known on one of two paths only.
        let program = [
            op(LD | B | ABS, 0),
            jump(JEQ, 1, 0, 1),
            op(LD | B | ABS, 9),
            op(LD | B | ABS, 8),
            op(RET | K, 1),
        ];
        assert_eq!(count(&program, "if r9 < 0x9 "), 1);
    }

    #[test]
    fn aligns_what_is_loaded_most() {
        // Words of an Ethernet frame's IPv4 header, and of a packet without link-layer header: one load each.
        for offset in [14, 0, 1, 3] {
            let program = [
                op(LD | W | ABS, offset + 12),
                op(LD | W | ABS, offset + 16),
                op(LD | H | ABS, offset + 6),
                op(RET | A, 0),
            ];
            assert_eq!(count(&program, "*(u32 *)(r10"), 2, "{}", listing(&program));
            assert_eq!(count(&program, "be32"), 2);
            assert_eq!(count(&program, "*(u8 *)(r10"), 0);
        }
        // Three words that do not fit together.
        let program = [
            op(LD | W | ABS, 0),
            op(LD | W | ABS, 5),
            op(LD | W | ABS, 10),
            op(RET | A, 0),
        ];
        assert!(count(&program, "|= ") > 0);
    }

    #[test]
    fn sets_to_zero_only_what_must_be() {
        assert_eq!(count(&[op(RET | A, 0)], "w7 = 0"), 1);
        assert_eq!(count(&[op(LD | IMM, 5), op(RET | A, 0)], "w7 = 0"), 0);
        let program = [
            op(ST, 1),
            op(LD | MEM, 1),
            op(LDX | MEM, 2),
            op(ALU | ADD | X, 0),
            op(RET | A, 0),
        ];
        assert_eq!(count(&program, "w7 = 0"), 1);
        assert_eq!(count(&program, "w8 = 0"), 0);
        assert_eq!(count(&program, "*(u32 *)(r10 -12) = 0"), 1);
        assert_eq!(count(&program, ") = 0"), 1);
    }

    #[test]
    fn refuses_what_ebpf_cannot() {
        let end = op(RET | K, 0);
        let at = 0;
        for (k, name) in [
            (12, "NLATTR"),
            (16, "NLATTR_NEST"),
            (28, "HATYPE"),
            (52, "PAY_OFFSET"),
        ] {
            let program = [op(LD | B | ABS, classic::ANCILLARY_OFFSET + k), end];
            assert_eq!(translate(&program), Err(TranslateError::Ancillary { at, name }));
        }
        for k in [NETWORK_OFFSET, LINK_OFFSET + 0xffff] {
            assert_eq!(
                translate(&[op(LD | B | IND, k), end]),
                Err(TranslateError::RelativeIndex { at })
            );
            assert_eq!(count(&[op(LD | B | ABS, k), end], "load_bytes_relative"), 1);
        }
        let error = InvalidProgram::Length(0);
        assert_eq!(translate(&[]), Err(TranslateError::Invalid(error)));
    }

    #[test]
    fn tells_when_jumps_do_not_reach() {
        let mut program = vec![op(LD | W | IND, 1); 4095];
        program.push(op(RET | A, 0));
        let Err(TranslateError::TooLarge { instructions }) = translate(&program) else {
            panic!("{:?}", translate(&program));
        };
        assert!(instructions > 32_768, "{instructions}");
        // The largest that libpcap compiles are far from that.
        program.drain(..2095);
        assert!(translate(&program).is_ok());
    }

    /// What is true of every translation.
    fn check_translation(program: &[Classic]) {
        let translated = match translate(program) {
            Ok(translated) => translated,
            Err(TranslateError::Invalid(_)) => {
                assert!(classic::check(program).is_err());
                return;
            }
            Err(error) => {
                assert!(!error.to_string().is_empty());
                return;
            }
        };
        assert!(classic::check(program).is_ok());
        let text = || format!("{}\n{}", Listing(program), native::Listing(&translated));

        // Jumps stay within it and go forward, every instruction is reached, and the last one ends it.
        let mut reached = vec![false; translated.len() + 1];
        reached[0] = true;
        for (at, instruction) in translated.iter().enumerate() {
            assert!(reached[at], "{at} of {}", text());
            let is_jump = matches!(instruction.code & 7, 5 | 6) && instruction.code != 0x85;
            if is_jump && instruction.code != 0x95 {
                assert!(instruction.offset >= 0, "{}", text());
                reached[at + 1 + instruction.offset as usize] = true;
            }
            if instruction.code != 0x95 && instruction.code != 0x05 {
                reached[at + 1] = true;
            }
            let address = match instruction.code & 7 {
                1 if instruction.src == R10 => instruction.offset,
                2 | 3 => instruction.offset,
                _ => continue,
            };
            let bytes = match instruction.code & 0x18 {
                0x10 => 1,
                0x08 => 2,
                0x00 => 4,
                _ => 8,
            };
            assert!(
                (-224..=-bytes).contains(&address) && address % bytes == 0,
                "{address} in {}",
                text()
            );
        }
        assert!(!reached[translated.len()], "{}", text());
    }

    fn any_instruction() -> impl Strategy<Value = Classic> {
        let k = prop_oneof![
            0..200_u32,
            any::<u32>(),
            (0..80_u32).prop_map(|offset| classic::ANCILLARY_OFFSET + offset),
            (0..0x20_0000_u32).prop_map(|offset| LINK_OFFSET + offset),
        ];
        (0..0x100_u16, 0..4_u8, 0..4_u8, k).prop_map(|(code, jt, jf, k)| Classic { code, jt, jf, k })
    }

    fn any_valid_instruction() -> impl Strategy<Value = Classic> {
        let codes: Vec<u16> = (0..0x100)
            .filter(|code| op(*code, 0).decode().is_some())
            .collect();
        (prop::sample::select(codes), any_instruction()).prop_map(|(code, mut instruction)| {
            instruction.code = code;
            match instruction.decode() {
                Some(Operation::Jump(_)) => instruction.k %= 4,
                Some(Operation::LoadScratch(..) | Operation::Store(..)) => instruction.k %= 16,
                Some(Operation::Arithmetic(..)) => instruction.k = instruction.k % 31 + 1,
                _ => {}
            }
            instruction
        })
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(2000))]

        #[test]
        fn never_panics(program in prop::collection::vec(any_instruction(), 0..20)) {
            check_translation(&program);
        }

        #[test]
        fn translates_or_tells_why(mut program in prop::collection::vec(any_valid_instruction(), 0..200)) {
            program.extend([op(RET | K, 7); 5]);
            check_translation(&program);
        }
    }
}
