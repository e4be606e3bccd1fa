//! What kernel, containers and users call things, as people can read it: names are bytes, and need be no text.

use std::{borrow::Cow, fmt::Write as _};

/// Text as it is; what is none, and what would control a terminal, becomes `\x` and two digits for each byte.
pub(crate) fn readable(bytes: &[u8]) -> String {
    let mut text = String::with_capacity(bytes.len());
    for chunk in bytes.utf8_chunks() {
        for character in chunk.valid().chars() {
            if is_shown(character) {
                text.push(character);
            } else {
                escape(character.encode_utf8(&mut [0; 4]).as_bytes(), &mut text);
            }
        }
        escape(chunk.invalid(), &mut text);
    }
    text
}

/// The same of a name that the kernel has cut to a number of bytes: half a character at its end is left out.
pub(crate) fn readable_cut(bytes: &[u8]) -> String {
    let half = bytes.utf8_chunks().last().map_or(&[][..], |last| last.invalid());
    let is_half = std::str::from_utf8(half).is_err_and(|error| error.error_len().is_none());
    readable(&bytes[..bytes.len() - if is_half { half.len() } else { 0 }])
}

/// Text of at most `len` bytes as it is, and of what is longer the beginning and an ellipsis.
pub(crate) fn shortened(text: &str, len: usize) -> Cow<'_, str> {
    match text.len() > len {
        false => text.into(),
        true => format!("{}…", &text[..text.floor_char_boundary(len)]).into(),
    }
}

/// Whether a character is one that people see: no control character, line break, or mark that reorders the text around it,
/// which a terminal obeys; nor what is no character in Unicode.
pub(crate) fn is_shown(character: char) -> bool {
    !(character.is_control()
        || matches!(character, '\u{200e}' | '\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
        || matches!(character, '\u{feff}' | '\u{fffe}' | '\u{ffff}'))
}

fn escape(bytes: &[u8], text: &mut String) {
    for byte in bytes {
        // Writing to a string cannot fail.
        let _ = write!(text, "\\x{byte:02x}");
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn what_is_no_text_is_escaped() {
        for (bytes, text) in [
            (&b"eth0"[..], "eth0"),
            ("größe".as_bytes(), "größe"),
            (b"n\xe9tz", "n\\xe9tz"),
            (b"\xff\xfe", "\\xff\\xfe"),
            (b"a\x1b[2J\n\x7f", "a\\x1b[2J\\x0a\\x7f"),
            ("\u{202e}x\u{85}".as_bytes(), "\\xe2\\x80\\xaex\\xc2\\x85"),
        ] {
            assert_eq!(readable(bytes), text);
        }
    }

    #[test]
    fn name_that_was_cut_keeps_what_is_readable() {
        let name = "konténer-größe";
        assert_eq!(readable_cut(name.as_bytes()), name);
        assert_eq!(readable_cut(&name.as_bytes()[..6]), "konté");
        assert_eq!(readable_cut(&name.as_bytes()[..5]), "kont");
        // What is no text anywhere is not left out.
        assert_eq!(readable_cut(b"a\xff"), "a\\xff");
        assert_eq!(readable_cut(b"\xff\xc3"), "\\xff");
    }

    #[test]
    fn what_is_long_is_cut_between_characters() {
        assert_eq!(shortened("größe", 7), "größe");
        assert_eq!(shortened("größe", 4), "grö…");
        assert_eq!(shortened("größe", 3), "gr…");
    }

    proptest! {
        #[test]
        fn any_bytes_can_be_shown(bytes in any::<Vec<u8>>()) {
            let text = readable(&bytes);
            prop_assert!(text.chars().all(is_shown));
            prop_assert!(text.len() <= 4 * bytes.len());
            prop_assert!(readable_cut(&bytes).len() <= text.len());
        }
    }
}
