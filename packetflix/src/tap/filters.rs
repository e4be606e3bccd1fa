//! What packets of a capture must pass, for each link type.

use packetflix_common::{
    InterfaceFilter,
    filters::{ETHERNET, RAW},
};

use super::patch::{self, Encoded, PatchError};
use crate::pcapng::LinkType;

/// The filters of a capture.
#[derive(Clone, Debug, Default)]
pub(crate) struct CaptureFilters {
    /// For packets that begin with an Ethernet header.
    pub(crate) ethernet: LinkFilter,
    /// For packets that begin with an IP header.
    pub(crate) raw: LinkFilter,
}

/// A filter for the packets of one link type.
#[derive(Clone, Debug, Default)]
pub(crate) enum LinkFilter {
    /// All pass.
    #[default]
    All,
    /// Those pass for which this eBPF function of a packet gives anything but 0.
    Program(Vec<Encoded>),
    /// The expression means nothing for such packets, and this is why.
    Impossible(String),
}

impl CaptureFilters {
    fn of(&self, link_type: LinkType) -> &LinkFilter {
        match link_type {
            LinkType::Ethernet => &self.ethernet,
            LinkType::Raw => &self.raw,
        }
    }

    /// Why no packet of the link type can pass.
    pub(super) fn reason_against(&self, link_type: LinkType) -> Option<String> {
        match self.of(link_type) {
            LinkFilter::Impossible(reason) => Some(reason.clone()),
            LinkFilter::All | LinkFilter::Program(_) => None,
        }
    }

    /// The number by which the programs know the filter of a link type.
    pub(super) fn number_of(&self, link_type: LinkType) -> InterfaceFilter {
        match (self.of(link_type), link_type) {
            (LinkFilter::Program(_), LinkType::Ethernet) => InterfaceFilter::Ethernet,
            (LinkFilter::Program(_), LinkType::Raw) => InterfaceFilter::Raw,
            (LinkFilter::All | LinkFilter::Impossible(_), _) => InterfaceFilter::None,
        }
    }

    /// Writes the filters into a copy of the object.
    ///
    /// # Errors
    /// When there is no room for one.
    pub(super) fn write_into(&self, object: &[u8]) -> Result<Vec<u8>, PatchError> {
        let mut object = object.to_vec();
        for (name, filter) in [(ETHERNET, &self.ethernet), (RAW, &self.raw)] {
            if let LinkFilter::Program(program) = filter {
                patch::write(&mut object, name, program)?;
            }
        }
        Ok(object)
    }
}
