//! Archives and layouts of images. Archives as they are stay tars.
#![no_main]

use libfuzzer_sys::{fuzz_mutator, fuzz_target, fuzzer_mutate};

fuzz_target!(|bytes: &[u8]| keelblock::fuzzing::archive(bytes));
fuzz_mutator!(|data: &mut [u8], size: usize, max_size: usize, seed: u32| {
    // `r`, a separator, a tar.
    if size > 514 && max_size > 514 && data.starts_with(b"r\x1e") {
        return 2 + keelblock_fuzz::mutate_tar(&mut data[2..], size - 2, max_size - 2, seed);
    }
    fuzzer_mutate(data, size, max_size)
});
