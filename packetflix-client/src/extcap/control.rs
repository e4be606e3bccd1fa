//! Messages to Wireshark, over the pipe that it opens for the controls of an interface.

use std::{
    fs::OpenOptions,
    io::{self, Write as _},
    path::Path,
};

/// What each message begins with.
const INDICATION: u8 = b'T';

/// Number of no control at all.
const NO_CONTROL: u8 = 255;

/// The command that shows an error.
const SHOW_ERROR: u8 = 9;

/// Most bytes of a message's text, so that one write takes it whole.
const MAX_TEXT_LEN: usize = 4000;

/// Has Wireshark show an error.
///
/// # Errors
/// When the pipe cannot be written to.
pub(super) fn show_error(pipe: &Path, sentence: &str) -> io::Result<()> {
    // A pipe of Unix that is opened for both waits for nobody.
    let mut pipe = OpenOptions::new().read(cfg!(unix)).write(true).open(pipe)?;
    pipe.write_all(&message(NO_CONTROL, SHOW_ERROR, sentence))
}

/// Indication, length of the rest in three bytes, control, command, text (Wireshark's developer's guide, "Extcap control
/// pipes").
fn message(control: u8, command: u8, text: &str) -> Vec<u8> {
    let text = &text[..text.floor_char_boundary(MAX_TEXT_LEN)];
    let [_, length @ ..] = (text.len() as u32 + 2).to_be_bytes();
    let head = [&[INDICATION][..], &length, &[control, command]].concat();
    [&head, text.as_bytes()].concat()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_have_their_length() {
        assert_eq!(message(255, 9, "no"), b"T\0\0\x04\xff\x09no");
        assert_eq!(message(0, 9, &"é".repeat(3000)).len(), 4000 + 6);
    }
}
