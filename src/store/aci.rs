//! Reads the tar of an ACI: what of it is the layer, and whether it is laid out as the specification wants it (appc spec,
//! aci.md, "Image Archives").
//!
//! At its top are `manifest`, a regular file, and `rootfs`, a directory, and nothing else; the layer is what is below
//! `rootfs/`, and `rootfs` itself is its root. A `rootfs` without an entry of its own is there when something is in it. No
//! path comes twice, whatever it is: the specification says so, and actool, which makes and validates ACIs, refuses a second
//! entry. Paths are compared when cleaned, so `./manifest` is `manifest`, but an absolute one is none of the two.
//!
//! There are no whiteouts: a name that begins with `.wh.` is a name ([`Names::Plain`](super::meaning::Names)).
//!
//! Path whitelists leave entries out by their names in the archive. What they leave out may be the file that a later hard
//! link names, which is another name of the same content, and let through. So such entries, directories excepted, are made all
//! the same, in a directory of a name that nobody knew before, which goes when all of the tar was read. What is left of
//! them then are the names that are let through.

use std::collections::{HashMap, HashSet};
use std::hash::{BuildHasher, RandomState};

use keelblock_actors::image::appc::{AciView, ImageId};

use super::entry::Applied;
use super::flaw::{EntryError, Flaw, text};
use super::meaning::clean;
use super::tar::{Kind, Member};

const MANIFEST: &[u8] = b"manifest";
const ROOTFS: &[u8] = b"rootfs";
/// Bytes that a set or map of digests takes for one beside itself.
const SLOT_BYTES: usize = 1;

/// A rule of the format that an ACI breaks.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum AciRule {
    /// Something beside `manifest` and `rootfs`.
    #[error("at the top of an archive are manifest and rootfs and nothing else")]
    Top,
    /// `/manifest`, `/rootfs/...`.
    #[error("paths in an archive are relative")]
    Absolute,
    /// A link, a directory or a device called `manifest`, or something in it.
    #[error("manifest is a regular file")]
    Manifest,
    /// A file or a link called `rootfs`, or an entry of the archive's own directory that is none.
    #[error("rootfs, and what it lies in, is a directory")]
    Rootfs,
    /// Two entries of a path.
    #[error("no path comes twice")]
    Twice,
    /// A hard link to what is not in the layer.
    #[error("a hard link leads to a file below rootfs/, this one to {0:?}")]
    Link(String),
    /// The archive ended.
    #[error("an archive has a manifest")]
    NoManifest,
    /// The archive ended.
    #[error("an archive has a rootfs")]
    NoRootfs,
}

/// Which ACI it is, and the rule.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("image {image} is no valid ACI: {rule}")]
pub struct InvalidAci {
    /// Its ID.
    pub image: ImageId,
    /// What it does not keep to.
    pub rule: AciRule,
}

/// An archive on its way. See the module.
pub(super) struct Archive<'a> {
    view: &'a AciView,
    /// Of digests in memory.
    bytes_max: usize,
    seen: Seen,
    manifest: bool,
    rootfs: bool,
    /// What whitelists left out.
    aside: Option<Aside>,
}

/// Entries that are made only because others may be names of the same file.
struct Aside {
    dir: String,
    /// By path: the number that is the name it has there.
    numbers: HashMap<u128, u64>,
    /// Of each number, its content's bytes, until it is linked: then they count.
    bytes: Vec<u64>,
}

/// What is to be removed when all of an archive was read, and counts for nothing.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct LeftOut {
    /// A name in the root.
    pub(super) dir: String,
    pub(super) entries: u64,
    pub(super) bytes: u64,
}

impl LeftOut {
    /// Takes it out of what was applied.
    pub(super) fn uncounted(&self, applied: &mut Applied) {
        applied.entries = applied.entries.saturating_sub(self.entries);
        applied.bytes = applied.bytes.saturating_sub(self.bytes);
    }
}

impl<'a> Archive<'a> {
    /// The archive of this view. The paths it has take `bytes_max` of memory at most, as digests.
    pub(super) fn new(view: &'a AciView, bytes_max: usize) -> Self {
        let seen = Seen::default();
        let aside = (!view.whitelists.is_empty()).then(|| Aside {
            // Of secret keys, so that no archive has it.
            dir: format!(".left-out-{:032x}", seen.digest(b"\0")),
            numbers: HashMap::new(),
            bytes: Vec::new(),
        });
        Self { view, bytes_max, seen, manifest: false, rootfs: false, aside }
    }

    /// The member as one of the layer: its path, and that of a hard link's target, from the root of the layer. `None`: it is not
    /// of the layer.
    pub(super) fn member(&mut self, member: Member) -> Result<Option<Member>, Flaw> {
        match self.taken(&member) {
            Ok(None) => Ok(None),
            Ok(Some(Within { path, target })) => Ok(Some(Member { path, target, ..member })),
            Err(Broken::Rule(rule)) => {
                let source = EntryError::Aci(InvalidAci { image: self.view.image_id.clone(), rule });
                Err(Flaw::Entry { path: member.path, source })
            }
            Err(Broken::Entry(source)) => Err(Flaw::Entry { path: member.path, source }),
            Err(Broken::TooMany) => {
                let (limit, unit) = (self.bytes_max as u64, "bytes of paths in memory");
                Err(Flaw::Limit { limit, unit, flag: "layer_names_bytes_max" })
            }
        }
    }

    /// Where a member is that is of the layer.
    fn taken(&mut self, member: &Member) -> Result<Option<Within>, Broken> {
        let path = clean(&member.path)?;
        if member.path.starts_with(b"/") {
            return Err(AciRule::Absolute.into());
        }
        let digest = self.seen.digest(&path);
        if !self.seen.digests.insert(digest) {
            return Err(AciRule::Twice.into());
        }
        let aside_bytes = self.aside.as_ref().map_or(0, Aside::bytes);
        if self.seen.bytes() + aside_bytes > self.bytes_max {
            return Err(Broken::TooMany);
        }
        let is_dir = member.kind == Kind::Directory;
        let within = match split_top(&path) {
            (b"", _) if is_dir => return Ok(None),
            (b"", _) => return Err(AciRule::Rootfs.into()),
            (MANIFEST, None) if member.kind == Kind::File => {
                self.manifest = true;
                return Ok(None);
            }
            (MANIFEST, _) => return Err(AciRule::Manifest.into()),
            (ROOTFS, None) if is_dir => b".",
            (ROOTFS, None) => return Err(AciRule::Rootfs.into()),
            (ROOTFS, Some(within)) => within,
            _ => return Err(AciRule::Top.into()),
        };
        self.rootfs = true;
        let lets_through = within == b"." || self.view.lets_through(within, is_dir);
        if !lets_through && is_dir {
            return Ok(None);
        }
        let target = match member.kind {
            Kind::HardLink => self.target(&member.target, lets_through)?,
            _ => member.target.clone(),
        };
        match &mut self.aside {
            Some(aside) if !lets_through => {
                Ok(Some(Within { path: aside.put(digest, member.content_bytes()), target }))
            }
            _ => Ok(Some(Within { path: within.to_vec(), target })),
        }
    }

    /// The target of a hard link, from the root of the layer.
    fn target(&mut self, written: &[u8], lets_through: bool) -> Result<Vec<u8>, Broken> {
        let target = clean(written)?;
        let (ROOTFS, within) = split_top(&target) else {
            return Err(AciRule::Link(text(written)).into());
        };
        let digest = self.seen.digest(&target);
        let aside = self.aside.as_mut().and_then(|aside| aside.link(digest, lets_through));
        // None but `rootfs` itself: that no link leads to a directory is seen by whoever makes it.
        Ok(aside.unwrap_or_else(|| within.unwrap_or_default().to_vec()))
    }

    /// After the last member: whether nothing is missing.
    pub(super) fn finish(self) -> Result<Option<LeftOut>, Flaw> {
        let rule = match (self.manifest, self.rootfs) {
            (true, true) => return Ok(self.aside.and_then(Aside::left_out)),
            (false, _) => AciRule::NoManifest,
            (true, false) => AciRule::NoRootfs,
        };
        let source = InvalidAci { image: self.view.image_id.clone(), rule };
        Err(Flaw::Stream { what: "ACI", source: source.into() })
    }
}

impl Aside {
    fn bytes(&self) -> usize {
        let slot = size_of::<(u128, u64)>() + SLOT_BYTES;
        self.numbers.capacity() * slot + self.bytes.capacity() * size_of::<u64>()
    }

    fn at(&self, number: u64) -> Vec<u8> {
        format!("{}/{number}", self.dir).into_bytes()
    }

    /// Where an entry goes that is left out.
    fn put(&mut self, digest: u128, bytes: u64) -> Vec<u8> {
        let number = self.bytes.len() as u64;
        self.bytes.push(bytes);
        self.numbers.insert(digest, number);
        self.at(number)
    }

    /// Where the target of a link is, if it was left out.
    fn link(&mut self, digest: u128, lets_through: bool) -> Option<Vec<u8>> {
        let number = *self.numbers.get(&digest)?;
        if lets_through
            && let Some(bytes) = usize::try_from(number).ok().and_then(|at| self.bytes.get_mut(at))
        {
            *bytes = 0;
        }
        Some(self.at(number))
    }

    fn left_out(self) -> Option<LeftOut> {
        let (entries, bytes) =
            (self.bytes.len() as u64, self.bytes.iter().fold(0, |sum: u64, more| sum.saturating_add(*more)));
        (entries > 0).then_some(LeftOut { dir: self.dir, entries, bytes })
    }
}

/// Paths that came.
#[derive(Default)]
struct Seen {
    /// 128 bits by two secret keys: nobody makes two paths of one digest, and no archive has them by chance.
    digests: HashSet<u128>,
    keys: [RandomState; 2],
}

impl Seen {
    fn digest(&self, path: &[u8]) -> u128 {
        let [high, low] = self.keys.each_ref().map(|key| u128::from(key.hash_one(path)));
        high << 64 | low
    }

    fn bytes(&self) -> usize {
        self.digests.capacity() * (size_of::<u128>() + SLOT_BYTES)
    }
}

/// Paths from the root of the layer.
struct Within {
    path: Vec<u8>,
    target: Vec<u8>,
}

/// Why a member cannot be taken.
enum Broken {
    Rule(AciRule),
    Entry(EntryError),
    TooMany,
}

impl From<AciRule> for Broken {
    fn from(rule: AciRule) -> Self {
        Self::Rule(rule)
    }
}

impl From<EntryError> for Broken {
    fn from(error: EntryError) -> Self {
        Self::Entry(error)
    }
}

/// The first name of a clean path, and what follows it.
fn split_top(path: &[u8]) -> (&[u8], Option<&[u8]>) {
    match path.iter().position(|byte| *byte == b'/') {
        Some(slash) => (&path[..slash], Some(&path[slash + 1..])),
        None => (path, None),
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use keelblock_actors::image::appc::PathWhitelist;

    use super::*;

    fn view(whitelist: &[&str]) -> AciView {
        let whitelists = PathWhitelist::new(whitelist.iter().copied()).map(Arc::new).into_iter().collect();
        AciView { image_id: format!("sha512-{}", "0".repeat(128)).parse().unwrap(), whitelists }
    }

    fn member(path: &str, kind: Kind, target: &str) -> Member {
        Member {
            path: path.into(),
            kind,
            target: target.into(),
            size: u64::from(kind == Kind::File),
            ..Member::default()
        }
    }

    #[test]
    fn the_layer_is_what_is_below_rootfs() {
        let view = view(&[]);
        let mut archive = Archive::new(&view, 1 << 20);
        let mut took = |path: &str, kind, target: &str| {
            let taken = archive.member(member(path, kind, target)).unwrap();
            taken.map(|one| [one.path, one.target].map(|bytes| String::from_utf8(bytes).unwrap()))
        };
        let at = |path: &str, target: &str| Some([path.to_owned(), target.to_owned()]);
        assert_eq!(took("./", Kind::Directory, ""), None);
        assert_eq!(took("./rootfs/a//b", Kind::File, ""), at("a/b", ""));
        assert_eq!(took("./manifest", Kind::File, ""), None);
        assert_eq!(took("rootfs/", Kind::Directory, ""), at(".", ""));
        assert_eq!(took("rootfs/c", Kind::HardLink, "./rootfs/a/b"), at("c", "a/b"));
        assert_eq!(took("rootfs/d", Kind::Symlink, "/rootfs/a"), at("d", "/rootfs/a"));
        assert_eq!(took("rootfs/.wh.e", Kind::File, ""), at(".wh.e", ""));
        assert_eq!(archive.finish().unwrap(), None);
    }

    #[test]
    fn what_is_left_out_stays_for_those_who_link_to_it_and_counts_for_them() {
        let view = view(&["/d/kept", "/other"]);
        let mut archive = Archive::new(&view, 1 << 20);
        let mut took = |path: &str, kind, target: &str| archive.member(member(path, kind, target)).unwrap();
        assert!(took("manifest", Kind::File, "").is_none());
        assert!(took("rootfs/d", Kind::Directory, "").is_some());
        assert!(took("rootfs/e", Kind::Directory, "").is_none());
        let first = took("rootfs/e/first", Kind::File, "").unwrap().path;
        let second = took("rootfs/second", Kind::HardLink, "rootfs/e/first").unwrap();
        assert_eq!(second.target, first);
        let kept = took("rootfs/d/kept", Kind::HardLink, "rootfs/second").unwrap();
        assert_eq!((&kept.path[..], kept.target), (&b"d/kept"[..], second.path));
        assert_eq!(took("rootfs/other", Kind::HardLink, "rootfs/d/kept").unwrap().target, b"d/kept");
        took("rootfs/alone", Kind::File, "").unwrap();
        let left = archive.finish().unwrap().unwrap();
        assert_eq!(left.entries, 3);
    }

    #[test]
    fn paths_take_only_so_much_memory() {
        let view = view(&[]);
        let mut archive = Archive::new(&view, 1000);
        let refused =
            (0..100).find_map(|at| archive.member(member(&format!("rootfs/{at}"), Kind::File, "")).err());
        assert!(matches!(refused, Some(Flaw::Limit { flag: "layer_names_bytes_max", .. })), "{refused:?}");
    }
}
