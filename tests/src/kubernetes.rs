//! A scripted API server of Kubernetes, as far as it is asked for reviews.
//!
//! Source: the public API's `authentication.k8s.io/v1` (TokenReview) and `authorization.k8s.io/v1` (SubjectAccessReview).

use std::{
    collections::BTreeMap,
    io::{BufReader, Read, Write},
    net::{TcpListener, TcpStream},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    thread,
};

use anyhow::{Context as _, bail};
use serde_json::{Value, json};
use tokio_rustls::rustls::{
    ServerConfig, ServerConnection, StreamOwned,
    crypto::ring,
    pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject as _},
};

use crate::{
    certificates::Identity,
    http::{Body, Head},
};

/// The token that whoever asks for reviews has to show.
pub const OWN_TOKEN: &str = "own-0123456789abcdef";

/// The server, on a port of its own. Its threads end with the test.
pub struct ApiServer {
    port: u16,
    state: Arc<Mutex<State>>,
}

/// What it knows.
#[derive(Default)]
struct State {
    /// Users by their tokens.
    users: BTreeMap<String, String>,
    /// What users may do.
    rules: Vec<Rule>,
    is_down: bool,
    /// What was asked, as it came.
    asked: Vec<Value>,
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
        let state = Arc::new(Mutex::new(State::default()));
        let shared = Arc::clone(&state);
        thread::spawn(move || {
            for stream in listener.incoming().map_while(Result::ok) {
                let (shared, config) = (Arc::clone(&shared), config.clone());
                thread::spawn(move || serve(stream, config, &shared));
            }
        });
        Ok(Self { port, state })
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

    /// Whether it answers with errors alone.
    pub fn set_down(&self, is_down: bool) {
        self.state().is_down = is_down;
    }

    /// All that was asked so far.
    pub fn asked(&self) -> Vec<Value> {
        self.state().asked.clone()
    }

    fn state(&self) -> MutexGuard<'_, State> {
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

fn serve(stream: TcpStream, config: Option<Arc<ServerConfig>>, state: &Mutex<State>) -> anyhow::Result<()> {
    match config {
        Some(config) => answer(StreamOwned::new(ServerConnection::new(config)?, stream), state),
        None => answer(stream, state),
    }
}

/// Answers all requests of a connection, until it ends.
fn answer(stream: impl Read + Write, state: &Mutex<State>) -> anyhow::Result<()> {
    let mut stream = BufReader::new(stream);
    loop {
        let head = Head::read(&mut stream)?;
        let body = Body::of_request(&head, &mut stream)?.read_all()?;
        let asked: Value = serde_json::from_slice(&body)?;
        let (status, answer) = {
            let mut state = state.lock().unwrap_or_else(PoisonError::into_inner);
            state.asked.push(asked.clone());
            if state.is_down {
                (503, json!({ "kind": "Status", "code": 503 }))
            } else if head.values("authorization") != [format!("Bearer {OWN_TOKEN}")] {
                (401, json!({ "kind": "Status", "code": 401 }))
            } else {
                (201, state.review(&head.line, asked)?)
            }
        };
        let answer = answer.to_string();
        write!(
            stream.get_mut(),
            "HTTP/1.1 {status} Said\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\r\n{answer}",
            answer.len()
        )?;
        stream.get_mut().flush()?;
    }
}

impl State {
    fn review(&self, line: &str, mut asked: Value) -> anyhow::Result<Value> {
        let spec = &asked["spec"];
        let status = match line.split(' ').nth(1).context("no path")? {
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
