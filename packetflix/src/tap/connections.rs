//! The TCP connections that the service has accepted, as the eBPF programs of all captures know them.
//!
//! A connection is added when it is accepted, and stays for a while after it was closed, since the kernel still sends what
//! is left. What comes before it is accepted, that is the handshake and perhaps the request, is not known as our own: it
//! feeds nothing.

use std::{
    collections::{HashMap, VecDeque},
    net::SocketAddr,
    os::fd::{AsFd as _, OwnedFd},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use aya::maps::{HashMap as KernelHash, Map, MapData, MapError};
use nix::errno::Errno;
use packetflix_common::{MAX_OWN_CONNECTIONS, OwnConnection, connections};

use crate::error::errno;

/// `BPF_MAP_TYPE_HASH` and `BPF_F_NO_PREALLOC` of `linux/bpf.h`
const HASH: u32 = 1;
const NO_PREALLOC: u32 = 1;

/// Most connections that are closed already.
const MAX_LINGERING: usize = 1024;

/// An [`OwnConnection`], as aya wants the key of a map.
#[derive(Clone, Copy)]
#[repr(transparent)]
struct Key(OwnConnection);

#[expect(unsafe_code, reason = "aya copies map keys as bytes")]
// SAFETY: `OwnConnection` is repr(C) of integers without padding, asserted where it is defined.
unsafe impl aya::Pod for Key {}

/// The connections that there are.
#[derive(Default)]
pub(super) struct Connections(Mutex<State>);

#[derive(Default)]
struct State {
    /// How often each is there: one may be opened anew while its predecessor lingers.
    known: HashMap<Connection, u32>,
    lingering: VecDeque<(Instant, Connection)>,
    lists: Option<Lists>,
}

/// Both ends of a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct Connection {
    local: SocketAddr,
    peer: SocketAddr,
}

/// A connection that is open, until this is dropped.
pub(super) struct OpenConnection {
    connections: Arc<Connections>,
    connection: Connection,
}

/// The maps of the kernel, by their places in the array that programs find them in.
struct Lists([List; connections::LISTS as usize]);

/// A map of the kernel.
struct List {
    map: KernelHash<MapData, Key, u32>,
    handle: OwnedFd,
}

impl Connections {
    /// How long the kernel may go on sending what was written before a connection was closed.
    pub(super) const LINGER: Duration = Duration::from_secs(10);

    /// A connection was accepted: its packets are our own from now on.
    pub(super) fn open(self: &Arc<Self>, local: SocketAddr, peer: SocketAddr) -> OpenConnection {
        let connection = Connection { local, peer };
        self.lock().add(connection);
        OpenConnection {
            connections: Arc::clone(self),
            connection,
        }
    }

    /// Forgets connections that have lingered long enough.
    pub(super) fn sweep(&self) {
        self.lock().sweep(Instant::now());
    }

    /// The maps of the kernel, each with its place in the array that programs find them in.
    ///
    /// # Errors
    /// When the kernel makes none.
    pub(super) fn maps(&self) -> Result<Vec<(u32, OwnedFd)>, MapError> {
        let mut state = self.lock();
        if state.lists.is_none() {
            let mut lists = Lists::create()?;
            for connection in state.known.keys() {
                lists.add(connection);
            }
            state.lists = Some(lists);
        }
        let lists = state.lists.iter().flat_map(|Lists(lists)| lists);
        let handles = lists.map(|list| list.handle.try_clone());
        let places = [connections::HERE, connections::ELSEWHERE];
        let handles = places.into_iter().zip(handles);
        handles
            .map(|(place, handle)| Ok((place, handle.map_err(MapError::IoError)?)))
            .collect()
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for OpenConnection {
    fn drop(&mut self) {
        let now = Instant::now();
        let mut state = self.connections.lock();
        state.lingering.push_back((now, self.connection));
        state.sweep(now);
    }
}

impl State {
    fn add(&mut self, connection: Connection) {
        let count = self.known.entry(connection).or_default();
        *count += 1;
        if *count == 1
            && let Some(lists) = &mut self.lists
        {
            lists.add(&connection);
        }
    }

    fn remove(&mut self, connection: &Connection) {
        let Some(count) = self.known.get_mut(connection) else {
            return;
        };
        *count -= 1;
        if *count == 0 {
            self.known.remove(connection);
            if let Some(lists) = &mut self.lists {
                lists.remove(connection);
            }
        }
    }

    fn sweep(&mut self, now: Instant) {
        while let Some((closed, connection)) = self.lingering.front().copied() {
            if now.duration_since(closed) < Connections::LINGER && self.lingering.len() <= MAX_LINGERING {
                return;
            }
            self.lingering.pop_front();
            self.remove(&connection);
        }
    }
}

impl Connection {
    /// Both directions, as they stand in packets.
    fn directions(&self) -> [OwnConnection; 2] {
        let (local, peer) = (self.local.into(), self.peer.into());
        [(local, peer), (peer, local)].map(|(source, destination)| OwnConnection { source, destination })
    }

    /// The lists that it is in: what goes over loopback is seen in no other namespace, and another's loopback is none of
    /// ours.
    fn lists(&self) -> &'static [u32] {
        match self.local.ip().to_canonical().is_loopback() {
            true => &[connections::HERE],
            false => &[connections::HERE, connections::ELSEWHERE],
        }
    }
}

impl List {
    fn create() -> Result<Self, MapError> {
        let size = size_of::<OwnConnection>() as u32;
        let map = aya_obj::Map::new_from_params(HASH, size, 4, MAX_OWN_CONNECTIONS, NO_PREALLOC);
        let map = MapData::create(map, "own", None)?;
        let handle = map.fd().as_fd().try_clone_to_owned();
        Ok(Self {
            map: Map::HashMap(map).try_into()?,
            handle: handle.map_err(MapError::IoError)?,
        })
    }
}

impl Lists {
    fn create() -> Result<Self, MapError> {
        Ok(Self([List::create()?, List::create()?]))
    }

    fn add(&mut self, connection: &Connection) {
        let Self(lists) = self;
        for list in connection.lists() {
            for direction in connection.directions() {
                if let Err(error) = lists[*list as usize].map.insert(Key(direction), 0, 0) {
                    tracing::warn!(%error, "captures may contain traffic of a connection of ours");
                }
            }
        }
    }

    fn remove(&mut self, connection: &Connection) {
        let Self(lists) = self;
        for list in connection.lists() {
            for direction in connection.directions() {
                // One that could not be added is not there.
                if let Err(error) = lists[*list as usize].map.remove(&Key(direction))
                    && errno(&error) != Some(Errno::ENOENT)
                {
                    tracing::error!(%error, "a connection that was closed stays out of captures");
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn connection(port: u16) -> Connection {
        Connection {
            local: "[::ffff:10.0.0.1]:5001".parse().unwrap(),
            peer: format!("10.0.0.2:{port}").parse().unwrap(),
        }
    }

    #[test]
    fn closed_connections_linger_and_go() {
        let connections = Arc::new(Connections::default());
        let open = |port| {
            let Connection { local, peer } = connection(port);
            connections.open(local, peer)
        };
        let first = open(1);
        drop(first);
        assert!(connections.lock().known.contains_key(&connection(1)));
        // It comes back before it has gone.
        let again = open(1);
        let later = Instant::now() + Connections::LINGER;
        connections.lock().sweep(later);
        assert_eq!(connections.lock().known, HashMap::from([(connection(1), 1)]));
        drop(again);
        connections.lock().sweep(later + Connections::LINGER);
        assert!(connections.lock().known.is_empty());
        // There is an end to what lingers.
        for port in 1..3000 {
            drop(open(port));
        }
        assert_eq!(connections.lock().known.len(), MAX_LINGERING);
        assert!(connections.lock().known.contains_key(&connection(2999)));
    }

    #[test]
    fn both_directions_are_known_in_one_form() {
        let [out, back] = connection(7).directions();
        assert_eq!((out.source, out.destination), (back.destination, back.source));
        let plain: SocketAddr = "10.0.0.1:5001".parse().unwrap();
        assert_eq!(out.source, plain.into());
        let over_loopback = Connection {
            local: "[::ffff:127.0.0.1]:5001".parse().unwrap(),
            peer: "127.0.0.1:7".parse().unwrap(),
        };
        assert_eq!(over_loopback.lists(), [connections::HERE]);
        assert_eq!(connection(7).lists().len(), 2);
    }
}
