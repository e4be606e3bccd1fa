use proptest::prelude::*;

use super::*;
use crate::{
    classic::{
        ANCILLARY_OFFSET, Instruction as Classic, LINK_OFFSET, Listing, NETWORK_OFFSET, Operation, opcode::*,
    },
    native::{self, R10},
};

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

const ANCILLARY_NLATTR: u32 = ANCILLARY_OFFSET + 12;

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
        let program = [op(LD | B | ABS, ANCILLARY_OFFSET + k), end];
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
        (0..80_u32).prop_map(|offset| ANCILLARY_OFFSET + offset),
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
