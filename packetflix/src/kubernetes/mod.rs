//! Rights as Kubernetes has them: who holds a token is asked by TokenReview, and what they may capture by SubjectAccessReview.
//!
//! The API server decides everything. What it has said is believed for some seconds (`access/reviews.rs`).

mod api;
mod reviewer;

pub use api::ApiAddressError;
pub(crate) use api::{ApiAddress, Credentials};
pub(crate) use reviewer::{FindPods, Pods, Reviewer};
