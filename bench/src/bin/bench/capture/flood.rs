//! Packets of the generator, as fast as they can be sent, or seldom.

use anyhow::Context as _;
use packetflix_bench::report::{FigureKind, Scenario};
use packetflix_tests::{
    bpf_run::take_run_times,
    generator::{Generator, IMIX, MAX_LEN, Plan, SELECTED_PORT, Sent},
};

use super::{
    Context, Measured, REFERENCE,
    bed::End,
    contestant::{Contestant, Wish},
    cost, count, during, gain, loss, record_memory, record_ratios,
};
use crate::usage::time_per_run;

/// Packets that are sent while the kernel takes the time of each run of a program, which costs.
const TIMED_PACKETS: u64 = 200_000;

/// Of so many packets a filter selects one.
const SELECT_EACH: u64 = 1000;

pub(super) fn rate_64(context: &Context<'_>, name: &str) -> anyhow::Result<Scenario> {
    rate(
        context,
        name,
        "Small packets as fast as they can be sent",
        &[64],
        1_000_000,
    )
}

pub(super) fn sent_64(context: &Context<'_>, name: &str) -> anyhow::Result<Scenario> {
    sent(
        context,
        name,
        "Small packets, captured where they are sent",
        64,
        1_000_000,
    )
}

pub(super) fn sent_1500(context: &Context<'_>, name: &str) -> anyhow::Result<Scenario> {
    sent(
        context,
        name,
        "Large packets, captured where they are sent",
        MAX_LEN,
        500_000,
    )
}

fn sent(
    context: &Context<'_>,
    name: &str,
    title: &str,
    len: usize,
    packets: u64,
) -> anyhow::Result<Scenario> {
    let packets = context.packets.unwrap_or(packets);
    let method = format!(
        "One core sends {packets} UDP packets of {len} bytes through a packet socket as fast as it can, and the capture of \
         this end is read and looked at."
    );
    let wish = Wish {
        packets,
        at: End::Sending,
        ..Wish::default()
    };
    let scenario = Scenario::new(name, title, &method, Some(REFERENCE));
    flood(context, &scenario, &context.bed.plan(packets, &[len]), &wish)
}

pub(super) fn rate_512(context: &Context<'_>, name: &str) -> anyhow::Result<Scenario> {
    rate(
        context,
        name,
        "Packets of middle size as fast as they can be sent",
        &[512],
        1_000_000,
    )
}

pub(super) fn rate_1500(context: &Context<'_>, name: &str) -> anyhow::Result<Scenario> {
    rate(
        context,
        name,
        "Large packets as fast as they can be sent",
        &[MAX_LEN],
        500_000,
    )
}

pub(super) fn rate_imix(context: &Context<'_>, name: &str) -> anyhow::Result<Scenario> {
    rate(
        context,
        name,
        "A mix of packets as fast as they can be sent",
        &IMIX,
        1_000_000,
    )
}

fn rate(
    context: &Context<'_>,
    name: &str,
    title: &str,
    lens: &[usize],
    packets: u64,
) -> anyhow::Result<Scenario> {
    let packets = context.packets.unwrap_or(packets);
    let mut lengths = lens.to_vec();
    lengths.sort_unstable();
    lengths.dedup();
    let method = format!(
        "One core sends {packets} UDP packets of {lengths:?} bytes through a packet socket, and the capture of the other \
         end is read and looked at."
    );
    let wish = Wish {
        packets,
        ..Wish::default()
    };
    let scenario = Scenario::new(name, title, &method, Some(REFERENCE));
    flood(context, &scenario, &context.bed.plan(packets, lens), &wish)
}

pub(super) fn selective(context: &Context<'_>, name: &str) -> anyhow::Result<Scenario> {
    let packets = context.packets.unwrap_or(2_000_000);
    let plan = Plan {
        select_each: Some(SELECT_EACH),
        ..context.bed.plan(packets, &[64])
    };
    let method = format!(
        "One core sends {packets} UDP packets of 64 bytes through a packet socket, and each capture has a filter that \
         accepts one of {SELECT_EACH}."
    );
    let title = "A filter that selects few of many packets";
    let filter = format!("udp dst port {SELECTED_PORT}");
    let scenario = Scenario::new(name, title, &method, Some(REFERENCE));
    let wish = Wish {
        filter: Some(&filter),
        packets,
        ..Wish::default()
    };
    flood(context, &scenario, &plan, &wish)
}

fn flood(
    context: &Context<'_>,
    scenario: &Scenario,
    plan: &Plan,
    wish: &Wish<'_>,
) -> anyhow::Result<Scenario> {
    let mut scenario = scenario.clone();
    let send = |plan: &Plan| Generator::start(&context.bed.sender, plan)?.finish();
    let measure = |contestant: Contestant| {
        let measured = during(context.bed, contestant, wish, |_| send(plan))?;
        Ok((measured, program_time(context, contestant, wish, plan)?))
    };
    context.measure(measure, |round| {
        for (contestant, (measured, time)) in round {
            record(&mut scenario, *contestant, measured, plan);
            if let Some(time) = time {
                scenario.record(
                    contestant.name(),
                    &cost("time per run of the program", "ns"),
                    *time,
                );
            }
        }
        let kinds = [
            (Contestant::Nobody, ratio("packets sent per second / none")),
            (Contestant::Tcpdump, ratio("packets sent per second / tcpdump")),
        ];
        record_ratios(&mut scenario, round, &kinds, |(measured, _)| measured.done.rate());
    })?;
    Ok(scenario)
}

const fn ratio(name: &'static str) -> FigureKind {
    FigureKind {
        is_ratio_told: false,
        ..gain(name, "")
    }
}

/// Nanoseconds that a program of packetflix takes, in a capture of its own.
fn program_time(
    context: &Context<'_>,
    contestant: Contestant,
    wish: &Wish<'_>,
    plan: &Plan,
) -> anyhow::Result<Option<f64>> {
    let Some(server) = contestant.server(context.bed) else {
        return Ok(None);
    };
    let plan = Plan {
        packets: plan.packets.min(TIMED_PACKETS),
        ..plan.clone()
    };
    let _taken = take_run_times().context("the kernel takes no times")?;
    let measured = during(context.bed, contestant, wish, |_| {
        let (time, _) = time_per_run(&server.processes(), plan.packets / 2, || {
            Generator::start(&context.bed.sender, &plan)?.finish()
        })?;
        Ok(time)
    })?;
    Ok(Some(measured.done))
}

fn record(scenario: &mut Scenario, contestant: Contestant, measured: &Measured<Sent>, plan: &Plan) {
    let (name, sent, found) = (contestant.name(), measured.done, measured.outcome.found);
    let per_million = |seconds: f64| seconds * 1e6 / sent.packets as f64;
    let mut tell = |kind: &FigureKind, value: f64| scenario.record(name, kind, value);
    tell(&gain("packets sent per second", "1/s"), sent.rate());
    tell(
        &cost("CPU of the sender per million packets", "s"),
        sent.cpu_per_million(),
    );
    tell(
        &count("soft interrupts of the whole machine per million packets", "s"),
        per_million(measured.used.softirq),
    );
    tell(&count("packets sent", ""), sent.packets as f64);
    tell(
        &loss("packets that did not arrive", ""),
        sent.packets.saturating_sub(measured.seen.packets) as f64,
    );
    if contestant == Contestant::Nobody {
        return;
    }
    // Those that never arrived cannot be captured. Which of them a filter would have selected is not known.
    let expected = plan
        .select_each
        .map_or(measured.seen.packets, |each| sent.packets.div_ceil(each));
    let used = measured.used;
    tell(
        &cost("CPU of the capture per million packets sent", "s"),
        per_million(used.cpu),
    );
    tell(
        &cost("of that in the program, by ticks", "s"),
        per_million(used.user),
    );
    tell(
        &cost("of that in the kernel, by ticks", "s"),
        per_million(used.system),
    );
    let per_delivered = used.cpu * 1e6 / found.delivered.max(1) as f64;
    tell(
        &cost("CPU of the capture per million packets delivered", "s"),
        per_delivered,
    );
    let both = per_million(used.cpu) + sent.cpu_per_million();
    tell(&cost("CPU of sender and capture per million packets", "s"), both);
    tell(&gain("packets delivered", ""), found.delivered as f64);
    tell(
        &loss("packets missing", ""),
        expected.saturating_sub(found.delivered) as f64,
    );
    if let Some(dropped) = measured.outcome.dropped {
        tell(&loss("packets that it says are lost", ""), dropped as f64);
    }
    tell(&loss("packets out of order", ""), found.out_of_order as f64);
    tell(&loss("packets that came twice", ""), found.doubled as f64);
    tell(
        &count("stream per packet delivered", "bytes"),
        found.stream_bytes as f64 / found.delivered.max(1) as f64,
    );
    record_delays(scenario, contestant, measured);
    record_memory(scenario, contestant, &measured.memory);
}

fn record_delays<T>(scenario: &mut Scenario, contestant: Contestant, measured: &Measured<T>) {
    for (kind, part) in [
        (cost("delay until the reader has it, p50", "ms"), 0.5),
        (cost("delay until the reader has it, p99", "ms"), 0.99),
    ] {
        scenario.record(
            contestant.name(),
            &kind,
            measured.outcome.delays.quantile(part) * 1e3,
        );
    }
}

pub(super) fn delay(context: &Context<'_>, name: &str) -> anyhow::Result<Scenario> {
    let packets = context.packets.unwrap_or(300).min(10_000);
    let plan = Plan {
        rate: Some(100.0),
        is_irregular: true,
        ..context.bed.plan(packets, &[128])
    };
    let method = format!(
        "{packets} packets at irregular intervals, 100 in a second; tcpdump has -U, and netsniff-ng writes each packet by \
         itself."
    );
    let title = "How soon a lone packet is seen";
    let mut scenario = Scenario::new(name, title, &method, Some(REFERENCE));
    let wish = Wish {
        packets,
        is_prompt: true,
        ..Wish::default()
    };
    let mut contestants = context.contestants.clone();
    contestants.retain(|contestant| *contestant != Contestant::Nobody);
    let context = Context {
        contestants,
        ..*context
    };
    let measure = |contestant| {
        during(context.bed, contestant, &wish, |_| {
            Generator::start(&context.bed.sender, &plan)?.finish()
        })
    };
    context.measure(measure, |round| {
        for (contestant, measured) in round {
            record_delays(&mut scenario, *contestant, measured);
            let missing = measured
                .seen
                .packets
                .saturating_sub(measured.outcome.found.delivered);
            scenario.record(contestant.name(), &loss("packets missing", ""), missing as f64);
            let cpu = measured.used.cpu * 1e3 / measured.done.seconds;
            scenario.record(
                contestant.name(),
                &cost("CPU of the capture per second", "ms"),
                cpu,
            );
        }
    })?;
    Ok(scenario)
}
