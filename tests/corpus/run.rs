//! Takes one case through the store and through every backend, and says what is not as it must be.

use std::collections::BTreeMap;
use std::panic::AssertUnwindSafe;
use std::path::Path;

use keelblock::backend::{BindBackend, CopyBackend, OverlayBackend};
use keelblock::limits::Limits;
use keelblock::store::{DiskStore, Form, NotSet, Verdict};
use keelblock_actors::container::BackendName;
use keelblock_actors::error::chain;
use keelblock_actors::ports::{Backend, LayerDir, Store, StoredLayer};
use keelblock_actors::stop::Stop;
use serde::{Deserialize, Serialize};

use crate::aci;
use crate::case::{Case, Expected, Layer};
use crate::ground::Ground;
use crate::tarball;
use crate::tree::{self, Tree};

/// Whose process this is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Rights {
    /// The machine's root.
    Root = 0,
    /// Root of a user namespace in which it is alone.
    One = 1,
    /// Root of a user namespace with 65,536 IDs.
    Full = 2,
    /// The machine's root again, who keeps layers as images.
    Images = 3,
}

impl Rights {
    pub(crate) const ALL: [Self; 4] = [Self::Root, Self::Images, Self::One, Self::Full];

    /// As cases know them: what becomes of a layer does not depend on how it is kept.
    pub(crate) fn of_case(self) -> Self {
        if self == Self::Images { Self::Root } else { self }
    }

    /// Whose a file is that shall be this owner's: one that is not mapped cannot be set, and with one of the two IDs
    /// the other is not set either.
    pub(crate) fn owner(self, owner: (u32, u32)) -> (u32, u32) {
        let mapped = |id: u32| match self {
            Self::Root | Self::Images => true,
            Self::One => id == 0,
            Self::Full => id < 65_536,
        };
        if mapped(owner.0) && mapped(owner.1) { owner } else { (0, 0) }
    }
}

/// The backends, as columns.
pub(crate) const BACKENDS: [BackendName; 3] = [BackendName::Overlay, BackendName::Copy, BackendName::Bind];

/// What became of a case.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Outcome {
    pub(crate) group: String,
    pub(crate) case: String,
    pub(crate) rights: Rights,
    /// One for each backend.
    pub(crate) cells: [String; 3],
    /// Nothing when it is as it must be.
    pub(crate) problems: Vec<String>,
    pub(crate) millis: u64,
}

/// Runs a case. `overlay` = why overlayfs cannot be used here, if it cannot.
pub(crate) fn run(case: &Case, ground: &Ground, rights: Rights, no_overlay: Option<&str>) -> Outcome {
    let began = std::time::Instant::now();
    let mut run = Run { case, ground, rights, no_overlay, problems: vec![] };
    let left_out = case.left_out.iter().find(|(of, _)| *of == rights.of_case());
    let cells = match left_out {
        Some((_, why)) => [(); 3].map(|()| format!("skipped ({why})")),
        None => {
            let done = std::panic::catch_unwind(AssertUnwindSafe(|| run.all()));
            done.unwrap_or_else(|panic| {
                let text = panic.downcast_ref::<String>().map(String::as_str);
                let text = text.or_else(|| panic.downcast_ref::<&str>().copied()).unwrap_or("it panicked");
                run.problems.push(text.to_owned());
                [(); 3].map(|()| "FAILED".to_owned())
            })
        }
    };
    run.problems
        .extend(ground.touched().into_iter().map(|touched| format!("a canary was touched: {touched}")));
    run.clean_up();
    Outcome {
        group: case.group.to_owned(),
        case: case.name.to_owned(),
        rights,
        cells,
        problems: run.problems,
        millis: began.elapsed().as_millis() as u64,
    }
}

struct Run<'a> {
    case: &'a Case,
    ground: &'a Ground,
    rights: Rights,
    no_overlay: Option<&'a str>,
    problems: Vec<String>,
}

impl Run<'_> {
    fn all(&mut self) -> [String; 3] {
        let mut limits = self.case.limits.clone();
        let mut layers = (self.case.layers)(self.ground);
        let mut expected = self.case.expected(self.rights).clone();
        if self.case.as_aci {
            match aci::of_case(&layers, &mut limits, expected) {
                Some(wrapped) => (layers, expected) = wrapped,
                None => return [(); 3].map(|()| "skipped (what it is about is no tar)".to_owned()),
            }
        }
        let store = match self.rights {
            Rights::Images => tarball::image_store(&self.ground.store(), limits.clone()),
            _ => tarball::store_with(&self.ground.store(), limits.clone()),
        };
        let count = layers.len();
        let mut stored: Vec<StoredLayer> = vec![];
        for (at, layer) in layers.iter().enumerate() {
            let put = tarball::put(&store, &layer.spec, &layer.blob);
            // An entry is told of by the name it has in the archive.
            let put = put.map_err(|error| chain(&error).replace("\"rootfs/", "\""));
            match (put, &expected) {
                (Ok(layer), _) => stored.push(layer),
                (Err(_), Expected::Anything) => {
                    self.nothing_is_left(&store, &stored);
                    return [(); 3].map(|()| self.verdict("refused"));
                }
                (Err(text), Expected::RefusedOr(_, other)) if at + 1 == count && text.contains(other) => {
                    self.nothing_is_left(&store, &stored);
                    return [(); 3].map(|()| self.verdict("refused"));
                }
                (Err(text), Expected::Refused(words) | Expected::RefusedOr(words, _)) if at + 1 == count => {
                    for word in words.iter().filter(|word| !text.contains(*word)) {
                        self.problems.push(format!("refused, but not in the word {word:?}: {text}"));
                    }
                    if text.to_lowercase().contains("os error 28") {
                        self.problems.push(format!("the disk is full: {text}"));
                    }
                    self.nothing_is_left(&store, &stored);
                    return [(); 3].map(|()| self.verdict("refused"));
                }
                (Err(text), _) => {
                    self.problems.push(format!("layer {at} was refused: {text}"));
                    self.nothing_is_left(&store, &stored);
                    return [(); 3].map(|()| self.verdict("refused"));
                }
            }
        }
        let tree = match &expected {
            Expected::Tree(tree) => Some(&tree[..]),
            Expected::SomeTree | Expected::Anything => None,
            Expected::Refused(_) | Expected::RefusedOr(..) => {
                self.problems.push("it was not refused".to_owned());
                return [(); 3].map(|()| self.verdict("ok"));
            }
        };
        if !matches!(expected, Expected::Anything) {
            self.what_was_not_set(&store, &stored);
        }
        let stack: Vec<LayerDir> = stored.iter().map(|layer| store.show(layer).unwrap()).collect();
        let before: Vec<_> = stack.iter().map(|layer| tree::fingerprint(&tree::read(&layer.path))).collect();
        if self.rights == Rights::Images {
            self.same_as_trees(&store, limits, &layers, &stored, &stack);
        }
        let mut first: Option<(BackendName, Tree)> = None;
        let cells = BACKENDS.map(|name| self.backend(name, &stack, tree, &mut first));
        for (layer, before) in stack.iter().zip(before) {
            if tree::fingerprint(&tree::read(&layer.path)) != before {
                self.problems.push(format!("layer {} was changed by a backend", layer.diff_id));
            }
        }
        self.are_whole(&store, &stored);
        drop(stack);
        let pruned = store.prune(&Default::default(), &|| Ok(vec![]));
        if let Err(error) = pruned {
            self.problems.push(format!("its layers cannot be removed: {}", chain(&error)));
        }
        if names(&self.ground.store().join("mounts")) > 0 {
            self.problems.push("a layer is still mounted".to_owned());
        }
        if self.layers() > 0 {
            self.problems.push("its layers were not removed".to_owned());
        }
        cells
    }

    /// What was kept to verify layers must be true of them.
    fn are_whole(&mut self, store: &DiskStore, stored: &[StoredLayer]) {
        for layer in stored {
            let scrubbed = store.scrub(&layer.diff_id, 0, &Stop::default());
            let verdict = scrubbed.map(|scrubbed| scrubbed.map(|scrubbed| scrubbed.verdict));
            if !matches!(verdict, Ok(Some(Verdict::Whole))) {
                self.problems.push(format!("layer {} cannot be verified: {verdict:?}", layer.diff_id));
            }
        }
    }

    /// An image must show what a tree of the same layer shows, and be remembered as that is.
    fn same_as_trees(
        &mut self,
        store: &DiskStore,
        limits: Limits,
        layers: &[Layer],
        stored: &[StoredLayer],
        stack: &[LayerDir],
    ) {
        let home = self.ground.trees();
        let trees = tarball::store_with(&home, limits);
        for ((layer, image), shown) in layers.iter().zip(stored).zip(stack) {
            let tree = match tarball::put(&trees, &layer.spec, &layer.blob) {
                Ok(tree) => trees.show(&tree).unwrap(),
                Err(error) => {
                    self.problems.push(format!("refused as a tree: {}", chain(&error)));
                    continue;
                }
            };
            let [of_image_tree, of_tree] =
                [&shown.path, &tree.path].map(|path| tree::without_times_of_whiteouts(tree::read(path)));
            let differ = tree::differences(&of_image_tree, &of_tree);
            self.problems.extend(differ.into_iter().map(|line| format!("image against tree: {line}")));
            let of_image = store.layer_record(image).unwrap();
            let mut of_tree = trees.layer_record(image).unwrap();
            self.are_whole(&trees, std::slice::from_ref(image));
            if of_image.form != Form::Erofs || of_image.image.is_none() {
                self.problems.push("it is kept as a tree".to_owned());
            }
            (of_tree.form, of_tree.image) = (of_image.form, of_image.image.clone());
            of_tree.tree = None;
            of_tree.commit.clone_from(&of_image.commit);
            if of_tree != of_image {
                self.problems.push(format!("image {of_image:?}, tree {of_tree:?}"));
            }
            let layer = image.diff_id.to_string().replace(':', "/");
            let file = self.ground.store().join("layers").join(layer).join("layer.erofs");
            // It holds every path whole, in 4,096 bytes.
            let long = of_image_tree.keys().any(|path| path.len() > 4000);
            if let Some(complaint) = tarball::fsck(&file).filter(|_| !long) {
                self.problems.push(format!("fsck.erofs: {complaint}"));
            }
        }
    }

    fn layers(&self) -> usize {
        let of = |algorithm| names(&self.ground.store().join("layers").join(algorithm));
        of("sha256") + of("sha512")
    }

    fn verdict(&self, good: &str) -> String {
        if self.problems.is_empty() { good.to_owned() } else { "FAILED".to_owned() }
    }

    /// Nothing of a refused layer may be there, and those before it must be as they were.
    fn nothing_is_left(&mut self, store: &DiskStore, stored: &[StoredLayer]) {
        let home = self.ground.store();
        for part in ["staging", "gc", "locks", "pins", "images", "blobs/sha256"] {
            let left = names(&home.join(part));
            if left > 0 {
                self.problems.push(format!("{left} things are left in {part}/"));
            }
        }
        let layers: std::collections::BTreeSet<_> = stored.iter().map(|layer| &layer.diff_id).collect();
        if self.layers() != layers.len() {
            self.problems.push("not just the layers before it are there".to_owned());
        }
        for layer in stored {
            // Whole: its record and its tree can be read.
            let shown = store.show(layer).unwrap();
            tree::read(&shown.path);
        }
    }

    fn what_was_not_set(&mut self, store: &DiskStore, stored: &[StoredLayer]) {
        let mut sum = NotSet::default();
        let mut counted: Vec<&StoredLayer> = vec![];
        for layer in stored {
            if counted.iter().any(|seen| seen.diff_id == layer.diff_id) {
                continue;
            }
            counted.push(layer);
            let found = store.layer_record(layer).unwrap().not_set;
            sum.owners += found.owners;
            sum.devices += found.devices;
            sum.xattrs += found.xattrs;
            sum.whiteout_devices += found.whiteout_devices;
            sum.foreign_xattrs += found.foreign_xattrs;
        }
        let mut expected = NotSet::default();
        for word in self.case.not_set(self.rights).split_ascii_whitespace() {
            let (what, number) = word.split_once('=').unwrap();
            let number = number.parse().unwrap();
            match what {
                "owners" => expected.owners = number,
                "devices" => expected.devices = number,
                "xattrs" => expected.xattrs = number,
                "whiteout_devices" => expected.whiteout_devices = number,
                "foreign_xattrs" => expected.foreign_xattrs = number,
                _ => panic!("{what} is not counted"),
            }
        }
        if sum != expected {
            self.problems.push(format!("not set: {sum:?}, expected {expected:?}"));
        }
    }

    fn backend(
        &mut self,
        name: BackendName,
        stack: &[LayerDir],
        expected: Option<&str>,
        first: &mut Option<(BackendName, Tree)>,
    ) -> String {
        let backend: Box<dyn Backend> = match name {
            BackendName::Overlay => match self.no_overlay {
                Some(why) => return format!("skipped ({why})"),
                None => Box::new(OverlayBackend::default()),
            },
            BackendName::Copy => Box::new(CopyBackend::default()),
            BackendName::Bind => match self.no_overlay {
                Some(why) if !is_one_tree(stack) => return format!("skipped ({why})"),
                _ => Box::new(BindBackend::default()),
            },
        };
        let problems = self.problems.len();
        let mut refused = false;
        let place = self.ground.place(name as u32);
        let refusing = self.case.refusing.iter().find(|(of, _)| *of == name);
        match (backend.mount(stack, &place, &Stop::default()), refusing) {
            (Ok(rootfs), None) => {
                let tree = tree::without_marks(tree::read(&rootfs.path));
                let wrong = expected.map(|expected| tree::unlike(&tree, expected, self.rights));
                let wrong = wrong.unwrap_or_default();
                self.problems.extend(wrong.into_iter().map(|wrong| format!("{name}: {wrong}")));
                match &*first {
                    None => *first = Some((name, tree)),
                    Some((other, theirs)) => {
                        let differ = tree::differences(theirs, &tree);
                        self.problems
                            .extend(differ.into_iter().map(|line| format!("{other} against {name}: {line}")));
                    }
                }
            }
            (Ok(_), Some(_)) => self.problems.push(format!("{name} did not refuse it")),
            (Err(error), Some((_, words))) if chain(&error).contains(words) => refused = true,
            (Err(error), _) => self.problems.push(format!("{name}: {}", chain(&error))),
        }
        match backend.unmount(&place) {
            Ok(_) if place.rootfs.exists() || place.scratch.exists() => {
                self.problems.push(format!("{name} left its rootfs"));
            }
            Ok(_) => {}
            Err(error) => self.problems.push(format!("{name} cannot be unmounted: {}", chain(&error))),
        }
        match () {
            () if self.problems.len() > problems => "FAILED".to_owned(),
            () if refused => "refused".to_owned(),
            () => "ok".to_owned(),
        }
    }

    /// Whatever became of it, the next case begins anew.
    fn clean_up(&mut self) {
        for place in ["store", "trees", "rootfses", "scratch"] {
            if let Err(error) = keelblock::sys::remove::remove_tree(&self.ground.work().join(place)) {
                self.problems.push(format!("{place} cannot be removed: {}", chain(&error)));
            }
        }
    }
}

/// Whether the bind backend can do without overlayfs.
fn is_one_tree(stack: &[LayerDir]) -> bool {
    stack.len() == 1 && !stack[0].whiteouts
}

fn names(dir: &Path) -> usize {
    std::fs::read_dir(dir).map_or(0, Iterator::count)
}

/// Why overlayfs cannot be mounted by this process, if it cannot.
pub(crate) fn overlay_is_missing(ground: &Ground) -> Option<String> {
    let store = tarball::store(&ground.store());
    let layer = tarball::put_tar(&store, &tarball::Tarball::of([tarball::file("f", "")]).end()).unwrap();
    let (place, backend) = (ground.place(0), OverlayBackend::default());
    let mounted = backend.mount(&[store.show(&layer).unwrap()], &place, &Stop::default());
    let why = mounted.err().map(|error| chain(&error));
    backend.unmount(&place).unwrap();
    for part in ["store", "rootfses", "scratch"] {
        keelblock::sys::remove::remove_tree(&ground.work().join(part)).unwrap();
    }
    why
}

/// Names that two cases share, or that a page could not refer to.
pub(crate) fn bad_names(cases: &[(&str, &str)]) -> Vec<String> {
    let mut seen: BTreeMap<&str, usize> = BTreeMap::new();
    for (_, name) in cases {
        *seen.entry(name).or_default() += 1;
    }
    let odd = |name: &str| {
        !name.bytes().all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-')
    };
    seen.iter().filter(|(name, count)| **count > 1 || odd(name)).map(|(name, _)| (*name).to_owned()).collect()
}
