//! What an engine is starting, as it tells that before a scan can find it: and although it may have ended by then.

use std::path::{Path, PathBuf};

use futures_util::future::BoxFuture;

use serde::{Deserialize, Serialize};

use super::workload::Workload;

/// The state of a container that its engine does not say to run yet.
pub(super) const STARTING: &str = "starting";

/// Most bytes of a path at which a namespace is mounted.
pub(super) const MAX_PATH_LEN: usize = 256;

/// A container or pod that is being started, or has been.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Starting {
    pub(super) workload: Workload,
    pub(super) mark: Mark,
}

/// What the network namespace of a container is known by.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) enum Mark {
    /// The hardware address of one of its interfaces.
    Mac([u8; 6]),
    /// Where the engine has mounted it.
    Mount(String),
}

/// Says whether a network namespace that has come is the one that something is known by.
pub(super) type IsOf<'a> = &'a (dyn Fn(Starting) -> BoxFuture<'a, bool> + Sync);

/// A network namespace that has come.
pub(super) struct NewNamespace<'a> {
    /// Where the host has it mounted.
    pub(super) path: &'a Path,
    /// The hardware addresses that there are in it by now.
    pub(super) macs: &'a (dyn Fn() -> Vec<[u8; 6]> + Sync),
}

impl NewNamespace<'_> {
    /// Whether it is known by this, as an engine tells that mounts where the host does.
    pub(super) fn is_known_by(&self, mark: &Mark) -> bool {
        match mark {
            Mark::Mac(mac) => (self.macs)().contains(mac),
            Mark::Mount(path) => in_run(path) == self.path,
        }
    }
}

/// A path as the host has it: `/var/run` is another name of `/run`.
fn in_run(path: &str) -> PathBuf {
    match Path::new(path).strip_prefix("/var/run") {
        Ok(rest) => Path::new("/run").join(rest),
        Err(_) => PathBuf::from(path),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_namespace_is_known_by_where_it_is_mounted_or_by_an_address_in_it() {
        let namespace = NewNamespace {
            path: Path::new("/run/netns/cni-1"),
            macs: &|| vec![[2; 6], [4; 6]],
        };
        let is_of = |mark: Mark| namespace.is_known_by(&mark);
        assert!(is_of(Mark::Mac([4; 6])) && !is_of(Mark::Mac([6; 6])));
        for (path, is_meant) in [
            ("/run/netns/cni-1", true),
            ("/var/run/netns/cni-1", true),
            ("/run/netns/cni-11", false),
            ("/run/netns/", false),
            ("netns/cni-1", false),
            ("/var/run//run/netns/cni-1", false),
            ("", false),
        ] {
            assert_eq!(is_of(Mark::Mount(path.to_owned())), is_meant, "{path}");
        }
    }
}
