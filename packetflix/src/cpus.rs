//! The CPUs of this machine.

use std::{fs, io};

/// More than any kernel is built for (`CONFIG_NR_CPUS` is at most 8192).
const MOST: u32 = 1 << 16;

/// Those that the kernel may use, and those that it does.
///
/// Source: `Documentation/admin-guide/cputopology.rst`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Cpus {
    /// All that could ever be there: what the kernel keeps for each CPU, it keeps for each of these, in this order.
    pub(crate) possible: Vec<u32>,
    /// Those of them that run programs now.
    pub(crate) online: Vec<u32>,
}

impl Cpus {
    /// Looks which there are.
    ///
    /// # Errors
    /// When the possible ones are not told. Should the kernel not tell which are online, all may be.
    pub(crate) fn look() -> io::Result<Self> {
        let possible = ranges(&fs::read_to_string("/sys/devices/system/cpu/possible")?)?;
        let online = fs::read_to_string("/sys/devices/system/cpu/online");
        Ok(Self::of(
            possible,
            online.and_then(|text| ranges(&text)).unwrap_or_default(),
        ))
    }

    fn of(possible: Vec<u32>, mut online: Vec<u32>) -> Self {
        online.retain(|cpu| possible.contains(cpu));
        if online.is_empty() {
            online.clone_from(&possible);
        }
        Self { possible, online }
    }

    /// Whether CPUs may come that are not there now.
    pub(crate) fn may_grow(&self) -> bool {
        self.online.len() < self.possible.len()
    }

    /// How many rings a capture has: one for each CPU that is online, and one for all that may come.
    pub(crate) fn rings(&self) -> u32 {
        self.online.len() as u32 + u32::from(self.may_grow())
    }

    /// The highest number that a CPU may have.
    pub(crate) fn highest(&self) -> u32 {
        self.possible.iter().copied().max().unwrap_or(0)
    }
}

/// Numbers as the kernel lists them: `0-3,8`. Those that come after another, as the kernel's do, and not twice.
fn ranges(text: &str) -> io::Result<Vec<u32>> {
    let mut numbers = Vec::new();
    for range in text.trim().split(',').filter(|range| !range.is_empty()) {
        let (first, last) = range.split_once('-').unwrap_or((range, range));
        let parsed = first.parse().ok().zip(last.parse().ok());
        let bounds = parsed.filter(|(first, last): &(u32, u32)| {
            first <= last && *last < MOST && numbers.last().is_none_or(|before| before < first)
        });
        let Some((first, last)) = bounds else {
            let why = format!("{range:?} is no range of CPUs");
            return Err(io::Error::new(io::ErrorKind::InvalidData, why));
        };
        numbers.extend(first..=last);
    }
    Ok(numbers)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lists_of_the_kernel_are_read() {
        for (text, numbers) in [
            ("0\n", &[0][..]),
            ("0-3\n", &[0, 1, 2, 3]),
            ("0,2-3,8", &[0, 2, 3, 8]),
            ("\n", &[]),
        ] {
            assert_eq!(ranges(text).unwrap(), numbers, "{text:?}");
        }
        for wrong in [
            "x",
            "1-",
            "-1",
            "3-1",
            "0-4294967295",
            "0-99999",
            "1,1",
            "2-3,0",
            "0--1",
        ] {
            assert!(ranges(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn rings_are_for_those_online_and_one_for_the_others() {
        let all = Cpus::of((0..4).collect(), (0..4).collect());
        assert_eq!((all.may_grow(), all.rings(), all.highest()), (false, 4, 3));
        let few = Cpus::of((0..240).collect(), vec![0, 1]);
        assert_eq!((few.may_grow(), few.rings(), few.highest()), (true, 3, 239));
        let sparse = Cpus::of(vec![0, 2, 5], vec![2, 7]);
        assert_eq!(sparse.online, [2]);
        assert_eq!((sparse.rings(), sparse.highest()), (2, 5));
        // That none is online cannot be: the one that asks runs on one.
        assert_eq!(Cpus::of(vec![0, 1], Vec::new()).rings(), 2);
    }

    #[test]
    fn this_machine_has_one_online_at_least() {
        let cpus = Cpus::look().unwrap();
        assert!(!cpus.online.is_empty() && cpus.online.len() <= cpus.possible.len());
        assert_eq!(cpus.possible.len(), aya::util::nr_cpus().unwrap());
    }
}
