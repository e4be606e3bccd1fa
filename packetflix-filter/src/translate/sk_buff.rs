//! Offsets in `struct __sk_buff` of `linux/bpf.h`.

pub(super) const LEN: i16 = 0;
pub(super) const PKT_TYPE: i16 = 4;
pub(super) const MARK: i16 = 8;
pub(super) const QUEUE_MAPPING: i16 = 12;
pub(super) const PROTOCOL: i16 = 16;
pub(super) const VLAN_PRESENT: i16 = 20;
pub(super) const VLAN_TCI: i16 = 24;
pub(super) const VLAN_PROTO: i16 = 28;
pub(super) const IFINDEX: i16 = 40;
pub(super) const HASH: i16 = 68;
