//! The tar reader. Inputs stay tars: what is changed is a header, a record or the order of members.
#![no_main]

use libfuzzer_sys::{fuzz_mutator, fuzz_target};

fuzz_target!(|bytes: &[u8]| keelblock::fuzzing::tar(bytes));
fuzz_mutator!(|data: &mut [u8], size: usize, max_size: usize, seed: u32| {
    keelblock_fuzz::mutate_tar(data, size, max_size, seed)
});
