//! Instructions, and jumps to where they are going to be.

use super::TranslateError;
use crate::native::{self, Instruction, R0};

/// A place to jump to: the instruction of classic BPF with this number, or one of the assembler's own.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Label(pub(super) usize);

/// Instructions whose jumps are filled in at the end.
pub(super) struct Assembler {
    code: Vec<Instruction>,
    /// Where each label is.
    places: Vec<Option<usize>>,
    jumps: Vec<(usize, Label)>,
    pub(super) reject: Label,
}

impl Assembler {
    /// For a program of so many instructions.
    pub(super) fn new(instructions: usize) -> Self {
        Self {
            code: Vec::new(),
            places: vec![None; instructions + 1],
            jumps: Vec::new(),
            reject: Label(instructions),
        }
    }

    pub(super) fn label(&mut self) -> Label {
        self.places.push(None);
        Label(self.places.len() - 1)
    }

    /// The next instruction is that of classic BPF with this number.
    pub(super) fn place(&mut self, instruction: usize) {
        self.place_label(Label(instruction));
    }

    pub(super) fn place_label(&mut self, label: Label) {
        self.places[label.0] = Some(self.code.len());
    }

    pub(super) fn emit(&mut self, instruction: Instruction) {
        self.code.push(instruction);
    }

    /// Emits a jump, whose offset is filled in later.
    pub(super) fn jump(&mut self, instruction: Instruction, to: Label) {
        self.jumps.push((self.code.len(), to));
        self.code.push(instruction);
    }

    pub(super) fn finish(mut self) -> Result<Vec<Instruction>, TranslateError> {
        if self.jumps.iter().any(|(_, to)| *to == self.reject) {
            self.place_label(self.reject);
            self.emit(Instruction::alu32_imm(native::Arithmetic::Move, R0, 0));
            self.emit(Instruction::exit());
        }
        let instructions = self.code.len();
        for (at, to) in self.jumps {
            let offset = self.places[to.0]
                .and_then(|place| place.checked_sub(at + 1))
                .and_then(|offset| i16::try_from(offset).ok())
                .ok_or(TranslateError::TooLarge { instructions })?;
            self.code[at].offset = offset;
        }
        Ok(self.code)
    }
}
