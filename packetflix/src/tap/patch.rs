//! Writes filters into the eBPF object before it is loaded, over the bodies of functions that stand there for them.

use std::{collections::HashMap, sync::LazyLock};

use object::{Object as _, ObjectSection as _, ObjectSymbol as _};
use packetflix_common::filters::{ETHERNET, RAW};

use super::object::OBJECT;

/// An instruction as the kernel takes it.
///
/// Source: `linux/bpf.h`, `struct bpf_insn`.
pub(crate) type Encoded = [u8; 8];

/// Why a filter cannot be written.
#[derive(Debug, thiserror::Error)]
pub enum PatchError {
    /// It is too long.
    #[error("the filter takes {instructions} eBPF instructions, and there is room for {room}")]
    TooLarge {
        /// How many it takes.
        instructions: usize,
        /// How many there is room for.
        room: usize,
    },
    /// The object was not built from the source of this server.
    #[error("the eBPF object has no function {0}")]
    Missing(&'static str),
}

/// Where the body of a function lies in the object.
#[derive(Clone, Copy, Debug)]
struct Body {
    offset: usize,
    len: usize,
}

static BODIES: LazyLock<HashMap<&'static str, Body>> = LazyLock::new(|| {
    let bodies = [ETHERNET, RAW].map(|name| Some((name, find_body(name)?)));
    bodies.into_iter().flatten().collect()
});

fn find_body(name: &str) -> Option<Body> {
    let file = object::File::parse(OBJECT).ok()?;
    let symbol = file.symbol_by_name(name)?;
    let section = file.section_by_index(symbol.section_index()?).ok()?;
    let (section_offset, _) = section.file_range()?;
    Some(Body {
        offset: usize::try_from(section_offset.checked_add(symbol.address())?).ok()?,
        len: usize::try_from(symbol.size()).ok()?,
    })
}

/// Instructions that do not belong to the filter: the branch to the padding, and the end of that.
const OVERHEAD: usize = 2;

/// A copy of the object in which `filter` is the body of the function `name`.
///
/// # Errors
/// When there is no room for it.
pub(super) fn write(object: &mut [u8], name: &'static str, filter: &[Encoded]) -> Result<(), PatchError> {
    let body = BODIES.get(name).ok_or(PatchError::Missing(name))?;
    let whole = object
        .get_mut(body.offset..body.offset + body.len)
        .ok_or(PatchError::Missing(name))?;
    let (slots, _) = whole.as_chunks_mut::<8>();
    let room = slots.len().saturating_sub(OVERHEAD);
    if filter.len() > room {
        return Err(PatchError::TooLarge {
            instructions: filter.len(),
            room,
        });
    }
    let (first, rest) = slots.split_at_mut(1);
    let (place, padding) = rest.split_at_mut(filter.len());
    // The kernel wants every instruction to be reached by some branch: this one is never taken, for the packet's
    // address is not zero.
    first[0] = branch_if_zero(1, filter.len());
    place.copy_from_slice(filter);
    padding.fill(LOAD_ZERO);
    if let Some(last) = padding.last_mut() {
        *last = EXIT;
    }
    Ok(())
}

/// `if rN == 0 goto +DISTANCE`
fn branch_if_zero(register: u8, distance: usize) -> Encoded {
    let [low, high] = (distance as u16).to_le_bytes();
    [0x15, register, low, high, 0, 0, 0, 0]
}

/// `r0 = 0`
const LOAD_ZERO: Encoded = [0xb7, 0, 0, 0, 0, 0, 0, 0];

/// `exit`
const EXIT: Encoded = [0x95, 0, 0, 0, 0, 0, 0, 0];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn filters_replace_whole_functions_and_nothing_else() {
        let mut object = OBJECT.to_vec();
        let filter = vec![[7; 8]; 100];
        write(&mut object, ETHERNET, &filter).unwrap();
        let body = BODIES[ETHERNET];
        let (slots, _) = object[body.offset..][..body.len].as_chunks::<8>();
        assert_eq!(slots[0], [0x15, 1, 100, 0, 0, 0, 0, 0]);
        assert_eq!(slots[1..101], filter);
        let (last, padding) = slots[101..].split_last().unwrap();
        assert_eq!(*last, EXIT);
        assert!(padding.iter().all(|slot| *slot == LOAD_ZERO));
        assert_eq!(object[..body.offset], OBJECT[..body.offset]);
        assert_eq!(object[body.offset + body.len..], OBJECT[body.offset + body.len..]);
    }

    #[test]
    fn filters_that_are_too_large_are_refused() {
        let mut object = OBJECT.to_vec();
        for name in [ETHERNET, RAW] {
            write(&mut object, name, &vec![EXIT; 4089]).unwrap();
            let error = write(&mut object, name, &vec![EXIT; 4090]).unwrap_err();
            assert_eq!(
                error.to_string(),
                "the filter takes 4090 eBPF instructions, and there is room for 4089"
            );
        }
    }
}
