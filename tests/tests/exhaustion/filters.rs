//! Filters that take much to compile, and many of them.

use std::thread;

use anyhow::{Context as _, ensure};
use packetflix_tests::{client::Recorder, control_group::ControlGroup, namespace::Namespace, server::Server};

use crate::has_not_panicked;

/// What the service says to filters, all at once, that stand in a query like this: the status, and the sentence if it is
/// none.
fn compile(server: &Server, expressions: &[String]) -> anyhow::Result<Vec<(u16, String)>> {
    thread::scope(|scope| {
        let asking: Vec<_> = expressions
            .iter()
            .map(|expression| scope.spawn(move || server.get(&format!("/filter?expr={expression}"))))
            .collect();
        let answers = asking.into_iter().map(|asking| {
            let (status, body) = asking.join().ok().context("a thread has panicked")??;
            Ok((status, body["error"].as_str().unwrap_or_default().to_owned()))
        });
        answers.collect()
    })
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn filters_that_take_much_memory_cost_neither_the_service_nor_its_captures() -> anyhow::Result<()> {
    let (here, _there) = Namespace::pair()?;
    let group = ControlGroup::with_memory(160 << 20)?;
    let server = Server::start_by(&mut group.server()?, &[])?;
    let mut captures = Vec::new();
    for port in 0..20 {
        let url = server.url(&format!("netns={}&filter=udp+port+{port}", here.inode()?));
        captures.push(Recorder::start(&url).await?);
    }
    // Each takes hundreds of megabytes, were it let.
    let ports = |from: usize| {
        let ports: Vec<_> = (from..from + 1000).map(|port| format!("port+{port}")).collect();
        ports.join("+or+")
    };
    let large: Vec<String> = (1..=8).map(|number| ports(2000 * number)).collect();
    for (status, sentence) in compile(&server, &large)? {
        eprintln!("{status} {sentence}");
        ensure!(
            status == 400 && sentence.contains("takes more memory than the 16 MiB")
                || status == 503 && sentence.contains("the kernel has ended the process")
                || status == 503 && sentence.contains("too many filters are being compiled"),
            "{status} {sentence}"
        );
    }
    eprintln!("at most {} KiB", group.peak()? >> 10);
    let hosts: Vec<_> = (0..200).map(|host| format!("host+10.0.0.{host}")).collect();
    let answers = compile(&server, &[hosts.join("+or+")])?;
    ensure!(answers[0].0 == 200, "{answers:?}");
    for capture in captures {
        capture.finish().await?;
    }
    has_not_panicked(&server)
}

#[test]
fn long_filters_that_wait_are_bounded_by_their_bytes() -> anyhow::Result<()> {
    const COUNT: usize = 160;

    let group = ControlGroup::with_memory(160 << 20)?;
    let server = Server::start_by(&mut group.server()?, &[])?;
    let before = server.status("VmRSS")?;
    let long = |number: usize| format!("ip+or{}tcp+port+{number}", "+".repeat(58_000));
    let slow = |number: usize| {
        let hosts: Vec<_> = (0..250)
            .map(|host| format!("host+10.{number}.0.{host}"))
            .collect();
        hosts.join("+or+")
    };
    let expressions: Vec<String> = (0..4).map(slow).chain((0..COUNT).map(long)).collect();
    let mut refused = 0;
    for (status, sentence) in compile(&server, &expressions)? {
        ensure!(
            status == 200 || status == 503 && sentence.contains("too many filters"),
            "{status} {sentence}"
        );
        refused += usize::from(status == 503);
    }
    let more = server.status("VmHWM")?.saturating_sub(before);
    eprintln!("{refused} of {} were refused; {more} KiB more", expressions.len());
    ensure!(refused > COUNT / 2, "{refused}");
    has_not_panicked(&server)
}
