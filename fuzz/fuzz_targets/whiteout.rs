//! Paths and whiteout names in layers.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| keelblock::fuzzing::whiteout(bytes));
