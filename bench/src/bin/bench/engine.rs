//! A container engine that does nothing but tell what it was told to: Docker's API on a Unix socket.

use std::{
    io::{BufRead as _, BufReader, Write as _},
    os::unix::net::{UnixListener, UnixStream},
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicU32, Ordering},
    },
    thread,
};

use anyhow::Context as _;
use serde_json::{Value, json};

/// An engine with its socket, which is removed when dropped.
pub(crate) struct Engine {
    path: PathBuf,
    requests: Arc<AtomicU32>,
    _listener: Option<UnixListener>,
}

impl Engine {
    /// Runs a container for each of these processes.
    ///
    /// # Errors
    /// When there can be no such socket.
    pub(crate) fn start(name: &str, pids: &[u32]) -> anyhow::Result<Self> {
        let (mut engine, listener) = Self::bind(name)?;
        let script = Arc::new(Script::new(pids));
        let requests = Arc::clone(&engine.requests);
        engine._listener = None;
        thread::spawn(move || {
            for stream in listener.incoming().map_while(Result::ok) {
                let (script, requests) = (Arc::clone(&script), Arc::clone(&requests));
                // A connection may wait for its first request while others are made. A client that has gone away is
                // none of our business.
                thread::spawn(move || script.answer(&stream, &requests));
            }
        });
        Ok(engine)
    }

    /// Takes connections, and never says a word.
    ///
    /// # Errors
    /// As [`Self::start`].
    pub(crate) fn hanging(name: &str) -> anyhow::Result<Self> {
        let (mut engine, listener) = Self::bind(name)?;
        engine._listener = Some(listener);
        Ok(engine)
    }

    fn bind(name: &str) -> anyhow::Result<(Self, UnixListener)> {
        let path = std::env::temp_dir().join(format!("packetflix-bench-{}-{name}.sock", std::process::id()));
        let listener =
            UnixListener::bind(&path).with_context(|| format!("cannot listen at {}", path.display()))?;
        let engine = Self {
            path,
            requests: Arc::default(),
            _listener: None,
        };
        Ok((engine, listener))
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// How many requests there were since this was last asked.
    pub(crate) fn take_requests(&self) -> u32 {
        self.requests.swap(0, Ordering::Relaxed)
    }
}

impl Drop for Engine {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.path);
    }
}

/// What an engine answers.
struct Script {
    list: String,
    pids: Vec<u32>,
}

impl Script {
    fn new(pids: &[u32]) -> Self {
        let containers: Vec<Value> = (0..pids.len()).map(summary).collect();
        Self {
            list: Value::from(containers).to_string(),
            pids: pids.to_vec(),
        }
    }

    fn answer(&self, stream: &UnixStream, requests: &AtomicU32) -> anyhow::Result<()> {
        let mut lines = BufReader::new(stream).lines();
        let first = lines.next().context("no request")??;
        requests.fetch_add(1, Ordering::Relaxed);
        for line in lines {
            if line?.is_empty() {
                break;
            }
        }
        let path = first.split(' ').nth(1).context("no path")?;
        let (status, body) = match self.body(path) {
            Some(body) => ("200 OK", body),
            None => (
                "404 Not Found",
                json!({ "message": "page not found" }).to_string(),
            ),
        };
        let answer = format!(
            "HTTP/1.1 {status}\r\nServer: Docker/28.0.0 (linux)\r\nContent-Type: application/json\r\n\
             Connection: close\r\nContent-Length: {}\r\n\r\n{body}",
            body.len()
        );
        Ok((&*stream).write_all(answer.as_bytes())?)
    }

    fn body(&self, path: &str) -> Option<String> {
        if path == "/containers/json" {
            return Some(self.list.clone());
        }
        let id = path.strip_prefix("/containers/")?.strip_suffix("/json")?;
        let number = usize::from_str_radix(id, 16).ok()?;
        let pid = self.pids.get(number)?;
        let mut details = summary(number);
        details["State"] = json!({ "Status": "running", "Running": true, "Pid": pid });
        Some(details.to_string())
    }
}

/// A container as lists have it.
fn summary(number: usize) -> Value {
    json!({
        "Id": format!("{number:064x}"),
        "Names": [format!("/bench-{number}")],
        "Image": "registry.example.org/shop/web:1.2.3",
        "ImageID": format!("sha256:{number:064x}"),
        "Command": "sleep 1800",
        "Labels": {
            "com.docker.compose.project": "bench",
            "com.docker.compose.service": format!("web-{number}"),
            "com.docker.compose.version": "2.35.0",
        },
        "State": "running",
        "Status": "Up 2 hours",
    })
}
