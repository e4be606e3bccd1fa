//! From classic BPF to eBPF.
//!
//! What classic BPF means is told by two interpreters: the kernel's, which has itself become a translation
//! (`bpf_convert_filter` in `net/core/filter.c`), and libpcap's (`bpf_filter.c`). They differ in a few
//! things, of which expressions can meet the first two and the last, as in `1 << ip[8]`, `udp[udp[4:2] - 1]` and
//! `not geneve and port 7`:
//!
//! | | kernel | libpcap | here |
//! |---|---|---|---|
//! | shift by X ≥ 32 | by X mod 32, on most machines | zero | libpcap's |
//! | load at X + k that exceeds 32 bits | at X + k mod 2³² | rejects | libpcap's |
//! | load at `SKF_AD_OFF`, `SKF_NET_OFF`, `SKF_LL_OFF` | what these mean | rejects, but for two of the VLAN tag | the kernel's |
//! | load at X and `SKF_NET_OFF`, `SKF_LL_OFF` | what these mean | rejects | program is refused |
//! | scratch memory before it is stored | program is refused | zero; anything in 1.10 | zero |
//!
//! # The function
//!
//! | | |
//! |---|---|
//! | R6 | the `__sk_buff` |
//! | R7 | A |
//! | R8 | X |
//! | R9 | the packet's length |
//! | stack | a word for helpers to write to, the words of scratch memory that are used, the packet's type, the packet's head |
//!
//! A call of a helper costs about as much as the rest of a filter, so the packet's head is copied to the stack at
//! once, as far as the filter loads at constant offsets. A load from there takes a comparison with the packet's length,
//! or none where a load before it on every path has shown the packet to be long enough. Where X is the length of an
//! IPv4 header, loads at X + k have a short way for the header without options.
//!
//! The verifier wants loads from the stack to be aligned, always. So the head is put where the most loads are: for
//! Ethernet this is two bytes after a multiple of four, as in the kernel itself. Loads that are not are made of pieces.

mod assembler;
mod facts;
mod layout;
mod liveness;
mod loads;
mod operation;
mod place;
mod prologue;
mod sk_buff;

use thiserror::Error;

use self::{assembler::Assembler, facts::follow, layout::Layout, operation::Translation, prologue::prologue};
use crate::{
    classic::{self, InvalidProgram},
    native::Instruction,
};

/// Why a program has no translation.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
#[expect(missing_docs, reason = "the sentences say it")]
pub enum TranslateError {
    #[error("the filter is invalid")]
    Invalid(#[from] InvalidProgram),
    #[error("instruction {at} loads SKF_AD_{name}, which eBPF programs cannot")]
    Ancillary { at: usize, name: &'static str },
    #[error("instruction {at} loads at an index from a header, which only classic BPF can")]
    RelativeIndex { at: usize },
    #[error("the filter takes {instructions} instructions, and jumps do not reach as far")]
    TooLarge { instructions: usize },
}

/// Translates a filter to a whole program, of the type `BPF_PROG_TYPE_SCHED_CLS` or `BPF_PROG_TYPE_SOCKET_FILTER`, which
/// returns what the filter does: zero to reject the packet.
///
/// It needs less than 232 bytes of stack, has no loops and no maps, and uses what kernel 5.8 has.
///
/// # Errors
/// [`TranslateError`]; only instructions that can be reached count.
pub fn translate(program: &[classic::Instruction]) -> Result<Vec<Instruction>, TranslateError> {
    translate_to(Form::Program, program)
}

/// Translates a filter to the body of the function `extern "C" fn(skb: *mut __sk_buff, packet_type: u32) -> u32`, which
/// returns the same.
///
/// Its caller says of what type the packet is, since a packet itself does not always know: at TC egress many are not yet
/// marked as outgoing.
///
/// # Errors
/// As [`translate`].
pub fn translate_to_function(program: &[classic::Instruction]) -> Result<Vec<Instruction>, TranslateError> {
    translate_to(Form::Function, program)
}

/// What a translation is to be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Form {
    /// A program, which finds the packet's type in the `__sk_buff`.
    Program,
    /// A function, which is given it in R2.
    Function,
}

fn translate_to(form: Form, program: &[classic::Instruction]) -> Result<Vec<Instruction>, TranslateError> {
    let operations = classic::check(program)?;
    let facts = follow(&operations)?;
    let layout = Layout::new(form, &operations, &facts);
    let mut assembler = Assembler::new(operations.len());
    prologue(&mut assembler, &operations, &facts, &layout);
    for (at, operation) in operations.iter().enumerate() {
        if let Some(fact) = facts[at] {
            let next = (at + 1..operations.len()).find(|&next| facts[next].is_some());
            assembler.place(at);
            Translation {
                assembler: &mut assembler,
                layout: &layout,
                fact,
                at,
                next,
            }
            .operation(*operation);
        }
    }
    assembler.finish()
}

#[cfg(test)]
mod tests;
