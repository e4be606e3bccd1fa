//! Where targets are looked up by their names.

use std::sync::Arc;

use super::{DiscoveryService, ServiceError, TargetDescription};
use crate::discovery::Discovery;

/// Knows the targets of this host.
#[derive(Clone)]
pub(crate) enum Directory {
    /// A discovery service beside us.
    Service(DiscoveryService),
    /// Our own discovery.
    Own(Arc<Discovery>),
}

/// Why the targets are not known.
#[derive(Debug, thiserror::Error)]
pub(crate) enum DirectoryError {
    #[error(transparent)]
    Service(#[from] ServiceError),
}

impl Directory {
    /// All targets that there are now.
    ///
    /// # Errors
    /// When a discovery service fails; our own does what it can.
    pub(crate) async fn targets(&self) -> Result<Vec<TargetDescription>, DirectoryError> {
        match self {
            Self::Service(service) => Ok(service.targets().await?),
            Self::Own(discovery) => Ok(discovery.scan_now().await.descriptions()),
        }
    }
}
