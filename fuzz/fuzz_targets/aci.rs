//! Archives of Appc images, from a script to files on disk.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| keelblock::fuzzing::aci(bytes));
