//! Where targets are looked up by their names.

use std::sync::Arc;

use super::{DiscoveryService, ServiceError, TargetDescription};
use crate::discovery::{Discovery, LateScan};

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
    pub(crate) targets: Vec<TargetDescription>,
    /// Sentences on why there may be more.
    pub(crate) obstacles: Vec<String>,
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
    /// All targets that there are now.
    ///
    /// # Errors
    /// When a discovery service fails, or our own look is late; else that does what it can.
    pub(crate) async fn targets(&self) -> Result<KnownTargets, DirectoryError> {
        match self {
            Self::Service(service) => Ok(KnownTargets {
                targets: service.targets().await?,
                obstacles: Vec::new(),
            }),
            Self::Own(discovery) => {
                let scan = discovery.scan_now().await?;
                Ok(KnownTargets {
                    targets: scan.descriptions(),
                    obstacles: scan.gaps.iter().map(ToString::to_string).collect(),
                })
            }
        }
    }
}
