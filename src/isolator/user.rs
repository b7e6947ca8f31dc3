//! Users and groups as a container's own files name them.
//!
//! `/etc/passwd` and `/etc/group` are the image's: they are opened inside its root whatever links it holds, read
//! up to a limit, and lines that make no sense are passed over.

use std::fs::File;
use std::io::{self, Read};
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};

use keelblock_actors::error::quote;
use keelblock_actors::launch::Credentials;
use rustix::fs::{Mode, OFlags, ResolveFlags, open, openat2};

/// Why a user cannot be found.
#[derive(Debug, thiserror::Error)]
pub enum UserError {
    /// The file does not name them.
    #[error("no {what} {name:?} in {file} of the container; use a number, or an image that has it")]
    Unknown {
        /// user or group.
        what: &'static str,
        /// As asked for, cut.
        name: String,
        /// Inside the container.
        file: &'static str,
    },
    /// A number that is none of a user.
    #[error("{text:?} is no {what} number")]
    Number {
        /// user or group.
        what: &'static str,
        /// As asked for, cut.
        text: String,
    },
    /// A file of the image whose owner it should be.
    #[error("cannot find {path:?} in the container, whose {what} its image runs as")]
    Owner {
        /// user or group.
        what: &'static str,
        /// Inside the container, cut.
        path: String,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The file, or the root, cannot be read.
    #[error("cannot read {file} of the container at {root}")]
    Read {
        /// Inside the container.
        file: &'static str,
        /// On the host.
        root: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
}

/// A user of a container.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct User {
    /// Numbers.
    pub credentials: Credentials,
    /// Home directory, when `/etc/passwd` has one.
    pub home: Option<String>,
}

/// Who `user[:group]` is in the root filesystem at `root`, by the rules of docker: a name or number with an entry
/// has that entry's group and all groups that list it; a number without one has group 0; a group that is named
/// stands alone. Files of more than `bytes_max` bytes are not read.
///
/// # Errors
/// [`UserError`].
pub fn resolve(root: &Path, spec: &str, bytes_max: u64) -> Result<User, UserError> {
    let directory = open_root(root)?;
    let read = |file| read(&directory, file, root, bytes_max);
    parse(spec, &read("/etc/passwd")?, &read("/etc/group")?)
}

pub(super) fn open_root(root: &Path) -> Result<OwnedFd, UserError> {
    open(root, OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())
        .map_err(|source| UserError::Read { file: "/", root: root.to_owned(), source: source.into() })
}

/// The text of a file, empty when it is missing.
pub(super) fn read(
    directory: &OwnedFd,
    file: &'static str,
    root: &Path,
    bytes_max: u64,
) -> Result<String, UserError> {
    let failed = |source| UserError::Read { file, root: root.to_owned(), source };
    // A fifo or a device of the image must not hold us up.
    let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::CLOEXEC;
    let inside = ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS;
    let file = match openat2(directory.as_fd(), file, flags, Mode::empty(), inside) {
        Ok(file) => File::from(file),
        Err(rustix::io::Errno::NOENT | rustix::io::Errno::NOTDIR) => return Ok(String::new()),
        Err(source) => return Err(failed(source.into())),
    };
    if !file.metadata().map_err(failed)?.is_file() {
        return Err(failed(io::Error::new(io::ErrorKind::InvalidData, "it is no regular file")));
    }
    let mut bytes = Vec::new();
    file.take(bytes_max.saturating_add(1)).read_to_end(&mut bytes).map_err(failed)?;
    if bytes.len() as u64 > bytes_max {
        let text = format!("it is longer than {bytes_max} bytes (--user_file_bytes_max)");
        return Err(failed(io::Error::new(io::ErrorKind::InvalidData, text)));
    }
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

/// A line of `/etc/passwd`.
pub(super) struct Entry<'a> {
    pub(super) name: &'a str,
    pub(super) uid: u32,
    pub(super) gid: u32,
    pub(super) home: &'a str,
}

pub(super) fn entries(passwd: &str) -> impl Iterator<Item = Entry<'_>> {
    passwd.lines().filter_map(|line| {
        let mut fields = line.split(':');
        let name = fields.next().filter(|name| !name.is_empty())?;
        let uid = fields.nth(1)?.parse().ok()?;
        let gid = fields.next()?.parse().ok()?;
        let home = fields.nth(1).unwrap_or_default();
        Some(Entry { name, uid, gid, home })
    })
}

/// Name, number and members of every group.
pub(super) fn groups(group: &str) -> impl Iterator<Item = (&str, u32, &str)> {
    group.lines().filter_map(|line| {
        let mut fields = line.split(':');
        let name = fields.next().filter(|name| !name.is_empty())?;
        let gid = fields.nth(1)?.parse().ok()?;
        Some((name, gid, fields.next().unwrap_or_default()))
    })
}

fn parse(spec: &str, passwd: &str, group: &str) -> Result<User, UserError> {
    let (user, own_group) = match spec.split_once(':') {
        Some((user, group)) => (user, Some(group).filter(|group| !group.is_empty())),
        None => (spec, None),
    };
    let user = if user.is_empty() { "0" } else { user };
    let entry = entries(passwd)
        .find(|entry| entry.name == user)
        .or_else(|| entries(passwd).find(|entry| user.parse() == Ok(entry.uid)));
    let uid = match &entry {
        Some(entry) => entry.uid,
        None => number("user", user, "/etc/passwd")?,
    };
    let gid = match own_group {
        Some(name) => match groups(group).find(|(known, ..)| *known == name) {
            Some((_, gid, _)) => gid,
            None => number("group", name, "/etc/group")?,
        },
        None => entry.as_ref().map_or(0, |entry| entry.gid),
    };
    let mut supplementary = Vec::new();
    if let (Some(entry), None) = (&entry, own_group) {
        let member = |members: &str| members.split(',').any(|member| member.trim() == entry.name);
        let lists = groups(group).filter(|(_, _, members)| member(members)).map(|(_, gid, _)| gid);
        supplementary.extend(lists);
        supplementary.sort_unstable();
        supplementary.dedup();
        // NGROUPS_MAX of Linux.
        supplementary.truncate(65536);
    }
    if [uid, gid].contains(&u32::MAX) {
        return Err(UserError::Number { what: "user", text: quote(spec) });
    }
    let home = entry.map(|entry| entry.home.to_owned()).filter(|home| home.starts_with('/'));
    Ok(User { credentials: Credentials { uid, gid, groups: supplementary }, home })
}

pub(super) fn number(what: &'static str, text: &str, file: &'static str) -> Result<u32, UserError> {
    if !text.bytes().all(|byte| byte.is_ascii_digit()) {
        return Err(UserError::Unknown { what, name: quote(text), file });
    }
    text.parse()
        .ok()
        .filter(|number| *number != u32::MAX)
        .ok_or_else(|| UserError::Number { what, text: quote(text) })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::symlink;

    const PASSWD: &str =
        "root:x:0:0:root:/root:/bin/sh\nbroken\nweb:x:33:34::/srv/www:\n44:x:7:8::/:\nx:y:z\n";
    const GROUP: &str = "root:x:0:\nadm:x:4:web,root\nweb:x:34:\nlog:x:9:web\nodd:x\n";

    fn ids(spec: &str) -> (u32, u32, Vec<u32>) {
        let user = parse(spec, PASSWD, GROUP).expect(spec);
        (user.credentials.uid, user.credentials.gid, user.credentials.groups)
    }

    #[test]
    fn names_and_numbers_resolve_as_docker_does() {
        assert_eq!(ids("web"), (33, 34, vec![4, 9]));
        assert_eq!(ids("33"), (33, 34, vec![4, 9]));
        assert_eq!(ids("web:log"), (33, 9, vec![]));
        assert_eq!(ids("web:"), (33, 34, vec![4, 9]));
        assert_eq!(ids("1000"), (1000, 0, vec![]));
        assert_eq!(ids("1000:1001"), (1000, 1001, vec![]));
        assert_eq!(ids(":adm"), (0, 4, vec![]));
        assert_eq!(ids(""), (0, 0, vec![4]));
        assert_eq!(ids("44"), (7, 8, vec![]), "a name of digits is a name first");
    }

    #[test]
    fn unknown_names_and_impossible_numbers_are_refused() {
        for spec in ["nobody", "web:nogroup", "-1", "4294967295", "99999999999", "0:4294967295", "a b"] {
            assert!(parse(spec, PASSWD, GROUP).is_err(), "{spec}");
        }
        let error = parse("nobody", PASSWD, GROUP).expect_err("unknown").to_string();
        assert!(error.contains("nobody") && error.contains("/etc/passwd"), "{error}");
    }

    #[test]
    fn links_of_the_image_do_not_lead_to_the_hosts_users() {
        let directory = tempfile::tempdir().expect("a directory");
        let outside = directory.path().join("outside");
        std::fs::write(&outside, "spy:x:5:5::/:\n").expect("written");
        let root = directory.path().join("root");
        std::fs::create_dir_all(root.join("etc")).expect("made");
        symlink(&outside, root.join("etc/passwd")).expect("linked");
        assert!(matches!(resolve(&root, "spy", 4 << 20), Err(UserError::Unknown { .. })));
        symlink("../../../../../../../../etc/shadow", root.join("etc/group")).expect("linked");
        assert_eq!(resolve(&root, "12", 4 << 20).expect("no files").credentials.uid, 12);
    }

    #[test]
    fn files_longer_than_the_limit_are_refused_by_the_name_of_its_flag() {
        let directory = tempfile::tempdir().expect("a directory");
        std::fs::create_dir_all(directory.path().join("etc")).expect("made");
        std::fs::write(directory.path().join("etc/passwd"), "a:x:5:5::/:\n").expect("written");
        assert_eq!(resolve(directory.path(), "a", 12).expect("as long as allowed").credentials.uid, 5);
        let error = resolve(directory.path(), "a", 11).expect_err("longer");
        let text = keelblock_actors::error::chain(&error);
        assert!(text.contains("/etc/passwd") && text.contains("11 bytes (--user_file_bytes_max)"), "{text}");
    }

    #[test]
    fn a_fifo_for_passwd_fails_instead_of_waiting() {
        let directory = tempfile::tempdir().expect("a directory");
        std::fs::create_dir_all(directory.path().join("etc")).expect("made");
        nix::unistd::mkfifo(&directory.path().join("etc/passwd"), nix::sys::stat::Mode::S_IRWXU)
            .expect("made");
        assert!(matches!(resolve(directory.path(), "root", 4 << 20), Err(UserError::Read { .. })));
    }
}
