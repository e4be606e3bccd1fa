//! Whose a name was: it does not pass from a container of the host's engines to one of an engine that is trusted less.

use std::collections::{HashSet, VecDeque};

use super::{target::DiscoveredTarget, trust::Trust};

/// Most names that are remembered: one of so many containers ago is free again.
const MAX_NAMES: usize = 16 << 10;

/// Full names that containers and pods of the host's engines have had.
#[derive(Clone, Debug, Default)]
pub(super) struct Formerly {
    names: HashSet<String>,
    /// The same, in the order in which they were first seen.
    order: VecDeque<String>,
}

impl Formerly {
    /// Remembers names that are trusted, and marks targets that have one without being trusted.
    pub(super) fn look_at(&mut self, targets: &mut [DiscoveredTarget]) {
        let trusted = targets
            .iter()
            .filter(|target| target.trust == Trust::Host && target.workload.is_some());
        for name in trusted.map(DiscoveredTarget::full_name) {
            if self.names.insert(name.clone()) {
                self.order.push_back(name);
            }
        }
        while self.order.len() > MAX_NAMES {
            self.order.pop_front().map(|oldest| self.names.remove(&oldest));
        }
        for target in targets.iter_mut().filter(|target| target.trust != Trust::Host) {
            target.has_anothers_name = self.names.contains(&target.full_name());
        }
    }
}
