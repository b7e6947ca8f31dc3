//! Signatures of Appc images, and the keys that are trusted to make them.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| keelblock::fuzzing::signature(bytes));
