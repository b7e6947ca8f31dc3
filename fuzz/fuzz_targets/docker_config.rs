//! `config.json` and `.dockercfg`.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| keelblock::fuzzing::docker_config(bytes));
