//! What a client's stream says of itself, and whether it has room for packets beside that.

use std::{collections::BTreeMap, sync::Arc};

use super::{
    limits::{Limits, TooFewBytes},
    schedule::StatisticsPace,
    statistics::TapInterface,
    stream::{Stream, StreamInfo},
};
use crate::{
    description::TargetDescription,
    tap::{ForeseenInterface, RateLimits},
};

/// What a client's stream says of itself.
pub(crate) struct SessionInfo<'a> {
    /// Inode number of the namespace.
    pub(crate) netns: u64,
    /// Name and type of who holds it, unless the description names one.
    pub(crate) holder: (String, &'static str),
    pub(crate) description: &'a TargetDescription,
    pub(crate) node_name: &'a str,
    pub(crate) chaste: bool,
    /// The filter as the client wrote it, or empty.
    pub(crate) filter: &'a str,
    /// What is left out for other reasons than the filter, as far as it has to be told, or nothing.
    pub(crate) left_out: &'a str,
    /// Whether interfaces of other targets are in the same stream.
    pub(crate) is_one_of_several: bool,
    /// Snapshot length in bytes.
    pub(crate) snaplen: u32,
    /// What bounds the capture's rates.
    pub(crate) rates: RateLimits,
    /// Where the stream ends at the latest.
    pub(crate) limits: Limits,
    /// When there are statistics beside the final ones.
    pub(crate) statistics: StatisticsPace,
}

impl SessionInfo<'_> {
    /// Whether the stream has room for packets, if it begins with these interfaces; to be asked before anything is attached to
    /// them.
    ///
    /// # Errors
    /// When there is none.
    pub(crate) fn check_interfaces(&self, interfaces: Vec<ForeseenInterface>) -> Result<(), TooFewBytes> {
        let described = |foreseen| {
            let ForeseenInterface {
                link,
                link_type,
                left_out,
                note,
                is_seen_by_tcx,
            } = foreseen;
            Arc::new(TapInterface {
                link_type,
                link,
                left_out,
                note,
                is_seen_by_tcx,
                since: 0,
            })
        };
        let interfaces: Vec<_> = interfaces.into_iter().map(described).collect();
        let mut stream = Stream::begin(&self.stream(), &BTreeMap::new(), 0);
        stream.describe(0, &interfaces);
        let beginning_len = stream.blocks().len() as u64;
        self.check_room(beginning_len + stream.end_len())
    }

    /// Whether its bytes are enough for what every stream begins and ends with.
    ///
    /// # Errors
    /// When they are not.
    pub(super) fn check_room(&self, least: u64) -> Result<(), TooFewBytes> {
        match self.limits.bytes {
            Some(bytes) if bytes < least => Err(TooFewBytes { bytes, least }),
            _ => Ok(()),
        }
    }

    /// What its section header tells.
    pub(super) fn stream(&self) -> StreamInfo<'_> {
        StreamInfo {
            holder: (&self.holder.0, self.holder.1),
            description: self.description,
            node_name: self.node_name,
            chaste: self.chaste,
            filter: self.filter,
            left_out: self.left_out,
            netns: self.netns,
            is_one_of_several: self.is_one_of_several,
            snaplen: self.snaplen,
            rates: self.rates,
        }
    }
}
