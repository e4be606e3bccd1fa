//! What is asked for when a capture is.

use packetflix_common::MAX_INTERFACES;

use crate::{
    description::TargetDescription,
    session::{Limits, StatisticsPace},
    tap::InterfaceSelection,
};

/// A capture that a client wants.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct CaptureRequest {
    /// What is to be captured, unless it is `several`.
    pub(crate) target: TargetDescription,
    /// Several targets in one stream.
    pub(crate) several: Option<Several>,
    /// Which interfaces; `None` leaves it to the target.
    pub(crate) selection: Option<InterfaceSelection>,
    /// The filter, or empty.
    pub(crate) filter: String,
    /// With the service's own traffic.
    pub(crate) with_own: bool,
    /// Without promiscuous mode.
    pub(crate) chaste: bool,
    /// With the names of known targets.
    pub(crate) names: bool,
    /// Snapshot length in bytes.
    pub(crate) snaplen: u32,
    /// Where the stream ends at the latest.
    pub(crate) limits: Limits,
    /// When there are statistics beside the final ones.
    pub(crate) statistics: StatisticsPace,
}

/// Several targets in one stream.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Several {
    /// The words of a selection.
    pub(crate) words: Vec<String>,
    /// Those that are described.
    pub(crate) described: Vec<TargetDescription>,
    /// Whether targets join that come later; `None` leaves it to the words.
    pub(crate) follow: Option<bool>,
    /// Whether they need not be there yet.
    pub(crate) wait: bool,
}

/// More interfaces are named than a capture can have.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("{0} interfaces are named, and {MAX_INTERFACES} is the most")]
pub(crate) struct TooManyInterfaces(usize);

/// Interfaces by their names, `all` and `any` alone being all, as nothing is. Named twice, they are the interface of that name.
pub(crate) fn select(mut names: Vec<String>) -> Result<InterfaceSelection, TooManyInterfaces> {
    names.retain(|name| !name.is_empty());
    let is_all = matches!(&names[..], [only] if only == "all" || only == "any");
    names.sort_unstable();
    names.dedup();
    match names.len() {
        0 => Ok(InterfaceSelection::All),
        _ if is_all => Ok(InterfaceSelection::All),
        len if len > MAX_INTERFACES as usize => Err(TooManyInterfaces(len)),
        _ => Ok(InterfaceSelection::Named(names)),
    }
}
