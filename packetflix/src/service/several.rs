//! Streams of several targets: which these are when a stream begins, and which join it while it runs.
//!
//! A namespace of several targets is captured once. What a word means that means one target is decided as where it is asked
//! for alone; what a pattern means, a scan says that began after the request came. Whoever may capture some targets only is
//! told of none that a pattern means beside those.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use futures_util::{StreamExt as _, stream};
use tokio::{
    sync::watch,
    time::{Instant, MissedTickBehavior, interval},
};
use tokio_util::{sync::CancellationToken, task::AbortOnDropHandle};
use tracing::Instrument as _;

use super::{App, Asker, Caller, CaptureRequest, Permit, Several, StartError, start::Within};
use crate::{
    access::{AccessError, Rights, Verdict},
    capture_end::CaptureEnd,
    description::TargetDescription,
    discovery::{DiscoveredTarget, Scan},
    error::chain,
    netns::FindError,
    resolve::{Selection, Target, TargetError, nearest_of},
    session::{Arrival, Arrivals, Limits, Member, MergedInfo, MergedSession, Namespaces},
    tap::InterfaceSelection,
};

/// How many captures of a stream are begun at the same time.
const AT_ONCE: usize = 8;

/// How long captures are begun before a stream begins without the rest, which join it; and where none may join later.
const BEGIN_PATIENCE: Duration = Duration::from_secs(5);
const WHOLE_PATIENCE: Duration = Duration::from_secs(30);

/// How often it is looked whether a caller would still be let in.
const RENEWAL: Duration = Duration::from_secs(1);

/// Why captures have ended of a stream that did not begin.
const NOT_BEGUN: &str = "the stream did not begin, since another of its targets cannot be captured";

/// Most bytes of the words of a selection that stand for its name.
const MAX_NAME_LEN: usize = 120;

/// A stream that runs, and waits for its client.
pub(crate) struct StartedStream {
    session: MergedSession,
    stop: CancellationToken,
    follower: AbortOnDropHandle<()>,
    permit: Option<Permit>,
}

impl StartedStream {
    /// Lets `deliver` hand it to its client.
    pub(crate) async fn deliver<D: Future<Output = ()>>(
        self,
        deliver: impl FnOnce(MergedSession, CancellationToken) -> D,
    ) {
        let Self {
            session,
            stop,
            follower,
            permit,
        } = self;
        deliver(session, stop).await;
        drop((follower, permit));
    }
}

/// What all captures of a stream have in common.
pub(super) struct Common {
    pub(super) app: Arc<App>,
    /// Each of them, but for its target.
    pub(super) request: CaptureRequest,
    asker: Mutex<Asker>,
    pub(super) selection: Selection,
    pub(super) within: Within,
    pub(super) namespaces: Namespaces,
}

/// What a stream is to capture.
pub(super) struct Wanted {
    pub(super) target: TargetDescription,
    /// Whether it was meant alone, so that its want is told.
    pub(super) is_single: bool,
}

/// One that is not captured.
pub(super) struct Failed {
    pub(super) name: String,
    /// Inode number of its namespace, as far as it was known.
    pub(super) netns: Option<u64>,
    pub(super) is_single: bool,
    pub(super) error: StartError,
}

/// What became of captures that were to begin.
#[derive(Default)]
pub(super) struct Begun {
    pub(super) members: Vec<Member>,
    pub(super) failed: Vec<Failed>,
    /// How many had no time to begin.
    pub(super) left: usize,
}

impl App {
    /// Starts a stream of several targets, as number `id`.
    ///
    /// # Errors
    /// When there is none; nothing of it is left then.
    pub(crate) async fn start_several(
        self: &Arc<Self>,
        id: u64,
        request: CaptureRequest,
        several: Several,
        asker: Asker,
    ) -> Result<StartedStream, StartError> {
        self.check_account()?;
        let caller = asker.caller.clone();
        let selection = Selection::parse(&several.words, caller.rights(), &|pid| {
            self.namespaces.of_pid(pid)
        })?;
        let has_patterns = !several.words.is_empty() && selection.has_patterns();
        if has_patterns {
            // What there is shows by what a pattern means.
            caller.may_discover()?;
        }
        let follows = several.follow.unwrap_or(has_patterns);
        let may_wait = follows || several.wait;
        // What waits for targets takes a place as those do.
        let mut permit = may_wait.then(|| self.permit(&caller)).transpose()?;
        let stop = self.stop.child_token();
        let (rights, rights_by_now) = watch::channel(Arc::clone(caller.rights()));
        let names = request.names.then(|| self.names(rights_by_now));
        let limits = Limits {
            max_duration: self.frontend.config.max_duration,
            ..request.limits.clone()
        };
        let common = Common {
            app: Arc::clone(self),
            request: CaptureRequest {
                names: false,
                // The stream has limits, and its parts have none.
                limits: Limits::default(),
                several: None,
                ..request.clone()
            },
            asker: Mutex::new(asker),
            selection,
            within: Within {
                stream: id,
                stop: stop.clone(),
            },
            namespaces: Namespaces::default(),
        };

        let words = words(&several);
        let info = MergedInfo {
            words: &words,
            node_name: &self.config.node_name,
            filter: &request.filter,
            chaste: request.chaste,
            snaplen: request.snaplen,
            limits,
        };
        let running = self.captures.begin_stream(id, stop.clone());
        let (mut session, arrivals) = MergedSession::begin(&info, running, stop.clone())?;

        let scan = self.discovery.scan_now().await?;
        let wanted = common.wanted(&several.described, &scan, &caller, has_patterns);
        let patience = match follows {
            true => BEGIN_PATIENCE,
            false => WHOLE_PATIENCE,
        };
        let Begun {
            members,
            failed,
            left,
        } = common.start_all(wanted, patience).await;
        let judged = judge_failures(failed, members.is_empty(), several.wait).and_then(|judged| {
            if members.is_empty() && !several.wait && left == 0 {
                let known = known(&scan, caller.rights());
                let names: Vec<String> = known.map(|target| target.description().full_name()).collect();
                let asked = several.words.iter().map(String::as_str);
                return Err(StartError::NothingSelected {
                    words: words.clone(),
                    looked_at: names.len(),
                    nearest: match caller.may_discover() {
                        Ok(()) => nearest_of(asked, &names),
                        Err(_) => Vec::new(),
                    },
                });
            }
            Ok(judged)
        });
        let Judged { told, awaited } = match judged {
            Ok(judged) => judged,
            Err(error) => {
                for member in members {
                    member.running.end(CaptureEnd::Failed, NOT_BEGUN);
                }
                return Err(error);
            }
        };
        let may_wait = follows || (several.wait && (awaited || members.is_empty()));
        if !may_wait {
            permit = None;
        }

        if let Some((names, first)) = names {
            session.tell_names(names, first);
        }
        let targets = members.len();
        for member in members {
            session.join(member);
        }
        for (name, sentence) in sentences(told) {
            session.tell(&name, &sentence);
        }
        if left > 0 && !follows {
            let seconds = WHOLE_PATIENCE.as_secs();
            let sentence = format!("not captured: they could not begin within {seconds} s");
            session.tell(&format!("{left} targets"), &sentence);
        }
        tracing::info!(
            words,
            targets,
            follows,
            caller = caller.name(),
            caller_type = caller.kind(),
            "started a stream of several targets"
        );
        let follower = common.look_after(arrivals, rights, may_wait, follows);
        let follower = tokio::spawn(follower.in_current_span());
        Ok(StartedStream {
            session,
            stop,
            follower: AbortOnDropHandle::new(follower),
            permit,
        })
    }
}

impl Common {
    /// Who asks, with the rights that they have by now.
    ///
    /// # Errors
    /// When they would not be let in any more.
    pub(super) fn asker(&self) -> Result<Asker, AccessError> {
        let mut asker = self.asker.lock().unwrap_or_else(PoisonError::into_inner);
        asker.caller = asker.caller.renew(&self.app.access)?;
        Ok(asker.clone())
    }

    /// Who asks, if they may have others join by now: what a pattern means shows what there is.
    pub(super) fn joiner(&self) -> Option<Asker> {
        let asker = self.asker().ok()?;
        let may_know = !self.selection.has_patterns() || asker.caller.may_discover().is_ok();
        may_know.then_some(asker)
    }

    /// Whether a target is selected that its caller may capture. What a pattern means shows what there is, and so is only what may be
    /// listed, too.
    pub(super) fn is_selected(&self, scan: &Scan, caller: &Caller, target: &DiscoveredTarget) -> bool {
        let rights = caller.rights();
        let is_named = self.selection.has_by_name(target) && may_capture(rights, scan, target);
        is_named || (self.selection.has_by_pattern(target) && may_know(rights, scan, target))
    }

    /// What a stream begins with: what is described, what single words mean, and what patterns mean in a scan.
    fn wanted(
        &self,
        described: &[TargetDescription],
        scan: &Scan,
        caller: &Caller,
        has_patterns: bool,
    ) -> Vec<Wanted> {
        let named = self.selection.single().iter().map(|word| TargetDescription {
            name: word.clone(),
            ..TargetDescription::default()
        });
        let single = described.iter().cloned().chain(named).map(|target| Wanted {
            target,
            is_single: true,
        });
        let mut wanted: Vec<Wanted> = single.collect();
        if has_patterns {
            let is_meant = |target: &DiscoveredTarget| {
                self.selection.has_by_pattern(target) && may_know(caller.rights(), scan, target)
            };
            wanted.extend(self.new_in(scan, is_meant));
        }
        wanted
    }

    /// Targets of a scan that are selected, one for each namespace that is not captured yet.
    pub(super) fn new_in(&self, scan: &Scan, is_selected: impl Fn(&DiscoveredTarget) -> bool) -> Vec<Wanted> {
        let mut by_namespace: BTreeMap<u64, &DiscoveredTarget> = BTreeMap::new();
        for target in &scan.targets {
            let netns = target.namespace.inode;
            if self.namespaces.have(netns) || !is_selected(target) {
                continue;
            }
            let first = by_namespace.entry(netns).or_insert(target);
            // A container's name says more than that of a process in it.
            if first.workload.is_none() && target.workload.is_some() {
                *first = target;
            }
        }
        let wanted = by_namespace.into_values().map(|target| Wanted {
            target: TargetDescription {
                // Those that it has now are nobody's wish.
                interfaces: Vec::new(),
                ..target.description()
            },
            is_single: false,
        });
        wanted.collect()
    }

    /// Begins to capture these, some at a time. After so long no more are begun, and the rest is left.
    pub(super) async fn start_all(&self, wanted: Vec<Wanted>, patience: Duration) -> Begun {
        let deadline = Instant::now() + patience;
        let mut begun = Begun {
            left: wanted.len(),
            ..Begun::default()
        };
        let in_time = wanted.into_iter().take_while(|_| Instant::now() < deadline);
        let starts = in_time.map(|wanted| self.start(wanted));
        let mut starts = stream::iter(starts).buffered(AT_ONCE);
        while let Some(started) = starts.next().await {
            begun.left -= 1;
            match started {
                Ok(member) => begun.members.extend(member),
                Err(error) => begun.failed.push(error),
            }
        }
        begun
    }

    /// Begins to capture a target; nothing where its namespace is captured already.
    async fn start(&self, wanted: Wanted) -> Result<Option<Member>, Failed> {
        let Wanted { target, is_single } = wanted;
        let (name, netns) = (shown(&target), target.netns);
        let id = self.app.next_id();
        let span = tracing::info_span!("capture", id, stream = self.within.stream);
        let started = self
            .start_one(id, target, is_single, span.clone())
            .instrument(span);
        started.await.map_err(|error| Failed {
            name,
            netns,
            is_single,
            error,
        })
    }

    async fn start_one(
        &self,
        id: u64,
        target: TargetDescription,
        is_single: bool,
        span: tracing::Span,
    ) -> Result<Option<Member>, StartError> {
        let asker = self.asker()?;
        let caller = asker.caller.clone();
        let permit = self.app.permit(&caller)?;
        let request = CaptureRequest {
            target: target.clone(),
            // Each has those of them that it has.
            selection: self
                .request
                .selection
                .clone()
                .map(InterfaceSelection::into_listed),
            ..self.request.clone()
        };
        let target = self.open(target, is_single, &caller).await?;
        let Some(place) = self.namespaces.enter(target.netns.inode()) else {
            return Ok(None);
        };
        // What its judge finds out, the stream finds out itself.
        let (rights, _) = watch::channel(Arc::clone(caller.rights()));
        let begun = self
            .app
            .begin(id, request, asker, target, permit, rights, Some(&self.within));
        Ok(Some(begun.await?.join(place, span)))
    }

    /// Opens a target. What a pattern means a scan has just found, and another for each target would take its time as often.
    async fn open(
        &self,
        target: TargetDescription,
        is_single: bool,
        caller: &Caller,
    ) -> Result<Target, StartError> {
        if !is_single
            && !caller.rights().are_by_pattern()
            && let Some(opened) = self.app.resolver.open_mounted(&target).await
        {
            return Ok(opened);
        }
        self.app.open_target(target, caller).await
    }

    /// Follows what its caller may do, and has targets join that come. Ends when the stream does.
    async fn look_after(
        self,
        arrivals: Arrivals,
        rights: watch::Sender<Arc<Rights>>,
        may_wait: bool,
        follows: bool,
    ) {
        if may_wait {
            tokio::select! {
                () = arrivals.closed() => return,
                why = self.renew(&rights) => {
                    tracing::info!(reason = why, "a stream loses its right");
                    // Where it has ended, nobody wants to know.
                    drop(arrivals.send(Arrival::Revoked(why)).await);
                    return;
                }
                () = self.follow(&arrivals, follows) => {}
            }
        }
        // Nothing joins any more: the stream ends with its last capture.
        drop(arrivals);
        self.renew(&rights).await;
    }

    /// Looks again and again what the caller may do; ends when they may capture nothing any more, and says why.
    async fn renew(&self, rights: &watch::Sender<Arc<Rights>>) -> String {
        let mut looks = interval(RENEWAL);
        looks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            looks.tick().await;
            let caller = match self.asker() {
                Ok(asker) => asker.caller,
                Err(error) => return chain(&error),
            };
            if let Err(error) = caller.may_capture_something() {
                return error.to_string();
            }
            rights.send_if_modified(|known| {
                let is_new = known != caller.rights();
                *known = Arc::clone(caller.rights());
                is_new
            });
        }
    }
}

/// Whether a target may be captured, as far as names decide that.
fn may_capture(rights: &Rights, scan: &Scan, target: &DiscoveredTarget) -> bool {
    let is_theirs = |occupants| rights.may_capture(occupants) == Verdict::Allowed;
    !rights.are_by_pattern() || scan.occupants(target.namespace.inode).is_some_and(is_theirs)
}

/// Whether it may be known, too, that it is there, as far as names decide that.
fn may_know(rights: &Rights, scan: &Scan, target: &DiscoveredTarget) -> bool {
    let is_listed = |occupants| rights.may_list(occupants);
    let may_list =
        !rights.lists_are_by_pattern() || scan.occupants(target.namespace.inode).is_some_and(is_listed);
    may_list && may_capture(rights, scan, target)
}

/// The targets of which somebody with these rights may know.
pub(super) fn known<'a>(scan: &'a Scan, rights: &Rights) -> impl Iterator<Item = &'a DiscoveredTarget> {
    scan.targets
        .iter()
        .filter(|target| may_know(rights, scan, target))
}

impl Failed {
    /// Whether its caller is not even to know that it is there.
    pub(super) fn is_hidden(&self) -> bool {
        matches!(self.error, StartError::Hidden(_)) && !self.is_single
    }

    /// Whether it was there a moment ago, and is not any more.
    pub(super) fn has_gone(&self) -> bool {
        is_absent(&self.error) && !self.is_single && !self.is_hidden()
    }

    fn why(&self) -> String {
        match self.has_gone() {
            true => "it ended before that could begin".to_owned(),
            false => chain(&self.error),
        }
    }
}

/// What is said of captures that could not begin.
struct Judged {
    told: Vec<Failed>,
    /// Some were meant that are not there yet.
    awaited: bool,
}

/// Which of the captures that could not begin are told in the stream.
///
/// # Errors
/// Why there is no stream: one that was meant alone is not there, or none could begin at all.
fn judge_failures(failed: Vec<Failed>, are_all: bool, may_wait: bool) -> Result<Judged, StartError> {
    let (mut told, mut awaited) = (Vec::new(), false);
    for one in failed {
        if one.is_hidden() {
            continue;
        }
        if may_wait && is_absent(&one.error) {
            awaited = true;
            continue;
        }
        let is_bound = matches!(one.error, StartError::Quota(_));
        let is_filters = matches!(one.error, StartError::AboutFilter { .. } | StartError::Filter(_));
        if (one.is_single && !is_bound) || is_filters {
            return Err(one.error);
        }
        told.push(one);
    }
    match (are_all, told.is_empty()) {
        (true, false) => Err(told.swap_remove(0).error),
        _ => Ok(Judged { told, awaited }),
    }
}

/// Whether what was asked for is not there, and may come.
fn is_absent(error: &StartError) -> bool {
    match error {
        StartError::Hidden(_) => true,
        StartError::Target(error) => matches!(
            error,
            TargetError::Unknown { .. }
                | TargetError::Stopped { .. }
                | TargetError::NoProcess { .. }
                | TargetError::NotFoundAgain { .. }
                | TargetError::Stale(_)
                | TargetError::Ended { .. }
                | TargetError::Find(FindError::NotFound { .. })
        ),
        _ => false,
    }
}

/// Names of what is not captured, each with a sentence on why; one for all that are beyond the same bound.
pub(super) fn sentences(failed: Vec<Failed>) -> Vec<(String, String)> {
    let mut by_reason: BTreeMap<String, Vec<String>> = BTreeMap::new();
    for failed in failed {
        by_reason.entry(failed.why()).or_default().push(failed.name);
    }
    for (reason, names) in &by_reason {
        let (count, first) = (names.len(), names.first().map(String::as_str).unwrap_or_default());
        tracing::info!(count, first, reason, "targets of a stream are not captured");
    }
    let told = by_reason.into_iter().map(|(reason, names)| match &names[..] {
        [name] => (name.clone(), format!("not captured: {reason}")),
        names => (
            format!("{} targets", names.len()),
            format!("not captured: {reason} ({})", excerpt(&names.join(", "))),
        ),
    });
    told.collect()
}

/// What a target is called where it cannot be captured.
pub(super) fn shown(target: &TargetDescription) -> String {
    let name = target.full_name();
    match (target.netns, target.pid) {
        _ if !name.is_empty() => name,
        (_, Some(pid)) => format!("pid:{pid}"),
        (Some(netns), _) => format!("netns:{netns}"),
        (None, None) => String::new(),
    }
}

/// The words of a selection, as its name.
fn words(several: &Several) -> String {
    let described = several.described.iter().map(shown);
    let words: Vec<String> = described.chain(several.words.iter().cloned()).collect();
    excerpt(&words.join(", "))
}

fn excerpt(text: &str) -> String {
    match text.len() {
        0..=MAX_NAME_LEN => text.to_owned(),
        _ => format!("{}…", &text[..text.floor_char_boundary(MAX_NAME_LEN)]),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        access::{Extent, Occupant, Occupants},
        discovery::{Trust, target::Namespace},
    };

    fn target(name: &str, inode: u64) -> DiscoveredTarget {
        DiscoveredTarget {
            name: name.to_owned(),
            kind: "pod",
            trust: Trust::Host,
            prefix: String::new(),
            namespace: Arc::new(Namespace {
                inode,
                is_host: false,
                is_roots: true,
                links: Vec::new(),
                mounts: Vec::new(),
            }),
            process: None,
            workload: None,
        }
    }

    #[test]
    fn known_is_what_may_be_captured_and_listed() {
        let alone = |name: &str| {
            let occupant = Occupant {
                name: name.to_owned(),
                is_self_chosen: false,
                is_pod: true,
            };
            Occupants::new([occupant], true)
        };
        let scan = Scan::of(
            vec![target("bank/db", 1), target("shop/web", 2)],
            [(1, alone("bank/db")), (2, alone("shop/web"))].into(),
        );
        let shop = || Extent::Pods(vec!["shop/*".parse().unwrap()]);
        for (discover, capture, expected) in [
            (
                Extent::Everything,
                Extent::Everything,
                &["bank/db", "shop/web"][..],
            ),
            (shop(), shop(), &["shop/web"]),
            (Extent::Everything, shop(), &["shop/web"]),
            (shop(), Extent::Everything, &["shop/web"]),
            // Who may list nothing asks for names that they know.
            (Extent::Nothing, Extent::Everything, &["bank/db", "shop/web"]),
        ] {
            let rights = Rights::new(discover, capture, false);
            let known: Vec<&str> = known(&scan, &rights).map(|target| &target.name[..]).collect();
            assert_eq!(known, expected, "{rights:?}");
        }
    }
}
