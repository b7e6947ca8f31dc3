//! Manifests, indexes and image configs: nothing a registry sends panics or overflows the stack.
#![no_main]

use keelblock::provider::manifest::{Parsed, Platform, parse, parse_config};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    if let Ok(Parsed::Index(index)) = parse(bytes, None) {
        let _ = index.choose(&Platform::host());
    }
    let _ = parse_config(bytes);
});
