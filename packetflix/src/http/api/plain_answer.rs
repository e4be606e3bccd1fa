//! Answers that say why, for those who do not look at the status, and for those whose request is not read.

use serde_json::{Value, json};

use super::code::Code;

/// The body of a refusal for those who read it without a look at the status, as GhostWire's clients do: to them an object without
/// a list is an empty list, and people would see a host without targets.
///
/// `containers` is no list, so that whoever wants one fails. Go tells of what it cannot read but the kind, unless it is a
/// number: so those who take names of members in any case, as it does, come upon the status first, where a whole number would
/// have to be.
pub(crate) fn instead_of_a_list(code: Code, sentence: &str) -> Value {
    let status = f64::from(code.status().as_u16());
    json!({
        "Containers": [{ "netns": status }],
        "containers": sentence,
        "error": sentence,
        "code": code.name(),
    })
}

/// A whole answer for those whose request is not read, or not to its end, and who may want a list. Nothing in it takes a right, so that
/// those are heeded on whose behalf anybody asks.
pub(crate) fn plain_answer(code: Code, sentence: &str) -> Vec<u8> {
    let status = code.status();
    let body = instead_of_a_list(code, sentence).to_string();
    format!(
        "HTTP/1.1 {status}\r\nContent-Type: application/json\r\nContent-Length: {}\r\nConnection: close\r\n\
         packetflix-rights: heeded\r\n\r\n{body}",
        body.len()
    )
    .into_bytes()
}
