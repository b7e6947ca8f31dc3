//! The registry client against Debian's `docker-registry`, filled by `skopeo`, over http and over TLS with an authority of its
//! own. Skipped, saying so, where those programs are not installed.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use keelblock::limits::Limits;
use keelblock::provider::archive::Archives;
use keelblock::provider::docker::{DockerProvider, DockerSource};
use keelblock::provider::manifest::Platform;
use keelblock::provider::oci::OciProvider;
use keelblock::puller::registry::{LoginFor, RegistryClient, RegistryPuller, RegistrySettings};
use keelblock_actors::error::chain;
use keelblock_actors::image::digest::Digest;
use keelblock_actors::image::name::ImageRequest;
use keelblock_actors::image::plan::{Compression, ImagePlan, LayerSpec};
use keelblock_actors::ports::{Provider, Puller};
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivateKeyDer};
use tokio::runtime::Runtime;

mod support {
    pub(crate) mod registry;
}
use support::registry::{OCI_CONFIG, OCI_INDEX, OCI_LAYER, OCI_MANIFEST, descriptor};

/// Whether these programs are here; says which is not.
fn have(programs: &[&str]) -> bool {
    let paths = std::env::var_os("PATH").unwrap_or_default();
    let here = |program: &str| std::env::split_paths(&paths).any(|dir| dir.join(program).is_file());
    let missing: Vec<_> = programs.iter().filter(|program| !here(program)).collect();
    if !missing.is_empty() {
        eprintln!("skipped: not installed: {missing:?}");
    }
    missing.is_empty()
}

fn run(program: &str, arguments: &[&str], directory: &Path) {
    let output = Command::new(program).args(arguments).current_dir(directory).output().unwrap();
    assert!(
        output.status.success(),
        "{program} {arguments:?}: {}{}",
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    );
}

struct Peer {
    child: Child,
    address: SocketAddr,
}

impl Peer {
    /// `docker-registry` with these lines in the `http:` part of its configuration, and these after it.
    fn start(directory: &Path, http: &str, rest: &str) -> Self {
        // Another process may take a port that is free now: then once more.
        for attempt in 0..10 {
            let address = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
            let config = directory.join(format!("config{attempt}.yml"));
            let storage = directory.join("storage");
            let text = format!(
                "version: 0.1\nlog: {{level: error}}\nstorage: {{filesystem: {{rootdirectory: {}}}}}\nhttp:\n  addr: {address}\n{http}\n{rest}\n",
                storage.display()
            );
            std::fs::write(&config, text).unwrap();
            let mut child = Command::new("docker-registry")
                .arg("serve")
                .arg(&config)
                .stdout(Stdio::null())
                .stderr(Stdio::null())
                .spawn()
                .unwrap();
            let deadline = Instant::now() + Duration::from_secs(30);
            while Instant::now() < deadline && child.try_wait().unwrap().is_none() {
                if TcpStream::connect(address).is_ok() {
                    return Self { child, address };
                }
                std::thread::sleep(Duration::from_millis(20));
            }
            let _ = child.kill();
            let _ = child.wait();
        }
        panic!("docker-registry does not start");
    }

    fn name(&self, rest: &str) -> String {
        format!("localhost:{}/{rest}", self.address.port())
    }
}

impl Drop for Peer {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// An OCI layout with one image, `linux/amd64`, under the tag `t`, in an index of its own beside one for another machine.
fn layout(directory: &Path) -> (PathBuf, Vec<Digest>) {
    let layout = directory.join("layout");
    let blobs = layout.join("blobs/sha256");
    std::fs::create_dir_all(&blobs).unwrap();
    let put = |bytes: &[u8]| {
        let digest = Digest::of(bytes);
        std::fs::write(blobs.join(digest.hex()), bytes).unwrap();
        digest
    };
    let layers: Vec<Vec<u8>> = ["one", "two"]
        .map(|name| {
            let mut tar = tar::Builder::new(Vec::new());
            let mut header = tar::Header::new_gnu();
            header.set_size(100_000);
            header.set_mode(0o644);
            tar.append_data(&mut header, name, name.repeat(100_000).as_bytes().take(100_000)).unwrap();
            tar.into_inner().unwrap()
        })
        .to_vec();
    let diff_ids: Vec<Digest> = layers.iter().map(|layer| put(layer)).collect();
    let image = |architecture: &str| {
        let config = serde_json::json!({"os": "linux", "architecture": architecture,
            "rootfs": {"type": "layers", "diff_ids": diff_ids}, "config": {"Cmd": [architecture]}})
        .to_string();
        let layers: Vec<_> = layers
            .iter()
            .zip(&diff_ids)
            .map(|(layer, digest)| descriptor(OCI_LAYER, digest, layer.len()))
            .collect();
        let config = descriptor(OCI_CONFIG, &put(config.as_bytes()), config.len());
        let manifest = serde_json::json!({"schemaVersion": 2, "mediaType": OCI_MANIFEST, "config": config, "layers": layers});
        let manifest = manifest.to_string();
        let mut entry = descriptor(OCI_MANIFEST, &put(manifest.as_bytes()), manifest.len());
        entry["platform"] = serde_json::json!({"os": "linux", "architecture": architecture});
        entry
    };
    let index = serde_json::json!({"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": [image("s390x"), image("amd64")]});
    let index = index.to_string();
    let mut entry = descriptor(OCI_INDEX, &put(index.as_bytes()), index.len());
    entry["annotations"] = serde_json::json!({"org.opencontainers.image.ref.name": "t"});
    let top = serde_json::json!({"schemaVersion": 2, "manifests": [entry]});
    std::fs::write(layout.join("index.json"), top.to_string()).unwrap();
    std::fs::write(layout.join("oci-layout"), r#"{"imageLayoutVersion": "1.0.0"}"#).unwrap();
    (layout, diff_ids)
}

fn push(layout: &Path, target: &str, options: &[&str]) {
    let (source, target) = (format!("oci:{}:t", layout.display()), format!("docker://{target}"));
    let fixed =
        ["--insecure-policy", "--override-arch", "amd64", "copy", "--quiet", "--dest-tls-verify=false"];
    run("skopeo", &[&fixed[..], options, &[&source, &target]].concat(), layout);
}

struct Rig {
    provider: DockerProvider,
    puller: RegistryPuller,
    runtime: Runtime,
}

impl Rig {
    fn new(docker_registry: &str, change: impl FnOnce(&mut RegistrySettings)) -> Self {
        let runtime =
            tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
        let source: DockerSource = docker_registry.parse().unwrap();
        let mut settings = RegistrySettings::new(Limits::default());
        settings.platform = "linux/amd64".parse().unwrap();
        settings.default_registry = source.registry().cloned();
        change(&mut settings);
        let log = slog::Logger::root(slog::Discard, slog::o!());
        let client = RegistryClient::new(settings, runtime.handle().clone(), log);
        let archives = Archives::new(Limits::default(), "/nonexistent/spool".into(), Platform::host());
        let provider = DockerProvider::new(source, client.clone(), archives);
        Self { provider, puller: RegistryPuller::new(client), runtime }
    }

    fn resolve(&self, name: &str) -> Result<ImagePlan, String> {
        let request = ImageRequest::cached(name.parse().unwrap());
        self.runtime.block_on(self.provider.resolve(request)).map_err(|error| chain(&error))
    }

    fn blob(&self, layer: &LayerSpec) -> Vec<u8> {
        let mut blob =
            self.runtime.block_on(self.puller.open(layer)).unwrap_or_else(|e| panic!("{}", chain(&e)));
        let mut bytes = Vec::new();
        blob.reader.read_to_end(&mut bytes).unwrap();
        bytes
    }

    #[track_caller]
    fn check(&self, name: &str, diff_ids: &[Digest], compression: Compression) -> ImagePlan {
        let plan = self.resolve(name).unwrap_or_else(|error| panic!("{name}: {error}"));
        assert_eq!(plan.runtime.cmd, ["amd64"], "{name}");
        assert_eq!(plan.layers.len(), diff_ids.len(), "{name}");
        for (layer, diff_id) in plan.layers.iter().zip(diff_ids) {
            assert_eq!(layer.key.to_string(), diff_id.to_string(), "{name}");
            assert_eq!(layer.blob.compression, Some(compression), "{name}");
            let bytes = self.blob(layer);
            assert_eq!(Some(Digest::of(&bytes)), layer.blob.digest, "{name}");
            assert_eq!(Some(bytes.len() as u64), layer.blob.size, "{name}");
        }
        plan
    }
}

/// An authority, and a certificate of it for the host name `localhost`: `ca.pem`, `cert.pem`, `key.pem`.
fn certificates(directory: &Path) {
    let extensions = "subjectAltName=DNS:localhost\nbasicConstraints=critical,CA:FALSE\n";
    std::fs::write(directory.join("extensions"), extensions).unwrap();
    let key = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"];
    let ca = ["-x509", "-subj", "/CN=keelblock test", "-keyout", "ca.key", "-out", "ca.pem", "-days", "2"];
    run("openssl", &[&["req"], &key[..], &ca].concat(), directory);
    let request = ["-subj", "/CN=localhost", "-keyout", "key.pem", "-out", "request"];
    run("openssl", &[&["req"], &key[..], &request].concat(), directory);
    let signing = ["x509", "-req", "-in", "request", "-CA", "ca.pem", "-CAkey", "ca.key", "-CAcreateserial"];
    let output = ["-days", "2", "-extfile", "extensions", "-out", "cert.pem"];
    run("openssl", &[&signing[..], &output].concat(), directory);
}

/// A TLS server with the certificate of [`certificates`] that gives every connection this answer.
fn tls_server(directory: &Path, answer: String) -> SocketAddr {
    let certificates = CertificateDer::pem_file_iter(directory.join("cert.pem")).unwrap();
    let key = PrivateKeyDer::from_pem_file(directory.join("key.pem")).unwrap();
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = rustls::ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(certificates.map(Result::unwrap).collect(), key)
        .unwrap();
    let config = Arc::new(config);
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    // Ends with the process.
    std::thread::spawn(move || {
        for connection in listener.incoming().flatten() {
            let session = rustls::ServerConnection::new(config.clone()).unwrap();
            let mut stream = rustls::StreamOwned::new(session, connection);
            if stream.read(&mut [0; 4096]).is_ok() {
                let _ = stream.write_all(answer.as_bytes());
                stream.conn.send_close_notify();
                let _ = stream.flush();
            }
        }
    });
    address
}

#[test]
fn the_oci_provider_resolves_layouts_and_says_what_is_not_there() {
    let directory = tempfile::tempdir().unwrap();
    let (layout, diff_ids) = layout(directory.path());
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).build().unwrap();
    let platform: Platform = "linux/amd64".parse().unwrap();
    let archives = Archives::new(Limits::default(), directory.path().join("spool"), platform);
    let provider = OciProvider::new(runtime.handle().clone(), archives);
    let resolve = |name: String| {
        let request = ImageRequest::cached(name.parse().unwrap());
        runtime.block_on(provider.resolve(request)).map_err(|error| chain(&error))
    };
    let plan = resolve(format!("oci:{}:t", layout.display())).unwrap();
    assert_eq!(plan.layers.len(), diff_ids.len());
    let error = resolve(format!("oci:{}:nosuch", layout.display())).unwrap_err();
    assert!(error.starts_with("no image oci:"), "{error}");
    let error = resolve("docker:app".to_owned()).unwrap_err();
    assert!(error.starts_with("no provider for docker images"), "{error}");
}

#[test]
fn images_pushed_by_skopeo_arrive_in_every_form() {
    if !have(&["docker-registry", "skopeo"]) {
        return;
    }
    let directory = tempfile::tempdir().unwrap();
    let (layout, diff_ids) = layout(directory.path());
    let peer = Peer::start(directory.path(), "", "");
    let rig = Rig::new(&format!("http://localhost:{}", peer.address.port()), |_| {});
    push(&layout, &peer.name("app:docker"), &["--format", "v2s2"]);
    push(&layout, &peer.name("app:oci"), &["--format", "oci"]);
    push(&layout, &peer.name("deep/er/app:multi"), &["--multi-arch", "all", "--preserve-digests"]);
    rig.check(&peer.name("app:docker"), &diff_ids, Compression::Gzip);
    let oci = rig.check(&peer.name("app:oci"), &diff_ids, Compression::Gzip);
    // On a registry of its own: skopeo would take the gzip blobs that it knows to be there.
    let room = tempfile::tempdir().unwrap();
    let other = Peer::start(room.path(), "", "");
    push(&layout, &other.name("app:zstd"), &["--format", "oci", "--dest-compress-format", "zstd"]);
    rig.check(&other.name("app:zstd"), &diff_ids, Compression::Zstd);
    rig.check(&peer.name("deep/er/app:multi"), &diff_ids, Compression::None);
    // By default registry, by digest, by address.
    rig.check("app:oci", &diff_ids, Compression::Gzip);
    rig.check(
        &format!("127.0.0.1:{}/app@{}", peer.address.port(), oci.identity.manifest),
        &diff_ids,
        Compression::Gzip,
    );
    let missing = rig.resolve("app:nosuch").unwrap_err();
    assert!(missing.contains("HTTP 404") && missing.contains("MANIFEST_UNKNOWN"), "{missing}");
    let missing = rig.resolve("nosuch:oci").unwrap_err();
    assert!(missing.starts_with("no image"), "{missing}");
}

#[test]
fn a_registry_over_tls_is_trusted_by_its_authority_alone() {
    if !have(&["docker-registry", "skopeo", "openssl"]) {
        return;
    }
    let directory = tempfile::tempdir().unwrap();
    certificates(directory.path());
    let (layout, diff_ids) = layout(directory.path());
    let file = |name: &str| directory.path().join(name).display().to_string();
    let tls = format!("  tls:\n    certificate: {}\n    key: {}", file("cert.pem"), file("key.pem"));
    let peer = Peer::start(directory.path(), &tls, "");
    push(&layout, &peer.name("app:1"), &["--format", "oci"]);
    let with_ca = |flag: &str| Rig::new(flag, |settings| settings.ca_file = Some(file("ca.pem").into()));
    let host = format!("localhost:{}", peer.address.port());
    with_ca(&format!("https://{host}")).check("app:1", &diff_ids, Compression::Gzip);
    // Loopback is spoken to over plain http, and over TLS when that is what it wants.
    with_ca("docker.io").check(&peer.name("app:1"), &diff_ids, Compression::Gzip);
    // Told to use plain http, it is not argued with.
    let plain = with_ca(&format!("http://{host}")).resolve("app:1").unwrap_err();
    assert!(plain.ends_with("it wants TLS: name it as https://... in --docker_registry"), "{plain}");
    // Unknown to the system.
    let unknown = Rig::new(&format!("https://{host}"), |_| {}).resolve("app:1").unwrap_err();
    let expected = format!(
        "the certificate of {host} is signed by an unknown authority; if that is its own, give its certificate by --registry_ca"
    );
    assert!(unknown.contains(&expected), "{unknown}");
    // A certificate for another name.
    let address = format!("127.0.0.1:{}", peer.address.port());
    let misnamed = with_ca(&format!("https://{address}")).resolve("app:1").unwrap_err();
    assert!(misnamed.contains(&format!("the certificate of {address} is not valid: ")), "{misnamed}");
    // A CA file that is none.
    let rig =
        Rig::new(&format!("https://{host}"), |settings| settings.ca_file = Some(file("key.pem").into()));
    let error = rig.resolve("app:1").unwrap_err();
    assert!(error.contains("(--registry_ca) holds no certificate"), "{error}");
}

#[test]
fn a_redirect_from_tls_to_plain_http_is_refused() {
    if !have(&["openssl"]) {
        return;
    }
    let directory = tempfile::tempdir().unwrap();
    certificates(directory.path());
    let answer = "HTTP/1.1 307 Temporary Redirect\r\nlocation: http://localhost:1/x?sig=secret\r\ncontent-length: 0\r\nconnection: close\r\n\r\n";
    let address = tls_server(directory.path(), answer.to_owned());
    let ca = directory.path().join("ca.pem");
    let host = format!("localhost:{}", address.port());
    let rig = Rig::new(&format!("https://{host}"), |settings| settings.ca_file = Some(ca));
    let error = rig.resolve("app").unwrap_err();
    let expected = format!("{host} redirects from https to plain http at localhost:1, which is refused");
    assert!(error.ends_with(&expected), "{error}");
}

#[test]
fn a_token_server_over_plain_http_is_refused_to_a_registry_over_tls() {
    if !have(&["openssl"]) {
        return;
    }
    let directory = tempfile::tempdir().unwrap();
    certificates(directory.path());
    let answer = "HTTP/1.1 401 Unauthorized\r\nwww-authenticate: Bearer realm=\"http://localhost:1/token\"\r\ncontent-length: 0\r\nconnection: close\r\n\r\n";
    let address = tls_server(directory.path(), answer.to_owned());
    let ca = directory.path().join("ca.pem");
    let rig = Rig::new(&format!("https://localhost:{}", address.port()), |settings| {
        settings.ca_file = Some(ca);
        settings.credentials = Arc::new(LoginFor { login: "u:secret".parse().unwrap(), registries: None });
    });
    let error = rig.resolve("app").unwrap_err();
    assert!(
        error.ends_with("it names \"http://localhost:1/token\" as its token server, but that is plain http, and the registry itself is not"),
        "{error}"
    );
}

#[test]
fn a_registry_with_passwords_lets_in_who_has_one() {
    if !have(&["docker-registry", "skopeo"]) {
        return;
    }
    let directory = tempfile::tempdir().unwrap();
    // user:keel by bcrypt, as `htpasswd -nbB` writes it.
    let hash = "user:$2y$05$abcdefghijklmnopqrstuunWxJSlbCQpsGyJ6bSMs7NJt9gnn2pti";
    std::fs::write(directory.path().join("htpasswd"), hash).unwrap();
    let (layout, diff_ids) = layout(directory.path());
    let auth =
        format!("auth: {{htpasswd: {{realm: r, path: {}}}}}", directory.path().join("htpasswd").display());
    let peer = Peer::start(directory.path(), "", &auth);
    push(&layout, &peer.name("app:1"), &["--dest-creds", "user:keel"]);
    let login = |text: &str| {
        let login = text.parse().unwrap();
        Rig::new("docker.io", move |settings| {
            settings.credentials = Arc::new(LoginFor { login, registries: None });
        })
    };
    login("user:keel").check(&peer.name("app:1"), &diff_ids, Compression::Gzip);
    let wrong = login("user:wrong").resolve(&peer.name("app:1")).unwrap_err();
    assert!(wrong.contains("(HTTP 401)") && wrong.contains("as \"user\" of --docker_auth"), "{wrong}");
    let nobody = Rig::new("docker.io", |_| {}).resolve(&peer.name("app:1")).unwrap_err();
    assert!(
        nobody.ends_with("it wants a user name and password; give --docker_auth USER:PASSWORD"),
        "{nobody}"
    );
}
