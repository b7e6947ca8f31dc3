//! A source of ACIs on a runtime and a spool of its own, whose log can be read.

#![allow(dead_code, unreachable_pub, reason = "each file of tests uses its part of this")]

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use keelblock::limits::Limits;
use keelblock::provider::appc::ports::{AciFetchError, AciSource, FetchedAci, WantedAci};
use keelblock::puller::appc::{AppcSource, AppcSourceSettings};
use keelblock::puller::registry::{NoProxy, Proxies, Proxy, RegistrySettings};
use keelblock_actors::error::chain;
use keelblock_actors::image::appc::{AciView, AppcName};
use keelblock_actors::image::plan::{BlobSpec, LayerKey, LayerSource, LayerSpec};
use keelblock_actors::progress::{LayerEvent, NoObserver, Observer};
use slog::Drain;
use tokio::runtime::Runtime;

use super::acis::AciServer;
use super::servers::ForwardProxy;

/// Something like an archive: of this many bytes, none like its neighbours.
pub fn bytes(count: usize) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(count + 4);
    for n in 0..count.div_ceil(4) as u32 {
        bytes.extend_from_slice(&n.wrapping_mul(2_654_435_761).to_le_bytes());
    }
    bytes.truncate(count);
    bytes
}

#[derive(Clone, Default)]
struct Lines(Arc<Mutex<Vec<u8>>>);

impl std::io::Write for Lines {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.lock().unwrap().extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

/// A source on a runtime of its own, with a spool of its own, whose log can be read.
pub struct Rig {
    pub source: AppcSource,
    pub runtime: Runtime,
    pub spool: PathBuf,
    /// What was told of archives.
    pub told: Arc<Told>,
    _dir: Option<tempfile::TempDir>,
    log: Lines,
}

/// Hears of archives, and remembers.
#[derive(Default)]
pub struct Told(pub Mutex<Vec<LayerEvent>>);

impl Observer for Told {
    fn layer(&self, _: &LayerKey, _: LayerEvent) {}

    fn archive(&self, _: &str, event: LayerEvent) {
        self.0.lock().unwrap().push(event);
    }
}

fn settings(prefix: &str) -> AppcSourceSettings {
    let mut registry = RegistrySettings::new(Limits::default());
    registry.limits.retries_max = 0;
    registry.limits.retry_pause = Duration::from_millis(1);
    AppcSourceSettings {
        prefix: prefix.parse().unwrap(),
        registry,
        spool: PathBuf::new(),
        observer: Arc::new(NoObserver),
    }
}

impl Rig {
    pub fn new(prefix: &str, change: impl FnOnce(&mut RegistrySettings)) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let spool = dir.path().join("spool");
        Self { _dir: Some(dir), ..Self::on(&spool, prefix, change) }
    }

    /// On a spool that others may use.
    pub fn on(spool: &Path, prefix: &str, change: impl FnOnce(&mut RegistrySettings)) -> Self {
        let runtime =
            tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
        let mut settings = AppcSourceSettings { spool: spool.to_owned(), ..settings(prefix) };
        change(&mut settings.registry);
        let told = Arc::new(Told::default());
        settings.observer = told.clone();
        let log = Lines::default();
        let drain =
            slog_term::FullFormat::new(slog_term::PlainSyncDecorator::new(log.clone())).build().fuse();
        let log_to = slog::Logger::root(drain, slog::o!());
        let source = AppcSource::new(settings, runtime.handle().clone(), log_to);
        Self { source, runtime, spool: spool.to_owned(), told, _dir: None, log }
    }

    /// Before a server that stands for every host, in plain http.
    pub fn behind(server: &AciServer, prefix: &str) -> (Self, ForwardProxy) {
        let proxy = ForwardProxy::start(server.host(), None, None);
        let rig = Self::new(prefix, |settings| settings.proxies = through(&proxy));
        (rig, proxy)
    }

    pub fn fetch(&self, wanted: WantedAci) -> Result<FetchedAci, AciFetchError> {
        self.runtime.block_on(self.source.fetch(wanted))
    }

    #[track_caller]
    pub fn fetched(&self, wanted: WantedAci) -> (FetchedAci, Vec<u8>) {
        let fetched = self.fetch(wanted).unwrap_or_else(|error| panic!("{}\n{}", chain(&error), self.log()));
        let bytes = std::fs::read(&fetched.path).unwrap();
        (fetched, bytes)
    }

    /// Why it does not come, the whole chain. Nothing is left in the spool then.
    #[track_caller]
    pub fn refusal(&self, wanted: WantedAci) -> String {
        let before = self.spooled();
        let error = chain(&self.fetch(wanted).expect_err("it must not come"));
        assert_eq!(self.spooled(), before, "{error}");
        error
    }

    /// The names of what lies in the spool.
    pub fn spooled(&self) -> Vec<String> {
        let Ok(entries) = std::fs::read_dir(&self.spool) else { return Vec::new() };
        let mut names: Vec<String> =
            entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
        names.sort();
        names
    }

    pub fn log(&self) -> String {
        String::from_utf8(self.log.0.lock().unwrap().clone()).unwrap()
    }
}

pub fn through(proxy: &ForwardProxy) -> Proxies {
    let proxy = Some(Proxy::parse(&proxy.host(), "--http_proxy"));
    Proxies { https: proxy.clone(), http: proxy, without: NoProxy::default() }
}

pub fn named(name: &str) -> WantedAci {
    let name: AppcName = name.parse().unwrap();
    let name = name.or_label("os", "linux").or_label("arch", "amd64");
    WantedAci::Named { name, size: None, signature: false }
}

pub fn signed(name: &str) -> WantedAci {
    match named(name) {
        WantedAci::Named { name, size, .. } => WantedAci::Named { name, size, signature: true },
        file => file,
    }
}

pub fn sized(name: &str, size: u64) -> WantedAci {
    match named(name) {
        WantedAci::Named { name, signature, .. } => WantedAci::Named { name, size: Some(size), signature },
        file => file,
    }
}

pub fn page(tags: &[(&str, &str)]) -> String {
    let tags = tags.iter().map(|(name, content)| format!("<meta name=\"{name}\" content=\"{content}\">\n"));
    format!(
        "<!DOCTYPE html><html><head><title>x</title>\n{}</head><body></body></html>",
        tags.collect::<String>()
    )
}

/// A layer that is made of a fetched archive.
pub fn layer(from: String, path: PathBuf) -> LayerSpec {
    let id = format!("sha512-{}", "0f".repeat(64)).parse().unwrap();
    let view = AciView::whole(id);
    LayerSpec {
        key: LayerKey::Aci(view.diff_id()),
        blob: BlobSpec { digest: None, size: None, compression: None, media_type: None },
        source: LayerSource::Aci { from, path },
        aci: Some(view),
        access: None,
    }
}
