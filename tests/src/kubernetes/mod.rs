//! A scripted API server of Kubernetes, as far as it is asked for reviews, and for objects.
//!
//! Source: the public API's `authentication.k8s.io/v1` (TokenReview) and `authorization.k8s.io/v1` (SubjectAccessReview).

mod forward;
mod objects;

use std::{
    collections::BTreeMap,
    io::{BufReader, Write},
    net::{TcpListener, TcpStream},
    sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, bail};
use serde_json::{Value, json};
use tokio::io::copy_bidirectional;
use tokio_rustls::{
    TlsAcceptor,
    rustls::{
        ServerConfig,
        crypto::ring,
        pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject as _},
    },
};

use self::objects::{Objects, Which};
use crate::{
    certificates::Identity,
    http::{Body, Head},
};

/// The token that whoever asks for reviews has to show.
pub const OWN_TOKEN: &str = "own-0123456789abcdef";

/// The server, on a port of its own. Its threads end with the test.
pub struct ApiServer {
    port: u16,
    shared: Arc<Shared>,
}

/// What its threads share.
#[derive(Default)]
struct Shared {
    state: Mutex<State>,
    /// Told when objects change, or what is done with requests.
    changed: Condvar,
}

/// What it knows.
#[derive(Default)]
struct State {
    /// Users by their tokens.
    users: BTreeMap<String, String>,
    /// What users may do.
    rules: Vec<Rule>,
    is_down: bool,
    /// How often all watches were ended.
    ended_watches: u64,
    /// What was asked, as it came.
    asked: Vec<Value>,
    /// The first lines of requests.
    lines: Vec<String>,
    objects: Objects,
    /// Ports of this host by namespaces and names of pods.
    forwards: BTreeMap<(String, String), u16>,
    /// What is answered to requests whose first line has such a word, before all else.
    answers: Vec<(String, u16, String)>,
    /// What watches tell in the place of what changes, and whether they end then.
    watches: Option<(Arc<[String]>, bool)>,
    /// Connections that are forwarded.
    forwarded: Vec<TcpStream>,
}

/// What a user may do: `verb` with `resource` below a namespace, with one of this name. Empty is any.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rule {
    /// The user.
    pub user: &'static str,
    /// Such as `create`.
    pub verb: &'static str,
    /// Such as `pods`.
    pub resource: &'static str,
    /// Of pods.
    pub namespace: &'static str,
    /// Of the pod or node.
    pub name: &'static str,
}

impl ApiServer {
    /// Starts it, in TLS if it has a certificate.
    ///
    /// # Errors
    /// When there is no port, or the certificate cannot be used.
    pub fn start(identity: Option<&Identity>) -> anyhow::Result<Self> {
        let config = identity.map(tls).transpose()?.map(Arc::new);
        let listener = TcpListener::bind("127.0.0.1:0")?;
        let port = listener.local_addr()?.port();
        let shared = Arc::new(Shared::default());
        let of_threads = Arc::clone(&shared);
        thread::spawn(move || {
            for stream in listener.incoming().map_while(Result::ok) {
                let (shared, config) = (Arc::clone(&of_threads), config.clone());
                thread::spawn(move || serve(stream, config, &shared));
            }
        });
        Ok(Self { port, shared })
    }

    /// Its port.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// A token is this user's from now on.
    pub fn let_in(&self, token: &str, user: &str) {
        self.state().users.insert(token.to_owned(), user.to_owned());
    }

    /// A token is nobody's any more.
    pub fn revoke(&self, token: &str) {
        self.state().users.remove(token);
    }

    /// These are all rules from now on.
    pub fn set_rules(&self, rules: &[Rule]) {
        self.state().rules = rules.to_vec();
    }

    /// Whether it answers with errors alone; watches end then.
    pub fn set_down(&self, is_down: bool) {
        let mut state = self.state();
        state.is_down = is_down;
        state.ended_watches += 1;
        self.shared.changed.notify_all();
    }

    /// Puts an object there, such as one of `pods`, or in the place of that of its name.
    pub fn put(&self, resource: &str, object: Value) {
        self.state().objects.put(resource, object);
        self.shared.changed.notify_all();
    }

    /// Whoever forwards a port to this pod reaches this port of this host.
    pub fn forward(&self, namespace: &str, pod: &str, port: u16) {
        let pod = (namespace.to_owned(), pod.to_owned());
        self.state().forwards.insert(pod, port);
    }

    /// Refuses requests whose first line has this word.
    pub fn refuse(&self, word: &str, code: u16, message: &str) {
        self.answer_with(word, code, &status(code, message).to_string());
    }

    /// Answers so to requests whose first line has this word, before all else.
    pub fn answer_with(&self, word: &str, code: u16, body: &str) {
        self.state()
            .answers
            .push((word.to_owned(), code, body.to_owned()));
    }

    /// Answers as it did before it was told to do otherwise.
    pub fn answer_as_usual(&self) {
        let mut state = self.state();
        state.answers.clear();
        state.watches = None;
        state.ended_watches += 1;
        self.shared.changed.notify_all();
    }

    /// Has watches tell this, as it stands, and then end, or tell nothing more.
    pub fn answer_watches_with(&self, lines: Vec<String>, end: bool) {
        self.state().watches = Some((lines.into(), end));
    }

    /// Breaks all connections that are forwarded, as where it is killed.
    pub fn cut(&self) {
        for stream in self.state().forwarded.drain(..) {
            // It may have ended.
            let _ = stream.shutdown(std::net::Shutdown::Both);
        }
    }

    /// Takes an object away.
    pub fn remove(&self, resource: &str, namespace: &str, name: &str) {
        self.state().objects.remove(resource, namespace, name);
        self.shared.changed.notify_all();
    }

    /// Forgets what was, as an API server does after minutes: watches are told that they are too old.
    pub fn forget(&self) {
        self.state().objects.forget();
        self.shared.changed.notify_all();
    }

    /// Ends all watches, as load balancers do.
    pub fn end_watches(&self) {
        self.state().ended_watches += 1;
        self.shared.changed.notify_all();
    }

    /// The first lines of all requests so far.
    pub fn lines(&self) -> Vec<String> {
        self.state().lines.clone()
    }

    /// All that was asked so far.
    pub fn asked(&self) -> Vec<Value> {
        self.state().asked.clone()
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.shared.lock()
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn tls(identity: &Identity) -> anyhow::Result<ServerConfig> {
    let certificates: Result<Vec<_>, _> = CertificateDer::pem_file_iter(&identity.certificate)?.collect();
    let config = ServerConfig::builder_with_provider(Arc::new(ring::default_provider()))
        .with_safe_default_protocol_versions()?
        .with_no_client_auth();
    Ok(config.with_single_cert(certificates?, PrivateKeyDer::from_pem_file(&identity.key)?)?)
}

fn serve(stream: TcpStream, config: Option<Arc<ServerConfig>>, shared: &Shared) -> anyhow::Result<()> {
    // Its answers wait for nothing.
    stream.set_nodelay(true)?;
    match config {
        Some(config) => answer(decrypted(stream, config)?, shared),
        None => answer(stream, shared),
    }
}

/// What is said in TLS over a connection, as one without.
fn decrypted(stream: TcpStream, config: Arc<ServerConfig>) -> anyhow::Result<TcpStream> {
    let listener = TcpListener::bind("127.0.0.1:0")?;
    let inner = TcpStream::connect(listener.local_addr()?)?;
    let (plain, _) = listener.accept()?;
    for stream in [&stream, &inner] {
        stream.set_nonblocking(true)?;
    }
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_io()
        .build()?;
    thread::spawn(move || {
        runtime.block_on(async {
            let stream = tokio::net::TcpStream::from_std(stream)?;
            let mut inner = tokio::net::TcpStream::from_std(inner)?;
            let mut stream = TlsAcceptor::from(config).accept(stream).await?;
            copy_bidirectional(&mut stream, &mut inner).await
        })
    });
    Ok(plain)
}

/// What is done with a request.
enum Deed {
    Answer(u16, String),
    /// Tells what changes from a version on, for so long.
    Watch(Which, u64, Duration),
    /// Forwards a port of a pod to one of this host.
    Forward(u16, Option<u16>),
}

/// Answers all requests of a connection, until it ends.
fn answer(stream: TcpStream, shared: &Shared) -> anyhow::Result<()> {
    let mut stream = BufReader::new(stream);
    loop {
        let head = Head::read(&mut stream)?;
        let body = Body::of_request(&head, &mut stream)?.read_all()?;
        let deed = shared.lock().take(&head, &body)?;
        match deed {
            Deed::Answer(status, answer) => {
                write!(
                    stream.get_mut(),
                    "HTTP/1.1 {status} Said\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\r\n{answer}",
                    answer.len()
                )?;
            }
            Deed::Forward(port, to) => {
                let forwarded = stream.get_ref().try_clone()?;
                shared.lock().forwarded.push(forwarded);
                return forward::forward(stream.into_inner(), &head, port, to);
            }
            Deed::Watch(which, version, time) => {
                let events = "HTTP/1.1 200 Said\r\nContent-Type: application/json\r\nTransfer-Encoding: chunked\r\n\r\n";
                write!(stream.get_mut(), "{events}")?;
                stream.get_mut().flush()?;
                watch(stream.get_mut(), shared, &which, version, time)?;
            }
        }
        stream.get_mut().flush()?;
    }
}

/// Tells what changes, until the time is over.
fn watch(
    stream: &mut impl Write,
    shared: &Shared,
    which: &Which,
    mut version: u64,
    time: Duration,
) -> anyhow::Result<()> {
    let deadline = Instant::now() + time;
    let mut state = shared.lock();
    let ended = state.ended_watches;
    if let Some((lines, end)) = state.watches.clone() {
        drop(state);
        for line in lines.iter() {
            write!(stream, "{:x}\r\n{line}\r\n", line.len())?;
        }
        stream.flush()?;
        state = shared.lock();
        while !end && state.ended_watches == ended && Instant::now() < deadline {
            state = wait(shared, state, deadline.saturating_duration_since(Instant::now()));
        }
        return Ok(write!(stream, "0\r\n\r\n")?);
    }
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        if left.is_zero() || state.ended_watches != ended {
            return Ok(write!(stream, "0\r\n\r\n")?);
        }
        let Some((events, up_to)) = state.objects.since(which, version) else {
            let gone = json!({ "type": "ERROR", "object": status(410, "too old resource version") });
            tell(stream, &gone)?;
            return Ok(write!(stream, "0\r\n\r\n")?);
        };
        if up_to == version {
            state = wait(shared, state, left);
            continue;
        }
        version = up_to;
        drop(state);
        for event in &events {
            tell(stream, event)?;
        }
        let bookmark = json!({ "type": "BOOKMARK", "object": {
            "kind": kind_of(&which.resource), "apiVersion": api_of(&which.resource),
            "metadata": { "resourceVersion": version.to_string() } } });
        tell(stream, &bookmark)?;
        state = shared.lock();
    }
}

/// Waits for a change, for so long at most.
fn wait<'a>(shared: &Shared, state: MutexGuard<'a, State>, time: Duration) -> MutexGuard<'a, State> {
    let waited = shared.changed.wait_timeout(state, time);
    waited.map_or_else(|error| error.into_inner().0, |(state, _)| state)
}

/// A line of a watch, as one chunk.
fn tell(stream: &mut impl Write, event: &Value) -> anyhow::Result<()> {
    let line = format!("{event}\n");
    write!(stream, "{:x}\r\n{line}\r\n", line.len())?;
    Ok(stream.flush()?)
}

fn status(code: u16, message: &str) -> Value {
    let reason = match code {
        401 => "Unauthorized",
        403 => "Forbidden",
        404 => "NotFound",
        410 => "Expired",
        _ => "ServiceUnavailable",
    };
    json!({ "kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure", "code": code, "reason": reason,
        "message": message })
}

/// What objects of a resource are called, and of which API they are.
fn kind_of(resource: &str) -> &'static str {
    match resource {
        "endpointslices" => "EndpointSlice",
        _ => "Pod",
    }
}

fn api_of(resource: &str) -> &'static str {
    match resource {
        "endpointslices" => "discovery.k8s.io/v1",
        _ => "v1",
    }
}

/// What the server says of itself, as kubectl asks first.
fn discovery(path: &str) -> Option<Value> {
    let resources = |version: &str, name: &str, kind: &str| {
        json!({ "kind": "APIResourceList", "apiVersion": "v1", "groupVersion": version, "resources": [
            { "name": name, "singularName": kind.to_lowercase(), "namespaced": true, "kind": kind, "verbs": ["get", "list", "watch"] }] })
    };
    let group = "discovery.k8s.io/v1";
    Some(match path {
        "/api" => json!({ "kind": "APIVersions", "versions": ["v1"], "serverAddressByClientCIDRs": [] }),
        "/apis" => {
            let version = json!({ "groupVersion": group, "version": "v1" });
            json!({ "kind": "APIGroupList", "apiVersion": "v1", "groups": [
                { "name": "discovery.k8s.io", "versions": [version], "preferredVersion": version }] })
        }
        "/api/v1" => resources("v1", "pods", "Pod"),
        "/apis/discovery.k8s.io/v1" => resources(group, "endpointslices", "EndpointSlice"),
        _ => return None,
    })
}

/// What a path is about, and the name of the only object where it names one.
fn which(path: &str, query: &[(String, String)]) -> Option<(Which, Option<String>)> {
    let rest = path
        .strip_prefix("/api/v1/")
        .or_else(|| path.strip_prefix("/apis/discovery.k8s.io/v1/"))?;
    let (namespace, rest) = match rest
        .strip_prefix("namespaces/")
        .and_then(|rest| rest.split_once('/'))
    {
        Some((namespace, rest)) => (namespace.to_owned(), rest),
        None => (String::new(), rest),
    };
    let (resource, name) = match rest.split_once('/') {
        Some((resource, name)) => (resource, Some(name.to_owned())),
        None => (rest, None),
    };
    let selector = query.iter().find(|(name, _)| name == "labelSelector");
    let labels = selector.map_or("", |(_, selector)| selector).split(',');
    let labels = labels.filter_map(|label| label.split_once('='));
    let which = Which {
        resource: resource.to_owned(),
        namespace,
        labels: labels
            .map(|(name, value)| (name.to_owned(), value.to_owned()))
            .collect(),
    };
    Some((which, name))
}

impl State {
    /// What is done with a request.
    fn take(&mut self, head: &Head, body: &[u8]) -> anyhow::Result<Deed> {
        self.lines.push(head.line.clone());
        let mut words = head.line.split(' ');
        let (method, target) = (
            words.next().context("no method")?,
            words.next().context("no path")?,
        );
        let asked: Value = match method {
            "POST" => serde_json::from_slice(body)?,
            _ => Value::Null,
        };
        if method == "POST" {
            self.asked.push(asked.clone());
        }
        let shown = head.values("authorization");
        let is_own = shown == [format!("Bearer {OWN_TOKEN}")];
        let said = |code, answer: &Value| Deed::Answer(code, answer.to_string());
        let answer = self.answers.iter().find(|(word, ..)| head.line.contains(word));
        Ok(if let Some((_, code, body)) = answer {
            Deed::Answer(*code, body.clone())
        } else if self.is_down {
            said(503, &status(503, "the server is down"))
        } else if method == "POST" && is_own {
            said(201, &self.review(target, asked)?)
        } else if !is_own
            && !self
                .users
                .keys()
                .any(|token| shown == [format!("Bearer {token}")])
        {
            said(401, &status(401, "Unauthorized"))
        } else {
            self.read(target)
        })
    }

    /// Objects are asked for.
    fn read(&self, target: &str) -> Deed {
        let (path, query) = target.split_once('?').unwrap_or((target, ""));
        let query: Vec<(String, String)> = serde_urlencoded::from_str(query).unwrap_or_default();
        let said = |wanted: &str| {
            let found = query.iter().find(|(name, _)| name == wanted);
            found
                .map(|(_, value)| &value[..])
                .filter(|value| !value.is_empty())
        };
        let number = |name| -> Option<u64> { said(name).and_then(|value| value.parse().ok()) };
        if let Some(about) = discovery(path) {
            return Deed::Answer(200, about.to_string());
        }
        match which(path, &query) {
            Some((which, Some(name))) if name.ends_with("/portforward") => {
                let pod = (which.namespace, name.trim_end_matches("/portforward").to_owned());
                Deed::Forward(
                    number("ports")
                        .and_then(|port| u16::try_from(port).ok())
                        .unwrap_or_default(),
                    self.forwards.get(&pod).copied(),
                )
            }
            Some((which, None)) if said("watch").is_some_and(|value| value != "false") => {
                let version = number("resourceVersion").unwrap_or_else(|| self.objects.version());
                Deed::Watch(
                    which,
                    version,
                    Duration::from_secs(number("timeoutSeconds").unwrap_or(300)),
                )
            }
            Some((which, None)) => {
                let limit = number("limit").filter(|limit| *limit > 0);
                let limit = limit.map_or(usize::MAX, |limit| usize::try_from(limit).unwrap_or(usize::MAX));
                let mut list = self.objects.list(&which, limit, said("continue"));
                list["kind"] = json!(format!("{}List", kind_of(&which.resource)));
                list["apiVersion"] = json!(api_of(&which.resource));
                Deed::Answer(200, list.to_string())
            }
            Some((which, Some(name))) => match self.objects.get(&which.resource, &which.namespace, &name) {
                Some(object) => Deed::Answer(200, object.to_string()),
                None => Deed::Answer(
                    404,
                    status(404, &format!("{} \"{name}\" not found", which.resource)).to_string(),
                ),
            },
            None => Deed::Answer(
                404,
                status(404, "the server could not find the requested resource").to_string(),
            ),
        }
    }

    fn review(&self, path: &str, mut asked: Value) -> anyhow::Result<Value> {
        let spec = &asked["spec"];
        let status = match path {
            "/apis/authentication.k8s.io/v1/tokenreviews" => {
                let token = spec["token"].as_str().context("no token")?;
                match self.users.get(token) {
                    Some(user) => json!({ "authenticated": true, "user": {
                        "username": user, "uid": format!("uid-{user}"), "groups": ["people", "system:authenticated"],
                        "extra": { "example.org/team": ["red"] } } }),
                    None => json!({ "user": {}, "error": "invalid bearer token" }),
                }
            }
            "/apis/authorization.k8s.io/v1/subjectaccessreviews" => {
                let attributes = &spec["resourceAttributes"];
                let of = |name: &str| attributes[name].as_str().unwrap_or_default();
                let is_met = |rule: &Rule| {
                    let fits = |wanted: &str, given: &str| wanted.is_empty() || wanted == given;
                    spec["user"] == rule.user
                        && of("verb") == rule.verb
                        && (of("resource"), of("subresource")) == (rule.resource, "packetflix")
                        && fits(rule.namespace, of("namespace"))
                        && fits(rule.name, of("name"))
                };
                json!({ "allowed": self.rules.iter().any(is_met) })
            }
            path => bail!("no such path: {path}"),
        };
        asked["status"] = status;
        Ok(asked)
    }
}
