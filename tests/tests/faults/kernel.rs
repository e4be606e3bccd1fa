//! Other programs beside ours in the kernel.

use std::time::Duration;

use anyhow::ensure;
use packetflix_filter::native::{self, Arithmetic, Instruction, R0};
use packetflix_tests::{
    bpf_run::{Attached, Place, Program, ProgramType, attached_to_ingress, take_run_times},
    client::{Recorder, refusal},
    namespace::{Namespace, inside},
    random::Random,
    raw::RawSocket,
    server::{Server, wait_until},
};

use crate::{flow::Flow, frame};

/// Verdicts of TCX programs: `linux/bpf.h`.
const TCX_NEXT: i32 = -1;
const TCX_DROP: i32 = 2;

/// A program that always gives this verdict.
fn program(verdict: i32) -> anyhow::Result<Program> {
    let instructions = [
        Instruction::alu64_imm(Arithmetic::Move, R0, verdict),
        Instruction::exit(),
    ];
    Program::load(ProgramType::Classifier, &native::encode(&instructions))
}

fn attach(namespace: &Namespace, program: &Program, place: Place) -> anyhow::Result<Attached> {
    let ifindex = namespace.ifindex("va")?;
    Ok(namespace.inside(|| program.attach_to_ingress(ifindex, place))??)
}

/// The programs on what the interface receives, in their order, by their numbers.
fn chain(namespace: &Namespace) -> anyhow::Result<Vec<u32>> {
    let ifindex = namespace.ifindex("va")?;
    Ok(namespace.inside(|| attached_to_ingress(ifindex))??)
}

#[tokio::test]
async fn programs_of_others_run_before_and_behind_ours() -> anyhow::Result<()> {
    let _times = take_run_times()?;
    let (here, there) = Namespace::pair()?;
    let server = Server::start(&["--hook", "tcx"])?;
    let url = server.url(&format!("netns={}&nif=va", here.inode()?));
    let socket = RawSocket::open(&there, "vb")?;
    let send = |number: u8| (0..100).try_for_each(|_| socket.send(&frame(number)));

    // There first: ours goes before them, and sees what they drop.
    let (looks, drops) = (program(TCX_NEXT)?, program(TCX_DROP)?);
    let (look, drop_all) = (
        attach(&here, &looks, Place::Last)?,
        attach(&here, &drops, Place::Last)?,
    );
    let theirs = chain(&here)?;
    assert_eq!(theirs.len(), 2);
    let mut recorder = Recorder::start(&url).await?;
    let all = chain(&here)?;
    ensure!(all.len() == 3 && all[1..] == theirs, "{theirs:?} {all:?}");
    send(1)?;
    recorder
        .read_until(|recording| recording.count(&frame(1)) == 100)
        .await?;
    assert_eq!((looks.runs()?, drops.runs()?), (100, 100));

    // They come and go while ours runs, and one is put before it: ours sees what that lets through.
    drop(drop_all);
    let first = program(TCX_DROP)?;
    let before_ours = attach(&here, &first, Place::First)?;
    send(2)?;
    wait_until(Duration::from_secs(5), || Ok(first.runs()? == 100))?;
    assert_eq!(looks.runs()?, 100);
    drop(before_ours);
    let passing = program(TCX_NEXT)?;
    let before_ours = attach(&here, &passing, Place::First)?;
    send(3)?;
    recorder
        .read_until(|recording| recording.count(&frame(3)) == 100)
        .await?;
    assert_eq!((passing.runs()?, looks.runs()?), (100, 200));

    // Ours leaves theirs as they were.
    let recording = recorder.finish().await?;
    assert_eq!(recording.count(&frame(2)), 0);
    let statistics = recording.final_statistics("va")?;
    assert_eq!((statistics.received, statistics.dropped), (200, 0));
    wait_until(Duration::from_secs(5), || Ok(chain(&here)?.len() == 2))?;
    ensure!(chain(&here)?[1] == theirs[0]);
    send(4)?;
    assert_eq!((passing.runs()?, looks.runs()?), (200, 300));
    drop((look, before_ours));
    assert_eq!(chain(&here)?.len(), 0);
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn programs_come_and_go_while_captures_do() -> anyhow::Result<()> {
    let _times = take_run_times()?;
    let (here, there) = Namespace::pair()?;
    let server = Server::start(&["--hook", "tcx"])?;
    let inode = here.inode()?;
    let steady = Recorder::start(&server.url(&format!("netns={inode}&nif=va"))).await?;
    let fixed = program(TCX_NEXT)?;
    let _fixed = attach(&here, &fixed, Place::Last)?;
    let flow = Flow::start(&there, "vb", 100, 2)?;
    let passed_by = fixed.runs()?;

    let storm = tokio::task::spawn_blocking({
        let path = here.path();
        let ifindex = here.ifindex("va")?;
        move || {
            inside(&path, || {
                let mut random = Random::new(11);
                let mut attached = Vec::new();
                for _ in 0..150 {
                    if attached.len() < 6 && random.percent(55) {
                        let place = random.pick(&[Place::First, Place::Last]);
                        attached.push(program(TCX_NEXT)?.attach_to_ingress(ifindex, place)?);
                    } else if !attached.is_empty() {
                        attached.swap_remove(random.below(attached.len() as u32) as usize);
                    }
                }
                anyhow::Ok(())
            })?
        }
    });
    // Captures of their own, since each asks for something else.
    let mut begun = 0;
    while !storm.is_finished() || begun < 10 {
        let query = format!("netns={inode}&nif=va&filter=len+%3E+{begun}");
        Recorder::start(&server.url(&query)).await?.finish().await?;
        begun += 1;
    }
    storm.await??;
    let sent = flow.stop()?;
    eprintln!("{begun} captures began and ended among 150 changes of others");
    let statistics = steady.finish().await?.final_statistics("va")?;
    assert_eq!(statistics.received, sent);
    assert_eq!(statistics.delivered + statistics.dropped, statistics.received);
    ensure!(fixed.runs()? > passed_by);
    // Links that have ended captures are kept for a moment.
    wait_until(Duration::from_secs(10), || Ok(chain(&here)?.len() == 1))
}

#[tokio::test]
async fn interface_that_has_no_room_for_another_program_is_named() -> anyhow::Result<()> {
    let (here, _there) = Namespace::pair()?;
    let server = Server::start(&["--hook", "tcx"])?;
    let url = server.url(&format!("netns={}&nif=va", here.inode()?));
    let mut theirs = Vec::new();
    while let Ok(attached) = attach(&here, &program(TCX_NEXT)?, Place::Last) {
        theirs.push(attached);
    }
    let (status, sentence) = refusal(&server, &url, &[]).await?;
    ensure!(
        status == 429 && sentence.contains("va") && sentence.contains(&theirs.len().to_string()),
        "{status} {sentence}"
    );
    assert_eq!(chain(&here)?.len(), theirs.len());
    theirs.pop();
    Recorder::start(&url).await?.finish().await?;
    Ok(())
}
