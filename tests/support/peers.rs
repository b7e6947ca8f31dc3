//! Real servers and real tools that images come from: Debian's `docker-registry`, `skopeo`, `umoci`,
//! `debootstrap`, and a proxy of our own that holds a transfer at a chosen byte.

#![allow(dead_code, unused_macros, unused_imports, reason = "each file of tests uses its part of this")]

use std::fs;
use std::io::{Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Condvar, Mutex};
use std::time::{Duration, Instant};

use serde_json::Value;

use super::binary::{find_program, run_program};

/// `docker-registry` on a free loopback port, with its storage and its log in a directory of its own.
pub(crate) struct Registry {
    child: Child,
    address: SocketAddr,
    log: PathBuf,
    /// Not in the room of a test: what is the registry's is not what keelblock left.
    _dir: tempfile::TempDir,
}

/// One request that a registry answered.
#[derive(Clone, Debug)]
pub(crate) struct Request {
    pub(crate) method: String,
    pub(crate) path: String,
    pub(crate) status: u64,
}

impl Registry {
    /// Starts one, and waits until it answers.
    pub(crate) fn start() -> Self {
        Self::start_with("")
    }

    /// The same with these lines more in its configuration.
    pub(crate) fn start_with(lines: &str) -> Self {
        let program = find_program("docker-registry").expect("the caller looked for it");
        let own = tempfile::Builder::new().prefix("registry-").tempdir().expect("there is room for it");
        let dir = own.path();
        let log = dir.join("log");
        // Another process may take the free port between our look and the registry's bind: then once more.
        for _ in 0..10 {
            let free = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("loopback has free ports");
            let address = free.local_addr().expect("it is bound");
            drop(free);
            let config = format!(
                "version: 0.1\nlog: {{level: info, formatter: json, accesslog: {{disabled: true}}}}\n\
                 storage: {{filesystem: {{rootdirectory: {}}}, delete: {{enabled: true}}}}\n\
                 http: {{addr: \"{address}\"}}\n{lines}\n",
                dir.join("storage").display()
            );
            fs::write(dir.join("config.yml"), config).expect("the room can be written");
            let file = fs::File::create(&log).expect("the room can be written");
            let mut child = Command::new(&program)
                .arg("serve")
                .arg(dir.join("config.yml"))
                .stdin(Stdio::null())
                .stdout(file.try_clone().expect("descriptors are free"))
                .stderr(file)
                .spawn()
                .expect("docker-registry can be executed");
            let deadline = Instant::now() + Duration::from_secs(30);
            while Instant::now() < deadline && child.try_wait().is_ok_and(|status| status.is_none()) {
                if answers(address) {
                    return Self { child, address, log, _dir: own };
                }
                std::thread::sleep(Duration::from_millis(20));
            }
            let _ = child.kill();
            let _ = child.wait();
        }
        panic!("docker-registry did not start: {}", fs::read_to_string(&log).unwrap_or_default());
    }

    /// Where it listens.
    pub(crate) fn address(&self) -> SocketAddr {
        self.address
    }

    /// The name of an image on it.
    pub(crate) fn image(&self, name: &str) -> String {
        format!("{}/{name}", self.address)
    }

    /// Copies an image (`oci:DIR:TAG`, `docker-archive:FILE`) onto it with skopeo; gives the manifest digest
    /// that the registry then has for it. `options` are skopeo's: `--format v2s2`, `--dest-compress-format zstd`.
    pub(crate) fn push(&self, source: &str, name: &str, options: &[&str]) -> String {
        let target = format!("docker://{}", self.image(name));
        let fixed = ["--insecure-policy", "copy", "--quiet", "--dest-tls-verify=false"];
        run_program("skopeo", fixed.iter().chain(options).copied().chain([source, &target]));
        let inspected = run_program(
            "skopeo",
            ["--insecure-policy", "inspect", "--tls-verify=false", "--format", "{{.Digest}}", &target],
        );
        inspected.trim().to_owned()
    }

    /// Digests of the layers of an image as it has them: skopeo compresses what came uncompressed.
    pub(crate) fn layers(&self, name: &str) -> Vec<String> {
        let layers = self.manifest(name)["layers"].take();
        let layers = layers.as_array().expect("a manifest has layers");
        layers.iter().map(|layer| layer["digest"].as_str().expect("a digest is text").to_owned()).collect()
    }

    /// The manifest of an image on it.
    pub(crate) fn manifest(&self, name: &str) -> Value {
        let target = format!("docker://{}", self.image(name));
        let args = ["--insecure-policy", "inspect", "--raw", "--tls-verify=false", &target];
        serde_json::from_str(&run_program("skopeo", args)).expect("a manifest is JSON")
    }

    /// Every request it has answered, from its log.
    pub(crate) fn requests(&self) -> Vec<Request> {
        let text = fs::read_to_string(&self.log).expect("we made it");
        text.lines()
            .filter_map(|line| serde_json::from_str::<Value>(line).ok())
            .filter(|line| line["msg"].as_str().is_some_and(|msg| msg.starts_with("response completed")))
            .map(|line| Request {
                method: line["http.request.method"].as_str().unwrap_or_default().to_owned(),
                path: line["http.request.uri"].as_str().unwrap_or_default().to_owned(),
                status: line["http.response.status"].as_u64().unwrap_or_default(),
            })
            .collect()
    }

    /// Digests of the blobs that were fetched from it since it had answered `since` requests, one per request.
    pub(crate) fn blobs_fetched(&self, since: usize) -> Vec<String> {
        self.requests()[since..]
            .iter()
            .filter(|request| request.method == "GET")
            .filter_map(|request| request.path.split_once("/blobs/").map(|(_, digest)| digest.to_owned()))
            .collect()
    }

    /// Panics unless each layer of this image was fetched exactly once since then.
    #[track_caller]
    pub(crate) fn expect_each_fetched_once(&self, since: usize, name: &str) {
        let (fetched, layers) = (self.blobs_fetched(since), self.layers(name));
        assert!(!layers.is_empty());
        for layer in layers {
            let count = fetched.iter().filter(|blob| **blob == layer).count();
            assert_eq!(count, 1, "requests for layer {layer}; all blob requests: {fetched:#?}");
        }
    }
}

impl Drop for Registry {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn answers(address: SocketAddr) -> bool {
    let Ok(mut stream) = TcpStream::connect_timeout(&address, Duration::from_secs(1)) else { return false };
    let _ = stream.set_read_timeout(Some(Duration::from_secs(5)));
    let mut start = [0; 12];
    stream.write_all(b"GET /v2/ HTTP/1.1\r\nHost: probe\r\nConnection: close\r\n\r\n").is_ok()
        && stream.read_exact(&mut start).is_ok()
        // Or who asks.
        && matches!(&start, b"HTTP/1.1 200" | b"HTTP/1.1 401")
}

/// A proxy before a server that lets so many bytes of answers through and then holds everything, until it is
/// let go: the middle of a transfer, for as long as a test needs.
pub(crate) struct Holding {
    address: SocketAddr,
    gate: Gate,
}

/// What is still let through, and what has been; shared by all connections.
#[derive(Clone)]
struct Gate(Arc<(Mutex<Passed>, Condvar)>);

struct Passed {
    bytes: u64,
    limit: u64,
    held: bool,
}

impl Holding {
    /// Starts one before this server. It holds after `limit` bytes of answers.
    pub(crate) fn start(server: SocketAddr, limit: u64) -> Self {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("loopback has free ports");
        let address = listener.local_addr().expect("it is bound");
        let gate = Gate(Arc::new((Mutex::new(Passed { bytes: 0, limit, held: false }), Condvar::new())));
        let theirs = gate.clone();
        // The threads end with the test process; each waits in a system call or at the gate until then.
        std::thread::spawn(move || {
            for client in listener.incoming().flatten() {
                let Ok(upstream) = TcpStream::connect(server) else { continue };
                let gate = theirs.clone();
                let (mut from_client, mut to_server) =
                    (client.try_clone().expect("descriptors are free"), upstream.try_clone().expect("same"));
                std::thread::spawn(move || {
                    let _ = std::io::copy(&mut from_client, &mut to_server);
                    let _ = to_server.shutdown(std::net::Shutdown::Write);
                });
                std::thread::spawn(move || gate.carry(upstream, client));
            }
        });
        Self { address, gate }
    }

    /// The name of an image behind it.
    pub(crate) fn image(&self, name: &str) -> String {
        format!("{}/{name}", self.address)
    }

    /// Waits until the bytes are through and the next ones are held.
    #[track_caller]
    pub(crate) fn wait_until_held(&self) {
        let passed = self.gate.0.0.lock().expect("no panic while it is held");
        let limit = Duration::from_secs(60);
        let (passed, _) =
            self.gate.0.1.wait_timeout_while(passed, limit, |p| !p.held).expect("no panic while it is held");
        assert!(passed.held, "only {} bytes of {} came through", passed.bytes, passed.limit);
    }

    /// Lets everything through from now on.
    pub(crate) fn let_go(&self) {
        self.gate.0.0.lock().expect("no panic while it is held").limit = u64::MAX;
        self.gate.0.1.notify_all();
    }
}

impl Gate {
    fn carry(&self, mut from: TcpStream, mut to: TcpStream) {
        let mut buffer = [0; 4096];
        while let Ok(n) = from.read(&mut buffer)
            && n > 0
        {
            let mut passed = self.0.0.lock().expect("no panic while it is held");
            while passed.bytes + n as u64 > passed.limit {
                passed.held = true;
                self.0.1.notify_all();
                passed = self.0.1.wait(passed).expect("no panic while it is held");
            }
            passed.bytes += n as u64;
            drop(passed);
            if to.write_all(&buffer[..n]).is_err() {
                return;
            }
        }
        let _ = to.shutdown(std::net::Shutdown::Both);
    }
}

/// Where files lie that take long to make, between runs.
fn cache() -> PathBuf {
    let target = Path::new(env!("CARGO_TARGET_TMPDIR")).parent().expect("it lies in the target directory");
    target.join("ci-cache")
}

/// A tar of a Debian as `debootstrap --variant=minbase` makes it, from the mirror of `DEBOOTSTRAP_MIRROR` or
/// debootstrap's own. Made once and kept in the target directory. `None` = it could not be made, said aloud.
pub(crate) fn debian_tar() -> Option<PathBuf> {
    let tar = cache().join("debian-bookworm-minbase.tar");
    fs::create_dir_all(cache()).expect("the target directory can be written");
    // One of the tests makes it, the others wait.
    let lock = fs::File::create(cache().join("debian.lock")).expect("the target directory can be written");
    rustix::fs::flock(&lock, rustix::fs::FlockOperation::LockExclusive).expect("flock works there");
    if tar.exists() {
        return Some(tar);
    }
    let dir = tempfile::Builder::new().prefix("debootstrap-").tempdir_in(cache()).expect("it can be written");
    let root = dir.path().join("root");
    let mirror = std::env::var("DEBOOTSTRAP_MIRROR").unwrap_or_default();
    let output = Command::new(find_program("debootstrap").expect("the caller looked for it"))
        .args(["--variant=minbase", "bookworm"])
        .arg(&root)
        .args(Some(mirror).filter(|mirror| !mirror.is_empty()))
        .stdin(Stdio::null())
        .output()
        .expect("debootstrap can be executed");
    if !output.status.success() {
        let said = String::from_utf8_lossy(&output.stdout);
        super::binary::skip(&format!(
            "debootstrap failed: {}",
            said.lines().last().unwrap_or("without a word")
        ));
        return None;
    }
    let part = tar.with_extension("part");
    let archived = ["--numeric-owner", "--xattrs", "--xattrs-include=*", "--format=pax", "--sort=name"];
    let args = archived.map(PathBuf::from).into_iter().chain(["-C".into(), root, "-cf".into(), part.clone()]);
    run_program("tar", args.chain([".".into()]));
    fs::rename(&part, &tar).expect("same directory");
    Some(tar)
}
