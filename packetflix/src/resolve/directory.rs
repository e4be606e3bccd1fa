//! Where targets are looked up by their names.

use std::sync::Arc;

use super::{DiscoveryService, ServiceError};
use crate::{
    access::{Rights, Verdict},
    description::TargetDescription,
    discovery::{Discovery, Formerly, LateScan, Scan, Trust},
};

/// Knows the targets of this host.
#[derive(Clone)]
pub(crate) enum Directory {
    /// A discovery service beside us.
    Service(DiscoveryService),
    /// Our own discovery.
    Own(Arc<Discovery>),
}

/// What a directory knows.
#[derive(Debug)]
pub(crate) struct KnownTargets {
    /// All targets.
    pub(crate) targets: Vec<KnownTarget>,
    /// Words that have meant something of the host's.
    pub(crate) formerly: Arc<Formerly>,
    /// Sentences on why there may be more.
    pub(crate) obstacles: Vec<String>,
}

/// A target as a directory knows it.
#[derive(Clone, Debug)]
pub(crate) struct KnownTarget {
    pub(crate) description: TargetDescription,
    /// How far its name is trusted.
    pub(crate) trust: Trust,
}

/// Why the targets are not known.
#[derive(Debug, thiserror::Error)]
pub(crate) enum DirectoryError {
    #[error(transparent)]
    Service(#[from] ServiceError),
    #[error(transparent)]
    Late(#[from] LateScan),
}

impl Directory {
    /// All targets that there are now, of those that somebody with these rights may know of.
    ///
    /// # Errors
    /// When a discovery service fails, or our own look is late; else that does what it can.
    pub(crate) async fn targets(&self, rights: &Rights) -> Result<KnownTargets, DirectoryError> {
        match self {
            Self::Service(service) => {
                let mut targets = service.targets().await?;
                targets.retain(|target| rights.may_ask_for(&target.full_name()));
                let known = |description| KnownTarget {
                    description,
                    trust: Trust::Host,
                };
                Ok(KnownTargets {
                    targets: targets.into_iter().map(known).collect(),
                    formerly: Arc::default(),
                    obstacles: Vec::new(),
                })
            }
            Self::Own(discovery) => Ok(known_in(&*discovery.scan_now().await?, rights)),
        }
    }
}

impl Directory {
    /// The state of the container of this name that does not run, where an engine tells of one.
    pub(super) async fn state_at_rest(&self, name: &str) -> Option<String> {
        match self {
            Self::Service(_) => None,
            Self::Own(discovery) => discovery.state_at_rest(name).await,
        }
    }
}

/// What a scan has found, as far as somebody with these rights may know of it.
fn known_in(scan: &Scan, rights: &Rights) -> KnownTargets {
    let is_own = |netns| {
        let occupants = scan.occupants(netns);
        occupants.is_some_and(|occupants| rights.may_capture(occupants) != Verdict::Refused)
    };
    let own = scan
        .targets
        .iter()
        .filter(|target| !rights.are_by_pattern() || is_own(target.namespace.inode));
    let known = own.map(|target| KnownTarget {
        description: target.description(),
        trust: target.trust,
    });
    // What is missing is none of their business, unless all is.
    let gaps = scan.gaps.iter().filter(|_| !rights.are_by_pattern());
    KnownTargets {
        targets: known.collect(),
        formerly: Arc::clone(&scan.formerly),
        obstacles: gaps.map(ToString::to_string).collect(),
    }
}
