//! The words of the language: those of libpcap 1.10's `scanner.l`, and what came later.

use std::{collections::HashSet, sync::LazyLock};

/// The language of filter expressions, which has more words in later libpcaps. What is no word is looked up by libpcap as a
/// name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Language {
    libpcap: (u32, u32),
}

impl Language {
    /// That of a libpcap of this version, major and minor.
    pub const fn of_libpcap(version: (u32, u32)) -> Self {
        Self { libpcap: version }
    }

    /// All words.
    pub fn words(self) -> impl Iterator<Item = &'static str> {
        let later = LATER_KEYWORDS
            .iter()
            .filter(move |(since, _)| self.libpcap >= *since);
        KEYWORDS.iter().copied().chain(later.map(|(_, word)| *word))
    }

    /// Whether this is one of them.
    pub fn has(self, word: &str) -> bool {
        static SET: LazyLock<HashSet<&str>> = LazyLock::new(|| KEYWORDS.iter().copied().collect());
        let is_later = |(since, later): &((u32, u32), &str)| self.libpcap >= *since && word == *later;
        SET.contains(word) || LATER_KEYWORDS.iter().any(is_later)
    }
}

/// All words of the language.
#[rustfmt::skip]
const KEYWORDS: &[&str] = &[
    // Directions, kinds and protocols.
    "src", "dst", "host", "net", "mask", "port", "portrange", "proto", "protochain", "gateway",
    "link", "ether", "ppp", "slip", "fddi", "tr", "wlan", "arp", "rarp", "ip", "ip6", "sctp", "tcp", "udp", "icmp",
    "icmp6", "igmp", "igrp", "pim", "vrrp", "carp", "radio", "ah", "esp", "atalk", "aarp", "decnet", "lat", "sca",
    "moprc", "mopdl", "iso", "esis", "es-is", "isis", "is-is", "clnp", "l1", "l2", "iih", "lsp", "snp", "csnp", "psnp",
    "stp", "ipx", "netbeui", "llc",
    // IEEE 802.11.
    "type", "subtype", "direction", "dir", "address1", "addr1", "address2", "addr2", "address3", "addr3", "address4",
    "addr4", "ra", "ta",
    // Others.
    "and", "or", "not", "less", "greater", "byte", "broadcast", "multicast", "len", "length", "inbound", "outbound",
    "ifindex", "vlan", "mpls", "pppoed", "pppoes", "geneve",
    // ATM.
    "lane", "metac", "bcc", "oam", "oamf4", "oamf4ec", "oamf4sc", "sc", "ilmic", "vpi", "vci", "connectmsg",
    "metaconnect",
    // The logs of pf.
    "on", "ifname", "rset", "ruleset", "rnr", "rulenum", "srnr", "subrulenum", "reason", "action",
    // SS7.
    "fisu", "lssu", "lsu", "msu", "hfisu", "hlssu", "hmsu", "sio", "opc", "dpc", "sls", "hsio", "hopc", "hdpc", "hsls",
    // Offsets and values of fields.
    "icmptype", "icmpcode", "icmp-echoreply", "icmp-unreach", "icmp-sourcequench", "icmp-redirect", "icmp-echo",
    "icmp-routeradvert", "icmp-routersolicit", "icmp-timxceed", "icmp-paramprob", "icmp-tstamp", "icmp-tstampreply",
    "icmp-ireq", "icmp-ireqreply", "icmp-maskreq", "icmp-maskreply",
    "icmp6type", "icmp6code", "icmp6-destinationunreach", "icmp6-packettoobig", "icmp6-timeexceeded",
    "icmp6-parameterproblem", "icmp6-echo", "icmp6-echoreply", "icmp6-multicastlistenerquery",
    "icmp6-multicastlistenerreportv1", "icmp6-multicastlistenerdone", "icmp6-routersolicit", "icmp6-routeradvert",
    "icmp6-neighborsolicit", "icmp6-neighboradvert", "icmp6-redirect", "icmp6-routerrenum",
    "icmp6-nodeinformationquery", "icmp6-nodeinformationresponse", "icmp6-ineighbordiscoverysolicit",
    "icmp6-ineighbordiscoveryadvert", "icmp6-multicastlistenerreportv2", "icmp6-homeagentdiscoveryrequest",
    "icmp6-homeagentdiscoveryreply", "icmp6-mobileprefixsolicit", "icmp6-mobileprefixadvert", "icmp6-certpathsolicit",
    "icmp6-certpathadvert", "icmp6-multicastrouteradvert", "icmp6-multicastroutersolicit",
    "icmp6-multicastrouterterm",
    "tcpflags", "tcp-fin", "tcp-syn", "tcp-rst", "tcp-push", "tcp-ack", "tcp-urg", "tcp-ece", "tcp-cwr",
];

/// Words that came later, and since which libpcap.
const LATER_KEYWORDS: [((u32, u32), &str); 2] = [((1, 11), "vxlan"), ((1, 11), "batadv")];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_of_later_libpcaps_are_words_there() {
        let [ten, eleven, two] = [(1, 10), (1, 11), (2, 0)].map(Language::of_libpcap);
        for word in ["vxlan", "batadv"] {
            assert!(!ten.has(word) && !Language::of_libpcap((0, 0)).has(word));
            assert!(eleven.has(word) && two.has(word));
            assert!(eleven.words().any(|known| known == word));
            assert!(ten.words().all(|known| known != word));
        }
        for word in ["geneve", "pppoes", "vlan", "inbound", "ifindex"] {
            assert!(ten.has(word) && eleven.has(word));
        }
        assert!(!eleven.has("localhost"));
    }
}
