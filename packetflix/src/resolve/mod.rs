//! From what a client says of a target to the one namespace that it means.

mod directory;
mod selection;
mod service;

use std::{
    fmt::{self, Write as _},
    sync::Arc,
    time::Duration,
};

#[cfg(any(test, feature = "fuzzing"))]
pub(crate) use self::service::fuzzing;
pub(crate) use self::{
    directory::{Directory, DirectoryError, KnownTarget, KnownTargets},
    selection::{Selection, SelectionError},
    service::{DiscoveryService, ServiceError, ServiceProblem},
};
use crate::{
    access::{Pattern, Rights},
    description::{Alias, TargetDescription, known_as},
    discovery::Trust,
    nearest::nearest_names,
    netns::{FindError, Namespaces, OpenNetns, ProcessError, ProcessIdentity},
    turns::{Busy, TurnBounds, Turns},
};

/// Searches of the whole host for namespaces by their numbers.
const SEARCHES: TurnBounds = TurnBounds {
    at_once: 8,
    of_one: 2,
    waiting_of_one: 64,
    waiting: 256,
    patience: Duration::from_secs(10),
};

/// Most targets that are named which may have been meant.
const MAX_NEAREST: usize = 3;

/// The least that is taken for a part of a name.
const MIN_PART_LEN: usize = 3;

/// Most targets that are listed in a sentence.
const MAX_LISTED: usize = 10;

/// Most obstacles that are told in a sentence.
const MAX_OBSTACLES: usize = 4;

/// A target whose namespace is open.
#[derive(Debug)]
pub(crate) struct Target {
    /// The namespace.
    pub(crate) netns: OpenNetns,
    /// What is known of it, with the name it was asked for by, or that of who holds the namespace.
    pub(crate) description: TargetDescription,
}

/// Why a target is not to be captured.
#[derive(Debug, thiserror::Error)]
pub(crate) enum TargetError {
    #[error("no target is given: it needs a name, a netns, or a pid with its starttime")]
    Nothing,
    #[error(transparent)]
    Find(#[from] FindError),
    #[error("there is no process {pid}")]
    NoProcess { pid: u32 },
    #[error("the target is stale")]
    Stale(#[source] ProcessError),
    #[error("the target {name} is stale and could not be found again")]
    NotFoundAgain {
        name: String,
        #[source]
        stale: ProcessError,
    },
    #[error("there is no target {name}; {others}{}", and(obstacles))]
    Unknown {
        name: String,
        others: Others,
        /// Why it may be there all the same.
        obstacles: Vec<String>,
    },
    #[error("the container {name} is stopped ({state}): it has no network to capture")]
    Stopped { name: String, state: String },
    #[error("{name} may mean several targets: {}", list(matches))]
    Ambiguous {
        name: String,
        /// None, where they may not be listed.
        matches: Vec<TargetDescription>,
    },
    #[error(
        "the target {name} is gone, and what has its name now was not started by an engine of the host: capture that by \
         its netns or pid, if it is meant"
    )]
    Successor { name: String },
    #[error("the target {name} was found, but ended before it could be captured")]
    Ended {
        name: String,
        #[source]
        source: ProcessError,
    },
    #[error("the target was not looked at")]
    Unreadable(#[source] ProcessError),
    #[error(transparent)]
    Directory(#[from] DirectoryError),
    #[error("the search for the namespace was cut off")]
    CutOff,
    #[error("too many namespaces are searched for at the moment")]
    Busy,
}

/// What a description says about where the target is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Claim {
    /// This process, which began then; in this namespace, if that is known.
    Process(ProcessIdentity),
    /// Whoever owns the number now.
    Namespace(u64),
    /// Nothing that could be checked.
    Nothing,
}

/// Finds what is meant.
pub(crate) struct Resolver {
    /// Where names are looked up.
    pub(crate) directory: Directory,
    namespaces: Namespaces,
    searches: Arc<Turns>,
}

impl Resolver {
    pub(crate) fn new(directory: Directory, namespaces: Namespaces) -> Self {
        Self {
            directory,
            namespaces,
            searches: Turns::new(SEARCHES),
        }
    }

    /// Opens the namespace that is meant: the one that `wanted` claims, if the claim still holds, else the one that
    /// the directory has for the name, and shows to somebody with these rights. A search takes a turn of `account`.
    ///
    /// # Errors
    /// When it cannot be had, or may be another one than was meant.
    pub(crate) async fn open(
        &self,
        wanted: TargetDescription,
        rights: &Rights,
        account: &Arc<str>,
    ) -> Result<Target, TargetError> {
        let claim = Claim::of(&wanted);
        if wanted.name.is_empty() {
            return match claim {
                Claim::Nothing => Err(TargetError::Nothing),
                claim => self.open_claimed(claim, wanted, account).await,
            };
        }
        // A namespace's number alone says nothing: it may have passed to another. Nor is a process looked at for somebody
        // to whom it may not even be known: what is listed for them decides.
        let is_known = matches!(claim, Claim::Process(_)) && !rights.are_by_pattern();
        if !is_known {
            return self.look_up(wanted, rights, account).await;
        }
        match self.open_claimed(claim, wanted.clone(), account).await {
            Err(TargetError::Stale(stale)) => {
                tracing::debug!(name = wanted.name, reason = %stale, "the target is stale and looked up");
                let name = wanted.full_name();
                match self.look_up(wanted, rights, account).await {
                    Err(TargetError::Unknown { .. }) => Err(TargetError::NotFoundAgain { name, stale }),
                    found => found,
                }
            }
            opened => opened,
        }
    }

    /// Opens the namespace of a target that a scan has found of late, where the host has it mounted still; nothing where that is not
    /// so, or where the target has a process that says more. A mount keeps its path, and what is there has to be the same namespace.
    pub(crate) async fn open_mounted(&self, found: &TargetDescription) -> Option<Target> {
        let inode = found.netns.filter(|_| found.pid.is_none())?;
        let netns = self.held(inode, true).await.ok()??;
        Some(Target {
            netns,
            description: found.clone(),
        })
    }

    /// Opens a namespace through who held it when targets were last looked for, so that it need not be searched for.
    async fn held(&self, inode: u64, only_mounts_of_host: bool) -> Result<Option<OpenNetns>, TargetError> {
        if let Directory::Service(_) = self.directory {
            return Ok(None);
        }
        let namespaces = self.namespaces.clone();
        blocking(move || namespaces.held(inode, only_mounts_of_host)).await
    }

    async fn open_claimed(
        &self,
        claim: Claim,
        description: TargetDescription,
        account: &Arc<str>,
    ) -> Result<Target, TargetError> {
        // A search goes on when the client that wanted it has left, and so does its turn.
        let turn = match claim {
            Claim::Namespace(inode) => {
                if let Some(netns) = self.held(inode, false).await? {
                    return Ok(Target { netns, description });
                }
                let turn = self.searches.take(account, 1).await;
                Some(turn.map_err(|Busy| TargetError::Busy)?)
            }
            Claim::Process(_) | Claim::Nothing => None,
        };
        let namespaces = self.namespaces.clone();
        let opening = move || {
            let _turn = turn;
            claim.open(&namespaces)
        };
        let netns = blocking(opening).await?.map_err(|error| match error {
            TargetError::Stale(ProcessError::Ended { pid }) if description.is_by_pid_alone => {
                TargetError::NoProcess { pid }
            }
            error => error,
        })?;
        Ok(Target { netns, description })
    }

    /// Opens what the directory knows by the name. The interfaces that were asked for stay.
    async fn look_up(
        &self,
        wanted: TargetDescription,
        rights: &Rights,
        account: &Arc<str>,
    ) -> Result<Target, TargetError> {
        let known = self.directory.targets(rights).await?;
        let name = wanted.full_name();
        let found = match choose(&wanted, &known) {
            Err(unknown @ TargetError::Unknown { .. })
                if wanted.pid.is_none() && !rights.are_by_pattern() =>
            {
                if let Some(state) = self.directory.state_at_rest(&wanted.name).await {
                    return Err(TargetError::Stopped { name, state });
                }
                match rights.may_discover_all() {
                    true => choose_by_part(&wanted, &known).unwrap_or(Err(unknown)),
                    // Which names there are, they may not find out by their parts.
                    false => Err(unknown),
                }
            }
            chosen => chosen,
        }?;
        let claim = Claim::of(&found);
        let description = TargetDescription {
            // Those that it has at the moment are nobody's wish.
            interfaces: wanted.interfaces,
            node_name: wanted.node_name,
            cluster: wanted.cluster,
            ..found
        };
        self.open_claimed(claim, description, account)
            .await
            .map_err(|error| match error {
                TargetError::Stale(source) => TargetError::Ended { name, source },
                error => error,
            })
    }
}

async fn blocking<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> Result<T, TargetError> {
    let done = tokio::task::spawn_blocking(work).await;
    done.map_err(|_| TargetError::CutOff)
}

impl Claim {
    fn of(description: &TargetDescription) -> Self {
        let TargetDescription {
            netns,
            pid,
            starttime,
            is_by_pid_alone,
            ..
        } = *description;
        let process = |pid| {
            Self::Process(ProcessIdentity {
                pid,
                starttime,
                netns,
            })
        };
        match (pid, netns) {
            // A PID passes from one process to another; that it is in the namespace that was meant says something.
            (Some(pid), _) if starttime.is_some() || is_by_pid_alone => process(pid),
            (Some(pid), Some(_)) if description.name.is_empty() => process(pid),
            (_, Some(netns)) => Self::Namespace(netns),
            (_, None) => Self::Nothing,
        }
    }

    fn open(self, namespaces: &Namespaces) -> Result<OpenNetns, TargetError> {
        match self {
            Self::Process(identity) => namespaces.of_process(&identity).map_err(|error| match error {
                ProcessError::Unreadable { .. } | ProcessError::Broken(_) => TargetError::Unreadable(error),
                stale => TargetError::Stale(stale),
            }),
            Self::Namespace(inode) => Ok(namespaces.find(inode)?),
            Self::Nothing => Err(TargetError::Nothing),
        }
    }
}

/// A target that a word may mean.
struct Candidate {
    description: TargetDescription,
    /// How far the word is trusted that it has.
    trust: Trust,
    /// Whether the word is its own name.
    is_own_name: bool,
}

impl Candidate {
    /// What `wanted` may mean of a target, by its name and by what else it is known as.
    fn all(wanted: &TargetDescription, target: &KnownTarget) -> impl Iterator<Item = Self> {
        let KnownTarget { description, trust } = target;
        let trust = *trust;
        let has_name = description.full_name() == wanted.full_name() && description.netns.is_some();
        let is_of_kind = wanted.kind.is_empty() || description.kind == wanted.kind;
        let by_name = (has_name && is_of_kind).then(|| Self {
            description: description.clone(),
            trust,
            is_own_name: true,
        });
        let otherwise = known_as(wanted, description).map(move |(description, alias)| Self {
            description,
            trust: match alias {
                Alias::Host | Alias::Mount { is_hosts: true } => Trust::Host,
                Alias::Mount { is_hosts: false } => Trust::Others,
                Alias::Id => trust,
            },
            is_own_name: false,
        });
        by_name.into_iter().chain(otherwise)
    }
}

/// The one target that is meant, of the wanted type, among all that have the wanted name or are known by it. When that leaves
/// several namespaces, how far that word is trusted decides, and then whether it is their own name; when that does not, it is
/// an error, since either could be meant.
fn choose(wanted: &TargetDescription, known: &KnownTargets) -> Result<TargetDescription, TargetError> {
    let KnownTargets {
        targets: all,
        formerly,
        obstacles,
    } = known;
    let name = wanted.full_name();
    let mut candidates: Vec<Candidate> = all
        .iter()
        .flat_map(|target| Candidate::all(wanted, target))
        .collect();
    // Whose process is described is meant, whoever else has the name.
    if let Some(meant) = candidates
        .iter()
        .find(|candidate| is_described(wanted, &candidate.description))
    {
        return Ok(meant.description.clone());
    }
    let weight = |candidate: &Candidate| (candidate.trust, candidate.is_own_name);
    let most = candidates.iter().map(weight).max();
    candidates.retain(|candidate| Some(weight(candidate)) == most);
    if !is_one_namespace(&candidates) {
        let matches = candidates.into_iter().map(|candidate| candidate.description);
        let matches = matches.collect();
        return Err(TargetError::Ambiguous { name, matches });
    }
    // Of several in one namespace, one whose process can be checked.
    candidates.sort_by_key(|candidate| candidate.description.pid.is_none());
    match candidates.into_iter().next() {
        Some(found) if found.trust != Trust::Host && formerly.has(&name) => {
            Err(TargetError::Successor { name })
        }
        Some(found) => Ok(found.description),
        None => Err(TargetError::Unknown {
            others: Others::of(wanted, all),
            name,
            obstacles: obstacles.clone(),
        }),
    }
}

/// The one target with a name of which `wanted` is a part, where nothing has that as its whole name and it is all that was
/// said; `None` when there is no such target, or may be others that were not looked at. When they are in several namespaces,
/// it is an error, since either could be meant.
fn choose_by_part(
    wanted: &TargetDescription,
    known: &KnownTargets,
) -> Option<Result<TargetDescription, TargetError>> {
    let KnownTargets {
        targets,
        formerly,
        obstacles,
    } = known;
    let name = &wanted.name;
    let is_fit = wanted.is_word() && name.len() >= MIN_PART_LEN && obstacles.is_empty();
    if !is_fit || formerly.has(name) {
        return None;
    }
    let mut matches: Vec<_> = targets
        .iter()
        .map(|target| &target.description)
        .filter(|target| target.netns.is_some() && (wanted.kind.is_empty() || target.kind == wanted.kind))
        .filter(|target| target.full_name().contains(name))
        .collect();
    matches.sort_by_key(|target| target.pid.is_none());
    let first = *matches.first()?;
    if matches.iter().all(|target| target.netns == first.netns) {
        return Some(Ok(first.clone()));
    }
    Some(Err(TargetError::Ambiguous {
        name: name.clone(),
        matches: matches.into_iter().cloned().collect(),
    }))
}

impl TargetError {
    /// The same for those who may not list targets: without others, how many there are, and what hides them.
    pub(crate) fn without_others(self) -> Self {
        let withheld = |reasons: Vec<String>| match reasons.is_empty() {
            true => reasons,
            false => vec!["not everything could be looked at".to_owned()],
        };
        match self {
            Self::Unknown { name, obstacles, .. } => Self::Unknown {
                name,
                others: Others::Withheld,
                obstacles: withheld(obstacles),
            },
            Self::Ambiguous { name, .. } => Self::Ambiguous {
                name,
                matches: Vec::new(),
            },
            Self::Find(FindError::Incomplete { inode, unseen }) => Self::Find(FindError::Incomplete {
                inode,
                unseen: withheld(unseen),
            }),
            about_what_was_asked_for => about_what_was_asked_for,
        }
    }
}

/// What there is, where what was meant is not.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Others {
    Known {
        count: usize,
        /// Types of those that have the name.
        of_other_types: Vec<String>,
        /// Those that may have been meant.
        nearest: Vec<String>,
    },
    /// That is told to those only who may list them.
    Withheld,
}

impl Others {
    fn of(wanted: &TargetDescription, all: &[KnownTarget]) -> Self {
        let name = wanted.full_name();
        let names: Vec<String> = all.iter().map(|target| target.description.full_name()).collect();
        let same = all.iter().zip(&names).filter(|(_, other)| **other == name);
        let near = nearest_names(&name, names.iter().map(String::as_str), MAX_NEAREST);
        Self::Known {
            count: all.len(),
            of_other_types: same.map(|(target, _)| target.description.kind.clone()).collect(),
            nearest: near.into_iter().map(str::to_owned).collect(),
        }
    }
}

impl fmt::Display for Others {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self::Known {
            count,
            of_other_types,
            nearest,
        } = self
        else {
            return f.write_str("which there are is told to those who may discover targets");
        };
        match (&of_other_types[..], &nearest[..]) {
            (types @ [_, ..], _) => write!(f, "what has this name is of type {}", types.join(" and ")),
            (_, nearest) => write!(f, "{count} others are known{}", of_which(nearest)),
        }
    }
}

/// Names that may be meant by words that mean nothing: such as are near, and those whose last part a pattern has, which is held
/// against whole names.
pub(crate) fn nearest_of<'a>(words: impl IntoIterator<Item = &'a str>, names: &[String]) -> Vec<String> {
    let mut near: Vec<&str> = Vec::new();
    for word in words.into_iter().filter(|word| !word.starts_with('!')) {
        if Selection::is_single(word) {
            near.extend(nearest_names(word, names.iter().map(String::as_str), MAX_NEAREST));
        } else if !word.contains(['/', ':'])
            && let Ok(pattern) = word.parse::<Pattern>()
        {
            let last = |name: &str| {
                name.rsplit(['/', ':'])
                    .next()
                    .is_some_and(|last| pattern.matches(last))
            };
            near.extend(names.iter().map(String::as_str).filter(|name| last(name)));
        }
    }
    let mut nearest = Vec::new();
    for name in near {
        if nearest.len() < MAX_NEAREST && !nearest.contains(&name) {
            nearest.push(name);
        }
    }
    nearest.into_iter().map(str::to_owned).collect()
}

/// These, behind how many there are.
pub(crate) fn of_which(nearest: &[String]) -> String {
    match nearest {
        [] => String::new(),
        [only] => format!(", of which the nearest is {only}"),
        several => format!(", of which the nearest are {}", several.join(", ")),
    }
}

/// Whether a target has the process that a description has.
fn is_described(wanted: &TargetDescription, target: &TargetDescription) -> bool {
    let process = |description: &TargetDescription| (description.pid, description.starttime);
    wanted.pid.is_some() && process(wanted) == process(target)
}

fn is_one_namespace(candidates: &[Candidate]) -> bool {
    let mut pairs = candidates.windows(2);
    pairs.all(|pair| pair[0].description.netns == pair[1].description.netns)
}

/// Further clauses of a sentence.
fn and(clauses: &[String]) -> String {
    let clauses = clauses.iter().take(MAX_OBSTACLES);
    clauses.map(|clause| format!("; {clause}")).collect()
}

fn list(targets: &[TargetDescription]) -> String {
    if targets.is_empty() {
        return "which is meant, a netns or pid tells; they are listed for those who may discover targets"
            .to_owned();
    }
    let mut sentence = String::new();
    for target in targets.iter().take(MAX_LISTED) {
        let separator = if sentence.is_empty() { "" } else { ", " };
        let _ = write!(
            sentence,
            "{separator}{} {} (netns {}, pid {})",
            target.kind,
            target.full_name(),
            target.netns.unwrap_or_default(),
            target.pid.unwrap_or_default()
        );
    }
    if targets.len() > MAX_LISTED {
        let _ = write!(sentence, " and {} more", targets.len() - MAX_LISTED);
    }
    sentence
}

#[cfg(test)]
mod tests {
    use super::*;

    fn word(name: &str) -> TargetDescription {
        TargetDescription {
            name: name.to_owned(),
            ..TargetDescription::default()
        }
    }

    fn known(names: &[(&str, u64)], obstacles: &[&str]) -> KnownTargets {
        let targets = names.iter().map(|(name, netns)| KnownTarget {
            description: TargetDescription {
                netns: Some(*netns),
                ..word(name)
            },
            trust: Trust::Host,
        });
        KnownTargets {
            targets: targets.collect(),
            formerly: Arc::default(),
            obstacles: obstacles.iter().map(ToString::to_string).collect(),
        }
    }

    fn found_by_part(name: &str, known: &KnownTargets) -> Option<Result<String, String>> {
        let chosen = choose_by_part(&word(name), known)?;
        Some(
            chosen
                .map(|target| target.name)
                .map_err(|error| error.to_string()),
        )
    }

    #[test]
    fn part_means_one_namespace() {
        let all = known(&[("shop-web-1", 1), ("shop-db-1", 2), ("web-sidecar", 1)], &[]);
        assert_eq!(found_by_part("shop-w", &all), Some(Ok("shop-web-1".to_owned())));
        assert_eq!(found_by_part("web", &all), Some(Ok("shop-web-1".to_owned())));
        let two = found_by_part("shop", &all).unwrap().unwrap_err();
        assert!(two.starts_with("shop may mean several targets: "), "{two}");
        for none in ["we", "mail", ""] {
            assert_eq!(found_by_part(none, &all), None, "{none}");
        }
    }

    #[test]
    fn part_means_nothing_where_there_may_be_others() {
        let cut = known(&[("shop-web-1", 1)], &["an engine does not answer"]);
        assert_eq!(found_by_part("shop-w", &cut), None);
    }
}
