//! The few functions of libpcap that compile filters.
//!
//! Declared here and not taken from the `pcap` crate, which keeps the fields of instructions to itself, and always
//! says that the netmask is 0, with which `ip broadcast` compiles into something that nobody meant.

#![expect(unsafe_code, reason = "libpcap is a library in C")]

use std::{
    ffi::{CStr, c_char, c_int, c_uint},
    marker::{PhantomData, PhantomPinned},
    ptr::{self, NonNull},
};

use packetflix_filter::{Language, classic::Instruction};

use crate::pcapng::{LinkType, SNAPLEN};

/// `pcap_t`, of which only libpcap knows what is in it.
#[repr(C)]
struct RawHandle {
    _opaque: [u8; 0],
    _unmovable: PhantomData<(*mut u8, PhantomPinned)>,
}

/// `struct bpf_program` of `pcap/bpf.h`.
#[repr(C)]
struct RawProgram {
    len: c_uint,
    instructions: *mut RawInstruction,
}

/// `struct bpf_insn` of `pcap/bpf.h`.
#[repr(C)]
#[derive(Clone, Copy)]
struct RawInstruction {
    code: u16,
    jt: u8,
    jf: u8,
    k: u32,
}

/// `PCAP_ERRBUF_SIZE` of `pcap/pcap.h`.
const ERROR_LEN: usize = 256;

/// `DLT_EN10MB` and `DLT_RAW` of `pcap/dlt.h`; the latter is not the number that files have, and not on OpenBSD either.
const DLT_EN10MB: c_int = 1;
const DLT_RAW: c_int = 12;

#[link(name = "pcap")]
unsafe extern "C" {
    fn pcap_open_dead(dlt: c_int, snaplen: c_int) -> *mut RawHandle;
    fn pcap_create(interface: *const c_char, error: *mut c_char) -> *mut RawHandle;
    fn pcap_set_snaplen(handle: *mut RawHandle, snaplen: c_int) -> c_int;
    fn pcap_set_buffer_size(handle: *mut RawHandle, bytes: c_int) -> c_int;
    fn pcap_activate(handle: *mut RawHandle) -> c_int;
    fn pcap_datalink(handle: *mut RawHandle) -> c_int;
    fn pcap_geterr(handle: *mut RawHandle) -> *const c_char;
    fn pcap_close(handle: *mut RawHandle);
    fn pcap_compile(
        handle: *mut RawHandle,
        program: *mut RawProgram,
        expression: *const c_char,
        optimize: c_int,
        netmask: u32,
    ) -> c_int;
    fn pcap_freecode(program: *mut RawProgram);
    fn pcap_lib_version() -> *const c_char;
}

/// The language of the libpcap that is here.
pub(super) fn language() -> Language {
    Language::of_libpcap(version())
}

/// Major and minor version of libpcap; 0.0 if it does not say.
fn version() -> (u32, u32) {
    // SAFETY: the call takes nothing, and gives a string that ends with a zero and stays as it is.
    let told = unsafe { CStr::from_ptr(pcap_lib_version()) };
    version_in(&told.to_string_lossy()).unwrap_or_default()
}

/// That of `libpcap version 1.10.3 (with TPACKET_V3)` or `libpcap version 1.11.0-PRE-GIT (64-bit time_t)`.
fn version_in(told: &str) -> Option<(u32, u32)> {
    let mut numbers = told.strip_prefix("libpcap version ")?.split(['.', '-', ' ']);
    Some((numbers.next()?.parse().ok()?, numbers.next()?.parse().ok()?))
}

/// Something that filters can be compiled for.
pub(super) struct Handle(NonNull<RawHandle>);

impl Handle {
    /// One that stands for packets of this kind from nowhere in particular.
    ///
    /// # Errors
    /// What libpcap says, when there is no memory.
    pub(super) fn dead(link_type: LinkType) -> Result<Self, String> {
        // SAFETY: the call takes two integers.
        let handle = unsafe { pcap_open_dead(dlt(link_type), SNAPLEN as c_int) };
        NonNull::new(handle)
            .map(Self)
            .ok_or_else(|| "out of memory".to_owned())
    }

    /// One that captures on an interface, which has to be up, of the calling thread's network namespace.
    ///
    /// # Errors
    /// What libpcap says.
    pub(super) fn live(interface: &CStr, link_type: LinkType) -> Result<Self, String> {
        let mut error: [c_char; ERROR_LEN] = [0; ERROR_LEN];
        // SAFETY: the name ends with a zero, and the buffer is as long as libpcap wants it.
        let handle = unsafe { pcap_create(interface.as_ptr(), error.as_mut_ptr()) };
        let Some(handle) = NonNull::new(handle).map(Self) else {
            // SAFETY: when it gives no handle, libpcap has written a sentence and its zero into the buffer.
            return Err(unsafe { sentence(error.as_ptr()) });
        };
        let raw = handle.0.as_ptr();
        // SAFETY: the handle is live and not yet activated, which is when these may be called.
        let status = unsafe {
            pcap_set_snaplen(raw, SNAPLEN as c_int);
            // Nothing is going to be read: the least that holds a packet.
            pcap_set_buffer_size(raw, SNAPLEN as c_int);
            pcap_activate(raw)
        };
        // Above zero are warnings.
        if status < 0 {
            return Err(handle.error());
        }
        // SAFETY: the handle is live and activated.
        if unsafe { pcap_datalink(raw) } == dlt(link_type) {
            Ok(handle)
        } else {
            Err(format!("{} has another link type", interface.to_string_lossy()))
        }
    }

    /// Compiles a filter, optimised. `netmask` is that of the interface, in the host's byte
    /// order, or `u32::MAX` (`PCAP_NETMASK_UNKNOWN`) when there is none.
    ///
    /// # Errors
    /// What libpcap says.
    pub(super) fn compile(&self, expression: &CStr, netmask: u32) -> Result<Vec<Instruction>, String> {
        let mut program = RawProgram {
            len: 0,
            instructions: ptr::null_mut(),
        };
        // SAFETY: the handle is live, the text ends with a zero, and the program is a live one, which libpcap fills.
        let status =
            unsafe { pcap_compile(self.0.as_ptr(), &raw mut program, expression.as_ptr(), 1, netmask) };
        if status != 0 {
            return Err(self.error());
        }
        let len = program.len as usize;
        // SAFETY: libpcap has said that it succeeded, after which that many instructions are at the pointer, and stay
        // there until the program is freed below. It is not null, since no program is empty.
        let raw = unsafe { std::slice::from_raw_parts(program.instructions, len) };
        let instructions = raw
            .iter()
            .map(|&RawInstruction { code, jt, jf, k }| Instruction { code, jt, jf, k })
            .collect();
        // SAFETY: the program is one that libpcap filled, and is not used again.
        unsafe { pcap_freecode(&raw mut program) };
        Ok(instructions)
    }

    fn error(&self) -> String {
        // SAFETY: the handle is live, and its buffer always holds a text with its zero; nobody writes there until
        // libpcap is called again.
        unsafe { sentence(pcap_geterr(self.0.as_ptr())) }
    }
}

impl Drop for Handle {
    fn drop(&mut self) {
        // SAFETY: the handle is live, and nobody has it any more.
        unsafe { pcap_close(self.0.as_ptr()) }
    }
}

fn dlt(link_type: LinkType) -> c_int {
    match link_type {
        LinkType::Ethernet => DLT_EN10MB,
        LinkType::Raw => DLT_RAW,
        // All others have the number that they have in files.
        other => other as c_int,
    }
}

/// What libpcap says, with what of the expression is in it.
///
/// # Safety
/// The pointer is that of a text with a zero at its end, which stays as it is during the call.
unsafe fn sentence(text: *const c_char) -> String {
    // SAFETY: the caller promises just this.
    let text = unsafe { CStr::from_ptr(text) };
    text.to_string_lossy().into_owned()
}

#[cfg(test)]
mod tests {
    use std::ffi::CString;

    use packetflix_filter::Names;
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn compiles() {
        let raw = Handle::dead(LinkType::Raw).unwrap();
        let all = raw.compile(c"", u32::MAX).unwrap();
        // `BPF_RET | BPF_K`
        let accept = Instruction {
            code: 6,
            jt: 0,
            jf: 0,
            k: SNAPLEN,
        };
        assert_eq!(all, [accept]);
        // `BPF_LD | BPF_H | BPF_ABS` of `SKF_AD_OFF + SKF_AD_PKTTYPE`, as on any live handle.
        let inbound = raw.compile(c"inbound", u32::MAX).unwrap();
        assert_eq!((inbound[0].code, inbound[0].k), (0x28, 0xffff_f004));
    }

    #[test]
    fn netmask_is_in_the_order_of_the_host() {
        let raw = Handle::dead(LinkType::Raw).unwrap();
        let program = raw.compile(c"ip broadcast", 0xffff_ff00).unwrap();
        // `BPF_JMP | BPF_JSET | BPF_K`: whether there is any bit set in the part of the host.
        assert!(
            program.iter().any(|i| (i.code, i.k) == (0x45, 0xff)),
            "{program:?}"
        );
    }

    #[test]
    fn versions_are_read() {
        for (told, version) in [
            ("libpcap version 1.10.3 (with TPACKET_V3)", Some((1, 10))),
            (
                "libpcap version 1.11.0-PRE-GIT (64-bit time_t, with TPACKET_V3)",
                Some((1, 11)),
            ),
            ("libpcap version 2.0", Some((2, 0))),
            ("libpcap version one", None),
            ("", None),
        ] {
            assert_eq!(version_in(told), version, "{told}");
        }
        assert!(version() >= (1, 8), "{:?}", version());
    }

    #[test]
    fn says_what_is_wrong() {
        let raw = Handle::dead(LinkType::Raw).unwrap();
        for (expression, message) in [
            (c"tcp and", "can't parse filter expression: syntax error"),
            (c"vlan", "no VLAN support for Raw IP"),
            (
                c"ip broadcast",
                "netmask not known, so 'ip broadcast' not supported",
            ),
        ] {
            assert_eq!(raw.compile(expression, u32::MAX).unwrap_err(), message);
        }
        let error = raw.compile(c"ether host 1:2:3:4:5:6", u32::MAX).unwrap_err();
        assert!(
            error.starts_with("ethernet addresses supported only on ethernet"),
            "{error}"
        );
    }

    #[test]
    fn words_are_those_of_the_libpcap_that_is_here() {
        let compiled = Handle::dead(LinkType::Ethernet)
            .unwrap()
            .compile(c"vxlan 7", u32::MAX);
        assert_eq!(compiled.is_ok(), language().has("vxlan"));
    }

    /// What expressions are made of, and what they had better not be made of.
    fn piece() -> impl Strategy<Value = String> {
        let keyword =
            proptest::sample::select(language().words().collect::<Vec<_>>()).prop_map(str::to_owned);
        let head = proptest::sample::select(&[
            "host",
            "net",
            "port",
            "portrange",
            "proto",
            "ip proto",
            "ether proto",
            "ether host",
            "src",
            "and",
            "or",
            "not",
            "(",
            ")",
            "tcp",
            "ip6",
        ]);
        let word = "[0-9a-fA-Fx]{1,5}|[-a-z0-9._:]{1,8}|[0-9]{1,3}(\\.[0-9]{1,3}){0,4}|\\\\[a-z0-9]{1,4}";
        let mac = "[0-9a-f]{1,2}([:.-][0-9a-f]{1,2}){4,6}|[0-9a-f]{4}(\\.?[0-9a-f]{4}){1,3}";
        let ipv6 = "([0-9a-f]{0,4}:){1,8}[0-9a-f]{0,4}(\\.[0-9]{1,2}){0,3}";
        prop_oneof![
            2 => keyword,
            4 => head.prop_map(str::to_owned),
            2 => word,
            1 => mac,
            1 => ipv6,
            1 => "\\PC{1,3}|[ -~]{1,4}",
        ]
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(2_000))]

        /// libpcap itself finds no name in what is taken.
        #[test]
        fn nothing_is_looked_up(
            pieces in proptest::collection::vec(piece(), 1..8),
            space in prop_oneof![4 => Just(" "), 1 => Just("")],
        ) {
            let expression = pieces.join(space).replace('\0', "");
            if let Ok(checked) = language().check(&expression, &Names::Refused) {
                let expression = CString::new(checked.into_owned()).unwrap();
                for link_type in [LinkType::Ethernet, LinkType::Raw] {
                    let handle = Handle::dead(link_type).unwrap();
                    if let Err(message) = handle.compile(&expression, u32::MAX) {
                        // It looks ports up as names that are none.
                        let looked_up = message.starts_with("unknown ") && ![
                            "unknown ether proto", "unknown osi proto", "unknown LLC", "unknown 802.11", "unknown PF",
                            "unknown protocol", "unknown port in range",
                        ].iter().any(|start| message.starts_with(start));
                        prop_assert!(!looked_up, "{expression:?}: {message}");
                    }
                }
            }
        }
    }
}
