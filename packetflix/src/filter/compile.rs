//! Filter expressions become classic BPF: libpcap compiles them, in a process of its own.
//!
//! libpcap is a compiler in C of which nobody promises that it withstands those who mean ill, the expression comes from
//! the network, and the server has the host's powers. So each expression is compiled by a short-lived process with
//! next to no rights (`child.rs`), of which few run at the same time (`crate::turns`), and none for long. What became of it is
//! kept for a while (`cache.rs`). Names, where they may be looked up at all, are numbers by then (`resolver.rs`).

use std::{borrow::Cow, io, net::Ipv4Addr, path::PathBuf, process::ExitStatus, sync::Arc, time::Duration};

use nix::sys::signal::Signal;
use packetflix_filter::{
    Names, Refused,
    classic::{Instruction, MAX_INSTRUCTIONS},
    translate_to_function,
};
use std::os::unix::process::ExitStatusExt as _;

pub use super::resolver::LookUpError;
use super::{
    FilterError, Translated,
    bounds::Bounds,
    cache::{Cache, Key},
    child::{Answer, Order},
    helper::Helpers,
    libpcap::language,
    resolver,
};
use crate::{
    capabilities::Capability,
    channel::Control,
    pcapng::LinkType,
    turns::{Busy, Turn, Turns},
};

/// Bytes that an expression has at most.
pub const MAX_LEN: usize = 64 << 10;

/// So often an expression is in memory while it waits, in the request and what was made of it; and what comes to that.
const COPIES: usize = 4;
const OVERHEAD: usize = 8 << 10;

/// How long a process may take, by the clock.
const DEADLINE: Duration = Duration::from_secs(10);
/// The same when it has to wait for others: until the kernel makes a network namespace.
const PATIENT_DEADLINE: Duration = Duration::from_secs(15);

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

/// Has expressions compiled, a few at a time, and knows what became of those that were.
#[derive(Debug)]
pub struct Compiler {
    options: Options,
    helpers: Helpers,
    turns: Arc<Turns>,
    known: Cache,
}

/// What libpcap compiles for captures alone, or otherwise for these.
const LIVE: [&str; 4] = ["vlan", "inbound", "outbound", "ifindex"];

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
    /// Its names cannot be looked up.
    #[error(transparent)]
    LookUp(#[from] LookUpError),
    /// It would become a program with a loop.
    #[error("protochain cannot be used in filters here: it takes a loop, which no filter in the kernel has")]
    Protochain,
    /// The program is larger than any that the kernel takes.
    #[error("the filter becomes {0} instructions, and the kernel takes {MAX_INSTRUCTIONS}")]
    TooManyInstructions(usize),
    /// It takes too long to compile.
    #[error("compiling the filter took too long")]
    Timeout,
    /// It takes too much memory to compile.
    #[error(
        "compiling the filter takes more memory than the {} MiB that there are for one here: make it smaller",
        .0 >> 20
    )]
    Memory(u64),
    /// The process was ended from outside.
    #[error(
        "the kernel has ended the process that compiled the filter, as it does for want of memory: try again later"
    )]
    Killed,
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

impl Compiler {
    /// One with turns of its own: what runs at the same time, and what waits, is bounded for each compiler.
    pub fn new(options: Options) -> Self {
        let helpers = Helpers::Own(options.program.clone());
        Self::by(helpers, options)
    }

    /// One whose processes are started by who is at the other end.
    pub(crate) fn by_keeper(control: &Arc<Control>, options: Options) -> Self {
        Self::by(Helpers::Kept(Arc::clone(control)), options)
    }

    fn by(helpers: Helpers, options: Options) -> Self {
        Self {
            helpers,
            options,
            turns: Turns::new(Bounds::current().turns()),
            known: Cache::default(),
        }
    }

    /// Whether others are asked for names in an expression.
    pub(crate) fn looks_names_up_in(&self, expression: &str) -> bool {
        self.options.resolve_names
            && language()
                .wanted(expression)
                .is_ok_and(|wanted| !wanted.is_empty())
    }

    /// Compiles an expression, for packets of a link type and on somebody's account, and translates it.
    ///
    /// # Errors
    /// When libpcap or the translation refuses it.
    pub async fn translate(
        &self,
        expression: &str,
        link_type: LinkType,
        account: &Arc<str>,
    ) -> Result<Translated, FilterError> {
        let classic = self.compile(expression, link_type, account).await?;
        let native = translate_to_function(&classic)?;
        Ok(Translated { classic, native })
    }

    /// Compiles an expression in the language of pcap-filter(7) for packets that begin like this, on an account whose turns
    /// are counted together. It becomes what it does in a capture by libpcap on an interface of this link type; none needs to
    /// be up, or to be there at all.
    ///
    /// The program has at most [`MAX_INSTRUCTIONS`], of which nothing else is known: it is to be verified.
    ///
    /// # Errors
    /// When the expression is none, or this machine does not let us compile it.
    pub async fn compile(
        &self,
        expression: &str,
        link_type: LinkType,
        account: &Arc<str>,
    ) -> Result<Vec<Instruction>, CompileError> {
        if expression.len() > MAX_LEN {
            return Err(CompileError::TooLong(expression.len()));
        }
        if expression.contains('\0') {
            return Err(CompileError::syntax(
                expression,
                "it holds a zero byte".to_owned(),
            ));
        }
        let refused = |refused| CompileError::of_names(expression, refused);
        let language = language();
        let mut turn = None;
        let names = match self.options.resolve_names {
            false => Names::Refused,
            true => {
                let wanted = language.wanted(expression).map_err(refused)?;
                if !wanted.is_empty() {
                    turn = Some(self.take_turn(expression, account).await?);
                }
                Names::Known(resolver::look_up(wanted, &self.helpers).await?)
            }
        };
        let checked = language.check(expression, &names).map_err(refused)?;
        if checked.len() > 2 * MAX_LEN {
            return Err(CompileError::TooLong(checked.len()));
        }
        let key = Key {
            account: Arc::clone(account),
            expression: checked.into_owned(),
            link_type,
        };
        let answer = match self.known.get(&key) {
            Some(answer) => answer,
            None => {
                let _turn = match turn {
                    Some(turn) => turn,
                    None => self.take_turn(expression, account).await?,
                };
                self.answer_to(&key).await?
            }
        };
        program_in(answer, expression)
    }

    async fn take_turn(&self, expression: &str, account: &Arc<str>) -> Result<Turn, CompileError> {
        let weight = COPIES * expression.len() + OVERHEAD;
        let turn = self.turns.take(account, weight).await;
        turn.map_err(|Busy| CompileError::Busy)
    }

    /// What a process makes of an expression; whoever was before may have asked for the same.
    async fn answer_to(&self, key: &Key) -> Result<Answer, CompileError> {
        if let Some(answer) = self.known.get(key) {
            return Ok(answer);
        }
        let answer = self.compile_anew(&key.expression, key.link_type).await?;
        self.known.put(key, &answer);
        Ok(answer)
    }

    /// What a process of its own makes of an expression without names.
    async fn compile_anew(&self, expression: &str, link_type: LinkType) -> Result<Answer, CompileError> {
        let netmask = self.options.netmask;
        let order = Order {
            link_type,
            // As a word or not: that costs time only.
            vlan: LIVE.iter().any(|word| expression.contains(word)),
            netmask: netmask.map_or(u32::MAX, |netmask| u32::from_ne_bytes(netmask.octets())),
        };
        let deadline = if order.vlan { PATIENT_DEADLINE } else { DEADLINE };
        let arguments = order.arguments();
        let helped = self
            .helpers
            .ask(&arguments, expression.as_bytes(), deadline)
            .await;
        let (status, answer) = helped
            .map_err(CompileError::Child)?
            .ok_or(CompileError::Timeout)?;
        understand(status, &answer)
    }
}

/// What the compiler has said to an expression.
fn program_in(answer: Answer, expression: &str) -> Result<Vec<Instruction>, CompileError> {
    match answer {
        Answer::Program(program) => Ok(program
            .into_iter()
            .map(|(code, jt, jf, k)| Instruction { code, jt, jf, k })
            .collect()),
        Answer::TooLarge(instructions) => Err(CompileError::TooManyInstructions(instructions)),
        Answer::OutOfMemory => Err(CompileError::Memory(Bounds::current().room)),
        Answer::Refused(message) => Err(CompileError::syntax(expression, message)),
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

impl CompileError {
    fn of_names(expression: &str, refused: Refused) -> Self {
        match refused {
            Refused::Name { name, instead } => Self::Name { name, instead },
            Refused::Protochain => Self::Protochain,
            Refused::Unknown(message) => Self::syntax(expression, message),
            Refused::TooMany => Self::LookUp(LookUpError::TooMany),
        }
    }

    fn syntax(expression: &str, message: String) -> Self {
        let expression = expression.to_owned();
        Self::Syntax { expression, message }
    }
}

fn understand(status: ExitStatus, answer: &[u8]) -> Result<Answer, CompileError> {
    match status.signal().map(Signal::try_from) {
        Some(Ok(Signal::SIGXCPU)) => return Err(CompileError::Timeout),
        Some(Ok(Signal::SIGKILL)) => return Err(CompileError::Killed),
        _ if !status.success() => {
            return Err(CompileError::Child(io::Error::other(status.to_string())));
        }
        _ => {}
    }
    serde_json::from_slice(answer).map_err(|error| CompileError::Child(error.into()))
}
