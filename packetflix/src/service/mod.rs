//! What the service does for those who ask, however they ask: who they are, what they may have, and how much of it.

mod caller;
mod quotas;

pub(crate) use self::{
    caller::{Caller, Certificate, ClientId, Forbidden, Hidden, Peer, Shown},
    quotas::{Permit, Permits, QuotaError, add, remove},
};
