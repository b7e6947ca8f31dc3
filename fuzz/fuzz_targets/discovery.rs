//! Discovery pages of Appc images, templates of addresses, prefixes of simple discovery.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| keelblock::fuzzing::discovery(bytes));
