//! One instruction of classic BPF in eBPF.

use super::{
    assembler::{Assembler, Label},
    facts::Fact,
    layout::Layout,
    place::Place,
};
use crate::{
    classic::{Arithmetic, Comparison, Operand, Operation, Register, Size},
    native::{self, Condition, Instruction, R0, R7, R8, R9, R10},
};

/// Translation of one instruction.
pub(super) struct Translation<'a> {
    pub(super) assembler: &'a mut Assembler,
    pub(super) layout: &'a Layout,
    pub(super) fact: Fact,
    /// Its number.
    pub(super) at: usize,
    /// Number of the instruction that is translated after it.
    pub(super) next: Option<usize>,
}

impl Translation<'_> {
    pub(super) fn operation(&mut self, operation: Operation) {
        use native::Arithmetic as Native;

        match operation {
            Operation::LoadAbsolute(size, k) => match Place::of(size, k) {
                Place::Ancillary(ancillary) => self.load_ancillary(ancillary),
                place => self.load_absolute(R7, size, place),
            },
            Operation::LoadIndirect(size, k) => self.load_indirect(size, k),
            Operation::LoadHeaderLength(k) => {
                let place = Place::in_packet(Size::Byte, k);
                self.load_absolute(R8, Size::Byte, place);
                if place != Place::Nowhere {
                    self.emit(Instruction::alu32_imm(Native::And, R8, 0x0f));
                    self.emit(Instruction::alu32_imm(Native::ShiftLeft, R8, 2));
                }
            }
            Operation::LoadConstant(to, k) => {
                self.emit(Instruction::alu32_imm(
                    Native::Move,
                    native_register(to),
                    k as i32,
                ));
            }
            Operation::LoadScratch(to, k) => {
                let address = self.layout.scratch[k as usize];
                self.emit(Instruction::load(
                    native::Size::Word,
                    native_register(to),
                    R10,
                    address,
                ));
            }
            Operation::LoadLength(to) => {
                self.emit(Instruction::alu32(Native::Move, native_register(to), R9));
            }
            Operation::Store(from, k) => {
                let address = self.layout.scratch[k as usize];
                self.emit(Instruction::store(
                    native::Size::Word,
                    R10,
                    address,
                    native_register(from),
                ));
            }
            Operation::Arithmetic(arithmetic, operand) => self.arithmetic(arithmetic, operand),
            Operation::Negate => self.emit(Instruction::alu32_imm(Native::Negate, R7, 0)),
            Operation::Jump(k) => self.go_to(self.at + 1 + k as usize),
            Operation::Branch {
                comparison,
                operand,
                jt,
                jf,
            } => self.branch(comparison, operand, usize::from(jt), usize::from(jf)),
            Operation::ReturnConstant(k) => {
                self.emit(Instruction::alu32_imm(Native::Move, R0, k as i32));
                self.emit(Instruction::exit());
            }
            Operation::ReturnA => {
                self.emit(Instruction::alu32(Native::Move, R0, R7));
                self.emit(Instruction::exit());
            }
            Operation::Move(Register::X) => self.emit(Instruction::alu32(Native::Move, R8, R7)),
            Operation::Move(Register::A) => self.emit(Instruction::alu32(Native::Move, R7, R8)),
        }
    }

    pub(super) fn emit(&mut self, instruction: Instruction) {
        self.assembler.emit(instruction);
    }

    pub(super) fn reject_if(&mut self, jump: Instruction) {
        let reject = self.assembler.reject;
        self.assembler.jump(jump, reject);
    }

    fn arithmetic(&mut self, arithmetic: Arithmetic, operand: Operand) {
        use native::Arithmetic as Native;

        let operation = match arithmetic {
            Arithmetic::Add => Native::Add,
            Arithmetic::Subtract => Native::Subtract,
            Arithmetic::Multiply => Native::Multiply,
            Arithmetic::Divide => Native::Divide,
            Arithmetic::Modulo => Native::Modulo,
            Arithmetic::And => Native::And,
            Arithmetic::Or => Native::Or,
            Arithmetic::Xor => Native::Xor,
            Arithmetic::ShiftLeft => Native::ShiftLeft,
            Arithmetic::ShiftRight => Native::ShiftRight,
        };
        if let Operand::K(k) = operand {
            self.emit(Instruction::alu32_imm(operation, R7, k as i32));
            return;
        }
        match arithmetic {
            Arithmetic::Divide | Arithmetic::Modulo => {
                self.reject_if(Instruction::jump32_if_imm(Condition::Equal, R8, 0, 0));
                self.emit(Instruction::alu32(operation, R7, R8));
            }
            Arithmetic::ShiftLeft | Arithmetic::ShiftRight => {
                self.emit(Instruction::jump32_if_imm(Condition::Less, R8, 32, 2));
                self.emit(Instruction::alu32_imm(Native::Move, R7, 0));
                self.emit(Instruction::jump(1));
                self.emit(Instruction::alu32(operation, R7, R8));
            }
            _ => self.emit(Instruction::alu32(operation, R7, R8)),
        }
    }

    /// Goes on with another instruction of the program.
    fn go_to(&mut self, target: usize) {
        if self.next != Some(target) {
            self.assembler.jump(Instruction::jump(0), Label(target));
        }
    }

    fn branch(&mut self, comparison: Comparison, operand: Operand, jt: usize, jf: usize) {
        let (holds, fails) = (self.at + 1 + jt, self.at + 1 + jf);
        if holds == fails {
            return self.go_to(holds);
        }
        let (condition, opposite) = match comparison {
            Comparison::Equal => (Condition::Equal, Some(Condition::NotEqual)),
            Comparison::Greater => (Condition::Greater, Some(Condition::LessOrEqual)),
            Comparison::GreaterOrEqual => (Condition::GreaterOrEqual, Some(Condition::Less)),
            Comparison::BitsSet => (Condition::BitsSet, None),
        };
        let jump = |condition| match operand {
            Operand::K(k) => Instruction::jump32_if_imm(condition, R7, k as i32, 0),
            Operand::X => Instruction::jump32_if(condition, R7, R8, 0),
        };
        match opposite.filter(|_| self.next == Some(holds)) {
            Some(opposite) => self.assembler.jump(jump(opposite), Label(fails)),
            None => {
                self.assembler.jump(jump(condition), Label(holds));
                self.go_to(fails);
            }
        }
    }
}

fn native_register(register: Register) -> u8 {
    match register {
        Register::A => R7,
        Register::X => R8,
    }
}
