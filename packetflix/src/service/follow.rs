//! Targets that join a stream while it runs.
//!
//! A namespace is captured as soon as the host mounts it, which an engine has done before the first process of a container runs.
//! What it captures is held until a scan says whose it is: then it joins the stream, or nothing of it is told. What is not
//! mounted by the host, or was missed, scans find, and so later.

use std::{
    collections::{BTreeMap, BTreeSet},
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use futures_util::{StreamExt as _, future::OptionFuture, stream::FuturesUnordered};
use tokio::{
    sync::watch,
    time::{Instant, sleep_until},
};
use tokio_util::task::AbortOnDropHandle;
use tracing::Instrument as _;

use super::{
    Asker, Caller,
    changes::Changes,
    several::{Begun, Common, Failed, Wanted, known, sentences, shown},
    start::Held,
};
use crate::{
    allowance::Allowance,
    description::TargetDescription,
    discovery::{Arrived, DiscoveredTarget, Discovery, Scan},
    error::chain,
    session::{Arrival, Arrivals, Member, NamespacePlace, Progress},
};

/// So many captures of one name may begin one right after the other, and then one in each such time.
const STARTS_AT_ONCE: u32 = 10;
const TIME_OF_A_START: Duration = Duration::from_secs(2);

/// How long one is left alone that could not begin, as for want of a place among the captures that may run.
const REST: Duration = Duration::from_secs(30);

/// How long captures are begun after a scan, before others are heard.
const JOIN_PATIENCE: Duration = Duration::from_secs(1);

/// Most sentences that are remembered, so that each is told once.
const MOST_TOLD: usize = 1024;

impl Common {
    /// Has targets join as they come; only until the first, where they are not followed.
    pub(super) async fn follow(&self, arrivals: &Arrivals, follows: bool) {
        let mut scans = self.app.discovery.scans();
        let mut coming = self.app.discovery.arrivals();
        let mut holding = Holding::default();
        let mut named = FuturesUnordered::new();
        let mut starts = Starts::default();
        let mut told = BTreeSet::new();
        let mut changes = Changes::default();
        if let Some(scan) = self.app.discovery.known() {
            // What there was at the beginning is no change.
            self.changed(&scan, &mut changes);
        }
        loop {
            let mut changed = Vec::new();
            let joining = tokio::select! {
                scan = scans.next() => {
                    changed = self.changed(&scan, &mut changes);
                    self.in_background(|discovery| async move { discovery.look_for_sockets().await });
                    self.joining(&scan, &mut holding, &mut starts).await
                }
                Some(Ok((netns, target))) = named.next() => {
                    self.joining_early(netns, target, &mut holding, &mut starts)
                }
                came = coming.recv() => {
                    holding.look_soon();
                    let Ok(Arrived::Mount(path)) = came else { continue };
                    let Some((netns, progress)) = self.hold(&path, &mut holding).await else { continue };
                    starts.has_come(netns);
                    named.push(self.ask_whose(path, netns, progress.clone()));
                    if arrivals.send(Arrival::Held { netns, progress }).await.is_err() {
                        return;
                    }
                    continue;
                }
                () = holding.look_is_due() => {
                    holding.looks();
                    // It comes to all who follow scans.
                    self.in_background(|discovery| async move { drop(discovery.scan_now().await) });
                    continue;
                }
            };
            let has_joined = !joining.members.is_empty();
            let decided = holding
                .take_decided()
                .into_iter()
                .map(|netns| Arrival::Decided { netns });
            let joined = joining.arrivals(&mut told).into_iter().chain(decided);
            for arrival in changed.into_iter().chain(joined) {
                if arrivals.send(arrival).await.is_err() {
                    return;
                }
            }
            if has_joined && !follows {
                return;
            }
        }
    }

    /// What has become another, of engines and captured targets that the caller may know of, since the scan before.
    fn changed(&self, scan: &Scan, changes: &mut Changes) -> Vec<Arrival> {
        let Some(Asker { caller, .. }) = self.joiner() else {
            return Vec::new();
        };
        let rights = caller.rights();
        let captured = known(scan, rights).filter(|target| self.namespaces.have(target.namespace.inode));
        let changed = changes.since_last(scan, captured, !rights.are_bounded());
        let told = changed.into_iter();
        told.map(|(name, sentence)| Arrival::Told { name, sentence })
            .collect()
    }

    /// What joins by a scan.
    async fn joining(&self, scan: &Scan, holding: &mut Holding, starts: &mut Starts) -> Joining {
        self.namespaces.retain(|netns| scan.may_have(netns));
        let mut joining = Joining::default();
        // What they may do now counts, and not what they might when the stream began.
        let Some(asker) = self.joiner() else {
            holding.let_go();
            return joining;
        };
        let caller = &asker.caller;
        for (held, place, target) in holding.decide(|held| self.whose(scan, caller, held)) {
            self.release(held, place, &target, &asker, starts, &mut joining);
        }
        starts.wake();
        let mut wanted = self.new_in(scan, |target| self.is_selected(scan, caller, target));
        wanted.retain(|Wanted { target, .. }| !starts.rests(target) && joining.allows(target, starts));
        let Begun {
            members,
            failed,
            left,
        } = self.start_all(wanted, JOIN_PATIENCE).await;
        if left > 0 {
            // What had no time to begin does so at the next scan.
            holding.look_soon();
        }
        failed.iter().for_each(|failed| starts.rest(failed));
        joining.members.extend(members);
        joining.failed.extend(failed);
        joining
    }

    /// What joins as its engine starts it.
    fn joining_early(
        &self,
        netns: u64,
        target: Option<DiscoveredTarget>,
        holding: &mut Holding,
        starts: &mut Starts,
    ) -> Joining {
        let mut joining = Joining::default();
        if let Some(target) = target
            && let Some(asker) = self.joiner()
            && !is_decided_by_scans(&asker.caller)
            && let Some((held, place)) = holding.take(netns)
            && self.selection.has(&target)
        {
            self.release(held, place, &target.description(), &asker, starts, &mut joining);
        }
        joining
    }

    /// Asks whose a namespace is that has come, as the engine tells that starts it, beside all else; nothing comes of it where what
    /// is there decides whether it may be captured, which only a scan knows.
    fn ask_whose(&self, path: PathBuf, netns: u64, progress: Progress) -> Asked {
        let is_decided_by_scans = self.asker().is_ok_and(|asker| is_decided_by_scans(&asker.caller));
        let discovery = Arc::clone(&self.app.discovery);
        let asked = async move {
            let starting = discovery.starting_at(&path, netns, || progress.macs());
            let target = OptionFuture::from((!is_decided_by_scans).then_some(starting));
            (netns, target.await.flatten())
        };
        AbortOnDropHandle::new(tokio::spawn(asked.in_current_span()))
    }

    /// Begins to capture the namespace that the host mounts at this path, if one is there soon; gives its inode number, and how far
    /// that is behind. What cannot be is left to scans. It takes a place among the captures that may run once it is known whose
    /// it is.
    async fn hold(&self, path: &Path, holding: &mut Holding) -> Option<(u64, Progress)> {
        let asker = self.joiner().filter(|_| holding.has_room())?;
        let path = path.to_owned();
        let namespaces = self.app.namespaces.clone();
        let opening = tokio::task::spawn_blocking(move || namespaces.arriving_at(&path));
        let netns = opening.await.ok()?.ok()?;
        self.namespaces.forget_over(netns.inode());
        let place = self.namespaces.enter(netns.inode())?;
        let id = self.app.next_id();
        let span = tracing::info_span!("capture", id, stream = self.within.stream);
        let held = self.app.hold(id, &self.request, &asker, netns).instrument(span);
        let held = held.await.inspect_err(|error| {
            tracing::debug!(error = %chain(error), "what comes is not held");
        });
        let held = held.ok()?;
        let told = (held.netns(), held.progress());
        holding.held.push((held, place));
        Some(told)
    }

    /// Does something with the discovery that nobody waits for.
    fn in_background<F: Future<Output = ()> + Send + 'static>(&self, work: impl FnOnce(Arc<Discovery>) -> F) {
        tokio::spawn(work(Arc::clone(&self.app.discovery)));
    }

    /// Whose a namespace is that is held. A scan that began before it was open may have another of that number.
    fn whose(&self, scan: &Scan, caller: &Caller, held: &Held) -> Whose {
        if scan.began < held.opened() || scan.have_left(held.netns()) {
            return Whose::Unknown;
        }
        let netns = held.netns();
        match scan
            .targets_in(netns)
            .find(|target| self.is_selected(scan, caller, target))
        {
            Some(target) => Whose::Selected(Box::new(TargetDescription {
                interfaces: Vec::new(),
                ..target.description()
            })),
            None if scan.targets_in(netns).any(|target| target.workload.is_some()) => Whose::Others,
            None => Whose::Unknown,
        }
    }

    /// What was held is this target's, which joins.
    fn release(
        &self,
        held: Held,
        place: NamespacePlace,
        target: &TargetDescription,
        asker: &Asker,
        starts: &mut Starts,
        joining: &mut Joining,
    ) {
        if !joining.allows(target, starts) {
            return;
        }
        let span = tracing::info_span!("capture", id = held.id(), stream = self.within.stream);
        let (rights, _) = watch::channel(Arc::clone(asker.caller.rights()));
        let released = span.in_scope(|| {
            self.app
                .release(held, &self.request, asker, target, rights, &self.within)
        });
        match released {
            Ok(started) => joining.members.push(started.join(place, span)),
            Err(error) => joining.failed.push(Failed {
                name: shown(target),
                netns: target.netns,
                is_single: false,
                error,
            }),
        }
    }
}

/// Whether what is in a namespace decides if it may be captured, or listed, which only a scan knows.
fn is_decided_by_scans(caller: &Caller) -> bool {
    caller.rights().are_bounded() || !caller.rights().may_capture_something()
}

/// What joins a stream, and what cannot.
#[derive(Default)]
struct Joining {
    members: Vec<Member>,
    failed: Vec<Failed>,
    /// Names of those that start too often, each with a sentence on that.
    too_often: Vec<(String, String)>,
}

impl Joining {
    /// Whether a target may begin, or has begun too often of late.
    fn allows(&mut self, target: &TargetDescription, starts: &mut Starts) -> bool {
        let allowed = starts.allow(target);
        let is_allowed = allowed.is_ok();
        self.too_often.extend(allowed.err());
        is_allowed
    }

    /// What the stream is told of it, but for what it was told before.
    fn arrivals(self, told: &mut BTreeSet<(String, String)>) -> Vec<Arrival> {
        let members = self
            .members
            .into_iter()
            .map(|member| Arrival::Member(Box::new(member)));
        let failed = self.failed.into_iter().filter(|failed| !failed.is_hidden());
        let sentences = sentences(failed.collect()).into_iter().chain(self.too_often);
        let new = sentences.filter(|one| told.len() < MOST_TOLD && told.insert(without_numbers(one)));
        let new = new.map(|(name, sentence)| Arrival::Told { name, sentence });
        members.chain(new).collect()
    }
}

/// A name and a sentence, but for the numbers in them, which change while all else stays as it was.
fn without_numbers((name, sentence): &(String, String)) -> (String, String) {
    let sentence = sentence.split(" (").next().unwrap_or_default();
    let without = |text: &str| text.chars().filter(|one| !one.is_ascii_digit()).collect();
    match name.ends_with(" targets") {
        true => (without(name), without(sentence)),
        false => (name.clone(), without(sentence)),
    }
}

/// A namespace, and the container that it is of, if that is told.
type Asked = AbortOnDropHandle<(u64, Option<DiscoveredTarget>)>;

/// Whose a namespace is.
enum Whose {
    /// A target's that is selected.
    Selected(Box<TargetDescription>),
    /// A container's or pod's that is not.
    Others,
    /// That may be said yet.
    Unknown,
}

/// Namespaces that are captured before it is known whose they are.
#[derive(Default)]
struct Holding {
    held: Vec<(Held, NamespacePlace)>,
    /// Those of which it has been decided.
    decided: Vec<u64>,
    /// When there is to be a scan, and how long after that the next.
    look: Option<(Instant, Duration)>,
}

impl Holding {
    /// Most that are held.
    const MOST: usize = 16;

    /// How long each is held at most: what an engine does until it can tell whose it is.
    const PATIENCE: Duration = Duration::from_secs(10);

    /// How soon there is a scan once something has come, and how long it is until the next at most.
    const SOON: Duration = Duration::from_millis(30);
    const LATE: Duration = Duration::from_secs(1);

    fn has_room(&self) -> bool {
        self.held.len() < Self::MOST
    }

    /// Something has come.
    fn look_soon(&mut self) {
        self.look = Some((Instant::now() + Self::SOON, Self::SOON));
    }

    /// There is a scan: the next is twice as far, while anything is held.
    fn looks(&mut self) {
        let next = self.look.filter(|_| !self.held.is_empty()).map(|(_, pause)| {
            let pause = (2 * pause).min(Self::LATE);
            (Instant::now() + pause, pause)
        });
        self.look = next;
    }

    /// Waits until there is to be a scan; for ever while nothing is held.
    async fn look_is_due(&self) {
        match self.look {
            Some((at, _)) => sleep_until(at).await,
            None => std::future::pending().await,
        }
    }

    /// Nothing of what is held may join any more.
    fn let_go(&mut self) {
        let held = self.held.drain(..).map(|(held, _)| held.netns());
        self.decided.extend(held);
    }

    /// Those of which it has been decided since this was last asked.
    fn take_decided(&mut self) -> Vec<u64> {
        std::mem::take(&mut self.decided)
    }

    /// Lets go of the one in a namespace, if it is held.
    fn take(&mut self, netns: u64) -> Option<(Held, NamespacePlace)> {
        let at = self.held.iter().position(|(held, _)| held.netns() == netns)?;
        self.decided.push(netns);
        Some(self.held.swap_remove(at))
    }

    /// Gives those that are somebody's who is selected, and lets go of those that are others', or are held for too long.
    fn decide(&mut self, whose: impl Fn(&Held) -> Whose) -> Vec<(Held, NamespacePlace, TargetDescription)> {
        let mut selected = Vec::new();
        for (held, place) in std::mem::take(&mut self.held) {
            match whose(&held) {
                Whose::Selected(target) => {
                    self.decided.push(held.netns());
                    selected.push((held, place, *target));
                }
                Whose::Unknown if held.opened().elapsed() < Self::PATIENCE => self.held.push((held, place)),
                Whose::Others | Whose::Unknown => self.decided.push(held.netns()),
            }
        }
        selected
    }
}

/// How often captures of each name have begun of late: a container that starts again and again at full speed does not take all. One
/// that could not begin is not tried again for a while.
#[derive(Default)]
struct Starts {
    by_name: BTreeMap<String, Allowance>,
    /// Namespaces of which a capture could not begin, and until when each is left alone.
    resting: BTreeMap<u64, Instant>,
}

impl Starts {
    /// Most names that are remembered.
    const MOST: usize = 4096;

    /// Those that have been left alone for long enough may be tried again.
    fn wake(&mut self) {
        let now = Instant::now();
        self.resting.retain(|_, until| now < *until);
    }

    /// Whether it could not begin a moment ago.
    fn rests(&self, target: &TargetDescription) -> bool {
        target
            .netns
            .is_some_and(|netns| self.resting.contains_key(&netns))
    }

    /// A namespace of this number has just come: what was tried was another's.
    fn has_come(&mut self, netns: u64) {
        self.resting.remove(&netns);
    }

    /// One could not begin. That it was tried is no start. Of one that has gone, the number may soon be another's.
    fn rest(&mut self, failed: &Failed) {
        if let Some(netns) = failed.netns.filter(|_| !failed.has_gone()) {
            self.resting.insert(netns, Instant::now() + REST);
        }
        if let Some(starts) = self.by_name.get_mut(&failed.name) {
            starts.give_back(TIME_OF_A_START);
        }
    }

    /// Whether this one may begin; else its name and a sentence on that.
    fn allow(&mut self, target: &TargetDescription) -> Result<(), (String, String)> {
        if self.by_name.len() > Self::MOST {
            self.by_name.clear();
        }
        let name = shown(target);
        let saved = TIME_OF_A_START * (STARTS_AT_ONCE - 1);
        let starts = self
            .by_name
            .entry(name.clone())
            .or_insert_with(|| Allowance::new(saved));
        if starts.is_due() {
            starts.spend(TIME_OF_A_START);
            return Ok(());
        }
        let sentence = "it starts again and again, faster than it is followed";
        Err((name, sentence.to_owned()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{resolve::TargetError, service::StartError};

    #[test]
    fn one_that_starts_again_and_again_leaves_others_alone() {
        let mut starts = Starts::default();
        let target = |name: &str| TargetDescription {
            name: name.to_owned(),
            ..TargetDescription::default()
        };
        let allowed = (0..40).filter(|_| starts.allow(&target("loop")).is_ok());
        assert_eq!(allowed.count(), STARTS_AT_ONCE as usize);
        let (name, sentence) = starts.allow(&target("loop")).unwrap_err();
        assert!(
            name == "loop" && sentence.contains("again and again"),
            "{sentence}"
        );
        assert!(starts.allow(&target("web")).is_ok());
        for number in 0..2 * Starts::MOST {
            assert!(starts.allow(&target(&number.to_string())).is_ok());
        }
        assert!(starts.by_name.len() <= Starts::MOST + 1);
    }

    #[test]
    fn one_that_cannot_begin_is_not_taken_for_one_that_starts_again_and_again() {
        let mut starts = Starts::default();
        let target = TargetDescription {
            name: "web".to_owned(),
            ..TargetDescription::namespace(5)
        };
        for _ in 0..4 * STARTS_AT_ONCE {
            assert!(starts.allow(&target).is_ok());
            starts.rest(&Failed {
                name: "web".to_owned(),
                netns: Some(5),
                is_single: false,
                error: StartError::ShuttingDown,
            });
            assert!(starts.rests(&target));
        }
        assert!(!starts.rests(&TargetDescription::namespace(6)));
        starts.has_come(5);
        assert!(!starts.rests(&target));
    }

    /// The kernel soon gives the number of a namespace that has gone to another.
    #[test]
    fn one_that_has_gone_leaves_its_number_to_others() {
        let mut starts = Starts::default();
        let failed = |error: TargetError, is_single| Failed {
            name: "web".to_owned(),
            netns: Some(5),
            is_single,
            error: error.into(),
        };
        let has_gone = failed(TargetError::NoProcess { pid: 7 }, false);
        starts.rest(&has_gone);
        assert!(!starts.rests(&TargetDescription::namespace(5)));
        let told = |failed| sentences(vec![failed]);
        let sentence = |words: &str| vec![("web".to_owned(), format!("not captured: {words}"))];
        assert_eq!(told(has_gone), sentence("it ended before that could begin"));
        // Of one that was meant alone, it is said what is not there.
        let single = failed(TargetError::NoProcess { pid: 7 }, true);
        assert_eq!(told(single), sentence("there is no process 7"));
    }
}
