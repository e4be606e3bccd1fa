//! From a request to a capture that runs.

use std::{future::pending, net::SocketAddr, sync::Arc, time::Duration};

use futures_util::future::OptionFuture;
use tokio::{
    sync::watch,
    time::{Instant, sleep, timeout},
};
use tokio_util::{sync::CancellationToken, task::AbortOnDropHandle};
use tracing::Instrument as _;

use super::{
    App, Caller, Peer, Permit, StartError, TooManyInterfaces,
    judge::Judge,
    own::{Claimed, Own},
    request::{CaptureRequest, select},
};
use crate::{
    access::Rights,
    captures::{Capture, CaptureFacts, FoundNames, RunningCapture},
    description::TargetDescription,
    discovery::{DiscoveredTarget, Scan},
    netns::{FindError, OpenNetns},
    resolve::{Target, TargetError},
    session::{
        CaptureKey, Joined, KnownNames, Limits, MeantTarget, Member, NamespacePlace, Progress, Session,
        SessionInfo,
    },
    sys,
    tap::{CaptureFilters, Cause, InterfaceSelection, OwnTraffic, Tap, TapRequest, look_at_interfaces},
};

/// How long the packets of a capture wait for the names of addresses.
const NAMES_TIMEOUT: Duration = Duration::from_millis(100);

/// How long a capture that is accounted for waits for what the discovery finds in its namespace.
const FOUND_TIMEOUT: Duration = Duration::from_secs(2);

/// After how long that is looked for where nobody waits for it. Captures that are over by then cost no look at the host.
const FOUND_AFTER: Duration = Duration::from_secs(1);

/// Who asks for a capture, and from where.
#[derive(Clone, Debug)]
pub(crate) struct Asker {
    pub(crate) caller: Caller,
    /// Where the service listens.
    pub(crate) listening: Arc<[SocketAddr]>,
    pub(crate) claimed: Option<Claimed>,
}

/// The stream that a capture is a part of.
#[derive(Clone, Debug)]
pub(super) struct Within {
    /// Its number.
    pub(super) stream: u64,
    /// Ends it.
    pub(super) stop: CancellationToken,
}

/// A namespace that is captured, of which nothing is told yet.
struct Begun {
    joined: Joined,
    /// Who holds it.
    holder: (String, &'static str),
    /// When it was open.
    opened: Instant,
}

/// A namespace that is captured before it is known whose it is.
pub(super) struct Held {
    id: u64,
    netns: u64,
    selection: InterfaceSelection,
    left_out: String,
    begun: Begun,
}

impl Held {
    /// Number of the capture.
    pub(super) fn id(&self) -> u64 {
        self.id
    }

    /// Inode number of the namespace.
    pub(super) fn netns(&self) -> u64 {
        self.netns
    }

    /// How far what was captured is behind what is told of it, which is nothing.
    pub(super) fn progress(&self) -> Progress {
        self.begun.joined.progress()
    }

    /// When it was open.
    pub(super) fn opened(&self) -> Instant {
        self.begun.opened
    }
}

/// A capture that runs, and whose packets wait for their client.
pub(crate) struct Started {
    session: Session,
    running: RunningCapture,
    judge: Judge,
    app: Arc<App>,
    holder: (String, &'static str),
    opened: Instant,
    stop: CancellationToken,
    permit: Permit,
    /// Its interfaces have several link types.
    pub(crate) has_several_link_types: bool,
}

impl Started {
    /// Lets `deliver` hand it to its client, for as long as that may have it. The place among the captures that may run is
    /// given back when all is over.
    pub(crate) async fn deliver<D: Future<Output = ()>>(
        self,
        deliver: impl FnOnce(Session, RunningCapture, CancellationToken) -> D,
    ) {
        let Self {
            session,
            running,
            judge,
            app,
            holder,
            opened,
            stop,
            permit,
            has_several_link_types: _,
        } = self;
        let capture = running.capture();
        tokio::select! {
            () = deliver(session, running, stop) => {}
            () = judge.watch() => {}
            () = app.tell_found(&capture, &holder, opened) => {}
        }
        drop(permit);
    }

    /// Makes it one of the captures of a stream, in which its namespace has this place.
    pub(super) fn join(self, place: NamespacePlace, span: tracing::Span) -> Member {
        let Self {
            session,
            running,
            judge,
            app,
            holder,
            opened,
            permit,
            ..
        } = self;
        let capture = running.capture();
        let watched = async move {
            tokio::select! {
                () = judge.watch() => {}
                () = app.tell_found(&capture, &holder, opened) => {}
            }
            drop(permit);
        };
        let watched = tokio::spawn(watched.instrument(span.clone()));
        Member {
            session,
            running,
            companion: Box::new(AbortOnDropHandle::new(watched)),
            place,
            span,
        }
    }
}

impl App {
    /// Starts the capture number `id`.
    ///
    /// # Errors
    /// When there is none; nothing of it is left then.
    pub(crate) async fn start(
        self: &Arc<Self>,
        id: u64,
        request: CaptureRequest,
        asker: Asker,
    ) -> Result<Started, StartError> {
        self.check_account()?;
        let permit = self.permit(&asker.caller)?;
        let (rights, rights_by_now) = watch::channel(Arc::clone(asker.caller.rights()));
        let names = request.names.then(|| self.names(rights_by_now));
        let target = self.open_target(request.target.clone(), &asker.caller).await?;
        let mut started = self
            .begin(id, request, asker, target, permit, rights, None)
            .await?;
        if let Some((names, first)) = names {
            started.session.tell_names(names, first);
        }
        Ok(started)
    }

    /// Begins to capture a namespace that is open, as number `id`; what the caller may do by now goes to `rights`.
    #[expect(clippy::too_many_arguments, reason = "each is another thing")]
    pub(super) async fn begin(
        self: &Arc<Self>,
        id: u64,
        request: CaptureRequest,
        asker: Asker,
        target: Target,
        mut permit: Permit,
        rights: watch::Sender<Arc<Rights>>,
        within: Option<&Within>,
    ) -> Result<Started, StartError> {
        permit.name_target(target.netns.inode())?;
        let own = self.own(target.netns.inode(), &request, &asker);
        let (asked, caller) = (request.target, asker.caller);
        let Target {
            mut netns,
            mut description,
        } = target;
        let selection = as_wished(request.selection, &description)?;
        if description.images.is_empty() {
            description.images = self
                .discovery
                .known_images(netns.inode(), &description.full_name());
        }
        let info = SessionInfo {
            netns: netns.inode(),
            holder: netns.name_and_type(),
            description: &description,
            node_name: &self.config.node_name,
            chaste: request.chaste,
            filter: &request.filter,
            left_out: &own.comment,
            is_one_of_several: within.is_some(),
            snaplen: request.snaplen,
            rates: self.config.tap.rates,
            limits: Limits {
                max_duration: self.frontend.config.max_duration,
                ..request.limits.clone()
            },
            statistics: request.statistics,
        };
        // Tomorrow, a name may be another's.
        let is_alone = own.is_claimed || self.compiler.looks_names_up_in(&request.filter);
        let key = CaptureKey {
            netns: netns.inode(),
            selection,
            filter: request.filter.clone(),
            snaplen: request.snaplen,
            with_own: request.with_own,
            chaste: request.chaste,
            alone: is_alone.then_some(id),
        };
        let target = named(&description, &info.holder);
        let meant = meant_target(&mut netns, &target);
        let facts = CaptureFacts {
            id,
            tap: id,
            stream: within.map(|within| within.stream),
            client: caller.facts(),
            target,
            asked,
            netns: key.netns,
            selection: key.selection.clone(),
            filter: request.filter.clone(),
        };
        // The namespace is held open, so that its number is nobody else's.
        let (opened, holder) = (Instant::now(), info.holder.clone());
        let accounted = OptionFuture::from(self.audit.is_kept().then(|| self.found(&facts, &holder, opened)));
        let (joined, found) = tokio::join!(
            self.join_or_begin(Some(&info), facts.id, key, netns, own.traffic, &caller),
            accounted
        );
        let joined = joined?;
        let begun = Begun {
            joined,
            holder,
            opened,
        };
        self.go(begun, permit, facts, found, &info, meant, caller, rights, within)
    }

    /// What of the traffic in a namespace is the service's own.
    fn own(&self, netns: u64, request: &CaptureRequest, asker: &Asker) -> Own {
        if request.with_own {
            return Own::default();
        }
        let peer = asker.caller.peer().and_then(Peer::address);
        Own::find(netns, &asker.listening, peer, asker.claimed)
    }

    /// Begins to capture a namespace before it is known what is in it.
    pub(super) async fn hold(
        &self,
        id: u64,
        request: &CaptureRequest,
        asker: &Asker,
        netns: OpenNetns,
    ) -> Result<Held, StartError> {
        let own = self.own(netns.inode(), request, asker);
        let is_alone = own.is_claimed || self.compiler.looks_names_up_in(&request.filter);
        let selection = request.selection.clone().map(InterfaceSelection::into_coming);
        let selection = selection.unwrap_or(InterfaceSelection::All);
        let key = CaptureKey {
            netns: netns.inode(),
            selection: selection.clone(),
            filter: request.filter.clone(),
            snaplen: request.snaplen,
            with_own: request.with_own,
            chaste: request.chaste,
            alone: is_alone.then_some(id),
        };
        let (inode, holder, opened) = (netns.inode(), netns.name_and_type(), Instant::now());
        let joined = self
            .join_or_begin(None, id, key, netns, own.traffic, &asker.caller)
            .await?;
        Ok(Held {
            id,
            netns: inode,
            selection,
            left_out: own.comment,
            begun: Begun {
                joined,
                holder,
                opened,
            },
        })
    }

    /// What was held is a target's: its capture goes on as such.
    pub(super) fn release(
        self: &Arc<Self>,
        held: Held,
        request: &CaptureRequest,
        asker: &Asker,
        description: &TargetDescription,
        rights: watch::Sender<Arc<Rights>>,
        within: &Within,
    ) -> Result<Started, StartError> {
        let mut permit = self.permit(&asker.caller)?;
        permit.name_target(held.netns)?;
        let Held {
            id,
            netns,
            selection,
            left_out,
            begun,
        } = held;
        let info = SessionInfo {
            netns,
            holder: begun.holder.clone(),
            description,
            node_name: &self.config.node_name,
            chaste: request.chaste,
            filter: &request.filter,
            left_out: &left_out,
            is_one_of_several: true,
            snaplen: request.snaplen,
            rates: self.config.tap.rates,
            limits: Limits::default(),
            statistics: request.statistics,
        };
        let facts = CaptureFacts {
            id,
            tap: id,
            stream: Some(within.stream),
            client: asker.caller.facts(),
            target: named(description, &begun.holder),
            asked: TargetDescription::default(),
            netns,
            selection,
            filter: request.filter.clone(),
        };
        let caller = asker.caller.clone();
        self.go(
            begun,
            permit,
            facts,
            None,
            &info,
            None,
            caller,
            rights,
            Some(within),
        )
    }

    /// The capture of a namespace is one of a target from now on.
    #[expect(clippy::too_many_arguments, reason = "each is another thing")]
    fn go(
        self: &Arc<Self>,
        begun: Begun,
        permit: Permit,
        mut facts: CaptureFacts,
        found: Option<FoundNames>,
        info: &SessionInfo<'_>,
        meant: Option<MeantTarget>,
        caller: Caller,
        rights: watch::Sender<Arc<Rights>>,
        within: Option<&Within>,
    ) -> Result<Started, StartError> {
        let Begun {
            joined,
            holder,
            opened,
        } = begun;
        let description = info.description;
        let stop = within.map_or(&self.stop, |within| &within.stop).child_token();
        facts.tap = joined.tap();
        let has_several_link_types = joined.has_several_link_types();
        // Until it is sure that there is a stream, nothing has begun.
        let capture = self.captures.prepare(facts, stop.clone());
        if let Some(found) = found {
            capture.set_found(found);
        }
        let mut session = joined.stream(info, stop.clone(), Arc::clone(&capture))?;
        let running = self.captures.begin(capture)?;
        if let Some(process) = meant {
            session.end_with(process);
        }
        tracing::info!(
            netns = session.netns(),
            name = description.full_name(),
            caller = caller.name(),
            caller_type = caller.kind(),
            "started"
        );

        let judge = Judge::new(
            Arc::clone(self),
            caller,
            rights,
            session.netns(),
            description.pid,
            running.capture(),
        );
        Ok(Started {
            session,
            running,
            judge,
            app: Arc::clone(self),
            holder,
            opened,
            stop,
            permit,
            has_several_link_types,
        })
    }

    /// Opens the target, if the caller may capture it. What that is called is not the caller's to say: a caller whose
    /// captures are bound to patterns is judged by who is in the namespace that is open already, in a scan that began
    /// after that, so that its number cannot have passed to another.
    pub(super) async fn open_target(
        &self,
        wanted: TargetDescription,
        caller: &Caller,
    ) -> Result<Target, StartError> {
        let rights = caller.rights();
        let wanted = wanted.spelled_out();
        if !rights.are_by_pattern() {
            let opened = self.resolver.open(wanted, rights, &caller.account()).await;
            return opened.map_err(|error| match rights.may_discover_all() {
                true => error.into(),
                false => error.without_others().into(),
            });
        }
        let name = wanted.full_name();
        let asked = match (&name[..], wanted.netns, wanted.pid) {
            ("", Some(netns), _) => format!("network namespace {netns}"),
            ("", None, Some(pid)) => format!("process {pid}"),
            ("", None, None) => return Err(TargetError::Nothing.into()),
            (name, ..) => format!("target {name}"),
        };
        if !name.is_empty() {
            caller.may_ask_for(&name, &asked)?;
        }
        // Before it is searched for: how long that takes would tell whether it is there.
        if let Some(netns) = wanted.netns_alone() {
            let scan = self.discovery.scan_now().await?;
            if scan.is_cut {
                return Err(caller.is_unsure_of(&asked).into());
            }
            caller.may_capture(scan.occupants(netns), &asked)?;
        }
        let opened = self.resolver.open(wanted, rights, &caller.account()).await;
        let scan = self.discovery.scan_now().await?;
        let target = opened.map_err(|error| hidden(error, caller, &asked, &scan))?;
        let netns = target.netns.inode();
        let allowed = caller.may_capture(scan.occupants(netns), &asked);
        // What is not theirs is refused as what is not there.
        if scan.have_left(netns) || (allowed.is_err() && scan.is_cut) {
            return Err(caller.is_unsure_of(&asked).into());
        }
        allowed?;
        Ok(target)
    }

    /// Joins the capture if it runs, or begins it, with the number `id`, if the stream that `info` tells of has room for packets.
    async fn join_or_begin(
        &self,
        info: Option<&SessionInfo<'_>>,
        id: u64,
        key: CaptureKey,
        netns: OpenNetns,
        own: OwnTraffic,
        caller: &Caller,
    ) -> Result<Joined, StartError> {
        let slot = self.feeds.slot(key.clone()).await;
        if let Some(joined) = slot.join(&own).await {
            return Ok(joined);
        }
        let filters = CaptureFilters::build(&key.filter, &self.compiler, &caller.account())
            .await
            .map_err(|error| StartError::Filter(error).about_filter(&key.filter, None))?;
        if let Some(info) = info.filter(|info| info.limits.bytes.is_some()) {
            let interfaces = look_at_interfaces(&netns, &key.selection, &filters)?;
            info.check_interfaces(interfaces)?;
        }
        let instructions = filters.instructions();
        let request = TapRequest {
            selection: key.selection,
            filters,
            own: own.clone(),
            snaplen: key.snaplen,
            promiscuous: !key.chaste,
            is_admin: caller.rights().may_administer(),
        };
        let tap = Tap::open(&netns, request, self.taps.ahead())
            .await
            .map_err(|error| match error.cause() {
                Some(Cause::Program) => StartError::Tap(error).about_filter(&key.filter, Some(instructions)),
                Some(Cause::Filter) => StartError::Tap(error).about_filter(&key.filter, None),
                _ => error.into(),
            })?;
        Ok(slot.begin(id, netns, tap, own))
    }

    /// What the discovery finds in the namespace that `facts` are of, which was open at `opened`. `holder` is who holds it, as
    /// far as the kernel tells.
    async fn found(
        &self,
        facts: &CaptureFacts,
        holder: &(String, &'static str),
        opened: Instant,
    ) -> FoundNames {
        let mut found = FoundNames {
            name: holder.0.clone(),
            kind: holder.1.to_owned(),
            ..FoundNames::default()
        };
        let Ok(Ok(scan)) = timeout(FOUND_TIMEOUT, self.discovery.since(opened)).await else {
            tracing::debug!("what is captured is told without the names that the discovery has");
            return found;
        };
        let there: Vec<&DiscoveredTarget> = scan.targets_in(facts.netns).collect();
        found.names = there.iter().map(|target| target.full_name()).collect();
        let asked = facts.asked.full_name();
        let is_meant = |target: &&&DiscoveredTarget| {
            let process = target.process.map(|process| process.pid);
            target.full_name() == asked || (process.is_some() && process == facts.asked.pid)
        };
        if let Some(target) = there.iter().find(is_meant).or_else(|| there.first()) {
            found.name.clone_from(&target.name);
            target.kind.clone_into(&mut found.kind);
            found.prefix.clone_from(&target.prefix);
        }
        found
    }

    /// Logs what the discovery finds in the namespace of a capture, whatever its client calls it. Never ends.
    async fn tell_found(&self, capture: &Capture, holder: &(String, &'static str), opened: Instant) {
        if capture.found().is_none() {
            sleep(FOUND_AFTER).await;
            capture.set_found(self.found(capture.facts(), holder, opened).await);
        }
        if let Some(found) = capture.found() {
            tracing::info!(
                name = found.name,
                kind = found.kind,
                prefix = found.prefix,
                names = found.first_names().collect::<Vec<_>>().join(", "),
                "found there"
            );
        }
        pending::<()>().await;
    }

    /// The names of addresses, and how they change. Looking for them begins at once, while the capture is set up; its
    /// packets do not wait for them much longer: whatever comes later is told later.
    pub(super) fn names(&self, rights: watch::Receiver<Arc<Rights>>) -> (KnownNames, AbortOnDropHandle<()>) {
        let discovery = Arc::clone(&self.discovery);
        let names = discovery.addresses();
        let first = async move {
            if timeout(NAMES_TIMEOUT, discovery.recent()).await.is_err() {
                tracing::debug!("the names of addresses will be told later");
            }
        };
        let first = AbortOnDropHandle::new(tokio::spawn(first.in_current_span()));
        (KnownNames { names, rights }, first)
    }
}

/// What a caller is told who may capture some targets only, where a target could not be opened: nothing of others. Whether a
/// process is there that may not be looked at, the kernel tells us, and nobody else: what the scan lacks decides.
fn hidden(error: TargetError, caller: &Caller, asked: &str, scan: &Scan) -> StartError {
    match error {
        // What becomes of a discovery service is the same for all targets.
        error @ (TargetError::Nothing | TargetError::Directory(_)) => error.into(),
        TargetError::Find(
            FindError::Denied { .. }
            | FindError::Exhausted { .. }
            | FindError::Incomplete { .. }
            | FindError::Broken(_),
        )
        | TargetError::Busy
        | TargetError::CutOff => caller.is_unsure_of(asked).into(),
        TargetError::Unknown { .. } | TargetError::NotFoundAgain { .. } if scan.is_partial => {
            caller.is_unsure_of(asked).into()
        }
        TargetError::Unreadable(_) | TargetError::Stale(_) | TargetError::NoProcess { .. } if scan.is_cut => {
            caller.is_unsure_of(asked).into()
        }
        TargetError::Unreadable(_)
        | TargetError::Find(FindError::NotFound { .. })
        | TargetError::Stale(_)
        | TargetError::NoProcess { .. }
        | TargetError::NotFoundAgain { .. }
        | TargetError::Unknown { .. }
        | TargetError::Stopped { .. }
        | TargetError::Ambiguous { .. }
        | TargetError::Successor { .. }
        | TargetError::Ended { .. } => caller.has_no(asked).into(),
    }
}

/// A description, with the name of who holds the namespace where it has none.
fn named(description: &TargetDescription, holder: &(String, &'static str)) -> TargetDescription {
    let mut target = description.clone();
    if target.name.is_empty() {
        let (name, kind) = holder.clone();
        (target.name, target.kind) = (name, kind.to_owned());
    }
    target
}

/// What was meant by a name or a process, as far as the kernel can tell when it ends.
fn meant_target(netns: &mut OpenNetns, target: &TargetDescription) -> Option<MeantTarget> {
    let process = sys::watch(netns.take_process()?);
    let process = process.inspect_err(|error| tracing::warn!(%error, "the target's end is not noticed"));
    Some(MeantTarget {
        name: target.full_name(),
        process: process.ok()?,
    })
}

/// Which interfaces are wanted. The list that a request has of its target's interfaces says what its client knew of them,
/// and so does `nif`, where a client just hands that list back.
fn as_wished(
    asked: Option<InterfaceSelection>,
    target: &TargetDescription,
) -> Result<InterfaceSelection, TooManyInterfaces> {
    let listed = match select(target.interfaces.clone())? {
        InterfaceSelection::Named(names) => InterfaceSelection::Listed(names),
        all => all,
    };
    Ok(match asked {
        Some(asked) if asked.names().is_none() || asked.names() != listed.names() => asked,
        _ => listed,
    })
}
