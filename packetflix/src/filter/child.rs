//! The process that compiles: our own program, executed anew, which gives up its rights before it reads the expression.
//!
//! What remains to it is reading, writing and memory, all of it bounded. What it answers is still not to be trusted,
//! since whoever wrote the expression may have taken it over: the program has to be verified like one from a client.

use std::{
    ffi::{CString, OsString},
    io::{self, Read as _, Write as _},
    process::ExitCode,
};

use nix::sched::{CloneFlags, unshare};
use packetflix_filter::classic::MAX_INSTRUCTIONS;
use serde::{Deserialize, Serialize};

use super::{bounds::Bounds, helper::CPU_SECONDS, libpcap::Handle, resolver};
use crate::{
    capabilities::Capability,
    confined::{Failure, SystemCall, begin, give_up_rights},
    pcapng::LinkType,
    sys,
};

/// First argument of a process that is to compile: no flag of ours, nor one that may ever be.
const VERB: &str = "compile-filter";

/// What libpcap says when it is out of memory.
const OUT_OF_MEMORY: [&str; 3] = ["out of memory", "malloc", "calloc"];

/// What the process is told by its arguments; the expression comes on standard input.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Order {
    pub(super) link_type: LinkType,
    /// Whether the expression asks for what libpcap knows of captures only, such as VLAN tags beside the packet.
    pub(super) vlan: bool,
    /// In the host's byte order; all ones when there is none.
    pub(super) netmask: u32,
}

/// What the process tells, as a line of JSON.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) enum Answer {
    /// Code, jt, jf and k of each instruction.
    Program(Vec<(u16, u8, u8, u32)>),
    /// So many instructions.
    TooLarge(usize),
    /// There is not so much memory for a filter.
    OutOfMemory,
    /// What libpcap says against the expression.
    Refused(String),
    /// What could not be done before the expression was read, and why: the kernel's error number or a sentence.
    Failed {
        step: String,
        /// The right that it takes.
        needs: Option<Capability>,
        errno: Option<i32>,
        sentence: String,
    },
}

impl Order {
    /// The arguments that tell it.
    pub(super) fn arguments(self) -> [String; 4] {
        let link_type = match self.link_type {
            LinkType::Ethernet => "ethernet",
            // Filters are compiled for no others.
            _ => "raw",
        };
        [
            VERB.to_owned(),
            link_type.to_owned(),
            self.vlan.to_string(),
            self.netmask.to_string(),
        ]
    }

    /// The order that the arguments after the verb tell.
    fn parse(arguments: &[OsString]) -> Option<Self> {
        let [link_type, vlan, netmask] = arguments else {
            return None;
        };
        Some(Self {
            link_type: match link_type.to_str()? {
                "ethernet" => LinkType::Ethernet,
                "raw" => LinkType::Raw,
                _ => return None,
            },
            vlan: vlan.to_str()?.parse().ok()?,
            netmask: netmask.to_str()?.parse().ok()?,
        })
    }
}

/// Whether these are arguments of a process that helps with a filter.
pub(super) fn is_known(arguments: &[String]) -> bool {
    let arguments: Vec<OsString> = arguments.iter().map(OsString::from).collect();
    match arguments.split_first() {
        Some((verb, rest)) if verb == VERB => Order::parse(rest).is_some(),
        Some((verb, rest)) => verb == resolver::VERB && rest.is_empty(),
        None => false,
    }
}

/// Compiles a filter, or looks up the names in one, and tells how the process is to end, when its arguments say that this is
/// what it is for: to be called first of all, before anything was opened and while there is one thread.
pub fn answer_if_asked(arguments: impl Iterator<Item = OsString>) -> Option<ExitCode> {
    let arguments: Vec<OsString> = arguments.skip(1).take(5).collect();
    let (verb, rest) = arguments.split_first()?;
    let answered = if verb == VERB {
        let order = Order::parse(rest).ok_or_else(|| io::Error::from(io::ErrorKind::InvalidInput));
        order.and_then(|order| say(&answer(order).unwrap_or_else(Answer::from)))
    } else if verb == resolver::VERB {
        say(&resolver::answer())
    } else {
        return None;
    };
    Some(answered.map_or(ExitCode::FAILURE, |()| ExitCode::SUCCESS))
}

fn say(answer: &impl Serialize) -> io::Result<()> {
    io::stdout().write_all(&serde_json::to_vec(answer)?)
}

impl From<Failure> for Answer {
    fn from(Failure { step, error, needs }: Failure) -> Self {
        Self::Failed {
            step: step.to_owned(),
            needs,
            errno: error.raw_os_error(),
            sentence: error.to_string(),
        }
    }
}

fn answer(order: Order) -> Result<Answer, Failure> {
    begin(Bounds::current().room, CPU_SECONDS)?;
    let handle = open(order)?;
    give_up_rights(0, &SystemCall::of_all(&[]))?;

    let mut expression = Vec::new();
    io::stdin()
        .read_to_end(&mut expression)
        .map_err(Failure::of("the expression could not be read"))?;
    let expression = CString::new(expression)
        .map_err(|error| Failure::of("the expression is no text")(io::Error::other(error)))?;
    Ok(match handle.compile(&expression, order.netmask) {
        Ok(program) if program.len() > MAX_INSTRUCTIONS => Answer::TooLarge(program.len()),
        Ok(program) => Answer::Program(program.iter().map(|i| (i.code, i.jt, i.jf, i.k)).collect()),
        Err(sentence) if OUT_OF_MEMORY.contains(&&*sentence) => Answer::OutOfMemory,
        Err(sentence) => Answer::Refused(sentence),
    })
}

/// What the filter is compiled for.
///
/// Of packets with an Ethernet header the kernel keeps the VLAN tags beside them, and libpcap looks there only for a
/// handle that captures. So there is one, on the loopback device of a network namespace that nobody else has: it has
/// the link type of Ethernet, and sees no packet ever. The kernel takes tens of milliseconds to begin and end that.
/// For all else libpcap makes the same program whether a handle captures or not, as the tests compare.
fn open(order: Order) -> Result<Handle, Failure> {
    let failed = |step| move |sentence| Failure::of(step)(io::Error::other::<String>(sentence));
    if order.link_type != LinkType::Ethernet || !order.vlan {
        return Handle::dead(order.link_type).map_err(failed("libpcap makes no handle"));
    }
    unshare(CloneFlags::CLONE_NEWNET)
        .map_err(io::Error::from)
        .map_err(Failure::without(
            Capability::SysAdmin,
            "a network namespace could not be made (unshare)",
        ))?;
    sys::set_interface_up(c"lo").map_err(Failure::without(
        Capability::NetAdmin,
        "the loopback device could not be set up",
    ))?;
    // libpcap would say the same, but in words only.
    drop(sys::packet_socket().map_err(Failure::without(
        Capability::NetRaw,
        "a packet socket could not be opened",
    ))?);
    Handle::live(c"lo", LinkType::Ethernet).map_err(failed("libpcap does not capture on the loopback device"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn orders_survive_the_arguments() {
        for link_type in [LinkType::Ethernet, LinkType::Raw] {
            for vlan in [true, false] {
                let order = Order {
                    link_type,
                    vlan,
                    netmask: 0xffff_ff00,
                };
                let arguments = order.arguments().map(OsString::from);
                assert_eq!(arguments[0], VERB);
                assert_eq!(Order::parse(&arguments[1..]), Some(order));
            }
        }
    }

    #[test]
    fn other_arguments_are_not_for_us() {
        for arguments in [&["packetflix"][..], &["packetflix", "--port", VERB], &[]] {
            assert!(answer_if_asked(arguments.iter().map(OsString::from)).is_none());
            assert!(!is_known(
                &arguments.iter().map(|one| (*one).to_owned()).collect::<Vec<_>>()
            ));
        }
        let wrong = ["token-ring", "false", "0"].map(OsString::from);
        assert_eq!(Order::parse(&wrong), None);
    }
}
