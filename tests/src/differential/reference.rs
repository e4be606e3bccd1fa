//! An interpreter of classic BPF of our own, for what libpcap's does not know: what is beside the packet.
//!
//! That it is right in all else is tested too, by running it beside libpcap's.

use packetflix_filter::classic::{
    Ancillary, Arithmetic, Comparison, LINK_OFFSET, NETWORK_OFFSET, Operand, Operation, Register, Size,
};

use crate::bpf_run::EXPERIMENTAL;

/// What packets are marked with.
pub const MARK: u32 = 0xcafe_f00d;

/// What the kernel knows beside a packet.
#[derive(Clone, Copy, Debug, Default)]
pub struct Beside {
    /// Its EtherType.
    pub protocol: u16,
    /// For whom it is (`linux/if_packet.h`).
    pub packet_type: u8,
    /// Number of its interface.
    pub ifindex: u32,
    /// Its mark.
    pub mark: u32,
    /// Protocol and tag control information of a tag.
    pub vlan: Option<(u16, u16)>,
    /// Where the network header begins.
    pub network: usize,
}

/// What the kernel has beside the packet that a test's classifier sees: `eth_type_trans` in `net/ethernet/eth.c`, for the
/// loopback device, whose address is zero, as is its address for broadcasts.
pub fn beside_classified(packet: &[u8], vlan: Option<(u16, u16)>) -> Beside {
    let word = |at: usize| u16::from_be_bytes([packet[at], packet[at + 1]]);
    let protocol = match word(12) {
        protocol @ 0x600.. => protocol,
        _ if packet.get(14..16) == Some(&[0xff, 0xff]) => 1,
        _ => 4,
    };
    let packet_type = match &packet[..6] {
        [first, ..] if first & 1 != 0 => 2,
        [0, 0, 0, 0, 0, 0] => 0,
        _ => 3,
    };
    Beside {
        protocol,
        packet_type,
        ifindex: 1,
        mark: MARK,
        vlan,
        network: 14,
    }
}

/// What it has beside the packet that a test's socket filter sees.
pub fn beside_filtered() -> Beside {
    Beside {
        protocol: EXPERIMENTAL,
        ifindex: 1,
        mark: MARK,
        ..Beside::default()
    }
}

/// Whether a program gives the same in libpcap's interpreter as it must in the kernel.
pub fn is_for_libpcap(operations: &[Operation]) -> bool {
    !operations
        .iter()
        .any(|operation| matches!(operation, Operation::LoadAbsolute(_, LINK_OFFSET..)))
}

/// Runs a checked program.
pub fn interpret(program: &[Operation], packet: &[u8], beside: &Beside) -> u32 {
    Machine {
        a: 0,
        x: 0,
        scratch: [0; 16],
        packet,
        beside,
    }
    .run(program)
    .unwrap_or(0)
}

struct Machine<'a> {
    a: u32,
    x: u32,
    scratch: [u32; 16],
    packet: &'a [u8],
    beside: &'a Beside,
}

impl Machine<'_> {
    /// `None` when the packet is rejected halfway.
    fn run(&mut self, program: &[Operation]) -> Option<u32> {
        let mut at = 0;
        loop {
            let mut skip = 0;
            match program[at] {
                Operation::LoadAbsolute(size, k) => {
                    self.a = match Ancillary::at(k) {
                        Some(ancillary) => self.ancillary(ancillary)?,
                        None => self.absolute(size, k)?,
                    };
                }
                Operation::LoadIndirect(size, k) => {
                    self.a = self.load(size, u64::from(self.x) + u64::from(k))?;
                }
                Operation::LoadHeaderLength(k) => self.x = (self.absolute(Size::Byte, k)? & 0x0f) * 4,
                Operation::LoadConstant(to, k) => *self.register(to) = k,
                Operation::LoadScratch(to, k) => *self.register(to) = self.scratch[k as usize],
                Operation::LoadLength(to) => *self.register(to) = self.packet.len() as u32,
                Operation::Store(from, k) => self.scratch[k as usize] = *self.register(from),
                Operation::Arithmetic(arithmetic, operand) => {
                    let (a, b) = (self.a, self.operand(operand));
                    self.a = match arithmetic {
                        Arithmetic::Add => a.wrapping_add(b),
                        Arithmetic::Subtract => a.wrapping_sub(b),
                        Arithmetic::Multiply => a.wrapping_mul(b),
                        Arithmetic::Divide => a.checked_div(b)?,
                        Arithmetic::Modulo => a.checked_rem(b)?,
                        Arithmetic::And => a & b,
                        Arithmetic::Or => a | b,
                        Arithmetic::Xor => a ^ b,
                        Arithmetic::ShiftLeft => a.checked_shl(b).unwrap_or(0),
                        Arithmetic::ShiftRight => a.checked_shr(b).unwrap_or(0),
                    };
                }
                Operation::Negate => self.a = self.a.wrapping_neg(),
                Operation::Jump(k) => skip = k as usize,
                Operation::Branch {
                    comparison,
                    operand,
                    jt,
                    jf,
                } => {
                    let (a, b) = (self.a, self.operand(operand));
                    let holds = match comparison {
                        Comparison::Equal => a == b,
                        Comparison::Greater => a > b,
                        Comparison::GreaterOrEqual => a >= b,
                        Comparison::BitsSet => a & b != 0,
                    };
                    skip = usize::from(if holds { jt } else { jf });
                }
                Operation::ReturnConstant(k) => return Some(k),
                Operation::ReturnA => return Some(self.a),
                Operation::Move(Register::A) => self.a = self.x,
                Operation::Move(Register::X) => self.x = self.a,
            }
            at += 1 + skip;
        }
    }

    fn register(&mut self, register: Register) -> &mut u32 {
        match register {
            Register::A => &mut self.a,
            Register::X => &mut self.x,
        }
    }

    fn operand(&self, operand: Operand) -> u32 {
        match operand {
            Operand::K(k) => k,
            Operand::X => self.x,
        }
    }

    fn absolute(&self, size: Size, k: u32) -> Option<u32> {
        let offset = match k {
            NETWORK_OFFSET.. => self.beside.network as u64 + u64::from(k - NETWORK_OFFSET),
            LINK_OFFSET.. => u64::from(k - LINK_OFFSET),
            _ => u64::from(k),
        };
        self.load(size, offset)
    }

    fn load(&self, size: Size, offset: u64) -> Option<u32> {
        let from = usize::try_from(offset).ok()?;
        let bytes = self.packet.get(from..from + size.bytes() as usize)?;
        Some(bytes.iter().fold(0, |value, byte| value << 8 | u32::from(*byte)))
    }

    fn ancillary(&self, ancillary: Ancillary) -> Option<u32> {
        let (tpid, tci) = self.beside.vlan.unwrap_or_default();
        Some(match ancillary {
            Ancillary::Protocol => self.beside.protocol.into(),
            Ancillary::PacketType => self.beside.packet_type.into(),
            Ancillary::Ifindex => self.beside.ifindex,
            Ancillary::Mark => self.beside.mark,
            Ancillary::Queue | Ancillary::RxHash => 0,
            Ancillary::XorX => self.a ^ self.x,
            Ancillary::VlanTag => tci.into(),
            Ancillary::VlanTagPresent => self.beside.vlan.is_some().into(),
            Ancillary::VlanTpid => tpid.into(),
            _ => return None,
        })
    }
}
