//! What a case is: layers, and what must become of them.

use std::rc::Rc;

use keelblock::limits::Limits;
use keelblock_actors::container::BackendName;
use keelblock_actors::image::digest::{DiffId, Digest};
use keelblock_actors::image::plan::{Compression, LayerKey, LayerSpec};

use crate::ground::Ground;
use crate::run::Rights;
use crate::tarball::{self, Entry, Tarball};

/// A layer on its way: what comes, and what its manifest says of it.
pub(crate) struct Layer {
    pub(crate) blob: Vec<u8>,
    pub(crate) spec: LayerSpec,
}

/// A truthful manifest's layer of this tar, not compressed.
pub(crate) fn layer(entries: impl IntoIterator<Item = Entry>) -> Layer {
    raw(Tarball::of(entries).end())
}

/// The same of these bytes.
pub(crate) fn raw(tar: impl Into<Vec<u8>>) -> Layer {
    let tar = tar.into();
    Layer { spec: tarball::spec(&tar), blob: tar }
}

/// The same of a tar that is sent as this blob.
pub(crate) fn packed(tar: &[u8], blob: impl Into<Vec<u8>>, compression: Compression) -> Layer {
    let blob = blob.into();
    Layer { spec: tarball::spec_of(tar, &blob, compression), blob }
}

impl Layer {
    /// Its media type says so.
    pub(crate) fn declared(mut self, compression: Option<Compression>, media_type: &str) -> Self {
        self.spec.blob.compression = compression;
        self.spec.blob.media_type = Some(media_type.to_owned());
        self
    }

    /// Its manifest says so.
    pub(crate) fn size(mut self, size: Option<u64>) -> Self {
        self.spec.blob.size = size;
        self
    }

    /// Its manifest names the digest of these bytes.
    pub(crate) fn digest_of(mut self, bytes: &[u8]) -> Self {
        self.spec.blob.digest = Some(Digest::of(bytes));
        self
    }

    /// The image config names the digest of this tar.
    pub(crate) fn diff_of(mut self, tar: &[u8]) -> Self {
        self.spec.key = LayerKey::Diff(DiffId(Digest::of(tar)));
        self
    }

    /// Its source is cut, or adds something: neither size nor digest are as its manifest says.
    pub(crate) fn sent(mut self, blob: impl Into<Vec<u8>>) -> Self {
        self.blob = blob.into();
        self
    }

    /// The manifest tells the truth of this blob, whatever it is.
    pub(crate) fn honest(mut self) -> Self {
        self.spec.blob.size = Some(self.blob.len() as u64);
        self.spec.blob.digest = Some(Digest::of(&self.blob));
        self
    }
}

/// Cases that are not run as ACIs, too, and why.
const NOT_AS_ACI: [(&str, &str); 6] = [
    ("directories-2500-deep", DEEP),
    ("directories-2500-deep-then-refused", DEEP),
    ("directories-600-deep-in-two-layers", DEEP),
    (
        "sparse-of-sixteen-terabytes-stays-a-hole",
        "it takes long, and what is in a file is the same in an ACI",
    ),
    ("hard-links-two-thousand", "it takes long, and so is a case of whitelists"),
    ("link-target-too-long", "only names grow by rootfs/, and have the same limit"),
];
const DEEP: &str = "it takes long, and other deep trees are ACIs, too";

/// What must become of it.
#[derive(Clone)]
pub(crate) enum Expected {
    /// This tree, in every backend (see `tree`).
    Tree(String),
    /// Some tree: which one depends on where the case is run; backends must agree on it.
    SomeTree,
    /// The last layer is refused, in words that contain all of these.
    Refused(Vec<String>),
    /// The same, or in these words.
    RefusedOr(Vec<String>, &'static str),
    /// It is refused, or becomes some tree.
    Anything,
}

type Make = Rc<dyn Fn(&Ground) -> Vec<Layer>>;

/// One row of the table.
#[derive(Clone)]
pub(crate) struct Case {
    pub(crate) group: &'static str,
    pub(crate) name: &'static str,
    /// Base first.
    pub(crate) layers: Make,
    pub(crate) limits: Limits,
    /// Whether each layer comes as an ACI.
    pub(crate) as_aci: bool,
    expected: Expected,
    /// Where it is not the same for all.
    otherwise: Vec<(Rights, Expected)>,
    /// As the store's records count them, all layers together: `owners=1 xattrs=2`.
    not_set: [&'static str; 3],
    /// Backends that cannot do it, with words of the reason.
    pub(crate) refusing: Vec<(BackendName, &'static str)>,
    /// Not to be tried with these rights, and why.
    pub(crate) left_out: Vec<(Rights, &'static str)>,
}

impl Case {
    /// The same, of layers that come as ACIs.
    pub(crate) fn as_aci(&self) -> Self {
        let [group, name] = [self.group, self.name].map(|name| format!("{name}-as-aci").leak() as &str);
        let mut case = Self { group, name, as_aci: true, ..self.clone() };
        // What of user namespaces is different is so whatever names mean.
        case.left_out.push((Rights::Full, "as an ACI with one ID, too"));
        if let Some((_, why)) = NOT_AS_ACI.iter().find(|(name, _)| *name == self.name) {
            case.left_out.extend([Rights::Root, Rights::One].map(|rights| (rights, *why)));
        }
        case
    }

    pub(crate) fn expected(&self, rights: Rights) -> &Expected {
        let of = |rights: Rights| self.otherwise.iter().find(|(of, _)| *of == rights);
        of(rights).or_else(|| of(rights.of_case())).map_or(&self.expected, |(_, expected)| expected)
    }

    pub(crate) fn not_set(&self, rights: Rights) -> &'static str {
        self.not_set[rights.of_case() as usize]
    }

    pub(crate) fn limits(mut self, change: impl FnOnce(&mut Limits)) -> Self {
        change(&mut self.limits);
        self
    }

    /// In user namespaces this becomes of it.
    pub(crate) fn tree_rootless(mut self, tree: &str) -> Self {
        for rights in [Rights::One, Rights::Full] {
            self.otherwise.push((rights, Expected::Tree(tree.to_owned())));
        }
        self
    }

    /// Kept as an image it is refused, in these words.
    pub(crate) fn image_refused(mut self, words: &[&str]) -> Self {
        self.otherwise.push((Rights::Images, refusal(words)));
        self
    }

    /// What is not set, whoever unpacks.
    pub(crate) fn drops(mut self, what: &'static str) -> Self {
        self.not_set = [what; 3];
        self
    }

    /// What is not set in user namespaces: in those with one ID, and in those with many.
    pub(crate) fn drops_rootless(mut self, one: &'static str, full: &'static str) -> Self {
        self.not_set[1..].copy_from_slice(&[one, full]);
        self
    }

    /// Which tree it becomes depends on where it is run.
    pub(crate) fn some_tree(mut self) -> Self {
        self.expected = Expected::SomeTree;
        self
    }

    pub(crate) fn backend_refuses(mut self, backend: BackendName, words: &'static str) -> Self {
        self.refusing.push((backend, words));
        self
    }

    pub(crate) fn only_root(mut self, why: &'static str) -> Self {
        self.left_out.extend([(Rights::One, why), (Rights::Full, why)]);
        self
    }
}

fn refusal(words: &[&str]) -> Expected {
    Expected::Refused(words.iter().map(|word| (*word).to_owned()).collect())
}

/// The cases of one group.
pub(crate) struct Group {
    name: &'static str,
    cases: Vec<Case>,
}

impl Group {
    pub(crate) fn new(name: &'static str) -> Self {
        Self { name, cases: vec![] }
    }

    pub(crate) fn done(self) -> Vec<Case> {
        self.cases
    }

    fn add(
        &mut self,
        name: &'static str,
        layers: impl Fn(&Ground) -> Vec<Layer> + 'static,
        expected: Expected,
        change: impl FnOnce(Case) -> Case,
    ) {
        self.cases.push(change(Case {
            group: self.name,
            name,
            layers: Rc::new(layers),
            as_aci: false,
            limits: Limits::default(),
            expected,
            otherwise: vec![],
            not_set: [""; 3],
            refusing: vec![],
            left_out: vec![],
        }));
    }

    /// One layer of these entries becomes this tree.
    pub(crate) fn tree(&mut self, name: &'static str, entries: Vec<Entry>, tree: impl Into<String>) {
        self.tree_but(name, entries, tree, |case| case);
    }

    /// The same, and more to say of it.
    pub(crate) fn tree_but(
        &mut self,
        name: &'static str,
        entries: Vec<Entry>,
        tree: impl Into<String>,
        change: impl FnOnce(Case) -> Case,
    ) {
        self.add(name, move |_| vec![layer(entries.clone())], Expected::Tree(tree.into()), change);
    }

    /// A layer of these entries is refused, in these words.
    pub(crate) fn refused(&mut self, name: &'static str, entries: Vec<Entry>, words: &[&str]) {
        self.refused_but(name, entries, words, |case| case);
    }

    /// The same, and more to say of it.
    pub(crate) fn refused_but(
        &mut self,
        name: &'static str,
        entries: Vec<Entry>,
        words: &[&str],
        change: impl FnOnce(Case) -> Case,
    ) {
        self.add(name, move |_| vec![layer(entries.clone())], refusal(words), change);
    }

    /// Layers of these entries, base first, become this tree.
    pub(crate) fn stack(&mut self, name: &'static str, stack: Vec<Vec<Entry>>, tree: impl Into<String>) {
        self.stack_but(name, stack, tree, |case| case);
    }

    /// The same, and more to say of it.
    pub(crate) fn stack_but(
        &mut self,
        name: &'static str,
        stack: Vec<Vec<Entry>>,
        tree: impl Into<String>,
        change: impl FnOnce(Case) -> Case,
    ) {
        let layers = move |_: &Ground| stack.iter().cloned().map(layer).collect();
        self.add(name, layers, Expected::Tree(tree.into()), change);
    }

    /// Layers made where the case is run become this tree.
    pub(crate) fn made(
        &mut self,
        name: &'static str,
        layers: impl Fn(&Ground) -> Vec<Layer> + 'static,
        tree: impl Into<String>,
    ) {
        self.made_but(name, layers, tree, |case| case);
    }

    /// The same, and more to say of it.
    pub(crate) fn made_but(
        &mut self,
        name: &'static str,
        layers: impl Fn(&Ground) -> Vec<Layer> + 'static,
        tree: impl Into<String>,
        change: impl FnOnce(Case) -> Case,
    ) {
        self.add(name, layers, Expected::Tree(tree.into()), change);
    }

    /// Layers made where the case is run: the last of them is refused, in these words.
    pub(crate) fn made_refused(
        &mut self,
        name: &'static str,
        layers: impl Fn(&Ground) -> Vec<Layer> + 'static,
        words: &[&str],
    ) {
        self.add(name, layers, refusal(words), |case| case);
    }

    /// The same, and more to say of it.
    pub(crate) fn made_refused_but(
        &mut self,
        name: &'static str,
        layers: impl Fn(&Ground) -> Vec<Layer> + 'static,
        words: &[&str],
        change: impl FnOnce(Case) -> Case,
    ) {
        self.add(name, layers, refusal(words), change);
    }
}
