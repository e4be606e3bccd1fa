//! Runs a program as on a kernel before TCX: `without-tcx PROGRAM ARGUMENT...`. The kernel answers whatever has
//! to do with attaching as an older one would: it knows no such thing.

use std::{collections::BTreeMap, env::consts::ARCH, os::unix::process::CommandExt as _};

use anyhow::Context as _;
use nix::libc;
use seccompiler::{
    BpfProgram, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompFilter, SeccompRule,
    apply_filter,
};

/// `linux/bpf.h`
const BPF_PROG_QUERY: u64 = 16;
const BPF_LINK_CREATE: u64 = 28;

fn main() -> anyhow::Result<()> {
    let mut arguments = std::env::args_os().skip(1);
    let program = arguments
        .next()
        .context("usage: without-tcx PROGRAM ARGUMENT...")?;
    install_filter()?;
    Err(std::process::Command::new(program).args(arguments).exec().into())
}

fn install_filter() -> anyhow::Result<()> {
    let rules = [BPF_PROG_QUERY, BPF_LINK_CREATE].map(|command| {
        let (len, operator) = (SeccompCmpArgLen::Dword, SeccompCmpOp::Eq);
        SeccompRule::new(vec![SeccompCondition::new(0, len, operator, command)?])
    });
    let rules = rules.into_iter().collect::<Result<_, _>>()?;
    let filter = SeccompFilter::new(
        BTreeMap::from([(libc::SYS_bpf, rules)]),
        SeccompAction::Allow,
        SeccompAction::Errno(libc::EINVAL.cast_unsigned()),
        ARCH.try_into()?,
    )?;
    apply_filter(&BpfProgram::try_from(filter)?)?;
    Ok(())
}
