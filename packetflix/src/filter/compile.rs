//! Filter expressions become classic BPF: libpcap compiles them, in a process of its own.
//!
//! libpcap is a compiler in C of which nobody promises that it withstands those who mean ill, the expression comes from
//! the network, and the server has the host's powers. So each expression is compiled by a short-lived process with
//! next to no rights (`child.rs`), of which few run at the same time, and none for long.

use std::{
    borrow::Cow, io, net::Ipv4Addr, path::PathBuf, process::ExitStatus, process::Stdio, time::Duration,
};

use nix::sys::signal::Signal;
use std::os::unix::process::ExitStatusExt as _;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    process::{Child, Command},
    sync::Semaphore,
    time::timeout,
};

use super::{
    child::{Answer, Order},
    classic::{Instruction, MAX_INSTRUCTIONS},
    names::{self, Refused},
};
use crate::{capabilities::Capability, pcapng::LinkType};

/// Bytes that an expression has at most.
pub const MAX_LEN: usize = 64 << 10;

/// How long a process may take, by the clock.
const DEADLINE: Duration = Duration::from_secs(10);
/// The same when it has to wait for others: for resolvers, or until the kernel makes a network namespace.
const PATIENT_DEADLINE: Duration = Duration::from_secs(15);
/// How many of them there are at the same time.
const AT_ONCE: usize = 4;
/// How long an expression waits for its turn.
const TURN: Duration = Duration::from_secs(15);
/// Bytes of an answer: the longest program is a seventh of that.
const MAX_ANSWER: u64 = 1 << 20;

/// How expressions are compiled.
#[derive(Clone, Debug)]
pub struct Options {
    /// The packetflix program.
    pub program: PathBuf,
    /// Whether names of hosts, networks, ports and protocols may be looked up, from the server's network namespace.
    pub resolve_names: bool,
    /// Netmask of the interface, without which libpcap refuses `ip broadcast`. tcpdump says 0.0.0.0, after which only
    /// 255.255.255.255 and 0.0.0.0 are broadcast addresses.
    pub netmask: Option<Ipv4Addr>,
}

impl Default for Options {
    /// By the running program, without names.
    fn default() -> Self {
        Self {
            program: PathBuf::from("/proc/self/exe"),
            resolve_names: false,
            netmask: None,
        }
    }
}

/// Why there is no program.
#[derive(Debug, thiserror::Error)]
pub enum CompileError {
    /// The expression is too long.
    #[error("the filter has {0} bytes, and may have {MAX_LEN}")]
    TooLong(usize),
    /// libpcap does not take it.
    #[error("filter \"{}\": {message}", excerpt(expression))]
    Syntax {
        /// The expression.
        expression: String,
        /// libpcap's sentence.
        message: String,
    },
    /// There is a name in it.
    #[error(
        "\"{}\" in the filter is a name, and names are looked up only with --resolve-filter-names: {instead}",
        excerpt(name)
    )]
    Name {
        /// The name.
        name: String,
        /// What is to be written instead.
        instead: &'static str,
    },
    /// It would become a program with a loop.
    #[error("protochain cannot be used in filters here: it takes a loop, which no filter in the kernel has")]
    Protochain,
    /// The program is larger than any that the kernel takes.
    #[error("the filter becomes {0} instructions, and the kernel takes {MAX_INSTRUCTIONS}")]
    TooManyInstructions(usize),
    /// It takes too long to compile.
    #[error("compiling the filter took too long")]
    Timeout,
    /// Too many others are being compiled.
    #[error("too many filters are being compiled")]
    Busy,
    /// The process could not be made safe, or lacks rights.
    #[error("filters cannot be compiled: {step}")]
    Setup {
        /// What could not be done.
        step: String,
        /// What it takes.
        needs: Option<Capability>,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The process could not be started, or did not answer.
    #[error("the process that compiles filters failed")]
    Child(#[source] io::Error),
}

/// So much of a text as belongs into a sentence.
pub(crate) fn excerpt(text: &str) -> Cow<'_, str> {
    const CHARACTERS: usize = 200;
    match text.char_indices().nth(CHARACTERS) {
        None => Cow::Borrowed(text),
        Some((end, _)) => Cow::Owned(format!("{}…", &text[..end])),
    }
}

/// Compiles an expression in the language of pcap-filter(7) for packets that begin like this. It becomes what it does
/// in a capture by libpcap on an interface of this link type; none needs to be up, or to be there at all.
///
/// The program has at most [`MAX_INSTRUCTIONS`], of which nothing else is known:
/// it is to be verified.
///
/// # Errors
/// When the expression is none, or this machine does not let us compile it.
pub async fn compile(
    expression: &str,
    link_type: LinkType,
    options: &Options,
) -> Result<Vec<Instruction>, CompileError> {
    static TURNS: Semaphore = Semaphore::const_new(AT_ONCE);

    if expression.len() > MAX_LEN {
        return Err(CompileError::TooLong(expression.len()));
    }
    let syntax = |message: String| CompileError::Syntax {
        expression: expression.to_owned(),
        message,
    };
    if expression.contains('\0') {
        return Err(syntax("it holds a zero byte".to_owned()));
    }
    let checked = names::check(expression, options.resolve_names)?;
    let order = Order {
        link_type,
        // As a word or not: that costs time only.
        vlan: checked.contains("vlan"),
        netmask: options
            .netmask
            .map_or(u32::MAX, |netmask| u32::from_ne_bytes(netmask.octets())),
        resolve_names: options.resolve_names,
    };
    let deadline = if order.resolve_names || order.vlan {
        PATIENT_DEADLINE
    } else {
        DEADLINE
    };

    let Ok(Ok(_turn)) = timeout(TURN, TURNS.acquire()).await else {
        return Err(CompileError::Busy);
    };
    let mut child = start(options, order).map_err(CompileError::Child)?;
    let (status, answer) = match timeout(deadline, ask(&mut child, &checked)).await {
        Ok(Ok(said)) => said,
        Ok(Err(error)) => {
            end(&mut child).await;
            return Err(CompileError::Child(error));
        }
        Err(_) => {
            end(&mut child).await;
            return Err(CompileError::Timeout);
        }
    };
    match understand(status, &answer)? {
        Answer::Program(program) => Ok(program
            .into_iter()
            .map(|(code, jt, jf, k)| Instruction { code, jt, jf, k })
            .collect()),
        Answer::TooLarge(instructions) => Err(CompileError::TooManyInstructions(instructions)),
        Answer::Refused(message) => Err(syntax(message)),
        Answer::Failed {
            step,
            needs,
            errno,
            sentence,
        } => Err(CompileError::Setup {
            step,
            needs,
            source: errno.map_or_else(|| io::Error::other(sentence), io::Error::from_raw_os_error),
        }),
    }
}

impl From<Refused> for CompileError {
    fn from(refused: Refused) -> Self {
        match refused {
            Refused::Name { name, instead } => Self::Name { name, instead },
            Refused::Protochain => Self::Protochain,
        }
    }
}

fn start(options: &Options, order: Order) -> io::Result<Child> {
    Command::new(&options.program)
        .arg0("packetflix")
        .args(order.arguments())
        .env_clear()
        .current_dir("/")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        // Whoever gives up waiting for us ends it too.
        .kill_on_drop(true)
        .spawn()
}

/// Gives the process the expression, and takes how it ended and what it said.
async fn ask(child: &mut Child, expression: &str) -> io::Result<(ExitStatus, Vec<u8>)> {
    let mut answer = Vec::new();
    if let Some(mut input) = child.stdin.take() {
        match input.write_all(expression.as_bytes()).await {
            // It may have failed before it reads, of which it tells.
            Err(error) if error.kind() != io::ErrorKind::BrokenPipe => return Err(error),
            _ => {}
        }
    }
    if let Some(output) = child.stdout.take() {
        output.take(MAX_ANSWER).read_to_end(&mut answer).await?;
    }
    Ok((child.wait().await?, answer))
}

/// Ends the process for good, and lets the kernel forget it.
async fn end(child: &mut Child) {
    if let Err(error) = child.kill().await {
        tracing::warn!(%error, "a process that compiles a filter could not be ended");
    }
}

fn understand(status: ExitStatus, answer: &[u8]) -> Result<Answer, CompileError> {
    let out_of_time = [Signal::SIGXCPU, Signal::SIGKILL].map(|signal| Some(signal as i32));
    if out_of_time.contains(&status.signal()) {
        return Err(CompileError::Timeout);
    }
    if !status.success() {
        return Err(CompileError::Child(io::Error::other(status.to_string())));
    }
    serde_json::from_slice(answer).map_err(|error| CompileError::Child(error.into()))
}
