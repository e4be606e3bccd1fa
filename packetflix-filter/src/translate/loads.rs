//! Loads of the packet, and of what the kernel knows beside it.

use super::{
    layout::{PLAIN_HEADER, WORD_OF_HELPERS, pieces},
    operation::Translation,
    place::Place,
    sk_buff,
};
use crate::{
    classic::{Ancillary, Size},
    native::{self, Condition, Helper, Instruction, R0, R1, R2, R3, R4, R6, R7, R8, R9, R10},
};

impl Translation<'_> {
    /// Rejects packets that end before `end`.
    fn require(&mut self, end: u32) {
        if end > self.fact.len {
            self.reject_if(Instruction::jump_if_imm(Condition::Less, R9, end as i32, 0));
        }
    }

    pub(super) fn load_absolute(&mut self, to: u8, size: Size, place: Place) {
        match place {
            Place::Packet { end } => {
                self.require(end);
                if let Some(address) = self.layout.in_head(size, end) {
                    self.read_stack(to, size, address);
                } else {
                    let offset = end - size.bytes();
                    self.emit(Instruction::alu32_imm(
                        native::Arithmetic::Move,
                        R2,
                        offset as i32,
                    ));
                    self.call(to, size, Helper::SkbLoadBytes);
                }
            }
            Place::Header { which, offset } => {
                self.emit(Instruction::alu32_imm(native::Arithmetic::Move, R2, offset));
                self.emit(Instruction::alu32_imm(
                    native::Arithmetic::Move,
                    native::R5,
                    which,
                ));
                self.call(to, size, Helper::SkbLoadBytesRelative);
            }
            Place::Nowhere | Place::Ancillary(_) => self.reject_if(Instruction::jump(0)),
        }
    }

    pub(super) fn load_indirect(&mut self, size: Size, k: u32) {
        let Place::Packet { end } = Place::of(size, k) else {
            self.reject_if(Instruction::jump(0));
            return;
        };
        let plain = end.saturating_add(PLAIN_HEADER);
        let head = self
            .layout
            .in_head(size, plain)
            .filter(|_| self.fact.header_length_in_x);
        let (general, done) = (self.assembler.label(), self.assembler.label());
        if let Some(address) = head {
            let differs = Instruction::jump32_if_imm(Condition::NotEqual, R8, PLAIN_HEADER as i32, 0);
            self.assembler.jump(differs, general);
            self.require(plain);
            self.read_stack(R7, size, address);
            self.assembler.jump(Instruction::jump(0), done);
        }
        self.assembler.place_label(general);
        // With 64 bits, so that the sum does not wrap; the helper would take its lower half only.
        self.emit(Instruction::alu32(native::Arithmetic::Move, R2, R8));
        if k != 0 {
            self.emit(Instruction::alu64_imm(native::Arithmetic::Add, R2, k as i32));
        }
        self.reject_if(Instruction::jump_if(Condition::GreaterOrEqual, R2, R9, 0));
        self.call(R7, size, Helper::SkbLoadBytes);
        self.assembler.place_label(done);
    }

    /// Calls a helper that copies of the packet from R2 on, and rejects the packet when it cannot.
    fn call(&mut self, to: u8, size: Size, helper: Helper) {
        use native::Arithmetic::{Add, Move};

        self.emit(Instruction::alu64(Move, R1, R6));
        self.emit(Instruction::alu64(Move, R3, R10));
        self.emit(Instruction::alu64_imm(Add, R3, i32::from(WORD_OF_HELPERS)));
        self.emit(Instruction::alu32_imm(Move, R4, size.bytes() as i32));
        self.emit(Instruction::call(helper));
        self.reject_if(Instruction::jump_if_imm(Condition::NotEqual, R0, 0, 0));
        self.read_stack(to, size, WORD_OF_HELPERS);
    }

    /// Loads from the stack in network byte order. R0 is lost.
    fn read_stack(&mut self, to: u8, size: Size, address: i16) {
        for (number, (address, size)) in pieces(size, address).enumerate() {
            let piece = if number == 0 { to } else { R0 };
            self.emit(Instruction::load(size, piece, R10, address));
            let bits = match size {
                native::Size::Byte => 8,
                native::Size::Half => 16,
                native::Size::Word | native::Size::Double => 32,
            };
            if bits > 8 {
                self.emit(Instruction::from_big_endian(piece, bits));
            }
            if number > 0 {
                self.emit(Instruction::alu32_imm(native::Arithmetic::ShiftLeft, to, bits));
                self.emit(Instruction::alu32(native::Arithmetic::Or, to, R0));
            }
        }
    }

    pub(super) fn load_ancillary(&mut self, ancillary: Ancillary) {
        if let (Ancillary::PacketType, Some(address)) = (ancillary, self.layout.packet_type) {
            return self.emit(Instruction::load(native::Size::Word, R7, R10, address));
        }
        let field = match ancillary {
            Ancillary::Protocol => sk_buff::PROTOCOL,
            Ancillary::PacketType => sk_buff::PKT_TYPE,
            Ancillary::Ifindex => sk_buff::IFINDEX,
            Ancillary::Mark => sk_buff::MARK,
            Ancillary::Queue => sk_buff::QUEUE_MAPPING,
            Ancillary::RxHash => sk_buff::HASH,
            Ancillary::VlanTag => sk_buff::VLAN_TCI,
            Ancillary::VlanTagPresent => sk_buff::VLAN_PRESENT,
            Ancillary::VlanTpid => sk_buff::VLAN_PROTO,
            Ancillary::Cpu => return self.load_result(Helper::GetSmpProcessorId),
            Ancillary::Random => return self.load_result(Helper::GetPrandomU32),
            Ancillary::XorX => return self.emit(Instruction::alu32(native::Arithmetic::Xor, R7, R8)),
            // Refused before.
            Ancillary::NetlinkAttribute
            | Ancillary::NestedNetlinkAttribute
            | Ancillary::HardwareType
            | Ancillary::PayloadOffset => return,
        };
        self.emit(Instruction::load(native::Size::Word, R7, R6, field));
        match ancillary {
            // These two are as on the wire.
            Ancillary::Protocol | Ancillary::VlanTpid => self.emit(Instruction::from_big_endian(R7, 16)),
            // A packet without a device, of which the kernel's interpreter rejected this load.
            Ancillary::Ifindex => self.reject_if(Instruction::jump_if_imm(Condition::Equal, R7, 0, 0)),
            _ => {}
        }
    }

    fn load_result(&mut self, helper: Helper) {
        self.emit(Instruction::call(helper));
        self.emit(Instruction::alu32(native::Arithmetic::Move, R7, R0));
    }
}
