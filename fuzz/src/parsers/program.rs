#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| packetflix::fuzzing::program(data));
