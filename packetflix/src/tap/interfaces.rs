//! The interfaces of a tap: which join, which are left out and why, and how they change.

use std::{
    error::Error,
    io,
    time::{Duration, Instant},
};

use nix::errno::Errno;
use packetflix_common::{InterfaceCounters, MAX_CAPTURED_LEN, MAX_INTERFACES};

use super::{
    COUNTED_IS_FRESH, CaptureFilters, Drained, Head, InterfaceSelection, Tap, TapError, blocking,
    call::{Attached, StopsAt, Wanted},
    hook::{ChosenHook, Whereabouts},
    link_types::{link_type, network_offset},
};
use crate::{
    allowance::Allowance,
    error,
    netns::{Link, Links, Look},
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
    pub(super) fn begin(&mut self, mut links: Vec<Link>) -> Result<(), TapError> {
        links.truncate(MAX_KNOWN);
        let stops_at = match self.selection.is_by_name() {
            true => StopsAt::First,
            false => StopsAt::Everything,
        };
        let mut first = None;
        for (link, became) in self.attach_all(links, stops_at)? {
            match became {
                Became::Joined(interface) => drop(self.add(*interface)),
                Became::Gone => {}
                Became::Refused(error) if stops_at == StopsAt::First || is_of_everything(&error) => {
                    return Err(error);
                }
                Became::Refused(error) => {
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
    }

    /// Adds interfaces to a capture that runs. One that the kernel refuses is left out, and tried again.
    ///
    /// # Errors
    /// When the namespace cannot be entered.
    pub(crate) fn join(&mut self, links: Vec<Link>) -> Result<(), TapError> {
        if links.is_empty() {
            return Ok(());
        }
        for (link, became) in blocking(|| self.attach_all(links, StopsAt::Never))? {
            match became {
                Became::Joined(interface) => drop(self.add(*interface)),
                Became::Gone => {}
                Became::Refused(error) => self.leave_out(link, LeftOut::for_now(&error)),
            }
        }
        Ok(())
    }

    /// Tries interfaces again that could not be attached to; gives what stood for those that have joined now.
    ///
    /// # Errors
    /// When the namespace cannot be entered.
    pub(crate) fn retry(&mut self) -> Result<Vec<TappedInterface>, TapError> {
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
        let mut replaced = Vec::new();
        for (link, became) in blocking(|| self.attach_all(due, StopsAt::Never))? {
            match became {
                Became::Joined(interface) => replaced.extend(self.add(*interface)),
                Became::Gone => {}
                Became::Refused(_) => {
                    let interface = self.interfaces.get_mut(&link.ifindex);
                    let left_out = interface.and_then(|interface| interface.left_out.as_mut());
                    if let Some(retry) = left_out.and_then(|left_out| left_out.retry.as_mut()) {
                        *retry = retry.later();
                    }
                }
            }
        }
        Ok(replaced)
    }

    /// Attaches to interfaces, in one go, and makes them known to the programs; gives what became of each that somebody wants to
    /// know of, up to one at which it was stopped.
    fn attach_all(&mut self, links: Vec<Link>, stops_at: StopsAt) -> Result<Vec<(Link, Became)>, TapError> {
        let mut others = self.interfaces.values().next().map(|first| first.link_type);
        let mut room = (MAX_INTERFACES as usize).saturating_sub(self.interfaces.len());
        let since = self.clock.now();
        let mut judged = Vec::with_capacity(links.len());
        let mut wanted = Vec::new();
        for link in links {
            let Some((link_type, reason)) = judge(&link, &self.selection, self.hook, &self.filters, others)
            else {
                continue;
            };
            others.get_or_insert(link_type);
            // Used up even if the interface does not join: it may have got a packet into a ring.
            let id = self.next_interface_id;
            self.next_interface_id += 1;
            let has_place = reason.is_some() || self.interfaces.contains_key(&link.ifindex) || room > 0;
            if has_place && reason.is_none() {
                room = room.saturating_sub(1);
                wanted.push(Wanted {
                    link: link.clone(),
                    id,
                    network_offset: network_offset(link_type),
                    filter: self.filters.number_of(link_type) as u32,
                    snaplen: self.snaplen.min(MAX_CAPTURED_LEN),
                });
            }
            let joined = TappedInterface {
                id,
                since,
                link_type,
                link,
                untold: None,
                renames: Allowance::new(SAVED_FOR_RENAMES),
                left_out: reason.map(LeftOut::for_good),
                is_leaving: false,
                has_moved: false,
            };
            judged.push((joined, has_place));
        }
        self.counted_at = None;
        let mut attached = match wanted.is_empty() {
            true => Vec::new(),
            false => self.capture.attach(wanted, self.promiscuous, stops_at)?,
        }
        .into_iter();
        let mut all = Vec::with_capacity(judged.len());
        for (joined, has_place) in judged {
            let link = joined.link.clone();
            let became = match (&joined.left_out, has_place) {
                (Some(_), _) => Became::Joined(Box::new(joined)),
                (None, false) => Became::Refused(TapError::TooManyInterfaces),
                (None, true) => match attached.next() {
                    // It was stopped before.
                    None => break,
                    Some(Attached::Gone) => Became::Gone,
                    Some(Attached::Refused(error)) => Became::Refused(error.into()),
                    Some(Attached::Captured { not_promiscuous }) => {
                        self.warn_of_promiscuous(&link, not_promiscuous);
                        Became::Joined(Box::new(joined))
                    }
                },
            };
            all.push((link, became));
        }
        Ok(all)
    }

    fn warn_of_promiscuous(&mut self, link: &Link, error: Option<String>) {
        if let Some(error) = error
            && self.may_warn()
        {
            tracing::warn!(
                interface = link.name,
                error,
                "promiscuous mode could not be switched on"
            );
        }
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

    /// Detaches from interfaces, whose records are still in the rings.
    pub(crate) fn detach(&mut self, interfaces: &[u32]) {
        for ifindex in interfaces {
            if let Some(interface) = self.interfaces.get_mut(ifindex) {
                interface.is_leaving = true;
            }
        }
        self.counted_at = None;
        if !interfaces.is_empty() {
            blocking(|| self.capture.detach(interfaces));
        }
    }

    /// Detaches from all interfaces: no record comes after this.
    pub(crate) fn detach_all(&mut self) {
        let all: Vec<u32> = self.interfaces.keys().copied().collect();
        self.note_where_they_are(&all);
        for interface in self.interfaces.values_mut() {
            interface.is_leaving = true;
        }
        self.counted_at = None;
        blocking(|| self.capture.detach_all());
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
            capture,
            hook,
            rings,
            interfaces,
            links,
            counted_at,
            ..
        } = self;
        let mut is_here = |ifindex| {
            interfaces.get_mut(&ifindex).is_some_and(|interface| {
                // A packet socket stays where it is, and its programs with it.
                if *hook == ChosenHook::Tcx && !interface.is_leaving && !interface.has_moved {
                    interface.has_moved = match links.has_moved(ifindex) {
                        Some(has_moved) => has_moved,
                        None => has_left(capture.whereabouts(vec![ifindex]).first()),
                    };
                }
                !interface.has_moved
            })
        };
        let mut has_taken = false;
        let drained = rings.drain(until, |record| {
            has_taken = true;
            take(record, &mut is_here)
        });
        if has_taken {
            *counted_at = None;
        }
        drained
    }

    /// Takes note which of these interfaces are in another network namespace, or may have been before they were removed. Programs of
    /// TCX go with them.
    fn note_where_they_are(&mut self, interfaces: &[u32]) {
        if !self.uses_tcx() {
            return;
        }
        let mut unknown = Vec::new();
        for ifindex in interfaces {
            let has_moved = self.links.has_moved(*ifindex);
            let Some(interface) = self.interfaces.get_mut(ifindex) else {
                continue;
            };
            match has_moved {
                _ if interface.is_leaving || interface.left_out.is_some() => {}
                Some(has_moved) => interface.has_moved |= has_moved,
                None => unknown.push(*ifindex),
            }
        }
        if unknown.is_empty() {
            return;
        }
        let whereabouts = blocking(|| self.capture.whereabouts(unknown.clone()));
        for (ifindex, whereabouts) in unknown.iter().zip(&whereabouts) {
            if let Some(interface) = self.interfaces.get_mut(ifindex) {
                interface.has_moved |= has_left(Some(whereabouts));
            }
        }
    }

    /// Forgets detached interfaces, and tells the last counts of each.
    pub(crate) fn remove(&mut self, interfaces: &[u32]) -> Vec<(u32, TappedInterface, InterfaceCounters)> {
        if interfaces.is_empty() {
            return Vec::new();
        }
        self.count();
        let mut removed = Vec::with_capacity(interfaces.len());
        for ifindex in interfaces {
            let counters = self.counters(*ifindex);
            if let Some(interface) = self.interfaces.remove(ifindex) {
                removed.push((*ifindex, interface, counters));
            }
        }
        let captured = removed
            .iter()
            .filter(|(_, interface, _)| interface.left_out.is_none());
        self.capture
            .remove(captured.map(|(ifindex, ..)| *ifindex).collect());
        self.counted_at = None;
        removed
    }

    /// Has the kernel tell what it has counted by now.
    pub(crate) fn count(&mut self) {
        let is_fresh = |at: Instant| at.elapsed() < COUNTED_IS_FRESH;
        if !self.counted_at.is_some_and(is_fresh) {
            let at = Instant::now();
            self.counted = self.capture.count();
            self.counted_at = Some(at);
        }
    }

    /// What is counted next is asked for in any case.
    pub(crate) fn recount(&mut self) {
        self.counted_at = None;
    }

    /// What had been counted for an interface over all CPUs when that was last looked at.
    pub(crate) fn counters(&self, ifindex: u32) -> InterfaceCounters {
        let is_captured = |interface: &TappedInterface| interface.left_out.is_none();
        if !self.interfaces.get(&ifindex).is_some_and(is_captured) {
            return InterfaceCounters::default();
        }
        let interfaces = &self.counted.interfaces;
        let place = interfaces.binary_search_by_key(&ifindex, |(index, _)| *index);
        place.map_or_else(|_| InterfaceCounters::default(), |place| interfaces[place].1.0)
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
        if self.uses_tcx() {
            self.note_what_has_moved(&gone, &moved, has_missed);
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

    /// Takes note which of these that are gone were moved, or may have been, where it was missed what happened.
    fn note_what_has_moved(&mut self, gone: &[u32], moved: &[u32], has_missed: bool) {
        for index in gone {
            if let Some(interface) = self.interfaces.get_mut(index) {
                interface.has_moved |= has_missed || moved.contains(index);
            }
        }
    }

    /// Indexes of interfaces that were removed, whoever has them now.
    fn removed_unheard(&self) -> Vec<u32> {
        let captured = self
            .interfaces
            .iter()
            .filter(|(_, interface)| !interface.is_leaving && interface.left_out.is_none());
        let captured: Vec<u32> = captured.map(|(index, _)| *index).collect();
        let whereabouts = blocking(|| self.capture.whereabouts(captured.clone()));
        let is_away = |whereabouts: &Option<Whereabouts>| has_left(Some(whereabouts));
        let known = captured.into_iter().zip(whereabouts);
        known
            .filter(|(_, one)| is_away(one))
            .map(|(index, _)| index)
            .collect()
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

/// What became of an interface that was to join.
enum Became {
    Joined(Box<TappedInterface>),
    /// It was gone before.
    Gone,
    Refused(TapError),
}

/// Whether an interface that is captured is elsewhere, or nowhere.
fn has_left(whereabouts: Option<&Option<Whereabouts>>) -> bool {
    matches!(
        whereabouts,
        Some(Some(Whereabouts::Elsewhere | Whereabouts::Removed))
    )
}

/// Whether the next interface would be refused likewise: for want of a right, of memory, or of descriptors.
pub(super) fn is_of_everything(error: &(dyn Error + 'static)) -> bool {
    error::is_exhaustion(error) || matches!(error::errno(error), Some(Errno::EPERM | Errno::EACCES))
}
