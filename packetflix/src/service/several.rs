//! Streams of several targets: which these are when a stream begins, and which join it while it runs.
//!
//! A namespace of several targets is captured once. What a word means that means one target is decided as where it is asked
//! for alone; what a pattern means, a scan says that began after the request came. Whoever may capture some targets only is
//! told of none that a pattern means beside those.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use futures_util::{StreamExt as _, stream};
use tokio::{
    sync::watch,
    time::{MissedTickBehavior, interval},
};
use tokio_util::{sync::CancellationToken, task::AbortOnDropHandle};
use tracing::Instrument as _;

use super::{App, Asker, CaptureRequest, Permit, Several, StartError, start::Within};
use crate::{
    access::{Rights, Verdict},
    description::TargetDescription,
    discovery::{DiscoveredTarget, Scan},
    error::chain,
    resolve::Selection,
    session::{Arrivals, Limits, Member, MergedInfo, MergedSession, Namespaces},
    tap::InterfaceSelection,
};

/// How many captures of a stream are begun at the same time.
const AT_ONCE: usize = 8;

/// How often it is looked whether a caller would still be let in.
const RENEWAL: Duration = Duration::from_secs(1);

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
    pub(super) asker: Asker,
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
        let selection = Selection::parse(&several.words, caller.rights())?;
        let has_patterns = !several.words.is_empty() && selection.has_patterns();
        let follows = several.follow.unwrap_or(has_patterns);
        let may_wait = follows || several.wait;
        // What waits for targets takes a place as those do.
        let permit = may_wait.then(|| self.permit(&caller)).transpose()?;
        let stop = self.stop.child_token();
        let (rights, rights_by_now) = watch::channel(Arc::clone(caller.rights()));
        let names = request.names.then(|| self.names(rights_by_now));
        let limits = Limits {
            max_duration: self.config.max_duration,
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
            asker,
            selection,
            within: Within {
                stream: id,
                stop: stop.clone(),
            },
            namespaces: Namespaces::default(),
        };

        let scan = self.discovery.scan_now().await?;
        let wanted = common.wanted(&several.described, &scan, has_patterns);
        let (members, failed) = common.start_all(wanted).await;
        let failed = judge_failures(failed, members.is_empty(), several.wait)?;
        let words = words(&several);
        if members.is_empty() && !several.wait {
            let looked_at = common.known(&scan).count();
            return Err(StartError::NothingSelected { words, looked_at });
        }

        let info = MergedInfo {
            words: &words,
            node_name: &self.config.node_name,
            filter: &request.filter,
            chaste: request.chaste,
            limits,
        };
        let running = self.captures.begin_stream(id, stop.clone());
        let (mut session, arrivals) = MergedSession::begin(&info, running, stop.clone())?;
        if let Some((names, first)) = names {
            session.tell_names(names, first);
        }
        let targets = members.len();
        for member in members {
            session.join(member);
        }
        for (name, sentence) in sentences(failed) {
            session.tell(&name, &sentence);
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
    /// The targets that its caller may know of.
    pub(super) fn known<'a>(&self, scan: &'a Scan) -> impl Iterator<Item = &'a DiscoveredTarget> {
        let rights = Arc::clone(self.asker.caller.rights());
        scan.targets.iter().filter(move |target| {
            let occupants = scan.occupants(target.namespace.inode);
            let are_theirs = |occupants| rights.may_capture(occupants) == Verdict::Allowed;
            !rights.are_by_pattern() || occupants.is_some_and(are_theirs)
        })
    }

    /// What a stream begins with: what is described, what single words mean, and what patterns mean in a scan.
    fn wanted(&self, described: &[TargetDescription], scan: &Scan, has_patterns: bool) -> Vec<Wanted> {
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
            wanted.extend(self.new_in(scan, |target| self.selection.has_by_pattern(target)));
        }
        wanted
    }

    /// Targets of a scan that are selected, one for each namespace that is not captured yet.
    pub(super) fn new_in(&self, scan: &Scan, is_selected: impl Fn(&DiscoveredTarget) -> bool) -> Vec<Wanted> {
        let mut by_namespace: BTreeMap<u64, &DiscoveredTarget> = BTreeMap::new();
        for target in self.known(scan) {
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

    /// Begins to capture all of these, some at a time.
    pub(super) async fn start_all(&self, wanted: Vec<Wanted>) -> (Vec<Member>, Vec<Failed>) {
        let (mut members, mut failed) = (Vec::new(), Vec::new());
        let starts = wanted.into_iter().map(|wanted| self.start(wanted));
        let mut starts = stream::iter(starts).buffered(AT_ONCE);
        while let Some(started) = starts.next().await {
            match started {
                Ok(member) => members.extend(member),
                Err(error) => failed.push(error),
            }
        }
        (members, failed)
    }

    /// Begins to capture a target; nothing where its namespace is captured already.
    async fn start(&self, wanted: Wanted) -> Result<Option<Member>, Failed> {
        let Wanted { target, is_single } = wanted;
        let (name, netns) = (shown(&target), target.netns);
        let id = self.app.next_id();
        let span = tracing::info_span!("capture", id, stream = self.within.stream);
        let started = self.start_one(id, target, span.clone()).instrument(span);
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
        span: tracing::Span,
    ) -> Result<Option<Member>, StartError> {
        let caller = &self.asker.caller;
        let permit = self.app.permit(caller)?;
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
        let target = self.app.open_target(target, caller).await?;
        let Some(place) = self.namespaces.enter(target.netns.inode()) else {
            return Ok(None);
        };
        // What its judge finds out, the stream finds out itself.
        let (rights, _) = watch::channel(Arc::clone(caller.rights()));
        let asker = self.asker.clone();
        let begun = self
            .app
            .begin(id, request, asker, target, permit, rights, Some(&self.within));
        Ok(Some(begun.await?.join(place, span)))
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
                () = self.renew(&rights) => return,
                () = self.follow(&arrivals, follows) => {}
            }
        }
        // Nothing joins any more: the stream ends with its last capture.
        drop(arrivals);
        self.renew(&rights).await;
    }

    /// Looks again and again what the caller may do; ends when they would not be let in any more.
    async fn renew(&self, rights: &watch::Sender<Arc<Rights>>) {
        let mut looks = interval(RENEWAL);
        looks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut caller = self.asker.caller.clone();
        loop {
            looks.tick().await;
            match caller.renew(&self.app.access) {
                Ok(renewed) => caller = renewed,
                Err(error) => {
                    tracing::info!(error = %chain(&error), "nothing joins the stream any more");
                    return;
                }
            }
            rights.send_if_modified(|known| {
                let is_new = known != caller.rights();
                *known = Arc::clone(caller.rights());
                is_new
            });
        }
    }
}

impl Failed {
    /// Whether its caller is not even to know that it is there.
    pub(super) fn is_hidden(&self) -> bool {
        matches!(self.error, StartError::Hidden(_)) && !self.is_single
    }
}

/// Which of the captures that could not begin are told in the stream.
///
/// # Errors
/// Why there is no stream: one that was meant alone is not there, or none could begin at all.
fn judge_failures(failed: Vec<Failed>, are_all: bool, may_wait: bool) -> Result<Vec<Failed>, StartError> {
    let is_bound = |error: &StartError| matches!(error, StartError::Quota(_));
    let is_absent = |error: &StartError| matches!(error, StartError::Target(_) | StartError::Hidden(_));
    let mut told = Vec::new();
    for one in failed {
        let is_awaited = may_wait && is_absent(&one.error);
        if one.is_hidden() || is_awaited {
            continue;
        }
        let is_fatal = one.is_single && !is_bound(&one.error);
        if is_fatal || matches!(one.error, StartError::AboutFilter { .. } | StartError::Filter(_)) {
            return Err(one.error);
        }
        told.push(one);
    }
    match (are_all, told.is_empty()) {
        (true, false) => Err(told.swap_remove(0).error),
        _ => Ok(told),
    }
}

/// Names of what is not captured, each with a sentence on why; one for all that are beyond the same bound.
pub(super) fn sentences(failed: Vec<Failed>) -> Vec<(String, String)> {
    let mut by_reason: BTreeMap<String, Vec<String>> = BTreeMap::new();
    for Failed { name, error, .. } in failed {
        by_reason.entry(chain(&error)).or_default().push(name);
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
