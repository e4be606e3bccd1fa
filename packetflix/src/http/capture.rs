//! `/capture`: from a handshake to a session that streams.

use std::{
    future::pending,
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use fastwebsockets::upgrade::{UpgradeFut, is_upgrade_request, upgrade};
use futures_util::future::OptionFuture;
use hyper::upgrade::OnUpgrade;
use tokio::{
    sync::watch,
    time::{Instant, sleep, timeout},
};
use tokio_util::{
    sync::CancellationToken,
    task::{AbortOnDropHandle, TaskTracker},
};
use tracing::Instrument as _;
use warp::{
    Reply,
    http::{HeaderMap, HeaderName, HeaderValue, Request, StatusCode},
    reply::Response,
};

use super::{
    answers::Answers,
    host::OwnNames,
    judge::Judge,
    origin::check_origin,
    own::Own,
    refusal::Refusal,
    refusal_log::RefusalLog,
    request::{CaptureRequest, RequestError, select},
    websocket,
};
use crate::{
    access::{Access, Followed, Rights},
    capture_end::CaptureEnd,
    captures::{Attempt, Audit, Capture, CaptureFacts, Captures, Found, RunningCapture},
    config::Config,
    description::TargetDescription,
    discovery::{DiscoveredTarget, Discovery, Scan},
    filter::compile::{Options, excerpt, has_names},
    line_bounds::{LineBounds, WINDOW},
    metrics::{Load, Metrics},
    netns::{FindError, Netns},
    resolve::{Directory, DiscoveryService, Target, TargetError},
    service::{Caller, ClientId, Permit, Permits},
    session::{
        CaptureKey, Feeds, Joined, KnownNames, Limits, MeantTarget, SEVERAL_LINK_TYPES, Session, SessionInfo,
    },
    sys,
    tap::{
        CaptureFilters, InterfaceSelection, LoadError, Loader, OwnTraffic, Tap, TapError, TapRequest,
        look_at_interfaces,
    },
};

/// How long the packets of a capture wait for the names of addresses.
const NAMES_TIMEOUT: Duration = Duration::from_millis(100);

/// How long a capture that is accounted for waits for what the discovery finds in its namespace.
const FOUND_TIMEOUT: Duration = Duration::from_secs(2);

/// After how long that is looked for where nobody waits for it. Captures that are over by then cost no look at the host.
const FOUND_AFTER: Duration = Duration::from_secs(1);

/// Lines of the account, in a while, for captures that are refused to one account of callers.
const ACCOUNTED_LINES: u64 = 50;

/// Header of an answer, for people: what there is to know of a capture that begins.
const NOTE: HeaderName = HeaderName::from_static("packetflix-note");

/// What all requests share.
pub(super) struct App {
    pub(super) config: Arc<Config>,
    /// What the service may be called.
    pub(super) names: OwnNames,
    /// Who may come in, and for what.
    pub(super) access: Arc<Access>,
    /// The TCP addresses that are listened at.
    pub(super) listening: Vec<SocketAddr>,
    /// What there is on this host.
    pub(super) discovery: Arc<Discovery>,
    /// Where targets are looked up.
    pub(super) directory: Directory,
    /// How filters are compiled.
    filters: Options,
    /// Connections and captures, to wait for at the end.
    pub(super) tasks: TaskTracker,
    /// Cancelled when the service shuts down.
    pub(super) stop: CancellationToken,
    /// Makes the kernel's part of captures.
    pub(super) loader: Arc<Loader>,
    /// Those that run.
    pub(super) captures: Arc<Captures>,
    pub(super) metrics: Arc<Metrics>,
    /// The files that are followed.
    files: Vec<Arc<dyn Followed>>,
    /// Accounts for captures.
    pub(super) audit: Arc<Audit>,
    /// Lines of the account for captures that are refused, of each account of callers.
    accounted: LineBounds<Arc<str>>,
    /// Tells of those who are refused.
    pub(super) refusals: RefusalLog,
    /// Lists of targets that are told.
    pub(super) answers: Answers,
    feeds: Feeds,
    permits: Arc<Permits>,
    next_id: AtomicU64,
}

/// Our end of a connection.
#[derive(Clone, Copy, Debug)]
pub(super) struct LocalEnd(pub(super) SocketAddr);

/// A request for a capture, as it came.
pub(super) struct Handshake {
    pub(super) query: String,
    pub(super) headers: HeaderMap,
    pub(super) on_upgrade: Option<OnUpgrade>,
    pub(super) peer: Option<SocketAddr>,
    pub(super) local: Option<LocalEnd>,
    /// Who asks, and what they may do.
    pub(super) caller: Caller,
}

/// What there is before the first request.
pub(super) struct Fixtures {
    pub(super) access: Arc<Access>,
    pub(super) listening: Vec<SocketAddr>,
    pub(super) files: Vec<Arc<dyn Followed>>,
    pub(super) metrics: Arc<Metrics>,
    pub(super) audit: Arc<Audit>,
    pub(super) tasks: TaskTracker,
    pub(super) stop: CancellationToken,
}

impl App {
    pub(super) fn new(config: Arc<Config>, fixtures: Fixtures) -> Self {
        let Fixtures {
            access,
            listening,
            files,
            metrics,
            audit,
            tasks,
            stop,
        } = fixtures;
        let permits = Permits::new(config.quotas);
        let discovery = Arc::new(Discovery::new(
            config.engine_sockets.clone(),
            config.node_name.clone(),
            Arc::clone(&metrics),
        ));
        let directory = match &config.discovery_service {
            Some(address) => Directory::Service(DiscoveryService::new(address.clone())),
            None => Directory::Own(Arc::clone(&discovery)),
        };
        let filters = Options {
            resolve_names: config.resolve_filter_names,
            ..Options::default()
        };
        Self {
            answers: Answers::new(),
            discovery,
            directory,
            filters,
            loader: Arc::new(Loader::new(config.tap.clone())),
            feeds: Feeds::new(tasks.clone(), Arc::clone(&metrics)),
            captures: Arc::new(Captures::new(Arc::clone(&metrics), Arc::clone(&audit))),
            files,
            audit,
            names: OwnNames::of_machine(&config.node_name, &config.allowed_hosts),
            metrics,
            refusals: RefusalLog::new(),
            accounted: LineBounds::new(ACCOUNTED_LINES),
            config,
            access,
            listening,
            tasks,
            stop,
            permits,
            next_id: AtomicU64::new(1),
        }
    }

    /// Logs, where lines are bounded, what had none since the last time.
    pub(super) fn tell_the_rest(&self) {
        self.refusals.tell_the_rest();
        for (account, count) in self.accounted.take_the_rest() {
            let account = account.as_deref().unwrap_or("others");
            self.audit.more_refused(account, count, WINDOW.as_secs());
        }
        self.discovery.tell_the_rest();
    }

    /// How filters are compiled on this account.
    pub(super) fn filters_for(&self, account: Arc<str>) -> Options {
        Options {
            account,
            ..self.filters.clone()
        }
    }

    /// What is in use at the moment.
    pub(super) fn load(&self) -> Load {
        let (ring_memory, ring_memory_limit) = self.loader.ring_memory();
        Load {
            captures: self.captures.count(),
            ring_memory,
            ring_memory_limit,
            files: self.files.iter().map(|files| files.age()).collect(),
        }
    }

    /// Why captures cannot begin, if so.
    pub(super) fn problem(&self) -> Option<String> {
        if self.stop.is_cancelled() {
            return Some("the service is shutting down".to_owned());
        }
        self.loader
            .problem()
            .or_else(|| self.discovery.problem())
            .or_else(|| self.audit.problem())
    }

    /// Starts a capture and answers the handshake, or says why not.
    pub(super) async fn capture(self: Arc<Self>, handshake: Handshake) -> Result<Response, Refusal> {
        let id = self.next_id.fetch_add(1, Ordering::Relaxed);
        let span = tracing::info_span!("capture", id);
        let mut attempt = Attempt {
            id,
            client: handshake.caller.facts(),
            target: TargetDescription::default(),
        };
        let (peer, account) = (handshake.caller.peer(), handshake.caller.account());
        let app = Arc::clone(&self);
        let started = app.start(handshake, &mut attempt, span.clone());
        let started = started.instrument(span.clone()).await;
        if let Err(refusal) = &started {
            let status = refusal.status.as_u16();
            span.in_scope(|| self.refusals.refused(peer, refusal));
            self.metrics.refused(status);
            if self.accounted.allow(&account) {
                self.audit.refused(&attempt, status, &refusal.sentence);
            }
        }
        started
    }

    async fn start(
        self: Arc<Self>,
        handshake: Handshake,
        attempt: &mut Attempt,
        span: tracing::Span,
    ) -> Result<Response, Refusal> {
        tracing::debug!(peer = ?handshake.caller.peer(), query = handshake.query, "asked for a capture");
        check_origin(&handshake.headers, &self.config.allowed_origins)?;
        handshake.caller.may_capture_something()?;
        let (mut switching, upgraded) = accept_upgrade(&handshake)?;
        let request = CaptureRequest::parse(&handshake.query, &handshake.headers)?;
        attempt.target.clone_from(&request.target);
        if let Some(problem) = self.audit.problem() {
            return Err(Refusal::new(StatusCode::SERVICE_UNAVAILABLE, problem));
        }
        let mut permit = self.permit(&handshake)?;

        let (rights, rights_by_now) = watch::channel(Arc::clone(handshake.caller.rights()));
        let names = request.names.then(|| self.names(rights_by_now));
        let target = self.open_target(request.target, &handshake.caller).await?;
        permit.name_target(target.netns.inode())?;
        let own = if request.with_own {
            Own::default()
        } else {
            Own::find(&handshake, target.netns.inode(), &self.listening, &self.names)
        };
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
            snaplen: request.snaplen,
            rates: self.config.tap.rates,
            limits: Limits {
                max_duration: self.config.max_duration,
                ..request.limits.clone()
            },
            statistics: request.statistics,
        };
        // Tomorrow, a name may be another's.
        let is_alone = own.is_claimed || (self.filters.resolve_names && has_names(&request.filter));
        let key = CaptureKey {
            netns: netns.inode(),
            selection,
            filter: request.filter.clone(),
            snaplen: request.snaplen,
            with_own: request.with_own,
            chaste: request.chaste,
            alone: is_alone.then_some(attempt.id),
        };
        let mut target = description.clone();
        if target.name.is_empty() {
            let (name, kind) = info.holder.clone();
            (target.name, target.kind) = (name, kind.to_owned());
        }
        let meant = meant_target(&mut netns, &target);
        let mut facts = CaptureFacts {
            id: attempt.id,
            tap: attempt.id,
            client: attempt.client.clone(),
            target,
            asked: attempt.target.clone(),
            netns: key.netns,
            selection: key.selection.clone(),
            filter: request.filter.clone(),
        };
        let stop = self.stop.child_token();
        // The namespace is held open, so that its number is nobody else's.
        let (opened, holder) = (Instant::now(), info.holder.clone());
        let accounted = OptionFuture::from(self.audit.is_kept().then(|| self.found(&facts, &holder, opened)));
        let (joined, found) = tokio::join!(
            self.join_or_begin(&info, facts.id, key, netns, own.traffic, &handshake.caller),
            accounted
        );
        let joined = joined?;
        facts.tap = joined.tap();
        if joined.has_several_link_types() {
            switching
                .headers_mut()
                .insert(NOTE, HeaderValue::from_static(SEVERAL_LINK_TYPES));
        }
        // Until it is sure that there is a stream, nothing has begun.
        let capture = self.captures.prepare(facts, stop.clone());
        if let Some(found) = found {
            capture.set_found(found);
        }
        let mut session = joined.stream(info, stop.clone(), Arc::clone(&capture))?;
        let running = self.captures.begin(capture)?;
        if let Some((names, first)) = names {
            session.tell_names(names, first);
        }
        if let Some(process) = meant {
            session.end_with(process);
        }
        tracing::info!(
            netns = session.netns(),
            name = description.full_name(),
            caller = handshake.caller.name(),
            "started"
        );

        let app = Arc::clone(&self);
        let caller = handshake.caller;
        let judge = Judge::new(
            Arc::clone(&self),
            caller,
            rights,
            session.netns(),
            description.pid,
            running.capture(),
        );
        let capture = running.capture();
        let streaming = async move {
            tokio::select! {
                () = Arc::clone(&app).stream(upgraded, session, running, stop, permit) => {}
                () = judge.watch() => {}
                () = app.tell_found(&capture, &holder, opened) => {}
            }
        };
        self.tasks.spawn(streaming.instrument(span));
        Ok(switching)
    }

    /// Opens the target, if the caller may capture it. What that is called is not the caller's to say: a caller whose
    /// captures are bound to patterns is judged by who is in the namespace that is open already, in a scan that began
    /// after that, so that its number cannot have passed to another.
    async fn open_target(&self, wanted: TargetDescription, caller: &Caller) -> Result<Target, Refusal> {
        let rights = caller.rights();
        if !rights.are_by_pattern() {
            let name = wanted.name.clone();
            let error = match Target::open(wanted, &self.directory, rights, &caller.account()).await {
                Ok(target) => return Ok(target),
                Err(unknown @ TargetError::Unknown { .. }) => self.stopped_or(unknown, name).await,
                Err(error) => error,
            };
            return Err(match rights.may_discover() {
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
        let opened = Target::open(wanted, &self.directory, rights, &caller.account()).await;
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

    /// What is to be said of a target that is unknown: its container may be there without running.
    async fn stopped_or(&self, unknown: TargetError, name: String) -> TargetError {
        if let Directory::Service(_) = self.directory {
            return unknown;
        }
        match self.discovery.state_at_rest(&name).await {
            Some(state) => TargetError::Stopped { name, state },
            None => unknown,
        }
    }

    /// Joins the capture if it runs, or begins it, with the number `id`, if the stream that `info` tells of has room for packets.
    async fn join_or_begin(
        &self,
        info: &SessionInfo<'_>,
        id: u64,
        key: CaptureKey,
        netns: Netns,
        own: OwnTraffic,
        caller: &Caller,
    ) -> Result<Joined, Refusal> {
        let slot = self.feeds.slot(key.clone()).await;
        if let Some(joined) = slot.join(&own).await {
            return Ok(joined);
        }
        let filters = CaptureFilters::build(&key.filter, &self.filters_for(caller.account()))
            .await
            .map_err(|error| about_filter(error.into(), &key.filter, None))?;
        if info.limits.bytes.is_some() {
            let interfaces = look_at_interfaces(&netns, &key.selection, &filters, &self.loader)?;
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
        let tap = Tap::open(&netns, request, &self.loader)
            .await
            .map_err(|error| match error {
                TapError::Load(LoadError::Program { .. }) => {
                    about_filter(error.into(), &key.filter, Some(instructions))
                }
                TapError::Load(LoadError::Filter(_)) => about_filter(error.into(), &key.filter, None),
                error => error.into(),
            })?;
        Ok(slot.begin(id, netns, tap, own))
    }

    /// What the discovery finds in the namespace that `facts` are of, which was open at `opened`. `holder` is who holds it, as
    /// far as the kernel tells.
    async fn found(&self, facts: &CaptureFacts, holder: &(String, &'static str), opened: Instant) -> Found {
        let mut found = Found {
            name: holder.0.clone(),
            kind: holder.1.to_owned(),
            ..Found::default()
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
    fn names(&self, rights: watch::Receiver<Arc<Rights>>) -> (KnownNames, AbortOnDropHandle<()>) {
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

    /// One more capture, if that many may run and the service does not end.
    fn permit(&self, handshake: &Handshake) -> Result<Permit, Refusal> {
        if self.stop.is_cancelled() {
            return Err(Refusal::new(
                StatusCode::SERVICE_UNAVAILABLE,
                "the service is shutting down",
            ));
        }
        let client = ClientId::new(handshake.peer.map(|peer| peer.ip()));
        let is_admin = handshake.caller.rights().may_administer();
        Ok(self
            .permits
            .permit(client, handshake.caller.account(), is_admin)?)
    }

    /// Streams to the client; the permit is given back when all is over.
    async fn stream(
        self: Arc<Self>,
        upgraded: UpgradeFut,
        session: Session,
        running: RunningCapture,
        stop: CancellationToken,
        permit: Permit,
    ) {
        match upgraded.await {
            Ok(socket) => websocket::serve(socket, session, running, stop, self.config.client_timeout).await,
            Err(error) => {
                tracing::info!(%error, "ended: the client left before the stream began");
                running.end(CaptureEnd::ClientGone, "it left before the stream began");
            }
        }
        drop(permit);
    }
}

/// What a caller is told who may capture some targets only, where a target could not be opened: nothing of others. Whether a
/// process is there that may not be looked at, the kernel tells us, and nobody else: what the scan lacks decides.
fn hidden(error: TargetError, caller: &Caller, asked: &str, scan: &Scan) -> Refusal {
    match error {
        // What becomes of a discovery service is the same for all targets.
        error @ (TargetError::Nothing | TargetError::Directory(_)) => error.into(),
        TargetError::Find(
            FindError::Denied { .. } | FindError::Exhausted { .. } | FindError::Incomplete { .. },
        )
        | TargetError::Busy
        | TargetError::CutOff => caller.is_unsure_of(asked).into(),
        TargetError::Unknown { .. } | TargetError::NotFoundAgain { .. } if scan.is_partial => {
            caller.is_unsure_of(asked).into()
        }
        TargetError::Unreadable(_) | TargetError::Stale(_) if scan.is_cut => {
            caller.is_unsure_of(asked).into()
        }
        TargetError::Unreadable(_)
        | TargetError::Find(FindError::NotFound { .. })
        | TargetError::Stale(_)
        | TargetError::NotFoundAgain { .. }
        | TargetError::Unknown { .. }
        | TargetError::Stopped { .. }
        | TargetError::Ambiguous { .. }
        | TargetError::Successor { .. }
        | TargetError::Ended { .. } => caller.has_no(asked).into(),
    }
}

/// What was meant by a name or a process, as far as the kernel can tell when it ends.
fn meant_target(netns: &mut Netns, target: &TargetDescription) -> Option<MeantTarget> {
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
) -> Result<InterfaceSelection, RequestError> {
    let listed = match select(target.interfaces.clone())? {
        InterfaceSelection::Named(names) => InterfaceSelection::Listed(names),
        all => all,
    };
    Ok(match asked {
        Some(asked) if asked.names().is_none() || asked.names() != listed.names() => asked,
        _ => listed,
    })
}

/// A refusal that may be owed to the filter: it names the expression, and how large that became.
fn about_filter(mut refusal: Refusal, expression: &str, instructions: Option<usize>) -> Refusal {
    let excerpt = excerpt(expression);
    if !expression.is_empty() && !refusal.sentence.contains(&*excerpt) {
        refusal.sentence = format!("filter \"{excerpt}\": {}", refusal.sentence);
    }
    if let Some(instructions) = instructions.filter(|_| !expression.is_empty()) {
        refusal.sentence = format!(
            "{} (the filter has {instructions} eBPF instructions)",
            refusal.sentence
        );
    }
    refusal
}

/// Checks the WebSocket handshake and prepares its answer.
fn accept_upgrade(handshake: &Handshake) -> Result<(Response, UpgradeFut), RequestError> {
    let mut request = Request::new(());
    *request.headers_mut() = handshake.headers.clone();
    if !is_upgrade_request(&request) {
        return Err(RequestError::NoUpgrade);
    }
    // Only a request of HTTP/1.1 can be upgraded.
    let on_upgrade = handshake.on_upgrade.clone().ok_or(RequestError::NoUpgrade)?;
    request.extensions_mut().insert(on_upgrade);
    let (response, upgraded) = upgrade(&mut request).map_err(|error| match error {
        fastwebsockets::WebSocketError::InvalidSecWebsocketVersion => RequestError::WebSocketVersion,
        _ => RequestError::NoWebSocketKey,
    })?;
    Ok((response.map(|_| "").into_response(), upgraded))
}
