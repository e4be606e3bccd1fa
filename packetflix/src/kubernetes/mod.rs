//! Kubernetes: rights as it has them, and which nodes there are.
//!
//! Who holds a token is asked by TokenReview, and what they may capture by SubjectAccessReview. The API server decides everything.
//! What it has said is believed for some seconds (`access/reviews.rs`). Nodes are those on which pods of a Service are.

mod api;
mod endpoints;
mod reviewer;
mod slices;

pub use api::ApiAddressError;
pub(crate) use api::{ApiAddress, Credentials};
pub use endpoints::ServiceNameError;
pub(crate) use endpoints::{Finder, Finding, FoundNode, LeftOut, ServiceName, Unfit};
pub(crate) use reviewer::{FindPods, Pods, Reviewer};
