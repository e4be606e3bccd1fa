//! Two namespaces with a pair of virtual Ethernet devices, in which packets go from one to the other and nowhere else.

use std::{
    io::{BufRead as _, BufReader},
    net::{Ipv4Addr, UdpSocket},
    process::{Child, Command, Stdio},
};

use anyhow::Context as _;
use packetflix_tests::{
    generator::{DISCARD_PORT, Plan, SELECTED_PORT},
    namespace::Namespace,
    server::{Server, program},
};

use crate::crowd::Folder;

/// Interface at which packets are sent, and the one at which they arrive.
const SENDER: &str = "va";
const RECEIVER: &str = "vb";

/// Their addresses.
pub(crate) const SENDER_ADDRESS: Ipv4Addr = Ipv4Addr::new(10, 9, 1, 1);
pub(crate) const RECEIVER_ADDRESS: Ipv4Addr = Ipv4Addr::new(10, 9, 1, 2);

pub(crate) struct Bed {
    pub(crate) tcx: Server,
    pub(crate) socket: Server,
    pub(crate) original: Original,
    pub(crate) sender: Namespace,
    pub(crate) receiver: Namespace,
    receiver_mac: [u8; 6],
    /// Nobody reads them: packets are thrown away, without an answer.
    _discards: [UdpSocket; 2],
    /// The names of the namespaces are there; gone after them, and with us when we are killed.
    _names: Folder,
}

/// An end of the pair.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum End {
    /// From where the packets come.
    Sending,
    /// Where they arrive.
    #[default]
    Receiving,
}

impl End {
    /// Its interface.
    pub(crate) fn interface(self) -> &'static str {
        match self {
            Self::Sending => SENDER,
            Self::Receiving => RECEIVER,
        }
    }
}

/// What an interface has seen, in both directions.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Counters {
    pub(crate) packets: u64,
    pub(crate) bytes: u64,
}

impl Counters {
    pub(crate) fn since(self, earlier: Self) -> Self {
        Self {
            packets: self.packets - earlier.packets,
            bytes: self.bytes - earlier.bytes,
        }
    }
}

impl Bed {
    /// To be made by the main thread, with which all processes of it die.
    ///
    /// # Errors
    /// Without root.
    pub(crate) fn new() -> anyhow::Result<Self> {
        let names = Folder::mount()?;
        let (sender, receiver) = Namespace::pair()?;
        let discard = |port| receiver.inside(|| UdpSocket::bind((RECEIVER_ADDRESS, port)));
        let discards = [discard(DISCARD_PORT)??, discard(SELECTED_PORT)??];
        Ok(Self {
            tcx: packetflix(&["--hook", "tcx"])?,
            socket: packetflix(&["--hook", "socket"])?,
            original: Original::start()?,
            receiver_mac: mac_of(&receiver, RECEIVER)?,
            sender,
            receiver,
            _discards: discards,
            _names: names,
        })
    }

    /// As many packets as can be, of these lengths in turn.
    pub(crate) fn plan(&self, packets: u64, lens: &[usize]) -> Plan {
        Plan {
            interface: SENDER.to_owned(),
            to_mac: self.receiver_mac,
            addresses: [SENDER_ADDRESS, RECEIVER_ADDRESS],
            packets,
            lens: lens.to_vec(),
            rate: None,
            is_irregular: false,
            select_each: None,
        }
    }

    /// The namespace at an end.
    pub(crate) fn namespace(&self, end: End) -> &Namespace {
        match end {
            End::Sending => &self.sender,
            End::Receiving => &self.receiver,
        }
    }

    /// What the interface at which packets arrive has seen so far.
    ///
    /// # Errors
    /// When it is gone.
    pub(crate) fn counters(&self) -> anyhow::Result<Counters> {
        let devices = self
            .receiver
            .inside(|| std::fs::read_to_string("/proc/thread-self/net/dev"))??;
        let of_receiver =
            |line: &str| Some(line.trim().strip_prefix(RECEIVER)?.strip_prefix(':')?.to_owned());
        let line = devices.lines().find_map(of_receiver).context("no interface")?;
        let numbers: Vec<u64> = line
            .split_whitespace()
            .map(str::parse)
            .collect::<Result<_, _>>()?;
        let sum = |received: usize, sent: usize| Some(numbers.get(received)? + numbers.get(sent)?);
        // Bytes, packets and six more of what was received, then the same of what was sent.
        Ok(Counters {
            bytes: sum(0, 8).context("no bytes")?,
            packets: sum(1, 9).context("no packets")?,
        })
    }
}

/// A server that dies with us.
pub(crate) fn packetflix(flags: &[&str]) -> anyhow::Result<Server> {
    let mut command = Command::new("setpriv");
    command.args(["--pdeathsig", "KILL"]).arg(program("packetflix")?);
    Server::start_by(&mut command, flags)
}

fn mac_of(namespace: &Namespace, interface: &str) -> anyhow::Result<[u8; 6]> {
    let links: serde_json::Value =
        serde_json::from_str(&namespace.ip(&["-json", "link", "show", interface])?)?;
    let text = links[0]["address"].as_str().context("no address")?;
    let bytes = text.split(':').map(|byte| u8::from_str_radix(byte, 16));
    let bytes: Vec<u8> = bytes.collect::<Result<_, _>>()?;
    bytes.try_into().ok().context("no MAC address")
}

/// The stand-in for the packetflix that went before; killed when dropped.
pub(crate) struct Original {
    child: Child,
    port: u16,
}

impl Original {
    fn start() -> anyhow::Result<Self> {
        let mut child = Command::new("setpriv")
            .args(["--pdeathsig", "KILL"])
            .arg(program("original")?)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            // What dumpcap has to tell is in its stream.
            .stderr(Stdio::null())
            .spawn()
            .context("cannot start setpriv")?;
        let mut line = String::new();
        BufReader::new(child.stdout.take().context("no output")?).read_line(&mut line)?;
        let port = line.trim().parse();
        let mut original = Self { child, port: 0 };
        original.port = port.with_context(|| format!("it printed {line:?}"))?;
        Ok(original)
    }

    pub(crate) fn pid(&self) -> u32 {
        self.child.id()
    }

    pub(crate) fn port(&self) -> u16 {
        self.port
    }
}

impl Drop for Original {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
