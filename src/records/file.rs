//! Records as files: written whole or not at all, read with forbearance.
//!
//! A record is written beside its place and renamed over it, so that no reader and no dying writer ever leaves half
//! of one. It is not synced: after a power failure its mounts and processes are gone as well, and the file system's
//! directories still tell what is left to remove. A record that cannot be understood is as good as none.

use std::ffi::CStr;
use std::io::{self, Read, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};

use rustix::fs::{Mode, OFlags, openat};
use serde::Serialize;
use serde::de::DeserializeOwned;

/// Longest record that is read: one of a thousand layers takes 100 KB. 16 MiB.
const RECORD_BYTES_MAX: u64 = 16 << 20;

/// Puts a record in its place.
pub(super) fn write<T: Serialize>(path: &Path, record: &T) -> io::Result<()> {
    static NUMBER: AtomicU64 = AtomicU64::new(0);
    let text = serde_json::to_vec(record)?;
    let number = NUMBER.fetch_add(1, Ordering::Relaxed);
    // Several threads may write the same record: each its own file, and the last rename wins.
    let staged = path.with_extension(format!("{}-{number}.new", std::process::id()));
    let write = || {
        let mut options = std::fs::File::options();
        let mut file = options.write(true).create(true).truncate(true).mode(0o600).open(&staged)?;
        file.write_all(&text)?;
        std::fs::rename(&staged, path)
    };
    write().inspect_err(|_| drop(std::fs::remove_file(&staged)))
}

/// A record, relative to an open directory; `None` when it is not there or makes no sense.
pub(super) fn read<T: DeserializeOwned>(
    directory: impl std::os::fd::AsFd,
    name: &CStr,
) -> io::Result<Option<T>> {
    let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let file = match openat(directory, name, flags, Mode::empty()) {
        Ok(file) => std::fs::File::from(file),
        Err(rustix::io::Errno::NOENT | rustix::io::Errno::NOTDIR) => return Ok(None),
        Err(error) => return Err(error.into()),
    };
    // Not read_to_end: it asks for the size first and for the end last, and there are a thousand records to read.
    let mut text = vec![0; 4096];
    let length = (&file).read(&mut text)?;
    text.truncate(length);
    if length == 4096 {
        file.take(RECORD_BYTES_MAX).read_to_end(&mut text)?;
    }
    Ok(serde_json::from_slice(&text).ok())
}
