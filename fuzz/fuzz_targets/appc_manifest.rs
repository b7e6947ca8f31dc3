//! Manifests of Appc images.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| keelblock::fuzzing::appc_manifest(bytes));
