//! Which processes may be containers that no engine has told of.
//!
//! An engine that did not tell everything, or a place that was not looked at, is a doubt about the processes that might be
//! spoken of there, as long as nobody has. A pattern grants nothing where there is one.

use std::{collections::HashSet, io};

use super::{processes::ProcessTable, trust::Authority};
use crate::error::is_exhaustion;

/// Of which processes those might speak who did not tell everything. It is found out once for all processes, however many
/// doubts there are.
#[derive(Debug, Default)]
pub(super) struct Doubts {
    is_of_all: bool,
    /// First processes of containers in which not everything is known.
    firsts: HashSet<u32>,
    /// All below these.
    below_firsts: HashSet<u32>,
    /// All in such PID namespaces, and below.
    in_namespaces: HashSet<u32>,
    users: HashSet<u32>,
}

impl Doubts {
    pub(super) fn of(doubts: &HashSet<Authority>, table: &ProcessTable) -> Self {
        let mut all = Self::default();
        let mut namespaces = HashSet::new();
        for doubt in doubts {
            match *doubt {
                Authority::Host => all.is_of_all = true,
                Authority::Container { first } => drop(all.firsts.insert(first)),
                Authority::PidNamespace(namespace) => drop(namespaces.insert(namespace)),
                Authority::User(user) => drop(all.users.insert(user)),
                Authority::Nobody => {}
            }
        }
        if !all.firsts.is_empty() {
            let is_childs = |pid| {
                table
                    .parent(pid)
                    .is_some_and(|parent| all.firsts.contains(&parent))
            };
            all.below_firsts = table.below(is_childs);
        }
        if !namespaces.is_empty() {
            let is_in_one = |pid| {
                table
                    .pid_namespace(pid)
                    .is_some_and(|namespace| namespaces.contains(&namespace))
            };
            all.in_namespaces = table.below(is_in_one);
        }
        all
    }

    /// Whether a process may be one that an engine has yet to tell of. `ancestor` is the first process of the innermost
    /// container that it descends from; `owners_of` tells the users whose user namespaces are around a process.
    pub(super) fn cover(
        &self,
        pid: u32,
        ancestor: Option<u32>,
        owners_of: impl Fn(u32) -> io::Result<Vec<u32>>,
    ) -> bool {
        match ancestor {
            Some(first) => pid != first && self.firsts.contains(&first),
            None => {
                self.is_of_all
                    || self.below_firsts.contains(&pid)
                    || self.in_namespaces.contains(&pid)
                    || self.is_of_users(|| owners_of(pid))
            }
        }
    }

    fn is_of_users(&self, owners: impl Fn() -> io::Result<Vec<u32>>) -> bool {
        if self.users.is_empty() {
            return false;
        }
        match owners() {
            Ok(owners) => owners.iter().any(|owner| self.users.contains(owner)),
            // One that has ended is nobody's.
            Err(error) => is_exhaustion(&error),
        }
    }
}

#[cfg(test)]
mod tests {
    use nix::errno::Errno;

    use super::{super::processes::tests::table, *};

    #[test]
    fn doubts_are_about_those_of_whom_somebody_might_speak() {
        let table = table(&[
            (1, 0, 0, 1),
            (5, 1, 0, 1),
            (6, 5, 0, 1),
            (7, 6, 0, 1),
            (8, 1, 0, 1),
        ]);
        let doubtful = |doubt, ancestor: fn(u32) -> Option<u32>| -> Vec<u32> {
            let doubts = Doubts::of(&HashSet::from([doubt]), &table);
            let owners_of = |pid| match pid {
                7 => Ok(vec![1000, 2000]),
                8 => Err(Errno::EMFILE.into()),
                _ => Err(Errno::ENOENT.into()),
            };
            let all = [1, 5, 6, 7, 8].into_iter();
            all.filter(|pid| doubts.cover(*pid, ancestor(*pid), owners_of))
                .collect()
        };
        let in_none = |_| None;
        assert_eq!(doubtful(Authority::Host, in_none), [1, 5, 6, 7, 8]);
        assert_eq!(doubtful(Authority::Nobody, in_none), [0; 0]);
        assert_eq!(doubtful(Authority::User(2000), in_none), [7, 8]);
        assert_eq!(doubtful(Authority::User(3000), in_none), [8]);
        let own = super::super::processes::tests::OWN;
        assert_eq!(doubtful(Authority::PidNamespace(own), in_none), [1, 5, 6, 7, 8]);
        let container = Authority::Container { first: 5 };
        assert_eq!(doubtful(container, in_none), [6, 7]);
        assert_eq!(
            doubtful(container, |pid| (5..8).contains(&pid).then_some(5)),
            [6, 7]
        );
        // What is in a container within it is that one's.
        assert_eq!(
            doubtful(container, |pid| (6..8).contains(&pid).then_some(6)),
            [0; 0]
        );
        assert_eq!(doubtful(Authority::Host, Some), [0; 0]);
    }
}
