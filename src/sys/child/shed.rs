//! Unmaps the memory that a supervisor has of the process that launched it.
//!
//! A supervisor lives as long as its container and needs its code and one stack. What else it has from the clone
//! would stay in memory for as long, once the launching process writes or frees its own copy; and it may hold
//! secrets. So all private writable memory without a file goes, save the mapping this function runs on (the
//! launching thread's stack, which holds its thread-locals too) and the zeroed variables of programs and
//! libraries, which follow their file's mapping directly. What was made read-only is kept: the `arena`.

use std::os::fd::RawFd;

use super::{close, errno};

const ROOM: usize = 1024;

/// Unmaps it. Leaves things as they are where `/proc` cannot be read.
pub(super) fn shed(maps: RawFd) {
    let anchor = 0u8;
    let stack = (&raw const anchor).addr();
    // SAFETY: always valid.
    let locals = unsafe { libc::__errno_location() }.addr();
    let mut line = [0u8; ROOM];
    let mut length = 0;
    let mut chunk = [0u8; ROOM];
    let mut file_ends = 0;
    loop {
        // SAFETY: writes at most the length of `chunk`.
        let read = unsafe { libc::read(maps, chunk.as_mut_ptr().cast(), chunk.len()) };
        let read = match usize::try_from(read) {
            Ok(0) => break,
            Ok(read) => read,
            Err(_) if errno() == libc::EINTR => continue,
            Err(_) => break,
        };
        for byte in chunk.iter().take(read) {
            if *byte == b'\n' {
                let mapping = Mapping::read(&line[..length.min(ROOM)]);
                if let Some(Mapping { from, to, anonymous, file }) = mapping {
                    let ours = |address: usize| (from..to).contains(&address);
                    if file {
                        file_ends = to;
                    } else if anonymous && from != file_ends && !ours(stack) && !ours(locals) {
                        // SAFETY: anonymous memory of the launching process: nothing that runs from here on
                        // (this file's and `init`'s loops, on this stack) lies or points there.
                        unsafe { libc::munmap(std::ptr::with_exposed_provenance_mut(from), to - from) };
                    }
                }
                length = 0;
            } else {
                if let Some(place) = line.get_mut(length) {
                    *place = *byte;
                }
                length += 1;
            }
        }
    }
    close(maps);
}

/// A line of `/proc/self/maps`.
#[derive(Debug, PartialEq, Eq)]
struct Mapping {
    from: usize,
    to: usize,
    /// Private, writable and without a file: its path is missing, `[heap]`, or a name of anonymous memory.
    anonymous: bool,
    /// It is of a file, or special.
    file: bool,
}

impl Mapping {
    fn read(line: &[u8]) -> Option<Self> {
        let mut fields = line.split(|byte| *byte == b' ').filter(|field| !field.is_empty());
        let range = fields.next()?;
        let private = fields.next()? == b"rw-p";
        let no_file = match fields.nth(3) {
            None => true,
            Some(path) => path == b"[heap]" || path == b"[stack]" || path.starts_with(b"[anon:"),
        };
        let dash = range.iter().position(|byte| *byte == b'-')?;
        let (from, to) = (hexadecimal(range.get(..dash)?)?, hexadecimal(range.get(dash + 1..)?)?);
        (from < to).then_some(Self { from, to, anonymous: private && no_file, file: !no_file })
    }
}

fn hexadecimal(digits: &[u8]) -> Option<usize> {
    digits.iter().try_fold(0usize, |number, digit| {
        let value = char::from(*digit).to_digit(16)?;
        Some((number << 4) | value as usize)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_private_writable_memory_without_a_file_is_shed() {
        let anonymous = |line: &str| Mapping::read(line.as_bytes()).map(|mapping| mapping.anonymous);
        assert_eq!(anonymous("7f00-7f10 rw-p 00000000 00:00 0 "), Some(true));
        assert_eq!(anonymous("7f00-7f10 rw-p 00000000 00:00 0      [heap]"), Some(true));
        for line in [
            "7f00-7f10 r--p 00000000 00:00 0 ",
            "7f00-7f10 rw-s 00000000 00:00 0 ",
            "7f00-7f10 rwxp 00000000 00:00 0 ",
            "7f00-7f10 rw-p 00000000 08:01 123  /usr/lib/libc.so.6",
            "7f00-7f10 r-xp 00000000 00:00 0  [vdso]",
        ] {
            assert_eq!(anonymous(line), Some(false), "{line}");
        }
        for line in ["nonsense", "", "7f10-7f00 rw-p 0 00:00 0", "x-y rw-p 0 00:00 0"] {
            assert_eq!(anonymous(line), None, "{line}");
        }
    }
}
