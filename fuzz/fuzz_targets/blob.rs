//! Streams that a layer may come in: gzip, zstd, plain.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| keelblock::fuzzing::blob(bytes));
