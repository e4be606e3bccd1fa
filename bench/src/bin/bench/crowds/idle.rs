//! What captures cost of which no packets come.

use std::{
    thread,
    time::{Duration, Instant},
};

use packetflix_bench::report::{FigureKind, Report, Scenario};

use super::{
    account, contestant,
    figures::{compared, less},
    in_turns,
    lanes::{Lanes, RECEIVER},
    streams::{Client, Streams},
};
use crate::{
    interrupt::sleep_until,
    usage::{Memory, cpu_of, tree},
};

const TIME: Duration = Duration::from_secs(10);

/// From the start of the last capture on.
const SETTLE: Duration = Duration::from_millis(1500);

const METHOD: &str = "Captures are open, and no packet comes. CPU is that of all processes of the contestant over 10 \
    seconds, as a part of one core. Memory per capture is what they have more than before the first capture; that of \
    maps is what the kernel keeps for rings and tables of a server.";

const CPU: FigureKind = compared("CPU while idle", "% of a core");
const MEMORY: FigureKind = less("memory (VmRSS)", "MiB");
const MEMORY_EACH: FigureKind = compared("memory (VmRSS) more per capture", "KiB");
const MAPS: FigureKind = less("memory of eBPF maps", "MiB");
const MAPS_EACH: FigureKind = less("memory of eBPF maps per capture", "KiB");
const START: FigureKind = less("time to start all captures", "ms");

pub(crate) fn run(report: &mut Report, rounds: u32, _part: &str) -> anyhow::Result<()> {
    let lanes = Lanes::new(100)?;
    for (name, title, count, is_one) in [
        ("idle-0", "No capture", 0, false),
        ("idle-1", "An idle capture", 1, false),
        ("idle-100", "100 idle captures of as many namespaces", 100, false),
        ("idle-one-100", "100 idle captures of one namespace", 100, true),
    ] {
        let scenario = Scenario::new(name, title, METHOD, Some(contestant::REFERENCE));
        in_turns(report, scenario, rounds, |scenario, contestant| {
            let running = contestant.start()?;
            let before = Memory::of(&tree(running.pid())?)?.resident;
            let clients = (0..count)
                .map(|number| {
                    let receiver = if is_one { 0 } else { number };
                    Ok(Client::fast(running.url(&lanes.receivers[receiver], RECEIVER)?))
                })
                .collect::<anyhow::Result<Vec<_>>>()?;
            let begin = Instant::now();
            let streams = Streams::open(&clients, 0)?;
            let started = begin.elapsed();
            thread::sleep(SETTLE);

            let pids = tree(running.pid())?;
            let cpu = cpu_of(&pids)?;
            let begin = Instant::now();
            sleep_until(begin + TIME)?;
            let cpu = cpu_of(&pids)?.saturating_sub(cpu);
            let part = cpu.as_secs_f64() / begin.elapsed().as_secs_f64();
            let resident = Memory::of(&pids)?.resident;
            let maps = account::maps(&pids)? as f64;
            streams.finish()?;

            let mut record = |figure, value| scenario.record(contestant.name(), &figure, value);
            record(CPU, part * 100.0);
            record(MEMORY, resident);
            record(MAPS, maps / 1024.0 / 1024.0);
            if count > 0 {
                let each = 1.0 / count as f64;
                record(MEMORY_EACH, (resident - before) * 1024.0 * each);
                record(MAPS_EACH, maps / 1024.0 * each);
                record(START, started.as_secs_f64() * 1e3);
            }
            Ok(())
        })?;
    }
    Ok(())
}
