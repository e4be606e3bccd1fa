//! Runs a program as on a kernel before TCX: `without-tcx PROGRAM ARGUMENT...`. The kernel answers whatever has
//! to do with attaching as an older one would: it knows no such thing.

#![expect(unsafe_code, reason = "no crate of ours sets seccomp filters")]

use std::os::unix::process::CommandExt as _;

use anyhow::Context as _;
use nix::libc;

/// `linux/bpf.h`
const BPF_PROG_QUERY: u32 = 16;
const BPF_LINK_CREATE: u32 = 28;
/// Where `struct seccomp_data` has the number of the call and the lower half of its first argument.
const NUMBER_AT: u32 = 0;
const FIRST_ARGUMENT_AT: u32 = 16;

fn main() -> anyhow::Result<()> {
    let mut arguments = std::env::args_os().skip(1);
    let program = arguments
        .next()
        .context("usage: without-tcx PROGRAM ARGUMENT...")?;
    install_filter()?;
    Err(std::process::Command::new(program).args(arguments).exec().into())
}

fn install_filter() -> anyhow::Result<()> {
    const LOAD: u32 = libc::BPF_LD | libc::BPF_W | libc::BPF_ABS;
    const IS: u32 = libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K;
    const RETURN: u32 = libc::BPF_RET | libc::BPF_K;

    let instruction = |code: u32, if_true, if_false, k| libc::sock_filter {
        code: code as u16,
        jt: if_true,
        jf: if_false,
        k,
    };
    let invalid = libc::SECCOMP_RET_ERRNO | libc::EINVAL.cast_unsigned();
    let filter = [
        instruction(LOAD, 0, 0, NUMBER_AT),
        instruction(IS, 0, 4, libc::SYS_bpf as u32),
        instruction(LOAD, 0, 0, FIRST_ARGUMENT_AT),
        instruction(IS, 1, 0, BPF_PROG_QUERY),
        instruction(IS, 0, 1, BPF_LINK_CREATE),
        instruction(RETURN, 0, 0, invalid),
        instruction(RETURN, 0, 0, libc::SECCOMP_RET_ALLOW),
    ];
    let program = libc::sock_fprog {
        len: filter.len() as u16,
        filter: filter.as_ptr().cast_mut(),
    };
    // SAFETY: the first call takes numbers; the program of the second points to a filter of the length that
    // it says, which outlives the call.
    unsafe {
        nix::errno::Errno::result(libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0))?;
        nix::errno::Errno::result(libc::prctl(
            libc::PR_SET_SECCOMP,
            libc::SECCOMP_MODE_FILTER,
            &raw const program,
        ))?;
    }
    Ok(())
}
