//! What a translated filter costs: nanoseconds per run, beside an empty program. Needs root:
//! `cargo run --package packetflix-tests --example filter_cost`.

use packetflix::filter::{
    classic::{Instruction, opcode::*},
    native, translate,
};
use packetflix_tests::bpf_run::{Program, ProgramType};

const RUNS: u32 = 1_000_000;
const ROUNDS: u32 = 7;

fn main() -> anyhow::Result<()> {
    let accept = Instruction::new(RET | K, 262_144);
    let reject = Instruction::new(RET | K, 0);
    let load = |code, k| Instruction::new(LD | code, k);
    let unless = |k, jf| Instruction::branch(JMP | JEQ | K, k, 0, jf);

    // Nine loads of which each is compared, the last in vain.
    let mut nine = Vec::new();
    let loads = [
        (H | ABS, 12, 0x800),
        (B | ABS, 23, 6),
        (H | ABS, 20, 0),
        (W | ABS, 26, 0x0a00_0001),
        (W | ABS, 30, 0x0a00_0002),
        (H | ABS, 34, 80),
        (H | ABS, 36, 443),
        (B | ABS, 14, 0x45),
        (B | ABS, 47, 0xff),
    ];
    for (number, (code, at, value)) in (0_u8..).zip(loads) {
        nine.extend([load(code, at), unless(value, 2 * (8 - number) + 1)]);
    }
    nine.extend([accept, reject]);

    let tcp_port = [
        load(H | ABS, 12),
        unless(0x800, 10),
        load(B | ABS, 23),
        unless(6, 8),
        load(H | ABS, 20),
        Instruction::branch(JMP | JSET | K, 0x1fff, 6, 0),
        Instruction::new(LDX | B | MSH, 14),
        load(H | IND, 14),
        Instruction::branch(JMP | JEQ | K, 8080, 2, 0),
        load(H | IND, 16),
        unless(8080, 1),
        accept,
        reject,
    ];

    let mut packet = vec![2, 0, 0, 0, 0, 1, 2, 0, 0, 0, 0, 2, 8, 0];
    packet.extend([
        0x45, 0, 0x05, 0xdc, 0, 1, 0, 0, 64, 6, 0, 0, 10, 0, 0, 1, 10, 0, 0, 2,
    ]);
    packet.extend([0, 80, 1, 0xbb]);
    packet.resize(1514, 0);
    let mut options = packet.clone();
    options[14] = 0x46;

    for (name, program, packet, len) in [
        ("empty", &[reject][..], &packet, 64),
        ("nine loads", &nine, &packet, 64),
        ("nine loads", &nine, &packet, 1514),
        ("nine loads, too short", &nine, &packet, 47),
        ("tcp port", &tcp_port, &packet, 64),
        ("tcp port, with options", &tcp_port, &options, 64),
    ] {
        let program = native::encode(&translate(program)?);
        for hook in [ProgramType::Classifier, ProgramType::SocketFilter] {
            let loaded = Program::load(hook, &program)?;
            let mut rounds = (0..ROUNDS)
                .map(|_| loaded.measure(&packet[..len], RUNS))
                .collect::<anyhow::Result<Vec<u32>>>()?;
            rounds.sort_unstable();
            let (least, middle) = (rounds[0], rounds[rounds.len() / 2]);
            println!("{name:24} {len:5} bytes {hook:12?} {least:4} to {middle} ns");
        }
    }
    Ok(())
}
