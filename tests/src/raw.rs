//! Sends frames as they are, through a packet socket.

#![expect(unsafe_code, reason = "no crate of ours makes the address of a packet socket")]

use std::{
    fs::File,
    io::{self, IoSlice, Read as _, Write as _},
    mem::size_of,
    net::Ipv4Addr,
    os::fd::AsRawFd as _,
};

use anyhow::Context as _;
use nix::{
    libc,
    net::if_::if_nametoindex,
    sys::socket::{LinkAddr, MsgFlags, MultiHeaders, sendmmsg},
};
use socket2::{Domain, SockAddr, SockAddrStorage, Socket, Type};

use crate::namespace::Namespace;

/// Bytes before the payload of an IPv4 packet with UDP.
pub const HEADERS_LEN: usize = 42;

/// Packets handed to the kernel with one call.
const AT_ONCE: usize = 64;

/// A packet socket bound to one interface.
pub struct RawSocket {
    socket: Socket,
}

impl RawSocket {
    /// Opens one in `namespace`.
    ///
    /// # Errors
    /// When there is no such interface.
    pub fn open(namespace: &Namespace, interface: &str) -> anyhow::Result<Self> {
        namespace.inside(|| Self::open_here(interface))?
    }

    /// Opens one in the calling thread's namespace.
    ///
    /// # Errors
    /// When there is no such interface.
    pub fn open_here(interface: &str) -> anyhow::Result<Self> {
        let ifindex = if_nametoindex(interface).with_context(|| format!("no interface {interface}"))?;
        let ifindex = i32::try_from(ifindex)?;
        let socket = Socket::new(Domain::PACKET, Type::RAW, None)?;
        let mut storage = SockAddrStorage::zeroed();
        // SAFETY: every bit pattern is a valid `sockaddr_ll`, all of whose fields are integers.
        let address = unsafe { storage.view_as::<libc::sockaddr_ll>() };
        address.sll_family = u16::try_from(libc::AF_PACKET)?;
        address.sll_ifindex = ifindex;
        let len = libc::socklen_t::try_from(size_of::<libc::sockaddr_ll>())?;
        // SAFETY: the storage was zeroed and then filled as a `sockaddr_ll`, whose length is given.
        socket.bind(&unsafe { SockAddr::new(storage, len) })?;
        Ok(Self { socket })
    }

    /// Sends one frame.
    ///
    /// # Errors
    /// When the kernel does not take it.
    pub fn send(&self, frame: &[u8]) -> io::Result<()> {
        self.socket.send(frame).map(drop)
    }

    /// Sends `frame` `count` times, as fast as the kernel takes it, with a running number of 8 bytes at
    /// offset `number_at`.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn flood(&self, frame: &[u8], count: u64, number_at: usize) -> anyhow::Result<()> {
        let mut frames = vec![frame.to_vec(); AT_ONCE];
        let mut batch = self.batch(AT_ONCE);
        let mut sent = 0;
        while sent < count {
            let now = usize::try_from(count - sent)?.min(AT_ONCE);
            for (number, frame) in (sent..).zip(&mut frames[..now]) {
                frame[number_at..number_at + 8].copy_from_slice(&number.to_be_bytes());
            }
            sent += batch.send(&frames[..now])? as u64;
        }
        Ok(())
    }

    /// For handing as many as `most` frames to the kernel with one call.
    pub fn batch(&self, most: usize) -> Batch<'_> {
        Batch {
            socket: &self.socket,
            headers: MultiHeaders::preallocate(most, None),
            nowhere: vec![None; most],
        }
    }
}

/// What sending several frames at once needs.
pub struct Batch<'a> {
    socket: &'a Socket,
    headers: MultiHeaders<LinkAddr>,
    /// The socket is bound: frames need no addresses.
    nowhere: Vec<Option<LinkAddr>>,
}

impl Batch<'_> {
    /// Sends frames, and tells how many were taken.
    ///
    /// # Errors
    /// When the kernel takes none.
    pub fn send(&mut self, frames: &[Vec<u8>]) -> anyhow::Result<usize> {
        let slices: Vec<[IoSlice<'_>; 1]> = frames.iter().map(|frame| [IoSlice::new(frame)]).collect();
        let results = sendmmsg(
            self.socket.as_raw_fd(),
            &mut self.headers,
            &slices,
            &self.nowhere[..frames.len()],
            [],
            MsgFlags::empty(),
        )?;
        Ok(results.count())
    }
}

/// MAC address that frames of tests are from.
pub const SOURCE_MAC: [u8; 6] = [0x02, 0, 0, 0, 0, 0x51];
/// MAC address that frames of tests are for: nobody's.
pub const TARGET_MAC: [u8; 6] = [0x02, 0, 0, 0, 0, 0x52];

/// An Ethernet frame.
pub fn ethernet(ether_type: u16, payload: &[u8]) -> Vec<u8> {
    [&TARGET_MAC[..], &SOURCE_MAC, &ether_type.to_be_bytes(), payload].concat()
}

/// An IPv4 packet with UDP, from `10.9.9.1` to `10.9.9.2`.
pub fn ipv4_udp(payload: &[u8]) -> Vec<u8> {
    let udp = udp(payload);
    let total = (20 + udp.len()) as u16;
    let mut head = vec![0x45, 0];
    head.extend(total.to_be_bytes());
    head.extend([0, 1, 0, 0, 64, 17, 0, 0]);
    head.extend(Ipv4Addr::new(10, 9, 9, 1).octets());
    head.extend(Ipv4Addr::new(10, 9, 9, 2).octets());
    let sum = checksum(&head);
    head[10..12].copy_from_slice(&sum.to_be_bytes());
    [head, udp].concat()
}

/// An IPv6 packet with UDP.
pub fn ipv6_udp(payload: &[u8]) -> Vec<u8> {
    let udp = udp(payload);
    let mut head = vec![0x60, 0, 0, 0];
    head.extend((udp.len() as u16).to_be_bytes());
    head.extend([17, 64]);
    for host in [1u8, 2] {
        head.extend([0xfd, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, host]);
    }
    [head, udp].concat()
}

/// An ARP request of IPv4 over Ethernet.
pub fn arp() -> Vec<u8> {
    let mut arp = vec![0, 1, 8, 0, 6, 4, 0, 1];
    arp.extend(SOURCE_MAC);
    arp.extend([10, 9, 9, 1, 0, 0, 0, 0, 0, 0, 10, 9, 9, 2]);
    arp
}

/// Puts a VLAN tag before an EtherType and payload.
pub fn vlan(tci: u16, ether_type: u16, payload: &[u8]) -> Vec<u8> {
    [&tci.to_be_bytes()[..], &ether_type.to_be_bytes(), payload].concat()
}

fn udp(payload: &[u8]) -> Vec<u8> {
    let mut udp = vec![0x30, 0x39, 0x30, 0x3a];
    udp.extend(((8 + payload.len()) as u16).to_be_bytes());
    udp.extend([0, 0]);
    udp.extend(payload);
    udp
}

/// Checksum of an IPv4 header.
pub(crate) fn checksum(head: &[u8]) -> u16 {
    let sum: u32 = head
        .chunks(2)
        .map(|pair| u32::from(u16::from_be_bytes([pair[0], pair[1]])))
        .sum();
    !(((sum & 0xffff) + (sum >> 16)) as u16)
}

/// A tun device that this process holds: what its namespace sends comes to be read, what is written arrives.
pub struct Tun {
    file: File,
}

impl Tun {
    /// Makes one in `namespace`.
    ///
    /// # Errors
    /// When the kernel has no tun devices.
    pub fn open(namespace: &Namespace, name: &str) -> anyhow::Result<Self> {
        nix::ioctl_write_ptr_bad!(set_interface, libc::TUNSETIFF, libc::ifreq);

        let file = namespace.inside(|| {
            let mut request = libc::ifreq {
                ifr_name: [0; libc::IFNAMSIZ],
                ifr_ifru: libc::__c_anonymous_ifr_ifru {
                    ifru_flags: i16::try_from(libc::IFF_TUN | libc::IFF_NO_PI)?,
                },
            };
            for (to, from) in request.ifr_name[..libc::IFNAMSIZ - 1]
                .iter_mut()
                .zip(name.bytes())
            {
                *to = from as libc::c_char;
            }
            let file = File::options().read(true).write(true).open("/dev/net/tun")?;
            // SAFETY: the request is an `ifreq` whose name ends with a zero.
            unsafe { set_interface(file.as_raw_fd(), &raw const request) }?;
            anyhow::Ok(file)
        })??;
        Ok(Self { file })
    }

    /// Makes it pass for another kind of hardware (`linux/if_arp.h`); it must be down.
    ///
    /// # Errors
    /// When it is up.
    pub fn set_hardware_type(&self, hardware_type: u16) -> anyhow::Result<()> {
        nix::ioctl_write_int_bad!(set_link, libc::TUNSETLINK as libc::Ioctl);

        // SAFETY: the request takes a number.
        unsafe { set_link(self.file.as_raw_fd(), i32::from(hardware_type)) }?;
        Ok(())
    }

    /// What the namespace sent: one packet.
    ///
    /// # Errors
    /// When the device is gone.
    pub fn read(&mut self) -> io::Result<Vec<u8>> {
        let mut packet = vec![0; 65_536];
        let len = self.file.read(&mut packet)?;
        packet.truncate(len);
        Ok(packet)
    }

    /// Lets one packet arrive.
    ///
    /// # Errors
    /// When the device is down.
    pub fn write(&mut self, packet: &[u8]) -> io::Result<()> {
        self.file.write_all(packet)
    }
}
