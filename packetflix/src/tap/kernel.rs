//! What one capture has in the kernel: a loaded object, and what attaches it to interfaces.
//!
//! This is the part of a tap that takes rights. It knows interfaces by their index and what the programs are to do with their
//! packets, and neither selections nor names.

use std::{
    collections::{BTreeMap, BTreeSet},
    io,
    os::fd::{AsFd as _, OwnedFd},
    sync::Arc,
};

use aya::maps::{MapError, PerCpuValues};
use packetflix_common::{InterfaceCounters, InterfaceEntry, InterfaceSettings, MAX_INTERFACES};

use super::{
    CaptureFilters, KernelError, Loader, OwnError, OwnTraffic, ProgramUse,
    call::Counters,
    clock::ClockSource,
    hook::{Attachment, Whereabouts},
    kernel_rings::KernelRings,
    object::{Entry, Object, Programs},
};
use crate::{error::chain, netns::Link, sys};

/// What a capture has in the kernel.
pub(super) struct KernelCapture {
    // Dropped in this order: first the hooks, so that nothing runs any more when the rings go.
    attachments: Attachments,
    /// Indexes of interfaces of which something was counted.
    counted: BTreeSet<u32>,
    /// With the capture's filters, if it has any.
    filtered: Option<Arc<Programs>>,
    object: Object,
    /// Gets the object back.
    loader: Arc<Loader>,
    /// Whether it is certain that what was detached is.
    is_detached: bool,
    /// What the kernel had spent on the programs before.
    used_before: ProgramUse,
    /// A packet socket that receives nothing: it holds the promiscuous mode of the interfaces.
    control: OwnedFd,
}

/// What attaches the programs, by the index of the interface.
#[derive(Default)]
pub(super) struct Attachments(BTreeMap<u32, Attachment>);

impl Attachments {
    /// Where an interface is that is attached to.
    pub(super) fn whereabouts(&self, ifindex: u32) -> Option<Whereabouts> {
        self.0.get(&ifindex).map(Attachment::whereabouts)
    }
}

impl KernelCapture {
    /// Takes an object, and loads what these filters take.
    ///
    /// # Errors
    /// Whatever the kernel refuses, and when there is no memory for rings.
    pub(super) fn begin(
        loader: &Arc<Loader>,
        control: OwnedFd,
        filters: &CaptureFilters,
        is_admin: bool,
    ) -> Result<Self, KernelError> {
        let mut object = loader.take(filters, is_admin)?;
        if loader.config().log_programs {
            object.forward_logs()?;
        }
        let filtered = match object.load_filtered(filters) {
            Ok(filtered) => filtered,
            Err(error) => {
                // It was attached to nothing yet.
                let _ = loader.keep(object);
                return Err(error.into());
            }
        };
        Ok(Self {
            attachments: Attachments::default(),
            counted: BTreeSet::new(),
            used_before: filtered.as_deref().unwrap_or(&object.unfiltered).usage(),
            filtered,
            object,
            loader: Arc::clone(loader),
            is_detached: true,
            control,
        })
    }

    /// The number of its object.
    pub(super) fn object(&self) -> u64 {
        self.object.number.get()
    }

    /// Detaches from what is still attached to, and leaves what was loaded to the next capture, without a trace of this one; gives
    /// whether it could be left.
    pub(super) fn close(mut self) -> bool {
        self.detach_all();
        let Self {
            filtered,
            mut object,
            loader,
            is_detached,
            control,
            ..
        } = self;
        drop((filtered, control));
        if !is_detached {
            tracing::debug!("the programs of a capture are not used again");
            return false;
        }
        match object.clear() {
            Ok(()) => loader.keep(object),
            Err(error) => {
                let error = chain(&error);
                tracing::warn!(error, "the programs of a capture are not used again");
                false
            }
        }
    }

    /// Attaches to an interface of the calling thread's network namespace, with these settings.
    ///
    /// # Errors
    /// When the kernel refuses; nothing is left of it then.
    pub(super) fn attach(&mut self, link: &Link, settings: InterfaceSettings) -> Result<(), KernelError> {
        let entry = Entry(InterfaceEntry {
            settings,
            ..InterfaceEntry::default()
        });
        let is_known = self.counted.contains(&link.ifindex);
        if !is_known && self.counted.len() >= MAX_INTERFACES as usize {
            return Err(KernelError::TooManyInterfaces);
        }
        self.insert_entry(link.ifindex, entry)
            .map_err(|source| KernelError::Entry {
                name: link.name.clone(),
                source,
            })?;
        self.counted.insert(link.ifindex);
        let (object, links) = (&self.object, self.loader.tcx());
        let attached = object.hook.attach(object, self.programs(), link, links);
        let attachment = attached.inspect_err(|_| {
            // Of two sides, one may have been attached to.
            self.is_detached = false;
            self.remove(link.ifindex);
        })?;
        self.attachments.0.insert(link.ifindex, attachment);
        Ok(())
    }

    /// Has an interface receive what is not for it.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub(super) fn make_promiscuous(&self, ifindex: u32) -> io::Result<()> {
        sys::add_promiscuous_membership(self.control.as_fd(), ifindex)
    }

    /// Detaches from interfaces, whose records are still in the rings. What was counted of them stays.
    pub(super) fn detach(&mut self, interfaces: &[u32]) {
        let attached = interfaces
            .iter()
            .filter_map(|ifindex| self.attachments.0.remove(ifindex));
        let attached = attached.collect();
        self.end(attached);
    }

    /// Detaches from all interfaces: no record comes after this.
    pub(super) fn detach_all(&mut self) {
        let attachments = std::mem::take(&mut self.attachments);
        self.end(attachments.0.into_values().collect());
    }

    fn end(&mut self, attachments: Vec<Attachment>) {
        let end = |attachment: Attachment| attachment.end(&self.object, self.loader.tcx());
        let ends: Vec<_> = attachments.into_iter().map(end).collect();
        // Links may be kept for a while.
        self.loader.tend();
        for end in ends {
            if let Err(error) = end {
                self.is_detached = false;
                tracing::debug!(%error, "a program was detached by closing its descriptor alone");
            }
        }
    }

    /// Forgets what was counted of an interface that was detached from.
    pub(super) fn remove(&mut self, ifindex: u32) {
        if !self.counted.remove(&ifindex) {
            return;
        }
        if let Err(error) = self.object.entries.remove(&ifindex) {
            tracing::error!(ifindex, %error, "the entry of an interface could not be removed");
        }
    }

    /// What was counted for each interface so far, over all CPUs.
    pub(super) fn counted(&self) -> Vec<(u32, Counters)> {
        let sum =
            |(ifindex, by_cpu): (u32, Vec<InterfaceCounters>)| (ifindex, Counters(by_cpu.into_iter().sum()));
        self.by_cpu().map(sum).collect()
    }

    /// Which of the possible CPUs have accepted packets of an interface.
    pub(super) fn cpus_with_packets(&self) -> Vec<bool> {
        let mut has_packets = Vec::new();
        for (_, by_cpu) in self.by_cpu() {
            has_packets.resize(by_cpu.len(), false);
            for (has, counters) in has_packets.iter_mut().zip(by_cpu) {
                *has |= counters.accepted > 0;
            }
        }
        has_packets
    }

    /// What was counted for each interface so far, for each possible CPU.
    fn by_cpu(&self) -> impl Iterator<Item = (u32, Vec<InterfaceCounters>)> {
        self.counted.iter().filter_map(|ifindex| {
            let by_cpu = self.object.entries.get(ifindex, 0);
            let by_cpu = by_cpu.inspect_err(|error| {
                tracing::error!(ifindex, %error, "the counters of an interface could not be read");
            });
            let counters = by_cpu.ok()?.iter().map(|entry| entry.0.counters).collect();
            Some((*ifindex, counters))
        })
    }

    /// What the kernel has spent on the programs.
    pub(super) fn program_use(&self) -> ProgramUse {
        let now = self.programs().usage();
        ProgramUse {
            time: now.time.saturating_sub(self.used_before.time),
            runs: now.runs.saturating_sub(self.used_before.runs),
        }
    }

    /// Those that are attached.
    fn programs(&self) -> &Programs {
        self.filtered.as_deref().unwrap_or(&self.object.unfiltered)
    }

    /// Leaves out what is the service's own traffic on account of a client, from now on.
    ///
    /// # Errors
    /// When there is no room for it, or the kernel refuses; all is as before then.
    pub(super) fn add_own(&mut self, own: &OwnTraffic) -> Result<(), OwnError> {
        self.object.own.add(own)
    }

    /// A client has gone for which `own` was added: what no other needs is captured again.
    pub(super) fn remove_own(&mut self, own: &OwnTraffic) {
        self.object.own.remove(own);
    }

    /// The clock of the records.
    pub(super) fn clock(&self) -> ClockSource {
        self.object.clock
    }

    pub(super) fn attachments(&self) -> &Attachments {
        &self.attachments
    }

    pub(super) fn rings(&self) -> &KernelRings {
        &self.object.rings
    }

    pub(super) fn rings_mut(&mut self) -> &mut KernelRings {
        &mut self.object.rings
    }

    /// The same entry for every CPU.
    fn insert_entry(&mut self, ifindex: u32, entry: Entry) -> Result<(), MapError> {
        let cpus = aya::util::nr_cpus().map_err(|(_, error)| MapError::IoError(error))?;
        let by_cpu = PerCpuValues::try_from(vec![entry; cpus]).map_err(MapError::IoError)?;
        self.object.entries.insert(ifindex, by_cpu, 0)
    }
}
