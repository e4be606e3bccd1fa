//! What is read from files and read again when they change.

use std::{
    error::Error,
    os::unix::fs::MetadataExt as _,
    path::PathBuf,
    sync::{Arc, PoisonError, RwLock},
    time::Duration,
};

use tokio::time::sleep;

use crate::error;

/// How often it is looked whether a file is another. A change counts once a file has stayed the same from one look to
/// the next: what is half written is not read.
const INTERVAL: Duration = Duration::from_millis(400);

/// A value that follows its files. Whatever happens to them, there always is one.
pub(crate) struct Reloaded<T> {
    /// What it is, for the log.
    what: &'static str,
    files: Vec<PathBuf>,
    load: Load<T>,
    current: RwLock<Arc<T>>,
    /// What the files were before the first value was read.
    first: Vec<Option<Stamp>>,
}

type Load<T> = Box<dyn Fn() -> Result<T, Box<dyn Error + Send + Sync>> + Send + Sync>;

/// What tells one state of a file from another: device, inode, size, and the times of its last changes, in nanoseconds.
/// Through links, so that those that Kubernetes makes point elsewhere are noticed; the time of the last change of the
/// inode, so that other permissions are.
type Stamp = (u64, u64, u64, (i64, i64), (i64, i64));

/// States in which the files have been seen.
struct Seen {
    /// When they were read.
    loaded: Vec<Option<Stamp>>,
    /// When they were looked at the last time.
    before: Vec<Option<Stamp>>,
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
            first,
        })
    }

    /// The value as it is now.
    pub(crate) fn current(&self) -> Arc<T> {
        Arc::clone(&self.current.read().unwrap_or_else(PoisonError::into_inner))
    }

    /// Follows the files; never ends. When they cannot be used, the value stays, and the log says why.
    pub(crate) async fn follow(self: Arc<Self>) {
        let mut seen = Seen {
            loaded: self.first.clone(),
            before: self.first.clone(),
        };
        loop {
            sleep(INTERVAL).await;
            let reloaded = Arc::clone(&self);
            let look = tokio::task::spawn_blocking(move || reloaded.look(seen));
            // Without an answer, the runtime ends.
            let Ok(now) = look.await else {
                return std::future::pending().await;
            };
            seen = now;
        }
    }

    /// Looks at the files once, and reads them when they have changed and settled.
    fn look(&self, mut seen: Seen) -> Seen {
        let now = stamps(&self.files);
        if now == seen.before && now != seen.loaded {
            // Should they change from here on, they are read once more.
            self.reload();
            seen.loaded.clone_from(&now);
        }
        Seen { before: now, ..seen }
    }

    fn reload(&self) {
        match (self.load)() {
            Ok(value) => {
                *self.current.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(value);
                tracing::info!("the {} was read again", self.what);
            }
            Err(error) => {
                let reason = error::chain(&*error);
                tracing::warn!(
                    reason,
                    "the {} stays as it was: it cannot be read again",
                    self.what
                );
            }
        }
    }
}

/// The states of files; `None` of one that is not there.
fn stamps(files: &[PathBuf]) -> Vec<Option<Stamp>> {
    let stamp = |path: &PathBuf| {
        let metadata = std::fs::metadata(path).ok()?;
        Some((
            metadata.dev(),
            metadata.ino(),
            metadata.size(),
            (metadata.mtime(), metadata.mtime_nsec()),
            (metadata.ctime(), metadata.ctime_nsec()),
        ))
    };
    files.iter().map(stamp).collect()
}

#[cfg(test)]
mod tests {
    use std::{fs, io};

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
