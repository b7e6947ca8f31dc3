//! What of an image's archive makes a layer.
//!
//! The tar of an ACI holds `manifest` and `rootfs/`; the layer is what is in `rootfs/`, of that what the path whitelists let
//! through: those of the image itself and of every image on whose behalf it is there (appc spec, ace.md, "Filesystem
//! Setup", step 3). So one ACI may make several layers, and none of them is what its digest would be as a Docker layer:
//! each has an ID of its own.

use std::borrow::Cow;
use std::collections::BTreeSet;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use super::name::ImageId;
use crate::image::digest::{DiffId, Hasher};

/// Paths that exist in a root filesystem, all others are left out. Never empty.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct PathWhitelist {
    /// Relative to the root, without `.`, `..` and empty names. Empty for the root itself.
    paths: BTreeSet<String>,
    /// Directories above them.
    above: BTreeSet<String>,
}

impl PathWhitelist {
    /// The whitelist of these paths, each absolute or relative to the root. `None` for no paths: all are let through.
    pub fn new<'a>(paths: impl IntoIterator<Item = &'a str>) -> Option<Self> {
        let clean = |path: &str| {
            let mut names = Vec::new();
            for name in path.split('/') {
                match name {
                    "" | "." => {}
                    ".." => drop(names.pop()),
                    name => names.push(name),
                }
            }
            names.join("/")
        };
        let paths: BTreeSet<String> = paths.into_iter().map(clean).collect();
        let mut above = BTreeSet::new();
        for path in &paths {
            let mut end = path.len();
            while let Some(slash) = path[..end].rfind('/') {
                end = slash;
                if !above.insert(path[..end].to_owned()) {
                    break;
                }
            }
        }
        (!paths.is_empty()).then_some(Self { paths, above })
    }

    /// Whether an entry at this path (relative to the root, clean) is let through. The root always is; a directory also is
    /// when it leads to a path that is.
    pub fn lets_through(&self, path: &[u8], is_dir: bool) -> bool {
        if path.is_empty() {
            return true;
        }
        let Ok(path) = std::str::from_utf8(path) else { return false };
        self.paths.contains(path) || (is_dir && self.above.contains(path))
    }
}

/// The layer that an ACI makes at one place of an image.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct AciView {
    /// Digest that its tar must have.
    pub image_id: ImageId,
    /// All of these must let an entry through. Not written down: a record needs none, and a plan that is to be pulled is made
    /// of manifests.
    #[serde(skip)]
    pub whitelists: Vec<Arc<PathWhitelist>>,
}

impl AciView {
    /// All of an ACI.
    pub fn whole(image_id: ImageId) -> Self {
        Self { image_id, whitelists: Vec::new() }
    }

    /// Whether an entry is part of the layer.
    pub fn lets_through(&self, path: &[u8], is_dir: bool) -> bool {
        self.whitelists.iter().all(|whitelist| whitelist.lets_through(path, is_dir))
    }

    /// What the layer is stored by. The same for the same image and whitelists, in any order, however often each.
    pub fn diff_id(&self) -> DiffId {
        let mut of_whitelists = BTreeSet::new();
        for whitelist in &self.whitelists {
            let mut hasher = self.image_id.digest().hasher();
            for path in &whitelist.paths {
                hasher.update(path.as_bytes());
                hasher.update(&[0]);
            }
            of_whitelists.insert(hasher.finish().hex());
        }
        let mut hasher: Hasher = self.image_id.digest().hasher();
        // No tar begins so: this is no digest of one.
        hasher.update(b"keelblock: rootfs of an ACI\n");
        hasher.update(self.image_id.to_string().as_bytes());
        for digest in of_whitelists {
            hasher.update(b"\n");
            hasher.update(digest.as_bytes());
        }
        DiffId(hasher.finish())
    }
}

/// A label's value in a name: without commas and control characters.
pub(super) fn escape(value: &str) -> Cow<'_, str> {
    if !value.contains(|c: char| matches!(c, ',' | '%') || c.is_control()) {
        return value.into();
    }
    let mut text = String::new();
    for character in value.chars() {
        match character {
            ',' | '%' => text.push_str(&format!("%{:02X}", u32::from(character))),
            c if c.is_control() => {
                let mut bytes = [0; 4];
                c.encode_utf8(&mut bytes).bytes().for_each(|byte| text.push_str(&format!("%{byte:02X}")));
            }
            c => text.push(c),
        }
    }
    text.into()
}

/// The value that [`escape`] wrote. A `%` that begins no escape stands for itself.
pub(super) fn unescape(text: &str) -> String {
    let (mut bytes, mut rest) = (Vec::with_capacity(text.len()), text.as_bytes());
    while let [first, tail @ ..] = rest {
        let digit = |at: usize| tail.get(at).and_then(|byte| char::from(*byte).to_digit(16));
        match (first, digit(0), digit(1)) {
            (b'%', Some(high), Some(low)) => {
                bytes.push((high * 16 + low) as u8);
                rest = &tail[2..];
            }
            _ => {
                bytes.push(*first);
                rest = tail;
            }
        }
    }
    String::from_utf8(bytes).unwrap_or_else(|_| text.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn list(paths: &[&str]) -> PathWhitelist {
        PathWhitelist::new(paths.iter().copied()).unwrap()
    }

    fn id(byte: &str) -> ImageId {
        format!("sha512-{}", byte.repeat(64)).parse().unwrap()
    }

    #[test]
    fn a_whitelist_lets_its_paths_through_and_the_directories_above() {
        let list = list(&["/usr/bin/app", "etc/", "/./var/../srv"]);
        assert!(list.lets_through(b"usr/bin/app", false) && list.lets_through(b"etc", true));
        assert!(list.lets_through(b"usr", true) && list.lets_through(b"", true));
        assert!(list.lets_through(b"srv", false));
        for (path, is_dir) in [("usr", false), ("etc/passwd", false), ("var", true), ("usr/bin/ap", true)] {
            assert!(!list.lets_through(path.as_bytes(), is_dir), "{path}");
        }
        assert!(!list.lets_through(&[0xff], false));
        assert_eq!(PathWhitelist::new([]), None);
    }

    #[test]
    fn a_view_is_another_layer_for_another_image_or_whitelist() {
        let (a, b) = (Arc::new(list(&["/a"])), Arc::new(list(&["/b"])));
        let view = |whitelists: &[&Arc<PathWhitelist>]| AciView {
            image_id: id("00"),
            whitelists: whitelists.iter().map(|one| Arc::clone(one)).collect(),
        };
        assert_eq!(view(&[&a, &b]).diff_id(), view(&[&b, &a, &b]).diff_id());
        let all = [view(&[]), view(&[&a]), view(&[&b]), view(&[&a, &b]), AciView::whole(id("01"))];
        let ids: BTreeSet<_> = all.iter().map(AciView::diff_id).collect();
        assert_eq!(ids.len(), all.len());
        assert!(!ids.contains(&DiffId(id("00").digest())));
        assert!(view(&[&a]).lets_through(b"a", false) && !view(&[&a, &b]).lets_through(b"a", false));
    }

    #[test]
    fn escapes_read_back() {
        for value in ["", "1.0", "a,b%c\n\u{85}", "%41", "100%", "%zz"] {
            assert_eq!(unescape(&escape(value)), value);
            assert!(!escape(value).contains([',', '\n']));
        }
    }
}
