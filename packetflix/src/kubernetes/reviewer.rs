//! Asks whose tokens are, and what these may do.
//!
//! | right | is asked as |
//! |---|---|
//! | to capture all of this node, its host too | `create` on `nodes/packetflix`, by the node's name |
//! | to capture pods | `create` on `pods/packetflix`: of the cluster, else of a namespace, else of each pod |
//! | to list them | `get` instead of `create` |
//! | to see and end what is others' | `delete` on `nodes/packetflix` |
//!
//! Source: the APIs `authentication.k8s.io/v1` (TokenReview) and `authorization.k8s.io/v1` (SubjectAccessReview).

use std::{
    collections::{BTreeMap, BTreeSet, HashMap, HashSet},
    sync::{Arc, Mutex, PoisonError, Weak},
    time::{Duration, Instant},
};

use futures_util::{StreamExt as _, future::BoxFuture, stream::FuturesUnordered};
use serde::{Deserialize, Serialize};
use tokio::{
    sync::Semaphore,
    time::{interval, timeout},
};

use super::api::{ApiAddress, ApiConnection, ApiServerError, Credentials};
use crate::{
    access::{Extent, Pattern, Reviews, Rights, as_asked},
    error::chain,
    turns::{TurnBounds, Turns},
};

/// How long it may take to ask whose a token is, and then what they may do.
const PATIENCE: Duration = Duration::from_secs(15);

/// How often it is looked which tokens are to be asked for again.
const INTERVAL: Duration = Duration::from_millis(500);

/// Most tokens of which it is asked at the same time whose they are.
const MAX_AT_ONCE: usize = 16;

/// Users of whom it is asked at the same time what they may do. One has any number of tokens.
const USERS: TurnBounds = TurnBounds {
    at_once: MAX_AT_ONCE,
    of_one: MAX_AT_ONCE / 4,
    waiting_of_one: 64,
    waiting: 512,
    // Longer than all of one may take, so that each of them has its turn. Requests do not wait that long.
    patience: Duration::from_secs(120),
};

/// How long it may take of that to ask for what was not allowed before.
const PATIENCE_WITH_NEW: Duration = Duration::from_secs(5);

/// Most questions on what one caller may do in namespaces and with pods.
const MAX_QUESTIONS: usize = 1024;

/// Most bytes of a name that is shown.
const MAX_NAME_LEN: usize = 256;

/// Pods by their namespaces.
pub(crate) type Pods = BTreeMap<String, BTreeSet<String>>;

/// Names of pods beside their namespaces; an empty one is all pods of its namespace.
type Names = Vec<(String, String)>;

/// Finds the pods of which it may be asked; `None` where nobody says which there are.
pub(crate) type FindPods = Box<dyn Fn() -> BoxFuture<'static, Option<Pods>> + Send + Sync>;

/// Asks the API server.
pub(crate) struct Reviewer {
    address: ApiAddress,
    credentials: Credentials,
    node: String,
    find_pods: FindPods,
    reviews: Arc<Reviews>,
    /// What runs waits for none of those who only come, and who may go before they have their answer.
    running: Line,
    coming: Line,
    /// Held by requests for which a token is asked for.
    locks: Mutex<HashMap<Box<str>, Weak<Lock>>>,
    /// Why it has said nothing the last time.
    problem: Mutex<Option<String>>,
}

/// Where tokens wait to be asked for.
struct Line {
    tokens: Semaphore,
    users: Arc<Turns>,
}

type Lock = tokio::sync::Mutex<()>;

/// `UserInfo`.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
struct User {
    #[serde(default, rename(serialize = "user"))]
    username: String,
    #[serde(default, skip_serializing_if = "String::is_empty")]
    uid: String,
    #[serde(default)]
    groups: Vec<String>,
    #[serde(default)]
    extra: HashMap<String, Vec<String>>,
}

/// What a user would do.
#[derive(Clone, Copy, Debug, Serialize)]
struct Attributes<'a> {
    verb: &'a str,
    version: &'a str,
    resource: &'a str,
    subresource: &'a str,
    #[serde(skip_serializing_if = "str::is_empty")]
    namespace: &'a str,
    #[serde(skip_serializing_if = "str::is_empty")]
    name: &'a str,
}

/// What is asked on one user.
struct Questions<'a> {
    connection: ApiConnection,
    user: &'a User,
    /// How many may follow on namespaces and pods.
    left: usize,
    /// Whether there were more.
    are_cut: bool,
}

/// How far a right reaches, as far as that has been asked.
struct Reach<'a> {
    verb: &'static str,
    /// Where it is bounded by no names.
    wide: Option<Extent>,
    /// Whether it reaches to a pod of a namespace, or to all of them where the pod has no name.
    asked: BTreeMap<(&'a str, &'a str), bool>,
}

impl Reviewer {
    pub(crate) fn new(
        address: ApiAddress,
        credentials: Credentials,
        node: String,
        find_pods: FindPods,
        reviews: Arc<Reviews>,
    ) -> Self {
        Self {
            address,
            credentials,
            node,
            find_pods,
            reviews,
            running: Line::new(),
            coming: Line::new(),
            locks: Mutex::default(),
            problem: Mutex::default(),
        }
    }

    /// Sees to it that whose a token is with which somebody came then, is known, unless the API server does not say.
    pub(crate) async fn review(&self, token: &[u8], came: Instant) {
        let Some(token) = as_asked(token).filter(|token| !self.reviews.is_fresh(token, came)) else {
            return;
        };
        let lock = self.lock_of(token);
        let asked = async {
            let _only_one = lock.lock().await;
            // Another request may have brought the same.
            if !self.reviews.is_fresh(token, came) {
                self.ask_for(token, &self.coming).await;
            }
        };
        // Whoever comes no further is refused.
        let _ = timeout(2 * PATIENCE, asked).await;
    }

    /// Asks again and again for tokens on which something rests. Never ends.
    pub(crate) async fn follow(&self) {
        let mut looks = interval(INTERVAL);
        let (mut begun, mut asked) = (HashSet::new(), FuturesUnordered::new());
        loop {
            tokio::select! {
                _ = looks.tick() => {
                    for token in self.reviews.due() {
                        if begun.insert(token.clone()) {
                            asked.push(async {
                                self.ask_for(&token, &self.running).await;
                                token
                            });
                        }
                    }
                }
                Some(token) = asked.next() => {
                    begun.remove(&token);
                }
            }
        }
    }

    /// Whoever has locked this is the only request for which a token is asked for. Others wait for the answer.
    fn lock_of(&self, token: &str) -> Arc<Lock> {
        let mut locks = self.locks.lock().unwrap_or_else(PoisonError::into_inner);
        locks.retain(|_, lock| lock.strong_count() > 0);
        let lock = locks.get(token).and_then(Weak::upgrade);
        lock.unwrap_or_else(|| {
            let lock = Arc::default();
            locks.insert(token.into(), Arc::downgrade(&lock));
            lock
        })
    }

    async fn ask_for(&self, token: &str, line: &Line) {
        match self.ask(token, line).await {
            Ok((at, holder)) => {
                self.reviews.note(token, at, holder);
                self.tell(None);
            }
            // Nothing was heard of it.
            Err(ApiServerError::Busy) => tracing::debug!("too many tokens are to be asked for"),
            Err(error) => self.tell(Some(chain(&error))),
        }
    }

    /// Logs that it says nothing, and that it does again.
    fn tell(&self, problem: Option<String>) {
        let mut known = self.problem.lock().unwrap_or_else(PoisonError::into_inner);
        match (&*known, &problem) {
            (Some(_), None) => tracing::info!("the Kubernetes API server answers again"),
            (before, Some(problem)) if before.as_ref() != Some(problem) => tracing::warn!(
                address = %self.address,
                problem,
                "the Kubernetes API server does not say whose tokens are: new requests are refused"
            ),
            _ => {}
        }
        *known = problem;
    }

    /// Since when a token is known to be whose, with what rights; `None` where nobody has it.
    async fn ask(
        &self,
        token: &str,
        line: &Line,
    ) -> Result<(Instant, Option<(String, Rights)>), ApiServerError> {
        let turn = timeout(PATIENCE, line.tokens.acquire()).await;
        let turn = turn.map_err(|_| ApiServerError::Busy)?;
        let at = Instant::now();
        let asked = timeout(PATIENCE, self.user_of(token)).await;
        let Some((connection, user)) = asked.unwrap_or(Err(ApiServerError::Late))? else {
            return Ok((at, None));
        };
        drop(turn);
        let turn = line.users.take(&user.username[..].into(), 1).await;
        let _turn = turn.map_err(|_| ApiServerError::Busy)?;
        let rights = timeout(PATIENCE, self.rights_of(connection, &user, token)).await;
        let rights = rights.unwrap_or(Err(ApiServerError::Late))?;
        Ok((at, Some((shown(&user.username), rights))))
    }

    /// Whoever has a token, and the connection over which that was asked.
    async fn user_of(&self, token: &str) -> Result<Option<(ApiConnection, User)>, ApiServerError> {
        let mut connection = ApiConnection::open(&self.address, &self.credentials).await?;
        let user = review_token(&mut connection, token).await?;
        Ok(user.map(|user| (connection, user)))
    }

    /// What a user may do.
    ///
    /// What their token gave rights to before is asked first. It took no more questions then, so that it is always asked, however
    /// many pods there are by now: none of these rights is lost to others' growth, and none is kept by it.
    async fn rights_of(
        &self,
        connection: ApiConnection,
        user: &User,
        token: &str,
    ) -> Result<Rights, ApiServerError> {
        let mut questions = Questions {
            connection,
            user,
            left: MAX_QUESTIONS,
            are_cut: false,
        };
        let wide = [
            questions.wide_extent("get", &self.node).await?,
            questions.wide_extent("create", &self.node).await?,
        ];
        let administer = questions.may(on_node("delete", &self.node)).await?;
        let (pods, before) = match wide.contains(&None) {
            true => self.pods(token).await?,
            false => Default::default(),
        };
        let mut reaches = Reach::to(wide);
        for (reach, names) in reaches.iter_mut().zip(&before) {
            for (namespace, pod) in names {
                questions.ask(reach, namespace, pod).await?;
            }
        }
        // Rights to namespaces are found before there are too many questions on pods.
        let of_new = async {
            for reach in &mut reaches {
                for namespace in pods.keys() {
                    questions.ask(reach, namespace, "").await?;
                }
            }
            for reach in &mut reaches {
                for (namespace, pods) in &pods {
                    for pod in pods {
                        questions.ask(reach, namespace, pod).await?;
                    }
                }
            }
            Ok::<_, ApiServerError>(())
        };
        match timeout(PATIENCE_WITH_NEW, of_new).await {
            Ok(asked) => asked?,
            Err(_) => questions.are_cut = true,
        }
        if questions.are_cut {
            tracing::warn!(
                user = user.username,
                "a caller's rights to pods were not all asked for: there are too many, or the Kubernetes API server is slow"
            );
        }
        let [discover, capture] = reaches.map(Reach::extent);
        Ok(Rights::new(discover, capture, administer))
    }

    /// The pods that there are, and the names to which a token gave rights before, to list and to capture: what is captured may
    /// come back, and its right may be taken away meanwhile.
    ///
    /// # Errors
    /// When none are known, whose rights would then be taken for none.
    async fn pods(&self, token: &str) -> Result<(Pods, [Names; 2]), ApiServerError> {
        let found = (self.find_pods)().await;
        let before = self.reviews.rights_of(token);
        if found.is_none() && before.is_none() {
            return Err(ApiServerError::NoPods);
        }
        let mut pods = found.unwrap_or_default();
        pods.retain(|namespace, _| is_name(namespace));
        for pods in pods.values_mut() {
            pods.retain(|pod| is_name(pod));
        }
        let before = before.map(|rights| rights.pods().map(names_of));
        Ok((pods, before.unwrap_or_default()))
    }
}

impl Line {
    fn new() -> Self {
        Self {
            tokens: Semaphore::new(MAX_AT_ONCE),
            users: Turns::new(USERS),
        }
    }
}

impl<'a> Reach<'a> {
    /// The rights to list and to capture, of which is known whether they are bounded by no names.
    fn to([discover, capture]: [Option<Extent>; 2]) -> [Self; 2] {
        [("get", discover), ("create", capture)].map(|(verb, wide)| Self {
            verb,
            wide,
            asked: BTreeMap::new(),
        })
    }

    fn is_to_all_of(&self, namespace: &str) -> bool {
        self.asked.get(&(namespace, "")) == Some(&true)
    }

    fn is_known(&self, namespace: &'a str, pod: &'a str) -> bool {
        self.wide.is_some() || self.is_to_all_of(namespace) || self.asked.contains_key(&(namespace, pod))
    }

    fn extent(self) -> Extent {
        let allowed = self.asked.iter().filter(|(_, is_allowed)| **is_allowed);
        let patterns = allowed.filter_map(|((namespace, pod), _)| match *pod {
            "" => Some(Pattern::parts_of(namespace)),
            _ if self.is_to_all_of(namespace) => None,
            pod => Some(Pattern::exactly(&format!("{namespace}/{pod}"))),
        });
        let patterns: Vec<Pattern> = patterns.collect();
        match (self.wide, patterns.is_empty()) {
            (Some(wide), _) => wide,
            (None, true) => Extent::Nothing,
            (None, false) => Extent::Pods(patterns),
        }
    }
}

impl Questions<'_> {
    /// How far a right reaches that is not bounded to namespaces and pods by their names.
    async fn wide_extent(&mut self, verb: &str, node: &str) -> Result<Option<Extent>, ApiServerError> {
        if self.may(on_node(verb, node)).await? {
            return Ok(Some(Extent::Everything));
        }
        let is_to_all = self.may(on_pods(verb, "", "")).await?;
        Ok(is_to_all.then(|| Extent::Pods(vec![Pattern::parts()])))
    }

    /// Asks whether a right reaches to a pod, or to all of a namespace where that has no name, unless it is known. What is not
    /// asked is not allowed.
    async fn ask<'p>(
        &mut self,
        reach: &mut Reach<'p>,
        namespace: &'p str,
        pod: &'p str,
    ) -> Result<(), ApiServerError> {
        if reach.is_known(namespace, pod) {
            return Ok(());
        }
        let Some(left) = self.left.checked_sub(1) else {
            self.are_cut = true;
            return Ok(());
        };
        self.left = left;
        let is_allowed = self.may(on_pods(reach.verb, namespace, pod)).await?;
        reach.asked.insert((namespace, pod), is_allowed);
        Ok(())
    }

    /// Whether the user may do this.
    async fn may(&mut self, attributes: Attributes<'_>) -> Result<bool, ApiServerError> {
        #[derive(Serialize)]
        #[serde(rename_all = "camelCase")]
        struct Spec<'a> {
            #[serde(flatten)]
            user: &'a User,
            resource_attributes: Attributes<'a>,
        }

        #[derive(Default, Deserialize)]
        struct Status {
            #[serde(default)]
            allowed: bool,
            #[serde(default)]
            denied: bool,
        }

        let spec = Spec {
            user: self.user,
            resource_attributes: attributes,
        };
        let path = "/apis/authorization.k8s.io/v1/subjectaccessreviews";
        let review = Review::new("authorization.k8s.io/v1", "SubjectAccessReview", spec);
        let answer: Answer<Status> = self.connection.create(path, &review).await?;
        Ok(answer.status.allowed && !answer.status.denied)
    }
}

/// An object that is made to be answered.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Review<S> {
    api_version: &'static str,
    kind: &'static str,
    metadata: HashMap<(), ()>,
    spec: S,
}

impl<S> Review<S> {
    fn new(api_version: &'static str, kind: &'static str, spec: S) -> Self {
        Self {
            api_version,
            kind,
            metadata: HashMap::new(),
            spec,
        }
    }
}

#[derive(Deserialize)]
struct Answer<S> {
    status: S,
}

async fn review_token(connection: &mut ApiConnection, token: &str) -> Result<Option<User>, ApiServerError> {
    #[derive(Serialize)]
    struct Spec<'a> {
        token: &'a str,
    }

    #[derive(Default, Deserialize)]
    struct Status {
        #[serde(default)]
        authenticated: bool,
        #[serde(default)]
        user: User,
    }

    let path = "/apis/authentication.k8s.io/v1/tokenreviews";
    let review = Review::new("authentication.k8s.io/v1", "TokenReview", Spec { token });
    let answer: Answer<Status> = connection.create(path, &review).await?;
    let Status { authenticated, user } = answer.status;
    Ok((authenticated && !user.username.is_empty()).then_some(user))
}

fn on_node<'a>(verb: &'a str, node: &'a str) -> Attributes<'a> {
    Attributes {
        verb,
        version: "v1",
        resource: "nodes",
        subresource: "packetflix",
        namespace: "",
        name: node,
    }
}

/// All pods where there is no name, and those of all namespaces where there is no namespace.
fn on_pods<'a>(verb: &'a str, namespace: &'a str, name: &'a str) -> Attributes<'a> {
    Attributes {
        resource: "pods",
        namespace,
        name,
        ..on_node(verb, "")
    }
}

/// What patterns stand for that were made of names.
fn names_of(patterns: &[Pattern]) -> Names {
    let names = patterns.iter().filter_map(|pattern| {
        let pattern = pattern.to_string();
        let (namespace, pod) = pattern.split_once('/')?;
        let pod = if pod == "*" { "" } else { pod };
        let are_names = is_name(namespace) && (pod.is_empty() || is_name(pod));
        are_names.then(|| (namespace.to_owned(), pod.to_owned()))
    });
    names.collect()
}

/// Whether Kubernetes may call something so. What else there is would stand for others.
fn is_name(name: &str) -> bool {
    !name.is_empty() && !name.contains(['*', '?', '/'])
}

/// A name that can be shown.
fn shown(name: &str) -> String {
    match name.len() <= MAX_NAME_LEN && !name.chars().any(char::is_control) {
        true => name.to_owned(),
        false => "unnamed".to_owned(),
    }
}

#[cfg(test)]
mod tests;
