//! What others have said or named, on the terminal of whoever reads it.

use std::{
    borrow::Cow,
    fmt,
    io::{self, Write as _},
    pin::pin,
    time::Duration,
};

use tokio::time::timeout;

use crate::{
    cluster::NOTICE,
    server::{Address, Server},
};

/// Tells people a sentence. That nobody hears it any more is no reason to end.
pub(crate) fn say(sentence: impl fmt::Display) {
    let _ = writeln!(io::stderr(), "packetflix: {}", shown(&sentence.to_string()));
}

/// Waits for something, and tells people what is waited for, and for how long at most, where that takes long.
pub(crate) async fn aloud<T>(
    what: &impl fmt::Display,
    patience: Duration,
    awaited: impl Future<Output = T>,
) -> T {
    let what = format!("{what}, {} s at most", patience.as_secs());
    told_of(&what, awaited).await
}

/// Waits for what a server answers, and tells people so where that takes long. In a cluster, it is said what is waited for on the
/// road there.
pub(crate) async fn answered<T>(server: &Server, awaited: impl Future<Output = T>) -> T {
    match &server.address {
        Address::Cluster(_) => awaited.await,
        address => told_of(&format!("an answer of {address}"), awaited).await,
    }
}

async fn told_of<T>(what: &str, awaited: impl Future<Output = T>) -> T {
    let mut awaited = pin!(awaited);
    if let Ok(done) = timeout(NOTICE, &mut awaited).await {
        return done;
    }
    say(format_args!("waiting for {what}"));
    awaited.await
}

/// Text without what a terminal would obey: what moves its cursor, changes its colours, or turns the direction of what
/// follows stands as its number, such as `\u{1b}`.
pub(crate) fn shown(text: &str) -> Cow<'_, str> {
    escaped(text, is_obeyed, |c| c.escape_unicode().to_string())
}

/// The same of JSON, which stays JSON.
pub(crate) fn shown_json(text: &str) -> Cow<'_, str> {
    let is_obeyed = |c: char| is_obeyed(c) && !matches!(c, '\n' | '\t');
    escaped(text, is_obeyed, |c| format!("\\u{:04x}", u32::from(c)))
}

fn escaped(text: &str, is_obeyed: impl Fn(char) -> bool, escape: impl Fn(char) -> String) -> Cow<'_, str> {
    if !text.contains(&is_obeyed) {
        return text.into();
    }
    let mut shown = String::with_capacity(text.len());
    for c in text.chars() {
        if is_obeyed(c) {
            shown += &escape(c);
        } else {
            shown.push(c);
        }
    }
    shown.into()
}

/// Control characters, separators of lines, those of the Unicode Bidirectional Algorithm (UAX #9, section 2), and others that
/// are not seen.
fn is_obeyed(c: char) -> bool {
    c.is_control()
        || matches!(c, '\u{61c}' | '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2060}'..='\u{2069}' | '\u{feff}')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_is_obeyed() {
        assert_eq!(shown("wéb \u{65e5}"), "wéb \u{65e5}");
        assert_eq!(
            shown("a\x1b[2J\r\n\u{9b}\u{202e}b\x7f"),
            r"a\u{1b}[2J\u{d}\u{a}\u{9b}\u{202e}b\u{7f}"
        );
        assert_eq!(shown("we\u{200b}b\u{feff}"), r"we\u{200b}b\u{feff}");
        let text = "{\n\t\"name\": \"\u{9b}\u{202e}\x1b\"}";
        assert_eq!(shown_json(text), "{\n\t\"name\": \"\\u009b\\u202e\\u001b\"}");
    }
}
