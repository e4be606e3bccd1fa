//! Programs that the kernel's verifier refuses: what of its log, which is thousands of lines, people have to know.

use std::{
    borrow::Cow,
    sync::{Mutex, PoisonError},
};

use nix::sys::utsname::uname;
use serde::{Deserialize, Serialize};

use crate::capabilities::Capability;

/// Most bytes of what is told of the log.
const MAX_FAULT_LEN: usize = 200;

/// Lines that the verifier adds behind the last word it has to say: `kernel/bpf/verifier.c`, `print_verification_stats`.
const STATISTICS: [&str; 3] = ["processed ", "verification time ", "stack depth "];

/// The verifier found fault with a program. That is not about rights, whatever error number it comes with.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
#[error("{}: {}", self.fact(), self.remedy())]
pub struct Refused {
    program: Cow<'static, str>,
    release: String,
    fault: String,
    /// The program has a filter of a client's.
    has_filter: bool,
}

impl Refused {
    /// By what the verifier said, which is logged for who debugs. `None` if it said nothing: then it was not asked.
    pub(super) fn by_log(program: &'static str, log: &str, has_filter: bool) -> Option<Self> {
        let fault = last_word(log)?;
        log_once(program, &fault, log);
        let release = uname().map_or_else(
            |_| "of an unknown version".to_owned(),
            |names| names.release().to_string_lossy().into_owned(),
        );
        Some(Self {
            program: program.into(),
            release,
            fault,
            has_filter,
        })
    }

    /// What is the case.
    pub(crate) fn fact(&self) -> String {
        let Self {
            program,
            release,
            fault,
            ..
        } = self;
        format!("the verifier of Linux {release} refuses the eBPF program `{program}` with \"{fault}\"")
    }

    /// What to do about it.
    pub(crate) fn remedy(&self) -> String {
        let lacked = Capability::SysAdmin;
        if !lacked.is_effective() {
            format!("give the service {lacked}, without which the verifier allows less")
        } else if self.has_filter {
            "try a shorter filter, or update the kernel".to_owned()
        } else {
            "update the kernel, or report this with the whole log, which --debug shows".to_owned()
        }
    }
}

/// The last line that says what is wrong.
fn last_word(log: &str) -> Option<String> {
    let mut lines = log.lines().rev().map(str::trim);
    let line =
        lines.find(|line| !line.is_empty() && !STATISTICS.iter().any(|start| line.starts_with(start)))?;
    let mut word = line.to_owned();
    if word.len() > MAX_FAULT_LEN {
        word.truncate(word.floor_char_boundary(MAX_FAULT_LEN));
        word.push('…');
    }
    Some(word)
}

/// Loading is tried again and again, and is refused for the same reason each time.
fn log_once(program: &'static str, fault: &str, log: &str) {
    static LOGGED: Mutex<Option<(&str, String)>> = Mutex::new(None);

    let mut logged = LOGGED.lock().unwrap_or_else(PoisonError::into_inner);
    if logged
        .as_ref()
        .is_none_or(|(name, before)| (*name, &**before) != (program, fault))
    {
        tracing::debug!(program, "the verifier refuses a program; its log:\n{log}");
        *logged = Some((program, fault.to_owned()));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_word_of_the_verifier_is_told() {
        let log = "0: R1=ctx() R10=fp0\n; note\n12: (85) call bpf_skb_load_bytes#26\n\
                   invalid access to memory, mem_size=262112 off=40 size=0\n\
                   R3 min value is outside of the allowed memory range\n\
                   processed 2134 insns (limit 1000000) max_states_per_insn 4\n\n";
        let refused = Refused::by_log("socket", log, false).unwrap();
        let fact = refused.fact();
        assert!(fact.starts_with("the verifier of Linux "), "{fact}");
        let end =
            "refuses the eBPF program `socket` with \"R3 min value is outside of the allowed memory range\"";
        assert!(fact.ends_with(end), "{fact}");
        assert_eq!(refused.to_string(), format!("{fact}: {}", refused.remedy()));
        assert!(std::error::Error::source(&refused).is_none());
    }

    #[test]
    fn what_to_do_depends_on_whose_the_fault_is() {
        let remedy = |has_filter| Refused::by_log("socket", "no", has_filter).unwrap().remedy();
        if Capability::SysAdmin.is_effective() {
            assert!(remedy(true).starts_with("try a shorter filter"));
            assert!(remedy(false).starts_with("update the kernel"));
        } else {
            assert!(remedy(true).contains("CAP_SYS_ADMIN"));
            assert_eq!(remedy(true), remedy(false));
        }
    }

    #[test]
    fn whoever_has_not_asked_the_verifier_was_not_refused_by_it() {
        for log in ["", "\n", "processed 0 insns (limit 1000000)\n"] {
            assert_eq!(Refused::by_log("socket", log, false), None, "{log:?}");
        }
    }

    #[test]
    fn a_word_is_short() {
        let word = last_word(&"é".repeat(1000)).unwrap();
        assert!(
            word.len() <= MAX_FAULT_LEN + "…".len() && word.ends_with('…'),
            "{word}"
        );
    }
}
