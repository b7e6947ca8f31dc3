//! An image and all that it depends on: loaded at once as far as they are known, each once, whoever names it.

use std::collections::{BTreeMap, BTreeSet};

use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use futures_util::stream::{FuturesUnordered, StreamExt};
use keelblock_actors::image::appc::{AppcName, Dependency, ImageId, LABEL_ARCH, LABEL_OS};
use keelblock_actors::image::name::PullPolicy;

use super::error::AppcError;
use super::load::{Loaded, Loader};
use super::names;

/// Limits of dependencies, and when their sources are asked.
#[derive(Clone, Copy, Debug)]
pub(super) struct Rules {
    pub(super) depth_max: usize,
    pub(super) count_max: usize,
    pub(super) policy: PullPolicy,
}

/// An image in the graph.
#[derive(Clone, Debug)]
pub(super) struct Node {
    pub(super) image: Loaded,
    /// Lowest first, each once: by the names that they were looked for by.
    pub(super) dependencies: Vec<AppcName>,
}

/// An image and all that it depends on. No circles.
#[derive(Clone, Debug)]
pub(super) struct Graph {
    pub(super) root: Node,
    /// By the name that each was looked for by.
    pub(super) nodes: BTreeMap<AppcName, Node>,
}

/// What an image says of one that it depends on.
struct Expected {
    /// The image that says so.
    by: String,
    dependency: Dependency,
}

impl Expected {
    fn error(&self, source: AppcError) -> AppcError {
        let (name, by) = (self.dependency.name.clone(), self.by.clone());
        AppcError::Dependency { name, by, source: Box::new(source) }
    }

    /// Whether the image that came is the one that is meant.
    fn check(&self, image: &Loaded) -> Result<(), AppcError> {
        let from = image.source.to_string();
        let wrong = match (&self.dependency.image_id, self.dependency.size) {
            (Some(asked), _) if *asked != image.id => {
                AppcError::OtherId { asked: asked.clone(), found: image.id.clone(), from }
            }
            (_, Some(asked)) if image.size.is_some_and(|found| found != asked) => {
                AppcError::OtherSize { asked, found: image.size.unwrap_or_default(), from }
            }
            _ => match names::check(&self.dependency.name, &image.manifest.name, &from) {
                Ok(()) => return Ok(()),
                Err(wrong) => wrong,
            },
        };
        Err(self.error(wrong))
    }
}

/// A load under way.
type Loading = BoxFuture<'static, (AppcName, Result<Loaded, AppcError>)>;

/// Loads a graph.
pub(super) struct Loads<'a> {
    pub(super) loader: &'a Loader,
    pub(super) rules: Rules,
    /// Those whose archives are needed, though the store has records of them.
    pub(super) anew: &'a BTreeSet<AppcName>,
    /// What was loaded before.
    pub(super) known: &'a mut BTreeMap<AppcName, Loaded>,
}

impl Loads<'_> {
    /// Loads what an image depends on; `labels` are those by which it was looked for.
    pub(super) async fn load(mut self, root: Loaded, labels: &AppcName) -> Result<Graph, AppcError> {
        let mut nodes: BTreeMap<AppcName, Node> = BTreeMap::new();
        let mut expected: BTreeMap<AppcName, Vec<Expected>> = BTreeMap::new();
        let mut under_way: FuturesUnordered<Loading> = FuturesUnordered::new();
        let (root, mut wanted) = node(root, labels);
        loop {
            for (key, one) in wanted {
                if let Some(node) = nodes.get(&key) {
                    one.check(&node.image)?;
                }
                let of_key = expected.entry(key.clone()).or_default();
                if of_key.is_empty() {
                    under_way.push(self.begin(key, &one.dependency));
                }
                of_key.push(one);
                if expected.len() > self.rules.count_max {
                    return Err(AppcError::Count { limit: self.rules.count_max });
                }
            }
            let Some((key, loaded)) = under_way.next().await else { break };
            let of_key = expected.entry(key.clone()).or_default();
            let image = match (loaded, of_key.first()) {
                (Ok(image), _) => image,
                (Err(error), Some(first)) => return Err(first.error(error)),
                (Err(error), None) => return Err(error),
            };
            of_key.iter().try_for_each(|one| one.check(&image))?;
            self.known.insert(key.clone(), image.clone());
            let (node, next) = node(image, &key);
            nodes.insert(key, node);
            wanted = next;
        }
        let graph = Graph { root, nodes };
        graph.check(self.rules.depth_max)?;
        Ok(graph)
    }

    fn begin(&mut self, key: AppcName, dependency: &Dependency) -> Loading {
        let anew = self.anew.contains(&key);
        if let Some(image) = self.known.get(&key).filter(|image| image.fetched || !anew) {
            return futures_util::future::ready((key, Ok(image.clone()))).boxed();
        }
        let (loader, policy) = (self.loader.clone(), self.rules.policy);
        let (id, size) = (dependency.image_id.clone(), dependency.size);
        async move {
            let loaded = load(&loader, &key, id.as_ref(), size, policy, anew).await;
            (key, loaded)
        }
        .boxed()
    }
}

async fn load(
    loader: &Loader,
    key: &AppcName,
    id: Option<&ImageId>,
    size: Option<u64>,
    policy: PullPolicy,
    anew: bool,
) -> Result<Loaded, AppcError> {
    if policy != PullPolicy::Always
        && !anew
        && let Some(image) = loader.recorded(key, id).await?
    {
        return Ok(image);
    }
    match policy {
        PullPolicy::Never => Err(AppcError::NotStored),
        PullPolicy::Always | PullPolicy::Missing => loader.fetch(key, size).await,
    }
}

/// An image and what it wants. What it says of dependencies without os and arch is meant for its own, which are those it was
/// looked for by where it is for all.
fn node(image: Loaded, labels: &AppcName) -> (Node, Vec<(AppcName, Expected)>) {
    let mut own = image.manifest.name.clone();
    for label in [LABEL_OS, LABEL_ARCH] {
        if let Some(value) = labels.label(label) {
            own = own.or_label(label, value);
        }
    }
    let mut wanted = Vec::new();
    let mut dependencies: Vec<AppcName> = Vec::new();
    for dependency in &image.manifest.dependencies {
        let key = names::of_dependency(&dependency.name, &own);
        // The last one is above the others, which are the same then.
        dependencies.retain(|other| *other != key);
        dependencies.push(key.clone());
        let by = image.manifest.name.to_string();
        wanted.push((key, Expected { by, dependency: dependency.clone() }));
    }
    (Node { image, dependencies }, wanted)
}

impl Graph {
    /// Refuses circles, and what is too deep.
    fn check(&self, depth_max: usize) -> Result<(), AppcError> {
        let mut walk = Walk { graph: self, depth_max, path: Vec::new(), heights: BTreeMap::new() };
        walk.enter(None, &self.root).map(drop)
    }
}

/// A walk from the root down.
struct Walk<'a> {
    graph: &'a Graph,
    depth_max: usize,
    /// From the root to where it is.
    path: Vec<&'a Node>,
    /// Of what lies below those that were walked.
    heights: BTreeMap<&'a AppcName, usize>,
}

impl<'a> Walk<'a> {
    /// How deep it goes below this node.
    fn enter(&mut self, key: Option<&'a AppcName>, node: &'a Node) -> Result<usize, AppcError> {
        if let Some(start) = self.path.iter().position(|above| above.image.id == node.image.id) {
            return Err(AppcError::Circle { circle: self.titles(start, node) });
        }
        let known = key.and_then(|key| self.heights.get(key)).copied();
        if self.path.len() + known.unwrap_or(0) > self.depth_max {
            return Err(AppcError::Depth { limit: self.depth_max, path: self.titles(0, node) });
        }
        if let Some(height) = known {
            return Ok(height);
        }
        self.path.push(node);
        let mut height = 0;
        for key in &node.dependencies {
            if let Some(below) = self.graph.nodes.get(key) {
                height = height.max(1 + self.enter(Some(key), below)?);
            }
        }
        self.path.pop();
        if let Some(key) = key {
            self.heights.insert(key, height);
        }
        Ok(height)
    }

    fn titles(&self, start: usize, last: &Node) -> String {
        let title = |node: &Node| node.image.manifest.name.to_string();
        let titles: Vec<_> = self.path[start..].iter().map(|node| title(node)).chain([title(last)]).collect();
        titles.join(" -> ")
    }
}
