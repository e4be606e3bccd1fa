//! Puts together what engines, processes and namespaces tell: one list of targets.

use std::{
    collections::{BTreeMap, HashMap, HashSet},
    sync::Arc,
};

use super::{
    engines::Engine,
    processes::ProcessTable,
    target::{DiscoveredTarget, FirstProcess, Namespace, WorkloadFacts},
    workload::{Workload, WorkloadKind},
};

/// Processes of one namespace that are listed, where nothing else is known of it.
const MAX_LEADERS: usize = 16;

/// A container or pod whose process was found.
pub(super) struct Running {
    workload: Workload,
    engine: usize,
    /// In our PID namespace.
    pub(super) pid: u32,
    pub(super) starttime: u64,
    netns: u64,
    prefix: String,
}

/// Finds the processes of what the engines run. An engine in a container may speak of processes in that container
/// only, one of another user only of processes in user namespaces of that user, and no engine of a process that
/// another has spoken of before: what it says of others is left out.
pub(super) fn find_processes(
    engines: &[Engine],
    table: &ProcessTable,
    is_owned_by: impl Fn(u32, u32) -> bool,
) -> Vec<Running> {
    let mut running: Vec<Running> = Vec::new();
    let mut containers: HashMap<u32, String> = HashMap::new();
    for (index, engine) in engines.iter().enumerate() {
        let Some(engine_pid) = engine.pid else { continue };
        // The innermost container around the engine, and its full name.
        let enclosing = table
            .line_of(engine_pid)
            .find_map(|pid| Some((pid, containers.get(&pid)?.clone())));
        let numbers = table.as_numbered_by(engine_pid);
        let may_speak_of = |pid: u32| match &enclosing {
            Some((container, _)) => pid != *container && table.line_of(pid).any(|pid| pid == *container),
            None => engine.uid == 0 || is_owned_by(pid, engine.uid),
        };
        let prefix = enclosing.as_ref().map_or("", |(_, name)| name);
        let mut found = Vec::new();
        for workload in &engine.workloads {
            let pid = match &numbers {
                Some(numbers) => numbers.get(&workload.pid).copied(),
                None => Some(workload.pid),
            };
            let process = pid.and_then(|pid| Some((pid, table.get(pid)?)));
            let Some((pid, process)) = process.filter(|(pid, _)| may_speak_of(*pid)) else {
                tracing::debug!(container = workload.name, pid = workload.pid, engine = %engine.path.display(),
                    "a container is left out: its process is not there, or not the engine's");
                continue;
            };
            let (Some(netns), false) = (process.netns, containers.contains_key(&pid)) else {
                continue;
            };
            let name = if prefix.is_empty() {
                workload.name.clone()
            } else {
                format!("{prefix}/{}", workload.name)
            };
            found.push((pid, name));
            running.push(Running {
                workload: workload.clone(),
                engine: index,
                pid,
                starttime: process.stat.starttime,
                netns,
                prefix: prefix.to_owned(),
            });
        }
        containers.extend(found);
    }
    running
}

impl Running {
    /// The identifier of its engine's socket, and that of itself.
    pub(super) fn key(&self, engines: &[Engine]) -> ((u64, u64), String, u32) {
        (
            engines[self.engine].id,
            self.workload.id.clone(),
            self.workload.pid,
        )
    }
}

/// All targets: containers and pods, processes in namespaces that have neither, and mounted namespaces that have no
/// process; ordered by name.
pub(super) fn assemble(
    running: Vec<Running>,
    engines: &[Engine],
    table: &ProcessTable,
    namespaces: &HashMap<u64, Arc<Namespace>>,
) -> Vec<DiscoveredTarget> {
    let contained: HashSet<u64> = running.iter().map(|running| running.netns).collect();
    let mut targets = workloads(running, engines, namespaces);
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
fn workloads(
    running: Vec<Running>,
    engines: &[Engine],
    namespaces: &HashMap<u64, Arc<Namespace>>,
) -> Vec<DiscoveredTarget> {
    let mut targets = Vec::new();
    let mut pods: BTreeMap<(String, u64), DiscoveredTarget> = BTreeMap::new();
    for running in running {
        let Some(namespace) = namespaces.get(&running.netns) else {
            continue;
        };
        let is_pod = running.workload.kind == WorkloadKind::Pod;
        let Workload {
            kind,
            id,
            name,
            images,
            labels,
            state,
            pod,
            ..
        } = running.workload;
        let target = DiscoveredTarget {
            kind: kind.as_str(),
            // A pod's name is its own in the whole cluster.
            prefix: if is_pod { String::new() } else { running.prefix },
            namespace: Arc::clone(namespace),
            process: Some(FirstProcess {
                pid: running.pid,
                starttime: running.starttime,
            }),
            workload: Some(WorkloadFacts {
                id,
                engine: engines[running.engine].path.clone(),
                images,
                labels,
                state,
                pod,
            }),
            name,
        };
        if is_pod {
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
    let key = (target.name.clone(), target.namespace.inode);
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
    Some(DiscoveredTarget {
        name: namespace.mounts.first()?.display().to_string(),
        kind: "bindmount",
        prefix: String::new(),
        namespace: Arc::clone(namespace),
        process: None,
        workload: None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::discovery::{processes::tests::table, workload::PodName};

    fn engine(pid: u32, uid: u32, workloads: Vec<Workload>) -> Engine {
        Engine {
            path: format!("/run/{pid}.sock").into(),
            id: (0, pid.into()),
            pid: Some(pid),
            uid,
            workloads,
            problem: None,
        }
    }

    fn container(name: &str, pid: u32) -> Workload {
        Workload {
            kind: WorkloadKind::Docker,
            id: format!("id-{name}"),
            name: name.to_owned(),
            pid,
            images: vec![format!("image-{name}")],
            labels: BTreeMap::new(),
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
            kind: WorkloadKind::Pod,
            name: pod.full(),
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
            links: Vec::new(),
            mounts: vec![format!("/run/netns/{inode}").into()],
        };
        inodes
            .iter()
            .map(|inode| (*inode, Arc::new(namespace(inode))))
            .collect()
    }

    fn found(engines: &[Engine]) -> Vec<(String, String, u32)> {
        let is_owned_by = |pid, uid| pid == USERS && uid == 1000;
        find_processes(engines, &processes(), is_owned_by)
            .into_iter()
            .map(|running| (running.prefix, running.workload.name, running.pid))
            .collect()
    }

    fn expected(found: &[(&str, &str, u32)]) -> Vec<(String, String, u32)> {
        let owned = |&(prefix, name, pid): &(&str, &str, u32)| (prefix.to_owned(), name.to_owned(), pid);
        found.iter().map(owned).collect()
    }

    #[test]
    fn containers_of_an_engine_in_a_container_have_its_name_as_prefix() {
        let outer = engine(DOCKERD, 0, vec![container("kind", KIND), container("web", WEB)]);
        let inner = engine(NESTED_ENGINE, 0, vec![container("web", NESTED)]);
        let all = [("", "kind", KIND), ("", "web", WEB), ("kind", "web", NESTED)];
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
            pid: None,
            ..engine(DOCKERD, 0, vec![container("web", WEB)])
        };
        assert_eq!(found(&[nowhere]), []);
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
        let running = find_processes(&engines, &processes, |_, _| true);
        let namespaces = namespaces(&[100, 200, 300, 400, 500, 600]);
        let targets = assemble(running, &engines, &processes, &namespaces);
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
