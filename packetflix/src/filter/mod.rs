//! Packet filters: expressions of pcap-filter(7), which libpcap compiles to classic BPF in a process of its own
//! (`compile.rs`), and which become eBPF that goes into the programs that capture.
//!
//! What is pure of that is [`packetflix_filter`]'s. Here are the processes, libpcap, the machine's names, and the bounds.

mod bounds;
mod cache;
mod child;
pub mod compile;
mod helper;
mod libpcap;
mod lookup;
mod resolver;

pub(crate) use bounds::memory_of_compilers;
pub use child::answer_if_asked;
pub(crate) use helper::{Started, serve};

use packetflix_filter::{TranslateError, classic, native};

/// Both programs of an expression.
#[derive(Clone, Debug)]
pub struct Translated {
    /// Classic BPF, as libpcap compiled it.
    pub classic: Vec<classic::Instruction>,
    /// The same in eBPF: the body of a function, to which the packet and its type are given.
    pub native: Vec<native::Instruction>,
}

/// Why there is no filter.
#[derive(Debug, thiserror::Error)]
pub enum FilterError {
    /// libpcap does not compile it.
    #[error(transparent)]
    Compile(#[from] compile::CompileError),
    /// It has no translation.
    #[error("the filter has no translation for the kernel")]
    Translate(#[from] TranslateError),
}

#[cfg(any(test, feature = "fuzzing"))]
pub(crate) mod fuzzing {
    pub(crate) use super::helper::fuzzing::asked;
    use packetflix_filter::{classic, native, translate_to_function};

    use super::child::Answer;

    /// What the process that compiles filters answers, which whoever wrote the expression may have taken over.
    pub fn program(data: &[u8]) {
        let Ok(Answer::Program(program)) = serde_json::from_slice(data) else {
            return;
        };
        let program: Vec<classic::Instruction> = program
            .into_iter()
            .map(|(code, jt, jf, k)| classic::Instruction { code, jt, jf, k })
            .collect();
        let checked = classic::check(&program);
        match translate_to_function(&program) {
            Ok(filter) => assert!(checked.is_ok() && !native::encode(&filter).is_empty()),
            Err(error) => assert!(!error.to_string().is_empty()),
        }
    }
}
