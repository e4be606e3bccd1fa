//! Blocks as tests have them, which each alters to what it is about.

use super::{
    CaptureComment, EnhancedPacket, InterfaceDescription, LinkType, Offloads, PacketDirection, Reception,
    SNAPLEN, SectionHeader,
};

pub(crate) const SECTION_HEADER: SectionHeader<'_> = SectionHeader {
    hardware: "x86_64",
    os: "Linux",
    application: "packetflix",
    comment: CaptureComment {
        container_name: "web",
        container_type: "docker",
        node_name: "n1",
        cluster_uid: "",
        filter: "",
        chaste: false,
    },
};

pub(crate) const INTERFACE: InterfaceDescription<'_> = InterfaceDescription {
    link_type: LinkType::Ethernet,
    snaplen: SNAPLEN,
    name: "eth0",
    description: "of web",
    addresses: &[],
    mac: None,
    speed: None,
    filter: "",
    comment: "one",
    os: "Linux",
};

pub(crate) const PACKET: EnhancedPacket<'_> = EnhancedPacket {
    interface_id: 0,
    timestamp: 7,
    original_len: 60,
    cooked: None,
    data: &[1; 21],
    snaplen: 1500,
    vlan: None,
    direction: PacketDirection::Inbound,
    reception: Reception::Unicast,
    offloads: Offloads {
        checksum: false,
        segmentation: false,
    },
    dropped_before: 0,
};
