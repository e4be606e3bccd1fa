//! The right to use the discovery service, for as long as somebody does.

use std::{sync::Arc, time::Duration};

use tokio::time::sleep;

use crate::{access::Access, service::Caller};

/// How often it is looked whether a caller would still be let in.
const INTERVAL: Duration = Duration::from_secs(1);

/// Somebody who may use the discovery service, and what that rests on.
#[derive(Clone)]
pub(in crate::http) struct UseOfService {
    caller: Caller,
    access: Arc<Access>,
}

impl UseOfService {
    pub(in crate::http) fn new(caller: Caller, access: Arc<Access>) -> Self {
        Self { caller, access }
    }

    /// On whose account it is.
    pub(super) fn account(&self) -> Arc<str> {
        self.caller.account()
    }

    /// Waits until the caller may not use the service any more; says why.
    pub(super) async fn lost(&self) -> String {
        loop {
            sleep(INTERVAL).await;
            match self.caller.renew(&self.access) {
                Err(error) => return error.to_string(),
                Ok(renewed) => {
                    if let Err(forbidden) = renewed.may_use_discovery_service() {
                        return forbidden.to_string();
                    }
                }
            }
        }
    }
}
