//! Bodies of answers.

use std::error::Error;

use bytes::Bytes;
use http_body_util::{BodyExt as _, combinators::BoxBody};
use hyper::body::Body;

/// Body of any answer, ours or the discovery service's.
pub(super) type AnswerBody = BoxBody<Bytes, Box<dyn Error + Send + Sync>>;

/// The body as one that any answer may have.
pub(super) fn boxed<B>(body: B) -> AnswerBody
where
    B: Body<Data = Bytes> + Send + Sync + 'static,
    B::Error: Into<Box<dyn Error + Send + Sync>>,
{
    body.map_err(Into::into).boxed()
}
