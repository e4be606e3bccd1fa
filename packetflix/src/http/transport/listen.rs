//! The sockets that the service listens at.

use std::{
    fmt,
    future::pending,
    io,
    net::{self as net_tcp, IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, ToSocketAddrs as _, UdpSocket},
    os::{
        fd::{AsFd as _, OwnedFd},
        unix::{
            fs::{FileTypeExt as _, MetadataExt as _},
            net,
        },
    },
    path::{Path, PathBuf},
};

use nix::sys::stat::{Mode, fchmod};
use socket2::{Domain, Protocol, SockAddr, Socket, Type};
use tokio::{
    net::{TcpListener, TcpStream, UnixListener, UnixStream},
    sync::{Mutex, mpsc},
};

use crate::{config::ListenAddress, service::Peer};

const BACKLOG: i32 = 1024;

/// Who may connect to a Unix socket: the service's user, and root.
const UNIX_MODE: Mode = Mode::S_IRUSR.union(Mode::S_IWUSR);

/// Why there is no socket to listen at.
#[derive(Debug, thiserror::Error)]
pub enum ListenError {
    /// It cannot be opened.
    #[error("cannot listen on {address}")]
    Unusable {
        /// Where.
        address: ListenAddress,
        /// Why.
        source: io::Error,
    },
    /// Others than this host would reach it, and nobody is asked who they are.
    #[error(
        "not listening on {address}: whoever reaches it could capture all traffic of this host, since nobody is asked who \
         they are; ask for tokens with --token-file or for certificates with --tls-client-ca, or say --open-to-everyone"
    )]
    Open {
        /// Where.
        address: ListenAddress,
    },
}

/// A socket that is listened at.
#[derive(Debug)]
pub(crate) enum Listener {
    Tcp(TcpListener),
    Unix(UnixListener, SocketFile),
    /// None: connections are made within this process.
    Own(Mutex<mpsc::Receiver<net::UnixStream>>),
}

/// Makes connections to a server of this process, at which nobody else can connect.
#[derive(Clone, Debug)]
pub struct Dialer(mpsc::Sender<net::UnixStream>);

impl Bound {
    /// Address and port, of a TCP socket.
    fn tcp_address(&self) -> Option<SocketAddr> {
        match self {
            Self::Tcp(socket) => socket.local_addr().ok(),
            Self::Unix(..) => None,
        }
    }
}

impl Dialer {
    /// Makes one. Must be called within a tokio runtime.
    ///
    /// # Errors
    /// When the server has ended, or does not take what was made before.
    pub fn dial(&self) -> io::Result<UnixStream> {
        let (ours, theirs) = net::UnixStream::pair()?;
        for end in [&ours, &theirs] {
            end.set_nonblocking(true)?;
        }
        self.0
            .try_send(theirs)
            .map_err(|_| io::ErrorKind::ConnectionRefused)?;
        UnixStream::from_std(ours)
    }
}

/// Where connections are made within this process, and how.
pub(crate) fn own() -> (Listener, Dialer) {
    /// Most connections that wait to be accepted.
    const BACKLOG: usize = 16;

    let (dialer, dialed) = mpsc::channel(BACKLOG);
    (Listener::Own(Mutex::new(dialed)), Dialer(dialer))
}

/// What has been accepted.
pub(crate) enum Accepted {
    Tcp(TcpStream),
    Unix(UnixStream),
}

impl Listener {
    /// The next connection, and who is at its other end.
    ///
    /// # Errors
    /// When there can be none, for want of descriptors for one.
    pub(crate) async fn accept(&self) -> io::Result<(Accepted, Peer)> {
        match self {
            Self::Tcp(listener) => {
                let (stream, peer) = listener.accept().await?;
                Ok((Accepted::Tcp(stream), Peer::Tcp(peer)))
            }
            Self::Unix(listener, _) => {
                let (stream, _) = listener.accept().await?;
                accepted_unix(stream)
            }
            Self::Own(dialed) => match dialed.lock().await.recv().await {
                Some(stream) => accepted_unix(UnixStream::from_std(stream)?),
                None => pending().await,
            },
        }
    }

    /// Address and port, of a TCP socket.
    pub(crate) fn tcp_address(&self) -> Option<SocketAddr> {
        match self {
            Self::Tcp(listener) => listener.local_addr().ok(),
            Self::Unix(..) | Self::Own(_) => None,
        }
    }
}

impl fmt::Display for Listener {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tcp(listener) => match listener.local_addr() {
                Ok(address) => write!(f, "{address}"),
                Err(error) => write!(f, "unknown ({error})"),
            },
            Self::Unix(_, file) => write!(f, "unix:{}", file.path.display()),
            Self::Own(_) => f.write_str("this process"),
        }
    }
}

fn accepted_unix(stream: UnixStream) -> io::Result<(Accepted, Peer)> {
    let user = stream.peer_cred()?.uid();
    Ok((Accepted::Unix(stream), Peer::Unix(user)))
}

/// Sockets that are bound, and listened at.
#[derive(Debug, Default)]
pub(crate) struct Sockets {
    bound: Vec<Bound>,
    /// That of ours which there is not, and why.
    missing: Option<(ListenAddress, io::Error)>,
}

/// One of them.
#[derive(Debug)]
enum Bound {
    Tcp(net_tcp::TcpListener),
    Unix(net::UnixListener, SocketFile),
}

impl Sockets {
    /// Opens the sockets of all addresses, which have to be this host's own if `only_here`.
    ///
    /// # Errors
    /// When one is taken, not allowed, or not known; or when others could reach it who may not.
    pub(crate) fn open(addresses: &[ListenAddress], only_here: bool) -> Result<Self, ListenError> {
        listen(addresses, only_here)
    }

    /// Closes them, as for who has copies of them.
    pub(crate) fn close(&mut self) {
        self.leave_files();
        self.bound.clear();
    }

    /// The files of Unix sockets, for who can remove them.
    pub(crate) fn files(&self) -> Vec<SocketFile> {
        let files = self.bound.iter().filter_map(|bound| match bound {
            Bound::Unix(_, file) => Some(file.clone()),
            Bound::Tcp(_) => None,
        });
        files.collect()
    }

    /// Has others remove the files of Unix sockets.
    pub(crate) fn leave_files(&mut self) {
        for bound in &mut self.bound {
            if let Bound::Unix(_, file) = bound {
                file.is_left = true;
            }
        }
    }

    /// Accepts connections there, and logs where that cannot be. Must be called within a tokio runtime.
    ///
    /// # Errors
    /// When they cannot be waited for.
    pub(crate) fn listeners(self) -> io::Result<Vec<Listener>> {
        if let Some((address, error)) = self.missing {
            tracing::warn!(%address, %error, "there is no Unix socket: only loopback is listened at");
        }
        let listeners = self.bound.into_iter().map(|bound| match bound {
            Bound::Tcp(socket) => Ok(Listener::Tcp(TcpListener::from_std(socket)?)),
            Bound::Unix(socket, file) => Ok(Listener::Unix(UnixListener::from_std(socket)?, file)),
        });
        listeners.collect()
    }
}

fn listen(addresses: &[ListenAddress], only_here: bool) -> Result<Sockets, ListenError> {
    let mut sockets = Sockets::default();
    for address in addresses {
        match listen_at(address, only_here) {
            Ok(Opened::Listeners(opened)) => sockets.bound.extend(opened),
            Ok(Opened::Reachable) => {
                let address = address.clone();
                return Err(ListenError::Open { address });
            }
            Err(error) if matches!(address, ListenAddress::OwnSocket(_)) => {
                sockets.missing = Some((address.clone(), error));
            }
            Err(source) => {
                let address = address.clone();
                return Err(ListenError::Unusable { address, source });
            }
        }
    }
    Ok(sockets)
}

/// What became of an address.
enum Opened {
    Listeners(Vec<Bound>),
    /// Nothing: others would reach it.
    Reachable,
}

fn listen_at(address: &ListenAddress, only_here: bool) -> io::Result<Opened> {
    let listeners = match address {
        ListenAddress::All(_) if only_here => return Ok(Opened::Reachable),
        ListenAddress::All(port) => vec![bind_all(*port)?],
        ListenAddress::Loopback(port) => bind_loopback(*port)?,
        ListenAddress::Host(host, port) => {
            let mut found: Vec<SocketAddr> = (&**host, *port).to_socket_addrs()?.collect();
            if only_here && found.iter().any(|address| is_reachable(address.ip())) {
                return Ok(Opened::Reachable);
            }
            found.sort_unstable();
            found.dedup();
            let bound = found.into_iter().map(|address| bind(address, true));
            bound.collect::<io::Result<_>>()?
        }
        ListenAddress::Unix(path) | ListenAddress::OwnSocket(path) => vec![bind_unix(path)?],
    };
    Ok(Opened::Listeners(listeners))
}

/// For both kinds of loopback, at one port; for one alone where there is no other. A port that the kernel may choose is
/// chosen for the one, and may be taken for the other.
fn bind_loopback(port: u16) -> io::Result<Vec<Bound>> {
    /// How many ports are tried.
    const TRIES: usize = 16;

    let mut taken = io::Error::from(io::ErrorKind::AddrInUse);
    for _ in 0..TRIES {
        let first = bind(SocketAddr::from((Ipv4Addr::LOCALHOST, port)), true);
        let chosen = first.as_ref().ok().and_then(Bound::tcp_address);
        let chosen = chosen.map_or(port, |address| address.port());
        let second = bind(SocketAddr::from((Ipv6Addr::LOCALHOST, chosen)), true);
        match (first, second) {
            (Ok(first), Ok(second)) => return Ok(vec![first, second]),
            (Ok(one), Err(error)) | (Err(error), Ok(one)) if is_missing(&error) => return Ok(vec![one]),
            (Ok(_), Err(error)) if port == 0 && error.kind() == io::ErrorKind::AddrInUse => taken = error,
            (Err(error), _) | (_, Err(error)) => return Err(error),
        }
    }
    Err(taken)
}

/// Whether the machine has no such addresses.
fn is_missing(error: &io::Error) -> bool {
    matches!(
        error.raw_os_error(),
        Some(nix::libc::EAFNOSUPPORT | nix::libc::EADDRNOTAVAIL)
    )
}

/// For IPv4 and IPv6; for IPv4 alone where there is no IPv6.
fn bind_all(port: u16) -> io::Result<Bound> {
    let dual = SocketAddr::from((Ipv6Addr::UNSPECIFIED, port));
    bind(dual, false).or_else(|error| match is_missing(&error) {
        true => bind(SocketAddr::from((Ipv4Addr::UNSPECIFIED, port)), true),
        false => Err(error),
    })
}

fn bind(address: SocketAddr, only_v6: bool) -> io::Result<Bound> {
    let socket = Socket::new(Domain::for_address(address), Type::STREAM, Some(Protocol::TCP))?;
    if address.is_ipv6() {
        socket.set_only_v6(only_v6)?;
    }
    socket.set_reuse_address(true)?;
    socket.set_nonblocking(true)?;
    socket.bind(&address.into())?;
    socket.listen(BACKLOG)?;
    Ok(Bound::Tcp(socket.into()))
}

fn bind_unix(path: &Path) -> io::Result<Bound> {
    remove_stale(path)?;
    let socket = Socket::new(Domain::UNIX, Type::STREAM, None)?;
    socket.set_nonblocking(true)?;
    // The file gets the permissions that the socket has: there is no time at which others could connect.
    fchmod(socket.as_fd(), UNIX_MODE)?;
    socket.bind(&SockAddr::unix(path)?)?;
    let file = SocketFile::of(path)?;
    socket.listen(BACKLOG)?;
    Ok(Bound::Unix(OwnedFd::from(socket).into(), file))
}

/// Removes the socket of a service that has ended. Anything else stays, and so does a socket that is listened at.
fn remove_stale(path: &Path) -> io::Result<()> {
    match path.symlink_metadata() {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(error) => Err(error),
        Ok(metadata) if !metadata.file_type().is_socket() => Err(io::Error::new(
            io::ErrorKind::AlreadyExists,
            "there is something else at its path",
        )),
        Ok(_) => match net::UnixStream::connect(path) {
            Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => std::fs::remove_file(path),
            Err(error) => Err(error),
            Ok(_) => Err(io::Error::new(
                io::ErrorKind::AddrInUse,
                "another service listens at it",
            )),
        },
    }
}

/// The file of a Unix socket, removed when dropped, if it still is the same.
#[derive(Clone, Debug)]
pub(crate) struct SocketFile {
    path: PathBuf,
    device: u64,
    inode: u64,
    /// Whether another process removes it.
    is_left: bool,
}

impl SocketFile {
    fn of(path: &Path) -> io::Result<Self> {
        let metadata = path.symlink_metadata()?;
        Ok(Self {
            path: path.to_owned(),
            device: metadata.dev(),
            inode: metadata.ino(),
            is_left: false,
        })
    }
}

impl Drop for SocketFile {
    fn drop(&mut self) {
        if self.is_left {
            return;
        }
        let is_same =
            |metadata: std::fs::Metadata| (metadata.dev(), metadata.ino()) == (self.device, self.inode);
        if self.path.symlink_metadata().is_ok_and(is_same)
            && let Err(error) = std::fs::remove_file(&self.path)
        {
            tracing::warn!(path = %self.path.display(), %error, "the Unix socket could not be removed");
        }
    }
}

/// Whether others than this host may reach an address.
pub(crate) fn is_reachable(address: IpAddr) -> bool {
    !address.to_canonical().is_loopback()
}

/// Whether a connection to `address` comes to a socket that listens at `our`.
pub(crate) fn leads_to(address: SocketAddr, our: SocketAddr) -> bool {
    let to = match address.ip().to_canonical() {
        IpAddr::V4(any) if any.is_unspecified() => Ipv4Addr::LOCALHOST.into(),
        IpAddr::V6(any) if any.is_unspecified() => Ipv6Addr::LOCALHOST.into(),
        ip => ip,
    };
    let at = our.ip().to_canonical();
    let takes_all = at.is_unspecified() && (at.is_ipv6() || to.is_ipv4());
    address.port() == our.port() && (at == to || (takes_all && is_of_this_host(to)))
}

/// Whether an address is one of this host's: what is sent there comes from there.
fn is_of_this_host(ip: IpAddr) -> bool {
    let any: IpAddr = match ip {
        IpAddr::V4(_) => Ipv4Addr::UNSPECIFIED.into(),
        IpAddr::V6(_) => Ipv6Addr::UNSPECIFIED.into(),
    };
    // Nothing is sent.
    let source = || {
        let socket = UdpSocket::bind((any, 0))?;
        socket.connect((ip, 9))?;
        io::Result::Ok(socket.local_addr()?.ip())
    };
    ip.is_loopback() || source().is_ok_and(|source| source == ip)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn whoever_is_asked_may_be_ourselves() {
        for (address, our, is_ours) in [
            ("127.0.0.1:5001", "127.0.0.1:5001", true),
            ("127.0.0.1:5000", "127.0.0.1:5001", false),
            ("127.0.0.2:5001", "127.0.0.1:5001", false),
            ("127.0.0.2:5001", "0.0.0.0:5001", true),
            ("127.0.0.1:5001", "[::]:5001", true),
            ("[::ffff:127.0.0.1]:5001", "127.0.0.1:5001", true),
            ("0.0.0.0:5001", "127.0.0.1:5001", true),
            ("[::1]:5001", "[::]:5001", true),
            ("[::1]:5001", "0.0.0.0:5001", false),
            ("192.0.2.7:5001", "[::]:5001", false),
        ] {
            let [to, at] = [address, our].map(|text| text.parse().unwrap());
            assert_eq!(leads_to(to, at), is_ours, "{address} {our}");
        }
    }

    #[test]
    fn loopback_has_one_port() {
        let listeners = listen(&[ListenAddress::Loopback(0)], true).unwrap();
        let addresses: Vec<SocketAddr> = listeners.bound.iter().filter_map(Bound::tcp_address).collect();
        assert!(!addresses.is_empty() && addresses.iter().all(|address| address.ip().is_loopback()));
        let port = addresses[0].port();
        assert!(port != 0 && addresses.iter().all(|address| address.port() == port));
        // What is taken is not left out.
        let error = listen(&[ListenAddress::Loopback(port)], true).unwrap_err();
        assert!(matches!(error, ListenError::Unusable { .. }), "{error}");
    }

    #[test]
    fn what_others_would_reach_is_not_opened_by_oversight() {
        let host = |host: &str| ListenAddress::Host(host.to_owned(), 0);
        for address in [
            ListenAddress::All(0),
            host("0.0.0.0"),
            host("::ffff:0.0.0.0"),
            host("192.0.2.1"),
        ] {
            let error = listen(std::slice::from_ref(&address), true).unwrap_err();
            assert!(matches!(error, ListenError::Open { .. }), "{address}: {error}");
            let sentence = error.to_string();
            assert!(sentence.contains("--open-to-everyone") && sentence.contains("--token-file"));
        }
        for address in [host("127.0.0.1"), host("127.8.9.1"), host("localhost")] {
            assert!(listen(&[address], true).is_ok());
        }
        assert!(listen(&[ListenAddress::All(0)], false).is_ok());
    }

    #[test]
    fn a_socket_that_nobody_asked_for_is_done_without() {
        let path = PathBuf::from("/proc/packetflix.sock");
        assert!(
            listen(&[ListenAddress::OwnSocket(path.clone())], true)
                .unwrap()
                .missing
                .is_some()
        );
        assert!(listen(&[ListenAddress::Unix(path)], true).is_err());
    }

    #[tokio::test]
    async fn unix_sockets_are_ours_alone_and_leave_nothing() {
        let path = std::env::temp_dir().join(format!("packetflix-listen-{}", std::process::id()));
        let address = [ListenAddress::Unix(path.clone())];
        let first = listen(&address, true).unwrap();
        assert_eq!(path.symlink_metadata().unwrap().mode() & 0o777, 0o600);
        let error = crate::error::chain(&listen(&address, true).unwrap_err());
        assert!(
            error.contains("another service listens at it") && error.contains("unix:/"),
            "{error}"
        );
        // A socket that nobody listens at any more is replaced, and only what is ours is removed.
        let stale = path.with_extension("stale");
        std::fs::rename(&path, &stale).unwrap();
        drop(first);
        assert!(stale.exists());
        std::fs::rename(&stale, &path).unwrap();
        let second = listen(&address, true).unwrap();
        UnixStream::connect(&path).await.unwrap();
        drop(second);
        assert!(!path.exists());
        std::fs::write(&path, "kept").unwrap();
        let error = crate::error::chain(&listen(&address, true).unwrap_err());
        assert!(error.contains("something else"), "{error}");
        assert_eq!(std::fs::read(&path).unwrap(), b"kept");
        std::fs::remove_file(&path).unwrap();
    }
}
