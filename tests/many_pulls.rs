//! A hundred pulls of ten images that share layers, at once, from a registry that demands tokens: every manifest, config and
//! layer is asked for once, and no secret is in the log, which is kept at `trace`.

use std::collections::BTreeMap;
use std::io::Write;
use std::sync::{Arc, Condvar, Mutex};
use std::time::Duration;

use futures_util::future::join_all;
use keelblock::config::{Config, Secret};
use keelblock::{Agent, ImageRequest, NoObserver};
use slog::Drain;

mod support {
    pub(crate) mod registry;
}
use support::registry::{Reply, TestRegistry};

const IMAGES: usize = 10;
const PULLS: usize = 100;
const PASSWORD: &str = "correct horse battery staple";
/// `user:` and the password, in base64.
const BASIC: &str = "dXNlcjpjb3JyZWN0IGhvcnNlIGJhdHRlcnkgc3RhcGxl";
const TOKEN: &str = "a-token-that-nobody-must-see";

/// Everything that was logged.
#[derive(Clone, Default)]
struct Kept(Arc<Mutex<Vec<u8>>>);

impl Write for Kept {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.lock().unwrap().extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

/// A tar with one file.
fn layer(n: usize) -> Vec<u8> {
    let mut builder = tar::Builder::new(Vec::new());
    let content = format!("layer {n}\n").repeat(1000);
    let mut header = tar::Header::new_ustar();
    header.set_size(content.len() as u64);
    header.set_mode(0o644);
    builder.append_data(&mut header, format!("file-{n}"), content.as_bytes()).unwrap();
    builder.into_inner().unwrap()
}

#[test]
fn a_hundred_pulls_of_ten_images_ask_for_everything_once_and_log_no_secret() {
    let (registry, tokens) = (TestRegistry::start(), TestRegistry::start());
    let valid = Arc::new(Mutex::new(vec![TOKEN.to_owned()]));
    registry.demand_bearer(format!("{}/token", tokens.url()), valid);
    tokens.script(|seen| match seen.authorization.as_deref() {
        Some(shown) if shown == format!("Basic {BASIC}") => {
            Some(Reply::new(200, serde_json::json!({"token": TOKEN, "expires_in": 300}).to_string()))
        }
        _ => Some(Reply::new(401, "")),
    });
    // Image n has layers n to n + 3: nine layers of ten are shared.
    let layers: Vec<Vec<u8>> = (0..IMAGES + 3).map(layer).collect();
    let images: Vec<_> = (0..IMAGES)
        .map(|n| {
            let own: Vec<&[u8]> = layers[n..n + 4].iter().map(Vec::as_slice).collect();
            registry.put_image("app", &n.to_string(), &own)
        })
        .collect();
    // No manifest is given before every pull has been asked for.
    let gate = Arc::new((Mutex::new(false), Condvar::new()));
    let closed = gate.clone();
    registry.script(move |seen| {
        if seen.path.contains("/manifests/") {
            let (open, changed) = &*closed;
            let waited =
                changed.wait_timeout_while(open.lock().unwrap(), Duration::from_secs(60), |open| !*open);
            drop(waited.unwrap());
        }
        None
    });

    let kept = Kept::default();
    let decorator = slog_term::PlainSyncDecorator::new(kept.clone());
    let log = slog::Logger::root(slog_term::FullFormat::new(decorator).build().fuse(), slog::o!());
    let home = tempfile::tempdir().unwrap();
    let config = Config {
        work_dir: home.path().to_owned(),
        docker_auth: Some(Secret(format!("user:{PASSWORD}"))),
        ..Config::default()
    };
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    let pulled = runtime.block_on(async {
        let agent = Agent::start(config, Arc::new(NoObserver), log).await.unwrap();
        let host = registry.host();
        let pulls = join_all((0..PULLS).map(|n| {
            let name = format!("{host}/app:{}", n % IMAGES).parse().unwrap();
            agent.pull(ImageRequest::cached(name))
        }));
        let open = async {
            // The engine answers in the order in which it is asked, so the pulls before have begun.
            for _ in 0..50 {
                agent.containers().await.unwrap();
            }
            *gate.0.lock().unwrap() = true;
            gate.1.notify_all();
        };
        let (pulled, ()) = tokio::join!(pulls, open);
        agent.shutdown().await;
        pulled
    });

    for (n, pulled) in pulled.iter().enumerate() {
        let pulled = pulled.as_ref().unwrap_or_else(|error| panic!("pull {n}: {error:?}"));
        assert_eq!(pulled.identity.manifest, images[n % IMAGES].manifest);
        assert_eq!(pulled.layers.len(), 4);
    }
    let mut answered: BTreeMap<String, usize> = BTreeMap::new();
    let seen = registry.seen();
    for seen in seen.iter().filter(|seen| seen.authorization.is_some()) {
        assert_eq!(seen.authorization.as_deref(), Some(&*format!("Bearer {TOKEN}")));
        *answered.entry(seen.path.clone()).or_default() += 1;
    }
    let manifests = (0..IMAGES).map(|n| format!("/v2/app/manifests/{n}"));
    let configs = images.iter().map(|image| format!("/v2/app/blobs/{}", image.config));
    let blobs = images.iter().flat_map(|image| &image.layers).map(|layer| format!("/v2/app/blobs/{layer}"));
    let expected: BTreeMap<String, usize> =
        manifests.chain(configs).chain(blobs).map(|path| (path, 1)).collect();
    assert_eq!(expected.len(), IMAGES + IMAGES + IMAGES + 3);
    assert_eq!(answered, expected);
    // Those that came before there was a token share one.
    assert_eq!(tokens.seen().len(), 1);

    let logged = String::from_utf8(kept.0.lock().unwrap().clone()).unwrap();
    assert!(logged.contains("asking registry") && logged.contains("layer unpacked"), "the log is not kept");
    for secret in [PASSWORD, BASIC, TOKEN] {
        assert!(!logged.contains(secret), "{secret} is in the log");
    }
}
