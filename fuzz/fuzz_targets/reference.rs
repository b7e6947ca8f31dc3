//! Names of images, containers, platforms and registries.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| keelblock::fuzzing::reference(bytes));
