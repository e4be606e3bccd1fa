//! Which variables a program uses before it sets them.

use super::{facts::Fact, place::Place};
use crate::classic::{Ancillary, Operand, Operation, Register};

/// A set of A, X and the words of scratch memory.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Variables(u32);

impl Variables {
    pub(super) const A: Self = Self(1 << 16);
    pub(super) const X: Self = Self(1 << 17);

    pub(super) fn scratch(k: u32) -> Self {
        Self(1 << k)
    }

    fn register(register: Register) -> Self {
        match register {
            Register::A => Self::A,
            Register::X => Self::X,
        }
    }

    pub(super) fn contains(self, other: Self) -> bool {
        self.0 & other.0 != 0
    }

    fn with(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }

    fn without(self, other: Self) -> Self {
        Self(self.0 & !other.0)
    }
}

/// What is used before it is set, on some path: it must be zero at the start.
pub(super) fn live_at_start(operations: &[Operation], facts: &[Option<Fact>]) -> Variables {
    let operand_of = |operand| match operand {
        Operand::X => Variables::X,
        Operand::K(_) => Variables::default(),
    };
    let mut live = vec![Variables::default(); operations.len() + 1];
    for (at, operation) in operations.iter().enumerate().rev() {
        if facts[at].is_none() {
            continue;
        }
        let after = live[at + 1];
        live[at] = match *operation {
            Operation::LoadAbsolute(size, k) => match Place::of(size, k) {
                Place::Ancillary(Ancillary::XorX) => after.with(Variables::A).with(Variables::X),
                Place::Nowhere => Variables::default(),
                _ => after.without(Variables::A),
            },
            Operation::LoadIndirect(..) => after.without(Variables::A).with(Variables::X),
            Operation::LoadHeaderLength(_) => after.without(Variables::X),
            Operation::LoadConstant(register, _) | Operation::LoadLength(register) => {
                after.without(Variables::register(register))
            }
            Operation::LoadScratch(register, k) => after
                .without(Variables::register(register))
                .with(Variables::scratch(k)),
            Operation::Store(register, k) => after
                .without(Variables::scratch(k))
                .with(Variables::register(register)),
            Operation::Arithmetic(_, operand) => after.with(Variables::A).with(operand_of(operand)),
            Operation::Negate => after.with(Variables::A),
            Operation::Jump(k) => live[at + 1 + k as usize],
            Operation::Branch { jt, jf, .. } if jt == jf => live[at + 1 + usize::from(jt)],
            Operation::Branch { operand, jt, jf, .. } => live[at + 1 + usize::from(jt)]
                .with(live[at + 1 + usize::from(jf)])
                .with(Variables::A)
                .with(operand_of(operand)),
            Operation::ReturnConstant(_) => Variables::default(),
            Operation::ReturnA => Variables::A,
            Operation::Move(Register::X) => after.without(Variables::X).with(Variables::A),
            Operation::Move(Register::A) => after.without(Variables::A).with(Variables::X),
        };
    }
    live[0]
}
