//! Section Header Block.

use std::fmt::Write as _;

use bytes::BytesMut;

use super::options::{Block, OPT_COMMENT, are_written, cut, is_text};
use crate::text::is_shown;

pub(super) const BLOCK_TYPE: u32 = 0x0a0d_0d0a;
const BYTE_ORDER_MAGIC: u32 = 0x1a2b_3c4d;
/// 1.0.
const VERSION: [u8; 4] = [1, 0, 0, 0];
/// The section's length is not known.
const UNKNOWN_LEN: [u8; 8] = [0xff; 8];
const SHB_HARDWARE: u16 = 2;
const SHB_OS: u16 = 3;
const SHB_USERAPPL: u16 = 4;

/// No section header is longer, in bytes: clients add to it, and dumpcap corrupts its heap on one of more
/// than 2048.
pub const MAX_SECTION_HEADER_LEN: usize = 1024;

/// Most bytes that a name takes, and any other string of the header, so that all together stay within the bound.
const MAX_NAME_LEN: usize = 128;
const MAX_TEXT_LEN: usize = 64;

/// Most bytes of the filter; each interface's description has it whole.
const MAX_FILTER_LEN: usize = 192;

/// Bytes of type, length, magic, version and section length, and of the length again.
const OPTIONS_AT: usize = 24;
const TAIL_LEN: usize = 4;

/// Begins the section, which lasts to the end of the stream.
pub struct SectionHeader<'a> {
    /// The machine's architecture.
    pub hardware: &'a str,
    /// Name and release of the operating system.
    pub os: &'a str,
    /// Name and version of this program.
    pub application: &'a str,
    /// What is captured.
    pub comment: CaptureComment<'a>,
}

/// What is captured, for people and for the clients that replace it by what they know.
#[derive(Clone, Copy, Debug)]
pub struct CaptureComment<'a> {
    /// Name of the container, process or file that stands for the namespace.
    pub container_name: &'a str,
    /// GhostWire's word for that kind of target.
    pub container_type: &'a str,
    /// The host's name.
    pub node_name: &'a str,
    /// Identifier of the cluster that the host belongs to, or empty.
    pub cluster_uid: &'a str,
    /// The filter in libpcap's language, or empty.
    pub filter: &'a str,
    /// Whether the client asked for no promiscuous mode.
    pub chaste: bool,
}

impl SectionHeader<'_> {
    /// Appends the block; strings that are too long lose their end.
    pub fn encode(&self, out: &mut BytesMut) {
        let mut block = Block::begin(out, BLOCK_TYPE);
        block.body(&BYTE_ORDER_MAGIC.to_le_bytes());
        block.body(&VERSION);
        block.body(&UNKNOWN_LEN);
        block.option(OPT_COMMENT, self.comment.yaml().as_bytes());
        block.text(SHB_HARDWARE, cut(self.hardware, MAX_TEXT_LEN));
        block.text(SHB_OS, cut(self.os, MAX_TEXT_LEN));
        block.text(SHB_USERAPPL, cut(self.application, MAX_TEXT_LEN));
        block.end();
    }
}

/// Whether a block whose lengths are right is one that [`SectionHeader::encode`] writes.
pub(super) fn is_written(block: &[u8]) -> bool {
    let begins = [&BYTE_ORDER_MAGIC.to_le_bytes()[..], &VERSION, &UNKNOWN_LEN].concat();
    let options = block.get(OPTIONS_AT..block.len() - TAIL_LEN);
    block.len() <= MAX_SECTION_HEADER_LEN
        && block[8..].starts_with(&begins)
        && options.is_some_and(|options| {
            are_written(options, |code, value| match code {
                OPT_COMMENT | SHB_HARDWARE | SHB_OS | SHB_USERAPPL => is_text(value),
                _ => false,
            })
        })
}

impl CaptureComment<'_> {
    fn yaml(&self) -> String {
        let mut yaml = format!(
            "---\n# capture target information\ncontainer-name: {}\ncontainer-type: {}\nnode-name: {}\n",
            quoted(self.container_name, MAX_NAME_LEN),
            quoted(self.container_type, MAX_TEXT_LEN),
            quoted(self.node_name, MAX_TEXT_LEN),
        );
        if !self.cluster_uid.is_empty() {
            let _ = writeln!(
                yaml,
                "cluster: {{uid: {}}}",
                quoted(self.cluster_uid, MAX_TEXT_LEN)
            );
        }
        if !self.filter.is_empty() {
            let _ = writeln!(yaml, "capture-filter: {}", quoted(self.filter, MAX_FILTER_LEN));
        }
        if self.chaste {
            yaml.push_str("no-promiscuous-mode: true\n");
        }
        yaml
    }
}

/// A string in double quotes, as YAML and JSON both write it, of at most `len` bytes.
fn quoted(text: &str, len: usize) -> String {
    let mut text = cut(text, len);
    loop {
        let quoted = escaped(&serde_json::Value::from(text).to_string());
        if quoted.len() <= len + 2 {
            return quoted;
        }
        // Characters that need an escape grow up to sixfold.
        text = cut(text, text.len() / 2);
    }
}

/// JSON takes characters as they are that YAML does not, or takes for the end of a line: these are escaped, too.
///
/// Source: YAML 1.1, section 5.1 and 5.4; YAML 1.2, section 5.1.
fn escaped(json: &str) -> String {
    let mut yaml = String::with_capacity(json.len());
    for character in json.chars() {
        if is_shown(character) {
            yaml.push(character);
        } else {
            // All of those have sixteen bits.
            let _ = write!(yaml, "\\u{:04x}", u32::from(character));
        }
    }
    yaml
}
