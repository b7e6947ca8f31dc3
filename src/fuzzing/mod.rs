//! What must hold of every parser, whatever it is given: one function for each fuzz target, which panics when it does
//! not hold. `fuzz/` calls them with bytes that are made up, `tests/fuzz_corpora.rs` with those that were kept.
//!
//! Only with the feature `fuzzing`, which is no part of the library: it is turned on by `fuzz/` and by this package's own
//! tests. The bodies that need what a room keeps to itself lie in that room (`store/fuzzing.rs` and its like).
//! `docs/fuzzing.md` says what each of them asserts.

mod aci;
mod documents;
mod inflate;
mod layers;
mod names;
mod script;

use std::io::{self, Read};
use std::path::{Path, PathBuf};

use crate::sys::mount::{mountinfo, unmount_all};

pub use aci::aci;
pub use documents::{config, manifest};
pub use inflate::inflate;
pub use layers::layers;
pub use names::reference;

pub use crate::provider::appc::trust::fuzzing::SIGNED;
pub use crate::store::ImageFile;
pub use crate::store::image::fuzzing::{Layer, image};

/// See `store/fuzzing.rs`.
pub fn tar(bytes: &[u8]) {
    crate::store::fuzzing::tar(bytes);
}

/// See `store/fuzzing.rs`.
pub fn blob(bytes: &[u8]) {
    crate::store::fuzzing::blob(bytes);
}

/// See `store/fuzzing.rs`.
pub fn whiteout(bytes: &[u8]) {
    crate::store::fuzzing::whiteout(bytes);
}

/// See `puller/registry/fuzzing.rs`.
pub fn challenge(bytes: &[u8]) {
    crate::puller::registry::fuzzing::challenge(bytes);
}

/// See `puller/appc/fuzzing.rs`.
pub fn discovery(bytes: &[u8]) {
    crate::puller::appc::fuzzing::discovery(bytes);
}

/// See `puller/registry/fuzzing.rs`.
pub fn hosts(bytes: &[u8]) {
    crate::puller::registry::fuzzing::hosts(bytes);
}

/// See `puller/registry/credentials/docker_config.rs`.
pub fn docker_config(bytes: &[u8]) {
    crate::puller::registry::fuzzing::docker_config(bytes);
}

/// See `provider/archive/fuzzing.rs`.
pub fn archive(bytes: &[u8]) {
    crate::provider::archive::fuzzing::archive(bytes);
}

/// See `provider/appc/manifest/fuzzing.rs`.
pub fn appc_manifest(bytes: &[u8]) {
    crate::provider::appc::manifest::fuzzing::appc_manifest(bytes);
}

/// See `provider/appc/trust/fuzzing.rs`.
pub fn signature(bytes: &[u8]) {
    crate::provider::appc::trust::fuzzing::signature(bytes);
}

/// A target: its name, and what runs it once.
pub type Target = (&'static str, fn(&[u8]));

/// Every target by the name of its file in `fuzz/fuzz_targets/`.
pub const TARGETS: [Target; 16] = [
    ("aci", aci),
    ("appc_manifest", appc_manifest),
    ("archive", archive),
    ("blob", blob),
    ("challenge", challenge),
    ("config", config),
    ("discovery", discovery),
    ("docker_config", docker_config),
    ("hosts", hosts),
    ("inflate", inflate),
    ("layers", layers),
    ("manifest", manifest),
    ("reference", reference),
    ("signature", signature),
    ("tar", tar),
    ("whiteout", whiteout),
];

/// Lengths of the pieces in which bytes come, endlessly.
pub(crate) struct Lengths(u64);

impl Lengths {
    /// All at once.
    pub(crate) fn whole() -> Self {
        Self(0)
    }

    /// Lengths that differ with the bytes but not from run to run: mostly some, sometimes one, sometimes thousands.
    pub(crate) fn of(bytes: &[u8]) -> Self {
        let mix = |hash: u64, byte: &u8| (hash ^ u64::from(*byte)).wrapping_mul(0x0000_0100_0000_01b3);
        Self(bytes.iter().take(64).fold(0xcbf2_9ce4_8422_2325, mix) | 1)
    }

    pub(crate) fn next(&mut self) -> usize {
        if self.0 == 0 {
            return usize::MAX;
        }
        // Xorshift: Marsaglia, "Xorshift RNGs", 2003.
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        let most = [1, 7, 513, 4096][(self.0 >> 60) as usize % 4];
        1 + (self.0 >> 32) as usize % most
    }
}

/// A source that gives bytes in pieces, and now and then has none just now.
pub(crate) struct Dribble<'a> {
    pub(crate) bytes: &'a [u8],
    pub(crate) lengths: Lengths,
}

impl Read for Dribble<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let length = self.lengths.next();
        if length == 13 {
            return Err(io::ErrorKind::Interrupted.into());
        }
        let length = length.min(buffer.len());
        self.bytes.read(&mut buffer[..length])
    }
}

/// A fresh directory of this process, in memory where there is such a place. Those that dead processes left go: a fuzzer
/// ends whenever it likes.
pub(crate) fn home(of: &str) -> PathBuf {
    let memory = Path::new("/dev/shm");
    let base = if memory.is_dir() { memory.to_owned() } else { std::env::temp_dir() };
    for entry in base.read_dir().into_iter().flatten().flatten() {
        let name = entry.file_name().to_string_lossy().into_owned();
        let left = name.strip_prefix(HOME).and_then(|rest| rest.rsplit_once('-'));
        if left.is_some_and(|(_, pid)| !Path::new("/proc").join(pid).is_dir()) {
            unmount_below(&entry.path());
            let _ = std::fs::remove_dir_all(entry.path());
        }
    }
    let home = base.join(format!("{HOME}{of}-{}", std::process::id()));
    let _ = std::fs::remove_dir_all(&home);
    std::fs::create_dir_all(&home).expect("a directory in memory");
    home
}

/// What a killed fuzzer had mounted.
fn unmount_below(home: &Path) {
    for mount in mountinfo::read().unwrap_or_default() {
        if mount.target.starts_with(home) {
            let _ = unmount_all(&mount.target);
        }
    }
}

/// Removes what [`layers`] and [`archive`] made; they cannot be called after it.
pub fn leave() {
    for of in ["layers", "archive"] {
        let name = format!("{HOME}{of}-{}", std::process::id());
        for base in [Path::new("/dev/shm"), &std::env::temp_dir()] {
            let _ = std::fs::remove_dir_all(base.join(&name));
        }
    }
}

const HOME: &str = "keelblock-fuzz-";

/// A header of a tar, ustar, its checksum right.
pub(crate) fn tar_header(name: &[u8], kind: u8, link: &[u8], size: usize) -> [u8; 512] {
    let mut header = [0; 512];
    let mut put = |at: usize, bytes: &[u8]| header[at..at + bytes.len()].copy_from_slice(bytes);
    put(0, &name[..name.len().min(100)]);
    put(100, b"0000755\x000000000\x000000000\x00");
    put(124, format!("{size:011o}\x0000007020100\x00").as_bytes());
    put(156, &[kind]);
    put(157, &link[..link.len().min(100)]);
    put(257, b"ustar\x0000");
    seal(&mut header);
    header
}

/// Makes the checksum of a header right.
pub(crate) fn seal(header: &mut [u8]) {
    header[148..156].fill(b' ');
    let sum: u32 = header[..512].iter().map(|byte| u32::from(*byte)).sum();
    header[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
}
