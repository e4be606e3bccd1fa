//! libpcap: its compiler and its interpreter, as the system has it (`pcap/pcap.h`).

#![expect(unsafe_code, reason = "libpcap is a C library")]

use std::{
    ffi::{CStr, CString, c_char, c_int, c_uint},
    ptr::NonNull,
};

use anyhow::{Context as _, bail};
use packetflix_filter::classic::{self, Instruction};

/// Bytes that an accepting filter returns.
pub const SNAPSHOT_LENGTH: u32 = 262_144;

/// `DLT_EN10MB`
pub const ETHERNET: c_int = 1;
/// `DLT_RAW` on Linux
pub const RAW_IP: c_int = 12;
/// `DLT_LINUX_SLL`
pub const COOKED: c_int = 113;

/// The mask that `ip broadcast` wants: 255.255.255.0, in network byte order.
const NETMASK: u32 = u32::from_be(0xffff_ff00);

#[repr(C)]
struct Opaque {
    _private: [u8; 0],
}

/// `struct bpf_program`
#[repr(C)]
struct RawProgram {
    len: c_uint,
    instructions: *mut Instruction,
}

#[link(name = "pcap")]
unsafe extern "C" {
    fn pcap_open_dead(link_type: c_int, snapshot_length: c_int) -> *mut Opaque;
    fn pcap_open_live(
        device: *const c_char,
        snapshot_length: c_int,
        promiscuous: c_int,
        timeout: c_int,
        error: *mut c_char,
    ) -> *mut Opaque;
    fn pcap_close(handle: *mut Opaque);
    fn pcap_geterr(handle: *mut Opaque) -> *const c_char;
    fn pcap_compile(
        handle: *mut Opaque,
        program: *mut RawProgram,
        expression: *const c_char,
        optimize: c_int,
        netmask: u32,
    ) -> c_int;
    fn pcap_freecode(program: *mut RawProgram);
    fn bpf_filter(
        program: *const Instruction,
        packet: *const u8,
        len: c_uint,
        captured_len: c_uint,
    ) -> c_uint;
}

/// A handle to compile with.
pub struct Pcap(NonNull<Opaque>);

// SAFETY: a handle belongs to no thread; it is not shared between them.
unsafe impl Send for Pcap {}

impl Pcap {
    /// For packets of this link type, of nowhere.
    ///
    /// # Errors
    /// When libpcap has no memory.
    pub fn dead(link_type: c_int) -> anyhow::Result<Self> {
        // SAFETY: takes two numbers.
        let handle = unsafe { pcap_open_dead(link_type, SNAPSHOT_LENGTH as c_int) };
        Ok(Self(NonNull::new(handle).context("no handle")?))
    }

    /// For packets of an interface of the calling thread's network namespace.
    ///
    /// # Errors
    /// What libpcap says, as without CAP_NET_RAW.
    pub fn live(interface: &str) -> anyhow::Result<Self> {
        /// `PCAP_ERRBUF_SIZE`
        const ERROR_LEN: usize = 256;

        let interface = CString::new(interface)?;
        let mut error = [0; ERROR_LEN];
        // SAFETY: the name ends with a zero, and the buffer is as long as the call wants it.
        let handle = unsafe {
            pcap_open_live(
                interface.as_ptr(),
                SNAPSHOT_LENGTH as c_int,
                0,
                100,
                error.as_mut_ptr(),
            )
        };
        match NonNull::new(handle) {
            Some(handle) => Ok(Self(handle)),
            // SAFETY: the call has failed, and so has put a sentence into the buffer.
            None => bail!("{}", unsafe { CStr::from_ptr(error.as_ptr()) }.to_string_lossy()),
        }
    }

    /// Compiles an expression.
    ///
    /// # Errors
    /// The expression and what libpcap says.
    pub fn compile(&mut self, expression: &str, optimize: bool) -> anyhow::Result<Vec<Instruction>> {
        let text = CString::new(expression)?;
        let mut program = RawProgram {
            len: 0,
            instructions: std::ptr::null_mut(),
        };
        // SAFETY: the handle is open, the expression ends with a zero, and the program is one to be filled in.
        let result = unsafe {
            pcap_compile(
                self.0.as_ptr(),
                &raw mut program,
                text.as_ptr(),
                c_int::from(optimize),
                NETMASK,
            )
        };
        if result != 0 {
            // SAFETY: the handle is open; its sentence ends with a zero and is copied before it changes.
            let error = unsafe { CStr::from_ptr(pcap_geterr(self.0.as_ptr())) };
            bail!("{expression}: {}", error.to_string_lossy());
        }
        // SAFETY: the compiler has filled in a program of so many instructions, laid out as ours.
        let instructions =
            unsafe { std::slice::from_raw_parts(program.instructions, program.len as usize) }.to_vec();
        // SAFETY: the compiler made the program, and it is used no more.
        unsafe { pcap_freecode(&raw mut program) };
        Ok(instructions)
    }
}

impl Drop for Pcap {
    fn drop(&mut self) {
        // SAFETY: the handle is open, and used no more.
        unsafe { pcap_close(self.0.as_ptr()) };
    }
}

/// libpcap's interpreter, with a program.
#[derive(Clone, Copy)]
pub struct Interpreter<'a>(&'a [Instruction]);

impl<'a> Interpreter<'a> {
    /// Checks the program.
    ///
    /// # Errors
    /// When it is none.
    pub fn new(program: &'a [Instruction]) -> anyhow::Result<Self> {
        classic::check(program)?;
        Ok(Self(program))
    }

    /// What the program returns for a packet.
    pub fn run(self, packet: &[u8]) -> u32 {
        let len = packet.len() as c_uint;
        // SAFETY: the interpreter reads the packet within its length, and the program until it returns: that was
        // checked, so that its jumps stay within it, and its last instruction returns.
        unsafe { bpf_filter(self.0.as_ptr(), packet.as_ptr(), len, len) }
    }
}
