//! Looks for targets, and tells what there is: the side that has rights.

use std::{
    collections::BTreeSet,
    io,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use futures_util::FutureExt as _;
use tokio::{
    sync::{Mutex as AsyncMutex, Semaphore},
    time::{Instant, sleep, timeout},
};

use super::{
    arrivals::Arrived,
    call::{Meant, StartNews, TargetsQuestion},
    engine_socket::EngineSocket,
    engines,
    report::{EngineReport, reports},
    scan::{Found, Remembered, blocking, process_ids, scan},
    sockets,
    starts::Starting,
    turns::EngineTurns,
    workload::KnownPids,
};
use crate::{
    channel::Served,
    netns::{ArrivalNews, Arrivals, Holders, counters_of},
};

/// How long the sockets of engines are taken for those that there are, by who asks what is started.
const SOCKETS_ARE_FRESH: Duration = Duration::from_secs(10);

/// How long engines are asked what they start.
const START_PATIENCE: Duration = Duration::from_secs(5);

/// How many look at the same time for less than everything.
const MAX_LOOKS: usize = 64;

/// How often directories are looked for that were not there.
const AGAIN: Duration = Duration::from_secs(2);

/// Looks for targets.
#[derive(Debug)]
pub(crate) struct Finder {
    engine_sockets: Vec<PathBuf>,
    holders: Arc<Holders>,
    remembered: Mutex<Remembered>,
    last: Mutex<Last>,
    /// Sockets of engines that answer, and when they were found.
    answering: AsyncMutex<Option<(Instant, Arc<Vec<EngineSocket>>)>>,
    /// Each takes up what the last has found.
    scans: Semaphore,
    /// Shorter ones.
    looks: Semaphore,
}

/// What the last scan found.
#[derive(Clone, Debug, Default)]
struct Last {
    engines: Vec<EngineReport>,
    /// Where the host had network namespaces mounted.
    mounted_in: BTreeSet<PathBuf>,
}

impl Finder {
    /// Asks the engines at `engine_sockets` beside those at well-known places, and tells who holds which namespace.
    pub(crate) fn new(engine_sockets: Vec<PathBuf>, holders: Arc<Holders>) -> Self {
        Self {
            engine_sockets,
            holders,
            remembered: Mutex::default(),
            last: Mutex::default(),
            answering: AsyncMutex::default(),
            scans: Semaphore::new(1),
            looks: Semaphore::new(MAX_LOOKS),
        }
    }

    async fn scan(&self) -> Found {
        let known = std::mem::take(&mut *self.remembered.lock().unwrap_or_else(PoisonError::into_inner));
        let (found, holders, known) = scan(&self.engine_sockets, known).await;
        *self.remembered.lock().unwrap_or_else(PoisonError::into_inner) = known;
        self.holders.set(holders);
        let mounts = found.targets.iter().flat_map(|target| &target.namespace.mounts);
        let hosts = mounts.filter(|mount| mount.is_hosts);
        let mounted_in = hosts.filter_map(|mount| mount.path.parent()).map(Path::to_owned);
        *self.last() = Last {
            engines: found.engines.clone(),
            mounted_in: mounted_in.collect(),
        };
        found
    }

    /// Asks the engines that the operator named.
    async fn look_at_named(&self) -> Vec<EngineReport> {
        let named = self.engine_sockets.clone();
        let turns = EngineTurns::default();
        let found = blocking(move || sockets::find(&[], &named, &EngineTurns::default())).await;
        let engines = engines::ask_all(&found.sockets, &turns, |_| KnownPids::default()).await;
        reports(&engines, found.missing)
    }

    async fn state_at_rest(&self, name: &str) -> Option<String> {
        engines::state_at_rest(&self.find_sockets().await, name).await
    }

    async fn find_sockets(&self) -> Vec<EngineSocket> {
        let configured = self.engine_sockets.clone();
        let find = move || sockets::find(&process_ids(), &configured, &EngineTurns::default());
        blocking(find).await.sockets
    }

    /// The sockets of engines that answered in the last scan, as they were found a moment ago: to find them takes longer than a
    /// container may live.
    async fn answering_sockets(&self) -> Arc<Vec<EngineSocket>> {
        let mut known = self.answering.lock().await;
        let Last { engines, .. } = self.last().clone();
        if let Some((found_at, sockets)) = &*known
            && found_at.elapsed() < SOCKETS_ARE_FRESH
        {
            // An engine that was started again has another one.
            let is_known = |id: &(u64, u64)| sockets.iter().any(|socket| socket.id == *id);
            let mut answering = engines.iter();
            if answering.all(|engine| engine.hosts_socket().is_none_or(|id| is_known(&id))) {
                return Arc::clone(sockets);
            }
        }
        let mut found = self.find_sockets().await;
        found.retain(|socket| {
            let mut engines = engines.iter();
            engines.any(|engine| engine.problem.is_none() && engine.path == socket.path)
        });
        let sockets = Arc::new(found);
        *known = Some((Instant::now(), Arc::clone(&sockets)));
        sockets
    }

    fn last(&self) -> MutexGuard<'_, Last> {
        self.last.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Looks for targets in this process, for tests. Must be called within a tokio runtime of several threads.
#[cfg(test)]
pub(crate) fn find_here(engine_sockets: Vec<PathBuf>) -> Arc<crate::channel::Control> {
    use crate::channel::{Control, Kind, open_lines, pair};

    let (ours, theirs) = pair().unwrap();
    let finder = Arc::new(Finder::new(engine_sockets, Arc::default()));
    let control = Served::new(theirs).unwrap();
    tokio::spawn(open_lines(control, move |kind, line| {
        assert_eq!(kind, Kind::Targets);
        tokio::spawn(serve(line, Arc::clone(&finder)));
    }));
    Arc::new(Control::new(ours))
}

/// Tells what there is.
///
/// # Errors
/// When what is asked cannot be understood.
pub(crate) async fn serve(mut line: Served, finder: Arc<Finder>) -> io::Result<()> {
    while let Some(question) = line.next::<TargetsQuestion>().await? {
        // A helper is started for each engine.
        let _turn = match question {
            TargetsQuestion::Scan => finder.scans.acquire().await,
            _ => finder.looks.acquire().await,
        };
        match question {
            TargetsQuestion::Scan => line.say(&finder.scan().await).await?,
            TargetsQuestion::Named => line.say(&finder.look_at_named().await).await?,
            TargetsQuestion::AtRest(name) => line.say(&finder.state_at_rest(&name).await).await?,
            TargetsQuestion::LookForSockets => {
                drop(finder.answering_sockets().await);
                line.say(&()).await?;
            }
            // What is answered to the last that was told may come later, and is no question.
            TargetsQuestion::Starting => return tell_of_starts(&mut line, &finder).await,
            TargetsQuestion::Counters => {
                let holders = finder.holders.known();
                let counted = blocking(move || counters_of(&holders)).await;
                line.say(&counted).await?;
            }
        }
    }
    Ok(())
}

/// Tells what engines start until somebody says that this was meant, for a bounded time.
async fn tell_of_starts(line: &mut Served, finder: &Finder) -> io::Result<()> {
    let sockets = finder.answering_sockets().await;
    let meant = {
        let line = AsyncMutex::new(&mut *line);
        let is_of = |starting: Starting| {
            async {
                let mut line = line.lock().await;
                let said = line.say(&StartNews::Starts(starting)).await;
                // Who has left wants nothing more.
                said.is_err() || !matches!(line.next::<bool>().await, Ok(Some(false)))
            }
            .boxed()
        };
        let told = timeout(START_PATIENCE, engines::starting_in(&sockets, &is_of)).await;
        told.ok().flatten()
    };
    let meant = meant.map(|(engine, workload)| Meant { engine, workload });
    line.say(&StartNews::Over(meant)).await
}

/// Tells what comes into being, until nobody listens any more.
///
/// # Errors
/// When the kernel does not tell.
pub(crate) async fn serve_arrivals(mut line: Served, finder: Arc<Finder>) -> io::Result<()> {
    let mut arrivals = Arrivals::new()?;
    loop {
        let others = finder.last().mounted_in.clone();
        arrivals.watch(others).await;
        let again = sleep(AGAIN);
        tokio::pin!(again);
        loop {
            let news = tokio::select! {
                news = arrivals.next() => news?,
                () = &mut again => break,
                () = line.is_left() => return Ok(()),
            };
            for one in news {
                let arrived = match one {
                    ArrivalNews::At(path) => Arrived::Mount(path),
                    ArrivalNews::Missed => Arrived::Something,
                };
                line.say(&arrived).await?;
            }
        }
    }
}
