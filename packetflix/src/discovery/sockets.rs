//! Finds the API sockets of container engines: at well-known places of every mount namespace, so that engines in
//! containers are found too, and where else the processes of engines listen.

use std::{
    collections::HashSet,
    fs, io,
    os::fd::AsRawFd as _,
    path::{Path, PathBuf},
    sync::Arc,
};

use nix::{
    fcntl::{OFlag, OpenHow, ResolveFlag, open, openat2},
    sys::stat::{Mode, fstat},
};

use super::{
    engine_socket::{Api, EngineSocket, Origin},
    gap::Gap,
    listeners::EngineProcess,
    turns::EngineTurns,
};
use crate::{
    error::{is_exhaustion, note_want},
    lookout::{Kind, Lookout, Owner, Place},
    netns::{RootOf, Unseen, View},
};

/// Most users whose own engines are looked for.
const MAX_USERS: usize = 256;

/// Where engines have their sockets.
const WELL_KNOWN: &[(&str, Api)] = &[
    ("/run/docker.sock", Api::Docker),
    ("/var/run/docker.sock", Api::Docker),
    ("/run/podman/podman.sock", Api::Docker),
    ("/run/containerd/containerd.sock", Api::Cri),
    ("/run/k3s/containerd/containerd.sock", Api::Cri),
    ("/run/k0s/containerd.sock", Api::Cri),
    ("/var/snap/microk8s/common/run/containerd.sock", Api::Cri),
    ("/run/crio/crio.sock", Api::Cri),
    ("/run/cri-dockerd.sock", Api::Cri),
];

/// Where the engines of users have theirs, below `/run/user/UID`.
const WELL_KNOWN_OF_USERS: [&str; 2] = ["docker.sock", "podman/podman.sock"];

/// Whether engines of the host have their sockets there.
pub(super) fn is_well_known(path: &Path) -> bool {
    WELL_KNOWN.iter().any(|(place, _)| path == Path::new(place))
}

/// What was found of sockets.
#[derive(Debug, Default)]
pub(super) struct FoundSockets {
    /// First those that the operator named, then those of the host, then those of other mount namespaces. One that appears
    /// at several places is one.
    pub(super) sockets: Vec<EngineSocket>,
    /// What named ones lack that cannot be used.
    pub(super) missing: Vec<(PathBuf, Place, io::Error)>,
    /// Where there may be more.
    pub(super) gaps: Vec<Gap>,
    /// The same, as those engines that were not asked: where they would be, and a process that sees them there.
    pub(super) unasked: Vec<(Origin, u32)>,
}

/// Where sockets are looked for.
#[derive(Debug)]
enum Look {
    /// At a path that the operator named.
    Named(PathBuf),
    /// At the well-known places of a mount namespace.
    Mounts(View),
    /// Where a user's engines have theirs, as a process sees it.
    OfUser { pid: u32, user: u32 },
    /// Where a process listens that is called as an engine is.
    OfProcess(EngineProcess),
}

/// What there is.
enum Looked {
    Named(io::Result<EngineSocket>),
    Sockets(FoundThere),
}

/// What there is at one place.
#[derive(Debug, Default)]
struct FoundThere {
    sockets: Vec<EngineSocket>,
    /// Whether not every process's root was looked into.
    is_cut: bool,
    /// Whether there may be sockets that could not be opened.
    lacks: bool,
    /// Users who may have sockets there.
    users: Vec<u32>,
}

impl FoundThere {
    /// What was opened. What could not be is not there, unless descriptors or memory were wanting.
    fn take<T>(&mut self, opened: io::Result<T>) -> Option<T> {
        opened
            .inspect_err(|error| self.lacks |= is_exhaustion(error))
            .ok()
    }
}

/// All sockets that there are, and that have a turn. Blocks, for a bounded time.
pub(super) fn find(pids: &[u32], configured: &[PathBuf], turns: &EngineTurns) -> FoundSockets {
    let mut found = FoundSockets::default();
    let mut lookout = Lookout::new(look);
    for (number, path) in configured.iter().enumerate() {
        let place = Place {
            owner: Owner::Host,
            kind: Kind::Named(number),
        };
        match lookout.look(place, (place, Look::Named(path.clone()))) {
            Ok(Looked::Named(Ok(socket))) => found.sockets.push(socket),
            Ok(Looked::Named(Err(error))) => found.missing.push((path.clone(), place, error)),
            Ok(Looked::Sockets(_)) => {}
            Err(missed) => {
                let error = io::Error::new(io::ErrorKind::TimedOut, missed);
                found.missing.push((path.clone(), place, error));
            }
        }
    }
    let missing = found.missing.iter();
    found.unasked = missing.map(|_| (Origin::Named, std::process::id())).collect();
    let mut others = Vec::new();
    for view in View::all(pids) {
        let place = view.place(Kind::Files);
        let engines = found.engines_in(&view, place);
        let first = view.pids.first().copied();
        let origin = match place.owner {
            Owner::Host => Origin::Host,
            _ => Origin::Elsewhere,
        };
        let seen_by = first.unwrap_or_default();
        let users = found.look(&mut lookout, place, Look::Mounts(view), (origin, seen_by));
        // The host's come before all others'.
        let (of_host, rest): (Vec<_>, Vec<_>) = engines.into_iter().partition(|engine| engine.is_hosts);
        found.look_at(&mut lookout, place, of_host);
        others.push((place, rest));
        for user in users {
            let place = Place {
                owner: Owner::User(user),
                ..place
            };
            if let Some(pid) = first {
                let look = Look::OfUser { pid, user };
                found.look(&mut lookout, place, look, (Origin::User(user), pid));
            }
        }
    }
    for (place, engines) in others {
        found.look_at(&mut lookout, place, engines);
    }
    found.bound(turns);
    found
}

/// Does a look, on a thread that somebody watches over.
fn look((place, look): (Place, Look)) -> Looked {
    match look {
        Look::Named(path) => Looked::Named(open_configured(&path, place)),
        Look::Mounts(view) => {
            let mut found = FoundThere::default();
            let saw_all = view.for_each_root(|pid| {
                let root = RootOf::process(pid)?;
                well_known(pid, &root, place, &mut found);
                // Those of users are looked for where the host's are.
                if place.owner == Owner::Host && found.users.is_empty() {
                    found.users = users_of(&root);
                }
                Ok(())
            });
            found.is_cut = !saw_all;
            Looked::Sockets(found)
        }
        Look::OfUser { pid, user } => {
            let mut found = FoundThere::default();
            if let Ok(root) = RootOf::process(pid) {
                of_user(pid, &root, user, place, &mut found);
            }
            Looked::Sockets(found)
        }
        Look::OfProcess(engine) => {
            let mut found = FoundThere::default();
            of_process(&engine, place, &mut found);
            Looked::Sockets(found)
        }
    }
}

impl FoundSockets {
    /// The processes in a mount namespace that are called as engines are.
    fn engines_in(&mut self, view: &View, place: Place) -> Vec<EngineProcess> {
        let (engines, has_more) = EngineProcess::all(view, place.owner);
        if has_more {
            self.gaps.push(Gap::Place(Unseen::TooMany(place)));
            self.unasked
                .extend(view.pids.first().map(|pid| (Origin::Elsewhere, *pid)));
        }
        engines
    }

    /// Looks for the sockets of engines by their processes, which see `place`.
    fn look_at(
        &mut self,
        lookout: &mut Lookout<(Place, Look), Looked>,
        place: Place,
        engines: Vec<EngineProcess>,
    ) {
        for engine in engines {
            let owner = engine.owner;
            let seen = (engine.origin(), engine.process.pid);
            self.look(lookout, Place { owner, ..place }, Look::OfProcess(engine), seen);
        }
    }

    /// Looks for sockets at a place, and gives the users who may have some there; `seen` is for those that are not found.
    fn look(
        &mut self,
        lookout: &mut Lookout<(Place, Look), Looked>,
        place: Place,
        look: Look,
        seen: (Origin, u32),
    ) -> Vec<u32> {
        match lookout.look(place, (place, look)) {
            Ok(Looked::Sockets(FoundThere {
                sockets,
                is_cut,
                lacks,
                users,
            })) => {
                self.sockets.extend(sockets);
                if lacks {
                    self.gaps.push(Gap::Place(Unseen::Unopened(place)));
                    self.unasked.push(seen);
                }
                if is_cut {
                    self.gaps.push(Gap::Place(Unseen::TooMany(place)));
                    // The host's own root is the first that is looked into.
                    self.unasked.push((Origin::Elsewhere, seen.1));
                }
                users
            }
            Ok(Looked::Named(_)) => Vec::new(),
            Err(missed) => {
                self.gaps.push(Gap::Place(missed.into()));
                self.unasked.push(seen);
                Vec::new()
            }
        }
    }

    /// Keeps one of each, and no more than have a turn.
    fn bound(&mut self, turns: &EngineTurns) {
        let mut seen = HashSet::new();
        self.sockets.retain(|socket| seen.insert(socket.id));
        let asked: HashSet<usize> = turns.order(&self.sockets).into_iter().collect();
        let found = std::mem::take(&mut self.sockets).into_iter().enumerate();
        let (asked, left_out): (Vec<_>, Vec<_>) = found.partition(|(index, _)| asked.contains(index));
        self.sockets = asked.into_iter().map(|(_, socket)| socket).collect();
        if !left_out.is_empty() {
            self.gaps.push(Gap::Sockets {
                left_out: left_out.len(),
            });
        }
        let left_out = left_out.iter().map(|(_, socket)| (socket.origin, socket.seen_by));
        self.unasked.extend(left_out);
    }
}

fn open_configured(path: &Path, place: Place) -> io::Result<EngineSocket> {
    let handle = open(path, OFlag::O_PATH | OFlag::O_CLOEXEC, Mode::empty())?;
    EngineSocket::new(path, None, handle, place, Origin::Named)
}

/// Sockets at well-known places below the root of a process.
fn well_known(pid: u32, root: &RootOf, place: Place, found: &mut FoundThere) {
    // Anyone else's root may be anything.
    let is_hosts = place.owner == Owner::Host && (pid == 1 || pid == std::process::id());
    let origin = if is_hosts { Origin::Host } else { Origin::Elsewhere };
    let open = |&(path, api): &(&str, Api)| {
        let path = Path::new(path);
        let opened = root.open_path(path);
        let opened = opened.and_then(|handle| EngineSocket::new(path, Some(api), handle, place, origin));
        Some(found.take(opened)?.seen_by(pid))
    };
    let sockets: Vec<EngineSocket> = WELL_KNOWN.iter().filter_map(open).collect();
    found.sockets.extend(sockets);
}

/// Users who may run engines for themselves, below a root.
fn users_of(root: &RootOf) -> Vec<u32> {
    let Ok(folder) = root.open_path(Path::new("/run/user")) else {
        return Vec::new();
    };
    let users = fs::read_dir(format!("/proc/self/fd/{}", folder.as_raw_fd()));
    let Ok(users) = users.inspect_err(note_want) else {
        return Vec::new();
    };
    users
        .filter_map(|user| user.ok()?.file_name().to_str()?.parse().ok())
        .take(MAX_USERS)
        .collect()
}

/// Sockets of the engines that a user runs, who may have put a link to another's there, or a file system of theirs.
fn of_user(pid: u32, root: &RootOf, user: u32, place: Place, found: &mut FoundThere) {
    let folder = Path::new("/run/user").join(user.to_string());
    let Some(own) = found.take(root.open_path(&folder)) else {
        return;
    };
    if !fstat(&own).is_ok_and(|stat| stat.st_uid == user) {
        return;
    }
    let how = OpenHow::new().flags(OFlag::O_PATH | OFlag::O_CLOEXEC).resolve(
        ResolveFlag::RESOLVE_BENEATH | ResolveFlag::RESOLVE_NO_SYMLINKS | ResolveFlag::RESOLVE_NO_XDEV,
    );
    let open = |socket: &&str| {
        let (path, origin) = (folder.join(socket), Origin::User(user));
        let opened = openat2(&own, *socket, how).map_err(io::Error::from);
        let opened =
            opened.and_then(|handle| EngineSocket::new(&path, Some(Api::Docker), handle, place, origin));
        let socket = found.take(opened)?;
        (socket.origin == origin).then_some(socket.seen_by(pid))
    };
    let sockets: Vec<EngineSocket> = WELL_KNOWN_OF_USERS.iter().filter_map(open).collect();
    found.sockets.extend(sockets);
}

/// Sockets at which a process listens, and which are its user's, as it sees them.
fn of_process(engine: &EngineProcess, place: Place, found: &mut FoundThere) {
    let pid = engine.process.pid;
    let Some((paths, is_cut)) = found.take(engine.paths()) else {
        return;
    };
    found.is_cut = is_cut;
    let Ok(root) = RootOf::process(pid) else { return };
    let open = |path: PathBuf| {
        let handle = found.take(root.open_path(&path))?;
        (fstat(&handle).ok()?.st_uid == engine.process.uid).then_some(())?;
        let opened = EngineSocket::new(&path, Some(engine.api), handle, place, engine.origin());
        let socket = found.take(opened)?.seen_by(pid);
        Some(socket.found_by(Arc::clone(&engine.process)))
    };
    let sockets: Vec<EngineSocket> = paths.into_iter().filter_map(open).collect();
    found.sockets.extend(sockets);
}

#[cfg(test)]
mod tests {
    use tokio::net::UnixListener;

    use super::*;
    use crate::discovery::{engine::Heard, engines::ask_all, workload::KnownPids};

    #[tokio::test]
    async fn named_sockets_are_opened_once_and_nothing_else_is() {
        let folder = std::env::temp_dir().join(format!("packetflix-sockets-{}", std::process::id()));
        fs::create_dir_all(&folder).unwrap();
        let [socket, link, file, missing] =
            ["socket", "link", "file", "missing"].map(|name| folder.join(name));
        let listener = UnixListener::bind(&socket).unwrap();
        std::os::unix::fs::symlink(&socket, &link).unwrap();
        fs::write(&file, "").unwrap();

        let named = [&socket, &link, &file, &missing].map(Clone::clone);
        let FoundSockets {
            sockets,
            missing: unusable,
            gaps,
            unasked,
        } = find(&[], &named, &EngineTurns::default());
        assert_eq!(unasked.len(), 2);
        assert_eq!(gaps, []);
        assert_eq!(sockets.len(), 1);
        assert!(sockets[0].origin == Origin::Named && sockets[0].api.is_none());
        let unusable: Vec<_> = unusable.into_iter().map(|(path, ..)| path).collect();
        assert_eq!(unusable, [file, missing]);

        sockets[0].connect().await.unwrap();
        listener.accept().await.unwrap();
        drop(listener);
        assert!(sockets[0].connect().await.is_err());
        fs::remove_dir_all(&folder).unwrap();
    }

    /// Sockets in a folder, each with its listener, in the hands of the container that has this number.
    fn socket_of(container: u64, path: &Path) -> EngineSocket {
        let place = Place {
            owner: Owner::Container,
            kind: Kind::Files(container),
        };
        let handle = open(path, OFlag::O_PATH | OFlag::O_CLOEXEC, Mode::empty()).unwrap();
        EngineSocket::new(path, Some(Api::Docker), handle, place, Origin::Elsewhere).unwrap()
    }

    #[tokio::test]
    async fn who_does_not_answer_waits_and_others_have_their_turns() {
        let folder = std::env::temp_dir().join(format!("packetflix-turns-{}", std::process::id()));
        fs::create_dir_all(&folder).unwrap();
        let [silent, quick] = ["silent", "quick"].map(|name| folder.join(name));
        let _unheard = UnixListener::bind(&silent).unwrap();
        let heard = UnixListener::bind(&quick).unwrap();
        let answering = tokio::spawn(async move { while heard.accept().await.is_ok() {} });

        // One has as many sockets as it likes, and they come first.
        let mut sockets: Vec<EngineSocket> = (0..40).map(|_| socket_of(1, &silent)).collect();
        sockets.push(socket_of(2, &quick));
        let mut turns = EngineTurns::default();
        assert_eq!(turns.order(&sockets), [0, 40, 1, 2, 3]);
        for expected in [Heard::Silent, Heard::Unasked] {
            let answers = ask_all(&sockets, &turns, |_| KnownPids::default()).await;
            turns.take_in(&answers);
            let heard: Vec<Heard> = answers.iter().map(|engine| engine.heard).collect();
            assert_eq!(heard, [expected, expected, expected, expected, Heard::Answered]);
            // It is told all the same, and as before.
            let problem = answers[0].problem.as_ref().unwrap();
            assert_eq!(problem.sentence, "it did not tell everything within 1 s");
            assert_eq!(turns.order(&sockets), [40, 0, 1, 2, 3]);
        }
        answering.abort();
        fs::remove_dir_all(&folder).unwrap();
    }
}
