//! Finds, and makes where asked, a path inside the container's root, one name at a time.
//!
//! The tree is the image's: any name may be a symbolic link to anywhere. By now the root is the container's, so
//! `..` and absolute links end inside it by the kernel's doing. Links are read as text and followed by hand:
//! thereby links of procfs lead where their text says, inside, and never to what a descriptor of this process
//! still holds of the host; and a dangling link gets its target made, inside.

use std::ffi::CStr;
use std::os::fd::RawFd;

use super::{Detail, Fault, Missing, close, errno};

const LINKS_MAX: usize = 40;
const PATH_BYTES_MAX: usize = 4096;
const NAME_BYTES_MAX: usize = 255;

/// A path being walked: what is still to come of it.
struct Rest {
    bytes: [u8; PATH_BYTES_MAX],
    at: usize,
    end: usize,
}

impl Rest {
    fn new(path: &[u8]) -> Result<Self, Fault> {
        let mut rest = Self { bytes: [0; PATH_BYTES_MAX], at: 0, end: 0 };
        match rest.bytes.get_mut(..path.len()) {
            Some(room) => room.copy_from_slice(path),
            None => return Err(Fault { detail: Detail::Find, errno: libc::ENAMETOOLONG }),
        }
        rest.end = path.len();
        Ok(rest)
    }

    /// The next name, ended by a null byte; whether it is the last. `None` at the end.
    fn next(&mut self, name: &mut [u8; NAME_BYTES_MAX + 1]) -> Result<Option<bool>, Fault> {
        self.skip_slashes();
        if self.at == self.end {
            return Ok(None);
        }
        let begin = self.at;
        while self.at < self.end && self.bytes[self.at] != b'/' {
            self.at += 1;
        }
        let length = self.at - begin;
        if length > NAME_BYTES_MAX {
            return Err(Fault { detail: Detail::Find, errno: libc::ENAMETOOLONG });
        }
        name[..length].copy_from_slice(&self.bytes[begin..self.at]);
        name[length] = 0;
        self.skip_slashes();
        Ok(Some(self.at == self.end))
    }

    fn skip_slashes(&mut self) {
        while self.at < self.end && self.bytes[self.at] == b'/' {
            self.at += 1;
        }
    }

    /// Puts the text of a link before what is still to come.
    fn put_before(&mut self, text: &[u8]) -> Result<(), Fault> {
        let coming = self.end - self.at;
        let whole = text.len() + 1 + coming;
        if whole > PATH_BYTES_MAX {
            return Err(Fault { detail: Detail::Find, errno: libc::ENAMETOOLONG });
        }
        self.bytes.copy_within(self.at..self.end, text.len() + 1);
        self.bytes[..text.len()].copy_from_slice(text);
        self.bytes[text.len()] = b'/';
        self.at = 0;
        self.end = whole;
        Ok(())
    }
}

fn open(directory: RawFd, name: *const libc::c_char, extra: libc::c_int) -> RawFd {
    // SAFETY: `name` is a C string of the caller's, valid during the call.
    unsafe { libc::openat(directory, name, libc::O_PATH | libc::O_NOFOLLOW | libc::O_CLOEXEC | extra) }
}

/// The type bits of what a descriptor is open on.
pub(super) fn kind(fd: RawFd) -> Result<libc::mode_t, Fault> {
    // SAFETY: all zero is a valid `stat`, which the kernel overwrites.
    let mut stat: libc::stat = unsafe { std::mem::zeroed() };
    // SAFETY: `stat` is writable and the name is a static C string.
    match unsafe { libc::fstatat(fd, c"".as_ptr(), &mut stat, libc::AT_EMPTY_PATH) } {
        0 => Ok(stat.st_mode & libc::S_IFMT),
        _ => Err(Fault { detail: Detail::Find, errno: errno() }),
    }
}

/// Opens a path inside the root with `O_PATH`. `None` = missing, and that is all right.
pub(super) fn find(path: &CStr, missing: Missing) -> Result<Option<RawFd>, Fault> {
    let mut rest = Rest::new(path.to_bytes())?;
    let mut name = [0; NAME_BYTES_MAX + 1];
    let mut links = 0;
    let mut here = open(libc::AT_FDCWD, c"/".as_ptr(), libc::O_DIRECTORY);
    if here < 0 {
        return Err(Fault { detail: Detail::Find, errno: errno() });
    }
    loop {
        match rest.next(&mut name) {
            Ok(Some(last)) => match step(here, &mut rest, &name, last, missing, &mut links) {
                Ok(Some(there)) => {
                    close(here);
                    here = there;
                }
                Ok(None) => {
                    close(here);
                    return Ok(None);
                }
                Err(fault) => {
                    close(here);
                    return Err(fault);
                }
            },
            Ok(None) => return Ok(Some(here)),
            Err(fault) => {
                close(here);
                return Err(fault);
            }
        }
    }
}

/// From `here` by one name.
fn step(
    here: RawFd,
    rest: &mut Rest,
    name: &[u8; NAME_BYTES_MAX + 1],
    last: bool,
    missing: Missing,
    links: &mut usize,
) -> Result<Option<RawFd>, Fault> {
    let name = name.as_ptr().cast();
    let mut there = open(here, name, 0);
    if there < 0 && errno() == libc::ENOENT {
        match missing {
            Missing::Skip => return Ok(None),
            Missing::Fail => return Err(Fault { detail: Detail::Find, errno: libc::ENOENT }),
            Missing::File if last => make_file(here, name)?,
            Missing::File | Missing::Directory => make_directory(here, name)?,
        }
        there = open(here, name, 0);
    }
    if there < 0 {
        return match (errno(), missing) {
            (libc::ENOTDIR, Missing::Skip) => Ok(None),
            (errno, _) => Err(Fault { detail: Detail::Find, errno }),
        };
    }
    let is_link = match kind(there) {
        Ok(kind) => kind == libc::S_IFLNK,
        Err(fault) => {
            close(there);
            return Err(fault);
        }
    };
    if !is_link {
        return Ok(Some(there));
    }
    let followed = follow(here, there, rest, links);
    close(there);
    followed.map(Some)
}

/// Reads a link; answers where its text begins: the root, or again here.
fn follow(here: RawFd, link: RawFd, rest: &mut Rest, links: &mut usize) -> Result<RawFd, Fault> {
    *links += 1;
    if *links > LINKS_MAX {
        return Err(Fault { detail: Detail::Find, errno: libc::ELOOP });
    }
    let mut text = [0u8; PATH_BYTES_MAX];
    // SAFETY: `text` is writable for its length; the empty name means the link itself.
    let length = unsafe { libc::readlinkat(link, c"".as_ptr(), text.as_mut_ptr().cast(), PATH_BYTES_MAX) };
    let length = match usize::try_from(length) {
        Ok(length) if length < PATH_BYTES_MAX => length,
        Ok(_) => return Err(Fault { detail: Detail::Find, errno: libc::ENAMETOOLONG }),
        Err(_) => return Err(Fault { detail: Detail::Find, errno: errno() }),
    };
    let text = &text[..length];
    rest.put_before(text)?;
    let begins = match text.first() {
        Some(b'/') => open(libc::AT_FDCWD, c"/".as_ptr(), libc::O_DIRECTORY),
        _ => open(here, c".".as_ptr(), libc::O_DIRECTORY),
    };
    if begins < 0 { Err(Fault { detail: Detail::Find, errno: errno() }) } else { Ok(begins) }
}

fn make_directory(here: RawFd, name: *const libc::c_char) -> Result<(), Fault> {
    // SAFETY: `name` is a C string of the caller's.
    match unsafe { libc::mkdirat(here, name, 0o755) } {
        0 => Ok(()),
        _ => Err(Fault { detail: Detail::Make, errno: errno() }),
    }
}

fn make_file(here: RawFd, name: *const libc::c_char) -> Result<(), Fault> {
    let flags = libc::O_CREAT | libc::O_EXCL | libc::O_WRONLY | libc::O_NOFOLLOW | libc::O_CLOEXEC;
    // SAFETY: `name` is a C string of the caller's; the mode is a number.
    let made = unsafe { libc::openat(here, name, flags, 0o644 as libc::c_uint) };
    if made < 0 {
        return Err(Fault { detail: Detail::Make, errno: errno() });
    }
    close(made);
    Ok(())
}
