//! What is mounted in this mount namespace: `/proc/self/mountinfo` (proc(5)), parsed.

use std::ffi::OsString;
use std::io::{self, Read};
use std::os::unix::ffi::OsStringExt;
use std::path::PathBuf;

/// One mount.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mount {
    /// Its number, unique while it is mounted.
    pub id: u64,
    /// The mount it is attached to.
    pub parent: u64,
    /// Device number of the filesystem, major and minor.
    pub device: (u32, u32),
    /// Which directory of the filesystem is its root (other than `/` for a bind mount). As the kernel writes it:
    /// a root that was removed since ends in `//deleted`.
    pub root: PathBuf,
    /// Where it is attached, as this process sees it.
    pub target: PathBuf,
    /// Options of the mount: `rw,nosuid,relatime`.
    pub options: String,
    /// `shared:7`, `master:3`...
    pub propagation: Vec<String>,
    /// Filesystem type: `overlay`.
    pub kind: String,
    /// Where it comes from, as the filesystem sees it.
    pub source: PathBuf,
    /// Options of the filesystem: `lowerdir=...`. Undecoded, since each filesystem quotes in its own way.
    pub filesystem_options: String,
}

/// A line of mountinfo that is none.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("line {line} of mountinfo has no {missing}")]
pub struct MountinfoError {
    /// Which, from 1.
    pub line: usize,
    /// What it should have.
    pub missing: &'static str,
}

/// The mounts of this text, in its order: a mount comes after its parent, and of two at one target the later
/// covers the earlier. Paths are bytes: they need not be UTF-8.
///
/// # Errors
/// [`MountinfoError`] for the first line that is none.
pub fn parse(text: &[u8]) -> Result<Vec<Mount>, MountinfoError> {
    let lines = text.split(|byte| *byte == b'\n').enumerate();
    lines
        .filter(|(_, line)| !line.is_empty())
        .map(|(index, line)| parse_line(line).map_err(|missing| MountinfoError { line: index + 1, missing }))
        .collect()
}

/// The mounts of this process's namespace.
pub fn read() -> io::Result<Vec<Mount>> {
    // The file says it is empty, and a reader that believes it begins with 32 bytes: in few, long reads there is
    // less time for mounts to change in between.
    let mut text = Vec::with_capacity(64 << 10);
    std::fs::File::open("/proc/self/mountinfo")?.read_to_end(&mut text)?;
    parse(&text).map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error))
}

fn parse_line(line: &[u8]) -> Result<Mount, &'static str> {
    let mut fields = line.split(|byte| *byte == b' ');
    let mut next = |missing: &'static str| fields.next().ok_or(missing);
    let id = number(next("mount ID")?).ok_or("mount ID")?;
    let parent = number(next("parent ID")?).ok_or("parent ID")?;
    let device = device(next("device number")?).ok_or("device number")?;
    let root = path(next("root")?);
    let target = path(next("mount point")?);
    let options = text(next("mount options")?);
    let mut propagation = Vec::new();
    loop {
        match next("separator")? {
            b"-" => break,
            field => propagation.push(text(field)),
        }
    }
    let kind = text(next("filesystem type")?);
    let source = path(next("mount source")?);
    let filesystem_options = text(next("filesystem options")?);
    Ok(Mount { id, parent, device, root, target, options, propagation, kind, source, filesystem_options })
}

fn number<N: std::str::FromStr>(field: &[u8]) -> Option<N> {
    std::str::from_utf8(field).ok()?.parse().ok()
}

fn device(field: &[u8]) -> Option<(u32, u32)> {
    let colon = field.iter().position(|byte| *byte == b':')?;
    Some((number(&field[..colon])?, number(&field[colon + 1..])?))
}

fn text(field: &[u8]) -> String {
    String::from_utf8_lossy(field).into_owned()
}

fn path(field: &[u8]) -> PathBuf {
    PathBuf::from(OsString::from_vec(unescape(field)))
}

/// Undoes the kernel's `mangle_path`: space, tab, newline, backslash and `#` come as `\` and three octal digits.
/// A backslash that begins no such escape stands for itself.
fn unescape(field: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(field.len());
    let mut rest = field;
    while let Some((first, after)) = rest.split_first() {
        match (first, after) {
            (b'\\', [a @ b'0'..=b'3', b @ b'0'..=b'7', c @ b'0'..=b'7', tail @ ..]) => {
                bytes.push((a - b'0') << 6 | (b - b'0') << 3 | (c - b'0'));
                rest = tail;
            }
            _ => {
                bytes.push(*first);
                rest = after;
            }
        }
    }
    bytes
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;

    #[test]
    fn a_real_mountinfo_is_read_field_by_field() {
        let mounts = parse(include_bytes!("../../../fixtures/mountinfo/host.txt")).unwrap();
        assert_eq!(mounts.len(), 11);
        let overlay = mounts.iter().find(|mount| mount.kind == "overlay").unwrap();
        assert_eq!(overlay.id, 151);
        assert_eq!(overlay.parent, 27);
        assert_eq!(overlay.device, (0, 47));
        assert_eq!(overlay.root, Path::new("/"));
        assert_eq!(
            overlay.target,
            Path::new("/var/lib/keelblock/provisioner/containers/web/backends/overlay/rootfses/0")
        );
        assert_eq!(overlay.options, "rw,relatime");
        assert_eq!(overlay.propagation, ["shared:81", "master:3"]);
        assert!(overlay.filesystem_options.starts_with("rw,lowerdir+="));
    }

    #[test]
    fn escaped_paths_come_back_as_they_are_on_disk() {
        let mounts = parse(include_bytes!("../../../fixtures/mountinfo/odd-paths.txt")).unwrap();
        let targets: Vec<_> = mounts.iter().map(|mount| mount.target.as_path()).collect();
        assert_eq!(
            targets,
            [
                Path::new("/mnt/with space"),
                Path::new("/mnt/tab\there"),
                Path::new("/mnt/new\nline"),
                Path::new("/mnt/back\\slash"),
                Path::new("/mnt/back\\040slash-then-digits"),
                Path::new("/mnt/#hash"),
                Path::new("/mnt/gone"),
                Path::new("/mnt/grün"),
            ]
        );
        assert_eq!(mounts[6].root, Path::new("/layers/one//deleted"));
        assert_eq!(mounts[5].source, Path::new(""));
    }

    #[test]
    fn a_path_need_not_be_utf_8() {
        let mounts = parse(b"1 0 0:1 / /mnt/\xff rw - tmpfs none rw\n").unwrap();
        assert_eq!(mounts[0].target, PathBuf::from(OsString::from_vec(b"/mnt/\xff".to_vec())));
    }

    #[test]
    fn a_line_that_is_cut_names_itself_and_what_it_lacks() {
        let good = "1 0 0:1 / / rw - tmpfs none rw\n";
        for (cut, missing) in [
            ("x 0 0:1 / / rw - tmpfs none rw", "mount ID"),
            ("2", "parent ID"),
            ("2 1 01 / / rw - tmpfs none rw", "device number"),
            ("2 1 0:1", "root"),
            ("2 1 0:1 / /mnt rw shared:1", "separator"),
            ("2 1 0:1 / /mnt rw -", "filesystem type"),
            ("2 1 0:1 / /mnt rw - tmpfs none", "filesystem options"),
        ] {
            let error = parse(format!("{good}{cut}\n").as_bytes()).unwrap_err();
            assert_eq!(error, MountinfoError { line: 2, missing }, "{cut}");
        }
    }

    #[test]
    fn the_root_of_this_process_is_mounted() {
        let mounts = read().unwrap();
        assert!(mounts.iter().any(|mount| mount.target == Path::new("/")));
    }
}
