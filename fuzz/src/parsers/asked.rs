#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| packetflix::fuzzing::asked(data));
