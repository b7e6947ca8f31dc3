//! What must hold of archives and layouts, whatever is in them: body of the fuzz target `archive`.
//!
//! The input is text in parts, set apart by 0x1e. The first is a letter for the form and then the reference or tag that
//! is asked for; each of the others is a member: its name, a line break, its content. Digests cannot be guessed, so a
//! name `@` stands for `blobs/sha256/` and the member's digest, and in names and contents `@N` for the digest of an
//! earlier member and `#N` for its length. The form `r` is a file as it is: a tar, compressed or not, or anything.

use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::{Mutex, OnceLock};

use keelblock_actors::image::digest::Digest;
use keelblock_actors::image::plan::{ImagePlan, LayerSource};
use keelblock_actors::image::reference::Reference;
use keelblock_actors::stop::Stop;

use super::Archives;
use super::index::{TarIndex, normal};
use crate::fuzzing::{home, tar_header};
use crate::limits::Limits;
use crate::provider::manifest::Platform;
use crate::store::fuzzing::Extent;

const SEPARATOR: u8 = 0x1e;
const MEMBERS_MAX: usize = 16;
const DOCUMENT_BYTES_MAX: u64 = 8 << 10;

/// Archives of images: a plan's layers lie within the archive, in members that the tar reader of layers finds in the same
/// places, and nothing is left in the spool that was not finished.
pub(crate) fn archive(bytes: &[u8]) {
    static HOME: OnceLock<Mutex<PathBuf>> = OnceLock::new();
    let home = HOME.get_or_init(|| Mutex::new(home("archive")));
    let home = home.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
    let (first, rest) = match bytes.iter().position(|byte| *byte == SEPARATOR) {
        Some(at) => (&bytes[..at], &bytes[at + 1..]),
        None => (bytes, &[][..]),
    };
    let (form, asked) = first.split_first().map_or((b'd', &[][..]), |(form, asked)| (*form, asked));
    let asked = std::str::from_utf8(asked).ok().filter(|asked| !asked.is_empty());
    let raw = form == b'r';
    let (tar, members) = if raw { (rest.to_vec(), vec![]) } else { build(rest) };

    let limits = Limits {
        manifest_bytes_max: DOCUMENT_BYTES_MAX,
        config_bytes_max: DOCUMENT_BYTES_MAX,
        pax_bytes_max: 4096,
        path_bytes_max: 600,
        layers_max: 8,
        archive_members_max: 64,
        archive_bytes_max: 1 << 20,
        ..Limits::default()
    };
    let spool = home.join("spool");
    let archives =
        Archives::new(limits.clone(), spool.clone(), "linux/amd64".parse::<Platform>().expect("a platform"));
    let reference = asked.and_then(|asked| asked.parse::<Reference>().ok());
    let path = home.join("archive.tar");
    let plan = if form == b'l' {
        let layout = home.join("layout");
        lay_out(&layout, &members);
        let plan = archives.oci_layout(&layout, asked);
        check(plan.ok().as_ref(), &limits, &members, tar.len() as u64);
        std::fs::remove_dir_all(&layout).expect("what was laid out can be removed");
        return;
    } else {
        std::fs::write(&path, &tar).expect("a file in memory");
        match form {
            b'o' => archives.oci_archive(&path, asked),
            _ => archives.docker_archive(&path, reference.as_ref()),
        }
    };
    let spooled = spool.read_dir().into_iter().flatten().flatten().map(|entry| entry.path());
    let spooled: Vec<PathBuf> = spooled.collect();
    assert!(spooled.iter().all(|path| path.extension().is_some_and(|end| end == "tar")), "{spooled:?}");
    let length = match spooled.first() {
        Some(path) => path.metadata().expect("it is there").len(),
        None => tar.len() as u64,
    };
    assert!(length <= limits.archive_bytes_max.max(tar.len() as u64));
    check(plan.ok().as_ref(), &limits, &members, length);
    for path in spooled {
        std::fs::remove_file(path).expect("what was spooled can be removed");
    }
    if tar.len() <= 64 << 10 {
        same_members(&path, &tar, &limits);
    }
}

fn check(plan: Option<&ImagePlan>, limits: &Limits, members: &[(String, Vec<u8>)], length: u64) {
    let Some(plan) = plan else { return };
    assert!(plan.layers.len() <= limits.layers_max);
    if !members.is_empty() {
        let config = members.iter().any(|(_, content)| Digest::of(content) == plan.identity.config);
        assert!(config || plan.identity.config.algorithm() == "sha512", "the config is no member");
    }
    for layer in &plan.layers {
        match &layer.source {
            LayerSource::Archive { path, offset, size, .. } => {
                assert!(offset % 512 == 0 && offset + size <= length && layer.blob.size == Some(*size));
                let tar = std::fs::read(path).expect("it was read before");
                let extent = &tar[*offset as usize..(offset + size) as usize];
                let is_member = if members.is_empty() {
                    crate::store::fuzzing::members(&tar).is_none_or(|members| {
                        let here = |member: &Extent| (member.offset, member.size) == (*offset, *size);
                        members.iter().any(|member| member.is_file && here(member))
                    })
                } else {
                    members.iter().any(|(_, content)| content == extent)
                };
                assert!(is_member, "no member is what is at {offset}, {size} bytes long");
            }
            LayerSource::File { path } => {
                let parts: Vec<_> = path.iter().rev().take(3).collect();
                assert!(parts.len() == 3 && parts[2] == "blobs", "{} is no blob", path.display());
            }
            LayerSource::Registry(_) | LayerSource::Aci { .. } => panic!("an archive leads elsewhere"),
        }
    }
}

/// What the index takes for a file, the tar reader of layers takes for one, and at the same place.
fn same_members(path: &std::path::Path, tar: &[u8], limits: &Limits) {
    let file = std::fs::File::open(path).expect("it was written");
    let Ok(index) = TarIndex::read(path, path, file, limits, &Stop::default()) else { return };
    let Some(members) = crate::store::fuzzing::members(tar) else { return };
    let mut last = HashMap::new();
    for member in members {
        let name = str::from_utf8(&member.name).ok().and_then(|name| normal("", name));
        if let Some(name) = name {
            last.insert(name, member);
        }
    }
    assert_eq!(index.names().count(), last.len(), "one finds more members than the other");
    for (name, member) in last {
        assert!(index.has(&name), "{name:?} is not found");
        if member.is_file {
            let extent = index.find(&name).expect("a file is found");
            assert_eq!((extent.offset, extent.size), (member.offset, member.size), "{name:?} lies elsewhere");
        }
    }
}

/// The members that the parts of an input mean, and a tar of them.
fn build(parts: &[u8]) -> (Vec<u8>, Vec<(String, Vec<u8>)>) {
    let mut members: Vec<(String, Vec<u8>)> = Vec::new();
    let mut tar = Vec::new();
    for part in parts.split(|byte| *byte == SEPARATOR).take(MEMBERS_MAX) {
        let at = part.iter().position(|byte| *byte == b'\n').unwrap_or(part.len());
        let content = fill_in(part.get(at + 1..).unwrap_or_default(), &members);
        let name = match &part[..at] {
            b"@" => format!("blobs/sha256/{}", Digest::of(&content).hex()).into_bytes(),
            name => fill_in(name, &members),
        };
        let (kind, link, data) = match &content[..] {
            [b'-', b'>', target @ ..] => (b'2', target, &[][..]),
            [b'=', b'>', target @ ..] => (b'1', target, &[][..]),
            content => (if name.ends_with(b"/") { b'5' } else { b'0' }, &[][..], content),
        };
        let mut put = |name: &[u8], kind, link: &[u8], data: &[u8]| {
            tar.extend_from_slice(&tar_header(name, kind, link, data.len()));
            tar.extend_from_slice(data);
            tar.resize(tar.len().next_multiple_of(512), 0);
        };
        for (long, kind) in [(&name[..], b'L'), (link, b'K')] {
            if long.len() > 100 {
                put(b"././@LongLink", kind, b"", &[long, b"\0"].concat());
            }
        }
        put(&name, kind, link, data);
        members.push((String::from_utf8_lossy(&name).into_owned(), content));
    }
    tar.resize(tar.len() + 1024, 0);
    (tar, members)
}

/// `@N` and `#N` written out; the number is one digit, in base 36.
fn fill_in(text: &[u8], members: &[(String, Vec<u8>)]) -> Vec<u8> {
    let mut filled = Vec::with_capacity(text.len());
    let mut rest = text;
    while let Some((first, more)) = rest.split_first() {
        let number = more.first().and_then(|digit| char::from(*digit).to_digit(36));
        let member = number.and_then(|number| members.get(number as usize));
        rest = match (first, member) {
            (b'@', Some((_, content))) => {
                filled.extend_from_slice(Digest::of(content).hex().as_bytes());
                &more[1..]
            }
            (b'#', Some((_, content))) => {
                filled.extend_from_slice(content.len().to_string().as_bytes());
                &more[1..]
            }
            _ => {
                filled.push(*first);
                more
            }
        };
        if filled.len() > 64 << 10 {
            break;
        }
    }
    filled
}

/// The members as files of a directory. Names that lead out of it, and those that are taken, are left out.
fn lay_out(layout: &std::path::Path, members: &[(String, Vec<u8>)]) {
    std::fs::create_dir_all(layout).expect("a directory in memory");
    for (name, content) in members {
        let Some(name) = normal("", name).filter(|name| !name.is_empty() && name.len() < 200) else {
            continue;
        };
        let path = layout.join(name.replace('\0', "0"));
        let parent = path.parent().unwrap_or(layout);
        if std::fs::create_dir_all(parent).is_ok() && path.symlink_metadata().is_err() {
            let _ = std::fs::write(path, content);
        }
    }
}
