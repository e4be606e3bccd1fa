//! What of the traffic is the service's own, as the programs know it.

use core::{
    mem::{offset_of, size_of},
    net::{IpAddr, SocketAddr},
};

/// How many ports can be our own at a time.
pub const MAX_OWN_PORTS: usize = 8;

/// How many endpoints can be our own at a time.
pub const MAX_OWN_ENDPOINTS: u32 = 4096;

/// How many connections the service can know as its own at a time, in both directions.
pub const MAX_OWN_CONNECTIONS: u32 = 16_384;

/// Places of the lists of connections in their array.
pub mod connections {
    /// Those that are seen in the service's own network namespace: all.
    pub const HERE: u32 = 0;
    /// Those that may be seen in other network namespaces: all but those over loopback.
    pub const ELSEWHERE: u32 = 1;
    /// How many there are.
    pub const LISTS: u32 = 2;
}

/// What is own traffic of a capture: TCP from or to one of these ports is looked at more closely.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct OwnPorts {
    /// How many of `ports` are to be compared with: none when nothing is our own.
    pub count: u32,
    /// Which list of connections counts: one of [`connections`].
    pub connections: u32,
    /// How many endpoints there are: with none, nothing but those connections is own.
    pub endpoints: u32,
    /// In network byte order, as they stand in a packet; 0 where there is none.
    pub ports: [u16; MAX_OWN_PORTS],
}

/// One direction of a TCP connection that the service has accepted.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct OwnConnection {
    /// Where its packets come from.
    pub source: OwnEndpoint,
    /// Where they go.
    pub destination: OwnEndpoint,
}

/// One end of own traffic: of a connection; or, where addresses are translated, what the service is called elsewhere, or a
/// client of it.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct OwnEndpoint {
    /// An IPv6 address; one of IPv4 as `::ffff:a.b.c.d`.
    pub address: [u8; 16],
    /// In network byte order, as it stands in a packet.
    pub port: u16,
    /// Keeps the layout free of implicit padding, and is always 0.
    pub reserved: u16,
}

const _: () = {
    assert!(size_of::<OwnPorts>() == 28);
    assert!(offset_of!(OwnPorts, count) == 0);
    assert!(offset_of!(OwnPorts, connections) == 4);
    assert!(offset_of!(OwnPorts, endpoints) == 8);
    assert!(offset_of!(OwnPorts, ports) == 12);
    assert!(size_of::<OwnConnection>() == 40);
    assert!(offset_of!(OwnConnection, source) == 0);
    assert!(offset_of!(OwnConnection, destination) == 20);
    assert!(size_of::<OwnEndpoint>() == 20);
    assert!(offset_of!(OwnEndpoint, address) == 0);
    assert!(offset_of!(OwnEndpoint, port) == 16);
    assert!(offset_of!(OwnEndpoint, reserved) == 18);
};

impl OwnEndpoint {
    /// Of an IPv6 address, or one that stands for one of IPv4; the port is in network byte order.
    #[inline(always)]
    pub const fn new(address: [u8; 16], port: u16) -> Self {
        Self {
            address,
            port,
            reserved: 0,
        }
    }
}

impl From<SocketAddr> for OwnEndpoint {
    fn from(endpoint: SocketAddr) -> Self {
        let address = match endpoint.ip() {
            IpAddr::V4(address) => address.to_ipv6_mapped(),
            IpAddr::V6(address) => address,
        };
        Self::new(address.octets(), endpoint.port().to_be())
    }
}

#[cfg(test)]
mod tests {
    extern crate std;

    use std::net::{Ipv6Addr, SocketAddrV6};

    use super::*;

    fn endpoint(text: &str) -> OwnEndpoint {
        text.parse::<SocketAddr>().unwrap().into()
    }

    #[test]
    fn lies_in_memory_as_in_a_packet() {
        let endpoint = endpoint("10.1.2.3:5001");
        #[expect(unsafe_code, reason = "the layout is held against what the programs look up")]
        // SAFETY: the struct is repr(C), has no padding (asserted above), and any byte is a valid u8.
        let memory: [u8; 20] = unsafe { core::mem::transmute(endpoint) };
        assert_eq!(
            memory,
            [
                0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff, 10, 1, 2, 3, 0x13, 0x89, 0, 0
            ]
        );
    }

    #[test]
    fn ipv4_is_the_same_in_either_form() {
        assert_eq!(endpoint("10.1.2.3:80"), endpoint("[::ffff:10.1.2.3]:80"));
        assert_ne!(endpoint("10.1.2.3:80"), endpoint("[::10.1.2.3]:80"));
        assert_ne!(endpoint("10.1.2.3:80"), endpoint("10.1.2.3:81"));
    }

    #[test]
    fn scope_of_an_address_does_not_count() {
        let of_scope = |scope| {
            let address = Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, 1);
            OwnEndpoint::from(SocketAddr::V6(SocketAddrV6::new(address, 80, 0, scope)))
        };
        assert_eq!(of_scope(0), of_scope(7));
    }
}
