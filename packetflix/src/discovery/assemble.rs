//! Puts together what engines, processes and namespaces tell: one list of targets.

use std::{
    cell::OnceCell,
    collections::{BTreeMap, HashMap, HashSet},
    io,
    path::{Path, PathBuf},
    sync::Arc,
};

use super::{
    engine::Engine,
    processes::ProcessTable,
    target::{DiscoveredTarget, FirstProcess, Namespace, WorkloadFacts},
    trust::{Authority, Trust},
    workload::{Workload, WorkloadKind},
};
use crate::{description::full_name, proc_fs::Stat};

/// Processes of one namespace that are listed, where nothing else is known of it.
const MAX_LEADERS: usize = 16;

/// A container or pod whose process was found.
#[derive(Clone, Debug)]
pub(super) struct RunningWorkload {
    workload: Workload,
    /// Socket of its engine, and device and inode number of that.
    engine: PathBuf,
    engine_id: (u64, u64),
    authority: Authority,
    /// In our PID namespace.
    pub(super) pid: u32,
    starttime: u64,
    pub(super) netns: u64,
    prefix: String,
    /// Whether its engine has it on its list, as far as is known. If not, no other engine may have it either.
    pub(super) is_listed: bool,
}

/// What engines run.
#[derive(Debug, Default)]
pub(super) struct FoundWorkloads {
    /// By the PIDs of their first processes.
    pub(super) running: BTreeMap<u32, RunningWorkload>,
    /// Of whom those might speak who did not tell everything: whoever of these is nobody's yet may be theirs.
    pub(super) doubts: HashSet<Authority>,
}

/// Finds the processes of what the engines run, given what they ran `before`. What an engine says of processes that are not
/// its own to speak of is left out, and so is what it says of a process that another one has spoken of, unless that is
/// trusted less: a process stays an engine's for as long as it lives, whether the engine is there or not. `owners_of` tells
/// the users whose user namespaces are around a process.
pub(super) fn find_processes(
    engines: &[Engine],
    table: &ProcessTable,
    before: impl IntoIterator<Item = RunningWorkload>,
    owners_of: impl Fn(u32) -> io::Result<Vec<u32>>,
) -> FoundWorkloads {
    let mut found = FoundWorkloads::default();
    found.keep(table, before);
    let mut described = HashSet::new();
    let mut complete = Vec::new();
    for engine in engines {
        let enclosing = found.enclosing(table);
        let authority = Authority::of(engine, table, &enclosing);
        let doubt = match authority {
            Authority::Nobody => Some(Authority::widest(
                engine.origin,
                engine.seen_by,
                table,
                &enclosing,
            )),
            authority => engine.problem.as_ref().map(|_| authority),
        };
        drop(enclosing);
        match doubt {
            None => complete.push((engine.path.clone(), authority)),
            Some(doubt) => drop(found.doubts.insert(doubt)),
        }
        let may_speak_of = authority.reach(table, &owners_of);
        described.extend(found.take_in(engine, authority, table, may_speak_of));
    }
    found.running.retain(|pid, running| {
        let is_given_up = !described.contains(pid)
            && complete
                .iter()
                .any(|(path, authority)| running.is_of(path, *authority));
        running.is_listed &= !is_given_up;
        running.is_listed || running.authority.trust() == Trust::Host
    });
    found
}

impl FoundWorkloads {
    /// Takes those that still run.
    fn keep(&mut self, table: &ProcessTable, before: impl IntoIterator<Item = RunningWorkload>) {
        for running in before {
            let process = table.get(running.pid);
            let process = process.filter(|process| process.stat.starttime == running.starttime);
            if let Some(netns) = process.and_then(|process| process.netns) {
                self.running
                    .insert(running.pid, RunningWorkload { netns, ..running });
            }
        }
    }

    /// The first process of the innermost container that a process is in: one that it descends from, or else one of its
    /// PID namespace, for what was started in a container from outside.
    pub(super) fn enclosing(&self, table: &ProcessTable) -> impl Fn(u32) -> Option<u32> {
        let ancestors = table.innermost(|pid| self.running.contains_key(&pid).then_some(pid));
        let firsts = OnceCell::new();
        move |pid| {
            let beside = || {
                let firsts: &HashMap<u64, u32> = firsts.get_or_init(|| {
                    let all = self.running.keys().rev();
                    all.filter_map(|first| Some((table.pid_namespace(*first)?, *first)))
                        .collect()
                });
                let home = table.pid_namespace(pid)?;
                firsts
                    .get(&home)
                    .copied()
                    .filter(|_| home != table.own_pid_namespace())
            };
            ancestors.get(&pid).copied().or_else(beside)
        }
    }

    /// Takes in what an engine runs; gives the PIDs of all of it.
    fn take_in(
        &mut self,
        engine: &Engine,
        authority: Authority,
        table: &ProcessTable,
        may_speak_of: impl Fn(u32) -> bool,
    ) -> Vec<u32> {
        let Some(peer) = engine.peer.as_ref().filter(|_| authority != Authority::Nobody) else {
            return Vec::new();
        };
        let numbers = table.as_numbered_by(peer.pid);
        let prefix = match authority {
            Authority::Container { first } => self
                .running
                .get(&first)
                .map(RunningWorkload::full_name)
                .unwrap_or_default(),
            _ => String::new(),
        };
        let mut described = Vec::new();
        for workload in &engine.workloads {
            let pid = numbers.translate(workload.pid);
            let process = pid.and_then(|pid| Some((pid, table.get(pid)?)));
            let Some((pid, process)) = process.filter(|(pid, _)| may_speak_of(*pid)) else {
                tracing::debug!(container = workload.name, pid = workload.pid, engine = ?engine.path,
                    "a container is left out: its process is not there, or not the engine's");
                continue;
            };
            let Some(netns) = process.netns else { continue };
            let is_others = self.running.get(&pid).is_some_and(|running| {
                !running.is_of(&engine.path, authority) && authority.trust() <= running.authority.trust()
            });
            if is_others {
                continue;
            }
            let running = RunningWorkload {
                workload: workload.clone(),
                engine: engine.path.clone(),
                engine_id: engine.id,
                authority,
                pid,
                starttime: process.stat.starttime,
                netns,
                prefix: prefix.clone(),
                is_listed: true,
            };
            described.push(pid);
            self.running.insert(pid, running);
        }
        described
    }
}

impl RunningWorkload {
    /// Device and inode number of its engine's socket, and what the engine need not be asked again: the PID, by what it was
    /// asked for by.
    pub(super) fn known(&self) -> ((u64, u64), (String, u32)) {
        (self.engine_id, (self.workload.key.clone(), self.workload.pid))
    }

    /// Whether the process is the same still.
    pub(super) fn is_there(&self) -> bool {
        Stat::read(self.pid).is_ok_and(|stat| stat.starttime == self.starttime)
    }

    /// Its name as people write it, with its prefix.
    pub(super) fn full_name(&self) -> String {
        let (_, name) = self.workload.title(self.authority.runs_pods());
        full_name(&self.prefix, &name)
    }

    /// Whether an engine of the host says that it is a pod. Those of engines in containers are other clusters'.
    pub(super) fn is_pod(&self) -> bool {
        let (kind, _) = self.workload.title(self.authority.runs_pods());
        kind == WorkloadKind::Pod && self.authority == Authority::Host
    }

    /// Whose word its name is.
    pub(super) fn authority(&self) -> Authority {
        self.authority
    }

    /// Identifier of the container that the process was told for.
    pub(super) fn container(&self) -> &str {
        &self.workload.key
    }

    /// Whether a process is in it whose control group has its identifier for a name. So it is with engines of the host; any
    /// other could choose a word of somebody else's control group, and a short one could be anything.
    pub(super) fn names_control_groups(&self) -> bool {
        const MIN_LEN: usize = 12;

        self.authority == Authority::Host && self.container().len() >= MIN_LEN
    }

    fn is_of(&self, engine: &Path, authority: Authority) -> bool {
        self.engine == engine && self.authority == authority
    }
}

/// All targets: containers and pods, processes in namespaces that have neither, and mounted namespaces that have no
/// process; ordered by name.
pub(super) fn assemble(
    found: &FoundWorkloads,
    table: &ProcessTable,
    namespaces: &HashMap<u64, Arc<Namespace>>,
) -> Vec<DiscoveredTarget> {
    let listed = || found.running.values().filter(|running| running.is_listed);
    let contained: HashSet<u64> = listed().map(|running| running.netns).collect();
    let mut targets = workloads(listed(), namespaces);
    let mut leaders = table.leaders();
    for (inode, namespace) in namespaces {
        let leaders = leaders.remove(inode).unwrap_or_default();
        if leaders.is_empty() {
            targets.extend(mounted(namespace));
        } else if namespace.is_host {
            // The first process of all, as far as we can see.
            targets.extend(process(leaders[0], table, namespace));
        } else if !contained.contains(inode) {
            targets.extend(
                leaders
                    .into_iter()
                    .take(MAX_LEADERS)
                    .filter_map(|pid| process(pid, table, namespace)),
            );
        }
    }
    targets.sort_by(|a, b| {
        (&a.name, &a.prefix, a.namespace.inode).cmp(&(&b.name, &b.prefix, b.namespace.inode))
    });
    targets
}

/// Containers each, and pods once, however many containers and engines speak of them.
fn workloads<'a>(
    running: impl Iterator<Item = &'a RunningWorkload>,
    namespaces: &HashMap<u64, Arc<Namespace>>,
) -> Vec<DiscoveredTarget> {
    let mut targets = Vec::new();
    let mut pods: BTreeMap<(String, u64), DiscoveredTarget> = BTreeMap::new();
    for running in running {
        let Some(namespace) = namespaces.get(&running.netns) else {
            continue;
        };
        let workload = &running.workload;
        let (kind, name) = workload.title(running.authority.runs_pods());
        let target = DiscoveredTarget {
            kind: kind.as_str(),
            trust: running.authority.trust(),
            prefix: running.prefix.clone(),
            namespace: Arc::clone(namespace),
            process: Some(FirstProcess {
                pid: running.pid,
                starttime: running.starttime,
            }),
            workload: Some(WorkloadFacts {
                id: workload.id.clone(),
                engine: running.engine.clone(),
                images: workload.images.clone(),
                labels: workload.labels.clone(),
                labels_left_out: workload.labels_left_out,
                state: workload.state.clone(),
                pod: workload.pod.clone().filter(|_| kind == WorkloadKind::Pod),
            }),
            name,
        };
        if kind == WorkloadKind::Pod {
            merge_pod(&mut pods, target);
        } else {
            targets.push(target);
        }
    }
    targets.extend(pods.into_values());
    targets
}

/// Of a pod's containers, as Docker knows them, the oldest process stands for the pod: that of its sandbox.
fn merge_pod(pods: &mut BTreeMap<(String, u64), DiscoveredTarget>, target: DiscoveredTarget) {
    let key = (target.full_name(), target.namespace.inode);
    let Some(present) = pods.get_mut(&key) else {
        pods.insert(key, target);
        return;
    };
    let age = |target: &DiscoveredTarget| target.process.map(|process| process.starttime);
    let (older, younger) = if age(&target) < age(present) {
        (target, present.clone())
    } else {
        (present.clone(), target)
    };
    *present = older;
    if let (Some(facts), Some(more)) = (&mut present.workload, younger.workload) {
        facts.images.extend(more.images);
        facts.images.sort();
        facts.images.dedup();
    }
}

fn process(pid: u32, table: &ProcessTable, namespace: &Arc<Namespace>) -> Option<DiscoveredTarget> {
    let stat = &table.get(pid)?.stat;
    Some(DiscoveredTarget {
        name: format!("{}({pid})", stat.name),
        kind: "proc",
        // Its number is nobody's else; what comes before that is its own word.
        trust: if table.is_roots(pid) {
            Trust::Host
        } else {
            Trust::Others
        },
        prefix: String::new(),
        namespace: Arc::clone(namespace),
        process: Some(FirstProcess {
            pid,
            starttime: stat.starttime,
        }),
        workload: None,
    })
}

fn mounted(namespace: &Arc<Namespace>) -> Option<DiscoveredTarget> {
    let mount = namespace.mounts.first()?;
    Some(DiscoveredTarget {
        name: mount.path.display().to_string(),
        kind: "bindmount",
        trust: if mount.is_hosts {
            Trust::Host
        } else {
            Trust::Others
        },
        prefix: String::new(),
        namespace: Arc::clone(namespace),
        process: None,
        workload: None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        access::{Rights, Verdict},
        discovery::{
            engine::Heard, engine_socket::Origin, occupants::Census, peer::SocketPeer, problem::Problem,
            processes::tests::table, target::Mount, workload::PodName,
        },
        lookout::{Kind, Owner, Place},
    };

    fn engine(pid: u32, uid: u32, workloads: Vec<Workload>) -> Engine {
        Engine {
            path: format!("/run/{pid}.sock").into(),
            id: (0, pid.into()),
            origin: Origin::Named,
            seen_by: HOST,
            place: Place {
                owner: Owner::Host,
                kind: Kind::Named(0),
            },
            peer: Some(SocketPeer::scripted(pid, uid)),
            workloads,
            problem: None,
            heard: Heard::Answered,
        }
    }

    fn container(name: &str, pid: u32) -> Workload {
        Workload {
            kind: WorkloadKind::Docker,
            id: format!("id-{name}"),
            key: format!("id-{name}-{pid}"),
            name: name.to_owned(),
            pid,
            images: vec![format!("image-{name}")],
            labels: BTreeMap::new(),
            labels_left_out: 0,
            state: "running".to_owned(),
            pod: None,
        }
    }

    fn pod(name: &str, pid: u32, image: &str) -> Workload {
        let pod = PodName {
            namespace: "shop".to_owned(),
            name: name.to_owned(),
        };
        Workload {
            images: vec![image.to_owned()],
            pod: Some(pod),
            ..container(name, pid)
        }
    }

    /// PIDs beyond what a kernel gives, so that nothing real is looked at.
    const HOST: u32 = 5_000_001;
    const DOCKERD: u32 = 5_000_010;
    const KIND: u32 = 5_000_020;
    const NESTED_ENGINE: u32 = 5_000_021;
    const NESTED: u32 = 5_000_022;
    const WEB: u32 = 5_000_030;
    const USERS_ENGINE: u32 = 5_000_040;
    const USERS: u32 = 5_000_041;

    fn processes() -> ProcessTable {
        table(&[
            (HOST, 0, 0, 100),
            (DOCKERD, HOST, 10, 100),
            (KIND, DOCKERD, 20, 200),
            (NESTED_ENGINE, KIND, 21, 200),
            (NESTED, KIND, 22, 300),
            (WEB, DOCKERD, 30, 400),
            (USERS_ENGINE, HOST, 40, 100),
            (USERS, USERS_ENGINE, 41, 500),
        ])
    }

    fn namespaces(inodes: &[u64]) -> HashMap<u64, Arc<Namespace>> {
        let namespace = |&inode| Namespace {
            inode,
            is_host: inode == 100,
            is_roots: true,
            links: Vec::new(),
            mounts: vec![Mount {
                path: format!("/run/netns/{inode}").into(),
                is_hosts: true,
            }],
        };
        inodes
            .iter()
            .map(|inode| (*inode, Arc::new(namespace(inode))))
            .collect()
    }

    fn find(engines: &[Engine], before: FoundWorkloads) -> FoundWorkloads {
        let owners_of = |pid| Ok(if pid == USERS { vec![1000] } else { Vec::new() });
        find_processes(engines, &processes(), before.running.into_values(), owners_of)
    }

    fn listed(found: &FoundWorkloads) -> Vec<(String, String, u32)> {
        let listed = found.running.values().filter(|running| running.is_listed);
        listed
            .map(|running| (running.prefix.clone(), running.workload.name.clone(), running.pid))
            .collect()
    }

    fn found(engines: &[Engine]) -> Vec<(String, String, u32)> {
        listed(&find(engines, FoundWorkloads::default()))
    }

    fn expected(found: &[(&str, &str, u32)]) -> Vec<(String, String, u32)> {
        let owned = |&(prefix, name, pid): &(&str, &str, u32)| (prefix.to_owned(), name.to_owned(), pid);
        found.iter().map(owned).collect()
    }

    #[test]
    fn containers_of_an_engine_in_a_container_have_its_name_as_prefix() {
        let outer = engine(DOCKERD, 0, vec![container("kind", KIND), container("web", WEB)]);
        let inner = engine(NESTED_ENGINE, 0, vec![container("web", NESTED)]);
        let all = [("", "kind", KIND), ("kind", "web", NESTED), ("", "web", WEB)];
        assert_eq!(found(&[outer, inner]), expected(&all));
    }

    #[test]
    fn what_an_engine_may_not_know_is_left_out() {
        let outer = engine(DOCKERD, 0, vec![container("kind", KIND), container("web", WEB)]);
        let lies = [HOST, DOCKERD, KIND, WEB, USERS, 0, u32::MAX].map(|pid| container("lie", pid));
        let all = [("", "kind", KIND), ("", "web", WEB)];
        let inner = engine(NESTED_ENGINE, 0, lies.to_vec());
        assert_eq!(found(&[outer, inner]), expected(&all));

        let outer = engine(DOCKERD, 0, vec![container("web", WEB)]);
        let lies = [HOST, DOCKERD, KIND, WEB, USERS].map(|pid| container("user", pid));
        let of_user = engine(USERS_ENGINE, 1000, lies.to_vec());
        let all = [("", "web", WEB), ("", "user", USERS)];
        assert_eq!(found(&[outer, of_user]), expected(&all));

        let nowhere = Engine {
            peer: None,
            ..engine(DOCKERD, 0, vec![container("web", WEB)])
        };
        assert_eq!(found(&[nowhere]), []);
    }

    #[test]
    fn a_process_stays_an_engines_for_as_long_as_it_lives() {
        let outer = || engine(DOCKERD, 0, vec![container("kind", KIND), container("web", WEB)]);
        let liar = || {
            engine(
                NESTED_ENGINE,
                0,
                vec![container("web", WEB), container("own", NESTED)],
            )
        };
        let first = find(&[outer()], FoundWorkloads::default());
        // The engine restarts: its containers are its own still, and one that is in one of them stays in it.
        let without = find(&[liar()], first);
        let all = [("", "kind", KIND), ("kind", "own", NESTED), ("", "web", WEB)];
        assert_eq!(listed(&without), expected(&all));
        let silent = Engine {
            workloads: Vec::new(),
            problem: Some(Problem {
                sentence: "it hangs".to_owned(),
                remedy: "".into(),
            }),
            ..outer()
        };
        let silent = find(&[silent, liar()], without);
        assert_eq!(listed(&silent), expected(&all));
        assert_eq!(silent.doubts, HashSet::from([Authority::Host]));
        // What it does not list any more is nobody's.
        let less = engine(DOCKERD, 0, vec![container("kind", KIND)]);
        let of_user = engine(
            USERS_ENGINE,
            1000,
            vec![container("web", WEB), container("own", USERS)],
        );
        let less = find(&[less, liar(), of_user], silent);
        let rest = [("", "kind", KIND), ("kind", "own", NESTED), ("", "own", USERS)];
        assert_eq!(listed(&less), expected(&rest));
        // One that is trusted more has the last word.
        let all = outer().workloads.into_iter().chain([container("mine", USERS)]);
        let all = find(&[engine(DOCKERD, 0, all.collect())], less);
        assert_eq!(all.running[&USERS].full_name(), "mine");
        assert!(all.doubts.is_empty());
    }

    fn running(authority: Authority, workload: Workload) -> RunningWorkload {
        RunningWorkload {
            workload,
            engine: PathBuf::new(),
            engine_id: (0, 0),
            authority,
            pid: 1,
            starttime: 1,
            netns: 1,
            prefix: String::new(),
            is_listed: true,
        }
    }

    #[test]
    fn control_groups_have_the_names_of_the_hosts_containers_alone() {
        let of = |authority, key: &str| {
            let workload = Workload {
                key: key.to_owned(),
                ..container("web", 1)
            };
            running(authority, workload).names_control_groups()
        };
        assert!(of(Authority::Host, "0123456789ab"));
        assert!(!of(Authority::Host, "short"));
        for authority in [
            Authority::Container { first: 5 },
            Authority::User(1000),
            Authority::PidNamespace(7),
            Authority::Nobody,
        ] {
            assert!(!of(authority, "elasticsearch"), "{authority:?}");
        }
    }

    /// A tree may be as deep as there are PIDs.
    #[test]
    fn deep_trees_are_walked_once() {
        const FIRST: u32 = 5_100_000;
        const COUNT: u32 = 30_000;

        let deep: Vec<(u32, u32, u64, u64)> = (FIRST..FIRST + COUNT)
            .map(|pid| (pid, pid - 1, 50, u64::from(200 + pid % 7)))
            .collect();
        let mut processes = table(&deep);
        processes.extend(table(&[(FIRST - 1, HOST, 10, 100), (HOST, 0, 0, 100)]));
        let last = FIRST + COUNT - 1;
        let outer = engine(FIRST - 1, 0, vec![container("kind", FIRST + 5)]);
        // One that speaks of many, and one that does not tell all.
        let many = (1..1000).map(|number| container(&format!("c{number}"), last - number));
        let inner = engine(FIRST + 10, 0, many.collect());
        let silent = Engine {
            problem: Some(Problem {
                sentence: "it hangs".to_owned(),
                remedy: "".into(),
            }),
            ..engine(last - 5, 0, Vec::new())
        };
        let owners_of = |_| Ok(vec![1000]);
        let found = find_processes(&[outer, inner, silent], &processes, [], owners_of);
        assert_eq!(found.running.len(), 1000);
        let namespaces = namespaces(&[100, 200, 201, 202, 203, 204, 205, 206]);
        let targets = assemble(&found, &processes, &namespaces);
        let census = Census {
            found: &found,
            table: &processes,
            namespaces: &namespaces,
            host: 100,
            is_cut: false,
        };
        let occupants = census.take(owners_of);
        assert!(targets.len() > 1000 && occupants.len() == 8);
        let looks = processes.looks();
        assert!(looks < 30 * COUNT as usize, "{looks}");
    }

    /// All in a namespace are judged, although it was not to be looked at any more.
    #[test]
    fn those_who_have_left_meanwhile_are_known() {
        let engines = [engine(DOCKERD, 0, vec![container("web", WEB)])];
        let mut processes = processes();
        processes.extend(table(&[(WEB + 1, HOST, 31, 400)]));
        let found = find_processes(&engines, &processes, [], |_| Ok(Vec::new()));
        let census = Census {
            found: &found,
            table: &processes,
            namespaces: &namespaces(&[100]),
            host: 100,
            is_cut: false,
        };
        let occupants = &census.take(|_| Ok(Vec::new()))[&400];
        for (scope, verdict) in [
            ("capture:web", Verdict::Refused),
            ("capture:web capture:p*", Verdict::Refused),
            ("capture:**", Verdict::Allowed),
        ] {
            let rights = Rights::parse(scope.split(' ')).unwrap();
            assert_eq!(rights.may_capture(occupants), verdict, "{scope}");
        }
    }

    /// Each process may be in any of the containers, and in each namespace there may be one.
    #[test]
    fn containers_that_share_a_pid_namespace_are_known_up_to_a_bound() {
        const FIRST: u32 = 5_200_000;
        const LOST: u32 = FIRST + 1000;
        const SHARED: u64 = 77;

        for (count, verdict) in [
            (64, Verdict::Allowed),
            (65, Verdict::Unsure),
            (500, Verdict::Unsure),
        ] {
            let pids = FIRST..FIRST + count;
            let workloads = pids.clone().map(|pid| container(&format!("web-{pid}"), pid));
            let engines = [engine(DOCKERD, 0, workloads.collect())];
            let mut processes = processes();
            let containers: Vec<_> = pids.clone().map(|pid| (pid, DOCKERD, 50, 200)).collect();
            processes.extend(table(&containers));
            // Whose parents have ended, in namespaces of their own.
            let lost: Vec<_> = (0..300)
                .map(|one| (LOST + one, HOST, 60, 1000 + u64::from(one)))
                .collect();
            processes.extend(table(&lost));
            for pid in pids.chain(lost.iter().map(|one| one.0)) {
                processes.put_into_pid_namespace(pid, SHARED);
            }
            let found = find_processes(&engines, &processes, [], |_| Ok(Vec::new()));
            assert_eq!(found.running.len(), count as usize);
            let census = Census {
                found: &found,
                table: &processes,
                namespaces: &namespaces(&[100]),
                host: 100,
                is_cut: false,
            };
            let occupants = census.take(|_| Ok(Vec::new()));
            let rights = Rights::parse(["capture:web-*"]).unwrap();
            for (_, _, _, netns) in lost {
                let occupants = &occupants[&netns];
                assert_eq!(rights.may_capture(occupants), verdict, "{count}");
                assert_eq!(occupants.len(), 64);
            }
        }
    }

    #[test]
    fn names_say_who_has_given_them() {
        let named = |authority, workload| running(authority, workload).full_name();
        let cart = || Workload {
            name: "k8s_cart".to_owned(),
            ..pod("cart-0", 1, "cart")
        };
        assert_eq!(named(Authority::Host, cart()), "shop/cart-0");
        // Kubernetes has its pods run by engines of the host, or by those of hosts that are containers.
        for authority in [Authority::User(1000), Authority::PidNamespace(7)] {
            assert_eq!(named(authority, cart()), "k8s_cart");
        }
        for name in ["shop/cart-0", "kind:web", ""] {
            let id = named(Authority::Host, container(name, 1));
            assert_eq!(id, format!("id-{name}"));
        }
    }

    #[test]
    fn every_namespace_is_a_target_once_unless_it_has_several_containers() {
        let engines = [engine(
            DOCKERD,
            0,
            vec![
                container("web", WEB),
                container("sidecar", WEB + 1),
                pod("cart-0", KIND + 5, "cart"),
                pod("cart-0", KIND, "pause"),
            ],
        )];
        let mut processes = processes();
        let more = table(&[
            (WEB + 1, DOCKERD, 31, 400),
            (KIND + 5, KIND, 23, 200),
            (USERS + 1, HOST, 42, 500),
        ]);
        processes.extend(more);
        let found = find_processes(&engines, &processes, [], |_| Ok(Vec::new()));
        let namespaces = namespaces(&[100, 200, 300, 400, 500, 600]);
        let targets = assemble(&found, &processes, &namespaces);
        let listed: Vec<(&str, &str, u64, Option<u32>)> = targets
            .iter()
            .map(|target| {
                let pid = target.process.map(|process| process.pid);
                (&target.name[..], target.kind, target.namespace.inode, pid)
            })
            .collect();
        let name = |pid: u32| format!("p{pid}({pid})");
        assert_eq!(
            listed,
            [
                ("/run/netns/600", "bindmount", 600, None),
                (&name(HOST)[..], "proc", 100, Some(HOST)),
                (&name(NESTED), "proc", 300, Some(NESTED)),
                (&name(USERS), "proc", 500, Some(USERS)),
                (&name(USERS + 1), "proc", 500, Some(USERS + 1)),
                ("shop/cart-0", "pod", 200, Some(KIND)),
                ("sidecar", "docker", 400, Some(WEB + 1)),
                ("web", "docker", 400, Some(WEB)),
            ]
        );
        let pod = targets[5].workload.as_ref().unwrap();
        assert_eq!(pod.images, ["cart", "pause"]);
    }
}
