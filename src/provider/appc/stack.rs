//! The layers of an image: itself on top, below it what it depends on.
//!
//! The specification (ace.md, "Filesystem Setup") has the dependencies extracted in their order, depth first, and what comes later
//! overrides what was there: of `A -> [B, C]`, `B -> [D]`, `C -> [D]` the order is D, B, D, C, A. Here each is a layer, or a view
//! of one: the path whitelists of an image leave out paths of everything below it.
//!
//! An image that is there by several paths is there several times, unless the same whitelists hold on them. Then only the
//! topmost stays, which is the same: no layer of an Appc image removes anything, and every path has what the topmost layer that
//! has it says; a layer's paths are all in its copy further up.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use keelblock_actors::image::appc::{AciView, AppcName, ImageId, PathWhitelist};
use keelblock_actors::image::plan::{BlobSpec, LayerKey, LayerSpec};

use super::error::AppcError;
use super::graph::{Graph, Node};

/// A layer of the image, and the name in the graph of the image that it is of, unless that is the root.
pub(super) struct Layer {
    pub(super) spec: LayerSpec,
    pub(super) of: Option<AppcName>,
    /// Whether its archive is here.
    pub(super) fetched: bool,
}

/// The layers of a graph, base first.
///
/// # Errors
/// [`AppcError::Layers`].
pub(super) fn layers(graph: &Graph, layers_max: usize) -> Result<Vec<Layer>, AppcError> {
    let mut stack = Stack::of(graph, layers_max);
    stack.visit(None, &graph.root, &Lists::new())?;
    stack.layers.reverse();
    Ok(stack.layers)
}

/// Whitelists by their number.
type Lists = BTreeSet<usize>;

/// A stack in the making, from the top down.
struct Stack<'a> {
    graph: &'a Graph,
    layers_max: usize,
    /// All that there are, each once.
    lists: Vec<Arc<PathWhitelist>>,
    by_paths: BTreeMap<&'a [String], usize>,
    /// Views that are in the stack.
    views: BTreeSet<(&'a ImageId, Lists)>,
    /// The same with all that is below them: what is there twice is not gone through twice.
    subtrees: BTreeSet<(Option<&'a AppcName>, Lists)>,
    layers: Vec<Layer>,
}

impl<'a> Stack<'a> {
    fn of(graph: &'a Graph, layers_max: usize) -> Self {
        Self {
            graph,
            layers_max,
            lists: Vec::new(),
            by_paths: BTreeMap::new(),
            views: BTreeSet::new(),
            subtrees: BTreeSet::new(),
            layers: Vec::new(),
        }
    }

    fn visit(&mut self, key: Option<&'a AppcName>, node: &'a Node, above: &Lists) -> Result<(), AppcError> {
        let mut lists = above.clone();
        lists.extend(self.number(&node.image.manifest.path_whitelist));
        if !self.subtrees.insert((key, lists.clone())) {
            return Ok(());
        }
        if self.views.insert((&node.image.id, lists.clone())) {
            if self.layers.len() == self.layers_max {
                return Err(AppcError::Layers { limit: self.layers_max });
            }
            let whitelists = lists.iter().filter_map(|list| self.lists.get(*list).cloned()).collect();
            let view = AciView { image_id: node.image.id.clone(), whitelists };
            let blob = BlobSpec { digest: None, size: node.image.size, compression: None, media_type: None };
            let spec = LayerSpec {
                key: LayerKey::Aci(view.diff_id()),
                blob,
                source: node.image.source.clone(),
                aci: Some(view),
                access: None,
            };
            self.layers.push(Layer { spec, of: key.cloned(), fetched: node.image.fetched });
        }
        for key in node.dependencies.iter().rev() {
            if let Some(below) = self.graph.nodes.get(key) {
                self.visit(Some(key), below, &lists)?;
            }
        }
        Ok(())
    }

    /// The number of a whitelist; none has one that lets all through.
    fn number(&mut self, paths: &'a [String]) -> Option<usize> {
        if let Some(number) = self.by_paths.get(paths) {
            return Some(*number);
        }
        let list = PathWhitelist::new(paths.iter().map(String::as_str))?;
        let same = self.lists.iter().position(|other| **other == list);
        let number = same.unwrap_or_else(|| {
            self.lists.push(Arc::new(list));
            self.lists.len() - 1
        });
        self.by_paths.insert(paths, number);
        Some(number)
    }
}
