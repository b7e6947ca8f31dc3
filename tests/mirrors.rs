//! Mirrors: `hosts.toml` of `--registry_config_path`, with registries in this process, and a pull-through cache of Debian's
//! `docker-registry`, which is skipped, saying so, where that is not installed.

use std::collections::HashSet;
use std::fs;
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::path::Path;
use std::sync::{Arc, Condvar, Mutex};
use std::time::Duration;

use keelblock_actors::image::digest::Digest;

mod support {
    pub(crate) mod client;
    pub(crate) mod registry;
    pub(crate) mod servers;
}
use support::client::{Rig, read};
use support::registry::{Reply, TestImage, TestRegistry};
use support::servers::{Cache, have};

const LAYERS: [&[u8]; 2] = [b"base layer", b"top layer"];

/// A directory as `--registry_config_path` names it.
struct Config(tempfile::TempDir);

impl Config {
    /// With this `hosts.toml` for a registry.
    fn new(registry: &str, text: &str) -> Self {
        let config = Self(tempfile::tempdir().unwrap());
        config.write(registry, text);
        config
    }

    fn write(&self, registry: &str, text: &str) {
        let dir = self.0.path().join(registry);
        fs::create_dir_all(&dir).unwrap();
        fs::write(dir.join("hosts.toml"), text).unwrap();
    }

    fn path(&self) -> &Path {
        self.0.path()
    }

    fn rig(&self) -> Rig {
        Rig::new(|settings| settings.hosts_dirs = vec![self.path().to_owned()])
    }
}

/// A registry, and mirrors with the same image.
fn with_image() -> (TestRegistry, TestImage) {
    let registry = TestRegistry::start();
    let image = registry.put_image("app", "1", &LAYERS);
    (registry, image)
}

/// An address at which nobody listens.
fn nobody() -> String {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().to_string()
}

fn pull(rig: &Rig, name: &str) -> Vec<Vec<u8>> {
    rig.plan(name).layers.iter().map(|layer| rig.fetch(layer)).collect()
}

#[test]
fn mirrors_are_asked_in_their_order_and_the_first_that_has_it_serves() {
    let (empty, dead) = (TestRegistry::start(), nobody());
    let (mirror, _) = with_image();
    let (later, _) = with_image();
    let (empty_url, mirror_url, later_url) = (empty.url(), mirror.url(), later.url());
    let config = Config::new(
        "r.test_5000_",
        &format!(
            "server = \"http://never.test\"\n[host.\"{empty_url}\"]\n[host.\"http://{dead}\"]\n\
             [host.\"{mirror_url}\"]\n[host.\"{later_url}\"]\n"
        ),
    );
    let rig = config.rig();
    assert_eq!(pull(&rig, "r.test:5000/app:1"), LAYERS);
    // Manifest, config, two layers: each is asked for at the first, which has none of it.
    for (registry, count) in [(&empty, 4), (&mirror, 4), (&later, 0)] {
        let seen = registry.seen();
        assert_eq!(seen.len(), count, "{seen:#?}");
        assert!(seen.iter().all(|request| request.query == "ns=r.test:5000"), "{seen:#?}");
    }
    rig.logged(&["mirror failed, the next host is asked", &empty.host(), "HTTP 404", "manifest 1 of app"]);
    rig.logged(&["mirror failed, the next host is asked", &dead, "cannot connect"]);
    rig.logged(&["mirror serves", &mirror.host(), "manifest 1 of app", "registry: r.test:5000"]);
    rig.logged(&["mirror serves", &mirror.host(), "blob sha256:"]);
    rig.logged(&["mirror is left out for now", &dead]);
    let dead_asked =
        rig.log().matches(&format!("asking registry, what: manifest 1 of app, host: {dead}")).count();
    let left_out = rig.log().matches("mirror is left out for now").count();
    assert!(dead_asked <= 1 && left_out == 3, "it is tried once: {}", rig.log());
}

#[test]
fn whatever_a_mirror_says_the_registry_is_asked_next() {
    for reply in [
        Reply::error(404, "MANIFEST_UNKNOWN", "not here"),
        Reply::error(403, "DENIED", "not you"),
        Reply::error(401, "UNAUTHORIZED", "who are you"),
        Reply::error(429, "TOOMANYREQUESTS", "slowly").header("retry-after", 3600),
        Reply::error(500, "UNKNOWN", "broken"),
        Reply::redirect("ftp://nowhere/"),
    ] {
        let (registry, _) = with_image();
        let mirror = TestRegistry::start();
        let status = reply.status;
        mirror.script(move |_| Some(reply.clone()));
        let config = Config::new(&registry.host(), &format!("[host.\"{}\"]\n", mirror.url()));
        let rig = config.rig();
        assert_eq!(pull(&rig, &format!("{}/app:1", registry.host())), LAYERS, "{status}");
        assert_eq!(mirror.seen().len(), 4, "{status}: it is asked once for each");
        assert!(registry.seen().iter().all(|request| request.query.is_empty()), "it knows who it is");
        rig.logged(&["registry serves", &registry.host()]);
    }
}

#[test]
fn a_mirror_that_gives_something_else_is_left_for_the_registry() {
    let (registry, image) = with_image();
    let (mirror, _) = with_image();
    let manifest = String::from_utf8(image.manifest_bytes.clone()).unwrap();
    let other = manifest.replace("\"schemaVersion\":2", "\"schemaVersion\": 2");
    assert_ne!(manifest, other);
    let digest = image.manifest.to_string();
    mirror.on(format!("/v2/app/manifests/{digest}"), Reply::new(200, other));
    mirror.on(format!("/v2/app/blobs/{}", image.config), Reply::new(200, "{}"));
    mirror.on(format!("/v2/app/blobs/{}", image.layers[0]), Reply::new(200, "shorter"));
    let config = Config::new(&registry.host(), &format!("[host.\"{}\"]\n", mirror.url()));
    let rig = config.rig();
    assert_eq!(pull(&rig, &format!("{}/app@{digest}", registry.host())), LAYERS);
    for what in [
        &format!("manifest {digest}"),
        &format!("config {}", image.config),
        &format!("blob {}", image.layers[0]),
    ] {
        rig.logged(&["WARN", "mirror gives something else", what, &mirror.host()]);
        rig.logged(&["registry serves", what]);
    }
    rig.logged(&["mirror serves", &format!("blob {}", image.layers[1])]);
}

#[test]
fn a_tag_whose_bytes_are_not_those_of_its_header_comes_from_elsewhere() {
    let (registry, image) = with_image();
    let (mirror, _) = with_image();
    let stated = Digest::of(b"another");
    mirror.on(
        "/v2/app/manifests/1",
        Reply::new(200, image.manifest_bytes).header("docker-content-digest", stated),
    );
    let config = Config::new(&registry.host(), &format!("[host.\"{}\"]\n", mirror.url()));
    let rig = config.rig();
    rig.plan(&format!("{}/app:1", registry.host()));
    rig.logged(&["WARN", "mirror gives something else", "manifest 1 of app"]);
    assert_eq!(registry.count("/v2/app/manifests/1"), 1);
}

#[test]
fn capabilities_say_what_a_mirror_is_asked_for() {
    let (registry, image) = with_image();
    let (mirror, _) = with_image();
    let text = format!("[host.\"{}\"]\ncapabilities = [\"pull\"]\n", mirror.url());
    let config = Config::new(&registry.host(), &text);
    let name = format!("{}/app:1", registry.host());
    pull(&config.rig(), &name);
    assert_eq!((mirror.count("/v2/app/manifests/1"), registry.count("/v2/app/manifests/1")), (0, 1));
    assert_eq!(mirror.seen().len(), 3);
    config.write(&registry.host(), &text.replace("pull", "resolve"));
    pull(&config.rig(), &name);
    assert_eq!((mirror.count("/v2/app/manifests/1"), registry.count("/v2/app/manifests/1")), (1, 1));
    assert_eq!(mirror.count(&format!("/v2/app/blobs/{}", image.config)), 1, "that was before");
    let nothing = format!("server = \"{0}\"\ncapabilities = [\"push\"]\n", registry.url());
    config.write(&registry.host(), &nothing);
    assert!(
        config.rig().refusal(&name).contains("no host is set up that may be asked for manifest 1 of app")
    );
}

#[test]
fn when_all_fail_the_error_tells_of_each() {
    let mirrors = [TestRegistry::start(), TestRegistry::start()];
    mirrors[0].script(|_| Some(Reply::error(403, "DENIED", "not you")));
    let (registry, dead) = (TestRegistry::start(), nobody());
    let hosts: String = mirrors.iter().map(|mirror| format!("[host.\"{}\"]\n", mirror.url())).collect();
    let config = Config::new(&registry.host(), &format!("{hosts}[host.\"http://{dead}\"]\n"));
    let error = config.rig().refusal(&format!("{}/app:1", registry.host()));
    for words in [
        format!("registry {} has no manifest 1 of app (HTTP 404)", registry.host()),
        format!("before that mirror {}: registry {} refuses", mirrors[0].host(), registry.host()),
        "DENIED: not you".to_owned(),
        format!("mirror {}: ", mirrors[1].host()),
        format!("mirror {dead}: "),
        "cannot connect".to_owned(),
    ] {
        assert!(error.contains(&words), "{words:?} in {error}");
    }
}

#[test]
fn a_mirror_that_stands_for_its_registry_is_named_in_errors() {
    let mirror = TestRegistry::start();
    let config = Config::new("r.test", &format!("server = \"{}\"\n", mirror.url()));
    let error = config.rig().refusal("r.test/app:1");
    let expected = format!("(asked at mirror {})", mirror.host());
    assert!(
        error.contains("registry r.test has no manifest 1 of app") && error.ends_with(&expected),
        "{error}"
    );
}

#[test]
fn mirrors_that_cannot_be_read_are_never_passed_over() {
    let (registry, _) = with_image();
    let name = format!("{}/app:1", registry.host());
    for (text, expected) in [
        ("server = ", "is not valid TOML: line 1"),
        (
            "[host.\"http://m.test\"]\nca = 5\n",
            "host.\"http://m.test\".ca must be a string or a list of strings",
        ),
    ] {
        let config = Config::new(&registry.host(), text);
        let error = config.rig().refusal(&name);
        let file = config.path().join(registry.host()).join("hosts.toml");
        assert!(error.contains(&file.display().to_string()) && error.contains(expected), "{error}");
    }
    let config = Config::new(&registry.host(), "ca = \"missing.pem\"\nserver = \"https://127.0.0.1:1\"\n");
    let error = config.rig().refusal(&name);
    assert!(error.contains("missing.pem (`ca` of its hosts.toml)"), "{error}");
    assert_eq!(registry.seen().len(), 0, "nobody was asked past them");
}

#[test]
fn a_file_that_changes_needs_no_restart_and_what_is_unknown_is_told_once() {
    let (first, _) = with_image();
    let (second, _) = with_image();
    let text = |registry: &TestRegistry| format!("speed = 9\nserver = \"{}\"\n", registry.url());
    let config = Config::new("r.test", &text(&first));
    let rig = config.rig();
    rig.plan("r.test/app:1");
    config.write("r.test", &text(&second));
    rig.plan("r.test/app:1");
    assert_eq!((first.seen().len(), second.seen().len()), (2, 2));
    assert_eq!(rig.log().matches("key in hosts.toml is not known").count(), 1, "{}", rig.log());
    rig.logged(&["WARN", "key: speed"]);
}

#[test]
fn the_files_of_spegel_dragonfly_kraken_and_caches_work_as_they_are() {
    let at_root = "/v2/app/manifests/1";
    for (who, registry, file, path) in [
        // `_default` of a node that shares what it has with others.
        (
            "spegel",
            "_default",
            "[host.\"URL\"]\ncapabilities = [\"pull\", \"resolve\"]\ndial_timeout = \"200ms\"\n",
            at_root,
        ),
        (
            "dragonfly",
            "r.test",
            "server = \"https://r.test\"\n[host.\"URL\"]\n  capabilities = [\"pull\", \"resolve\"]\n  skip_verify = true\n\
             [host.\"URL\".header]\n    X-Dragonfly-Registry = [\"https://r.test\"]\n",
            at_root,
        ),
        ("kraken", "r.test", "[host.\"URL\"]\n  capabilities = [\"pull\"]\n", at_root),
        // Harbor's projects and Artifactory's repositories lie below a path of their own.
        (
            "cache",
            "r.test",
            "server = \"URL/v2/proxy-of-r\"\noverride_path = true\n",
            "/v2/proxy-of-r/app/manifests/1",
        ),
        ("prefix", "r.test", "server = \"URL/api/docker/remote\"\n", "/api/docker/remote/v2/app/manifests/1"),
    ] {
        let mirror = TestRegistry::start();
        let config = Config::new(registry, &file.replace("URL", &mirror.url()));
        let rig = Rig::new(|settings| {
            settings.hosts_dirs = vec![config.path().to_owned()];
            // Only that it is asked is looked at; nobody else is there.
            settings.insecure = "r.test".parse().unwrap();
            settings.limits.connect_timeout = Duration::from_secs(2);
        });
        let digest = Digest::of(b"x");
        // Kraken's agents know digests alone.
        let (name, path) = match who {
            "kraken" => (format!("r.test/app@{digest}"), format!("/v2/app/manifests/{digest}")),
            _ => ("r.test/app:1".to_owned(), path.to_owned()),
        };
        rig.refusal(&name);
        let seen = mirror.seen();
        assert_eq!(seen[0].path, path, "{who}");
        assert_eq!(seen[0].query, "ns=r.test", "{who}");
        assert_eq!(seen.len(), 1, "{who}: {seen:#?}");
    }
}

#[test]
fn a_mirror_that_takes_no_connection_is_left_after_its_own_time() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    rustix::net::listen(&listener, 0).unwrap();
    let address = listener.local_addr().unwrap();
    // Its queue is full: the kernel leaves further greetings unanswered.
    let wait = Duration::from_millis(200);
    let held: Vec<_> =
        std::iter::from_fn(|| TcpStream::connect_timeout(&address, wait).ok()).take(64).collect();
    assert!(held.len() < 64);
    let (registry, _) = with_image();
    let text = format!("[host.\"http://{address}\"]\ndial_timeout = \"150ms\"\n");
    let config = Config::new(&registry.host(), &text);
    let rig = config.rig();
    assert_eq!(pull(&rig, &format!("{}/app:1", registry.host())), LAYERS);
    rig.logged(&["mirror failed", "no connection within 0.15 s", "dial_timeout of its hosts.toml"]);
}

#[test]
fn headers_of_a_host_go_to_it_and_not_where_it_redirects() {
    let (mirror, _) = with_image();
    let (storage, _) = with_image();
    let to = storage.url();
    mirror.script(move |seen| {
        seen.path.contains("/blobs/").then(|| Reply::redirect(format!("{to}{}?sig=s3cret", seen.path)))
    });
    let text = format!("server = \"{}\"\n[header]\nauthorization = \"Basic aHVzaDpodXNo\"\n", mirror.url());
    let config = Config::new("r.test", &text);
    let rig = config.rig();
    assert_eq!(pull(&rig, "r.test/app:1"), LAYERS);
    assert!(mirror.seen().iter().all(|seen| seen.authorization.as_deref() == Some("Basic aHVzaDpodXNo")));
    assert!(storage.seen().iter().all(|seen| seen.authorization.is_none()));
    assert_eq!(storage.seen().len(), 3);
    assert!(!rig.log().contains("aHVzaDpodXNo") && !rig.log().contains("s3cret"), "{}", rig.log());
}

/// A server of one connection a request, which answers none until `together` are there at once.
struct Crowd {
    host: String,
    most: Arc<(Mutex<(usize, usize)>, Condvar)>,
}

impl Crowd {
    fn start(together: usize) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let host = listener.local_addr().unwrap().to_string();
        // How many are there now, and how many were at most.
        let most = Arc::new((Mutex::new((0, 0)), Condvar::new()));
        let theirs = Arc::clone(&most);
        std::thread::spawn(move || {
            for connection in listener.incoming().flatten() {
                let state = Arc::clone(&theirs);
                std::thread::spawn(move || serve_one(connection, &state, together));
            }
        });
        Self { host, most }
    }
}

fn serve_one(mut connection: TcpStream, state: &(Mutex<(usize, usize)>, Condvar), together: usize) {
    let _ = connection.read(&mut [0; 4096]);
    let mut now = state.0.lock().unwrap();
    now.0 += 1;
    now.1 = now.1.max(now.0);
    state.1.notify_all();
    // The last of them need not wait for others that never come.
    let wait = state.1.wait_timeout_while(now, Duration::from_secs(60), |(_, most)| *most < together);
    // Not after the answer: whoever gets it makes room for the next.
    wait.unwrap().0.0 -= 1;
    let _ = connection.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 4\r\nconnection: close\r\n\r\nblob");
}

#[test]
fn no_more_requests_are_at_one_server_than_allowed() {
    let crowd = Crowd::start(4);
    let (registry, _) = with_image();
    let rig = Rig::new(|settings| {
        settings.limits.connections_per_host_max = 4;
        settings.limits.fetches_max = 2;
    });
    let mut layer = rig.plan(&format!("{}/app:1", registry.host())).layers[0].clone();
    let name = format!("{}/app:1", crowd.host);
    let reference: keelblock_actors::image::reference::Reference = name.parse().unwrap();
    layer.source = keelblock_actors::image::plan::LayerSource::Registry(reference);
    layer.blob.size = Some(4);
    std::thread::scope(|scope| {
        for _ in 0..12 {
            scope.spawn(|| assert_eq!(read(rig.open(&layer).unwrap()), b"blob"));
        }
    });
    assert_eq!(crowd.most.0.lock().unwrap().1, 4);
}

#[test]
fn tokens_are_fetched_where_no_slot_is_left() {
    let (registry, _) = with_image();
    let valid = Arc::new(Mutex::new(vec!["t".to_owned()]));
    registry.on("/token", Reply::new(200, r#"{"token":"t"}"#));
    registry.demand_bearer(format!("{}/token", registry.url()), valid);
    let rig = Rig::new(|settings| {
        settings.limits.connections_per_host_max = 1;
        settings.limits.fetches_max = 1;
    });
    let name = format!("{}/app:1", registry.host());
    // More at once than there are slots, each refused at first.
    std::thread::scope(|scope| {
        for _ in 0..12 {
            scope.spawn(|| rig.plan(&name));
        }
    });
    assert_eq!(registry.count("/token"), 1);
}

#[test]
fn a_pull_through_cache_of_docker_registry_serves_and_keeps() {
    if !have(&["docker-registry"]) {
        return;
    }
    let (upstream, image) = with_image();
    let cache = Cache::before(&upstream, &image);
    let config = Config::new("r.test", &format!("server = \"http://{}\"\n", cache.address()));
    let rig = config.rig();
    assert_eq!(pull(&rig, "r.test/app:1"), LAYERS);
    let before: HashSet<String> = upstream.seen().iter().map(|seen| seen.path.clone()).collect();
    assert!(before.contains(&format!("/v2/app/blobs/{}", image.layers[1])), "{before:?}");
    rig.logged(&["mirror serves", &cache.address(), "blob"]);
}
