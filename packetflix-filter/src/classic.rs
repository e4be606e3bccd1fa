//! Classic BPF: the instruction set of packet filters, `struct sock_filter` in `linux/filter.h`.
//!
//! The machine has a 32-bit accumulator A, an index register X and sixteen 32-bit words of scratch memory M[]; all
//! start at zero. It jumps forward only, and what it returns is how many bytes of the packet are wanted: none when it
//! rejects the packet.

use std::fmt;

use serde::{Deserialize, Serialize};
use thiserror::Error;

/// Instructions that the kernel takes at most: `BPF_MAXINSNS` in `linux/bpf_common.h`.
pub const MAX_INSTRUCTIONS: usize = 4096;

/// Words of scratch memory: `BPF_MEMWORDS` in `linux/filter.h`.
pub const SCRATCH_WORDS: u32 = 16;

/// Parts of opcodes, from `linux/bpf_common.h` and `linux/filter.h`.
pub mod opcode {
    /// Class: load into A.
    pub const LD: u16 = 0x00;
    /// Class: load into X.
    pub const LDX: u16 = 0x01;
    /// Class: store A.
    pub const ST: u16 = 0x02;
    /// Class: store X.
    pub const STX: u16 = 0x03;
    /// Class: arithmetic.
    pub const ALU: u16 = 0x04;
    /// Class: jumps.
    pub const JMP: u16 = 0x05;
    /// Class: return.
    pub const RET: u16 = 0x06;
    /// Class: moves between A and X.
    pub const MISC: u16 = 0x07;

    /// Size: 32 bits.
    pub const W: u16 = 0x00;
    /// Size: 16 bits.
    pub const H: u16 = 0x08;
    /// Size: 8 bits.
    pub const B: u16 = 0x10;

    /// Mode: the constant.
    pub const IMM: u16 = 0x00;
    /// Mode: of the packet, at the constant.
    pub const ABS: u16 = 0x20;
    /// Mode: of the packet, at X and the constant.
    pub const IND: u16 = 0x40;
    /// Mode: scratch memory.
    pub const MEM: u16 = 0x60;
    /// Mode: the packet's length.
    pub const LEN: u16 = 0x80;
    /// Mode: length of the IPv4 header at the constant.
    pub const MSH: u16 = 0xa0;

    /// Addition.
    pub const ADD: u16 = 0x00;
    /// Subtraction.
    pub const SUB: u16 = 0x10;
    /// Multiplication.
    pub const MUL: u16 = 0x20;
    /// Division.
    pub const DIV: u16 = 0x30;
    /// Bitwise or.
    pub const OR: u16 = 0x40;
    /// Bitwise and.
    pub const AND: u16 = 0x50;
    /// Shift to the left.
    pub const LSH: u16 = 0x60;
    /// Shift to the right.
    pub const RSH: u16 = 0x70;
    /// Negation.
    pub const NEG: u16 = 0x80;
    /// Remainder.
    pub const MOD: u16 = 0x90;
    /// Bitwise exclusive or.
    pub const XOR: u16 = 0xa0;

    /// Jump, always.
    pub const JA: u16 = 0x00;
    /// Jump if equal.
    pub const JEQ: u16 = 0x10;
    /// Jump if greater.
    pub const JGT: u16 = 0x20;
    /// Jump if greater or equal.
    pub const JGE: u16 = 0x30;
    /// Jump if a bit is set in both.
    pub const JSET: u16 = 0x40;

    /// Operand: the constant.
    pub const K: u16 = 0x00;
    /// Operand: X.
    pub const X: u16 = 0x08;
    /// What is returned: A.
    pub const A: u16 = 0x10;

    /// X = A.
    pub const TAX: u16 = 0x00;
    /// A = X.
    pub const TXA: u16 = 0x80;
}

/// Loads at offsets from here on are not of the packet, but of what the kernel knows beside it: `SKF_AD_OFF`.
pub const ANCILLARY_OFFSET: u32 = -0x1000_i32 as u32;
/// Loads at offsets from here on are relative to the network header: `SKF_NET_OFF`.
pub const NETWORK_OFFSET: u32 = -0x0010_0000_i32 as u32;
/// Loads at offsets from here on are relative to the link-layer header: `SKF_LL_OFF`.
pub const LINK_OFFSET: u32 = -0x0020_0000_i32 as u32;

/// One instruction, laid out as `struct sock_filter`, and as libpcap's `struct bpf_insn`.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Instruction {
    /// What to do.
    pub code: u16,
    /// Instructions to skip when the comparison holds.
    pub jt: u8,
    /// Instructions to skip when it does not.
    pub jf: u8,
    /// The constant.
    pub k: u32,
}

/// A register.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Register {
    /// The accumulator.
    A,
    /// The index.
    X,
}

/// Right side of arithmetic and comparisons.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Operand {
    /// The constant.
    K(u32),
    /// The index register.
    X,
}

/// Size of a load.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Size {
    /// 8 bits.
    Byte,
    /// 16 bits.
    Half,
    /// 32 bits.
    Word,
}

impl Size {
    /// In bytes.
    pub const fn bytes(self) -> u32 {
        match self {
            Self::Byte => 1,
            Self::Half => 2,
            Self::Word => 4,
        }
    }
}

/// A = A … operand, with 32 bits and without a sign.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[expect(missing_docs, reason = "the names say it")]
pub enum Arithmetic {
    Add,
    Subtract,
    Multiply,
    Divide,
    Modulo,
    And,
    Or,
    Xor,
    ShiftLeft,
    ShiftRight,
}

/// A … operand, with 32 bits and without a sign.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[expect(missing_docs, reason = "the names say it")]
pub enum Comparison {
    Equal,
    Greater,
    GreaterOrEqual,
    /// A bit is set in both.
    BitsSet,
}

/// What an instruction does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Operation {
    /// A = what the packet has at this offset, in network byte order; or what the kernel knows beside the packet.
    LoadAbsolute(Size, u32),
    /// A = what the packet has at X and this offset.
    LoadIndirect(Size, u32),
    /// X = 4 × the lower half of the packet's byte at this offset, as is the length of an IPv4 header.
    LoadHeaderLength(u32),
    /// The register = the constant.
    LoadConstant(Register, u32),
    /// The register = a word of scratch memory.
    LoadScratch(Register, u32),
    /// The register = the packet's length.
    LoadLength(Register),
    /// A word of scratch memory = the register.
    Store(Register, u32),
    /// Arithmetic with A.
    Arithmetic(Arithmetic, Operand),
    /// A = −A.
    Negate,
    /// Skips so many instructions.
    Jump(u32),
    /// Skips `jt` instructions if the comparison of A with the operand holds, `jf` otherwise.
    #[expect(missing_docs, reason = "the names are those of the instruction")]
    Branch {
        comparison: Comparison,
        operand: Operand,
        jt: u8,
        jf: u8,
    },
    /// Ends with the constant.
    ReturnConstant(u32),
    /// Ends with A.
    ReturnA,
    /// The register = the other one.
    Move(Register),
}

/// What the kernel knows beside the packet: `SKF_AD_…` in `linux/filter.h`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[expect(missing_docs, reason = "the names are those of the kernel")]
pub enum Ancillary {
    Protocol,
    PacketType,
    Ifindex,
    NetlinkAttribute,
    NestedNetlinkAttribute,
    Mark,
    Queue,
    HardwareType,
    RxHash,
    Cpu,
    /// A = A xor X: not a load at all.
    XorX,
    VlanTag,
    VlanTagPresent,
    PayloadOffset,
    Random,
    VlanTpid,
}

impl Ancillary {
    /// What an absolute load at `k` loads instead of the packet.
    pub fn at(k: u32) -> Option<Self> {
        Some(match k.checked_sub(ANCILLARY_OFFSET)? {
            0 => Self::Protocol,
            4 => Self::PacketType,
            8 => Self::Ifindex,
            12 => Self::NetlinkAttribute,
            16 => Self::NestedNetlinkAttribute,
            20 => Self::Mark,
            24 => Self::Queue,
            28 => Self::HardwareType,
            32 => Self::RxHash,
            36 => Self::Cpu,
            40 => Self::XorX,
            44 => Self::VlanTag,
            48 => Self::VlanTagPresent,
            52 => Self::PayloadOffset,
            56 => Self::Random,
            60 => Self::VlanTpid,
            _ => return None,
        })
    }

    /// The kernel's name of it, without `SKF_AD_`.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Protocol => "PROTOCOL",
            Self::PacketType => "PKTTYPE",
            Self::Ifindex => "IFINDEX",
            Self::NetlinkAttribute => "NLATTR",
            Self::NestedNetlinkAttribute => "NLATTR_NEST",
            Self::Mark => "MARK",
            Self::Queue => "QUEUE",
            Self::HardwareType => "HATYPE",
            Self::RxHash => "RXHASH",
            Self::Cpu => "CPU",
            Self::XorX => "ALU_XOR_X",
            Self::VlanTag => "VLAN_TAG",
            Self::VlanTagPresent => "VLAN_TAG_PRESENT",
            Self::PayloadOffset => "PAY_OFFSET",
            Self::Random => "RANDOM",
            Self::VlanTpid => "VLAN_TPID",
        }
    }
}

impl Instruction {
    /// An instruction that does not branch.
    pub const fn new(code: u16, k: u32) -> Self {
        Self::branch(code, k, 0, 0)
    }

    /// A conditional jump.
    pub const fn branch(code: u16, k: u32, jt: u8, jf: u8) -> Self {
        Self { code, jt, jf, k }
    }

    /// What it does; `None` when it has no opcode that the kernel and libpcap know.
    pub fn decode(self) -> Option<Operation> {
        use opcode::{A, ABS, ALU, B, H, IMM, IND, JA, JMP, K, LD, LDX, LEN, MEM, MISC, MSH, NEG, RET, ST};
        use opcode::{STX, TAX, TXA, W, X};

        const LD_W_ABS: u16 = LD | W | ABS;
        const LD_H_ABS: u16 = LD | H | ABS;
        const LD_B_ABS: u16 = LD | B | ABS;
        const LD_W_IND: u16 = LD | W | IND;
        const LD_H_IND: u16 = LD | H | IND;
        const LD_B_IND: u16 = LD | B | IND;
        const LD_LEN: u16 = LD | W | LEN;
        const LD_IMM: u16 = LD | IMM;
        const LD_MEM: u16 = LD | MEM;
        const LDX_LEN: u16 = LDX | W | LEN;
        const LDX_MSH: u16 = LDX | B | MSH;
        const LDX_IMM: u16 = LDX | IMM;
        const LDX_MEM: u16 = LDX | MEM;
        const ALU_NEG: u16 = ALU | NEG;
        const JMP_JA: u16 = JMP | JA;
        const RET_K: u16 = RET | K;
        const RET_A: u16 = RET | A;
        const MISC_TAX: u16 = MISC | TAX;
        const MISC_TXA: u16 = MISC | TXA;

        let k = self.k;
        Some(match self.code {
            LD_W_ABS => Operation::LoadAbsolute(Size::Word, k),
            LD_H_ABS => Operation::LoadAbsolute(Size::Half, k),
            LD_B_ABS => Operation::LoadAbsolute(Size::Byte, k),
            LD_W_IND => Operation::LoadIndirect(Size::Word, k),
            LD_H_IND => Operation::LoadIndirect(Size::Half, k),
            LD_B_IND => Operation::LoadIndirect(Size::Byte, k),
            LD_LEN => Operation::LoadLength(Register::A),
            LD_IMM => Operation::LoadConstant(Register::A, k),
            LD_MEM => Operation::LoadScratch(Register::A, k),
            LDX_LEN => Operation::LoadLength(Register::X),
            LDX_MSH => Operation::LoadHeaderLength(k),
            LDX_IMM => Operation::LoadConstant(Register::X, k),
            LDX_MEM => Operation::LoadScratch(Register::X, k),
            ST => Operation::Store(Register::A, k),
            STX => Operation::Store(Register::X, k),
            ALU_NEG => Operation::Negate,
            JMP_JA => Operation::Jump(k),
            RET_K => Operation::ReturnConstant(k),
            RET_A => Operation::ReturnA,
            MISC_TAX => Operation::Move(Register::X),
            MISC_TXA => Operation::Move(Register::A),
            code if code > 0xff => return None,
            code => {
                let operand = if code & X == 0 { Operand::K(k) } else { Operand::X };
                match code & 0x07 {
                    ALU => Operation::Arithmetic(arithmetic(code & 0xf0)?, operand),
                    JMP => Operation::Branch {
                        comparison: comparison(code & 0xf0)?,
                        operand,
                        jt: self.jt,
                        jf: self.jf,
                    },
                    _ => return None,
                }
            }
        })
    }
}

fn arithmetic(operation: u16) -> Option<Arithmetic> {
    Some(match operation {
        opcode::ADD => Arithmetic::Add,
        opcode::SUB => Arithmetic::Subtract,
        opcode::MUL => Arithmetic::Multiply,
        opcode::DIV => Arithmetic::Divide,
        opcode::MOD => Arithmetic::Modulo,
        opcode::AND => Arithmetic::And,
        opcode::OR => Arithmetic::Or,
        opcode::XOR => Arithmetic::Xor,
        opcode::LSH => Arithmetic::ShiftLeft,
        opcode::RSH => Arithmetic::ShiftRight,
        _ => return None,
    })
}

fn comparison(operation: u16) -> Option<Comparison> {
    Some(match operation {
        opcode::JEQ => Comparison::Equal,
        opcode::JGT => Comparison::Greater,
        opcode::JGE => Comparison::GreaterOrEqual,
        opcode::JSET => Comparison::BitsSet,
        _ => return None,
    })
}

/// Why a program is none. Instructions are counted from zero.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
#[expect(missing_docs, reason = "the sentences say it")]
pub enum InvalidProgram {
    #[error("a filter has 1 to {MAX_INSTRUCTIONS} instructions, and this one has {0}")]
    Length(usize),
    #[error("instruction {at} has the unknown opcode {code:#x}")]
    Opcode { at: usize, code: u16 },
    #[error("instruction {at} jumps backwards or out of the filter")]
    Jump { at: usize },
    #[error("instruction {at} uses word {k} of scratch memory, which has {SCRATCH_WORDS}")]
    Scratch { at: usize, k: u32 },
    #[error("instruction {at} divides by zero")]
    Division { at: usize },
    #[error("instruction {at} shifts by {k} bits, and a word has 32")]
    Shift { at: usize, k: u32 },
    #[error("instruction {at} loads at {k:#x}, which the kernel gives no meaning")]
    Ancillary { at: usize, k: u32 },
    #[error("the last instruction is not a return")]
    NoReturn,
}

/// Decodes a program and checks it by the rules of the kernel: `bpf_check_classic` in `net/core/filter.c`.
///
/// One rule is left out, since libpcap has it not, and words of scratch memory start at zero here as in newer ones of
/// it: the kernel wants each to be stored before it is loaded. libpcap's jumps backwards (`protochain`) are refused as
/// the kernel does.
///
/// # Errors
/// The first rule that is broken.
pub fn check(program: &[Instruction]) -> Result<Vec<Operation>, InvalidProgram> {
    let len = program.len();
    if len == 0 || len > MAX_INSTRUCTIONS {
        return Err(InvalidProgram::Length(len));
    }
    let mut operations = Vec::with_capacity(len);
    for (at, instruction) in program.iter().enumerate() {
        let code = instruction.code;
        let operation = instruction.decode().ok_or(InvalidProgram::Opcode { at, code })?;
        let following = len - at - 1;
        match operation {
            Operation::LoadScratch(_, k) | Operation::Store(_, k) if k >= SCRATCH_WORDS => {
                return Err(InvalidProgram::Scratch { at, k });
            }
            Operation::LoadAbsolute(_, k) if k >= ANCILLARY_OFFSET && Ancillary::at(k).is_none() => {
                return Err(InvalidProgram::Ancillary { at, k });
            }
            Operation::Arithmetic(Arithmetic::Divide | Arithmetic::Modulo, Operand::K(0)) => {
                return Err(InvalidProgram::Division { at });
            }
            Operation::Arithmetic(Arithmetic::ShiftLeft | Arithmetic::ShiftRight, Operand::K(k @ 32..)) => {
                return Err(InvalidProgram::Shift { at, k });
            }
            Operation::Jump(k) if k as usize >= following => return Err(InvalidProgram::Jump { at }),
            Operation::Branch { jt, jf, .. } if usize::from(jt.max(jf)) >= following => {
                return Err(InvalidProgram::Jump { at });
            }
            _ => {}
        }
        operations.push(operation);
    }
    match operations.last() {
        Some(Operation::ReturnConstant(_) | Operation::ReturnA) => Ok(operations),
        _ => Err(InvalidProgram::NoReturn),
    }
}

/// A program as `tcpdump -d` writes it.
#[derive(Clone, Copy, Debug)]
pub struct Listing<'a>(pub &'a [Instruction]);

impl fmt::Display for Listing<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (at, instruction) in self.0.iter().enumerate() {
            write!(f, "({at:03}) ")?;
            instruction.write(f, at + 1)?;
            writeln!(f)?;
        }
        Ok(())
    }
}

/// Where a load takes its value from: what the kernel knows beside the packet has names, as `bpf_image.c` of libpcap writes
/// them.
fn absolute(k: u32) -> String {
    /// Every fourth number from `SKF_AD_OFF` on.
    const NAMES: [&str; 16] = [
        "proto",
        "type",
        "ifidx",
        "nla",
        "nlan",
        "mark",
        "queue",
        "hatype",
        "rxhash",
        "cpu",
        "xor_x",
        "vlan_tci",
        "vlanp",
        "poff",
        "random",
        "vlan_tpid",
    ];
    let beside = k.checked_sub(ANCILLARY_OFFSET).filter(|beside| beside % 4 == 0);
    match beside.and_then(|beside| NAMES.get(beside as usize / 4)) {
        Some(name) => format!("[{name}]"),
        None => format!("[{}]", k as i32),
    }
}

/// As `tcpdump -d` writes it, but that jumps tell how many instructions they skip.
impl fmt::Display for Instruction {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.write(f, 0)
    }
}

impl Instruction {
    /// Writes it; jumps are told as numbers from `next` on, which is the number of the next instruction.
    fn write(self, f: &mut fmt::Formatter<'_>, next: usize) -> fmt::Result {
        let Some(operation) = self.decode() else {
            return write!(f, "unimp    {:#x}", self.code);
        };
        let (name, operand) = match operation {
            Operation::LoadAbsolute(size, k) => (load(size), absolute(k)),
            Operation::LoadIndirect(size, k) => (load(size), format!("[x + {}]", k as i32)),
            Operation::LoadHeaderLength(k) => ("ldxb", format!("4*([{}]&0xf)", k as i32)),
            Operation::LoadConstant(Register::A, k) => ("ld", format!("#{k:#x}")),
            Operation::LoadConstant(Register::X, k) => ("ldx", format!("#{k:#x}")),
            Operation::LoadScratch(Register::A, k) => ("ld", format!("M[{k}]")),
            Operation::LoadScratch(Register::X, k) => ("ldx", format!("M[{k}]")),
            Operation::LoadLength(Register::A) => ("ld", "#pktlen".to_owned()),
            Operation::LoadLength(Register::X) => ("ldx", "#pktlen".to_owned()),
            Operation::Store(Register::A, k) => ("st", format!("M[{k}]")),
            Operation::Store(Register::X, k) => ("stx", format!("M[{k}]")),
            Operation::Arithmetic(arithmetic, operand) => {
                let (name, bits) = match arithmetic {
                    Arithmetic::Add => ("add", false),
                    Arithmetic::Subtract => ("sub", false),
                    Arithmetic::Multiply => ("mul", false),
                    Arithmetic::Divide => ("div", false),
                    Arithmetic::Modulo => ("mod", false),
                    Arithmetic::And => ("and", true),
                    Arithmetic::Or => ("or", true),
                    Arithmetic::Xor => ("xor", true),
                    Arithmetic::ShiftLeft => ("lsh", false),
                    Arithmetic::ShiftRight => ("rsh", false),
                };
                let operand = match operand {
                    Operand::X => "x".to_owned(),
                    Operand::K(k) if bits => format!("#{k:#x}"),
                    Operand::K(k) => format!("#{}", k as i32),
                };
                (name, operand)
            }
            Operation::Negate => ("neg", String::new()),
            Operation::Jump(k) => ("ja", format!("{}", next as u64 + u64::from(k))),
            Operation::Branch {
                comparison, operand, ..
            } => {
                let name = match comparison {
                    Comparison::Equal => "jeq",
                    Comparison::Greater => "jgt",
                    Comparison::GreaterOrEqual => "jge",
                    Comparison::BitsSet => "jset",
                };
                let operand = match operand {
                    Operand::X => "x".to_owned(),
                    Operand::K(k) => format!("#{k:#x}"),
                };
                let (jt, jf) = (next + usize::from(self.jt), next + usize::from(self.jf));
                return write!(f, "{name:8} {operand:16} jt {jt}\tjf {jf}");
            }
            Operation::ReturnConstant(k) => ("ret", format!("#{}", k as i32)),
            Operation::ReturnA => ("ret", String::new()),
            Operation::Move(Register::X) => ("tax", String::new()),
            Operation::Move(Register::A) => ("txa", String::new()),
        };
        write!(f, "{name:8} {operand}")
    }
}

fn load(size: Size) -> &'static str {
    match size {
        Size::Byte => "ldb",
        Size::Half => "ldh",
        Size::Word => "ld",
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::{opcode::*, *};

    const fn op(code: u16, k: u32) -> Instruction {
        Instruction::new(code, k)
    }

    #[test]
    fn lists_as_tcpdump_does() {
        // What `tcpdump -d` says of `ip and udp port 53 and len > 100`, but for the order of its tests.
        let program = [
            op(LD | H | ABS, 12),
            Instruction::branch(JMP | JEQ | K, 0x800, 0, 8),
            op(LD | B | ABS, 23),
            Instruction::branch(JMP | JEQ | K, 17, 0, 6),
            op(LDX | B | MSH, 14),
            op(LD | H | IND, 16),
            Instruction::branch(JMP | JEQ | K, 53, 0, 3),
            op(LD | W | LEN, 0),
            Instruction::branch(JMP | JGT | K, 100, 0, 1),
            op(RET | K, 262_144),
            op(RET | K, 0),
        ];
        let expected = "\
            (000) ldh      [12]\n\
            (001) jeq      #0x800           jt 2\tjf 10\n\
            (002) ldb      [23]\n\
            (003) jeq      #0x11            jt 4\tjf 10\n\
            (004) ldxb     4*([14]&0xf)\n\
            (005) ldh      [x + 16]\n\
            (006) jeq      #0x35            jt 7\tjf 10\n\
            (007) ld       #pktlen\n\
            (008) jgt      #0x64            jt 9\tjf 10\n\
            (009) ret      #262144\n\
            (010) ret      #0\n";
        assert_eq!(Listing(&program).to_string(), expected);
        assert_eq!(check(&program).map(|operations| operations.len()), Ok(11));
    }

    #[test]
    fn lists_the_rest() {
        for (instruction, expected) in [
            (op(LD | B | ABS, ANCILLARY_OFFSET + 48), "ldb      [vlanp]"),
            (op(LD | B | ABS, ANCILLARY_OFFSET + 4), "ldb      [type]"),
            (op(LD | B | ABS, ANCILLARY_OFFSET + 3), "ldb      [-4093]"),
            (op(LD | B | ABS, ANCILLARY_OFFSET + 64), "ldb      [-4032]"),
            (op(LD | W | IND, 2), "ld       [x + 2]"),
            (op(LD | IMM, 16), "ld       #0x10"),
            (op(LDX | IMM, 16), "ldx      #0x10"),
            (op(LD | MEM, 3), "ld       M[3]"),
            (op(LDX | MEM, 3), "ldx      M[3]"),
            (op(LDX | LEN, 3), "ldx      #pktlen"),
            (op(ST, 15), "st       M[15]"),
            (op(STX, 15), "stx      M[15]"),
            (op(ALU | ADD | X, 0), "add      x"),
            (op(ALU | SUB | K, 1), "sub      #1"),
            (op(ALU | AND | K, 255), "and      #0xff"),
            (op(ALU | LSH | K, 2), "lsh      #2"),
            (op(ALU | NEG, 0), "neg      "),
            (op(JMP | JA, 5), "ja       5"),
            (
                Instruction::branch(JMP | JSET | X, 0, 1, 2),
                "jset     x                jt 1\tjf 2",
            ),
            (op(RET | A, 0), "ret      "),
            (op(MISC | TAX, 0), "tax      "),
            (op(MISC | TXA, 0), "txa      "),
            (op(0xffff, 0), "unimp    0xffff"),
        ] {
            assert_eq!(instruction.to_string(), expected);
        }
    }

    #[test]
    fn refuses_what_the_kernel_refuses() {
        use InvalidProgram as Invalid;
        let end = op(RET | K, 0);
        let jump = |jt, jf| Instruction::branch(JMP | JEQ | K, 0, jt, jf);
        for (program, error) in [
            (vec![], Invalid::Length(0)),
            (vec![end; 4097], Invalid::Length(4097)),
            (vec![op(LD | IMM, 0)], Invalid::NoReturn),
            (vec![op(RET | X, 0)], Invalid::Opcode { at: 0, code: RET | X }),
            (
                vec![op(LDX | H | ABS, 0), end],
                Invalid::Opcode { at: 0, code: 0x29 },
            ),
            (vec![op(0x100, 0), end], Invalid::Opcode { at: 0, code: 0x100 }),
            (vec![end, op(ST, 16), end], Invalid::Scratch { at: 1, k: 16 }),
            (vec![op(LDX | MEM, 99), end], Invalid::Scratch { at: 0, k: 99 }),
            (vec![op(ALU | DIV | K, 0), end], Invalid::Division { at: 0 }),
            (vec![op(ALU | MOD | K, 0), end], Invalid::Division { at: 0 }),
            (vec![op(ALU | LSH | K, 32), end], Invalid::Shift { at: 0, k: 32 }),
            (
                vec![op(ALU | RSH | K, u32::MAX), end],
                Invalid::Shift { at: 0, k: u32::MAX },
            ),
            (vec![op(JMP | JA, 1), end], Invalid::Jump { at: 0 }),
            (vec![end, op(JMP | JA, u32::MAX), end], Invalid::Jump { at: 1 }),
            (vec![jump(1, 0), end], Invalid::Jump { at: 0 }),
            (vec![jump(0, 1), end], Invalid::Jump { at: 0 }),
            (vec![jump(0, 0)], Invalid::Jump { at: 0 }),
            (
                vec![op(LD | W | ABS, ANCILLARY_OFFSET + 1), end],
                Invalid::Ancillary {
                    at: 0,
                    k: ANCILLARY_OFFSET + 1,
                },
            ),
        ] {
            assert_eq!(check(&program), Err(error), "{}", Listing(&program));
        }
        for program in [
            vec![end; 4096],
            vec![op(RET | A, 0)],
            vec![op(JMP | JA, 0), end],
            vec![jump(0, 0), end],
            vec![op(LD | MEM, 15), end],
            vec![op(ALU | RSH | K, 31), end],
            vec![op(ALU | DIV | X, 0), end],
            vec![op(LD | B | ABS, ANCILLARY_OFFSET + 60), end],
        ] {
            assert!(check(&program).is_ok(), "{}", Listing(&program));
        }
    }

    proptest! {
        #[test]
        fn never_panics(program in prop::collection::vec(
            (any::<u16>(), any::<u8>(), any::<u8>(), any::<u32>()), 0..40)
        ) {
            let program: Vec<Instruction> =
                program.into_iter().map(|(code, jt, jf, k)| Instruction { code, jt, jf, k }).collect();
            let _ = check(&program);
            prop_assert_eq!(Listing(&program).to_string().lines().count(), program.len());
        }
    }
}
