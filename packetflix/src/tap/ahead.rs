//! Rings that no capture reads, mapped before one does: its first packets would wait some milliseconds for that, which the kernel
//! takes to enter 64 MiB into the page tables, and to remove them again.
//!
//! They are those of the objects that the other side keeps ready, by the numbers of these. A tap takes them, and gives them back when
//! the object is left to the next.

use std::{
    collections::{BTreeMap, BTreeSet},
    io,
    sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use tokio::time::sleep;

use super::{
    TapError,
    call::{Ready, TapsQuestion},
    cpu_rings::{MappedRing, map_all},
    remote::with_places,
};
use crate::{
    channel::{Control, Kind, Line, Served},
    error::chain,
};

/// After how long it is tried again to follow what is ready.
const AGAIN: Duration = Duration::from_secs(5);

/// The rings of objects that are ready.
#[derive(Default)]
pub(crate) struct Ahead {
    kept: Mutex<Kept>,
    /// Tells that some were mapped that were to be.
    mapped: Condvar,
}

#[derive(Default)]
struct Kept {
    /// Those of all objects that the other side keeps.
    numbers: BTreeSet<u64>,
    /// By the number of their object.
    rings: BTreeMap<u64, Rings>,
}

enum Rings {
    BeingMapped,
    Mapped(Vec<MappedRing>),
}

impl Ahead {
    /// Those of an object that a capture has begun with, as if they had just been mapped; `None` unless they are at just these
    /// places.
    pub(super) fn take(&self, object: u64, places: &[u32]) -> Option<Vec<MappedRing>> {
        let is_awaited = |kept: &mut Kept| matches!(kept.rings.get(&object), Some(Rings::BeingMapped));
        let waited = self.mapped.wait_while(self.kept(), is_awaited);
        let taken = waited
            .unwrap_or_else(PoisonError::into_inner)
            .rings
            .remove(&object);
        let Some(Rings::Mapped(mut rings)) = taken else {
            return None;
        };
        let has_places = rings.iter().map(MappedRing::place).eq(places.iter().copied());
        rings.iter_mut().for_each(MappedRing::restart);
        has_places.then_some(rings)
    }

    /// A capture has ended, and the object with these rings is kept for another. They are not, unless that is known.
    pub(super) fn give_back(&self, object: u64, rings: Vec<MappedRing>) {
        let mut kept = self.kept();
        if kept.numbers.contains(&object) {
            kept.rings.insert(object, Rings::Mapped(rings));
            self.mapped.notify_all();
        }
    }

    /// Maps the rings of what is ready, and lets go of those of what is not kept any more. Never ends.
    pub(super) async fn follow(self: &Arc<Self>, control: &Arc<Control>) {
        loop {
            let line = control.open(Kind::Rings).map_err(io::Error::from);
            let followed = match line.and_then(Line::into_served) {
                Ok(line) => self.follow_line(line, control).await,
                Err(error) => Err(error),
            };
            if let Err(error) = followed {
                tracing::warn!(%error, "rings are mapped when captures begin, and so later");
            }
            sleep(AGAIN).await;
        }
    }

    async fn follow_line(self: &Arc<Self>, mut line: Served, control: &Arc<Control>) -> io::Result<()> {
        while let Some(numbers) = line.next::<BTreeSet<u64>>().await? {
            let (ahead, control) = (Arc::clone(self), Arc::clone(control));
            tokio::task::spawn_blocking(move || ahead.keep(numbers, &control)).await?;
        }
        Err(io::ErrorKind::UnexpectedEof.into())
    }

    /// Has the rings of these objects, as far as they are ready, and of no others.
    fn keep(&self, numbers: BTreeSet<u64>, control: &Control) {
        let (new, _gone) = {
            let mut kept = self.kept();
            let gone: Vec<_> = kept
                .rings
                .extract_if(.., |number, _| !numbers.contains(number))
                .collect();
            let new: Vec<u64> = numbers.difference(&kept.numbers).copied().collect();
            kept.rings
                .extend(new.iter().map(|number| (*number, Rings::BeingMapped)));
            kept.numbers = numbers;
            (new, gone)
        };
        for number in new {
            let mapped = map(number, control).unwrap_or_else(|error| {
                let error = chain(&error);
                tracing::debug!(error, "rings could not be mapped ahead");
                None
            });
            let mut kept = self.kept();
            // A tap may have given some back, which are the same.
            if let Some(Rings::BeingMapped) = kept.rings.get(&number) {
                match mapped {
                    Some(rings) => kept.rings.insert(number, Rings::Mapped(rings)),
                    None => kept.rings.remove(&number),
                };
            }
            self.mapped.notify_all();
        }
    }

    fn kept(&self) -> MutexGuard<'_, Kept> {
        self.kept.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Maps the rings of an object; `None` if it is not ready.
fn map(object: u64, control: &Control) -> Result<Option<Vec<MappedRing>>, TapError> {
    let line = control.open(Kind::Taps)?;
    let (ready, rings) = line.ask_soon_for_descriptors::<_, Option<Ready>>(&TapsQuestion::RingsOf(object))?;
    let Some(Ready { ring_size, places }) = ready else {
        return Ok(None);
    };
    let rings = with_places(&places, rings)?;
    map_all(rings, ring_size)
        .into_iter()
        .collect::<Result<_, _>>()
        .map(Some)
}
