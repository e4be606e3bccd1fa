//! Programs that no compiler would make, but that are valid.

use packetflix_filter::classic::{ANCILLARY_OFFSET, Instruction, LINK_OFFSET, NETWORK_OFFSET, opcode::*};
use packetflix_tests::random::Random;

/// What programs may do beside what libpcap's interpreter gives one meaning.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Extent {
    /// Nothing.
    Libpcap,
    /// Load words of scratch memory that were never stored.
    Scratch,
    /// That, and load what is beside the packet, and from its headers on.
    Kernel,
}

/// Makes one valid program.
pub(crate) fn program(random: &mut Random, extent: Extent) -> Vec<Instruction> {
    let len = match random.below(10) {
        0..=5 => 2 + random.below(20),
        6..=8 => 10 + random.below(80),
        _ => 100 + random.below(300),
    };
    let mut program: Vec<Instruction> = Vec::new();
    // Words that may be loaded.
    let mut words: Vec<u32> = (0..16).collect();
    if extent == Extent::Libpcap {
        words.retain(|_| random.percent(20));
        for word in &words {
            program.push(Instruction::new(LD | IMM, constant(random)));
            program.push(Instruction::new(random.pick(&[ST, STX]), *word));
        }
    }
    let len = len as usize + program.len();
    while program.len() < len {
        let left = (len - program.len() - 1) as u32;
        program.push(instruction(random, extent, &words, left));
    }
    program.push(end(random));
    program
}

fn end(random: &mut Random) -> Instruction {
    if random.percent(60) {
        Instruction::new(RET | A, 0)
    } else {
        Instruction::new(RET | K, constant(random))
    }
}

/// One instruction, which is followed by `left` others and a return.
fn instruction(random: &mut Random, extent: Extent, words: &[u32], left: u32) -> Instruction {
    let size = random.pick(&[W, H, B]);
    match random.below(100) {
        0..=24 => Instruction::new(LD | size | ABS, offset(random)),
        25..=33 => Instruction::new(LD | size | IND, offset(random)),
        34..=37 => Instruction::new(LDX | B | MSH, offset(random)),
        38..=40 => Instruction::new(random.pick(&[LD, LDX]) | IMM, constant(random)),
        41..=45 if !words.is_empty() => Instruction::new(random.pick(&[LD, LDX]) | MEM, random.pick(words)),
        46..=50 => Instruction::new(random.pick(&[ST, STX]), random.below(16)),
        51..=53 => Instruction::new(random.pick(&[LD, LDX]) | LEN, 0),
        54..=58 => Instruction::new(MISC | random.pick(&[TAX, TXA]), 0),
        59 => Instruction::new(ALU | NEG, 0),
        60..=77 => {
            let operation = random.pick(&[ADD, SUB, MUL, DIV, MOD, AND, OR, XOR, LSH, RSH]);
            let operand = random.pick(&[K, X]);
            let k = match operation {
                LSH | RSH => random.below(32),
                _ => constant(random).max(1),
            };
            Instruction::new(ALU | operation | operand, k)
        }
        78..=79 => Instruction::new(JMP | JA, random.below(left.min(6) + 1)),
        80 => end(random),
        81..=86 if extent == Extent::Kernel => {
            let k = match random.below(10) {
                0 => NETWORK_OFFSET + random.below(80),
                1 => LINK_OFFSET + random.below(80),
                2 => NETWORK_OFFSET + random.below(0x10_0000 - 0x1000),
                // PROTOCOL, PKTTYPE, IFINDEX, MARK, QUEUE, RXHASH, ALU_XOR_X, VLAN_TAG, VLAN_TAG_PRESENT, VLAN_TPID
                _ => ANCILLARY_OFFSET + random.pick(&[0, 4, 8, 20, 24, 32, 40, 44, 48, 60]),
            };
            Instruction::new(LD | size | ABS, k)
        }
        _ => {
            let comparison = random.pick(&[JEQ, JGT, JGE, JSET]);
            let operand = random.pick(&[K, K, X]);
            let most = left.min(if random.percent(80) { 8 } else { 255 }) + 1;
            let (jt, jf) = (random.below(most) as u8, random.below(most) as u8);
            Instruction::branch(JMP | comparison | operand, constant(random), jt, jf)
        }
    }
}

fn offset(random: &mut Random) -> u32 {
    match random.below(100) {
        0..=79 => random.below(60),
        80..=89 => random.below(200),
        90..=95 => random.below(1600),
        96..=97 => 0x7fff_fff0 + random.below(32),
        // Below the offsets that the kernel gives a meaning.
        98 => 0x8000_0000 + random.below(0x7fe0_0000),
        _ => random.below(0x8000_0000),
    }
}

fn constant(random: &mut Random) -> u32 {
    match random.below(10) {
        0..=4 => random.below(64),
        5 => random.below(0x1_0000),
        6 => u32::MAX - random.below(64),
        7 => 0x7fff_ffe0 + random.below(64),
        8 => random.pick(&[0x800, 0x806, 0x86dd, 0x8100, 6, 17, 0x1fff, 0xf, 20]),
        _ => random.number() as u32,
    }
}
