//! Translated filters do on the real kernel what they do in libpcap, packet by packet.

mod programs;

use std::{
    fmt, io,
    net::UdpSocket,
    os::fd::AsFd as _,
    sync::atomic::{AtomicU64, Ordering},
    thread,
    time::Duration,
};

use anyhow::{Context as _, ensure};
use packetflix_filter::{
    TranslateError,
    classic::{self, InvalidProgram, Operation, opcode},
    native::{self, Helper, Instruction, R0, R1, R2, R3, R6},
    translate, translate_to_function,
};
use packetflix_tests::{
    bpf_run::{Program, ProgramType, send_no_checksums},
    differential::{
        expressions, packets,
        pcap::{self, Interpreter, Pcap},
        reference::{self, Beside, MARK, beside_classified, beside_filtered, is_for_libpcap},
    },
    namespace::Namespace,
    pace::{self, sample},
    random::Random,
};
use socket2::{Domain, SockFilter, Socket, Type};

use crate::programs::Extent;

/// Expressions that are compared at least, those of the file among them.
const EXPRESSIONS: usize = 2000;
/// Packets that each is compared on.
const PACKETS: usize = 2000;
/// With a tag beside the packet, a classifier is compared on every so many packets, and other ones for each expression.
const CLASSIFIED: usize = 4;
/// Programs of no compiler.
const PROGRAMS: usize = 2400;
/// Packets for each of these.
const PACKETS_OF_PROGRAMS: usize = 300;
/// Lists of instructions of which most are no programs.
const LISTS: usize = 20_000;
/// Seed of what is made at random. `FILTER_SEED=5 cargo test` compares other programs and packets than usual.
fn seed(which: u64) -> u64 {
    let chosen = std::env::var("FILTER_SEED").ok();
    chosen
        .and_then(|seed| seed.parse::<u64>().ok())
        .unwrap_or_default()
        << 8
        | which
}

/// A program of classic BPF to be compared, and what it came from.
struct Case {
    name: String,
    program: Vec<classic::Instruction>,
    link_type: LinkType,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum LinkType {
    Ethernet,
    /// Packets are those of Ethernet, without its header.
    Other,
}

impl fmt::Display for Case {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}\n{}", self.name, classic::Listing(&self.program))
    }
}

/// How much was compared.
#[derive(Default)]
struct Tally {
    pairs: AtomicU64,
    accepted: AtomicU64,
    /// Cases that accept some packets and reject others.
    both: AtomicU64,
}

/// Does `work` on every case, with its number, on all CPUs.
fn on_all_cpus<T: Sync>(
    cases: &[T],
    work: impl Fn(usize, &T) -> anyhow::Result<()> + Sync,
) -> anyhow::Result<()> {
    let threads = thread::available_parallelism()?.get();
    let work = &work;
    thread::scope(|scope| {
        let threads: Vec<_> = (0..threads)
            .map(|thread| {
                scope.spawn(move || {
                    for (number, case) in cases.iter().enumerate().skip(thread).step_by(threads) {
                        work(number, case)?;
                    }
                    anyhow::Ok(())
                })
            })
            .collect();
        for thread in threads {
            thread
                .join()
                .unwrap_or_else(|panic| std::panic::resume_unwind(panic))?;
        }
        Ok(())
    })
}

/// A classifier that lets the kernel put a tag beside the packet, and then calls the filter as a function.
fn with_tag(vlan: Option<(u16, u16)>, filter: &[Instruction]) -> Vec<Instruction> {
    use native::Arithmetic::Move;

    let mut program = vec![Instruction::alu64(Move, R6, R1)];
    if let Some((protocol, tci)) = vlan {
        program.extend([
            Instruction::alu32_imm(Move, R2, i32::from(protocol.swap_bytes())),
            Instruction::alu32_imm(Move, R3, tci.into()),
            Instruction::call(Helper::SkbVlanPush),
            Instruction::alu64(Move, R1, R6),
        ]);
    }
    program.extend([Instruction::call_function(1), Instruction::exit()]);
    program.extend(filter);
    program
}

/// Packets of which the kernel makes ones for a classifier: those with a whole Ethernet header, and newer kernels want
/// a whole header of IP after that, if the EtherType says so.
fn classifiable(packets: &[Vec<u8>]) -> anyhow::Result<Vec<&[u8]>> {
    let accept = translate(&[classic::Instruction::new(opcode::RET, 1)])?;
    let accept = Program::load(ProgramType::Classifier, &native::encode(&accept))?;
    let classifiable: Vec<&[u8]> = packets
        .iter()
        .map(Vec::as_slice)
        .filter(|packet| packet.len() >= 14 && accept.run(packet, 0).is_ok())
        .collect();
    let whole = packets.iter().filter(|packet| packet.len() >= 14 + 40).count();
    ensure!(
        classifiable.len() >= whole,
        "{} of {whole} packets",
        classifiable.len()
    );
    Ok(classifiable)
}

fn load(kind: ProgramType, filter: &[Instruction], case: &Case) -> anyhow::Result<Program> {
    Program::load(kind, &native::encode(filter))
        .with_context(|| format!("{kind:?} {case}\n{}", native::Listing(filter)))
}

#[test]
fn expressions_do_what_they_do_in_libpcap() -> anyhow::Result<()> {
    let cases = compile_all()?;
    let packets = packets::packets(sample(PACKETS), seed(1));
    let classified = classifiable(&packets)?;
    let tally = Tally::default();
    let beside_socket = beside_filtered();

    on_all_cpus(&cases, |number, case| {
        let operations = classic::check(&case.program).with_context(|| case.to_string())?;
        let for_libpcap = is_for_libpcap(&operations);
        let libpcap = Interpreter::new(&case.program)?;
        let filter = translate(&case.program).with_context(|| case.to_string())?;
        let socket = load(ProgramType::SocketFilter, &filter, case)?;
        let (mut pairs, mut accepted) = (0, 0);
        let mut compare = |packet: &[u8], expected: u32, returned: u32| {
            pairs += 1;
            accepted += u64::from(returned != 0);
            ensure!(
                returned == expected,
                "{returned} instead of {expected} for {case}\n{packet:02x?}\n{}",
                native::Listing(&filter)
            );
            Ok(())
        };
        for packet in &packets {
            let packet = match case.link_type {
                LinkType::Ethernet => packet,
                LinkType::Other => packet.get(14..).unwrap_or_default(),
            };
            let expected = if for_libpcap {
                libpcap.run(packet)
            } else {
                reference::interpret(&operations, packet, &beside_socket)
            };
            compare(packet, expected, socket.run(packet, MARK)?)?;
        }

        if case.link_type == LinkType::Ethernet {
            let classifier = load(ProgramType::Classifier, &filter, case)?;
            for packet in &classified {
                let expected = if for_libpcap {
                    libpcap.run(packet)
                } else {
                    reference::interpret(&operations, packet, &beside_classified(packet, None))
                };
                compare(packet, expected, classifier.run(packet, MARK)?)?;
            }
        }
        // What depends on a tag beside the packet, and also what must not.
        if case.link_type == LinkType::Ethernet && (!for_libpcap || number % 16 == 0) {
            for (which, vlan) in [(0x8100, 0xe007), (0x88a8, 100), (0x8100, 0)]
                .into_iter()
                .enumerate()
            {
                let program = with_tag(Some(vlan), &filter);
                let classifier = load(ProgramType::Classifier, &program, case)?;
                for packet in classified
                    .iter()
                    .skip((number + which) % CLASSIFIED)
                    .step_by(CLASSIFIED)
                {
                    let beside = beside_classified(packet, Some(vlan));
                    let expected = reference::interpret(&operations, packet, &beside);
                    compare(packet, expected, classifier.run(packet, MARK)?)?;
                }
            }
        }
        tally.pairs.fetch_add(pairs, Ordering::Relaxed);
        tally.accepted.fetch_add(accepted, Ordering::Relaxed);
        tally
            .both
            .fetch_add(u64::from(accepted > 0 && accepted < pairs), Ordering::Relaxed);
        Ok(())
    })?;

    let [pairs, accepted, both] =
        [&tally.pairs, &tally.accepted, &tally.both].map(|number| number.load(Ordering::Relaxed));
    println!(
        "{} programs, {both} of which tell packets apart; {pairs} pairs, {accepted} accepted",
        cases.len()
    );
    // Expressions and packets are both fewer on a slow machine.
    ensure!(pairs as usize >= sample(sample(3_000_000)), "{pairs} pairs");
    // Comparing would mean little if nearly all was rejected.
    ensure!(accepted * 20 > pairs, "{accepted} of {pairs} accepted");
    ensure!(both as usize * 10 > cases.len() * 6, "{both} of {}", cases.len());
    Ok(())
}

/// Compiles what is written and what the grammar makes: as for a live interface, as for Ethernet of nowhere if that
/// differs, and some for other link types.
fn compile_all() -> anyhow::Result<Vec<Case>> {
    let namespace = Namespace::new()?;
    let mut live = namespace.inside(|| Pcap::live("lo"))??;
    let mut ethernet = Pcap::dead(pcap::ETHERNET)?;
    let mut others = [Pcap::dead(pcap::RAW_IP)?, Pcap::dead(pcap::COOKED)?];
    let mut cases = Vec::new();
    let mut differ = 0;
    let mut add = |text: &str, optimize: bool, program: Vec<classic::Instruction>| {
        if let Ok(nowhere) = ethernet.compile(text, optimize)
            && nowhere != program
        {
            differ += 1;
            cases.push(Case {
                name: format!("{text} (not live)"),
                program: nowhere,
                link_type: LinkType::Ethernet,
            });
        }
        for other in &mut others {
            if let Ok(program) = other.compile(text, optimize)
                && program.len() > 1
                && text.len().is_multiple_of(3)
                // Of some expressions libpcap makes loads beside the packet that there are not.
                && classic::check(&program).is_ok()
            {
                cases.push(Case {
                    name: format!("{text} (not Ethernet)"),
                    program,
                    link_type: LinkType::Other,
                });
            }
        }
        cases.push(Case {
            name: text.to_owned(),
            program,
            link_type: LinkType::Ethernet,
        });
    };

    let mut count = 0;
    let written = expressions::written();
    // On a slow machine one of so many.
    let step = written.len().div_ceil(sample(EXPRESSIONS));
    for expression in written.into_iter().step_by(step) {
        let program = live.compile(expression.text, true)?;
        if expression.refused {
            let refusal = translate(&program);
            ensure!(
                matches!(
                    refusal,
                    Err(TranslateError::Invalid(
                        InvalidProgram::Jump { .. } | InvalidProgram::Ancillary { .. }
                    ))
                ),
                "{}: {refusal:?}",
                expression.text
            );
            continue;
        }
        count += 1;
        add(expression.text, true, program);
    }
    println!("{count} expressions written by hand");
    for text in large_expressions() {
        let program = live.compile(&text, true)?;
        println!(
            "{} instructions become {}",
            program.len(),
            translate(&program)?.len()
        );
        count += 1;
        add(&text, true, program);
    }
    let mut random = Random::new(seed(2));
    while count < sample(EXPRESSIONS) {
        let text = expressions::expression(&mut random);
        // Not all that the grammar makes means something, and some can be seen to accept or reject everything.
        let optimize = random.percent(70);
        let Ok(program) = live.compile(&text, optimize) else {
            continue;
        };
        match classic::check(&program) {
            // What is before the packet: `ether[4 - 5]`.
            Err(InvalidProgram::Ancillary { .. }) => {}
            _ if program.len() == 1 => {}
            _ => {
                count += 1;
                add(&text, optimize, program);
            }
        }
    }
    println!("{differ} are compiled otherwise when not live");
    ensure!(differ > sample(50), "{differ}");
    Ok(cases)
}

/// Expressions such as come from lists of addresses.
fn large_expressions() -> [String; 3] {
    let join = |item: &dyn Fn(u32) -> String, count| (0..count).map(item).collect::<Vec<_>>().join(" or ");
    let hosts = join(&|number| format!("10.0.{}.{}", number / 200, number % 200), 300);
    let ports = join(&|number| (number * 97 % 9000).to_string(), 150);
    let networks = join(
        &|number| format!("src net 2001:db8:{number:x}::/48 or dst net 10.{number}"),
        100,
    );
    [
        format!("host ({hosts})"),
        format!("tcp port ({ports}) or udp port ({ports})"),
        format!("not ({networks}) and ether[0] & 1 = 0"),
    ]
}

#[test]
fn programs_do_what_they_do_in_libpcap() -> anyhow::Result<()> {
    let mut random = Random::new(seed(3));
    let programs = sample(PROGRAMS);
    let cases: Vec<(Extent, Case)> = (0..programs)
        .map(|number| {
            let extent = match number % 4 {
                0 | 1 => Extent::Libpcap,
                2 => Extent::Scratch,
                _ => Extent::Kernel,
            };
            let case = Case {
                name: format!("program {number}"),
                program: programs::program(&mut random, extent),
                link_type: LinkType::Ethernet,
            };
            (extent, case)
        })
        .collect();
    let packets = packets::packets(PACKETS_OF_PROGRAMS, seed(4));
    let classified = classifiable(&packets)?;
    let tally = Tally::default();
    let beside_socket = beside_filtered();

    on_all_cpus(&cases, |number, (extent, case)| {
        let operations = classic::check(&case.program).with_context(|| case.to_string())?;
        let filter = translate(&case.program).with_context(|| case.to_string())?;
        let libpcap = Interpreter::new(&case.program)?;
        let expect = |packet: &[u8], beside: &Beside| {
            let expected = reference::interpret(&operations, packet, beside);
            if *extent == Extent::Libpcap {
                let libpcap = libpcap.run(packet);
                ensure!(
                    expected == libpcap,
                    "{expected}, and {libpcap} in libpcap: {case}\n{packet:02x?}"
                );
            }
            Ok(expected)
        };
        let (mut pairs, mut accepted) = (0, 0);
        let mut compare = |packet: &[u8], expected: u32, returned: u32| {
            pairs += 1;
            accepted += u64::from(returned != 0);
            ensure!(
                returned == expected,
                "{returned} instead of {expected} for {case}\n{packet:02x?}\n{}",
                native::Listing(&filter)
            );
            Ok(())
        };
        // The header that a socket filter does not see is before the packet, and loads from there find it.
        if *extent != Extent::Kernel {
            let socket = load(ProgramType::SocketFilter, &filter, case)?;
            for packet in &packets {
                compare(packet, expect(packet, &beside_socket)?, socket.run(packet, MARK)?)?;
            }
        }
        let vlan = [None, Some((0x8100, 0x2064)), Some((0x88a8, 7))][number % 3];
        for program in [filter.clone(), with_tag(vlan, &filter)]
            .iter()
            .take(1 + usize::from(vlan.is_some()))
        {
            let vlan = vlan.filter(|_| program.len() != filter.len());
            let classifier = load(ProgramType::Classifier, program, case)?;
            for packet in &classified {
                let expected = expect(packet, &beside_classified(packet, vlan))?;
                compare(packet, expected, classifier.run(packet, MARK)?)?;
            }
        }
        tally.pairs.fetch_add(pairs, Ordering::Relaxed);
        tally.accepted.fetch_add(accepted, Ordering::Relaxed);
        tally
            .both
            .fetch_add(u64::from(accepted > 0 && accepted < pairs), Ordering::Relaxed);
        Ok(())
    })?;
    let [pairs, accepted, both] =
        [&tally.pairs, &tally.accepted, &tally.both].map(|number| number.load(Ordering::Relaxed));
    println!("{programs} programs, {both} of which tell packets apart; {pairs} pairs, {accepted} accepted");
    ensure!(
        accepted * 10 > pairs && both as usize * 10 > programs * 3,
        "{accepted} of {pairs}, {both}"
    );
    Ok(())
}

/// What an accepting filter returns need not be a length.
#[test]
fn returns_any_value() -> anyhow::Result<()> {
    for value in [0, 1, 0x7fff_ffff, 0x8000_0000, u32::MAX] {
        let filter = translate(&[classic::Instruction::new(opcode::RET, value)])?;
        ensure!(filter[0].dst == R0);
        for kind in [ProgramType::SocketFilter, ProgramType::Classifier] {
            let returned = Program::load(kind, &native::encode(&filter))?.run(&[0; 60], 0)?;
            ensure!(returned == value, "{returned} instead of {value}");
        }
    }
    Ok(())
}

/// Datagrams that are too large for one piece of memory: all but their headers are in pages. The filter of a socket sees
/// them from UDP's header on, and cuts them to the length that it returns, but for that header.
#[test]
fn finds_what_is_in_pages() -> anyhow::Result<()> {
    const HEADER_LEN: usize = 8;
    const LARGE: usize = 30_000;
    const LARGE_PROGRAMS: usize = 500;

    let programs = sample(LARGE_PROGRAMS);
    let namespace = Namespace::new()?;
    let bind = || UdpSocket::bind("127.0.0.1:0");
    let (sender, receiver) = (namespace.inside(bind)??, namespace.inside(bind)??);
    send_no_checksums(sender.as_fd())?;
    sender.connect(receiver.local_addr()?)?;
    receiver.set_read_timeout(Some(pace::time(Duration::from_secs(5))))?;
    let mut header = [sender.local_addr()?.port(), receiver.local_addr()?.port(), 0, 0];
    let mut buffer = vec![0; LARGE];

    // Relative to a header, nothing is found in pages: which tells that there are some.
    let relative = [
        classic::Instruction::new(
            opcode::LD | opcode::B | opcode::ABS,
            classic::NETWORK_OFFSET + 228,
        ),
        classic::Instruction::new(opcode::RET | opcode::K, u32::MAX),
    ];
    let relative = translate(&relative)?;
    Program::load(ProgramType::SocketFilter, &native::encode(&relative))?.attach(receiver.as_fd())?;
    sender.send(&buffer)?;
    sender.send(&buffer[..500])?;
    ensure!(
        receiver.recv(&mut buffer)? == 500,
        "large datagrams are in one piece"
    );

    let mut random = Random::new(seed(6));
    let mut packets = packets::packets(100, seed(7));
    packets.retain(|packet| packet.len() > 60);
    let (mut accepted, mut rejected) = (0, 0);
    for number in 0..programs {
        let case = Case {
            name: format!("program {number}"),
            program: programs::program(&mut random, Extent::Libpcap),
            link_type: LinkType::Other,
        };
        let libpcap = Interpreter::new(&case.program)?;
        let filter = translate(&case.program)?;
        load(ProgramType::SocketFilter, &filter, &case)?.attach(receiver.as_fd())?;
        for packet in packets.iter().skip(number % 8).step_by(8) {
            let mut payload = packet.clone();
            payload.resize(LARGE - HEADER_LEN, packet[0]);
            header[2] = LARGE as u16;
            let whole = [&header.map(u16::to_be_bytes).concat()[..], &payload].concat();
            let expected = libpcap.run(&whole);
            sender.send(&payload)?;
            if expected == 0 {
                rejected += 1;
                continue;
            }
            accepted += 1;
            let received = receiver.recv(&mut buffer).with_context(|| case.to_string())?;
            ensure!(
                received == (expected as usize).clamp(HEADER_LEN, LARGE) - HEADER_LEN,
                "{received} bytes, and {expected} returned by {case}\n{:02x?}",
                &whole[..100]
            );
        }
        // The next to come is what is sent next, unless one came that should not.
        Program::load(ProgramType::SocketFilter, &native::encode(&relative))?.attach(receiver.as_fd())?;
        sender.send(&buffer[..300 + number])?;
        let received = receiver.recv(&mut buffer)?;
        ensure!(
            received == 300 + number,
            "{received} bytes that {case} should reject"
        );
    }
    println!("{accepted} datagrams in pages accepted, {rejected} rejected");
    ensure!(
        accepted > programs && rejected > programs,
        "{accepted} and {rejected}"
    );
    Ok(())
}

/// A function takes the packet's type from its caller, whatever the packet itself says: here that it is for this host.
#[test]
fn functions_are_told_the_type_of_a_packet() -> anyhow::Result<()> {
    use classic::{ANCILLARY_OFFSET, opcode::*};

    let packet_type = [
        classic::Instruction::new(ST, 3),
        // A load from the packet before and after, so that its head is copied.
        classic::Instruction::new(LD | B | ABS, 12),
        classic::Instruction::new(LD | W | ABS, ANCILLARY_OFFSET + 4),
        classic::Instruction::new(ST, 3),
        classic::Instruction::new(LD | B | ABS, 13),
        classic::Instruction::new(LD | MEM, 3),
        classic::Instruction::new(RET | A, 0),
    ];
    for kind in [ProgramType::SocketFilter, ProgramType::Classifier] {
        for told in 0..=4 {
            let mut program = vec![Instruction::alu32_imm(native::Arithmetic::Move, R2, told)];
            program.extend(translate_to_function(&packet_type)?);
            let program = Program::load(kind, &native::encode(&program))?;
            assert_eq!(program.run(&[0; 60], 0)?, told as u32, "{kind:?}");
        }
        let program = Program::load(kind, &native::encode(&translate(&packet_type)?))?;
        assert_eq!(program.run(&[0; 60], 0)?, 0, "{kind:?}");
    }
    Ok(())
}

#[test]
fn knows_the_cpu_and_random_numbers() -> anyhow::Result<()> {
    use classic::{ANCILLARY_OFFSET, opcode::*};

    for kind in [ProgramType::SocketFilter, ProgramType::Classifier] {
        let run = |load: u32| {
            let program = [
                classic::Instruction::new(LD | W | ABS, ANCILLARY_OFFSET + load),
                classic::Instruction::new(RET | A, 0),
            ];
            let program = Program::load(kind, &native::encode(&translate(&program)?))?;
            (0..20)
                .map(|_| program.run(&[0; 60], 0))
                .collect::<anyhow::Result<Vec<u32>>>()
        };
        let cpus = run(36)?;
        ensure!(cpus.iter().all(|cpu| *cpu < 4096), "{cpus:?}");
        let mut numbers = run(56)?;
        numbers.sort_unstable();
        numbers.dedup();
        ensure!(numbers.len() > 15, "{numbers:?}");
    }
    Ok(())
}

#[test]
fn checks_as_the_kernel_does() -> anyhow::Result<()> {
    let mut random = Random::new(seed(5));
    let socket = Socket::new(Domain::UNIX, Type::DGRAM, None)?;
    let mut valid = 0;
    let lists = sample(LISTS);
    for _ in 0..lists {
        let mut program = programs::program(&mut random, Extent::Kernel);
        program.truncate(100);
        for _ in 0..random.below(3) {
            let at = random.below(program.len() as u32) as usize;
            let instruction = &mut program[at];
            match random.below(4) {
                0 => instruction.code = random.below(0x110) as u16,
                1 => instruction.k = random.pick(&[0, 1, 15, 16, 31, 32, 0xffff_f000, 0xffff_f040, u32::MAX]),
                2 => instruction.jt = random.number() as u8,
                _ => instruction.jf = random.number() as u8,
            }
        }
        let filter: Vec<SockFilter> = program
            .iter()
            .map(|instruction| {
                SockFilter::new(instruction.code, instruction.jt, instruction.jf, instruction.k)
            })
            .collect();
        let kernel = match socket.attach_filter(&filter) {
            Ok(()) => true,
            Err(error) if error.kind() == io::ErrorKind::InvalidInput => false,
            Err(error) => return Err(error.into()),
        };
        let ours = classic::check(&program);
        // The kernel refuses programs that may load a word of scratch memory before they store it.
        let loads_scratch = |operations: &[Operation]| {
            operations
                .iter()
                .any(|one| matches!(one, Operation::LoadScratch(..)))
        };
        ensure!(
            ours.is_ok() == kernel || ours.as_deref().is_ok_and(loads_scratch),
            "{ours:?} of\n{}",
            classic::Listing(&program)
        );
        valid += usize::from(kernel);
    }
    println!("{lists} lists of instructions, {valid} of which are programs");
    ensure!(valid * 10 > lists && valid * 10 < lists * 9, "{valid}");
    Ok(())
}
