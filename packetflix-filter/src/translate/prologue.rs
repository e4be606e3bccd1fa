//! What a filter does before its first instruction.

use super::{
    assembler::Assembler,
    facts::Fact,
    layout::Layout,
    liveness::{Variables, live_at_start},
    sk_buff,
};
use crate::{
    classic::Operation,
    native::{self, Condition, Helper, Instruction, R0, R1, R2, R3, R4, R6, R7, R8, R9, R10},
};

pub(super) fn prologue(
    assembler: &mut Assembler,
    operations: &[Operation],
    facts: &[Option<Fact>],
    layout: &Layout,
) {
    use native::Arithmetic::{Add, Move};

    let mut uses_packet = false;
    let mut uses_len = false;
    for (operation, _) in operations.iter().zip(facts).filter(|(_, fact)| fact.is_some()) {
        match operation {
            Operation::LoadAbsolute(..) | Operation::LoadIndirect(..) | Operation::LoadHeaderLength(_) => {
                uses_packet = true;
                uses_len = true;
            }
            Operation::LoadLength(_) => uses_len = true,
            _ => {}
        }
    }
    if uses_packet {
        assembler.emit(Instruction::alu64(Move, R6, R1));
    }
    if let Some(address) = layout.packet_type {
        assembler.emit(Instruction::store(native::Size::Word, R10, address, R2));
    }
    if uses_len {
        assembler.emit(Instruction::load(native::Size::Word, R9, R1, sk_buff::LEN));
    }
    if let Some(head) = layout.head {
        let len = head.len as i32;
        let (copy, start) = (assembler.label(), assembler.label());
        assembler.emit(Instruction::alu32_imm(Move, R4, len));
        assembler.jump(
            Instruction::jump_if_imm(Condition::GreaterOrEqual, R9, len, 0),
            copy,
        );
        // Of a shorter packet there is a number of bytes that the verifier does not know, and then it wants all of
        // the memory to be set before.
        let first = head.address.div_euclid(8) * 8;
        for address in (first..layout.head_end).step_by(8) {
            assembler.emit(Instruction::store_imm(native::Size::Double, R10, address, 0));
        }
        // The helper copies no zero bytes; and only by this comparison does every verifier see that it need not.
        assembler.jump(Instruction::jump_if_imm(Condition::Less, R9, 1, 0), start);
        assembler.emit(Instruction::alu64(Move, R4, R9));
        assembler.place_label(copy);
        assembler.emit(Instruction::alu32_imm(Move, R2, 0));
        assembler.emit(Instruction::alu64(Move, R3, R10));
        assembler.emit(Instruction::alu64_imm(Add, R3, i32::from(head.address)));
        assembler.emit(Instruction::call(Helper::SkbLoadBytes));
        assembler.jump(
            Instruction::jump_if_imm(Condition::NotEqual, R0, 0, 0),
            assembler.reject,
        );
        assembler.place_label(start);
    }
    let live = live_at_start(operations, facts);
    for (variable, register) in [(Variables::A, R7), (Variables::X, R8)] {
        if live.contains(variable) {
            assembler.emit(Instruction::alu32_imm(Move, register, 0));
        }
    }
    for (k, address) in (0..).zip(layout.scratch) {
        if live.contains(Variables::scratch(k)) {
            assembler.emit(Instruction::store_imm(native::Size::Word, R10, address, 0));
        }
    }
}
