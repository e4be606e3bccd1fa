//! The parsers of what others write, each as a function that takes any bytes: for `cargo xtask fuzz`, and for a short look
//! among the tests. They panic when a parser does, or gives what it must never give.

pub use crate::{
    discovery::fuzzing::{cri, docker, told},
    filter::fuzzing::program,
    http::fuzzing::{container, request},
    http_client::fuzzing::answer,
    keeper::fuzzing::asked,
    proc_fs::fuzzing::proc,
    resolve::fuzzing::mobyshark,
    session::fuzzing::record,
};

#[cfg(test)]
mod tests {
    use proptest::{collection::vec, prelude::*};

    use super::*;

    /// The name of a parser, and what it is fed with.
    type Parser = (&'static str, fn(&[u8]));

    const PARSERS: [Parser; 11] = [
        ("answer", answer),
        ("asked", asked),
        ("container", container),
        ("cri", cri),
        ("docker", docker),
        ("mobyshark", mobyshark),
        ("proc", proc),
        ("program", program),
        ("record", record),
        ("request", request),
        ("told", told),
    ];

    /// What is of interest to begin with, as the fuzzer has it.
    fn seeds(parser: &str) -> Vec<Vec<u8>> {
        let folder = format!("{}/../fuzz/seeds/{parser}", env!("CARGO_MANIFEST_DIR"));
        let files = std::fs::read_dir(folder).unwrap();
        files
            .map(|file| std::fs::read(file.unwrap().path()).unwrap())
            .collect()
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]

        #[test]
        fn parsers_take_any_bytes(bytes in vec(any::<u8>(), 0..300)) {
            for (_, parser) in PARSERS {
                parser(&bytes);
            }
        }

        #[test]
        fn parsers_take_what_is_nearly_right(
            which in any::<prop::sample::Index>(), cut in any::<prop::sample::Index>(),
            changes in vec((any::<prop::sample::Index>(), any::<u8>()), 0..4),
        ) {
            for (name, parser) in PARSERS {
                let seeds = seeds(name);
                let mut bytes = seeds[which.index(seeds.len())].clone();
                for (at, byte) in &changes {
                    let at = at.index(bytes.len());
                    bytes[at] = *byte;
                }
                parser(&bytes);
                bytes.truncate(cut.index(bytes.len() + 1));
                parser(&bytes);
            }
        }
    }
}
