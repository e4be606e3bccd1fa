//! eBPF: the instruction set of the kernel's programs, `struct bpf_insn` in `linux/bpf.h`.
//!
//! Only what translated filters consist of has a constructor.

use std::fmt;

/// Bytes of an encoded instruction.
pub const INSTRUCTION_LEN: usize = 8;

/// What a call returns, and the program.
pub const R0: u8 = 0;
/// First argument.
pub const R1: u8 = 1;
/// Second argument.
pub const R2: u8 = 2;
/// Third argument.
pub const R3: u8 = 3;
/// Fourth argument.
pub const R4: u8 = 4;
/// Fifth argument.
pub const R5: u8 = 5;
/// Kept over calls.
pub const R6: u8 = 6;
/// Kept over calls.
pub const R7: u8 = 7;
/// Kept over calls.
pub const R8: u8 = 8;
/// Kept over calls.
pub const R9: u8 = 9;
/// End of the stack, which grows down.
pub const R10: u8 = 10;

const LDX: u8 = 0x01;
const ST: u8 = 0x02;
const STX: u8 = 0x03;
const ALU32: u8 = 0x04;
const JMP: u8 = 0x05;
const JMP32: u8 = 0x06;
const ALU64: u8 = 0x07;
const MEM: u8 = 0x60;
const SOURCE_REGISTER: u8 = 0x08;
const CALL: u8 = 0x85;
const EXIT: u8 = 0x95;
/// Conversion from network byte order: class ALU, operation END, BPF_TO_BE.
const TO_BIG_ENDIAN: u8 = 0xdc;

/// Size of a load or store.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Size {
    /// 8 bits.
    Byte = 0x10,
    /// 16 bits.
    Half = 0x08,
    /// 32 bits.
    Word = 0x00,
    /// 64 bits.
    Double = 0x18,
}

/// Operation on a register.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[expect(missing_docs, reason = "the names say it")]
#[repr(u8)]
pub enum Arithmetic {
    Add = 0x00,
    Subtract = 0x10,
    Multiply = 0x20,
    Divide = 0x30,
    Or = 0x40,
    And = 0x50,
    ShiftLeft = 0x60,
    ShiftRight = 0x70,
    Negate = 0x80,
    Modulo = 0x90,
    Xor = 0xa0,
    Move = 0xb0,
}

/// When to jump; without a sign.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[expect(missing_docs, reason = "the names say it")]
#[repr(u8)]
pub enum Condition {
    Equal = 0x10,
    Greater = 0x20,
    GreaterOrEqual = 0x30,
    /// A bit is set in both.
    BitsSet = 0x40,
    NotEqual = 0x50,
    Less = 0xa0,
    LessOrEqual = 0xb0,
}

/// Helper functions, by their numbers in `linux/bpf.h`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(i32)]
pub enum Helper {
    /// A random number. Kernel 4.1.
    GetPrandomU32 = 7,
    /// Number of the CPU. Kernel 4.1.
    GetSmpProcessorId = 8,
    /// Puts a VLAN tag beside the packet; for classifiers only. Kernel 4.3.
    SkbVlanPush = 18,
    /// Copies bytes of the packet. Kernel 4.5.
    SkbLoadBytes = 26,
    /// Copies bytes of the packet, from its link-layer header (0) or network header (1) on. Kernel 4.18.
    SkbLoadBytesRelative = 68,
}

/// One instruction.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Instruction {
    /// What to do.
    pub code: u8,
    /// Number of the register that is changed or compared.
    pub dst: u8,
    /// Number of the other register.
    pub src: u8,
    /// Bytes from an address, or instructions to skip.
    pub offset: i16,
    /// The constant.
    pub imm: i32,
}

impl Instruction {
    const fn new(code: u8, dst: u8, src: u8, offset: i16, imm: i32) -> Self {
        Self {
            code,
            dst,
            src,
            offset,
            imm,
        }
    }

    /// `dst = dst … src` with 32 bits; the upper half becomes zero.
    pub const fn alu32(operation: Arithmetic, dst: u8, src: u8) -> Self {
        Self::new(ALU32 | operation as u8 | SOURCE_REGISTER, dst, src, 0, 0)
    }

    /// `dst = dst … imm` with 32 bits; the upper half becomes zero.
    pub const fn alu32_imm(operation: Arithmetic, dst: u8, imm: i32) -> Self {
        Self::new(ALU32 | operation as u8, dst, 0, 0, imm)
    }

    /// `dst = dst … src` with 64 bits.
    pub const fn alu64(operation: Arithmetic, dst: u8, src: u8) -> Self {
        Self::new(ALU64 | operation as u8 | SOURCE_REGISTER, dst, src, 0, 0)
    }

    /// `dst = dst … imm` with 64 bits; the constant's sign is extended.
    pub const fn alu64_imm(operation: Arithmetic, dst: u8, imm: i32) -> Self {
        Self::new(ALU64 | operation as u8, dst, 0, 0, imm)
    }

    /// Converts the lower `bits`, 16 or 32, from network byte order, and clears the rest.
    pub const fn from_big_endian(dst: u8, bits: i32) -> Self {
        Self::new(TO_BIG_ENDIAN, dst, 0, 0, bits)
    }

    /// `dst = *(src + offset)`; the rest becomes zero.
    pub const fn load(size: Size, dst: u8, src: u8, offset: i16) -> Self {
        Self::new(LDX | MEM | size as u8, dst, src, offset, 0)
    }

    /// `*(dst + offset) = src`
    pub const fn store(size: Size, dst: u8, offset: i16, src: u8) -> Self {
        Self::new(STX | MEM | size as u8, dst, src, offset, 0)
    }

    /// `*(dst + offset) = imm`
    pub const fn store_imm(size: Size, dst: u8, offset: i16, imm: i32) -> Self {
        Self::new(ST | MEM | size as u8, dst, 0, offset, imm)
    }

    /// Skips `offset` instructions.
    pub const fn jump(offset: i16) -> Self {
        Self::new(JMP, 0, 0, offset, 0)
    }

    /// Skips `offset` instructions if `dst … src` with 64 bits.
    pub const fn jump_if(condition: Condition, dst: u8, src: u8, offset: i16) -> Self {
        Self::new(JMP | condition as u8 | SOURCE_REGISTER, dst, src, offset, 0)
    }

    /// Skips `offset` instructions if `dst … imm` with 64 bits; the constant's sign is extended.
    pub const fn jump_if_imm(condition: Condition, dst: u8, imm: i32, offset: i16) -> Self {
        Self::new(JMP | condition as u8, dst, 0, offset, imm)
    }

    /// Skips `offset` instructions if `dst … src` with 32 bits. Kernel 5.1.
    pub const fn jump32_if(condition: Condition, dst: u8, src: u8, offset: i16) -> Self {
        Self::new(JMP32 | condition as u8 | SOURCE_REGISTER, dst, src, offset, 0)
    }

    /// Skips `offset` instructions if `dst … imm` with 32 bits. Kernel 5.1.
    pub const fn jump32_if_imm(condition: Condition, dst: u8, imm: i32, offset: i16) -> Self {
        Self::new(JMP32 | condition as u8, dst, 0, offset, imm)
    }

    /// Calls a helper: arguments from R1 on, the result in R0; R1 to R5 are lost.
    pub const fn call(helper: Helper) -> Self {
        Self::new(CALL, 0, 0, 0, helper as i32)
    }

    /// Calls the function of this program that begins `offset` instructions after this one.
    pub const fn call_function(offset: i32) -> Self {
        Self::new(CALL, 0, 1, 0, offset)
    }

    /// Returns with R0.
    pub const fn exit() -> Self {
        Self::new(EXIT, 0, 0, 0, 0)
    }

    /// As the kernel wants it on a machine of little endian, as are all that packetflix runs on.
    pub const fn encode(self) -> [u8; INSTRUCTION_LEN] {
        let offset = self.offset.to_le_bytes();
        let imm = self.imm.to_le_bytes();
        let registers = self.src << 4 | self.dst & 0x0f;
        [
            self.code, registers, offset[0], offset[1], imm[0], imm[1], imm[2], imm[3],
        ]
    }
}

/// Encodes a program.
pub fn encode(program: &[Instruction]) -> Vec<u8> {
    program
        .iter()
        .flat_map(|instruction| instruction.encode())
        .collect()
}

/// A program as `bpftool prog dump xlated` writes it.
#[derive(Clone, Copy, Debug)]
pub struct Listing<'a>(pub &'a [Instruction]);

impl fmt::Display for Listing<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (at, instruction) in self.0.iter().enumerate() {
            writeln!(f, "{at:4}: {instruction}")?;
        }
        Ok(())
    }
}

/// As the kernel's own disassembler writes it: `kernel/bpf/disasm.c`.
impl fmt::Display for Instruction {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            code,
            dst,
            src,
            offset,
            imm,
        } = *self;
        write!(f, "({code:02x}) ")?;
        let operation = code & 0xf0;
        let size = match code & 0x18 {
            0x10 => "u8",
            0x08 => "u16",
            0x00 => "u32",
            _ => "u64",
        };
        match code & 0x07 {
            _ if code == TO_BIG_ENDIAN => write!(f, "r{dst} = be{imm} r{dst}"),
            LDX if code & 0xe0 == MEM => write!(f, "r{dst} = *({size} *)(r{src} {offset:+})"),
            ST if code & 0xe0 == MEM => write!(f, "*({size} *)(r{dst} {offset:+}) = {imm}"),
            STX if code & 0xe0 == MEM => write!(f, "*({size} *)(r{dst} {offset:+}) = r{src}"),
            class @ (ALU32 | ALU64) => {
                let register = if class == ALU64 { 'r' } else { 'w' };
                let sign = match operation {
                    0x00 => "+=",
                    0x10 => "-=",
                    0x20 => "*=",
                    0x30 => "/=",
                    0x40 => "|=",
                    0x50 => "&=",
                    0x60 => "<<=",
                    0x70 => ">>=",
                    0x80 => return write!(f, "{register}{dst} = -{register}{dst}"),
                    0x90 => "%=",
                    0xa0 => "^=",
                    0xb0 => "=",
                    _ => return write!(f, "unknown"),
                };
                if code & SOURCE_REGISTER == 0 {
                    write!(f, "{register}{dst} {sign} {imm}")
                } else {
                    write!(f, "{register}{dst} {sign} {register}{src}")
                }
            }
            JMP if code == JMP => write!(f, "goto pc{offset:+}"),
            JMP if code == CALL && src == 1 => write!(f, "call pc{imm:+}"),
            JMP if code == CALL => match helper_name(imm) {
                Some(name) => write!(f, "call {name}#{imm}"),
                None => write!(f, "call unknown#{imm}"),
            },
            JMP if code == EXIT => write!(f, "exit"),
            class @ (JMP | JMP32) => {
                let register = if class == JMP { 'r' } else { 'w' };
                let sign = match operation {
                    0x10 => "==",
                    0x20 => ">",
                    0x30 => ">=",
                    0x40 => "&",
                    0x50 => "!=",
                    0xa0 => "<",
                    0xb0 => "<=",
                    _ => return write!(f, "unknown"),
                };
                if code & SOURCE_REGISTER == 0 {
                    write!(f, "if {register}{dst} {sign} {imm:#x} goto pc{offset:+}")
                } else {
                    write!(f, "if {register}{dst} {sign} {register}{src} goto pc{offset:+}")
                }
            }
            _ => write!(f, "unknown"),
        }
    }
}

fn helper_name(number: i32) -> Option<&'static str> {
    const HELPERS: [(Helper, &str); 5] = [
        (Helper::GetPrandomU32, "bpf_get_prandom_u32"),
        (Helper::GetSmpProcessorId, "bpf_get_smp_processor_id"),
        (Helper::SkbVlanPush, "bpf_skb_vlan_push"),
        (Helper::SkbLoadBytes, "bpf_skb_load_bytes"),
        (Helper::SkbLoadBytesRelative, "bpf_skb_load_bytes_relative"),
    ];
    HELPERS
        .iter()
        .find(|(helper, _)| *helper as i32 == number)
        .map(|(_, name)| *name)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn encodes_and_lists() {
        use Instruction as I;
        for (instruction, bytes, text) in [
            (
                I::alu64(Arithmetic::Move, R6, R1),
                [0xbf, 0x16, 0, 0, 0, 0, 0, 0],
                "(bf) r6 = r1",
            ),
            (
                I::alu64_imm(Arithmetic::Add, R3, -136),
                [0x07, 0x03, 0, 0, 0x78, 0xff, 0xff, 0xff],
                "(07) r3 += -136",
            ),
            (
                I::alu32_imm(Arithmetic::Move, R0, 262_144),
                [0xb4, 0, 0, 0, 0, 0, 4, 0],
                "(b4) w0 = 262144",
            ),
            (
                I::alu32(Arithmetic::Xor, R7, R8),
                [0xac, 0x87, 0, 0, 0, 0, 0, 0],
                "(ac) w7 ^= w8",
            ),
            (
                I::alu32_imm(Arithmetic::Negate, R7, 0),
                [0x84, 7, 0, 0, 0, 0, 0, 0],
                "(84) w7 = -w7",
            ),
            (
                I::from_big_endian(R7, 16),
                [0xdc, 7, 0, 0, 16, 0, 0, 0],
                "(dc) r7 = be16 r7",
            ),
            (
                I::load(Size::Word, R9, R1, 0),
                [0x61, 0x19, 0, 0, 0, 0, 0, 0],
                "(61) r9 = *(u32 *)(r1 +0)",
            ),
            (
                I::load(Size::Byte, R7, R10, -8),
                [0x71, 0xa7, 0xf8, 0xff, 0, 0, 0, 0],
                "(71) r7 = *(u8 *)(r10 -8)",
            ),
            (
                I::store(Size::Half, R10, -2, R8),
                [0x6b, 0x8a, 0xfe, 0xff, 0, 0, 0, 0],
                "(6b) *(u16 *)(r10 -2) = r8",
            ),
            (
                I::store_imm(Size::Double, R10, -8, 0),
                [0x7a, 0x0a, 0xf8, 0xff, 0, 0, 0, 0],
                "(7a) *(u64 *)(r10 -8) = 0",
            ),
            (I::jump(-2), [5, 0, 0xfe, 0xff, 0, 0, 0, 0], "(05) goto pc-2"),
            (
                I::jump_if(Condition::GreaterOrEqual, R2, R9, 3),
                [0x3d, 0x92, 3, 0, 0, 0, 0, 0],
                "(3d) if r2 >= r9 goto pc+3",
            ),
            (
                I::jump_if_imm(Condition::Less, R9, 38, 5),
                [0xa5, 9, 5, 0, 38, 0, 0, 0],
                "(a5) if r9 < 0x26 goto pc+5",
            ),
            (
                I::jump32_if(Condition::BitsSet, R7, R8, 1),
                [0x4e, 0x87, 1, 0, 0, 0, 0, 0],
                "(4e) if w7 & w8 goto pc+1",
            ),
            (
                I::jump32_if_imm(Condition::NotEqual, R7, -1, 1),
                [0x56, 7, 1, 0, 0xff, 0xff, 0xff, 0xff],
                "(56) if w7 != 0xffffffff goto pc+1",
            ),
            (
                I::call(Helper::SkbLoadBytes),
                [0x85, 0, 0, 0, 26, 0, 0, 0],
                "(85) call bpf_skb_load_bytes#26",
            ),
            (
                I::call_function(3),
                [0x85, 0x10, 0, 0, 3, 0, 0, 0],
                "(85) call pc+3",
            ),
            (I::exit(), [0x95, 0, 0, 0, 0, 0, 0, 0], "(95) exit"),
        ] {
            assert_eq!(instruction.encode(), bytes, "{text}");
            assert_eq!(instruction.to_string(), text);
        }
    }

    proptest! {
        #[test]
        fn lists_whatever_there_is(
            code in any::<u8>(), dst in 0..16_u8, src in 0..16_u8, offset in any::<i16>(), imm in any::<i32>()
        ) {
            let program = [Instruction { code, dst, src, offset, imm }; 2];
            prop_assert_eq!(Listing(&program).to_string().lines().count(), 2);
            prop_assert_eq!(encode(&program).len(), 16);
        }
    }
}
