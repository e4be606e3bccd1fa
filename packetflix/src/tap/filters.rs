//! What packets of a capture must pass, for each link type.

use std::sync::Arc;

use packetflix_common::{
    InterfaceFilter,
    filters::{ETHERNET, RAW},
};
use packetflix_filter::{classic, native, translate_to_function};
use serde::{Deserialize, Serialize};

use super::code::{Encoded, FilterLinkError};
use crate::{
    filter::{
        FilterError, Translated,
        compile::{CompileError, Compiler},
    },
    pcapng::LinkType,
};

/// The filters of a capture.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct CaptureFilters {
    /// On whose account they are. Others' are never the same: how long it takes to load them tells nobody what others look for.
    account: Arc<str>,
    /// For packets that begin with an Ethernet header.
    pub(crate) ethernet: LinkFilter,
    /// For packets that begin with an IP header.
    pub(crate) raw: LinkFilter,
}

/// A filter for the packets of one link type.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum LinkFilter {
    /// All pass.
    #[default]
    All,
    /// Those pass for which this program of classic BPF gives anything but 0.
    Program {
        classic: Vec<classic::Instruction>,
        /// How many instructions of eBPF that is.
        instructions: usize,
    },
    /// The expression means nothing for such packets, and this is why.
    Impossible(String),
}

impl CaptureFilters {
    /// Makes the filters of an expression, on somebody's account; without one all packets pass.
    ///
    /// # Errors
    /// When the expression means nothing for any link type.
    pub(crate) async fn build(
        expression: &str,
        compiler: &Compiler,
        account: &Arc<str>,
    ) -> Result<Self, FilterError> {
        if expression.is_empty() {
            return Ok(Self::default());
        }
        let (ethernet, raw) = tokio::join!(
            build_one(expression, LinkType::Ethernet, compiler, account),
            build_one(expression, LinkType::Raw, compiler, account),
        );
        match (ethernet, raw) {
            (Err(error), Err(_)) => Err(error),
            (ethernet, raw) => Ok(Self {
                account: Arc::clone(account),
                ethernet: or_impossible(ethernet)?,
                raw: or_impossible(raw)?,
            }),
        }
    }

    /// The one for packets of a link type. What cooked mode puts a header before is IP, seen without it in the kernel.
    fn of(&self, link_type: LinkType) -> Option<&LinkFilter> {
        match link_type {
            LinkType::Ethernet => Some(&self.ethernet),
            LinkType::Raw | LinkType::LinuxSll => Some(&self.raw),
            _ => None,
        }
    }

    /// Whether all packets pass.
    pub(super) fn is_none(&self) -> bool {
        matches!((&self.ethernet, &self.raw), (LinkFilter::All, LinkFilter::All))
    }

    /// Why no packet of the link type can pass.
    pub(super) fn reason_against(&self, link_type: LinkType) -> Option<String> {
        match self.of(link_type) {
            Some(LinkFilter::Impossible(reason)) => Some(reason.clone()),
            None if !self.is_none() => {
                Some("filters are for packets that begin with an Ethernet or IP header".to_owned())
            }
            _ => None,
        }
    }

    /// The number by which the programs know the filter of a link type.
    pub(super) fn number_of(&self, link_type: LinkType) -> InterfaceFilter {
        match (self.of(link_type), link_type) {
            (Some(LinkFilter::Program { .. }), LinkType::Ethernet) => InterfaceFilter::Ethernet,
            (Some(LinkFilter::Program { .. }), _) => InterfaceFilter::Raw,
            _ => InterfaceFilter::None,
        }
    }

    /// eBPF instructions of the longer of them.
    pub(crate) fn instructions(&self) -> usize {
        let len = |filter: &LinkFilter| match filter {
            LinkFilter::Program { instructions, .. } => *instructions,
            LinkFilter::All | LinkFilter::Impossible(_) => 0,
        };
        len(&self.ethernet).max(len(&self.raw))
    }

    /// Those that there are, in eBPF, by the functions of the object whose places they take: each is checked as it is translated.
    ///
    /// # Errors
    /// When one is no program.
    pub(super) fn programs(&self) -> Result<Vec<(&'static str, Vec<Encoded>)>, FilterLinkError> {
        let filters = [(ETHERNET, &self.ethernet), (RAW, &self.raw)];
        let programs = filters.into_iter().filter_map(|(name, filter)| match filter {
            LinkFilter::Program { classic, .. } => Some((name, classic)),
            LinkFilter::All | LinkFilter::Impossible(_) => None,
        });
        let translated = programs.map(|(name, classic)| {
            let native = translate_to_function(classic)?;
            Ok((
                name,
                native.into_iter().map(native::Instruction::encode).collect(),
            ))
        });
        translated.collect()
    }
}

async fn build_one(
    expression: &str,
    link_type: LinkType,
    compiler: &Compiler,
    account: &Arc<str>,
) -> Result<LinkFilter, FilterError> {
    let Translated { classic, native } = compiler.translate(expression, link_type, account).await?;
    Ok(LinkFilter::Program {
        classic,
        instructions: native.len(),
    })
}

/// What libpcap does not take for one link type may be right for another.
fn or_impossible(filter: Result<LinkFilter, FilterError>) -> Result<LinkFilter, FilterError> {
    match filter {
        Err(FilterError::Compile(CompileError::Syntax { message, .. })) => {
            Ok(LinkFilter::Impossible(message))
        }
        filter => filter,
    }
}
