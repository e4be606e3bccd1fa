//! `packetflix extcap`: an interface in Wireshark's own list.
//!
//! Wireshark calls the programs in a folder of its own, as extcap(4) says: for their interfaces, for the options of one, and
//! for a capture into a pipe. What is wrong is read from standard error.

mod control;
#[cfg(target_os = "linux")]
mod handler;
pub(crate) mod install;
mod sentences;

use self::sentences::NO_TARGET;
pub(crate) use self::sentences::{INTERFACE, TARGET};

use std::{
    fs::{File, OpenOptions},
    path::{Path, PathBuf},
    time::Duration,
};

use tokio::{task::spawn_blocking, time::timeout};

use crate::{
    address::{CaptureAddress, SCHEME},
    error::{Failure, Status},
    http::{RequestError, get},
    interrupts::Interrupts,
    list::{Targets, print},
    local::StartLocal,
    output::Output,
    request::{CaptureRequest, Selection, Target},
    run::{Manner, Run, Sink},
    server::{Server, ServerArgs},
    stream::CaptureStream,
    watch::reader_gone,
};

/// How long Wireshark may take to open its end of the pipe.
const PATIENCE: Duration = Duration::from_secs(30);

/// How long Wireshark waits for targets that nobody has asked for.
const AT_ONCE: Duration = Duration::from_secs(1);

/// What Wireshark wants to know or to have.
#[derive(Clone, Debug, clap::Args)]
#[command(args_conflicts_with_subcommands = true)]
pub struct ExtcapArgs {
    #[command(subcommand)]
    verb: Option<ExtcapVerb>,
    /// List the interfaces
    #[arg(long)]
    extcap_interfaces: bool,
    /// Version of Wireshark
    #[arg(long, value_name = "VERSION", num_args = 0..=1, require_equals = true)]
    extcap_version: Option<Option<String>>,
    /// Name of the interface
    #[arg(long, value_name = "NAME")]
    extcap_interface: Option<String>,
    /// List the link types of the interface
    #[arg(long)]
    extcap_dlts: bool,
    /// List the options of the interface
    #[arg(long)]
    extcap_config: bool,
    /// List the values that one of the options may have
    #[arg(long, value_name = "OPTION")]
    extcap_reload_option: Option<String>,
    /// Expression of pcap-filter(7); without --capture, say what is wrong with it
    #[arg(long, value_name = "FILTER")]
    extcap_capture_filter: Option<String>,
    /// Pipe in which Wireshark tells of its controls, of which there are none
    #[arg(long, value_name = "PIPE")]
    extcap_control_in: Option<PathBuf>,
    /// Pipe for messages to Wireshark
    #[arg(long, value_name = "PIPE")]
    extcap_control_out: Option<PathBuf>,
    /// Capture
    #[arg(long, requires = "fifo")]
    capture: bool,
    /// Pipe that takes the packets
    #[arg(long, value_name = "PIPE")]
    fifo: Option<PathBuf>,
    /// What is captured: a name, as listed; netns:NUMBER; or an address as packetflix:ws://HOST:PORT/capture?container=…
    #[arg(long, value_name = "TARGET")]
    target: Option<String>,
    /// What is captured with it into one stream, with commas between the words: names, or patterns such as `shop-*`,
    /// label:KEY=VALUE, compose:PROJECT, image:PATTERN, type:TYPE or pod:PATTERN; `!` before a word leaves out what it means
    #[arg(long, value_name = "WORDS", value_delimiter = ',')]
    more_targets: Vec<String>,
    /// Go on with targets that start again, and with those that come later; the default for patterns
    #[arg(long)]
    follow: bool,
    /// Wait for targets that are not there yet
    #[arg(long)]
    wait: bool,
    /// Names of network interfaces, with commas between them. By default all
    #[arg(long, value_name = "NAMES", value_delimiter = ',')]
    interfaces: Vec<String>,
    /// Most bytes that are captured of a packet; 0 is all of them
    #[arg(long, value_name = "BYTES")]
    snaplen: Option<u32>,
    /// Do not put interfaces into promiscuous mode
    #[arg(long)]
    no_promiscuous_mode: bool,
    /// Which server.
    #[command(flatten)]
    server: ServerArgs,
}

/// What its user has to do with it.
#[derive(Clone, Copy, Debug, clap::Subcommand)]
enum ExtcapVerb {
    /// Put it where Wireshark looks, for this user; and have it open packetflix: addresses
    Install,
    /// Take it away from there
    Uninstall,
}

/// Tells Wireshark what it wants to know, or captures for it.
///
/// # Errors
/// When the server refuses, or the capture breaks off. Where Wireshark takes messages, it gets this one, too.
pub(crate) async fn extcap(args: &ExtcapArgs, local: Option<StartLocal>) -> Result<Status, Failure> {
    let done = args.follow(local).await;
    if let (Err(failure), Some(pipe)) = (&done, &args.extcap_control_out) {
        // Standard error has it in any case.
        let _ = control::show_error(pipe, &failure.sentence);
    }
    done
}

impl ExtcapArgs {
    async fn follow(&self, local: Option<StartLocal>) -> Result<Status, Failure> {
        match self.verb {
            Some(ExtcapVerb::Install) => return install::install(),
            Some(ExtcapVerb::Uninstall) => return install::uninstall(),
            None => {}
        }
        if self.capture
            && let Some(fifo) = &self.fifo
        {
            return self.capture(fifo, local).await;
        }
        print(&self.answer(local).await?)?;
        Ok(Status::Done)
    }

    async fn answer(&self, local: Option<StartLocal>) -> Result<String, Failure> {
        if self.extcap_interfaces {
            return Ok(sentences::interfaces());
        }
        if self.extcap_dlts {
            return Ok(sentences::link_types());
        }
        if self.extcap_config {
            return match self.extcap_reload_option.as_deref() {
                None | Some("") => Ok(self.options(local).await),
                Some(option) if option.trim_start_matches('-') == TARGET => {
                    Ok(self.list_targets(local).await)
                }
                Some(other) => Err(Failure::usage(format!("{other} has no list of values"))),
            };
        }
        match &self.extcap_capture_filter {
            Some(filter) => self.check(filter, local).await,
            None => Err(Failure::usage(
                "this is what Wireshark calls: `packetflix extcap install` puts it where Wireshark looks",
            )),
        }
    }

    /// The options, with the targets that are there right now: of a list that is empty, Wireshark shows no choice that was
    /// saved. As this is asked for whenever Wireshark starts, whoever does not answer at once is left to the button.
    async fn options(&self, local: Option<StartLocal>) -> String {
        let mut text = sentences::options();
        if self.server.asks_nobody()
            && let Ok(Ok(list)) = timeout(AT_ONCE, self.read_targets(local)).await
        {
            text += &sentences::targets(&list.targets);
        }
        text
    }

    async fn list_targets(&self, local: Option<StartLocal>) -> String {
        match self.read_targets(local).await {
            Ok(list) => sentences::targets(&list.targets),
            Err(failure) => sentences::no_targets(&failure.sentence),
        }
    }

    async fn read_targets(&self, local: Option<StartLocal>) -> Result<Targets, Failure> {
        let server = self.server.resolve(local)?;
        Ok(Targets::read(&server).await?)
    }

    /// What is wrong with a filter; nothing if it is right. Wireshark asks with each letter that is typed.
    async fn check(&self, filter: &str, local: Option<StartLocal>) -> Result<String, Failure> {
        const BAD_REQUEST: u16 = 400;
        if filter.is_empty() {
            return Ok(String::new());
        }
        if !self.server.asks_nobody() {
            return Err(Failure::refused(
                "the filter is checked once the capture starts: the server is reached by ssh, or a command has its token",
            ));
        }
        let server = self.server.resolve(local)?;
        let query = serde_urlencoded::to_string([("expr", filter)]).map_err(Failure::usage)?;
        match get(&server, &format!("/filter?{query}")).await {
            Ok(_) => Ok(String::new()),
            Err(RequestError::Refused(refusal)) if refusal.status == BAD_REQUEST => {
                Ok(refusal.sentence + "\n")
            }
            Err(error) => Err(Failure::refused(error)),
        }
    }

    /// Captures until Wireshark has had enough. The pipe is opened before anything can be refused: whoever reads would wait
    /// for ever for a pipe that nobody opens.
    async fn capture(&self, fifo: &Path, local: Option<StartLocal>) -> Result<Status, Failure> {
        let mut interrupts = Interrupts::listen().map_err(Failure::refused)?;
        let pipe = tokio::select! {
            pipe = open(fifo) => pipe?,
            _ = interrupts.first() => return Ok(Status::Done),
        };
        let (server, request) = self.request(local)?;
        let gone = reader_gone(&pipe);
        let stream = tokio::select! {
            opened = CaptureStream::open(&server, &request) => opened?,
            () = gone => return Ok(Status::Done),
            _ = interrupts.first() => return Ok(Status::Done),
        };
        let sink = Sink::Output(Box::new(Output::to(pipe, "the pipe to Wireshark")));
        // Wireshark takes all that is said for an error.
        let manner = Manner::default();
        let run = Run::new(&server, &request, stream, sink, manner, &mut interrupts);
        match run.to_end().await? {
            // That is how Wireshark ends a capture.
            Status::Interrupted | Status::Terminated => Ok(Status::Done),
            status => Ok(status),
        }
    }

    /// What is to be captured where; what Wireshark's user says goes before what an address asks for.
    fn request(&self, local: Option<StartLocal>) -> Result<(Server, CaptureRequest), Failure> {
        let (server, mut request) = self.target(local)?;
        request.snaplen = self.snaplen;
        request.promiscuous &= !self.no_promiscuous_mode;
        if let Some(filter) = &self.extcap_capture_filter
            && !filter.is_empty()
        {
            request.filter.clone_from(filter);
        }
        let names = words(&self.interfaces);
        if !names.is_empty() {
            request.interfaces = names;
        }
        Ok((server, request))
    }

    fn target(&self, local: Option<StartLocal>) -> Result<(Server, CaptureRequest), Failure> {
        let mut words = words(&self.more_targets);
        match self.target.as_deref().unwrap_or_default() {
            address if address.starts_with(SCHEME) => return self.address(address, &words),
            "" | NO_TARGET => {}
            word => words.insert(0, word.to_owned()),
        }
        if words.is_empty() {
            return Err(Failure::usage(
                "no target is chosen: the options of the interface list them, and tshark takes -o extcap.packetflix.target:NAME",
            ));
        }
        let target = Target::select(Selection {
            words,
            follows: self.follow.then_some(true),
            waits: self.wait,
        });
        Ok((self.server.resolve(local)?, CaptureRequest::new(target)))
    }

    fn address(&self, address: &str, more: &[String]) -> Result<(Server, CaptureRequest), Failure> {
        if !more.is_empty() || self.follow || self.wait {
            return Err(Failure::usage(
                "the address of a capture says itself which targets are meant, and how: no more are taken with it",
            ));
        }
        let CaptureAddress { server, request } = address.parse().map_err(Failure::usage)?;
        Ok((Server::at(server).map_err(Failure::usage)?, request))
    }
}

/// Words of a field of Wireshark's, without what stands around them.
fn words(field: &[String]) -> Vec<String> {
    let words = field.iter().map(|word| word.trim().to_owned());
    words.filter(|word| !word.is_empty()).collect()
}

/// Opens the pipe to Wireshark, which may not have opened its end yet.
async fn open(fifo: &Path) -> Result<File, Failure> {
    let path = fifo.to_owned();
    let opening = spawn_blocking(move || OpenOptions::new().write(true).open(path));
    match timeout(PATIENCE, opening).await {
        Ok(Ok(Ok(pipe))) => Ok(pipe),
        Ok(Ok(Err(error))) => Err(Failure::usage(format!(
            "{} cannot be opened: {error}",
            fifo.display()
        ))),
        Ok(Err(error)) => Err(Failure::refused(error)),
        Err(_) => Err(Failure::refused(format!("nobody reads {}", fifo.display()))),
    }
}
