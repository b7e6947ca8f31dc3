//! A test bed: layers built entry by entry, places for rootfses, and what a tree looks like.

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::CString;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use keelblock::backend::{BindBackend, CopyBackend, OverlayBackend};
use keelblock::sys::mount::mountinfo;
use keelblock_actors::container::RootfsId;
use keelblock_actors::image::digest::{DiffId, Digest};
use keelblock_actors::ports::{Backend, LayerDir, RootfsPlace};
use keelblock_actors::stop::Stop;
use rustix::fs::{AtFlags, CWD, FileType, Mode, Timespec, Timestamps, XattrFlags};

/// Whether this process may mount here; says so aloud if not.
pub(crate) fn privileged() -> bool {
    let root = rustix::process::geteuid().is_root();
    if !root {
        eprintln!("skipped: mounts and device nodes need root");
    }
    root
}

/// A directory of its own for one test. When it goes, nothing may be mounted in it.
pub(crate) struct Bed {
    directory: tempfile::TempDir,
    user_xattrs: bool,
}

impl Bed {
    pub(crate) fn new() -> Self {
        Self { directory: tempfile::tempdir().unwrap(), user_xattrs: false }
    }

    /// In memory, where that can be: for tests of many small trees.
    pub(crate) fn in_memory() -> Self {
        let memory = Path::new("/dev/shm");
        if memory.is_dir() { Self::within(memory) } else { Self::new() }
    }

    pub(crate) fn within(path: &Path) -> Self {
        Self { directory: tempfile::tempdir_in(path).unwrap(), user_xattrs: false }
    }

    /// Marks in `user.` attributes, as without real root.
    pub(crate) fn rootless() -> Self {
        let mut bed = Self::new();
        bed.user_xattrs = true;
        bed
    }

    pub(crate) fn path(&self) -> &Path {
        self.directory.path()
    }

    pub(crate) fn layer(&self, name: &str) -> Layer {
        let path = self.path().join("store").join(name);
        std::fs::create_dir_all(&path).unwrap();
        Layer { name: name.to_owned(), path, user_xattrs: self.user_xattrs, whiteouts: AtomicBool::default() }
    }

    pub(crate) fn place(&self, id: u32) -> RootfsPlace {
        RootfsPlace {
            container: "c1".parse().unwrap(),
            id: RootfsId(id),
            rootfs: self.path().join(format!("rootfses/{id}")),
            scratch: self.path().join(format!("scratch/{id}")),
        }
    }

    /// Targets of mounts below.
    pub(crate) fn mounts(&self) -> Vec<PathBuf> {
        let real = self.path().canonicalize().unwrap();
        let mounts = mountinfo::read().unwrap().into_iter().map(|mount| mount.target);
        mounts.filter(|target| target.starts_with(&real)).collect()
    }

    /// What the backend makes of these layers; taken away again.
    pub(crate) fn tree_of(&self, backend: &dyn Backend, stack: &[LayerDir]) -> Tree {
        let place = self.place(77);
        let rootfs = backend.mount(stack, &place, &Stop::default()).unwrap();
        assert_eq!(rootfs.path, place.rootfs);
        let tree = snapshot(&rootfs.path);
        assert!(backend.unmount(&place).unwrap());
        assert!(!place.rootfs.exists() && !place.scratch.exists());
        tree
    }

    /// The tree of these layers, after all backends were found to agree on it.
    pub(crate) fn agreed_tree(&self, layers: &[&Layer]) -> Tree {
        let stack = stack(layers);
        let overlay = self.tree_of(&OverlayBackend::default(), &stack);
        let copy = self.tree_of(&CopyBackend::default(), &stack);
        let bind = self.tree_of(&BindBackend::default(), &stack);
        assert_same(&overlay, &copy);
        assert_same(&bind, &copy);
        copy
    }
}

impl Drop for Bed {
    fn drop(&mut self) {
        let left = self.mounts();
        for target in left.iter().rev() {
            let _ = rustix::mount::unmount(target.as_path(), rustix::mount::UnmountFlags::DETACH);
        }
        if !std::thread::panicking() {
            assert!(left.is_empty(), "mounts were left: {left:?}");
        }
    }
}

pub(crate) fn all_backends() -> [Box<dyn Backend>; 3] {
    [Box::new(OverlayBackend::default()), Box::new(CopyBackend::default()), Box::new(BindBackend::default())]
}

/// Base first.
pub(crate) fn stack(layers: &[&Layer]) -> Vec<LayerDir> {
    layers.iter().map(|layer| layer.dir()).collect()
}

/// A layer as the store would have unpacked it. Paths are relative; parents are made.
pub(crate) struct Layer {
    name: String,
    pub(crate) path: PathBuf,
    user_xattrs: bool,
    whiteouts: AtomicBool,
}

impl Layer {
    pub(crate) fn dir(&self) -> LayerDir {
        LayerDir {
            diff_id: DiffId(Digest::of(self.name.as_bytes())),
            path: self.path.clone(),
            user_xattrs: self.user_xattrs,
            whiteouts: self.whiteouts.load(Ordering::Relaxed),
            implied: Arc::default(),
            hold: Arc::new(()),
        }
    }

    fn at(&self, path: &str) -> PathBuf {
        let path = self.path.join(path);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        path
    }

    pub(crate) fn directory(&self, path: &str, mode: u32) -> &Self {
        let at = self.at(path);
        std::fs::create_dir_all(&at).unwrap();
        std::fs::set_permissions(&at, PermissionsExt::from_mode(mode)).unwrap();
        self
    }

    pub(crate) fn file(&self, path: &str, content: impl AsRef<[u8]>) -> &Self {
        std::fs::write(self.at(path), content).unwrap();
        self
    }

    pub(crate) fn link(&self, path: &str, target: impl AsRef<Path>) -> &Self {
        symlink(target, self.at(path)).unwrap();
        self
    }

    pub(crate) fn hard_link(&self, path: &str, first: &str) -> &Self {
        let first = self.at(first);
        rustix::fs::linkat(CWD, first, CWD, self.at(path), AtFlags::empty()).unwrap();
        self
    }

    pub(crate) fn node(&self, path: &str, kind: FileType, major: u32, minor: u32) -> &Self {
        let device = rustix::fs::makedev(major, minor);
        rustix::fs::mknodat(CWD, self.at(path), kind, Mode::from_raw_mode(0o640), device).unwrap();
        self
    }

    pub(crate) fn whiteout(&self, path: &str) -> &Self {
        self.node(path, FileType::CharacterDevice, 0, 0);
        self.whiteouts.store(true, Ordering::Relaxed);
        // Overlayfs lists a directory that it need not merge as it is, whiteouts included, unless this says that
        // there may be some (fs/overlayfs/inode.c, "Check for non-merge dir that may have whiteouts").
        let name = if self.user_xattrs { "user.overlay.origin" } else { "trusted.overlay.origin" };
        let parent = Path::new(path).parent().unwrap().to_str().unwrap();
        self.xattr(parent, name, b"")
    }

    pub(crate) fn opaque(&self, path: &str) -> &Self {
        std::fs::create_dir_all(self.at(path)).unwrap();
        let name = if self.user_xattrs { "user.overlay.opaque" } else { "trusted.overlay.opaque" };
        self.xattr(path, name, b"y")
    }

    pub(crate) fn xattr(&self, path: &str, name: &str, value: &[u8]) -> &Self {
        rustix::fs::lsetxattr(self.path.join(path), name, value, XattrFlags::empty()).unwrap();
        self
    }

    pub(crate) fn owner(&self, path: &str, uid: u32, gid: u32) -> &Self {
        std::os::unix::fs::lchown(self.path.join(path), Some(uid), Some(gid)).unwrap();
        self
    }

    pub(crate) fn mode(&self, path: &str, mode: u32) -> &Self {
        std::fs::set_permissions(self.path.join(path), PermissionsExt::from_mode(mode)).unwrap();
        self
    }

    /// Seconds since 1970, and nanoseconds that a careless copy would lose.
    pub(crate) fn time(&self, path: &str, seconds: i64) -> &Self {
        let time = Timespec { tv_sec: seconds, tv_nsec: 123_456_789 };
        let times = Timestamps { last_access: time, last_modification: time };
        rustix::fs::utimensat(CWD, self.path.join(path), &times, AtFlags::SYMLINK_NOFOLLOW).unwrap();
        self
    }
}

/// Paths from the root (`""`), each with what is there.
pub(crate) type Tree = BTreeMap<PathBuf, Entry>;

#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Entry {
    pub(crate) kind: String,
    pub(crate) mode: u32,
    pub(crate) owner: (u32, u32),
    /// Size and digest of a file, target of a symlink, device number.
    pub(crate) content: String,
    pub(crate) mtime: (i64, i64),
    pub(crate) xattrs: BTreeMap<String, Vec<u8>>,
    /// Other names of the same file in this tree.
    pub(crate) links: BTreeSet<PathBuf>,
}

impl Entry {
    pub(crate) fn text(&self) -> &str {
        &self.content
    }
}

/// Every entry of a tree, mounts below included.
pub(crate) fn snapshot(root: &Path) -> Tree {
    let mut tree = Tree::new();
    let mut names = BTreeMap::<(u64, u64), BTreeSet<PathBuf>>::new();
    let mut waiting = vec![PathBuf::new()];
    while let Some(path) = waiting.pop() {
        let at = if path.as_os_str().is_empty() { root.to_owned() } else { root.join(&path) };
        let stat = std::fs::symlink_metadata(&at).unwrap();
        let kind = stat.file_type();
        let content = if kind.is_dir() {
            let entries = std::fs::read_dir(&at).unwrap();
            waiting.extend(entries.map(|entry| path.join(entry.unwrap().file_name())));
            String::new()
        } else if kind.is_file() {
            format!("{} bytes {}", stat.len(), Digest::of(&std::fs::read(&at).unwrap()))
        } else if kind.is_symlink() {
            std::fs::read_link(&at).unwrap().display().to_string()
        } else {
            format!("{}:{}", rustix::fs::major(stat.rdev()), rustix::fs::minor(stat.rdev()))
        };
        if !kind.is_dir() {
            names.entry((stat.dev(), stat.ino())).or_default().insert(path.clone());
        }
        let entry = Entry {
            kind: if kind.is_dir() {
                "directory"
            } else if kind.is_file() {
                "file"
            } else if kind.is_symlink() {
                "symlink"
            } else if kind.is_fifo() {
                "fifo"
            } else if kind.is_socket() {
                "socket"
            } else if kind.is_char_device() {
                "character device"
            } else {
                "block device"
            }
            .to_owned(),
            mode: stat.mode() & 0o7777,
            owner: (stat.uid(), stat.gid()),
            content,
            mtime: (stat.mtime(), stat.mtime_nsec()),
            xattrs: xattrs(&at),
            links: BTreeSet::new(),
        };
        tree.insert(path, entry);
    }
    for group in names.values().filter(|group| group.len() > 1) {
        for name in group {
            let others = group.iter().filter(|other| *other != name).cloned().collect();
            tree.get_mut(name).unwrap().links = others;
        }
    }
    tree
}

fn xattrs(path: &Path) -> BTreeMap<String, Vec<u8>> {
    let mut names = vec![0u8; 64 << 10];
    let length = rustix::fs::llistxattr(path, &mut names[..]).unwrap();
    let names = names[..length].split(|byte| *byte == 0).filter(|name| !name.is_empty());
    names
        .filter(|name| !name.starts_with(b"trusted.overlay.") && !name.starts_with(b"user.overlay."))
        .map(|name| {
            let mut value = vec![0u8; 64 << 10];
            let name = CString::new(name).unwrap();
            let length = rustix::fs::lgetxattr(path, &name, &mut value[..]).unwrap();
            (name.into_string().unwrap(), value[..length].to_vec())
        })
        .collect()
}

/// Panics with the entries that differ.
#[track_caller]
pub(crate) fn assert_same(left: &Tree, right: &Tree) {
    let paths: BTreeSet<_> = left.keys().chain(right.keys()).collect();
    let differ: Vec<_> = paths.into_iter().filter(|path| left.get(*path) != right.get(*path)).collect();
    let lines: Vec<_> = differ
        .iter()
        .map(|path| {
            format!("{}\n  left  {:?}\n  right {:?}", path.display(), left.get(*path), right.get(*path))
        })
        .collect();
    assert!(differ.is_empty(), "{} entries differ:\n{}", differ.len(), lines.join("\n"));
}

/// Paths of a tree as one text.
pub(crate) fn names(tree: &Tree) -> Vec<String> {
    tree.keys().map(|path| String::from_utf8_lossy(path.as_os_str().as_bytes()).into_owned()).collect()
}
