//! What the service manager is told, where one wants to know: sd_notify(3) of systemd, which others speak too.

use std::{
    env,
    ffi::OsStr,
    io,
    os::{
        linux::net::SocketAddrExt as _,
        unix::{
            ffi::OsStrExt as _,
            net::{SocketAddr, UnixDatagram},
        },
    },
    time::Duration,
};

/// How often the state is told anew if no watchdog wants to hear of us more often.
const STATUS_INTERVAL: Duration = Duration::from_secs(5);

/// The service manager, if there is one that wants to know.
#[derive(Debug, Default)]
pub(crate) struct ServiceManager {
    socket: Option<UnixDatagram>,
    /// After how long without a word from us it ends us.
    watchdog: Option<Duration>,
}

impl ServiceManager {
    /// The one that the environment names in `NOTIFY_SOCKET`, with its `WATCHDOG_USEC` if that is for this process.
    pub(crate) fn from_environment() -> Self {
        let Some(address) = env::var_os("NOTIFY_SOCKET") else {
            return Self::default();
        };
        let socket = match connect(address.as_encoded_bytes()) {
            Ok(socket) => socket,
            Err(error) => {
                tracing::warn!(%error, "the service manager cannot be told anything (NOTIFY_SOCKET)");
                return Self::default();
            }
        };
        let number = |name| env::var(name).ok()?.parse().ok();
        let is_ours = number("WATCHDOG_PID").is_none_or(|pid: u64| pid == u64::from(std::process::id()));
        Self {
            socket: Some(socket),
            watchdog: number("WATCHDOG_USEC")
                .filter(|microseconds| is_ours && *microseconds > 0)
                .map(Duration::from_micros),
        }
    }

    /// How often [`Self::alive`] is to be called.
    pub(crate) fn interval(&self) -> Duration {
        // Half of what it waits for, as sd_watchdog_enabled(3) recommends.
        self.watchdog
            .map_or(STATUS_INTERVAL, |watchdog| (watchdog / 2).min(STATUS_INTERVAL))
            .max(Duration::from_millis(1))
    }

    /// The service is up.
    pub(crate) fn ready(&self, status: &str) {
        self.tell(&format!("READY=1\nSTATUS={status}"));
    }

    /// The service works.
    pub(crate) fn alive(&self, status: &str) {
        let watchdog = if self.watchdog.is_some() {
            "WATCHDOG=1\n"
        } else {
            ""
        };
        self.tell(&format!("{watchdog}STATUS={status}"));
    }

    /// The service shuts down, which may take so long.
    pub(crate) fn stopping(&self, within: Duration, status: &str) {
        // A little more, so that it is us who give up.
        let patience = (within + Duration::from_secs(2)).as_micros();
        self.tell(&format!(
            "STOPPING=1\nEXTEND_TIMEOUT_USEC={patience}\nSTATUS={status}"
        ));
    }

    fn tell(&self, message: &str) {
        let Some(socket) = &self.socket else {
            return;
        };
        // It never blocks: of a manager that is busy no more is wanted than that it hears the next one.
        if let Err(error) = socket.send(message.as_bytes()) {
            tracing::debug!(%error, "the service manager was not told");
        }
    }
}

/// A path, or with `@` a name of the abstract kind.
fn connect(address: &[u8]) -> io::Result<UnixDatagram> {
    let address = match address {
        [b'@', name @ ..] => SocketAddr::from_abstract_name(name)?,
        path => SocketAddr::from_pathname(OsStr::from_bytes(path))?,
    };
    let socket = UnixDatagram::unbound()?;
    socket.set_nonblocking(true)?;
    socket.connect_addr(&address)?;
    Ok(socket)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn manager(watchdog: Option<Duration>) -> (ServiceManager, UnixDatagram) {
        let name = format!("packetflix-test-{}-{watchdog:?}", std::process::id());
        let address = SocketAddr::from_abstract_name(name.as_bytes()).unwrap();
        let theirs = UnixDatagram::bind_addr(&address).unwrap();
        let socket = Some(connect(format!("@{name}").as_bytes()).unwrap());
        (ServiceManager { socket, watchdog }, theirs)
    }

    fn heard(socket: &UnixDatagram) -> String {
        let mut message = [0; 256];
        let len = socket.recv(&mut message).unwrap();
        String::from_utf8_lossy(&message[..len]).into_owned()
    }

    #[test]
    fn tells_what_sd_notify_defines() {
        let (manager, theirs) = manager(Some(Duration::from_secs(2)));
        manager.ready("no captures");
        assert_eq!(heard(&theirs), "READY=1\nSTATUS=no captures");
        manager.alive("2 captures");
        assert_eq!(heard(&theirs), "WATCHDOG=1\nSTATUS=2 captures");
        manager.stopping(Duration::from_secs(10), "2 captures end");
        let message = "STOPPING=1\nEXTEND_TIMEOUT_USEC=12000000\nSTATUS=2 captures end";
        assert_eq!(heard(&theirs), message);
        assert_eq!(manager.interval(), Duration::from_secs(1));
    }

    #[test]
    fn watchdog_is_fed_only_where_there_is_one() {
        let (manager, theirs) = manager(None);
        manager.alive("no captures");
        assert_eq!(heard(&theirs), "STATUS=no captures");
        assert_eq!(manager.interval(), STATUS_INTERVAL);
        // Nobody is told anything.
        ServiceManager::default().ready("no captures");
    }
}
