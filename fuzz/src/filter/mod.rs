//! The server's own modules between an expression and its program. Compiled from their source, and not taken from the
//! server's library: the name check is private to that, and of the rest of it nothing is to be instrumented.

#[path = "../../../packetflix/src/filter/classic.rs"]
#[allow(
    dead_code,
    unfulfilled_lint_expectations,
    reason = "what only the server uses and documents"
)]
pub(crate) mod classic;
#[path = "../../../packetflix/src/filter/names.rs"]
mod names;
#[path = "../../../packetflix/src/filter/native.rs"]
#[allow(
    dead_code,
    unfulfilled_lint_expectations,
    reason = "what only the server uses and documents"
)]
pub(crate) mod native;
#[path = "../../../packetflix/src/filter/translate.rs"]
#[allow(unfulfilled_lint_expectations, reason = "what only libraries document")]
mod translate;

use std::borrow::Cow;

pub(crate) use translate::{TranslateError, translate};

/// The expression as libpcap gets it, if no name has to be looked up for it.
pub(crate) fn check_names(expression: &str) -> Option<Cow<'_, str>> {
    names::check(expression, false).ok()
}
