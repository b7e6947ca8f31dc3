//! The gzip decoder against flate2's.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| keelblock::fuzzing::inflate(bytes));
