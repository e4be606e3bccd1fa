//! The interfaces of a tap: which join, which are left out and why, and how they change.

use std::{
    io,
    time::{Duration, Instant},
};

use nix::errno::Errno;
use packetflix_common::{InterfaceCounters, InterfaceSettings, MAX_CAPTURED_LEN, MAX_INTERFACES};

use super::{
    CaptureFilters, Drained, Head, InterfaceSelection, Tap, TapError, blocking,
    hook::{ChosenHook, HookError, Whereabouts},
    kernel::Attachments,
    link_types::{hands_back, link_type, network_offset},
};
use crate::{
    allowance::Allowance,
    error,
    netns::{EnterError, Link, Links, Look, Netns},
    pcapng::LinkType,
};

/// After how long an interface that could not be attached to is tried again: first, and at most.
const FIRST_RETRY: Duration = Duration::from_secs(1);
const LAST_RETRY: Duration = Duration::from_secs(30);

/// Most interfaces that are known of a tap: one more than it holds, which tells that there are more.
const MAX_KNOWN: usize = MAX_INTERFACES as usize + 1;

/// How often an interface gets another name in a stream, and how much of that is saved up. Each is kept for as long as the
/// capture runs, and whoever has root's rights in the namespace can rename links thousands of times a second.
const RENAME_COST: Duration = Duration::from_secs(10);
const SAVED_FOR_RENAMES: Duration = Duration::from_secs(80);

/// How often a tap warns of interfaces, and how much of that is saved up: anybody there can have any number come and go.
const WARNING_COST: Duration = Duration::from_secs(1);
pub(super) const SAVED_FOR_WARNINGS: Duration = Duration::from_secs(64);

/// An interface that a tap captures, or would.
pub(crate) struct TappedInterface {
    /// Its number in the capture, from 0, never used again.
    pub(crate) id: u32,
    /// When it joined, or got its name, in nanoseconds of the records' clock.
    pub(crate) since: u64,
    /// What its packets begin with.
    pub(crate) link_type: LinkType,
    /// What was last known of it, and what it was called when its name was last told.
    pub(crate) link: Link,
    /// What is known of it since, where it has another name that was not told yet.
    untold: Option<Link>,
    renames: Allowance,
    /// Why none of its packets is captured, if so.
    pub(crate) left_out: Option<LeftOut>,
    /// Whether it was detached from, if it ever was attached to, and has yet to be forgotten.
    is_leaving: bool,
    /// Whether it was, or may have been, in another network namespace when it was detached.
    pub(crate) has_moved: bool,
}

/// An interface with which a capture would begin, as far as that is known before it does.
#[derive(Debug)]
pub(crate) struct ForeseenInterface {
    pub(crate) link: Link,
    /// What its packets begin with.
    pub(crate) link_type: LinkType,
    /// Why none of its packets would be captured, if so.
    pub(crate) left_out: Option<String>,
    /// What there is to say of the capture at its description.
    pub(crate) note: Option<String>,
    /// Whether TCX would show its packets.
    pub(crate) is_seen_by_tcx: bool,
}

/// Why nothing is captured of an interface.
#[derive(Clone, Debug)]
pub(crate) struct LeftOut {
    /// For people.
    pub(crate) reason: String,
    /// When it is tried again, if that may help.
    retry: Option<Retry>,
}

#[derive(Clone, Copy, Debug)]
struct Retry {
    at: Instant,
    pause: Duration,
}

/// What has changed since the interfaces were last looked at.
pub(crate) struct LinkChanges {
    /// Indexes of captured interfaces that are gone.
    pub(crate) gone: Vec<u32>,
    /// Indexes of captured interfaces that have another name, and which of them it was.
    pub(crate) renamed: Vec<u32>,
    /// Interfaces that are wanted, or of which is to be told why they are not, and not yet captured.
    pub(crate) new: Vec<Link>,
    /// Whether all interfaces could be listed; if not, there may be others.
    pub(crate) are_all: io::Result<bool>,
    /// Whether interfaces have come and gone again that no list had.
    pub(crate) has_passed: bool,
}

impl TappedInterface {
    /// Takes note whether it is in another network namespace; `may_have_been` there, where it was removed.
    fn note_where_it_is(&mut self, attachments: &Attachments, may_have_been: impl FnOnce() -> bool) {
        self.has_moved |= match attachments.whereabouts_of_programs(self.link.ifindex) {
            None | Some(Whereabouts::Here) => false,
            Some(Whereabouts::Elsewhere) => true,
            Some(Whereabouts::Removed) => may_have_been(),
        };
    }
}

impl LeftOut {
    fn for_good(reason: String) -> Self {
        Self { reason, retry: None }
    }

    fn for_now(error: &TapError) -> Self {
        Self {
            reason: format!(
                "nothing is captured here, until it works: {}",
                error::chain(error)
            ),
            retry: Some(Retry {
                at: Instant::now() + FIRST_RETRY,
                pause: FIRST_RETRY,
            }),
        }
    }
}

impl Retry {
    fn later(self) -> Self {
        let pause = (2 * self.pause).min(LAST_RETRY);
        Self {
            at: Instant::now() + pause,
            pause,
        }
    }
}

impl Tap {
    /// Adds the interfaces that the capture begins with. Where all are wanted, one that the kernel refuses is left out.
    ///
    /// # Errors
    /// When the kernel refuses one that was asked for, or all, or for want of what another would not get either.
    pub(super) fn begin(&mut self, netns: &Netns, links: Vec<Link>) -> Result<(), TapError> {
        let join = || {
            let mut first = None;
            for link in links.into_iter().take(MAX_KNOWN) {
                match self.join_one(&link) {
                    Ok(joined) => drop(joined.map(|interface| self.add(interface))),
                    Err(error) if self.selection.is_by_name() || is_of_everything(&error) => {
                        return Err(error);
                    }
                    Err(error) => {
                        self.leave_out(link, LeftOut::for_now(&error));
                        first.get_or_insert(error);
                    }
                }
            }
            let is_captured = |interface: &TappedInterface| interface.left_out.is_none();
            match first {
                _ if self.interfaces.values().any(is_captured) => Ok(()),
                Some(error) => Err(error),
                None if self.selection.is_of_what_comes() => Ok(()),
                None => Err(TapError::NoInterface),
            }
        };
        blocking(|| netns.enter(join))?
    }

    /// Adds interfaces to a capture that runs. One that the kernel refuses is left out, and tried again.
    ///
    /// # Errors
    /// When the namespace cannot be entered.
    pub(crate) fn join(&mut self, netns: &Netns, links: Vec<Link>) -> Result<(), EnterError> {
        if links.is_empty() {
            return Ok(());
        }
        let join = || {
            for link in links {
                match self.join_one(&link) {
                    Ok(joined) => drop(joined.map(|interface| self.add(interface))),
                    Err(error) => self.leave_out(link, LeftOut::for_now(&error)),
                }
            }
        };
        blocking(|| netns.enter(join))
    }

    /// Tries interfaces again that could not be attached to; gives what stood for those that have joined now.
    ///
    /// # Errors
    /// When the namespace cannot be entered.
    pub(crate) fn retry(&mut self, netns: &Netns) -> Result<Vec<TappedInterface>, EnterError> {
        let now = Instant::now();
        let is_due = |interface: &TappedInterface| {
            let retry = interface.left_out.as_ref().and_then(|left_out| left_out.retry);
            !interface.is_leaving && retry.is_some_and(|retry| retry.at <= now)
        };
        let due: Vec<Link> = self
            .interfaces
            .values()
            .filter(|interface| is_due(interface))
            .map(|interface| interface.link.clone())
            .collect();
        if due.is_empty() {
            return Ok(Vec::new());
        }
        let again = || {
            due.iter()
                .filter_map(|link| match self.join_one(link) {
                    Ok(joined) => self.add(joined?),
                    Err(_) => {
                        let interface = self.interfaces.get_mut(&link.ifindex)?;
                        let retry = interface.left_out.as_mut()?.retry.as_mut()?;
                        *retry = retry.later();
                        None
                    }
                })
                .collect()
        };
        blocking(|| netns.enter(again))
    }

    /// Attaches to an interface, and makes it known to the programs; `None` when it is gone. Runs inside the namespace.
    fn join_one(&mut self, link: &Link) -> Result<Option<TappedInterface>, TapError> {
        let Some((link_type, left_out)) = self.judge(link) else {
            return Ok(None);
        };
        // Used up even if the interface does not join: it may have got a packet into a ring.
        let id = self.next_interface_id;
        self.next_interface_id += 1;
        let since = self.clock.now();
        if left_out.is_none() {
            match self.attach(link, id, link_type) {
                Err(TapError::Hook(HookError::Gone { .. })) => return Ok(None),
                attached => attached?,
            }
        }
        Ok(Some(TappedInterface {
            id,
            since,
            link_type,
            link: link.clone(),
            untold: None,
            renames: Allowance::new(SAVED_FOR_RENAMES),
            left_out,
            is_leaving: false,
            has_moved: false,
        }))
    }

    fn judge(&self, link: &Link) -> Option<(LinkType, Option<LeftOut>)> {
        let others = self.interfaces.values().next().map(|first| first.link_type);
        let judged = judge(link, &self.selection, self.kernel.hook(), &self.filters, others);
        judged.map(|(link_type, reason)| (link_type, reason.map(LeftOut::for_good)))
    }

    fn attach(&mut self, link: &Link, id: u32, link_type: LinkType) -> Result<(), TapError> {
        let others = self.interfaces.keys().filter(|index| **index != link.ifindex);
        if others.count() >= MAX_INTERFACES as usize {
            return Err(TapError::TooManyInterfaces);
        }
        let settings = InterfaceSettings {
            costs: self.rates.costs(),
            interface_id: id,
            hands_back: u16::from(hands_back(link)),
            network_offset: network_offset(link_type),
            filter: self.filters.number_of(link_type) as u32,
            snaplen: self.snaplen.min(MAX_CAPTURED_LEN),
        };
        self.kernel.attach(link, settings)?;
        if self.promiscuous
            && !link.loopback
            && let Err(error) = self.kernel.make_promiscuous(link.ifindex)
            && self.may_warn()
        {
            tracing::warn!(interface = link.name, %error, "promiscuous mode could not be switched on");
        }
        Ok(())
    }

    /// Takes note of an interface; gives what stood in its place.
    fn add(&mut self, interface: TappedInterface) -> Option<TappedInterface> {
        if let Some(LeftOut { reason, .. }) = &interface.left_out
            && self.may_warn()
        {
            tracing::warn!(
                interface = interface.link.name,
                reason,
                "an interface is left out"
            );
        }
        self.interfaces.insert(interface.link.ifindex, interface)
    }

    fn leave_out(&mut self, link: Link, left_out: LeftOut) {
        let id = self.next_interface_id;
        self.next_interface_id += 1;
        let others = self.interfaces.values().next().map(|first| first.link_type);
        let known = link_type(&link);
        self.add(TappedInterface {
            id,
            since: self.clock.now(),
            link_type: others.or(known).unwrap_or(LinkType::Ethernet),
            link,
            untold: None,
            renames: Allowance::new(SAVED_FOR_RENAMES),
            left_out: Some(left_out),
            is_leaving: false,
            has_moved: false,
        });
    }

    /// Whether there may be one more warning.
    fn may_warn(&mut self) -> bool {
        let may = self.warnings.is_due();
        if may {
            self.warnings.spend(WARNING_COST);
        }
        may
    }

    /// Captured interfaces by their index, and those that are left out.
    pub(crate) fn interfaces(&self) -> impl Iterator<Item = &TappedInterface> {
        self.interfaces.values()
    }

    /// An interface by its index.
    pub(crate) fn interface(&self, ifindex: u32) -> Option<&TappedInterface> {
        self.interfaces.get(&ifindex)
    }

    /// Detaches from one interface, whose records are still in the rings.
    pub(crate) fn detach(&mut self, ifindex: u32) {
        if let Some(interface) = self.interfaces.get_mut(&ifindex) {
            interface.is_leaving = true;
            blocking(|| self.kernel.detach(ifindex));
        }
    }

    /// Detaches from all interfaces: no record comes after this.
    pub(crate) fn detach_all(&mut self) {
        let Self {
            interfaces,
            kernel,
            links,
            ..
        } = self;
        for (ifindex, interface) in interfaces {
            interface.note_where_it_is(kernel.attachments(), || links.may_have_moved(*ifindex));
            interface.is_leaving = true;
        }
        blocking(|| kernel.detach_all());
    }

    /// Takes records that are not younger than `until`, oldest first, each with a way to ask whether its interface, by its
    /// index, is in the network namespace that is captured. What was captured before it is asked is of that one alone then.
    /// See [`Merge::drain`](super::rings::Merge::drain).
    pub(crate) fn drain(
        &mut self,
        until: u64,
        mut take: impl FnMut(&[u8], &mut dyn FnMut(u32) -> bool) -> Head,
    ) -> Drained {
        let Self {
            kernel,
            interfaces,
            links,
            ..
        } = self;
        let (rings, attachments) = kernel.rings_and_attachments();
        let mut is_here = |ifindex| {
            interfaces.get_mut(&ifindex).is_some_and(|interface| {
                interface.note_where_it_is(attachments, || links.may_have_moved(ifindex));
                !interface.has_moved
            })
        };
        rings.drain(until, |record| take(record, &mut is_here))
    }

    /// Forgets a detached interface, and tells its last counts.
    pub(crate) fn remove(&mut self, ifindex: u32) -> Option<(TappedInterface, InterfaceCounters)> {
        let counters = self.counters(ifindex);
        let interface = self.interfaces.remove(&ifindex)?;
        if interface.left_out.is_none() {
            self.kernel.remove(ifindex);
        }
        Some((interface, counters))
    }

    /// What was counted for an interface so far, over all CPUs.
    pub(crate) fn counters(&self, ifindex: u32) -> InterfaceCounters {
        let is_captured = |interface: &TappedInterface| interface.left_out.is_none();
        if !self.interfaces.get(&ifindex).is_some_and(is_captured) {
            return InterfaceCounters::default();
        }
        match self.kernel.counters(ifindex) {
            Ok(by_cpu) => by_cpu.into_iter().sum(),
            Err(error) => {
                tracing::error!(ifindex, %error, "the counters of an interface could not be read");
                InterfaceCounters::default()
            }
        }
    }

    /// What goes on under another name does so from now on.
    pub(crate) fn begin_anew(&mut self, ifindex: u32) {
        let now = self.clock.now();
        if let Some(interface) = self.interfaces.get_mut(&ifindex) {
            interface.since = now;
        }
    }

    /// Whether an interface has a name that is to be told now.
    pub(crate) fn has_untold(&self) -> bool {
        let mut interfaces = self.interfaces.values();
        interfaces.any(|interface| interface.untold.is_some() && interface.renames.is_due())
    }

    /// Takes note of names that were not told yet, of interfaces that are meant by their index; gives the indexes of those
    /// that have one.
    pub(crate) fn take_untold(&mut self, is_meant: impl Fn(u32) -> bool) -> Vec<u32> {
        let mut renamed = Vec::new();
        for (ifindex, interface) in self.interfaces.iter_mut().filter(|(index, _)| is_meant(**index)) {
            if let Some(link) = interface.untold.take()
                && !interface.is_leaving
            {
                interface.link = link;
                renamed.push(*ifindex);
            }
        }
        renamed
    }

    /// Compares the interfaces that there are, as far as they can be listed, with those that are captured.
    pub(crate) fn link_changes(&mut self) -> LinkChanges {
        let Look {
            listed,
            mut removed,
            moved,
            has_missed,
        } = blocking(|| self.links.look());
        let (present, are_all) = match listed {
            Ok(Links { links, is_whole }) => (links, Ok(is_whole)),
            Err(error) => (Vec::new(), Err(error)),
        };
        // One that was moved away has sent nothing here.
        let has_passed = !self.selection.is_by_name()
            && removed
                .iter()
                .any(|index| !moved.contains(index) && !self.has_listed(*index));
        if has_missed {
            removed.extend(self.removed_unheard());
        }
        let is_present = |index| present.iter().any(|link| link.ifindex == index);
        // Only a list that is whole says what is not there.
        let is_gone = |index| removed.contains(&index) || (matches!(are_all, Ok(true)) && !is_present(index));
        let mut gone: Vec<u32> = self
            .interfaces
            .values()
            .filter(|interface| !interface.is_leaving)
            .map(|interface| interface.link.ifindex)
            .filter(|index| is_gone(*index))
            .collect();
        for index in &gone {
            if let Some(interface) = self.interfaces.get_mut(index) {
                interface.note_where_it_is(self.kernel.attachments(), || has_missed || moved.contains(index));
            }
        }
        let mut renamed = Vec::new();
        for link in &present {
            let Some(interface) = self.interfaces.get_mut(&link.ifindex) else {
                continue;
            };
            if gone.contains(&link.ifindex) || interface.is_leaving {
                continue;
            }
            // What its packets begin with is another thing, or it is wanted by now: it begins anew.
            let was_unwanted = interface.left_out.is_some() && !self.selection.wants(&interface.link);
            if interface.link.hardware_type != link.hardware_type
                || (was_unwanted && self.selection.wants(link))
            {
                gone.push(link.ifindex);
                continue;
            }
            let is_renamed = interface.link.raw_name != link.raw_name;
            if is_renamed && !interface.renames.is_due() {
                interface.untold = Some(link.clone());
                continue;
            }
            if is_renamed {
                interface.renames.spend(RENAME_COST);
                renamed.push(link.ifindex);
            }
            interface.untold = None;
            interface.link = link.clone();
        }
        self.unwanted.retain(|index| !removed.contains(index));
        // One whose index is still that of an interface that is leaving waits until it has left.
        let is_new = |link: &Link| {
            let has_come = self.selection.tells_of(link) && !self.unwanted.contains(&link.ifindex);
            (has_come || self.selection.wants(link)) && !self.interfaces.contains_key(&link.ifindex)
        };
        let room = MAX_KNOWN.saturating_sub(self.interfaces.len());
        let new = present.into_iter().filter(is_new).take(room).collect();
        LinkChanges {
            gone,
            renamed,
            new,
            are_all,
            has_passed,
        }
    }

    /// Whether there was an interface of this index when they were last listed.
    fn has_listed(&self, ifindex: u32) -> bool {
        self.interfaces.contains_key(&ifindex) || self.unwanted.contains(&ifindex)
    }

    /// Indexes of interfaces that were removed, whoever has them now.
    fn removed_unheard(&self) -> impl Iterator<Item = u32> {
        self.interfaces.iter().filter_map(|(index, interface)| {
            let attachments = self.kernel.attachments();
            let is_away = |whereabouts| whereabouts != Whereabouts::Here;
            let is_removed = !interface.is_leaving && attachments.whereabouts(*index).is_some_and(is_away);
            is_removed.then_some(*index)
        })
    }

    /// Whether whoever asks the same now would get the interfaces that are captured: one that was asked for by its name may
    /// have another now, and one whose name is not told yet would have a wrong one.
    pub(crate) fn is_as_asked(&self) -> bool {
        let is_wanted = |one: &TappedInterface| one.left_out.is_some() || self.selection.wants(&one.link);
        let mut captured = self.interfaces.values();
        captured.all(|interface| interface.untold.is_none() && is_wanted(interface))
    }

    /// What there was to say of the request's list of the target's interfaces.
    pub(crate) fn note(&self) -> Option<&str> {
        self.note.as_deref()
    }
}

/// What the packets of an interface begin with, and why they are not captured for good, if so; nothing if nobody wants to know.
/// The first of the capture's other interfaces is of the type `others`.
fn judge(
    link: &Link,
    selection: &InterfaceSelection,
    hook: ChosenHook,
    filters: &CaptureFilters,
    others: Option<LinkType>,
) -> Option<(LinkType, Option<String>)> {
    let known = link_type(link);
    let reason = if !selection.wants(link) {
        if !selection.tells_of(link) {
            return None;
        }
        Some(
            "nothing is captured here: the list of the target's interfaces in the request does not name it"
                .to_owned(),
        )
    } else if known.is_none() {
        Some(format!(
            "nothing is captured here: what its packets begin with is not known (hardware type {})",
            link.hardware_type
        ))
    } else if let Some(reason) = hook.reason_against(link) {
        Some(format!("nothing is captured here: {reason}"))
    } else {
        let reason = known.and_then(|known| filters.reason_against(known));
        reason.map(|reason| format!("nothing is captured here, since the filter cannot be applied: {reason}"))
    };
    // Without packets it needs no kind of its own, and readers on libpcap want all of them to be the same.
    let link_type = match (&reason, known) {
        (None, Some(known)) => known,
        (_, known) => others.or(known).unwrap_or(LinkType::Ethernet),
    };
    Some((link_type, reason))
}

/// How a capture would begin with these links.
pub(super) fn foresee(
    links: Vec<Link>,
    selection: &InterfaceSelection,
    hook: ChosenHook,
    filters: &CaptureFilters,
    mut note: Option<String>,
) -> Vec<ForeseenInterface> {
    let mut foreseen: Vec<ForeseenInterface> = Vec::new();
    for link in links {
        let first = foreseen.iter().min_by_key(|one| one.link.ifindex);
        let others = first.map(|first| first.link_type);
        if let Some((link_type, left_out)) = judge(&link, selection, hook, filters, others) {
            foreseen.push(ForeseenInterface {
                link,
                link_type,
                left_out,
                note: note.take(),
                is_seen_by_tcx: hook == ChosenHook::Tcx,
            });
        }
    }
    foreseen
}

/// Whether the next interface would be refused likewise: for want of a right, of memory, or of descriptors.
fn is_of_everything(error: &TapError) -> bool {
    error::is_exhaustion(error) || matches!(error::errno(error), Some(Errno::EPERM | Errno::EACCES))
}
