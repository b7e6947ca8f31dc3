//! The registry client, puller and docker provider against a registry in this process: what they ask, what they refuse, and
//! in which words.

use std::io::Read;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use keelblock::limits::Limits;
use keelblock::provider::archive::Archives;
use keelblock::provider::docker::{DockerProvider, DockerSource};
use keelblock::provider::manifest::Platform;
use keelblock::puller::registry::{LoginFor, RegistryClient, RegistryPuller, RegistrySettings};
use keelblock_actors::error::{FetchError, ResolveError, chain};
use keelblock_actors::image::digest::Digest;
use keelblock_actors::image::name::ImageRequest;
use keelblock_actors::image::plan::{ImagePlan, LayerSpec};
use keelblock_actors::ports::{Provider, Puller};
use tokio::runtime::Runtime;

mod support {
    pub(crate) mod registry;
}
use support::registry::{
    DOCKER_MANIFEST, Ending, OCI_CONFIG, OCI_INDEX, OCI_LAYER, OCI_MANIFEST, Reply, TestImage, TestRegistry,
    descriptor, raw_server,
};

/// A client on a runtime of its own, as a composition root would make it.
struct Rig {
    client: RegistryClient,
    provider: DockerProvider,
    puller: RegistryPuller,
    runtime: Runtime,
}

impl Rig {
    fn new() -> Self {
        Self::with(|_| {}, "docker.io")
    }

    fn with(change: impl FnOnce(&mut RegistrySettings), docker_registry: &str) -> Self {
        let runtime =
            tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
        let source: DockerSource = docker_registry.parse().unwrap();
        let mut settings = RegistrySettings::new(Limits::default());
        settings.platform = "linux/amd64".parse().unwrap();
        // Retries have tests of their own.
        settings.limits.retries_max = 0;
        settings.default_registry = source.registry().cloned();
        change(&mut settings);
        let limits = settings.limits.clone();
        let log = slog::Logger::root(slog::Discard, slog::o!());
        let client = RegistryClient::new(settings, runtime.handle().clone(), log);
        let archives = Archives::new(limits, "/nonexistent/spool".into(), Platform::host());
        Self {
            provider: DockerProvider::new(source, client.clone(), archives),
            puller: RegistryPuller::new(client.clone()),
            client,
            runtime,
        }
    }

    /// One that soon gives up on servers that send nothing. For those only: on a busy machine others are slow too.
    fn impatient() -> Self {
        Self::with(|settings| settings.limits.stall_timeout = Duration::from_secs(1), "docker.io")
    }

    fn resolve(&self, name: &str) -> Result<ImagePlan, ResolveError> {
        self.runtime.block_on(self.provider.resolve(ImageRequest::cached(name.parse().unwrap())))
    }

    fn plan(&self, name: &str) -> ImagePlan {
        self.resolve(name).unwrap_or_else(|error| panic!("{name}: {}", chain(&error)))
    }

    fn fetch(&self, layer: &LayerSpec) -> Result<Vec<u8>, String> {
        let mut blob = self
            .runtime
            .block_on(self.puller.open(layer))
            .map_err(|error| format!("open: {}", chain(&error)))?;
        let mut bytes = Vec::new();
        match blob.reader.read_to_end(&mut bytes) {
            Ok(_) => Ok(bytes),
            Err(error) => {
                let inner = error.get_ref().map(|inner| chain(inner)).unwrap_or_default();
                Err(format!("read {} bytes: {:?}: {inner}", bytes.len(), error.kind()))
            }
        }
    }
}

fn image(registry: &TestRegistry) -> TestImage {
    registry.put_image("app", "1", &[b"base layer", b"top layer"])
}

// ---- what works -------------------------------------------------------------------------------------------

#[test]
fn an_image_resolves_to_a_plan_and_its_layers_arrive() {
    let (registry, rig) = (TestRegistry::start(), Rig::new());
    let image = image(&registry);
    let host = registry.host();
    let plan = rig.plan(&format!("{host}/app:1"));
    assert_eq!(plan.identity.manifest, image.manifest);
    assert_eq!(plan.identity.config, image.config);
    assert_eq!(plan.identity.name.to_string(), format!("docker:{host}/app:1"));
    assert_eq!(plan.runtime.cmd, ["/bin/true"]);
    let blobs: Vec<_> = plan.layers.iter().map(|layer| rig.fetch(layer).unwrap()).collect();
    assert_eq!(blobs, [b"base layer".to_vec(), b"top layer".to_vec()]);
    // Nothing was asked twice, nothing that was not needed, and everything that a manifest may be was accepted.
    let seen = registry.seen();
    assert_eq!(seen.len(), 4, "{seen:#?}");
    let accept = seen[0].accept.as_deref().unwrap();
    for kind in [
        DOCKER_MANIFEST,
        OCI_MANIFEST,
        OCI_INDEX,
        "application/vnd.docker.distribution.manifest.list.v2+json",
    ] {
        assert!(accept.contains(kind), "{accept}");
    }
    // By digest it is the same image.
    let by_digest = rig.plan(&format!("{host}/app@{}", image.manifest));
    assert_eq!(by_digest.layers, plan.layers);
}

#[test]
fn names_without_a_registry_come_from_the_default_registry_and_say_so() {
    let registry = TestRegistry::start();
    registry.put_image("app", "latest", &[b"x"]);
    let rig = Rig::with(|_| {}, &registry.url());
    let plan = rig.plan("app");
    // No "library/": that is Docker Hub's.
    assert_eq!(plan.identity.name.to_string(), format!("docker:{}/app:latest", registry.host()));
    assert_eq!(registry.count("/v2/app/manifests/latest"), 1);
}

#[test]
fn an_index_is_followed_to_the_platform_through_indexes() {
    let (registry, rig) = (TestRegistry::start(), Rig::new());
    let image = image(&registry);
    let manifest = image.manifest_bytes.len();
    let mut right = descriptor(OCI_MANIFEST, &image.manifest, manifest);
    right["platform"] = serde_json::json!({"os": "linux", "architecture": "amd64"});
    let mut wrong = descriptor(OCI_MANIFEST, &Digest::of(b"elsewhere"), 9);
    wrong["platform"] = serde_json::json!({"os": "linux", "architecture": "s390x"});
    let index = |entries: serde_json::Value| {
        serde_json::json!({"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": entries}).to_string()
    };
    let inner = index(serde_json::json!([wrong, right]));
    let inner_digest = registry.put_manifest("app", "inner", OCI_INDEX, inner.as_bytes());
    let mut nested = descriptor(OCI_INDEX, &inner_digest, inner.len());
    nested["platform"] = serde_json::json!({"os": "linux", "architecture": "amd64"});
    let outer = index(serde_json::json!([nested]));
    registry.put_manifest("app", "multi", OCI_INDEX, outer.as_bytes());
    let plan = rig.plan(&format!("{}/app:multi", registry.host()));
    assert_eq!(plan.identity.manifest, image.manifest);
    // With a lower limit the same is refused.
    let rig = Rig::with(|settings| settings.limits.index_depth_max = 1, "docker.io");
    let error = rig.resolve(&format!("{}/app:multi", registry.host())).unwrap_err();
    assert!(
        chain(&error).ends_with("leads through more than 1 indexes (--index_depth_max)"),
        "{}",
        chain(&error)
    );
}

#[test]
fn a_docker_manifest_with_media_type_parameters_is_understood() {
    let (registry, rig) = (TestRegistry::start(), Rig::new());
    let layer = b"layer".to_vec();
    let config =
        serde_json::json!({"rootfs": {"type": "layers", "diff_ids": [Digest::of(&layer)]}}).to_string();
    let config_digest = registry.put_blob("app", config.clone());
    let manifest = serde_json::json!({
        "schemaVersion": 2, "mediaType": DOCKER_MANIFEST,
        "config": descriptor("application/vnd.docker.container.image.v1+json", &config_digest, config.len()),
        "layers": [descriptor("application/vnd.docker.image.rootfs.diff.tar", &registry.put_blob("app", layer), 5)],
    });
    let media_type = format!("{DOCKER_MANIFEST}; charset=utf-8");
    registry.put_manifest("app", "1", &media_type, manifest.to_string().as_bytes());
    assert_eq!(rig.plan(&format!("{}/app:1", registry.host())).layers.len(), 1);
}

#[test]
fn a_large_blob_arrives_whole_through_a_slow_reader_and_a_dropped_reader_ends_the_request() {
    let (registry, rig) = (TestRegistry::start(), Rig::new());
    let large: Vec<u8> = (0..8_000_000u32).map(|n| (n % 251) as u8).collect();
    registry.put_image("app", "1", &[&large]);
    let plan = rig.plan(&format!("{}/app:1", registry.host()));
    assert!(rig.fetch(&plan.layers[0]).unwrap() == large);
    let blob = rig.runtime.block_on(rig.puller.open(&plan.layers[0])).unwrap();
    assert_eq!(blob.size, Some(8_000_000));
    drop(blob);
    // The client is as good as new.
    assert!(rig.fetch(&plan.layers[0]).unwrap() == large);
}

#[test]
fn connections_are_reused() {
    let registry = TestRegistry::start();
    // A proxy of one connection: a second one would hang, so it can only work on one.
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let host = listener.local_addr().unwrap().to_string();
    let upstream = registry.host();
    let proxy = std::thread::spawn(move || {
        let (client, _) = listener.accept().unwrap();
        drop(listener);
        let server = std::net::TcpStream::connect(upstream).unwrap();
        let (mut from_client, mut to_server) = (client.try_clone().unwrap(), server.try_clone().unwrap());
        let forth = std::thread::spawn(move || {
            let _ = std::io::copy(&mut from_client, &mut to_server);
            let _ = to_server.shutdown(std::net::Shutdown::Both);
        });
        let (mut from_server, mut to_client) = (server, client);
        let _ = std::io::copy(&mut from_server, &mut to_client);
        let _ = to_client.shutdown(std::net::Shutdown::Both);
        forth.join().unwrap();
    });
    image(&registry);
    {
        let rig = Rig::new();
        let plan = rig.plan(&format!("{host}/app:1"));
        plan.layers.iter().for_each(|layer| drop(rig.fetch(layer).unwrap()));
    }
    assert_eq!(registry.seen().len(), 4);
    drop(registry);
    proxy.join().unwrap();
}

// ---- tokens -------------------------------------------------------------------------------------------------

/// A registry that demands tokens, and its token server: gives `t1`, `t2`, ... and counts them.
fn token_registry() -> (TestRegistry, TestRegistry, Arc<Mutex<Vec<String>>>, Arc<AtomicUsize>) {
    let (registry, server) = (TestRegistry::start(), TestRegistry::start());
    let valid = Arc::new(Mutex::new(Vec::new()));
    let issued = Arc::new(AtomicUsize::new(0));
    registry.demand_bearer(format!("{}/token?from=test", server.url()), valid.clone());
    let (giving, counting) = (valid.clone(), issued.clone());
    server.script(move |seen| {
        (seen.path == "/token").then(|| {
            let token = format!("t{}", counting.fetch_add(1, Ordering::SeqCst) + 1);
            giving.lock().unwrap().push(token.clone());
            Reply::new(200, serde_json::json!({"access_token": token, "expires_in": 300}).to_string())
        })
    });
    (registry, server, valid, issued)
}

#[test]
fn one_anonymous_token_serves_a_whole_image_and_is_renewed_once_when_refused() {
    let (registry, server, valid, issued) = token_registry();
    image(&registry);
    let rig = Rig::new();
    let plan = rig.plan(&format!("{}/app:1", registry.host()));
    plan.layers.iter().for_each(|layer| drop(rig.fetch(layer).unwrap()));
    assert_eq!(issued.load(Ordering::SeqCst), 1);
    let asked = server.seen();
    assert_eq!(asked[0].query, "from=test&service=test&scope=repository:app:pull");
    assert_eq!(asked[0].authorization, None);
    // One request was refused, the others carried the token at once.
    assert_eq!(registry.seen().iter().filter(|seen| seen.authorization.is_none()).count(), 1);
    // The token dies early: many requests at once renew it once.
    valid.lock().unwrap().clear();
    let opening: Vec<_> = (0..8).map(|n| rig.puller.open(&plan.layers[n % 2])).collect();
    let opened = rig.runtime.block_on(futures_util::future::join_all(opening));
    assert!(opened.iter().all(Result::is_ok));
    assert_eq!(issued.load(Ordering::SeqCst), 2);
}

#[test]
fn a_token_past_its_lifetime_is_not_used_again() {
    let (registry, _server, _, issued) = token_registry();
    image(&registry);
    let short = |settings: &mut RegistrySettings| settings.limits.token_lifetime_max = Duration::ZERO;
    let rig = Rig::with(short, "docker.io");
    rig.plan(&format!("{}/app:1", registry.host()));
    assert_eq!(issued.load(Ordering::SeqCst), 2);
    assert_eq!(registry.seen().iter().filter(|seen| seen.authorization.is_none()).count(), 2);
}

#[test]
fn a_token_that_does_not_help_is_not_asked_for_for_ever() {
    let (registry, server) = (TestRegistry::start(), TestRegistry::start());
    registry.demand_bearer(format!("{}/token", server.url()), Arc::default());
    server.on("/token", Reply::new(200, r#"{"token":"useless"}"#));
    let error = Rig::new().resolve(&format!("{}/app:1", registry.host())).unwrap_err();
    let host = registry.host();
    assert_eq!(
        chain(&error),
        format!(
            "cannot resolve docker:{host}/app:1: registry {host} refuses manifest 1 of app (HTTP 401); it says \"UNAUTHORIZED: authentication required\"; asked without credentials: the repository is private or does not exist, check its name and your credentials (--docker_config, --docker_auth)"
        )
    );
    assert_eq!((registry.seen().len(), server.count("/token")), (2, 1));
}

#[test]
fn a_login_goes_to_the_token_server_and_nowhere_else() {
    let (registry, server, _, _) = token_registry();
    image(&registry);
    let login = |settings: &mut RegistrySettings| {
        settings.credentials =
            Arc::new(LoginFor { login: "Aladdin:open sesame".parse().unwrap(), registries: None });
    };
    Rig::with(login, "docker.io").plan(&format!("{}/app:1", registry.host()));
    assert_eq!(server.seen()[0].authorization.as_deref(), Some("Basic QWxhZGRpbjpvcGVuIHNlc2FtZQ=="));
    let shown: Vec<_> = registry.seen().into_iter().map(|seen| seen.authorization).collect();
    assert_eq!(shown, [None, Some("Bearer t1".to_owned()), Some("Bearer t1".to_owned())]);
}

#[test]
fn basic_challenges_are_answered_with_the_login_of_that_registry_only() {
    let registry = TestRegistry::start();
    image(&registry);
    registry.script(|seen| {
        let right = seen.authorization.as_deref() == Some("Basic dTpw");
        (!right).then(|| {
            Reply::error(401, "UNAUTHORIZED", "who?").header("www-authenticate", "Basic realm=\"r\"")
        })
    });
    let name = format!("{}/app:1", registry.host());
    let login = |registries: Option<Vec<String>>, text: &str| {
        let login = text.parse().unwrap();
        Rig::with(
            move |settings| settings.credentials = Arc::new(LoginFor { login, registries }),
            "docker.io",
        )
    };
    assert!(login(Some(vec![registry.host()]), "u:p").resolve(&name).is_ok());
    let elsewhere = chain(&login(Some(vec!["docker.io".into()]), "u:p").resolve(&name).unwrap_err());
    assert!(
        elsewhere.ends_with("it wants a user name and password; give --docker_auth USER:PASSWORD"),
        "{elsewhere}"
    );
    let wrong = chain(&login(None, "u:secret").resolve(&name).unwrap_err());
    assert!(wrong.contains("asked as \"u\" of --docker_auth"), "{wrong}");
    assert!(!wrong.contains("secret") && !wrong.contains("dTpz"), "{wrong}");
}

// ---- redirects ------------------------------------------------------------------------------------------------

#[test]
fn redirects_are_followed_without_authorization_to_any_server() {
    let (registry, _server, _, _) = token_registry();
    let storage = TestRegistry::start();
    let image = image(&registry);
    let (top, base) = (&image.layers[1], &image.layers[0]);
    storage.on("/signed", Reply::new(200, "top layer"));
    registry.on("/storage", Reply::new(200, "base layer"));
    registry.on(format!("/v2/app/blobs/{top}"), Reply::redirect(format!("{}/signed?sig=1", storage.url())));
    registry.on(format!("/v2/app/blobs/{base}"), Reply::redirect("/storage?sig=2"));
    let rig = Rig::new();
    let plan = rig.plan(&format!("{}/app:1", registry.host()));
    assert_eq!(rig.fetch(&plan.layers[1]).unwrap(), b"top layer");
    assert_eq!(rig.fetch(&plan.layers[0]).unwrap(), b"base layer");
    let signed = storage.seen();
    assert_eq!((signed.len(), signed[0].query.as_str(), &signed[0].authorization), (1, "sig=1", &None));
    let own = registry.seen().into_iter().find(|seen| seen.path == "/storage").unwrap();
    assert_eq!((own.query.as_str(), own.authorization), ("sig=2", None));
}

#[test]
fn a_challenge_from_where_a_redirect_led_is_not_answered() {
    let (registry, storage) = (TestRegistry::start(), TestRegistry::start());
    let image = image(&registry);
    let challenge = format!("Bearer realm=\"{}/token\"", storage.url());
    storage.on("/steal", Reply::new(401, "").header("www-authenticate", challenge));
    registry.on(
        format!("/v2/app/blobs/{}", image.layers[0]),
        Reply::redirect(format!("{}/steal", storage.url())),
    );
    let login = |settings: &mut RegistrySettings| {
        settings.credentials = Arc::new(LoginFor { login: "u:p".parse().unwrap(), registries: None });
    };
    let rig = Rig::with(login, "docker.io");
    let plan = rig.plan(&format!("{}/app:1", registry.host()));
    assert!(rig.fetch(&plan.layers[0]).unwrap_err().contains("(HTTP 401)"));
    assert_eq!(storage.seen().len(), 1);
}

// ---- faults ---------------------------------------------------------------------------------------------------

/// Makes a registry do something wrong.
type Spoil = Box<dyn Fn(&TestRegistry)>;
/// What a registry does wrong, and the whole text of the error that this must be. HOST is the registry.
type Fault = (&'static str, Spoil, &'static str);

fn fault(name: &'static str, spoil: impl Fn(&TestRegistry) + 'static, text: &'static str) -> Fault {
    (name, Box::new(spoil), text)
}

/// Answers of the manifest of app:1.
fn manifest(reply: Reply) -> impl Fn(&TestRegistry) {
    move |registry| registry.on("/v2/app/manifests/1", reply.clone())
}

fn manifest_of(config: serde_json::Value) -> Reply {
    let body = serde_json::json!({"schemaVersion": 2, "mediaType": OCI_MANIFEST, "config": config,
        "layers": [descriptor(OCI_LAYER, &Digest::of(b"base layer"), 10)]});
    Reply::new(200, body.to_string()).header("content-type", OCI_MANIFEST)
}

#[test]
fn each_fault_of_a_manifest_has_its_own_words() {
    let unknown = Digest::of(b"unknown");
    let index = serde_json::json!({"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": [
        {"mediaType": OCI_MANIFEST, "digest": unknown, "size": 1, "platform": {"os": "linux", "architecture": "s390x"}}]});
    let huge = 1u64 << 40;
    let faults = [
        fault(
            "refused",
            manifest(Reply::error(403, "DENIED", "no\u{1b}[31m")),
            "cannot resolve docker:HOST/app:1: registry HOST refuses manifest 1 of app (HTTP 403); it says \"DENIED: no\\u{1b}[31m\"; asked without credentials: the repository is private or does not exist, check its name and your credentials (--docker_config, --docker_auth)",
        ),
        fault(
            "absent",
            manifest(Reply::error(404, "MANIFEST_UNKNOWN", "manifest unknown")),
            "no image docker:HOST/app:1 in registry HOST: registry HOST has no manifest 1 of app (HTTP 404); it says \"MANIFEST_UNKNOWN: manifest unknown\"",
        ),
        fault(
            "limited",
            manifest(Reply::error(429, "TOOMANYREQUESTS", "slow down")),
            "cannot resolve docker:HOST/app:1: registry HOST limits requests and refuses manifest 1 of app for now (HTTP 429); it says \"TOOMANYREQUESTS: slow down\"; asked without credentials, try again later",
        ),
        fault(
            "broken server",
            manifest(Reply::new(500, "<html>").header("content-type", "text/html")),
            "cannot resolve docker:HOST/app:1: registry HOST answers HTTP 500 when asked for manifest 1 of app",
        ),
        fault(
            "no content",
            manifest(Reply::new(204, "")),
            "cannot resolve docker:HOST/app:1: registry HOST answers HTTP 204 when asked for manifest 1 of app",
        ),
        fault(
            "401 without a challenge",
            manifest(Reply::new(401, "").header("www-authenticate", "Negotiate x")),
            "cannot resolve docker:HOST/app:1: cannot authenticate to registry HOST for manifest 1 of app: it asks for authentication without saying how (WWW-Authenticate: \"Negotiate x\")",
        ),
        fault(
            "garbage",
            manifest(Reply::new(200, "{]").header("content-type", OCI_MANIFEST)),
            "cannot resolve docker:HOST/app:1: cannot use manifest 1 of app from registry HOST: the manifest cannot be read: key must be a string at line 1 column 2",
        ),
        fault(
            "a web page",
            manifest(Reply::new(200, "<html>").header("content-type", "text/html")),
            "cannot resolve docker:HOST/app:1: cannot use manifest 1 of app from registry HOST: media type \"text/html\" is that of no manifest or index",
        ),
        fault(
            "schema 1",
            manifest(
                Reply::new(200, r#"{"schemaVersion": 1, "fsLayers": []}"#)
                    .header("content-type", "application/vnd.docker.distribution.manifest.v1+json"),
            ),
            "cannot resolve docker:HOST/app:1: cannot use manifest 1 of app from registry HOST: the manifest is of docker schema 1 and cannot be used: it has 0 layers and 0 history entries; there must be as many of both, and one at least",
        ),
        fault(
            "another digest in the header",
            manifest(Reply::new(200, "{}").header("docker-content-digest", Digest::of(b"other"))),
            "cannot resolve docker:HOST/app:1: registry HOST says that manifest 1 of app has digest sha256:d9298a10d1b0735837dc4bd85dac641b0f3cef27a47e5d53a54f2f3f5b2fcffa, but what it gives has sha256:44136fa355b3678a1146ad16f7e8649e94fb4fc21fe77e8310c060f61caaff8a; it or a proxy before it is corrupt",
        ),
        fault(
            "compressed on the way",
            manifest(Reply::new(200, "{}").header("content-encoding", "gzip")),
            "cannot resolve docker:HOST/app:1: registry HOST sends manifest 1 of app with Content-Encoding \"gzip\", which was not asked for; a proxy before it must leave it alone",
        ),
        fault(
            "announced too large",
            manifest(Reply::new(200, vec![b' '; 5 << 20])),
            "cannot resolve docker:HOST/app:1: cannot get manifest 1 of app from registry HOST: the answer of HOST has more than 4194304 bytes (--manifest_bytes_max)",
        ),
        fault(
            "too large without saying so",
            manifest(Reply::new(200, vec![b' '; 5 << 20]).header("transfer-encoding", "chunked")),
            "cannot resolve docker:HOST/app:1: cannot get manifest 1 of app from registry HOST: the answer of HOST has more than 4194304 bytes (--manifest_bytes_max)",
        ),
        fault(
            "cut short",
            manifest(Reply::new(200, "{").header("content-length", 100).ending(Ending::Cut)),
            "cannot resolve docker:HOST/app:1: cannot get manifest 1 of app from registry HOST: the connection to HOST broke off: end of file before message length reached",
        ),
        fault(
            "silence",
            manifest(Reply::silent()),
            "cannot resolve docker:HOST/app:1: cannot get manifest 1 of app from registry HOST: HOST sent nothing for 1 s (--stall_timeout)",
        ),
        fault(
            "stalls in the middle",
            manifest(Reply::new(200, "{").header("content-length", 100).ending(Ending::Stall)),
            "cannot resolve docker:HOST/app:1: cannot get manifest 1 of app from registry HOST: HOST sent nothing for 1 s (--stall_timeout)",
        ),
        fault(
            "redirect to itself",
            manifest(Reply::redirect("/v2/app/manifests/1")),
            "cannot resolve docker:HOST/app:1: cannot get manifest 1 of app from registry HOST: HOST redirects in a circle",
        ),
        fault(
            "redirects without end",
            |registry| {
                registry.script(|seen| {
                    let count: u32 = seen.query.parse().unwrap_or_default();
                    Some(Reply::redirect(format!("/x?{}", count + 1)))
                });
            },
            "cannot resolve docker:HOST/app:1: cannot get manifest 1 of app from registry HOST: HOST redirects once more after 5 redirects (--redirects_max)",
        ),
        fault(
            "redirect out of http",
            manifest(Reply::redirect("file:///etc/shadow?secret")),
            "cannot resolve docker:HOST/app:1: cannot get manifest 1 of app from registry HOST: HOST redirects to \"file:///etc/shadow\", but it is neither http nor https",
        ),
        fault(
            "no platform",
            manifest(Reply::new(200, index.to_string()).header("content-type", OCI_INDEX)),
            "cannot resolve docker:HOST/app:1: cannot use manifest 1 of app from registry HOST: the index has no image for linux/amd64; it offers linux/s390x",
        ),
        fault(
            "config not there",
            manifest(manifest_of(descriptor(OCI_CONFIG, &unknown, 7))),
            "cannot resolve docker:HOST/app:1: registry HOST has no config UNKNOWN of app (HTTP 404); it says \"BLOB_UNKNOWN: it is not here\"",
        ),
        fault(
            "config of another length",
            move |registry| {
                let digest = registry.put_blob("app", "{}");
                registry.on("/v2/app/manifests/1", manifest_of(descriptor(OCI_CONFIG, &digest, 3)));
            },
            "cannot resolve docker:HOST/app:1: registry HOST gives 2 bytes for config sha256:44136fa355b3678a1146ad16f7e8649e94fb4fc21fe77e8310c060f61caaff8a of app, but its manifest says 3; it is corrupt or lies",
        ),
        fault(
            "config with another digest",
            move |registry| {
                let digest = registry.put_blob("app", "{}");
                registry.on(format!("/v2/app/blobs/{digest}"), Reply::new(200, "[]"));
                registry.on("/v2/app/manifests/1", manifest_of(descriptor(OCI_CONFIG, &digest, 2)));
            },
            "cannot resolve docker:HOST/app:1: registry HOST gives sha256:4f53cda18c2baa0c0354bb5f9a3ecbe5ed12ab4d8e11ba873c2f11161202b945 for config sha256:44136fa355b3678a1146ad16f7e8649e94fb4fc21fe77e8310c060f61caaff8a of app; it is corrupt or lies",
        ),
        fault(
            "huge config",
            manifest(manifest_of(descriptor(OCI_CONFIG, &unknown, huge as usize))),
            "cannot resolve docker:HOST/app:1: config UNKNOWN of app in registry HOST has 1099511627776 bytes; the limit is 8388608 (--config_bytes_max)",
        ),
    ];
    let (patient, impatient) = (Rig::new(), Rig::impatient());
    let mut wrong = Vec::new();
    for (name, spoil, text) in faults {
        let registry = TestRegistry::start();
        image(&registry);
        spoil(&registry);
        let host = registry.host();
        let rig = if text.contains("--stall_timeout") { &impatient } else { &patient };
        let error = rig.resolve(&format!("{host}/app:1")).expect_err(name);
        let found = chain(&error).replace(&host, "HOST").replace(&unknown.to_string(), "UNKNOWN");
        if found != text {
            wrong.push(format!("{name}:\n  {found}\nnot\n  {text}"));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn a_manifest_asked_by_digest_must_have_it() {
    let (registry, rig) = (TestRegistry::start(), Rig::new());
    let image = image(&registry);
    let other = registry.put_image("app", "2", &[b"other"]);
    let path = format!("/v2/app/manifests/{}", image.manifest);
    registry.on(path, Reply::new(200, other.manifest_bytes.clone()).header("content-type", OCI_MANIFEST));
    let error = rig.resolve(&format!("{}/app@{}", registry.host(), image.manifest)).unwrap_err();
    let expected =
        format!("gives {} for manifest {} of app; it is corrupt or lies", other.manifest, image.manifest);
    assert!(chain(&error).ends_with(&expected), "{}", chain(&error));
}

#[test]
fn each_fault_of_a_blob_has_its_own_words() {
    let digest = Digest::of(b"base layer");
    let path = format!("/v2/app/blobs/{digest}");
    let blob = |reply: Reply| {
        let path = path.clone();
        move |registry: &TestRegistry| registry.on(path.clone(), reply.clone())
    };
    let asked = format!("blob {digest} of app");
    let faults: Vec<(Spoil, String)> = vec![
        (
            Box::new(blob(Reply::error(404, "BLOB_UNKNOWN", "gone"))),
            format!(
                "open: cannot fetch {digest} from HOST/app: registry HOST has no {asked} (HTTP 404); it says \"BLOB_UNKNOWN: gone\""
            ),
        ),
        (
            Box::new(blob(Reply::new(200, "base layer and more"))),
            format!(
                "open: cannot fetch {digest} from HOST/app: registry HOST gives 19 bytes for {asked}, but its manifest says 10; it is corrupt or lies"
            ),
        ),
        (
            Box::new(blob(Reply::silent())),
            format!(
                "open: fetching {digest} from HOST/app broke off: cannot get {asked} from registry HOST: HOST sent nothing for 1 s (--stall_timeout)"
            ),
        ),
        (
            Box::new(blob(Reply::new(200, "base").header("content-length", 10).ending(Ending::Cut))),
            format!(
                "read 4 bytes: Other: cannot get {asked} from registry HOST: the connection to HOST broke off: end of file before message length reached"
            ),
        ),
        (
            Box::new(blob(Reply::new(200, "base").header("content-length", 10).ending(Ending::Stall))),
            format!(
                "read 4 bytes: TimedOut: cannot get {asked} from registry HOST: HOST sent nothing for 1 s (--stall_timeout)"
            ),
        ),
        (
            Box::new(blob(Reply::new(200, "base").ending(Ending::Cut))),
            format!(
                "read 4 bytes: Other: cannot get {asked} from registry HOST: the connection to HOST broke off: unexpected EOF during chunk size line"
            ),
        ),
    ];
    let (patient, impatient) = (Rig::new(), Rig::impatient());
    for (spoil, text) in faults {
        let rig = if text.contains("--stall_timeout") { &impatient } else { &patient };
        let registry = TestRegistry::start();
        image(&registry);
        let plan = patient.plan(&format!("{}/app:1", registry.host()));
        spoil(&registry);
        let found = rig.fetch(&plan.layers[0]).unwrap_err().replace(&registry.host(), "HOST");
        assert_eq!(found, text);
        // The other layer is untouched by it.
        assert_eq!(rig.fetch(&plan.layers[1]).unwrap(), b"top layer");
    }
}

#[test]
fn each_fault_of_a_token_server_has_its_own_words() {
    let faults = [
        (Reply::new(200, "{}"), "the answer of token server HOST holds no token"),
        (Reply::new(200, r#"{"token":"a\nb"}"#), "the answer of token server HOST holds no token"),
        (Reply::new(200, "secret"), "the answer of token server HOST holds no token"),
        (
            Reply::new(401, r#"{"details":"incorrect username or password"}"#),
            "token server HOST answers HTTP 401; it says \"incorrect username or password\"; asked without credentials",
        ),
        (
            Reply::new(200, vec![b' '; 1 << 20]),
            "cannot get a token from HOST: the answer of HOST has more than 65536 bytes (--answer_bytes_max)",
        ),
        (Reply::redirect("/token"), "cannot get a token from HOST: HOST redirects in a circle"),
        (Reply::silent(), "cannot get a token from HOST: HOST sent nothing for 1 s (--stall_timeout)"),
    ];
    let (patient, impatient) = (Rig::new(), Rig::impatient());
    for (reply, text) in faults {
        let rig = if text.contains("--stall_timeout") { &impatient } else { &patient };
        let (registry, server) = (TestRegistry::start(), TestRegistry::start());
        registry.demand_bearer(format!("{}/token", server.url()), Arc::default());
        server.on("/token", reply);
        let error = chain(&rig.resolve(&format!("{}/app:1", registry.host())).unwrap_err());
        let found = error.replace(&registry.host(), "REGISTRY").replace(&server.host(), "HOST");
        let expected = format!(
            "cannot resolve docker:REGISTRY/app:1: cannot authenticate to registry REGISTRY for manifest 1 of app: {text}"
        );
        assert_eq!(found, expected);
    }
}

#[test]
fn servers_that_are_none_are_told_apart() {
    let rig = Rig::new();
    let error = |name: String| chain(&rig.resolve(&name).unwrap_err());
    // Nobody listens: a port that was free a moment ago.
    let free = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    assert!(
        error(format!("{free}/app"))
            .ends_with(&format!("cannot connect to {free}: Connection refused (os error 111)"))
    );
    let (host, server) = raw_server(b"SSH-2.0-OpenSSH\r\n", 2);
    let text = error(format!("{host}/app"));
    assert!(text.contains(&format!("{host} answers with something that is not HTTP")), "{text}");
    server.join().unwrap();
    // Plain http where TLS was asked for.
    let registry = TestRegistry::start();
    let rig = Rig::with(|_| {}, &format!("https://{}", registry.host()));
    let text = chain(&rig.resolve("app").unwrap_err());
    let expected = format!(
        "{} does not speak TLS; if it is meant to speak plain http, add it to --docker_insecure_registries",
        registry.host()
    );
    assert!(text.ends_with(&expected), "{text}");
}

#[test]
fn a_server_that_takes_no_connection_is_given_up() {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    rustix::net::listen(&listener, 0).unwrap();
    let address = listener.local_addr().unwrap();
    // Its queue is full: the kernel leaves further greetings unanswered.
    let wait = Duration::from_millis(200);
    let held: Vec<_> =
        std::iter::from_fn(|| std::net::TcpStream::connect_timeout(&address, wait).ok()).take(64).collect();
    assert!(held.len() < 64);
    let rig = Rig::with(|settings| settings.limits.connect_timeout = wait, "docker.io");
    let error = chain(&rig.resolve(&format!("{address}/app")).unwrap_err());
    assert!(error.contains("does not answer: no connection within 0.2 s (--connect_timeout"), "{error}");
}

#[test]
fn hosts_that_are_not_loopback_speak_tls_unless_they_are_named_insecure() {
    let registry = TestRegistry::start();
    image(&registry);
    // Leads to loopback on Linux, and is not it by name.
    let host = registry.host().replace("127.0.0.1", "0.0.0.0");
    let name = format!("{host}/app:1");
    let error = chain(&Rig::new().resolve(&name).unwrap_err());
    let expected = format!(
        "{host} does not speak TLS; if it is meant to speak plain http, add it to --docker_insecure_registries"
    );
    assert!(error.ends_with(&expected), "{error}");
    assert_eq!(registry.seen().len(), 0);
    for entry in ["0.0.0.0", &host] {
        let insecure = |settings: &mut RegistrySettings| settings.insecure = entry.parse().unwrap();
        let rig = Rig::with(insecure, "docker.io");
        let plan = rig.plan(&name);
        assert_eq!(rig.fetch(&plan.layers[0]).unwrap(), b"base layer");
    }
}

#[test]
fn many_requests_at_once_share_one_token() {
    let (registry, _server, _, issued) = token_registry();
    image(&registry);
    let rig = Rig::new();
    let request = ImageRequest::cached(format!("{}/app:1", registry.host()).parse().unwrap());
    let resolving = (0..50).map(|_| rig.provider.resolve(request.clone()));
    let plans = rig.runtime.block_on(futures_util::future::join_all(resolving));
    assert!(plans.iter().all(Result::is_ok));
    assert_eq!(issued.load(Ordering::SeqCst), 1);
}

// ---- cancellation and cost ----------------------------------------------------------------------------------

#[test]
fn a_future_that_is_dropped_ends_its_request() {
    let registry = TestRegistry::start();
    let (asked, was_asked) = std::sync::mpsc::channel();
    registry.script(move |_| {
        let _ = asked.send(());
        Some(Reply::silent())
    });
    let rig = Rig::new();
    let name = format!("{}/app:1", registry.host()).parse().unwrap();
    let resolving = rig.provider.resolve(ImageRequest::cached(name));
    was_asked.recv().unwrap();
    drop(resolving);
    // The task of the request and that of its connection both end, though the server never answers.
    let deadline = std::time::Instant::now() + Duration::from_secs(30);
    while rig.runtime.metrics().num_alive_tasks() > 0 && std::time::Instant::now() < deadline {
        std::thread::yield_now();
    }
    assert_eq!(rig.runtime.metrics().num_alive_tasks(), 0);
}

#[test]
fn a_reader_outlives_its_runtime_with_an_error_and_not_with_a_short_blob() {
    let registry = TestRegistry::start();
    let image = image(&registry);
    let half = Reply::new(200, "base").header("content-length", 10).ending(Ending::Stall);
    registry.on(format!("/v2/app/blobs/{}", image.layers[0]), half);
    let rig = Rig::new();
    let plan = rig.plan(&format!("{}/app:1", registry.host()));
    let mut blob = rig.runtime.block_on(rig.puller.open(&plan.layers[0])).unwrap();
    let mut four = [0; 4];
    blob.reader.read_exact(&mut four).unwrap();
    drop(rig);
    let error = blob.reader.read(&mut four).unwrap_err();
    assert_eq!(error.kind(), std::io::ErrorKind::UnexpectedEof);
}

#[test]
fn refusals_and_breaks_are_told_apart_for_the_actors() {
    let (registry, rig) = (TestRegistry::start(), Rig::new());
    let image = image(&registry);
    let plan = rig.plan(&format!("{}/app:1", registry.host()));
    registry.on(format!("/v2/app/blobs/{}", image.layers[0]), Reply::error(403, "DENIED", "no"));
    let refused = rig.runtime.block_on(rig.puller.open(&plan.layers[0])).err().unwrap();
    assert!(matches!(refused, FetchError::Refused { .. }));
    drop(registry);
    let broken = rig.runtime.block_on(rig.puller.open(&plan.layers[1])).err().unwrap();
    assert!(matches!(broken, FetchError::Broken { .. }), "{}", chain(&broken));
}

#[test]
fn archives_in_a_directory_are_asked_when_the_flag_names_one() {
    let directory = tempfile::tempdir().unwrap();
    let rig = Rig::with(|_| {}, directory.path().to_str().unwrap());
    let error = rig.resolve("app:1").unwrap_err();
    let ResolveError::NotFound { image, .. } = &error else { panic!("{}", chain(&error)) };
    assert!(chain(&error).contains("app:1.tar"), "{}", chain(&error));
    assert!(image.to_string().contains("app:1"));
    assert!(rig.client.handle().metrics().num_workers() == 1);
}
