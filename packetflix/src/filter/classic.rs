//! Classic BPF: the instruction set of packet filters, `struct sock_filter` in `linux/filter.h`.

/// An instruction.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Instruction {
    /// What is done.
    pub code: u16,
    /// Instructions to skip when a jump's condition holds.
    pub jt: u8,
    /// Instructions to skip when it does not.
    pub jf: u8,
    /// Operand.
    pub k: u32,
}

/// Instructions that the kernel takes at most: `BPF_MAXINSNS` in `linux/bpf_common.h`.
pub const MAX_INSTRUCTIONS: usize = 4096;
