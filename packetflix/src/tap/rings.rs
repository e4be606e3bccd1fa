//! The rings of all CPUs, read as one stream in the order of the timestamps.
//!
//! They are merged with a heap of the rings' oldest records: O(log rings) when the ring changes, O(1) while it does not.
//! Records of the last half millisecond stay in their rings until the next turn: another CPU may still be writing an older one.
//! A record whose CPU is held up for longer than that comes late, and is not lost. Should the clock be set back by more than a
//! second, what is stamped with the old time is not held until that comes again.
//!
//! A ring's records are in the order of their timestamps, since the time is taken before room is reserved. With PREEMPT_RT, and
//! in the spare ring, another program may come between, whose record then precedes one that is a little older.

use std::{
    cmp::Reverse,
    collections::BinaryHeap,
    io,
    os::fd::{AsFd, OwnedFd},
};

use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags};
use packetflix_common::RecordHeader;
use tokio::io::unix::AsyncFd;

use crate::sys::{self, ring::RingReader};

/// A time that lies further in the future than this, in nanoseconds, is from before the clock was set back: nothing waits
/// until that time comes again.
pub(crate) const CLOCK_WAS_SET_BACK: u64 = 1_000_000_000;

/// One CPU's ring: records in the order of their timestamps.
pub trait Ring {
    /// Shows the oldest record to `look`, and removes it when `look` says so.
    ///
    /// `None` when there is none.
    fn with_head<R>(&mut self, look: impl FnOnce(&[u8]) -> (Head, R)) -> Option<R>;
}

/// What becomes of the record at the head of a ring.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Head {
    /// It stays where it is.
    Keep,
    /// It is done with.
    Remove,
}

/// How far a drain came.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Drained {
    /// The rings are empty.
    Empty,
    /// What is left is too young to be sure that no older record will come from another CPU.
    Held,
    /// Whoever takes the records has no room for the next one, which stays; holds its timestamp.
    Full(u64),
}

impl Ring for RingReader {
    fn with_head<R>(&mut self, look: impl FnOnce(&[u8]) -> (Head, R)) -> Option<R> {
        let (head, result) = look(self.head()?);
        if head == Head::Remove {
            self.remove_head();
        }
        Some(result)
    }
}

/// Rings, merged.
///
/// A ring that several CPUs share may have a record behind a younger one of another CPU. It comes that much later, and is
/// not lost; nor do rings of one CPU alone come out of order for that.
pub struct Merge<R> {
    rings: Vec<R>,
    /// Timestamp and ring of each ring's oldest record, while draining.
    heads: BinaryHeap<Reverse<(u64, usize)>>,
}

impl<R: Ring> Merge<R> {
    /// One per CPU, in any order.
    pub fn new(rings: Vec<R>) -> Self {
        let heads = BinaryHeap::with_capacity(rings.len());
        Self { rings, heads }
    }

    /// None any more; gives those that there were.
    pub(super) fn take(&mut self) -> Vec<R> {
        std::mem::take(&mut self.rings)
    }

    /// One more.
    pub(super) fn add(&mut self, ring: R) {
        self.rings.push(ring);
    }

    /// Gives each record that is not younger than `until` to `take`, oldest first over all rings, and removes
    /// it unless `take` says [`Head::Keep`], which ends the drain.
    ///
    /// Costs O(log rings) per change of ring, and O(1) per record within one.
    pub fn drain(&mut self, until: u64, mut take: impl FnMut(&[u8]) -> Head) -> Drained {
        let Self { rings, heads } = self;
        heads.clear();
        for (index, ring) in rings.iter_mut().enumerate() {
            heads.extend(timestamp(ring).map(|time| Reverse((time, index))));
        }
        while let Some(Reverse((mut time, index))) = heads.pop() {
            if is_younger(time, until) {
                return Drained::Held;
            }
            // As long as no other ring has an older record, this one goes on.
            let others = heads.peek().map_or(u64::MAX, |Reverse((time, _))| *time);
            loop {
                let taken = rings[index].with_head(|record| {
                    let head = take(record);
                    (head, head)
                });
                if taken == Some(Head::Keep) {
                    return Drained::Full(time);
                }
                match timestamp(&mut rings[index]) {
                    Some(next) if next <= others && !is_younger(next, until) => time = next,
                    Some(next) => {
                        heads.push(Reverse((next, index)));
                        break;
                    }
                    None => break,
                }
            }
        }
        Drained::Empty
    }
}

/// Whether a time of the records' clock is after another, and the clock has not been set back in between.
pub(crate) fn is_younger(time: u64, than: u64) -> bool {
    time > than && time - than < CLOCK_WAS_SET_BACK
}

/// A record that is too short to have a timestamp counts as the oldest, to be got rid of.
fn timestamp(ring: &mut impl Ring) -> Option<u64> {
    ring.with_head(|record| (Head::Keep, RecordHeader::decode_timestamp(record).unwrap_or(0)))
}

/// Tells when any of the rings has a record, while the reader has caught up with all of them.
pub(crate) struct RingsReady(AsyncFd<OwnedFd>);

impl RingsReady {
    /// One descriptor stands for all rings that are added.
    ///
    /// # Errors
    /// When the process has too many descriptors.
    pub(crate) fn new() -> io::Result<Self> {
        let epoll = Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC)?;
        Ok(Self(sys::watch(epoll.0)?))
    }

    /// Watches one more ring, until that is closed.
    ///
    /// # Errors
    /// When there is no memory for it, or too few descriptors.
    pub(crate) fn add(&self, ring: &impl AsFd) -> io::Result<()> {
        let epoll = Epoll(self.0.get_ref().try_clone()?);
        epoll.add(ring.as_fd(), EpollEvent::new(EpollFlags::EPOLLIN, 0))?;
        Ok(())
    }

    /// Waits until a ring may have a record that was not there when it was last drained.
    pub(crate) async fn wait(&self) -> io::Result<()> {
        // Cleared before the rings are drained: what comes meanwhile wakes again.
        self.0.readable().await.map(|mut guard| guard.clear_ready())
    }
}

#[cfg(test)]
mod tests {
    use std::collections::VecDeque;

    use proptest::prelude::*;

    use super::*;

    impl Ring for VecDeque<[u8; 8]> {
        fn with_head<R>(&mut self, look: impl FnOnce(&[u8]) -> (Head, R)) -> Option<R> {
            let (head, result) = look(self.front()?);
            if head == Head::Remove {
                self.pop_front();
            }
            Some(result)
        }
    }

    fn merge(rings: &[Vec<u64>]) -> Merge<VecDeque<[u8; 8]>> {
        let ring = |times: &Vec<u64>| times.iter().map(|time| time.to_ne_bytes()).collect();
        Merge::new(rings.iter().map(ring).collect())
    }

    fn time(record: &[u8]) -> u64 {
        RecordHeader::decode_timestamp(record).unwrap()
    }

    proptest! {
        #[test]
        fn merges_in_order_and_loses_nothing(
            mut rings in proptest::collection::vec(proptest::collection::vec(0u64..1000, 0..40), 1..9),
            until in 0u64..1200, room in 0usize..200,
        ) {
            rings.iter_mut().for_each(|ring| ring.sort_unstable());
            let mut expected: Vec<u64> = rings.concat();
            expected.sort_unstable();
            let old = expected.iter().filter(|time| **time <= until).count();

            let mut merge = merge(&rings);
            let mut taken = Vec::new();
            let drained = merge.drain(until, |record| {
                if taken.len() == room {
                    return Head::Keep;
                }
                taken.push(time(record));
                Head::Remove
            });
            prop_assert_eq!(&taken[..], &expected[..old.min(room)]);
            prop_assert_eq!(drained, match () {
                () if room < old => Drained::Full(expected[room]),
                () if old < expected.len() => Drained::Held,
                () => Drained::Empty,
            });

            let drained = merge.drain(u64::MAX, |record| { taken.push(time(record)); Head::Remove });
            prop_assert_eq!(drained, Drained::Empty);
            prop_assert_eq!(taken, expected);
        }

        /// As in a ring that CPUs share, where one is held up between taking the time and reserving room.
        #[test]
        fn what_comes_late_in_a_ring_comes_no_later_from_the_merge(
            rings in proptest::collection::vec(proptest::collection::vec((0u64..1000, 0u64..50), 0..40), 1..9),
        ) {
            let as_reserved = |mut ring: Vec<(u64, u64)>| {
                ring.sort_by_key(|(time, held_up)| time + held_up);
                ring.into_iter().map(|(time, _)| time).collect::<Vec<u64>>()
            };
            let rings: Vec<Vec<u64>> = rings.into_iter().map(as_reserved).collect();
            let late = |times: &[u64]| {
                let mut youngest = 0;
                let late = times.iter().map(|time| {
                    youngest = youngest.max(*time);
                    youngest - time
                });
                late.max().unwrap_or(0)
            };
            let mut merge = merge(&rings);
            let mut taken = Vec::new();
            let drained = merge.drain(u64::MAX, |record| { taken.push(time(record)); Head::Remove });
            prop_assert_eq!(drained, Drained::Empty);
            prop_assert!(late(&taken) <= rings.iter().map(|ring| late(ring)).max().unwrap_or(0));
            let mut expected = rings.concat();
            expected.sort_unstable();
            taken.sort_unstable();
            prop_assert_eq!(taken, expected);
        }
    }

    #[test]
    fn rings_are_added_in_the_middle_of_a_capture() {
        let mut merge = merge(&[vec![1, 4]]);
        merge.add([2u64, 3].iter().map(|time| time.to_ne_bytes()).collect());
        let mut taken = Vec::new();
        merge.drain(u64::MAX, |record| {
            taken.push(time(record));
            Head::Remove
        });
        assert_eq!(taken, [1, 2, 3, 4]);
    }

    #[test]
    fn clock_that_was_set_back_holds_nothing() {
        let mut merge = merge(&[vec![5_000_000_000, 100], vec![200]]);
        let mut taken = Vec::new();
        let drained = merge.drain(1000, |record| {
            taken.push(time(record));
            Head::Remove
        });
        assert_eq!(drained, Drained::Empty);
        assert_eq!(taken.len(), 3);
    }
}
