//! ACIs are found by their names and fetched: over http and https, from directories, through every fault of a server. Requests
//! and bytes are counted, on a server of the tests' own that stands for every host behind a proxy.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use keelblock::limits::Limits;
use keelblock::provider::appc::ports::{AciFetchError, AciSource, FetchedAci, WantedAci};
use keelblock::puller::appc::{AppcPuller, AppcSource, AppcSourceSettings};
use keelblock::puller::registry::{NoProxy, Proxies, Proxy, RegistrySettings};
use keelblock_actors::error::chain;
use keelblock_actors::image::appc::AppcName;
use slog::Drain;
use tokio::runtime::Runtime;

mod support {
    pub(crate) mod acis;
    pub(crate) mod registry;
    pub(crate) mod servers;
}
use support::acis::{AciServer, Answer, Ending, right};
use support::servers::{Authority, ForwardProxy, Nginx, have};

/// Something like an archive: of this many bytes, none like its neighbours.
fn bytes(count: usize) -> Vec<u8> {
    (0..count as u32).flat_map(|n| n.wrapping_mul(2_654_435_761).to_le_bytes()).take(count).collect()
}

#[derive(Clone, Default)]
struct Lines(Arc<std::sync::Mutex<Vec<u8>>>);

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
struct Rig {
    source: AppcSource,
    runtime: Runtime,
    spool: PathBuf,
    _dir: tempfile::TempDir,
    log: Lines,
}

fn settings(prefix: &str) -> AppcSourceSettings {
    let mut registry = RegistrySettings::new(Limits::default());
    registry.limits.retries_max = 0;
    registry.limits.retry_pause = std::time::Duration::from_millis(1);
    AppcSourceSettings { prefix: prefix.parse().unwrap(), registry, spool: PathBuf::new() }
}

impl Rig {
    fn new(prefix: &str, change: impl FnOnce(&mut RegistrySettings)) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let spool = dir.path().join("spool");
        Self::on(spool, dir, prefix, change)
    }

    fn on(
        spool: PathBuf,
        dir: tempfile::TempDir,
        prefix: &str,
        change: impl FnOnce(&mut RegistrySettings),
    ) -> Self {
        let runtime =
            tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
        let mut settings = AppcSourceSettings { spool: spool.clone(), ..settings(prefix) };
        change(&mut settings.registry);
        let log = Lines::default();
        let drain =
            slog_term::FullFormat::new(slog_term::PlainSyncDecorator::new(log.clone())).build().fuse();
        let log_to = slog::Logger::root(drain, slog::o!());
        let source = AppcSource::new(settings, runtime.handle().clone(), log_to);
        Self { source, runtime, spool, _dir: dir, log }
    }

    /// Before a server that stands for every host, in plain http.
    fn behind(server: &AciServer, prefix: &str) -> (Self, ForwardProxy) {
        let proxy = ForwardProxy::start(server.host(), None, None);
        let rig = Self::new(prefix, |settings| settings.proxies = through(&proxy));
        (rig, proxy)
    }

    fn fetch(&self, wanted: WantedAci) -> Result<FetchedAci, AciFetchError> {
        self.runtime.block_on(self.source.fetch(wanted))
    }

    #[track_caller]
    fn fetched(&self, wanted: WantedAci) -> (FetchedAci, Vec<u8>) {
        let fetched = self.fetch(wanted).unwrap_or_else(|error| panic!("{}\n{}", chain(&error), self.log()));
        let bytes = std::fs::read(&fetched.path).unwrap();
        (fetched, bytes)
    }

    /// Why it does not come, the whole chain. Nothing is left in the spool then.
    #[track_caller]
    fn refusal(&self, wanted: WantedAci) -> String {
        let before = self.spooled();
        let error = chain(&self.fetch(wanted).expect_err("it must not come"));
        assert_eq!(self.spooled(), before, "{error}");
        error
    }

    /// The names of what lies in the spool.
    fn spooled(&self) -> Vec<String> {
        let Ok(entries) = std::fs::read_dir(&self.spool) else { return Vec::new() };
        let mut names: Vec<String> =
            entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
        names.sort();
        names
    }

    fn log(&self) -> String {
        String::from_utf8(self.log.0.lock().unwrap().clone()).unwrap()
    }
}

fn through(proxy: &ForwardProxy) -> Proxies {
    let proxy = Some(Proxy::parse(&proxy.host(), "--http_proxy"));
    Proxies { https: proxy.clone(), http: proxy, without: NoProxy::default() }
}

fn named(name: &str) -> WantedAci {
    let name: AppcName = name.parse().unwrap();
    let name = name.or_label("os", "linux").or_label("arch", "amd64");
    WantedAci::Named { name, size: None, signature: false }
}

fn signed(name: &str) -> WantedAci {
    match named(name) {
        WantedAci::Named { name, size, .. } => WantedAci::Named { name, size, signature: true },
        file => file,
    }
}

fn sized(name: &str, size: u64) -> WantedAci {
    match named(name) {
        WantedAci::Named { name, signature, .. } => WantedAci::Named { name, size: Some(size), signature },
        file => file,
    }
}

fn page(tags: &[(&str, &str)]) -> String {
    let tags = tags.iter().map(|(name, content)| format!("<meta name=\"{name}\" content=\"{content}\">\n"));
    format!(
        "<!DOCTYPE html><html><head><title>x</title>\n{}</head><body></body></html>",
        tags.collect::<String>()
    )
}

// ---- simple discovery -----------------------------------------------------------------------------------------

#[test]
fn simple_discovery_asks_for_name_version_os_and_arch() {
    let server = AciServer::start();
    let archive = bytes(100_000);
    server.put("/acis/example.com/app-1.2-linux-amd64.aci", archive.clone());
    server.put("/acis/example.com/app-1.2-linux-amd64.aci.asc", "a signature");
    let rig = Rig::new(&format!("http://{}/acis", server.host()), |_| {});
    let (fetched, got) = rig.fetched(signed("example.com/app:1.2"));
    assert_eq!(got, archive);
    let from = format!("http://{}/acis/example.com/app-1.2-linux-amd64.aci", server.host());
    assert_eq!((fetched.from.as_str(), fetched.bytes_fetched), (from.as_str(), 100_011));
    let signature = fetched.signature.unwrap();
    assert_eq!((signature.bytes.as_slice(), signature.from), (&b"a signature"[..], format!("{from}.asc")));
    // Archive, signature, and whether the archive is still the one.
    assert_eq!(server.requests().len(), 3);
    assert!(fetched.path.starts_with(&rig.spool) && fetched.path.is_absolute());
}
