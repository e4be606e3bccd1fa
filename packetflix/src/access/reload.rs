//! What is read from files and read again when they change.
//!
//! Files are looked at by polling what `stat` says, through links: that is the same for a write, a rename and the links of
//! Kubernetes, and takes no descriptor that would follow the wrong file. A change counts once a file stayed the same between
//! two looks, so that no half of a file is taken for all of it; or at once where it is said that all is written (SIGHUP).

use std::{
    error::Error,
    path::PathBuf,
    sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock},
    time::{Duration, Instant},
};

use tokio::{sync::Notify, time::sleep};

use super::file::{Stamp, stamp};
use crate::error;

/// How often it is looked whether a file is another. A change counts once a file has stayed the same from one look to
/// the next: what is half written is not read.
const INTERVAL: Duration = Duration::from_millis(400);

/// After so many looks at a file that never stays the same, it is read as soon as it is the same before and after that.
const MAX_UNSETTLED: u32 = 3;

/// Tells all who follow files that these are as they are to be.
static HINTS: Notify = Notify::const_new();

/// Has all files that are followed looked at now, and read if they are others.
pub(crate) fn look_now() {
    HINTS.notify_waiters();
}

/// A value that follows its files. Whatever happens to them, there always is one.
pub(crate) struct Reloaded<T> {
    /// What it is, for the log.
    what: &'static str,
    files: Vec<PathBuf>,
    load: Load<T>,
    current: RwLock<Arc<T>>,
    times: Mutex<Times>,
    /// What the files were before the first value was read.
    first: Vec<Option<Stamp>>,
}

/// How old is what was read from files.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct FileAge {
    /// What they hold.
    pub(crate) what: &'static str,
    /// How long ago they were read.
    pub(crate) age: Duration,
    /// For how long they have been others than those that were read.
    pub(crate) behind: Duration,
}

/// A value that follows its files, whatever it is.
pub(crate) trait Followed: Send + Sync {
    /// How old it is.
    fn age(&self) -> FileAge;
}

type Load<T> = Box<dyn Fn() -> Result<T, Box<dyn Error + Send + Sync>> + Send + Sync>;

#[derive(Clone, Copy, Debug)]
struct Times {
    /// When the value was read.
    loaded: Instant,
    /// Since when the files are others.
    behind: Option<Instant>,
}

/// States in which the files have been seen.
struct Seen {
    /// When they were read.
    loaded: Vec<Option<Stamp>>,
    /// When they were looked at the last time.
    before: Vec<Option<Stamp>>,
    /// Looks, one after the other, at each of which they were others than before.
    unsettled: u32,
    /// Why they could not be read the last time.
    problem: Option<String>,
}

impl<T: Send + Sync + 'static> Reloaded<T> {
    /// Reads the value by `load` from `files`.
    ///
    /// # Errors
    /// Those of `load`.
    pub(crate) fn open<E: Error + Send + Sync + 'static>(
        what: &'static str,
        files: Vec<PathBuf>,
        load: impl Fn() -> Result<T, E> + Send + Sync + 'static,
    ) -> Result<Self, E> {
        let first = stamps(&files);
        let current = RwLock::new(Arc::new(load()?));
        Ok(Self {
            what,
            files,
            load: Box::new(move || load().map_err(Into::into)),
            current,
            times: Mutex::new(Times {
                loaded: Instant::now(),
                behind: None,
            }),
            first,
        })
    }

    /// The value as it is now.
    pub(crate) fn current(&self) -> Arc<T> {
        Arc::clone(&self.current.read().unwrap_or_else(PoisonError::into_inner))
    }

    /// Follows the files; never ends. When they cannot be used, the value stays, the log says why, and they are tried again
    /// until they can: what hinders may not be in the files.
    pub(crate) async fn follow(self: Arc<Self>) {
        let mut seen = self.first_seen();
        loop {
            let is_written = tokio::select! {
                () = HINTS.notified() => true,
                () = sleep(INTERVAL) => false,
            };
            let reloaded = Arc::clone(&self);
            let look = tokio::task::spawn_blocking(move || reloaded.look(seen, is_written));
            // Without an answer, the runtime ends.
            let Ok(now) = look.await else {
                return std::future::pending().await;
            };
            seen = now;
        }
    }

    fn first_seen(&self) -> Seen {
        Seen {
            loaded: self.first.clone(),
            before: self.first.clone(),
            unsettled: 0,
            problem: None,
        }
    }

    /// Looks at the files once, and reads them when they have changed and settled, or all is said to be written.
    fn look(&self, mut seen: Seen, is_written: bool) -> Seen {
        let now = stamps(&self.files);
        if now == seen.loaded {
            self.times().behind = None;
            (seen.unsettled, seen.problem) = (0, None);
            return Seen { before: now, ..seen };
        }
        self.times().behind.get_or_insert_with(Instant::now);
        seen.unsettled = if now == seen.before { 0 } else { seen.unsettled + 1 };
        if is_written || seen.unsettled == 0 || seen.unsettled >= MAX_UNSETTLED {
            self.reload(&now, &mut seen);
        }
        Seen { before: now, ..seen }
    }

    /// Reads the files, which are in the state `now`.
    fn reload(&self, now: &[Option<Stamp>], seen: &mut Seen) {
        match (self.load)() {
            // Else it may be half of the one and half of the other.
            Ok(value) if stamps(&self.files) == now => {
                *self.current.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(value);
                *self.times() = Times {
                    loaded: Instant::now(),
                    behind: None,
                };
                tracing::info!("the {} was read again", self.what);
                now.clone_into(&mut seen.loaded);
                (seen.unsettled, seen.problem) = (0, None);
            }
            Ok(_) => {}
            Err(error) => {
                let reason = error::chain(&*error);
                if seen.problem.as_ref() != Some(&reason) {
                    tracing::warn!(
                        reason,
                        "the {} stays as it was: it cannot be read again, and is tried until it can",
                        self.what
                    );
                }
                seen.problem = Some(reason);
            }
        }
    }

    fn times(&self) -> MutexGuard<'_, Times> {
        self.times.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl<T: Send + Sync + 'static> Followed for Reloaded<T> {
    fn age(&self) -> FileAge {
        let Times { loaded, behind } = *self.times();
        FileAge {
            what: self.what,
            age: loaded.elapsed(),
            behind: behind.map_or(Duration::ZERO, |since| since.elapsed()),
        }
    }
}

/// The states of files; `None` of one that is not there.
fn stamps(files: &[PathBuf]) -> Vec<Option<Stamp>> {
    files.iter().map(|path| stamp(path)).collect()
}

#[cfg(test)]
mod tests {
    use std::{
        fs, io,
        sync::atomic::{AtomicBool, Ordering},
    };

    use tokio::time::timeout;

    use super::*;

    async fn becomes(value: &Reloaded<String>, wanted: &str) {
        let reached = async {
            while *value.current() != wanted {
                sleep(Duration::from_millis(10)).await;
            }
        };
        timeout(Duration::from_secs(10), reached)
            .await
            .unwrap_or_else(|_| panic!("it stays {} and does not become {wanted}", value.current()));
    }

    /// Whatever hindered may have been no fault of the file.
    #[tokio::test]
    async fn what_could_not_be_read_is_tried_again() {
        let path = std::env::temp_dir().join(format!("packetflix-again-{}", std::process::id()));
        fs::write(&path, "one").unwrap();
        let is_hindered = Arc::new(AtomicBool::new(false));
        let (read, hindered) = (path.clone(), Arc::clone(&is_hindered));
        let load = move || match hindered.load(Ordering::Relaxed) {
            true => Err(io::Error::from(nix::errno::Errno::EMFILE)),
            false => fs::read_to_string(&read),
        };
        let value = Arc::new(Reloaded::open("value", vec![path.clone()], load).unwrap());
        let following = tokio::spawn(Arc::clone(&value).follow());
        is_hindered.store(true, Ordering::Relaxed);
        fs::write(&path, "two").unwrap();
        sleep(4 * INTERVAL).await;
        assert_eq!(*value.current(), "one");
        let FileAge { age, behind, .. } = value.age();
        assert!(behind > 2 * INTERVAL && age >= behind, "{age:?} {behind:?}");
        is_hindered.store(false, Ordering::Relaxed);
        becomes(&value, "two").await;
        assert_eq!(value.age().behind, Duration::ZERO);
        following.abort();
        fs::remove_file(&path).unwrap();
    }

    #[test]
    fn a_file_that_is_said_to_be_written_is_read_at_once() {
        let path = std::env::temp_dir().join(format!("packetflix-hint-{}", std::process::id()));
        fs::write(&path, "one").unwrap();
        let read = path.clone();
        let load = move || fs::read_to_string(&read);
        let value = Reloaded::open("value", vec![path.clone()], load).unwrap();
        fs::write(&path, "three").unwrap();
        let seen = value.look(value.first_seen(), false);
        assert_eq!(*value.current(), "one");
        let seen = value.look(seen, false);
        assert_eq!(*value.current(), "three");
        fs::write(&path, "seven").unwrap();
        value.look(seen, true);
        assert_eq!(*value.current(), "seven");
        fs::remove_file(&path).unwrap();
    }

    #[tokio::test]
    async fn a_file_that_is_written_all_the_time_is_read() {
        let path = std::env::temp_dir().join(format!("packetflix-restless-{}", std::process::id()));
        fs::write(&path, "0").unwrap();
        let read = path.clone();
        let load = move || fs::read_to_string(&read);
        let value = Arc::new(Reloaded::open("value", vec![path.clone()], load).unwrap());
        let following = tokio::spawn(Arc::clone(&value).follow());
        let written = path.clone();
        let writing = tokio::spawn(async move {
            for number in 1u32.. {
                fs::write(&written, number.to_string()).unwrap();
                sleep(Duration::from_millis(250)).await;
            }
        });
        for least in [1, 8] {
            let is_read = async {
                while value.current().parse::<u32>().unwrap_or_default() < least {
                    sleep(Duration::from_millis(10)).await;
                }
            };
            timeout(Duration::from_secs(10), is_read).await.unwrap();
        }
        writing.abort();
        following.abort();
        fs::remove_file(&path).unwrap();
    }

    #[tokio::test]
    async fn follows_writes_renames_and_links() {
        let folder = std::env::temp_dir().join(format!("packetflix-reload-{}", std::process::id()));
        fs::create_dir_all(&folder).unwrap();
        let path = folder.join("value");
        fs::write(&path, "one").unwrap();
        let read = path.clone();
        let load = move || {
            let text = fs::read_to_string(&read)?;
            (text != "wrong")
                .then_some(text)
                .ok_or_else(|| io::Error::other("it is wrong"))
        };
        let value = Arc::new(Reloaded::open("value", vec![path.clone()], load).unwrap());
        let following = tokio::spawn(Arc::clone(&value).follow());
        assert_eq!(*value.current(), "one");
        fs::write(&path, "two").unwrap();
        becomes(&value, "two").await;
        fs::write(folder.join("new"), "six").unwrap();
        fs::rename(folder.join("new"), &path).unwrap();
        becomes(&value, "six").await;

        // As Kubernetes does it: the file is a link through a folder that is one, too.
        for version in ["ten", "wrong", "11!"] {
            let data = folder.join(format!("data-{version}"));
            fs::create_dir_all(&data).unwrap();
            fs::write(data.join("value"), version).unwrap();
            std::os::unix::fs::symlink(&data, folder.join("next")).unwrap();
            fs::rename(folder.join("next"), folder.join("data")).unwrap();
            if version == "ten" {
                std::os::unix::fs::symlink("data/value", folder.join("link")).unwrap();
                fs::rename(folder.join("link"), &path).unwrap();
            }
            if version != "wrong" {
                becomes(&value, version).await;
            }
        }
        fs::remove_file(&path).unwrap();
        sleep(4 * INTERVAL).await;
        assert_eq!(*value.current(), "11!");
        following.abort();
        fs::remove_dir_all(&folder).unwrap();
    }
}
