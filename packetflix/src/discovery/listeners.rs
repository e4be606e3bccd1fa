//! Finds where engines listen by their processes, so that their sockets may lie anywhere.
//!
//! A process chooses what it is called, which descriptors it has and where it listens. So being found here says nothing but
//! where to ask: who is believed follows from whose the process is, and only itself may answer.

use std::{
    collections::HashMap,
    ffi::OsStr,
    fs::{self, File},
    io::{self, BufReader},
    os::unix::{ffi::OsStrExt as _, fs::MetadataExt as _},
    path::PathBuf,
    process,
    sync::Arc,
    time::{Duration, Instant},
};

use super::{
    engine_socket::{Api, Origin},
    peer::SocketPeer,
};
use crate::{
    lookout::Owner,
    netns::View,
    proc_fs::{executable, listening_paths, proc_path, sockets_of},
};

/// Programs that are engines.
const ENGINES: [(&str, Api); 5] = [
    ("dockerd", Api::Docker),
    ("podman", Api::Docker),
    ("containerd", Api::Cri),
    ("crio", Api::Cri),
    ("cri-dockerd", Api::Cri),
];

/// Most descriptors of one process that are looked at.
const MAX_DESCRIPTORS: usize = 16 << 10;

/// Most sockets of one process that are asked: beside that of its API it may have others, such as for its plugins.
const MAX_PATHS: usize = 16;

/// How containerd calls the socket of its own language, which takes what we say for the beginning of something long.
const OTHER_LANGUAGE: &[u8] = b"ttrpc";

/// Most engines of one owner whose sockets are looked for in one mount namespace.
const fn max_engines(owner: Owner) -> usize {
    match owner {
        Owner::Host | Owner::Container => 32,
        Owner::Namespace(_) | Owner::User(_) => 4,
    }
}

/// How long the sockets of one process are looked for: the list has all those of its network namespace.
fn patience(owner: Owner) -> Duration {
    match owner {
        Owner::Host | Owner::Container => Duration::from_millis(500),
        Owner::Namespace(_) | Owner::User(_) => Duration::from_millis(100),
    }
}

/// A process that is called as an engine is.
#[derive(Clone, Debug)]
pub(super) struct EngineProcess {
    /// The process, and its user.
    pub(super) process: Arc<SocketPeer>,
    /// What its program speaks.
    pub(super) api: Api,
    /// In whose hands it is.
    pub(super) owner: Owner,
    /// Whether it is root's, and sees all files of the host: it could listen at any place there.
    pub(super) is_hosts: bool,
}

impl EngineProcess {
    /// Those in a mount namespace that `owner` has, and whether there are more.
    pub(super) fn all(view: &View, owner: Owner) -> (Vec<Self>, bool) {
        let mut by_owner: HashMap<Owner, usize> = HashMap::new();
        let (mut found, mut has_more) = (Vec::new(), false);
        // Each holds a descriptor, so that those that are too many are let go one by one.
        for engine in view.pids.iter().filter_map(|pid| Self::of(*pid, owner)) {
            let count = by_owner.entry(engine.owner).or_default();
            *count += 1;
            if *count <= max_engines(engine.owner) {
                found.push(engine);
            } else {
                has_more = true;
            }
        }
        (found, has_more)
    }

    fn of(pid: u32, owner: Owner) -> Option<Self> {
        let api = api_of(&executable(pid)?)?;
        let process = SocketPeer::process(pid).ok()?;
        let is_roots = process.uid == 0;
        Some(Self {
            api,
            is_hosts: owner == Owner::Host && is_roots && has_root_of_host(pid),
            // What a user runs beside root's is the user's.
            owner: if owner == Owner::Host && !is_roots {
                Owner::User(process.uid)
            } else {
                owner
            },
            process: Arc::new(process),
        })
    }

    /// Where its sockets are found, as far as they are its user's.
    pub(super) fn origin(&self) -> Origin {
        if self.is_hosts {
            Origin::Host
        } else {
            Origin::Elsewhere
        }
    }

    /// Where it listens, by the names that it gave, as others of its network namespace may give to theirs; and whether there
    /// may be more.
    ///
    /// # Errors
    /// When it may not be looked at, or has ended.
    pub(super) fn paths(&self) -> io::Result<(Vec<PathBuf>, bool)> {
        let pid = self.process.pid;
        let (sockets, is_cut) = sockets_of(pid, MAX_DESCRIPTORS)?;
        let list = BufReader::new(File::open(proc_path(pid, "net/unix"))?);
        let mut paths = match listening_paths(list, &sockets, Instant::now() + patience(self.owner)) {
            Err(error) if error.kind() == io::ErrorKind::TimedOut => return Ok((Vec::new(), true)),
            paths => paths?,
        };
        paths.retain(|path| !path.as_os_str().as_bytes().ends_with(OTHER_LANGUAGE));
        let has_more = paths.len() > MAX_PATHS;
        paths.truncate(MAX_PATHS);
        Ok((paths, is_cut || has_more))
    }
}

/// What a program of this name speaks, if it is an engine.
fn api_of(program: &OsStr) -> Option<Api> {
    ENGINES
        .iter()
        .find_map(|(name, api)| (program == *name).then_some(*api))
}

/// Whether a process that has the host's mounts sees them from where the host does, or we do.
fn has_root_of_host(pid: u32) -> bool {
    let root_of = |pid| fs::metadata(proc_path(pid, "root")).map(|root| (root.dev(), root.ino()));
    let Ok(root) = root_of(pid) else { return false };
    [1, process::id()]
        .into_iter()
        .any(|host| root_of(host).is_ok_and(|of_host| of_host == root))
}
