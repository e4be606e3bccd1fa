//! A block with options: writes the lengths that are known only at its end.

use bytes::{BufMut as _, BytesMut};

use super::padded;

/// Option code that every block knows.
const OPT_ENDOFOPT: u16 = 0;

/// Code and length before the value of an option, and all of the end of options.
pub(super) const RECORD_HEADER_LEN: usize = 4;

/// Code of a comment, in every block.
pub(super) const OPT_COMMENT: u16 = 1;

/// A block that is being written to the end of a buffer.
pub(super) struct Block<'out> {
    out: &'out mut BytesMut,
    start: usize,
    has_options: bool,
}

impl<'out> Block<'out> {
    /// Begins a block; its body follows through [`Self::body`].
    pub(super) fn begin(out: &'out mut BytesMut, block_type: u32) -> Self {
        let start = out.len();
        out.put_u32_le(block_type);
        out.put_u32_le(0);
        Self {
            out,
            start,
            has_options: false,
        }
    }

    /// The fixed part of the block, whose length must be a multiple of 4.
    pub(super) fn body(&mut self, bytes: &[u8]) {
        debug_assert_eq!(bytes.len() % 4, 0);
        self.out.put_slice(bytes);
    }

    /// An option with any value of at most 65,535 bytes.
    pub(super) fn option(&mut self, code: u16, value: &[u8]) {
        let value = &value[..value.len().min(usize::from(u16::MAX))];
        self.out.put_u16_le(code);
        self.out.put_u16_le(value.len() as u16);
        self.out.put_slice(value);
        self.out.put_bytes(0, padded(value.len()) - value.len());
        self.has_options = true;
    }

    /// An option that is a string; an empty one is left out.
    pub(super) fn text(&mut self, code: u16, value: &str) {
        if !value.is_empty() {
            self.option(code, value.as_bytes());
        }
    }

    /// Ends the options and writes the block's length on both sides.
    pub(super) fn end(self) {
        if self.has_options {
            self.out.put_u16_le(OPT_ENDOFOPT);
            self.out.put_u16_le(0);
        }
        let len = (self.out.len() - self.start + 4) as u32;
        self.out.put_u32_le(len);
        self.out[self.start + 4..self.start + 8].copy_from_slice(&len.to_le_bytes());
    }
}

/// The options of a block, each with its code, up to the end of options or to what is none.
pub(super) fn options(mut bytes: &[u8]) -> impl Iterator<Item = (u16, &[u8])> {
    std::iter::from_fn(move || {
        let (code, value, rest) = first(bytes)?;
        bytes = rest.unwrap_or_default();
        (code != OPT_ENDOFOPT).then_some((code, value))
    })
}

/// Whether these are options, or records of names, as [`Block`] writes them: values that are as `is_value` wants them, then the
/// end, and nothing behind it.
pub(super) fn are_written(mut bytes: &[u8], mut is_value: impl FnMut(u16, &[u8]) -> bool) -> bool {
    while let Some((code, value, Some(rest))) = first(bytes) {
        if code == OPT_ENDOFOPT {
            return value.is_empty() && rest.is_empty();
        }
        if !is_value(code, value) {
            return false;
        }
        bytes = rest;
    }
    false
}

/// Whether a value is text, as [`Block::text`] writes it.
pub(super) fn is_text(value: &[u8]) -> bool {
    str::from_utf8(value).is_ok()
}

/// Code and value of an option, and what follows it, if there is room for what fills it up.
type First<'a> = (u16, &'a [u8], Option<&'a [u8]>);

fn first(bytes: &[u8]) -> Option<First<'_>> {
    let [a, b, c, d] = *bytes.first_chunk()?;
    let (code, len) = (
        u16::from_le_bytes([a, b]),
        usize::from(u16::from_le_bytes([c, d])),
    );
    let value = bytes.get(RECORD_HEADER_LEN..RECORD_HEADER_LEN + len)?;
    Some((code, value, bytes.get(RECORD_HEADER_LEN + padded(len)..)))
}

/// The longest beginning of `text` of at most `len` bytes that is whole characters.
pub(super) fn cut(text: &str, len: usize) -> &str {
    &text[..text.floor_char_boundary(len)]
}
