//! Names that others are asked for, and what these say.

use std::{collections::HashMap, net::IpAddr};

use serde::{Deserialize, Serialize};

/// A name that is to be looked up.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Lookup {
    /// What it is the name of.
    pub kind: Kind,
    /// As it stands in the expression.
    pub name: String,
}

/// What something is the name of.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[expect(missing_docs, reason = "the names say it")]
pub enum Kind {
    Host,
    EthernetAddress,
    Network,
    Port,
    /// In IP.
    Protocol,
}

/// What a name stands for.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Found {
    /// Nothing that is known here.
    Nothing,
    /// Of a host.
    Addresses(Vec<IpAddr>),
    /// Of a host in the Ethernet.
    EthernetAddress([u8; 6]),
    /// As many bytes of an address as the table has.
    Network(Vec<u8>),
    /// The port over each of two protocols.
    #[expect(missing_docs, reason = "the names say it")]
    Port { tcp: Option<u16>, udp: Option<u16> },
    /// The protocol's number.
    Protocol(u8),
}

/// What was found.
pub type Known = HashMap<Lookup, Found>;
