//! Looks at what others have in their hands: files and mounts of containers and users.
//!
//! Behind a path may be a file system that a program serves, or one of a server that is gone, so that a look there never
//! comes to its end, and cannot be called off. It is taken on a thread of its own; when it takes too long, the thread is
//! left to it, the place is passed over for as long, and nobody else waits. How many threads may be lost in this way is
//! bounded, for each who can bring it about.

use std::{
    collections::{BTreeMap, HashMap},
    fmt, io,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering},
        mpsc::{self, Receiver, RecvTimeoutError, Sender},
    },
    thread,
    time::{Duration, Instant},
};

use serde::{Deserialize, Serialize};

use tokio::{sync::oneshot, time::timeout};

/// How long one look may take.
pub(crate) const PATIENCE: Duration = Duration::from_secs(2);

/// Patience is this much less once something did not answer in a round: so many things of one kind are likely to be stuck
/// together, as what one server serves is.
const LESS_PATIENCE: u32 = 8;

/// Times that looks of a round may take, for a user to rest whose places took all of it: what is slow on purpose costs
/// little in the long run.
const REST: u32 = 20;

/// How long a place is left alone that is too costly.
const SPARE: Duration = Duration::from_secs(60);

/// In whose hands a place is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub(crate) enum Owner {
    /// The host's.
    Host,
    /// Those of a container that root has made, in our own user namespace.
    Container,
    /// Those of whoever has root's rights in this user namespace only, which root has made.
    Namespace(u64),
    /// A user's who has made a user namespace, or has files of that user's own.
    User(u32),
}

/// What looks may take.
struct Bounds {
    /// All of a round.
    time: Duration,
    /// Threads that are lost to them.
    lost: usize,
}

impl Owner {
    /// What one of this kind may take, and all of this kind together.
    const fn bounds(self) -> (Bounds, Bounds) {
        const fn bounds(secs: u64, lost: usize) -> Bounds {
            let time = Duration::from_secs(secs);
            Bounds { time, lost }
        }
        match self {
            Self::Host => (bounds(8, 8), bounds(8, 8)),
            Self::Container => (bounds(4, 16), bounds(4, 16)),
            Self::Namespace(_) | Self::User(_) => (bounds(2, 2), bounds(4, 12)),
        }
    }

    /// Whether both share what all of a kind may take.
    const fn is_like(self, other: Self) -> bool {
        match self {
            Self::Host => matches!(other, Self::Host),
            Self::Container => matches!(other, Self::Container),
            Self::Namespace(_) | Self::User(_) => matches!(other, Self::Namespace(_) | Self::User(_)),
        }
    }
}

/// What is looked at.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub(crate) struct Place {
    /// In whose hands it is.
    pub(crate) owner: Owner,
    /// What it is.
    pub(crate) kind: Kind,
}

/// What may be looked at, and be stuck apart from all else.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub(crate) enum Kind {
    /// The list of mounts of a mount namespace, which is told by the kernel.
    Mounts(u64),
    /// Files as a mount namespace has them.
    Files(u64),
    /// The interfaces of a network namespace.
    Interfaces(u64),
    /// A file that the operator named, by its place in the list.
    Named(usize),
}

impl Kind {
    /// Whether both are the same kind of thing.
    fn is_like(self, other: Self) -> bool {
        std::mem::discriminant(&self) == std::mem::discriminant(&other)
    }
}

/// Why something was not looked at.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error, Serialize, Deserialize)]
pub(crate) enum Missed {
    /// It did not come to an end, now or when it was last looked at.
    #[error("{place} did not answer within {} s", PATIENCE.as_secs())]
    Stuck {
        /// What did not.
        place: Place,
    },
    /// Others that are in the same hands do not answer.
    #[error("{place} was not looked at, since {lost} others do not answer")]
    Others {
        /// What was not looked at.
        place: Place,
        /// How many do not answer.
        lost: usize,
    },
    /// What is in the same hands took too long already.
    #[error("{place} was not looked at, since others took too long")]
    Late {
        /// What was not looked at.
        place: Place,
    },
    /// To look at it takes more memory than there is.
    #[error("{place} is left alone, since it takes too much memory or time to look at")]
    TooCostly {
        /// What was not looked at.
        place: Place,
    },
    /// There is no thread for it.
    #[error("{place} was not looked at, for want of a thread")]
    NoThread {
        /// What was not looked at.
        place: Place,
    },
}

impl Missed {
    /// What was not looked at.
    pub(crate) fn place(&self) -> Place {
        match self {
            Self::Stuck { place }
            | Self::Others { place, .. }
            | Self::Late { place }
            | Self::TooCostly { place }
            | Self::NoThread { place } => *place,
        }
    }
}

impl fmt::Display for Owner {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Host => write!(f, "the host"),
            Self::Container => write!(f, "containers"),
            Self::Namespace(number) => write!(f, "user namespace {number}"),
            Self::User(uid) => write!(f, "user {uid}"),
        }
    }
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.kind {
            Kind::Mounts(namespace) => write!(f, "the list of mounts of mount namespace {namespace}")?,
            Kind::Files(namespace) => write!(f, "a file system in mount namespace {namespace}")?,
            Kind::Interfaces(namespace) => write!(f, "network namespace {namespace}")?,
            Kind::Named(number) => write!(f, "socket number {} of those named", number + 1)?,
        }
        match self.owner {
            Owner::Host | Owner::Container => Ok(()),
            owner => write!(f, " of {owner}"),
        }
    }
}

/// A thread that has not come back.
#[derive(Debug)]
struct Lost {
    place: Place,
    worker: u64,
}

/// All threads that have not come back.
static LOST: Mutex<Vec<Lost>> = Mutex::new(Vec::new());

fn lost() -> MutexGuard<'static, Vec<Lost>> {
    LOST.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Whose places are left alone, and until when.
static RESTS: Mutex<BTreeMap<Owner, Instant>> = Mutex::new(BTreeMap::new());

fn rests() -> MutexGuard<'static, BTreeMap<Owner, Instant>> {
    RESTS.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Leaves a user's places alone for a while, since they took all the time that there is for them.
fn rest(owner: Owner) {
    if let Owner::Namespace(_) | Owner::User(_) = owner {
        let now = Instant::now();
        let mut rests = rests();
        rests.retain(|_, until| *until > now);
        rests.insert(owner, now + owner.bounds().0.time * REST);
    }
}

/// Places that are left alone since they are too costly, and until when.
static SPARED: Mutex<Vec<(Place, Instant)>> = Mutex::new(Vec::new());

fn spared() -> MutexGuard<'static, Vec<(Place, Instant)>> {
    SPARED.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Leaves a place alone for a while, since to look at it takes more memory or time than there is: all of one kind, where they
/// are a user's.
pub(crate) fn spare(place: Place) -> Missed {
    tracing::warn!(%place, "takes too much memory or time to look at: it is passed over for {} s", SPARE.as_secs());
    let now = Instant::now();
    let mut spared = spared();
    spared.retain(|(_, until)| *until > now);
    spared.push((place, now + SPARE));
    Missed::TooCostly { place }
}

/// Whether a place is left alone on account of another.
fn is_spared(place: Place) -> bool {
    let now = Instant::now();
    spared().iter().any(|(other, until)| match place.owner {
        _ if *until <= now => false,
        Owner::Host | Owner::Container => *other == place,
        Owner::Namespace(_) | Owner::User(_) => other.owner == place.owner && other.kind.is_like(place.kind),
    })
}

/// Whether a place may be looked at now.
fn check(place: Place) -> Result<(), Missed> {
    if is_spared(place) {
        return Err(Missed::TooCostly { place });
    }
    let lost = lost();
    if lost.iter().any(|lost| lost.place == place) {
        return Err(Missed::Stuck { place });
    }
    let (for_one, for_all) = place.owner.bounds();
    let count = |is_meant: &dyn Fn(Owner) -> bool| {
        let meant = lost.iter().filter(|lost| is_meant(lost.place.owner));
        meant.count()
    };
    let of_owner = count(&|owner| owner == place.owner);
    let of_all = count(&|owner| place.owner.is_like(owner));
    if of_owner >= for_one.lost || of_all >= for_all.lost {
        return Err(Missed::Others { place, lost: of_all });
    }
    let resting = rests().get(&place.owner).copied();
    if resting.is_some_and(|until| Instant::now() < until) {
        return Err(Missed::Late { place });
    }
    Ok(())
}

/// Notes that a worker is lost to a place, and says so.
fn lose(place: Place, worker: u64) -> Missed {
    tracing::warn!(%place, "does not answer: it is passed over until it does");
    lost().push(Lost { place, worker });
    Missed::Stuck { place }
}

/// Notes that a worker has come back, if it was lost.
fn come_back(worker: u64) {
    let mut lost = lost();
    if let Some(index) = lost.iter().position(|lost| lost.worker == worker) {
        let Lost { place, .. } = lost.swap_remove(index);
        tracing::info!(%place, "answers again");
    }
}

fn next_worker() -> u64 {
    static WORKERS: AtomicU64 = AtomicU64::new(0);
    WORKERS.fetch_add(1, Ordering::Relaxed)
}

/// Looks at one place after another, on one thread as long as that comes back. Blocks, for a bounded time.
pub(crate) struct Lookout<J, T> {
    work: Arc<dyn Fn(J) -> T + Send + Sync>,
    worker: Option<Worker<J, T>>,
    spent: HashMap<Owner, Duration>,
    has_lost: bool,
}

struct Worker<J, T> {
    id: u64,
    jobs: Sender<J>,
    found: Receiver<T>,
}

impl<J: Send + 'static, T: Send + 'static> Lookout<J, T> {
    /// Does this at each place.
    pub(crate) fn new(work: impl Fn(J) -> T + Send + Sync + 'static) -> Self {
        Self {
            work: Arc::new(work),
            worker: None,
            spent: HashMap::new(),
            has_lost: false,
        }
    }

    /// Does it at one place.
    ///
    /// # Errors
    /// When that takes too long, or is passed over.
    pub(crate) fn look(&mut self, place: Place, job: J) -> Result<T, Missed> {
        check(place)?;
        let left = self.left_for(place.owner);
        if left.is_zero() {
            return Err(Missed::Late { place });
        }
        let patience = if self.has_lost {
            PATIENCE / LESS_PATIENCE
        } else {
            PATIENCE
        };
        let began = Instant::now();
        let found = self.hand_over(place, job, left.min(patience));
        *self.spent.entry(place.owner).or_default() += began.elapsed();
        if self.left_for(place.owner).is_zero() {
            rest(place.owner);
        }
        found
    }

    fn hand_over(&mut self, place: Place, job: J, patience: Duration) -> Result<T, Missed> {
        let worker = match self.worker.take() {
            Some(worker) => worker,
            None => Worker::start(&self.work).map_err(|_| Missed::NoThread { place })?,
        };
        if worker.jobs.send(job).is_err() {
            return Err(Missed::NoThread { place });
        }
        match worker.found.recv_timeout(patience) {
            Ok(found) => {
                self.worker = Some(worker);
                Ok(found)
            }
            // Noted before the worker can find itself alone.
            Err(RecvTimeoutError::Timeout) => {
                self.has_lost = true;
                Err(lose(place, worker.id))
            }
            Err(RecvTimeoutError::Disconnected) => Err(Missed::NoThread { place }),
        }
    }

    /// The time that is left for what is in these hands.
    fn left_for(&self, owner: Owner) -> Duration {
        let (for_one, for_all) = owner.bounds();
        let spent = self.spent.get(&owner).copied().unwrap_or_default();
        let alike = self.spent.iter().filter(|(other, _)| owner.is_like(**other));
        let of_all: Duration = alike.map(|(_, spent)| *spent).sum();
        let left = for_one.time.saturating_sub(spent);
        left.min(for_all.time.saturating_sub(of_all))
    }
}

impl<J: Send + 'static, T: Send + 'static> Worker<J, T> {
    fn start(work: &Arc<dyn Fn(J) -> T + Send + Sync>) -> io::Result<Self> {
        let id = next_worker();
        let (jobs, next) = mpsc::channel();
        let (tell, found) = mpsc::channel();
        let work = Arc::clone(work);
        thread::Builder::new().name("lookout".to_owned()).spawn(move || {
            let _back = ComesBack(id);
            while let Ok(job) = next.recv() {
                if tell.send(work(job)).is_err() {
                    return;
                }
            }
        })?;
        Ok(Self { id, jobs, found })
    }
}

/// Notes that a worker is there again, at its end.
struct ComesBack(u64);

impl Drop for ComesBack {
    fn drop(&mut self) {
        come_back(self.0);
    }
}

/// Does one thing at a place, while the runtime does others.
///
/// # Errors
/// When that takes too long, or is passed over.
pub(crate) async fn look_aside<T: Send + 'static>(
    place: Place,
    work: impl FnOnce() -> T + Send + 'static,
) -> Result<T, Missed> {
    check(place)?;
    let id = next_worker();
    let (tell, found) = oneshot::channel();
    let (noted, is_noted) = mpsc::channel::<()>();
    let worker = thread::Builder::new().name("lookout".to_owned()).spawn(move || {
        let _back = ComesBack(id);
        let _ = tell.send(work());
        // Whoever waited has by now noted that this was lost, or never will.
        let _ = is_noted.recv();
    });
    worker.map_err(|_| Missed::NoThread { place })?;
    let mut watch = Abandoned {
        place,
        id,
        is_over: false,
        _noted: noted,
    };
    let answered = timeout(PATIENCE, found).await;
    watch.is_over = true;
    match answered {
        Ok(Ok(found)) => Ok(found),
        Ok(Err(_)) => Err(Missed::NoThread { place }),
        Err(_) => Err(lose(place, id)),
    }
}

/// One who waits for a look, and may be called off meanwhile: the thread counts as lost then, until it comes back.
struct Abandoned {
    place: Place,
    id: u64,
    is_over: bool,
    /// Dropped last, so that the thread ends after that.
    _noted: Sender<()>,
}

impl Drop for Abandoned {
    fn drop(&mut self) {
        if !self.is_over {
            lost().push(Lost {
                place: self.place,
                worker: self.id,
            });
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn place(uid: u32, namespace: u64) -> Place {
        Place {
            owner: Owner::User(uid),
            kind: Kind::Files(namespace),
        }
    }

    /// Jobs that wait until they are let go.
    fn waiting() -> (Lookout<Receiver<()>, ()>, Sender<()>, Receiver<()>) {
        let (go, wait) = mpsc::channel();
        (
            Lookout::new(|wait: Receiver<()>| wait.recv().unwrap_or_default()),
            go,
            wait,
        )
    }

    fn is_lost(place: Place) -> bool {
        lost().iter().any(|lost| lost.place == place)
    }

    fn until(done: impl Fn() -> bool) {
        let deadline = Instant::now() + Duration::from_secs(10);
        while !done() {
            assert!(Instant::now() < deadline, "in vain");
            thread::sleep(Duration::from_millis(5));
        }
    }

    #[test]
    fn what_is_stuck_costs_one_look_and_is_looked_at_again_when_it_comes_back() {
        let (mut lookout, go, wait) = waiting();
        let stuck = place(4_000_001, 1);
        let began = Instant::now();
        assert_eq!(lookout.look(stuck, wait), Err(Missed::Stuck { place: stuck }));
        assert!(began.elapsed() >= PATIENCE / 2);
        // Neither this one nor another waits for it again.
        let again = Instant::now();
        let (_, ended) = mpsc::channel();
        assert_eq!(lookout.look(stuck, ended), Err(Missed::Stuck { place: stuck }));
        let mut another = Lookout::new(|number: u32| number + 1);
        assert_eq!(another.look(stuck, 1), Err(Missed::Stuck { place: stuck }));
        assert_eq!(another.look(place(4_000_002, 2), 1), Ok(2));
        assert!(again.elapsed() < PATIENCE);
        drop(go);
        until(|| !is_lost(stuck));
        // It took all the time that there is for this user, who is left alone now.
        assert_eq!(another.look(stuck, 1), Err(Missed::Late { place: stuck }));
        rests().remove(&stuck.owner);
        assert_eq!(another.look(stuck, 1), Ok(2));
    }

    #[test]
    fn one_user_gets_so_many_threads_lost_and_no_more() {
        let mut held = Vec::new();
        for namespace in [1, 2] {
            let (mut lookout, go, wait) = waiting();
            let place = place(4_000_003, namespace);
            assert_eq!(lookout.look(place, wait), Err(Missed::Stuck { place }));
            held.push(go);
            // As if much later.
            rests().remove(&place.owner);
        }
        let mut lookout = Lookout::new(|number: u32| number);
        let further = place(4_000_003, 99);
        assert!(matches!(lookout.look(further, 1), Err(Missed::Others { .. })));
        assert_eq!(lookout.look(place(4_000_004, 99), 1), Ok(1));
        drop(held);
        until(|| check(further).is_ok());
        assert_eq!(lookout.look(further, 1), Ok(1));
    }

    #[test]
    fn one_user_gets_so_much_time_and_no_more() {
        let mut lookout = Lookout::new(|pause: Duration| thread::sleep(pause));
        let mut looks = 0;
        let missed = loop {
            match lookout.look(place(4_000_005, looks), PATIENCE / 3) {
                Ok(()) => looks += 1,
                Err(missed) => break missed,
            }
        };
        assert!((1..=3).contains(&looks), "{looks}: {missed}");
        assert_eq!(lookout.look(place(4_000_006, 1), Duration::ZERO), Ok(()));
        // Not in the next round either.
        let mut next = Lookout::new(|()| ());
        assert!(matches!(
            next.look(place(4_000_005, 99), ()),
            Err(Missed::Late { .. })
        ));
    }

    #[tokio::test]
    async fn what_is_stuck_aside_is_passed_over_even_when_nobody_waits_any_more() {
        let stuck = place(4_000_007, 1);
        let (go, wait) = mpsc::channel::<()>();
        let look = look_aside(stuck, move || wait.recv().unwrap_or_default());
        assert!(timeout(PATIENCE / 10, look).await.is_err());
        assert!(is_lost(stuck));
        assert_eq!(
            look_aside(stuck, || ()).await,
            Err(Missed::Stuck { place: stuck })
        );
        drop(go);
        until(|| !is_lost(stuck));
        assert_eq!(look_aside(stuck, || 5).await, Ok(5));
    }
}
