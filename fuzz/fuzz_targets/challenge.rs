//! `WWW-Authenticate` and `Location` headers.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| keelblock::fuzzing::challenge(bytes));
