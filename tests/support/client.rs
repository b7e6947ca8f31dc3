//! A registry client on a runtime of its own, as a composition root would make it, whose log can be read.

#![allow(dead_code, unreachable_pub, reason = "each file of tests uses its part of this")]

use std::io::Write;
use std::path::PathBuf;
use std::sync::{Arc, Mutex};

use keelblock::limits::Limits;
use keelblock::provider::archive::Archives;
use keelblock::provider::docker::{DockerProvider, DockerSource};
use keelblock::provider::manifest::Platform;
use keelblock::puller::registry::{RegistryClient, RegistryPuller, RegistrySettings};
use keelblock_actors::error::{ResolveError, chain};
use keelblock_actors::image::name::ImageRequest;
use keelblock_actors::image::plan::{ImagePlan, LayerSpec};
use keelblock_actors::ports::{Blob, Provider, Puller};
use slog::Drain;
use tokio::runtime::Runtime;

pub struct Rig {
    pub client: RegistryClient,
    pub puller: RegistryPuller,
    pub runtime: Runtime,
    provider: DockerProvider,
    log: Lines,
}

#[derive(Clone, Default)]
struct Lines(Arc<Mutex<Vec<u8>>>);

impl Write for Lines {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.lock().unwrap().extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

impl Rig {
    pub fn new(change: impl FnOnce(&mut RegistrySettings)) -> Self {
        let runtime =
            tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
        let source: DockerSource = "docker.io".parse().unwrap();
        let mut settings = RegistrySettings::new(Limits::default());
        settings.platform = "linux/amd64".parse().unwrap();
        // Retries have tests of their own.
        settings.limits.retries_max = 0;
        change(&mut settings);
        let log = Lines::default();
        let drain =
            slog_term::FullFormat::new(slog_term::PlainSyncDecorator::new(log.clone())).build().fuse();
        let client =
            RegistryClient::new(settings, runtime.handle().clone(), slog::Logger::root(drain, slog::o!()));
        let archives =
            Archives::new(Limits::default(), PathBuf::from("/nonexistent/spool"), Platform::host());
        Self {
            provider: DockerProvider::new(source, client.clone(), archives),
            puller: RegistryPuller::new(client.clone()),
            client,
            runtime,
            log,
        }
    }

    pub fn resolve(&self, name: &str) -> Result<ImagePlan, ResolveError> {
        self.runtime.block_on(self.provider.resolve(ImageRequest::cached(name.parse().unwrap())))
    }

    #[track_caller]
    pub fn plan(&self, name: &str) -> ImagePlan {
        self.resolve(name).unwrap_or_else(|error| panic!("{name}: {}\n{}", chain(&error), self.log()))
    }

    /// Why it does not resolve, the whole chain.
    #[track_caller]
    pub fn refusal(&self, name: &str) -> String {
        chain(&self.resolve(name).expect_err("it must not resolve"))
    }

    pub fn open(&self, layer: &LayerSpec) -> Result<Blob, String> {
        self.runtime.block_on(self.puller.open(layer)).map_err(|error| chain(&error))
    }

    #[track_caller]
    pub fn fetch(&self, layer: &LayerSpec) -> Vec<u8> {
        read(self.open(layer).unwrap_or_else(|error| panic!("{error}\n{}", self.log())))
    }

    /// All that was logged, at every level.
    pub fn log(&self) -> String {
        String::from_utf8(self.log.0.lock().unwrap().clone()).unwrap()
    }

    /// Panics unless one line of the log has all of these.
    #[track_caller]
    pub fn logged(&self, words: &[&str]) {
        let log = self.log();
        assert!(log.lines().any(|line| words.iter().all(|word| line.contains(word))), "{words:?} in\n{log}");
    }
}

#[track_caller]
pub fn read(mut blob: Blob) -> Vec<u8> {
    let mut bytes = Vec::new();
    blob.reader.read_to_end(&mut bytes).unwrap_or_else(|error| {
        let inner = error.get_ref().map(|inner| chain(inner)).unwrap_or_default();
        panic!("after {} bytes: {error}: {inner}", bytes.len())
    });
    bytes
}
