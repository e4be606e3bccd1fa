//! A process whose first thread ends, while another one sleeps for two minutes.

#![expect(unsafe_code, reason = "no crate ends the first thread alone")]

use std::{thread, time::Duration};

use nix::libc;

fn main() {
    thread::spawn(|| thread::sleep(Duration::from_secs(120)));
    // SAFETY: the call takes an integer; what this thread owns is nothing that others use.
    unsafe { libc::syscall(libc::SYS_exit, 0) };
}
