//! Manifests from registries: of docker schema 1, for other machines, in indexes within indexes. From a registry in this
//! process, which may lie, and from Debian's `docker-registry`, filled by `skopeo` and run by the real binary.

use std::io::Read;

use keelblock::limits::Limits;
use keelblock::provider::archive::Archives;
use keelblock::provider::docker::{DockerProvider, DockerSource};
use keelblock::provider::manifest::Platform;
use keelblock::puller::registry::{RegistryClient, RegistryPuller, RegistrySettings};
use keelblock_actors::error::chain;
use keelblock_actors::image::digest::Digest;
use keelblock_actors::image::name::ImageRequest;
use keelblock_actors::image::plan::ImagePlan;
use keelblock_actors::ports::{Provider, Puller};
use serde_json::json;
use tokio::runtime::Runtime;

#[path = "../support"]
mod support {
    pub(crate) mod binary;
    pub(crate) mod images;
    pub(crate) mod peers;
    pub(crate) mod registry;
}

mod platforms;
mod schema1;
mod skopeo;

use support::registry::{Reply, TestRegistry};

pub(crate) const PLAIN: &str = "application/vnd.docker.distribution.manifest.v1+json";

/// A client on a runtime of its own.
pub(crate) struct Rig {
    provider: DockerProvider,
    puller: RegistryPuller,
    pub(crate) runtime: Runtime,
}

impl Rig {
    pub(crate) fn new() -> Self {
        Self::with(|_| {})
    }

    pub(crate) fn with(change: impl FnOnce(&mut RegistrySettings)) -> Self {
        Self::logging(slog::Logger::root(slog::Discard, slog::o!()), change)
    }

    pub(crate) fn logging(log: slog::Logger, change: impl FnOnce(&mut RegistrySettings)) -> Self {
        let runtime =
            tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
        let mut settings = RegistrySettings::new(Limits::default());
        settings.platform = "linux/amd64".parse().unwrap();
        change(&mut settings);
        let client = RegistryClient::new(settings, runtime.handle().clone(), log);
        let archives = Archives::new(Limits::default(), "/nonexistent/spool".into(), Platform::host());
        let provider =
            DockerProvider::new("docker.io".parse::<DockerSource>().unwrap(), client.clone(), archives);
        Self { provider, puller: RegistryPuller::new(client), runtime }
    }

    pub(crate) fn resolve(&self, name: &str) -> Result<ImagePlan, String> {
        let request = ImageRequest::cached(name.parse().unwrap());
        self.runtime.block_on(self.provider.resolve(request)).map_err(|error| chain(&error))
    }

    pub(crate) fn blobs(&self, plan: &ImagePlan) -> Vec<Vec<u8>> {
        let blob = |layer| {
            let mut blob =
                self.runtime.block_on(self.puller.open(layer)).unwrap_or_else(|e| panic!("{}", chain(&e)));
            let mut bytes = Vec::new();
            blob.reader.read_to_end(&mut bytes).unwrap();
            bytes
        };
        plan.layers.iter().map(blob).collect()
    }
}

/// A manifest of layers, base first, for this system and processor, in one line as registries have it.
pub(crate) fn manifest(os: &str, architecture: &str, layers: &[Digest]) -> String {
    let id = |n: usize| format!("{n:064x}");
    let mut history = Vec::new();
    for n in 0..layers.len() {
        let mut entry =
            json!({"id": id(n), "os": os, "architecture": architecture, "config": {"Cmd": ["/bin/true"]}});
        if n > 0 {
            entry["parent"] = json!(id(n - 1));
        }
        history.insert(0, json!({"v1Compatibility": entry.to_string()}));
    }
    let layers: Vec<_> = layers.iter().rev().map(|layer| json!({"blobSum": layer})).collect();
    // Another name than it is asked by, as after a copy within a registry.
    json!({"schemaVersion": 1, "name": "else/where", "tag": "x", "architecture": architecture,
           "fsLayers": layers, "history": history})
    .to_string()
}

/// Answers with this manifest by tag and by digest, and states that digest.
pub(crate) fn put(registry: &TestRegistry, tag: &str, media_type: &str, body: &str, digest: &Digest) {
    let reply = Reply::new(200, body.to_owned())
        .header("content-type", media_type)
        .header("docker-content-digest", digest);
    for name in [tag.to_owned(), digest.to_string()] {
        registry.on(format!("/v2/app/manifests/{name}"), reply.clone());
    }
}
