//! What is known of the packet and of X at each instruction.

use super::{TranslateError, place::Place};
use crate::classic::{Ancillary, Operation, Register, Size};

/// What is known when an instruction is reached.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Fact {
    /// The packet is at least as long.
    pub(super) len: u32,
    /// X was set by [`Operation::LoadHeaderLength`], and so is likely to be [`PLAIN_HEADER`].
    pub(super) header_length_in_x: bool,
}

/// Goes through the program on all paths at once, which can be done in its order as there are no jumps backwards. Tells
/// what is known before each instruction; `None` when it is never reached.
pub(super) fn follow(operations: &[Operation]) -> Result<Vec<Option<Fact>>, TranslateError> {
    let mut facts: Vec<Option<Fact>> = vec![None; operations.len()];
    if let Some(first) = facts.first_mut() {
        *first = Some(Fact {
            len: 0,
            header_length_in_x: false,
        });
    }
    for (at, operation) in operations.iter().enumerate() {
        let Some(mut fact) = facts[at] else { continue };
        let targets = match *operation {
            Operation::LoadAbsolute(size, k) => match Place::of(size, k) {
                Place::Packet { end } => {
                    fact.len = fact.len.max(end);
                    [Some(at + 1), None]
                }
                Place::Nowhere => [None, None],
                Place::Header { .. } => [Some(at + 1), None],
                Place::Ancillary(
                    unsupported @ (Ancillary::NetlinkAttribute
                    | Ancillary::NestedNetlinkAttribute
                    | Ancillary::HardwareType
                    | Ancillary::PayloadOffset),
                ) => {
                    let name = unsupported.name();
                    return Err(TranslateError::Ancillary { at, name });
                }
                Place::Ancillary(_) => [Some(at + 1), None],
            },
            Operation::LoadHeaderLength(k) => match Place::in_packet(Size::Byte, k) {
                Place::Nowhere => [None, None],
                place => {
                    if let Place::Packet { end } = place {
                        fact.len = fact.len.max(end);
                    }
                    fact.header_length_in_x = true;
                    [Some(at + 1), None]
                }
            },
            Operation::LoadIndirect(size, k) => match Place::of(size, k) {
                Place::Packet { end } => {
                    fact.len = fact.len.max(end);
                    [Some(at + 1), None]
                }
                Place::Header { .. } => return Err(TranslateError::RelativeIndex { at }),
                Place::Ancillary(_) | Place::Nowhere => [None, None],
            },
            Operation::LoadConstant(Register::X, _)
            | Operation::LoadScratch(Register::X, _)
            | Operation::LoadLength(Register::X)
            | Operation::Move(Register::X) => {
                fact.header_length_in_x = false;
                [Some(at + 1), None]
            }
            Operation::Jump(k) => [Some(at + 1 + k as usize), None],
            Operation::Branch { jt, jf, .. } => {
                [Some(at + 1 + usize::from(jt)), Some(at + 1 + usize::from(jf))]
            }
            Operation::ReturnConstant(_) | Operation::ReturnA => [None, None],
            _ => [Some(at + 1), None],
        };
        for target in targets.into_iter().flatten() {
            // The last instruction returns, so that all targets are in the program.
            let known = &mut facts[target];
            *known = Some(known.map_or(fact, |known| Fact {
                len: known.len.min(fact.len),
                header_length_in_x: known.header_length_in_x && fact.header_length_in_x,
            }));
        }
    }
    Ok(facts)
}
