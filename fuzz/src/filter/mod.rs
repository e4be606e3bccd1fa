//! The server's own modules between an expression and its program. Compiled from their source, and not taken from the
//! server's library: the name check is private to that, and of the rest of it nothing is to be instrumented.

#[path = "../../../packetflix/src/filter/classic.rs"]
#[expect(dead_code, reason = "what only the server uses")]
pub(crate) mod classic;
#[path = "../../../packetflix/src/filter/names.rs"]
mod names;
#[path = "../../../packetflix/src/filter/native.rs"]
#[expect(dead_code, reason = "what only the server uses")]
pub(crate) mod native;
#[path = "../../../packetflix/src/filter/translate.rs"]
mod translate;

use std::borrow::Cow;

pub(crate) use translate::{TranslateError, translate};

/// The expression as libpcap gets it, if no name has to be looked up for it.
pub(crate) fn check_names(expression: &str) -> Option<Cow<'_, str>> {
    names::check(expression, false).ok()
}
