//! The programs of the eBPF object as code: with the maps of one capture, and linked with its filters when they are loaded.
//!
//! aya makes the maps. Programs it loads once, as they stand in the object; ours are loaded anew for each filter, over the
//! same maps.
//!
//! The object has a function per link type that means nothing. A filter takes its place before the programs are linked, so that
//! it costs no more than the call that is there anyway. An interface's entry says which of the filters its packets must pass.
//! Packets that get the header of cooked mode in user space pass the one for raw IP, and those of other link types none.

use std::{
    collections::HashSet,
    iter,
    os::fd::{AsFd as _, AsRawFd as _, BorrowedFd, OwnedFd},
    sync::OnceLock,
    thread,
};

use aya::{Ebpf, EbpfError, maps::Map};
use aya_obj::{Function, Object};
use packetflix_filter::TranslateError;

use super::{CaptureFilters, object::LoadError, threads::joined};
use crate::{
    error::chain,
    sys::bpf::{Functions, Program, ProgramType, load_program, load_types},
};

/// An instruction as the kernel takes it.
///
/// Source: `linux/bpf.h`, `struct bpf_insn`.
pub(crate) type Encoded = [u8; 8];

/// Most instructions of a filter.
const MAX_FILTER_LEN: usize = 4089;

/// Where no section of an object reaches to.
const NOWHERE: usize = 1 << 40;

/// Why a filter cannot be linked.
#[derive(Debug, thiserror::Error)]
pub enum FilterLinkError {
    /// It is too long.
    #[error("the filter takes {instructions} eBPF instructions, and there is room for {room}")]
    TooLarge {
        /// How many it takes.
        instructions: usize,
        /// How many there is room for.
        room: usize,
    },
    /// It is no program that the kernel would take.
    #[error("the filter has no translation for the kernel")]
    Translate(#[from] TranslateError),
    /// The object was not built from the source of this server.
    #[error("the eBPF object has no function {0}")]
    Missing(&'static str),
}

/// The code of all programs, which refers to the maps of one object, with functions in the place of filters.
pub(super) struct Code {
    object: Object,
    /// The types of functions, as the kernel has them; the verifier looks at filters one by one where it has these.
    types: Option<BorrowedFd<'static>>,
}

impl Code {
    /// Reads `bytes`, and has the code refer to the maps that aya has made of them.
    pub(super) fn new(bytes: &[u8], maps: &Ebpf) -> Result<Self, LoadError> {
        let mut object = Object::parse(bytes).map_err(failed)?;
        let types = types_of(&mut object);
        for function in object.functions.values_mut() {
            // Lines of the source, which would not be those of a filter.
            function.line_info.line_info.clear();
        }
        let declared = object.maps.clone();
        let sections = sections(&object);
        let made = maps.maps().filter_map(|(name, map)| {
            let descriptor = descriptor_of(map)?.as_raw_fd();
            Some((name, descriptor, declared.get(name)?))
        });
        object.relocate_maps(made, &sections).map_err(failed)?;
        Ok(Self { object, types })
    }

    /// Loads the programs of these names, with filters.
    pub(super) fn load(
        &self,
        names: &[&'static str],
        kind: ProgramType,
        filters: &CaptureFilters,
    ) -> Result<Vec<OwnedFd>, LoadError> {
        let mut object = self.object.clone();
        object.programs.retain(|name, _| names.contains(&name.as_str()));
        for (name, filter) in filters.programs()? {
            put_filter(&mut object, name, &filter)?;
        }
        let sections = sections(&object);
        object.relocate_calls(&sections).map_err(failed)?;
        let load = |name: &'static str| {
            let program = object.programs.get(name).ok_or(LoadError::Missing(name))?;
            let code = object.functions.get(&program.function_key());
            let code = code.ok_or(LoadError::Missing(name))?;
            let records = code.func_info.func_info_bytes();
            let functions = self.types.map(|types| Functions {
                types,
                records: &records,
                record_len: code.func_info_rec_size as u32,
            });
            let loaded = load_program(&Program {
                kind,
                name,
                license: &object.license,
                instructions: &code.instructions,
                functions,
            });
            loaded.map_err(|failure| LoadError::of_program(name, failure, !filters.is_none()))
        };
        // The verifier takes some milliseconds for each.
        thread::scope(|scope| {
            let begin = |name: &'static str| {
                let load = &load;
                let begun = thread::Builder::new().spawn_scoped(scope, move || load(name));
                begun.map_err(|source| LoadError::Program { name, source })
            };
            let Some((&first, others)) = names.split_first() else {
                return Ok(Vec::new());
            };
            let others: Vec<_> = others.iter().copied().map(begin).collect();
            let others = others.into_iter().map(|begun| joined(begun?));
            iter::once(load(first)).chain(others).collect()
        })
    }
}

/// Gives the kernel the types of the object's functions, once. It does without if it does not take them: then it looks at a
/// filter with whatever calls it.
fn types_of(object: &mut Object) -> Option<BorrowedFd<'static>> {
    static TYPES: OnceLock<OwnedFd> = OnceLock::new();

    if let Some(types) = TYPES.get() {
        return Some(types.as_fd());
    }
    let features = aya::features().btf()?;
    let types = match object.fixup_and_sanitize_btf(features) {
        Ok(types) => types?.to_bytes(),
        Err(error) => {
            tracing::debug!(error = %chain(&error), "programs are loaded without types");
            return None;
        }
    };
    match load_types(&types) {
        Ok(types) => Some(TYPES.get_or_init(|| types).as_fd()),
        Err(error) => {
            tracing::debug!(%error, "programs are loaded without types");
            None
        }
    }
}

/// Puts a filter into the place of a function.
fn put_filter(object: &mut Object, name: &'static str, filter: &[Encoded]) -> Result<(), LoadError> {
    if filter.len() > MAX_FILTER_LEN {
        let (instructions, room) = (filter.len(), MAX_FILTER_LEN);
        return Err(FilterLinkError::TooLarge { instructions, room }.into());
    }
    let function = function_mut(object, name).ok_or(FilterLinkError::Missing(name))?;
    function.instructions = aya_obj::copy_instructions(filter.as_flattened()).map_err(failed)?;
    // What the object says of calls at these places is not said of the filter.
    function.section_offset = NOWHERE;
    Ok(())
}

fn function_mut<'a>(object: &'a mut Object, name: &str) -> Option<&'a mut Function> {
    let mut functions = object.functions.values_mut();
    functions.find(|function| function.name == name)
}

/// Numbers of the sections that have code.
fn sections(object: &Object) -> HashSet<usize> {
    object.functions.keys().map(|(section, _)| *section).collect()
}

/// The descriptor of a map of a type that the object has.
pub(super) fn descriptor_of(map: &Map) -> Option<BorrowedFd<'_>> {
    match map {
        Map::Array(map)
        | Map::ArrayOfMaps(map)
        | Map::HashMap(map)
        | Map::PerCpuHashMap(map)
        | Map::ProgramArray(map)
        | Map::RingBuf(map) => Some(map.fd().as_fd()),
        _ => None,
    }
}

fn failed(error: impl Into<EbpfError>) -> LoadError {
    LoadError::Object(Box::new(error.into()))
}

#[cfg(test)]
mod tests {
    use packetflix_common::{
        filters::{ETHERNET, RAW},
        programs::{SOCKET_ENTRY, TC_IDLE},
    };

    use super::{super::object::OBJECT, *};

    /// `exit`
    const EXIT: Encoded = [0x95, 0, 0, 0, 0, 0, 0, 0];

    #[test]
    fn filters_take_the_places_of_functions_and_of_nothing_else() {
        let before = Object::parse(OBJECT).unwrap();
        let mut object = before.clone();
        let filter = vec![[0xb7, 0, 0, 0, 7, 0, 0, 0], EXIT];
        put_filter(&mut object, ETHERNET, &filter).unwrap();
        let bytes = |function: &Function| -> Vec<Encoded> {
            // SAFETY: an instruction is eight bytes, all of which mean something.
            #[expect(unsafe_code, reason = "aya's instructions are made of bit fields")]
            let encoded = |one: &_| unsafe { std::mem::transmute_copy::<_, Encoded>(one) };
            function.instructions.iter().map(encoded).collect()
        };
        for (key, function) in &object.functions {
            let expected = match &*function.name {
                ETHERNET => filter.clone(),
                _ => bytes(&before.functions[key]),
            };
            assert_eq!(bytes(function), expected, "{}", function.name);
        }
        // It is what the programs end with, that call it, once.
        let sections = sections(&object);
        object.relocate_calls(&sections).unwrap();
        for program in object.programs.values() {
            let linked = bytes(&object.functions[&program.function_key()]);
            let times = linked
                .windows(filter.len())
                .filter(|part| *part == filter)
                .count();
            let name = &*object.functions[&program.function_key()].name;
            let calls = ![SOCKET_ENTRY, TC_IDLE].contains(&name);
            assert_eq!(times, usize::from(calls), "{name}");
        }
    }

    #[test]
    fn filters_that_are_too_large_are_refused() {
        let mut object = Object::parse(OBJECT).unwrap();
        for name in [ETHERNET, RAW] {
            put_filter(&mut object, name, &vec![EXIT; 4089]).unwrap();
            let error = put_filter(&mut object, name, &vec![EXIT; 4090]).unwrap_err();
            assert_eq!(
                error.to_string(),
                "the filter takes 4090 eBPF instructions, and there is room for 4089"
            );
        }
    }
}
