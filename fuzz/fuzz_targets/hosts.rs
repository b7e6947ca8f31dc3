//! `hosts.toml`, `NO_PROXY` and addresses of proxies.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| keelblock::fuzzing::hosts(bytes));
