//! How many captures may run at the same time: in all, of one client, and of one namespace.

use std::{
    collections::HashMap,
    hash::Hash,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use crate::config::Quotas;

/// Why no more captures may run.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub(crate) enum QuotaError {
    #[error(
        "no more captures may run at the same time than {limit} (--max-captures{}), and those are running \
         (clients: {clients})", said_of_kept(*kept)
    )]
    Total {
        limit: usize,
        kept: usize,
        clients: usize,
    },
    #[error(
        "a client may have {limit} captures at the same time (--max-captures-per-client), and {client} has {running}"
    )]
    Client {
        limit: usize,
        client: Arc<str>,
        running: usize,
    },
    #[error(
        "a network namespace may have {limit} captures at the same time (--max-captures-per-target{}), and {netns} \
         has {running}", said_of_kept(*kept)
    )]
    Target {
        limit: usize,
        kept: usize,
        netns: u64,
        running: usize,
    },
}

/// The captures that run, or are about to.
#[derive(Debug)]
pub(crate) struct Permits {
    quotas: Quotas,
    running: Mutex<CaptureCounts>,
}

#[derive(Debug, Default)]
struct CaptureCounts {
    total: usize,
    by_client: HashMap<Arc<str>, usize>,
    by_target: HashMap<u64, usize>,
}

/// The place of one capture among those that may run; given back when dropped.
#[derive(Debug)]
pub(crate) struct Permit {
    permits: Arc<Permits>,
    client: Arc<str>,
    is_admin: bool,
    netns: Option<u64>,
}

/// Of so many places one is kept for those who administer the service.
const KEPT: usize = 16;

/// How many of these may be had, and how many more are kept for others.
fn places(all: usize, is_admin: bool) -> (usize, usize) {
    let kept = if is_admin { 0 } else { all / KEPT };
    (all - kept, kept)
}

/// What a sentence says of places that are kept.
fn said_of_kept(count: usize) -> String {
    match count {
        0 => String::new(),
        count => format!(", of which {count} are kept for admin"),
    }
}

impl Permits {
    pub(crate) fn new(quotas: Quotas) -> Arc<Self> {
        Arc::new(Self {
            quotas,
            running: Mutex::default(),
        })
    }

    /// The place of one more capture, of a target that is not known yet. A client is who pays for it, by any address.
    ///
    /// # Errors
    /// When there are as many as may be, in all or of this client.
    pub(crate) fn permit(self: &Arc<Self>, client: Arc<str>, is_admin: bool) -> Result<Permit, QuotaError> {
        let Quotas {
            total, per_client, ..
        } = self.quotas;
        let (total, kept) = places(total, is_admin);
        let mut running = self.lock();
        if running.total >= total {
            return Err(QuotaError::Total {
                limit: total,
                kept,
                clients: running.by_client.len(),
            });
        }
        if let Err(own) = add(&mut running.by_client, Arc::clone(&client), per_client) {
            return Err(QuotaError::Client {
                limit: per_client,
                client,
                running: own,
            });
        }
        running.total += 1;
        drop(running);
        Ok(Permit {
            permits: Arc::clone(self),
            client,
            is_admin,
            netns: None,
        })
    }

    fn lock(&self) -> MutexGuard<'_, CaptureCounts> {
        self.running.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Permit {
    /// Counts the capture among those of its namespace.
    ///
    /// # Errors
    /// When there are as many as may be.
    pub(crate) fn name_target(&mut self, netns: u64) -> Result<(), QuotaError> {
        let (limit, kept) = places(self.permits.quotas.per_target, self.is_admin);
        add(&mut self.permits.lock().by_target, netns, limit).map_err(|running| QuotaError::Target {
            limit,
            kept,
            netns,
            running,
        })?;
        self.netns = Some(netns);
        Ok(())
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        let mut running = self.permits.lock();
        running.total -= 1;
        remove(&mut running.by_client, &self.client);
        if let Some(netns) = self.netns {
            remove(&mut running.by_target, &netns);
        }
    }
}

/// One more, or how many there are if those are as many as may be.
pub(crate) fn add<K: Eq + Hash>(counts: &mut HashMap<K, usize>, key: K, limit: usize) -> Result<(), usize> {
    match counts.get_mut(&key) {
        Some(count) if *count >= limit => return Err(*count),
        Some(count) => *count += 1,
        None if limit == 0 => return Err(0),
        None => {
            counts.insert(key, 1);
        }
    }
    Ok(())
}

/// One less; those of whom there are none are not remembered.
pub(crate) fn remove<K: Eq + Hash>(counts: &mut HashMap<K, usize>, key: &K) {
    if let Some(count) = counts.get_mut(key) {
        *count -= 1;
        if *count == 0 {
            counts.remove(key);
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const QUOTAS: Quotas = Quotas {
        total: 6,
        per_client: 4,
        per_target: 3,
    };

    #[test]
    fn refusals_say_which_limit_and_who_holds_it() {
        let permits = Permits::new(QUOTAS);
        let permit = |client: &str| permits.permit(client.into(), false);
        let mut of_one: Vec<Permit> = (0..4).map(|_| permit("10.0.0.1").unwrap()).collect();
        assert_eq!(
            permit("10.0.0.1").unwrap_err().to_string(),
            "a client may have 4 captures at the same time (--max-captures-per-client), and 10.0.0.1 has 4"
        );
        for permit in &mut of_one[..3] {
            permit.name_target(5).unwrap();
        }
        assert_eq!(
            of_one[3].name_target(5).unwrap_err().to_string(),
            "a network namespace may have 3 captures at the same time (--max-captures-per-target), and 5 has 3"
        );
        of_one[3].name_target(6).unwrap();
        let _of_other: Vec<Permit> = (0..2).map(|_| permit("token ci").unwrap()).collect();
        assert_eq!(
            permit("10.0.0.3").unwrap_err().to_string(),
            "no more captures may run at the same time than 6 (--max-captures), and those are running (clients: 2)"
        );
        drop(of_one);
        assert_eq!(permits.lock().total, 2);
        permit("10.0.0.1").unwrap().name_target(5).unwrap();
    }

    #[test]
    fn one_client_takes_not_all_and_some_are_kept_for_who_administers() {
        let permits = Permits::new(Quotas {
            total: 128,
            per_client: 40,
            per_target: 64,
        });
        let permit = |client: &str, is_admin| {
            let mut permit = permits.permit(client.into(), is_admin)?;
            permit.name_target(5)?;
            Ok(permit)
        };
        let mut running: Vec<Permit> = (0..40).map(|_| permit("token ci", false).unwrap()).collect();
        let error: QuotaError = permit("token ci", false).unwrap_err();
        assert_eq!(
            error.to_string(),
            "a client may have 40 captures at the same time (--max-captures-per-client), and token ci has 40"
        );
        running.extend((0..20).map(|_| permit("other", false).unwrap()));
        let error = permit("other", false).unwrap_err();
        assert_eq!(
            error.to_string(),
            "a network namespace may have 60 captures at the same time (--max-captures-per-target, of which 4 are kept for \
             admin), and 5 has 60"
        );
        running.extend((0..4).map(|_| permit("root", true).unwrap()));
        assert!(permit("root", true).is_err());
        let elsewhere = |n: usize, is_admin| permits.permit(format!("{n}").into(), is_admin);
        running.extend((0..56).map(|n| elsewhere(n, false).unwrap()));
        let error = elsewhere(100, false).unwrap_err().to_string();
        assert!(
            error.contains("than 120 (--max-captures, of which 8 are kept for admin)"),
            "{error}"
        );
        running.extend((0..8).map(|n| elsewhere(n, true).unwrap()));
        assert!(elsewhere(100, true).is_err());
        drop(running);
        assert!(permits.lock().by_client.is_empty());
    }

    proptest! {
        #[test]
        fn counts_are_those_of_the_permits(steps in proptest::collection::vec((0u8..3, 0u8..3, 0u64..3), 0..100)) {
            let all = Permits::new(QUOTAS);
            let mut permits: Vec<Permit> = Vec::new();
            for (what, who, netns) in steps {
                if what == 0 && !permits.is_empty() {
                    permits.swap_remove(usize::from(who) % permits.len());
                } else if let Ok(mut permit) = all.permit(who.to_string().into(), who == 2) {
                    // One that is refused is dropped like one that ends.
                    if what == 1 || permit.name_target(netns).is_ok() {
                        permits.push(permit);
                    }
                }
                let running = all.lock();
                prop_assert_eq!(running.total, permits.len());
                prop_assert!(running.total <= QUOTAS.total);
                prop_assert_eq!(running.by_client.values().sum::<usize>(), permits.len());
                prop_assert!(running.by_client.values().all(|count| (1..=QUOTAS.per_client).contains(count)));
                prop_assert!(running.by_target.values().all(|count| (1..=QUOTAS.per_target).contains(count)));
                let named = permits.iter().filter(|permit| permit.netns.is_some()).count();
                prop_assert_eq!(running.by_target.values().sum::<usize>(), named);
            }
        }
    }
}
