//! Namespaces that are each connected with one and the same: what is sent there arrives here.

use packetflix_tests::{namespace::Namespace, raw::RawSocket};

use crate::interrupt::check;

/// The interface of each receiver.
pub(crate) const RECEIVER: &str = "vb";

/// Receivers, and a way to send to each.
pub(crate) struct Lanes {
    pub(crate) receivers: Vec<Namespace>,
    hub: Namespace,
}

impl Lanes {
    pub(crate) fn new(count: usize) -> anyhow::Result<Self> {
        let hub = Namespace::new()?;
        let mut receivers = Vec::new();
        for number in 0..count {
            check()?;
            let receiver = Namespace::new()?;
            let ours = interface(number);
            hub.ip(&[
                "link",
                "add",
                &ours,
                "type",
                "veth",
                "peer",
                "name",
                RECEIVER,
                "netns",
                receiver.name(),
            ])?;
            hub.ip(&["link", "set", &ours, "up"])?;
            receiver.ip(&["link", "set", RECEIVER, "up"])?;
            receivers.push(receiver);
        }
        Ok(Self { receivers, hub })
    }

    /// Sockets for sending to the first receivers.
    pub(crate) fn sockets(&self, count: usize) -> anyhow::Result<Vec<RawSocket>> {
        (0..count)
            .map(|number| RawSocket::open(&self.hub, &interface(number)))
            .collect()
    }
}

fn interface(number: usize) -> String {
    format!("va{number}")
}
