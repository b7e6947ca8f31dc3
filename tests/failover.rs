//! Mirrors that give wrong bytes, or die in the middle of a layer: the pull ends exact, from the registry itself.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use keelblock::config::Config;
use keelblock::{Agent, ImageRequest, NoObserver};
use keelblock_actors::error::chain;
use keelblock_actors::messages::PulledImage;

mod support {
    pub(crate) mod registry;
}
use support::registry::{Ending, Reply, TestImage, TestRegistry};

/// Bytes of the file in the layer: several times what a connection holds on its way.
const BYTES: usize = 3 << 20;

/// A tar with one file of bytes that do not repeat.
fn layer() -> Vec<u8> {
    let mut builder = tar::Builder::new(Vec::new());
    let mut state = 7u64;
    let content: Vec<u8> = std::iter::repeat_with(|| {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        (state >> 56) as u8
    })
    .take(BYTES)
    .collect();
    let mut header = tar::Header::new_ustar();
    header.set_size(content.len() as u64);
    header.set_mode(0o644);
    builder.append_data(&mut header, "file", content.as_slice()).unwrap();
    builder.into_inner().unwrap()
}

/// A registry, a mirror that has the same, and a directory that says so.
struct Both {
    registry: TestRegistry,
    mirror: TestRegistry,
    image: TestImage,
    layer: Vec<u8>,
    hosts: tempfile::TempDir,
}

impl Both {
    fn new() -> Self {
        let (registry, mirror) = (TestRegistry::start(), TestRegistry::start());
        let layer = layer();
        let image = registry.put_image("app", "1", &[&layer]);
        mirror.put_image("app", "1", &[&layer]);
        let hosts = tempfile::tempdir().unwrap();
        let directory = hosts.path().join(registry.host());
        std::fs::create_dir(&directory).unwrap();
        let text = format!("[host.\"{}\"]\ncapabilities = [\"pull\", \"resolve\"]\n", mirror.url());
        std::fs::write(directory.join("hosts.toml"), text).unwrap();
        Self { registry, mirror, image, layer, hosts }
    }

    fn blob(&self) -> String {
        format!("/v2/app/blobs/{}", self.image.layers[0])
    }

    /// How often the mirror and the registry were asked for the layer.
    fn asked(&self) -> (usize, usize) {
        (self.mirror.count(&self.blob()), self.registry.count(&self.blob()))
    }

    fn pull(&self, home: &Path) -> Result<PulledImage, String> {
        let mut config = Config {
            work_dir: home.to_owned(),
            registry_config_path: vec![self.hosts.path().to_owned()],
            ..Config::default()
        };
        config.limits.retry_pause = Duration::from_millis(1);
        let runtime =
            tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
        runtime.block_on(async {
            let log = slog::Logger::root(slog::Discard, slog::o!());
            let agent = Agent::start(config, Arc::new(NoObserver), log).await.unwrap();
            let name = format!("{}/app:1", self.registry.host()).parse().unwrap();
            let pulled = agent.pull(ImageRequest::cached(name)).await;
            agent.shutdown().await;
            pulled.map_err(|error| chain(&*error))
        })
    }
}

#[test]
fn a_mirror_that_has_all_is_the_only_one_that_is_asked() {
    let both = Both::new();
    let home = tempfile::tempdir().unwrap();
    assert_eq!(both.pull(home.path()).unwrap().layers_fetched, 1);
    assert_eq!(both.asked(), (1, 0));
    assert!(both.registry.seen().is_empty());
}

#[test]
fn a_layer_that_a_mirror_spoils_is_asked_of_the_registry() {
    let both = Both::new();
    let mut spoiled = both.layer.clone();
    spoiled[BYTES / 2] ^= 1;
    both.mirror.on(both.blob(), Reply::new(200, spoiled));
    let home = tempfile::tempdir().unwrap();
    let pulled = both.pull(home.path()).unwrap();
    assert_eq!(pulled.identity.manifest, both.image.manifest);
    assert_eq!(both.asked(), (1, 1));
}

#[test]
fn a_layer_that_a_mirror_breaks_off_goes_on_at_the_registry() {
    let both = Both::new();
    // The mirror gives two thirds and is gone; the registry, which knows ranges, is asked for the rest alone.
    let (cut, whole, blob) = (2 << 20, both.layer.clone(), both.blob());
    both.mirror.script({
        let (whole, blob) = (whole.clone(), blob.clone());
        let begun = std::sync::atomic::AtomicBool::new(false);
        move |seen| {
            (seen.path == blob).then(|| match begun.swap(true, std::sync::atomic::Ordering::SeqCst) {
                false => Reply::new(200, whole[..cut].to_vec())
                    .header("content-length", whole.len())
                    .ending(Ending::Cut),
                true => Reply::error(503, "UNAVAILABLE", "gone"),
            })
        }
    });
    both.registry.script(move |seen| {
        let (from, _) = seen.range.as_deref()?.strip_prefix("bytes=")?.split_once('-')?;
        let from: usize = from.parse().ok()?;
        let last = whole.len() - 1;
        (seen.path == blob).then(|| {
            Reply::new(206, whole[from..].to_vec())
                .header("content-range", format!("bytes {from}-{last}/{}", whole.len()))
        })
    });
    let home = tempfile::tempdir().unwrap();
    let pulled = both.pull(home.path()).unwrap();
    assert_eq!(pulled.identity.manifest, both.image.manifest);
    assert_eq!(pulled.bytes_fetched, both.layer.len() as u64);
    assert_eq!(pulled.transfer.bytes_again, 0, "{:?}", pulled.transfer);
    assert_eq!(both.registry.count(&both.blob()), 1);
    let range = both.registry.seen().into_iter().find_map(|seen| seen.range).unwrap();
    assert_ne!(range, "bytes=0-");
}
