//! What was left to a device when a packet was captured, as far as the packet itself shows it.

use crate::pcapng::LinkType;

const ETHER_HEADER: usize = 14;
/// `linux/if_ether.h`
const ETH_P_8021Q: u16 = 0x8100;
const ETH_P_8021AD: u16 = 0x88a8;
/// `linux/in.h`
const IPPROTO_TCP: u8 = 6;
const IPPROTO_UDP: u8 = 17;

/// Whether the checksum of TCP or UDP is still the sum of the pseudo-header, to which the device adds that of the rest
/// (`CHECKSUM_PARTIAL` of `linux/skbuff.h`).
///
/// One in 65,536 packets has such a checksum by chance, though it is ready. A fragment, and what is behind an extension
/// header of IPv6 or in a tunnel, is not looked at.
pub(super) fn checksum_is_partial(link_type: LinkType, packet: &[u8], original_len: u32) -> bool {
    partial_checksum(link_type, packet, original_len).unwrap_or(false)
}

fn partial_checksum(link_type: LinkType, packet: &[u8], original_len: u32) -> Option<bool> {
    let network = network_offset(link_type, packet)?;
    let ip = packet.get(network..)?;
    // As long as the packet was, where its header cannot say so: those of large super-packets have a length of zero.
    let whole = original_len.checked_sub(network as u32)?;
    let (pseudo, header_len) = match ip.first()? >> 4 {
        4 => ipv4(ip, whole)?,
        6 => ipv6(ip, whole)?,
        _ => return None,
    };
    let transport = ip.get(header_len..)?;
    let at = match pseudo.protocol {
        IPPROTO_TCP => 16,
        IPPROTO_UDP => 6,
        _ => return None,
    };
    let checksum = word(transport, at)?;
    Some(checksum != 0 && checksum == pseudo.sum())
}

fn network_offset(link_type: LinkType, packet: &[u8]) -> Option<usize> {
    match link_type {
        // What cooked mode puts a header before is IP without one.
        LinkType::Raw | LinkType::LinuxSll => Some(0),
        LinkType::Ethernet => {
            // A tag may be in the packet, and another beside it.
            let tags = match word(packet, 12)? {
                ETH_P_8021Q | ETH_P_8021AD => 1,
                _ => 0,
            };
            Some(ETHER_HEADER + 4 * tags)
        }
        _ => None,
    }
}

/// What the checksum of TCP and UDP covers beside these.
struct PseudoHeader<'a> {
    /// Both, one after the other.
    addresses: &'a [u8],
    protocol: u8,
    /// Bytes of TCP or UDP, with the header.
    len: u32,
}

impl PseudoHeader<'_> {
    /// Source: RFC 1071.
    fn sum(&self) -> u16 {
        let (words, _) = self.addresses.as_chunks::<2>();
        let addresses: u32 = words
            .iter()
            .map(|word| u32::from(u16::from_be_bytes(*word)))
            .sum();
        let mut sum = addresses + u32::from(self.protocol) + (self.len >> 16) + (self.len & 0xffff);
        while sum > 0xffff {
            sum = (sum >> 16) + (sum & 0xffff);
        }
        sum as u16
    }
}

/// The pseudo-header, and the bytes of the header.
fn ipv4(ip: &[u8], whole: u32) -> Option<(PseudoHeader<'_>, usize)> {
    /// More fragments, or an offset.
    const FRAGMENT: u16 = 0x3fff;

    let header_len = 4 * usize::from(ip[0] & 0xf);
    if header_len < 20 || word(ip, 6)? & FRAGMENT != 0 {
        return None;
    }
    let len = match word(ip, 2)? {
        0 => whole,
        len => len.into(),
    };
    let pseudo = PseudoHeader {
        addresses: ip.get(12..20)?,
        protocol: *ip.get(9)?,
        len: len.checked_sub(header_len as u32)?,
    };
    Some((pseudo, header_len))
}

/// The same of IPv6.
fn ipv6(ip: &[u8], whole: u32) -> Option<(PseudoHeader<'_>, usize)> {
    const HEADER: u32 = 40;

    let len = match word(ip, 4)? {
        0 => whole.checked_sub(HEADER)?,
        len => len.into(),
    };
    let pseudo = PseudoHeader {
        addresses: ip.get(8..40)?,
        protocol: *ip.get(6)?,
        len,
    };
    Some((pseudo, HEADER as usize))
}

fn word(bytes: &[u8], at: usize) -> Option<u16> {
    bytes
        .get(at..)?
        .first_chunk()
        .map(|word| u16::from_be_bytes(*word))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// UDP over IPv4 from 10.0.0.1 to 10.0.0.2, with two bytes of data.
    fn ipv4(checksum: u16) -> Vec<u8> {
        let mut packet = vec![0x45, 0, 0, 30, 0, 0, 0, 0, 64, 17, 0, 0, 10, 0, 0, 1, 10, 0, 0, 2];
        packet.extend([0, 1, 0, 2, 0, 10]);
        packet.extend(checksum.to_be_bytes());
        packet.extend(*b"hi");
        packet
    }

    /// TCP over IPv6 from ::1 to ::2, without data.
    fn ipv6(checksum: u16) -> Vec<u8> {
        let mut packet = vec![0x60, 0, 0, 0, 0, 20, 6, 64];
        packet.extend(1_u128.to_be_bytes());
        packet.extend(2_u128.to_be_bytes());
        packet.extend([0; 16]);
        packet.extend(checksum.to_be_bytes());
        packet.extend([0, 0]);
        packet
    }

    fn in_ethernet(header: &[u8], packet: &[u8]) -> Vec<u8> {
        [&[0; 12], header, packet].concat()
    }

    #[test]
    fn sums_of_the_pseudo_header_are_known() {
        // 0x0a00 + 0x0001 + 0x0a00 + 0x0002 + 17 + 10, and 1 + 2 + 6 + 20.
        for (packet, sum) in [(ipv4 as fn(u16) -> Vec<u8>, 0x141e_u16), (ipv6, 29)] {
            for checksum in [sum, sum + 1, !sum, 0] {
                let is_partial = checksum == sum;
                let packet = packet(checksum);
                let len = packet.len() as u32;
                assert_eq!(checksum_is_partial(LinkType::Raw, &packet, len), is_partial);
                for header in [&[8, 0][..], &[0x81, 0, 0, 5, 8, 0], &[0x88, 0xa8, 0, 5, 8, 0]] {
                    let packet = in_ethernet(header, &packet);
                    let len = packet.len() as u32;
                    assert_eq!(checksum_is_partial(LinkType::Ethernet, &packet, len), is_partial);
                }
            }
        }
    }

    #[test]
    fn fragments_are_not_judged() {
        let mut packet = ipv4(0x141e);
        packet[6] = 0x20;
        assert!(!checksum_is_partial(LinkType::Raw, &packet, 30));
        packet[6] = 0x40;
        assert!(checksum_is_partial(LinkType::Raw, &packet, 30));
    }

    #[test]
    fn what_is_too_long_for_its_header_has_the_length_of_the_packet() {
        let mut packet = ipv4(0x141e + 0x10_0000_u32.count_ones() as u16);
        packet[2..4].fill(0);
        // 16 in the upper half of the length adds as much.
        packet[26..28].copy_from_slice(&(0x141e_u16 + 0x10).to_be_bytes());
        assert!(checksum_is_partial(LinkType::Raw, &packet, 30 + 0x10_0000));
        assert!(!checksum_is_partial(LinkType::Raw, &packet, 30));
    }

    proptest! {
        #[test]
        fn takes_any_bytes(packet in proptest::collection::vec(any::<u8>(), 0..80), len in any::<u32>()) {
            for link_type in [LinkType::Raw, LinkType::Ethernet] {
                checksum_is_partial(link_type, &packet, len);
            }
        }
    }
}
