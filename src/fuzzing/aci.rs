//! The fuzz target `aci`: archives of Appc images, whole and by whitelists.
//!
//! Bytes are read as a script, as those of `layers`: how the archive comes, a whitelist, then entries.

use std::collections::BTreeMap;
use std::io::Write;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

use keelblock_actors::image::appc::{AciView, ImageId, PathWhitelist};
use keelblock_actors::image::digest::Digest;
use keelblock_actors::ports::{Keep, Store};

use super::layers::{Blob, ENTRIES_MAX, Marks, Place, describe};
use super::script::{Script, entry, put};
use super::tar_header;

/// What whitelists are made of.
const LISTED: [&str; 8] = ["/a", "/a/b", "b", "/etc/passwd", "/lib/../c", "/link", "/", "/d/.wh.a"];

/// Whatever comes as an ACI, unpacking ends with a layer or an error, touches nothing outside of the store and leaves nothing
/// staged; a tree and an image of it, made on one thread or many, are the same. In what is taken any name is a name, nothing is
/// a mark of overlayfs, and every file has as many names as the tree has for it. Where the archive has no symlinks, a
/// whitelist lets through just what it says, with the same content.
pub fn aci(bytes: &[u8]) {
    static PLACE: OnceLock<Mutex<Place>> = OnceLock::new();
    let place = PLACE.get_or_init(|| Mutex::new(Place::new("aci")));
    let place = place.lock().unwrap_or_else(PoisonError::into_inner);
    let mut script = Script { left: bytes, aci: true };
    let (how, lists) = (script.byte(), script.byte());
    let whitelist = PathWhitelist::new((0..lists % 4).map(|_| script.pick(&LISTED)).collect::<Vec<_>>());
    let tar = archive(&mut script, how);
    let blob = packed(&tar, how);
    let of = |whitelists| Blob {
        bytes: blob.clone(),
        tar: Some(tar.clone()),
        view: Some(AciView { image_id: image_id(&tar), whitelists }),
        threaded: how & 0x40 != 0,
        twice: how & 0x88 == 0x80,
    };
    let whole = taken(&place, &of(Vec::new()));
    if let Some(whitelist) = whitelist {
        let part = taken(&place, &of(vec![Arc::new(whitelist.clone())]));
        if let (Some(whole), Some(part), false) = (&whole, &part, has_symlinks(&tar)) {
            lets_through(&whitelist, whole, part);
        }
    }
    for store in [&place.store, &place.other, &place.images] {
        store.prune(&Keep { images: Vec::new() }, &|| Ok(Vec::new())).expect("a prune");
    }
}

/// What is at each path: `None` = a directory.
type Names = BTreeMap<Vec<u8>, Option<Vec<u8>>>;

fn taken(place: &Place, blob: &Blob) -> Option<Names> {
    let layer = place.unpack(&place.store, blob, blob.threaded);
    if blob.twice {
        let other = place.unpack(&place.other, blob, !blob.threaded);
        assert_eq!(layer.as_ref().map(describe), other.as_ref().map(describe), "threads matter");
    }
    let image = place.unpack(&place.images, blob, blob.threaded);
    assert_eq!(layer.as_ref().map(describe), image.as_ref().map(describe), "how it is kept matters");
    place.check_outside();
    let tree = &layer?.dir.path.clone();
    place.check_tree(tree, Some(Marks::Plain));
    let mut names = Names::new();
    let mut todo = vec![tree.clone()];
    while let Some(dir) = todo.pop() {
        for child in dir.read_dir().expect("it can be listed") {
            let path = child.expect("it can be listed").path();
            let stat = path.symlink_metadata().expect("it is there");
            let name = below(tree, &path);
            // Sparse ones are large, and read in other targets.
            let content =
                || (stat.len() < 1 << 20).then(|| std::fs::read(&path).expect("root reads everything"));
            let is_file = stat.is_file();
            names.insert(
                name,
                (!stat.is_dir()).then(|| if is_file { content() } else { None }.unwrap_or_default()),
            );
            if stat.is_dir() {
                todo.push(path);
            }
        }
    }
    Some(names)
}

fn below(tree: &Path, path: &Path) -> Vec<u8> {
    path.strip_prefix(tree).expect("it is below").as_os_str().as_bytes().to_vec()
}

fn lets_through(whitelist: &PathWhitelist, whole: &Names, part: &Names) {
    for (name, content) in whole {
        let through = whitelist.lets_through(name, content.is_none());
        let led = part.keys().any(|other| other.starts_with(&[name, &b"/"[..]].concat()));
        match part.get(name) {
            Some(found) => {
                assert!(through || led && content.is_none(), "{name:?} is not left out");
                assert_eq!(found, content, "{name:?} is not what it is in the whole");
            }
            // Directories that only are on the way of others may not be there.
            None => assert!(!through || content.is_none(), "{name:?} is left out"),
        }
    }
    for name in part.keys() {
        assert!(whole.contains_key(name), "{name:?} is not in the whole");
    }
}

/// The archive that a script means: a manifest, first, last or not at all, and entries.
fn archive(script: &mut Script<'_>, how: usize) -> Vec<u8> {
    let mut tar = Vec::new();
    let manifest = |tar: &mut Vec<u8>| put(tar, tar_header(b"manifest", b'0', b"", 2), b"{}");
    let place = how >> 2 & 3;
    if place & 1 == 0 {
        manifest(&mut tar);
    }
    for _ in 0..ENTRIES_MAX {
        if script.left.is_empty() {
            break;
        }
        let op = script.byte();
        entry(script, op, &mut tar);
    }
    if place == 1 {
        manifest(&mut tar);
    }
    if how & 0x10 == 0 {
        tar.resize(tar.len() + 1024, 0);
    }
    tar
}

fn packed(tar: &[u8], how: usize) -> Vec<u8> {
    const FAILS: &str = "memory does not fail";
    match how % 4 {
        0 => tar.to_vec(),
        1 => {
            let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
            encoder.write_all(tar).and_then(|()| encoder.finish()).expect(FAILS)
        }
        2 => {
            let mut encoder = bzip2::write::BzEncoder::new(Vec::new(), bzip2::Compression::fast());
            encoder.write_all(tar).and_then(|()| encoder.finish()).expect(FAILS)
        }
        _ => {
            let mut encoder = liblzma::write::XzEncoder::new(Vec::new(), 0);
            encoder.write_all(tar).and_then(|()| encoder.finish()).expect(FAILS)
        }
    }
}

fn has_symlinks(tar: &[u8]) -> bool {
    // Payload may look like a header: then less is asserted.
    tar.chunks(512)
        .any(|block| block.len() == 512 && block[156] == b'2' && block.get(257..262) == Some(b"ustar"))
}

fn image_id(tar: &[u8]) -> ImageId {
    let any: ImageId = format!("sha512-{}", "0".repeat(128)).parse().expect("128 digits");
    let mut hasher = any.digest().hasher();
    hasher.update(tar);
    let digest: Digest = hasher.finish();
    ImageId::of(&digest).expect("it is a SHA-512")
}
