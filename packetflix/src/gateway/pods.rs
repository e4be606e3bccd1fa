//! Which pods there are on all nodes: to each of them, somebody may have a right.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use tokio::{sync::Mutex, time::sleep};

use super::{
    lists::{self, Told},
    node::{Node, Nodes},
};
use crate::kubernetes::{FindPods, Pods};

/// How often nodes are asked for them, as long as anybody's rights go by them.
const INTERVAL: Duration = Duration::from_secs(5);

/// For how long those are told that were last found.
const KNOWN_FOR: Duration = Duration::from_secs(30);

/// What pods are listed as.
const KIND: &str = "pod";

/// The pods as they were last found.
#[derive(Default)]
pub(super) struct KnownPods {
    found: Mutex<Option<(Instant, Pods)>>,
    are_wanted: AtomicBool,
}

/// Finds the pods of nodes.
pub(super) fn finder(nodes: Arc<Nodes>) -> FindPods {
    Box::new(move || {
        let nodes = Arc::clone(&nodes);
        Box::pin(async move { nodes.pods().await })
    })
}

impl Nodes {
    async fn pods(&self) -> Option<Pods> {
        self.pods.are_wanted.store(true, Ordering::Relaxed);
        let mut found = self.pods.found.lock().await;
        match &*found {
            Some((at, pods)) if at.elapsed() < KNOWN_FOR => Some(pods.clone()),
            _ => {
                let pods = self.find_pods().await?;
                *found = Some((Instant::now(), pods.clone()));
                Some(pods)
            }
        }
    }

    /// Finds them again and again, as long as they are wanted. Never ends.
    pub(super) async fn follow_pods(&self) {
        loop {
            sleep(INTERVAL).await;
            if self.pods.are_wanted.swap(false, Ordering::Relaxed)
                && let Some(pods) = self.find_pods().await
            {
                *self.pods.found.lock().await = Some((Instant::now(), pods));
            }
        }
    }

    /// The pods of the nodes that answer; `None` where none does.
    async fn find_pods(&self) -> Option<Pods> {
        let read = |_: &Node, body: &[u8]| {
            let mut names = Vec::new();
            lists::read(body, lists::CONTAINERS, |told| {
                if let Told::Element(target) = told
                    && target["type"] == KIND
                {
                    let name = target["name"].as_str();
                    names.extend(name.and_then(|name| name.split_once('/')).map(owned));
                }
            })?;
            Ok(names)
        };
        let asked = self.ask_for_own_json("/mobyshark", read).await.ok()?;
        let mut pods = Pods::new();
        for (namespace, pod) in asked.into_iter().filter_map(|one| one.answer.ok()).flatten() {
            pods.entry(namespace).or_default().insert(pod);
        }
        Some(pods)
    }
}

fn owned((namespace, pod): (&str, &str)) -> (String, String) {
    (namespace.to_owned(), pod.to_owned())
}
