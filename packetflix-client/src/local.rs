//! A server in this process, for hosts that have none: the program brings one where it can, and nobody else reaches it.

use std::{error::Error, fmt, io, sync::Arc};

use crate::connect::Connection;

/// Starts one; or says why this process cannot be a server.
pub type StartLocal = fn() -> Result<LocalServer, Box<dyn Error + Send + Sync>>;

/// What serves in this process, until it is dropped.
pub trait Serve: Send + Sync {
    /// Makes a connection to it. Must be called within a tokio runtime.
    ///
    /// # Errors
    /// When there is no room for one.
    fn connect(&self) -> io::Result<Connection>;
}

/// A server in this process, which ends with the last of these.
#[derive(Clone)]
pub struct LocalServer(Arc<dyn Serve>);

impl LocalServer {
    /// This one.
    pub fn new(server: impl Serve + 'static) -> Self {
        Self(Arc::new(server))
    }

    pub(crate) fn connect(&self) -> io::Result<Connection> {
        self.0.connect()
    }
}

impl fmt::Debug for LocalServer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("LocalServer")
    }
}

impl PartialEq for LocalServer {
    fn eq(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.0, &other.0)
    }
}

impl Eq for LocalServer {}
