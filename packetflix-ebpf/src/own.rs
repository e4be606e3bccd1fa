//! The service's own traffic: a capture would feed on itself if it had that.
//!
//! That must cost the others little: a packet that is not IP is let go for its `__sk_buff.protocol`, one that is not TCP after
//! a load of its IP header with the ports behind it, and connections are looked up only for a packet with our port.

use aya_ebpf::programs::sk_buff::SkBuff;
use packetflix_common::{MAX_OWN_PORTS, OwnConnection, OwnEndpoint, OwnPorts};

use crate::{
    maps::{OWN_CONNECTIONS, OWN_ENDPOINTS, OWN_PORTS},
    packet,
};

/// `linux/if_ether.h`
const ETH_P_IP: u16 = 0x0800;
const ETH_P_IPV6: u16 = 0x86dd;
/// `linux/in.h`
const IPPROTO_TCP: u8 = 6;
/// Bits of an IPv4 header: those of the offset of a fragment.
const IP_OFFMASK: u16 = 0x1fff;

/// The third word of an IPv6 address that stands for one of IPv4.
const MAPPED: u32 = 0xffff_u32.to_be();

/// The beginning of a TCP header, in network byte order.
#[repr(C)]
#[derive(Clone, Copy)]
struct Ports {
    source: u16,
    destination: u16,
}

/// An IPv4 header without options, and what follows it.
#[repr(C)]
struct Ipv4 {
    version_and_length: u8,
    service: u8,
    total_len: u16,
    id: u16,
    fragment: u16,
    time_to_live: u8,
    protocol: u8,
    checksum: u16,
    source: u32,
    destination: u32,
    ports: Ports,
}

/// An IPv6 header, and what follows it.
#[repr(C)]
struct Ipv6 {
    version_and_flow: u32,
    payload_len: u16,
    next_header: u8,
    hop_limit: u8,
    source: [u32; 4],
    destination: [u32; 4],
    ports: Ports,
}

const _: () = {
    assert!(size_of::<Ipv4>() == 24);
    assert!(size_of::<Ipv6>() == 44);
};

/// Whether the packet is of the service's own traffic: TCP from or to one of its ports, of a connection that it has
/// accepted; or, where addresses are translated, with one of its endpoints at either end.
///
/// Looks at TCP right behind an IP header: a stream in a tunnel, or with a VLAN tag within the packet, is not known.
#[inline(always)]
pub(crate) fn is_own(skb: &SkBuff, network_offset: u16) -> bool {
    let Some(own) = OwnList::get() else {
        return false;
    };
    let network = usize::from(network_offset);
    match packet::protocol(skb) {
        ETH_P_IP => is_own_ipv4(skb, network, &own),
        ETH_P_IPV6 => is_own_ipv6(skb, network, &own),
        _ => false,
    }
}

#[inline(always)]
fn is_own_ipv4(skb: &SkBuff, network: usize, own: &OwnList) -> bool {
    let Ok(header) = skb.load::<Ipv4>(network) else {
        return false;
    };
    // What follows the first fragment has no ports.
    if header.protocol != IPPROTO_TCP || u16::from_be(header.fragment) & IP_OFFMASK != 0 {
        return false;
    }
    let ports = match header.version_and_length {
        0x45 => header.ports,
        // With options.
        0x46..=0x4f => {
            let len = 4 * usize::from(header.version_and_length & 0xf);
            match skb.load(network + len) {
                Ok(ports) => ports,
                Err(_) => return false,
            }
        }
        _ => return false,
    };
    own.has_one_of(ports)
        && own.has(
            endpoint(mapped(header.source), ports.source),
            endpoint(mapped(header.destination), ports.destination),
        )
}

#[inline(always)]
fn is_own_ipv6(skb: &SkBuff, network: usize, own: &OwnList) -> bool {
    let Ok(header) = skb.load::<Ipv6>(network) else {
        return false;
    };
    let ports = header.ports;
    header.next_header == IPPROTO_TCP
        && own.has_one_of(ports)
        && own.has(
            endpoint(header.source, ports.source),
            endpoint(header.destination, ports.destination),
        )
}

#[inline(always)]
fn mapped(address: u32) -> [u32; 4] {
    [0, 0, MAPPED, address]
}

#[inline(always)]
fn endpoint(address: [u32; 4], port: u16) -> OwnEndpoint {
    let mut octets = [0; 16];
    let (words, _) = octets.as_chunks_mut::<4>();
    for (word, four) in address.into_iter().zip(words) {
        *four = word.to_ne_bytes();
    }
    OwnEndpoint::new(octets, port)
}

/// The ports of own traffic, one at least.
struct OwnList {
    list: *const OwnPorts,
    count: u32,
}

impl OwnList {
    #[inline(always)]
    fn get() -> Option<Self> {
        let list = OWN_PORTS.get_ptr(0)?;
        // SAFETY: the element of an array is there as long as the program. Volatile, since user space changes it
        // meanwhile.
        #[expect(unsafe_code, reason = "a map hands out raw pointers")]
        let count = unsafe { (&raw const (*list).count).read_volatile() };
        (count != 0).then_some(Self { list, count })
    }

    /// Whether a packet between these endpoints, one of which has a port of ours, is our own.
    #[inline(always)]
    fn has(&self, source: OwnEndpoint, destination: OwnEndpoint) -> bool {
        // SAFETY: as above.
        #[expect(unsafe_code, reason = "a map hands out raw pointers")]
        let (list, endpoints) = unsafe {
            (
                (&raw const (*self.list).connections).read_volatile(),
                (&raw const (*self.list).endpoints).read_volatile(),
            )
        };
        let connection = OwnConnection { source, destination };
        if OWN_CONNECTIONS.get_value_ptr_mut(list, &connection).is_some() {
            return true;
        }
        endpoints != 0
            && (OWN_ENDPOINTS.get_ptr(source).is_some() || OWN_ENDPOINTS.get_ptr(destination).is_some())
    }

    #[inline(always)]
    fn has_one_of(&self, ports: Ports) -> bool {
        const { assert!(MAX_OWN_PORTS == 8) };
        // No loop: verifiers before Linux 6.8 do not see that the one that is made of it ends.
        macro_rules! is_one_of {
            ($($index:literal),+) => {{
                $(
                    if self.count <= $index {
                        return false;
                    }
                    // SAFETY: as above, and the index is one of the array's.
                    #[expect(unsafe_code, reason = "a map hands out raw pointers")]
                    let own = unsafe { (&raw const (*self.list).ports[$index]).read_volatile() };
                    if own == ports.source || own == ports.destination {
                        return true;
                    }
                )+
                false
            }};
        }
        is_one_of!(0, 1, 2, 3, 4, 5, 6, 7)
    }
}
