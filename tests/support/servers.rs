//! Servers around a registry: nginx with TLS in front of one, a proxy of our own for CONNECT and plain http, a
//! pull-through cache of Debian's `docker-registry`; and certificates for them, made by `openssl`.

#![allow(dead_code, unreachable_pub, reason = "each file of tests uses its part of this")]

use std::fs;
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use super::registry::{OCI_MANIFEST, Reply, TestImage, TestRegistry};

fn find(program: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let all = std::env::split_paths(&path).chain(["/usr/sbin", "/sbin"].map(PathBuf::from));
    all.map(|dir| dir.join(program)).find(|file| file.is_file())
}

/// Whether these programs are here; says which is not. Where everything must be proved (`CI=true`), that is a failure.
pub fn have(programs: &[&str]) -> bool {
    let missing: Vec<_> = programs.iter().filter(|program| find(program).is_none()).collect();
    if !missing.is_empty() {
        let in_ci = std::env::var("CI").is_ok_and(|value| value == "true" || value == "1");
        assert!(!in_ci, "CI must prove this, but there is no {missing:?}");
        eprintln!("skipped: not installed: {missing:?}");
    }
    missing.is_empty()
}

fn run(program: &str, arguments: &[&str], directory: &Path) {
    let output = Command::new(program).args(arguments).current_dir(directory).output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{program} {arguments:?}: {said}");
}

/// A program that listens on a port of its choice, until dropped.
struct Server {
    child: Child,
    port: u16,
}

impl Server {
    /// `command` makes one for a port that was free a moment ago.
    fn start(mut command: impl FnMut(u16) -> Command) -> Self {
        // Another process may take the port between our look and the bind: then once more.
        for _ in 0..10 {
            let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
            let mut child = command(port).stdin(Stdio::null()).stdout(Stdio::null()).spawn().unwrap();
            let deadline = Instant::now() + Duration::from_secs(30);
            while Instant::now() < deadline && child.try_wait().unwrap().is_none() {
                if TcpStream::connect(("127.0.0.1", port)).is_ok() {
                    return Self { child, port };
                }
                std::thread::sleep(Duration::from_millis(20));
            }
            let _ = child.kill();
            let _ = child.wait();
        }
        panic!("a server does not start");
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// `docker-registry` as a pull-through cache.
pub struct Cache {
    server: Server,
    _dir: tempfile::TempDir,
}

impl Cache {
    /// Before a registry that has this image as `app:1`.
    pub fn before(upstream: &TestRegistry, image: &TestImage) -> Self {
        // It asks whether it may before it asks for anything, and for the head of a manifest first.
        upstream.on("/v2/", Reply::new(200, "{}").header("docker-distribution-api-version", "registry/2.0"));
        let (manifest, size) = (image.manifest.clone(), image.manifest_bytes.len());
        upstream.script(move |seen| {
            (seen.method == "HEAD" && seen.path == "/v2/app/manifests/1").then(|| {
                Reply::new(200, "")
                    .header("content-type", OCI_MANIFEST)
                    .header("docker-content-digest", &manifest)
                    .header("content-length", size)
            })
        });
        let dir = tempfile::tempdir().unwrap();
        let server = Server::start(|port| {
            let config = dir.path().join("cache.yml");
            let text = format!(
                "version: 0.1\nlog: {{level: error}}\nstorage: {{filesystem: {{rootdirectory: {}}}}}\n\
                 http: {{addr: \"127.0.0.1:{port}\"}}\nproxy: {{remoteurl: \"{}\"}}\n",
                dir.path().join("cached").display(),
                upstream.url()
            );
            fs::write(&config, text).unwrap();
            let mut command = Command::new(find("docker-registry").unwrap());
            command.arg("serve").arg(config).stderr(Stdio::null());
            command
        });
        Self { server, _dir: dir }
    }

    pub fn address(&self) -> String {
        format!("127.0.0.1:{}", self.server.port)
    }
}

/// An authority of its own, and what it signed, in a directory.
pub struct Authority(pub tempfile::TempDir);

impl Authority {
    /// With a certificate `server.pem` for `localhost`, `127.0.0.1`, `::1` and `registry.test`, and one for a client,
    /// `client.pem`, each with its key in `.key` (PKCS#8).
    pub fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let this = Self(dir);
        let key = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"];
        // A server names the authorities it knows: no two have the same name.
        static COUNT: AtomicUsize = AtomicUsize::new(0);
        let subject = format!("/CN=keelblock test {}", COUNT.fetch_add(1, Ordering::Relaxed));
        let ca = ["req", "-x509", "-days", "2", "-subj", &subject, "-keyout", "ca.key", "-out", "ca.pem"];
        run("openssl", &[&ca[..], &key[..]].concat(), this.path());
        let names = "subjectAltName=DNS:localhost,DNS:registry.test,IP:127.0.0.1,IP:::1";
        this.sign("server", &key, names);
        this.sign("client", &key, "extendedKeyUsage=clientAuth");
        this
    }

    /// Makes `NAME.pem` and `NAME.key` with a key of this kind and these extensions.
    pub fn sign(&self, name: &str, key: &[&str], extensions: &str) {
        let (request, file, pem) = (format!("{name}.csr"), format!("{name}.key"), format!("{name}.pem"));
        let subject = format!("/CN={name}");
        let args = ["req", "-new", "-subj", &subject, "-keyout", &file, "-out", &request];
        run("openssl", &[&args[..], key].concat(), self.path());
        self.certify(&request, &pem, extensions);
    }

    /// Signs a request.
    pub fn certify(&self, request: &str, pem: &str, extensions: &str) {
        fs::write(self.file("ext.cnf"), format!("{extensions}\nbasicConstraints=CA:FALSE\n")).unwrap();
        let sign = ["x509", "-req", "-days", "2", "-CA", "ca.pem", "-CAkey", "ca.key", "-CAcreateserial"];
        let files = ["-extfile", "ext.cnf", "-in", request, "-out", pem];
        run("openssl", &[&sign[..], &files[..]].concat(), self.path());
    }

    /// Runs openssl where its files are.
    pub fn openssl(&self, arguments: &[&str]) {
        run("openssl", arguments, self.path());
    }

    pub fn path(&self) -> &Path {
        self.0.path()
    }

    pub fn file(&self, name: &str) -> PathBuf {
        self.path().join(name)
    }
}

/// nginx with TLS in front of a server, whose log can be read.
pub struct Nginx {
    server: Server,
    dir: tempfile::TempDir,
}

/// One request in the log of nginx.
#[derive(Clone, Debug)]
pub struct Logged {
    pub connection: String,
    pub protocol: String,
    pub path: String,
}

impl Nginx {
    /// A front on `listen` (`127.0.0.1:PORT ssl http2`) with these directives in its `server` block. `PORT` is replaced
    /// by its port in both.
    pub fn start(listen: &str, server: &str) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let at = dir.path().to_owned();
        let started = Server::start(|port| {
            let temporary: String = ["client_body", "proxy", "fastcgi", "uwsgi", "scgi"]
                .map(|kind| format!("{kind}_temp_path {}/{kind};", at.display()))
                .concat();
            // The workers may be other users than root, who owns the directory.
            let user = if nix::unistd::geteuid().is_root() { "user root;" } else { "" };
            let text = format!(
                "{user} daemon off; worker_processes 1; pid {0}/pid; error_log {0}/error.log;\n\
                 events {{ worker_connections 256; }}\n\
                 http {{ {temporary} log_format l '$connection $server_protocol $request'; access_log {0}/log l;\n\
                 server {{ listen {1}; {2} }} }}\n",
                at.display(),
                listen.replace("PORT", &port.to_string()),
                server.replace("PORT", &port.to_string()),
            );
            fs::write(at.join("nginx.conf"), text).unwrap();
            let mut command = Command::new(find("nginx").unwrap());
            command
                .arg("-c")
                .arg(at.join("nginx.conf"))
                .arg("-p")
                .arg(&at)
                .arg("-e")
                .arg(at.join("error.log"));
            command.stderr(Stdio::null());
            command
        });
        Self { server: started, dir }
    }

    /// TLS with the certificate of this authority, before a server on loopback.
    pub fn front(authority: &Authority, listen: &str, more: &str, behind: &str) -> Self {
        let at = authority.path().display();
        Self::start(
            listen,
            &format!(
                "ssl_certificate {at}/server.pem; ssl_certificate_key {at}/server.key; {more}\n\
                 location / {{ proxy_pass http://{behind}; proxy_buffering off; proxy_http_version 1.1;\n\
                 proxy_set_header Host $http_host; }}"
            ),
        )
    }

    pub fn port(&self) -> u16 {
        self.server.port
    }

    /// What it has answered, which it writes after the last byte.
    pub fn log(&self) -> Vec<Logged> {
        let text = fs::read_to_string(self.dir.path().join("log")).unwrap_or_default();
        let logged = |line: &str| {
            let mut words = line.split(' ').map(str::to_owned);
            Some(Logged { connection: words.next()?, protocol: words.next()?, path: words.nth(1)? })
        };
        text.lines().filter_map(logged).collect()
    }

    /// The same, once there are so many.
    pub fn wait_for_log(&self, count: usize) -> Vec<Logged> {
        let deadline = Instant::now() + Duration::from_secs(30);
        while self.log().len() < count && Instant::now() < deadline {
            std::thread::sleep(Duration::from_millis(20));
        }
        self.log()
    }
}

impl Drop for Nginx {
    fn drop(&mut self) {
        // Its worker ends with a master that is asked to, not with one that is killed.
        let id = i32::try_from(self.server.child.id()).unwrap();
        let _ = nix::sys::signal::kill(nix::unistd::Pid::from_raw(id), nix::sys::signal::Signal::SIGTERM);
        let _ = self.server.child.wait();
    }
}

/// A proxy: tunnels for CONNECT, and requests in absolute form, all of which end at one server, whatever they name.
pub struct ForwardProxy {
    port: u16,
    seen: Arc<Mutex<Vec<String>>>,
}

impl ForwardProxy {
    /// Before the server at `behind`. With `authorization`, a request without that `Proxy-Authorization` is answered 407;
    /// with `refusal`, every request by that status line.
    pub fn start(behind: String, authorization: Option<&'static str>, refusal: Option<&'static str>) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let seen: Arc<Mutex<Vec<String>>> = Arc::default();
        let theirs = Arc::clone(&seen);
        // The threads end with their connections, and the first with the process.
        std::thread::spawn(move || {
            for client in listener.incoming().flatten() {
                let (seen, behind) = (Arc::clone(&theirs), behind.clone());
                std::thread::spawn(move || serve(client, &behind, authorization, refusal, &seen));
            }
        });
        Self { port, seen }
    }

    pub fn host(&self) -> String {
        format!("127.0.0.1:{}", self.port)
    }

    /// The first lines of all requests.
    pub fn seen(&self) -> Vec<String> {
        self.seen.lock().unwrap().clone()
    }
}

fn serve(
    mut client: TcpStream,
    behind: &str,
    authorization: Option<&str>,
    refusal: Option<&str>,
    seen: &Mutex<Vec<String>>,
) {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        let mut byte = [0];
        match client.read(&mut byte) {
            Ok(1) => head.push(byte[0]),
            _ => return,
        }
    }
    let head = String::from_utf8(head).unwrap();
    let first = head.lines().next().unwrap_or_default().to_owned();
    seen.lock().unwrap().push(first.clone());
    let shown = head.lines().find_map(|line| {
        let (name, value) = line.split_once(": ")?;
        name.eq_ignore_ascii_case("proxy-authorization").then_some(value)
    });
    let refusal = match authorization {
        Some(wanted) if shown != Some(wanted) => Some("407 Proxy Authentication Required"),
        _ => refusal,
    };
    if let Some(refusal) = refusal {
        let answer = format!("HTTP/1.1 {refusal}\r\ncontent-length: 0\r\nconnection: close\r\n\r\n");
        let _ = client.write_all(answer.as_bytes());
        return;
    }
    let Ok(mut server) = TcpStream::connect(behind) else { return };
    if first.starts_with("CONNECT ") {
        let _ = client.write_all(b"HTTP/1.1 200 Connection established\r\n\r\n");
    } else {
        // One request a connection: the next may be for another host. It has no body.
        let mut words = first.split(' ');
        let (method, target) = (words.next().unwrap(), words.next().unwrap());
        let rest =
            target.split_once("://").and_then(|(_, rest)| rest.split_once('/')).map_or("", |(_, path)| path);
        let kept = head.lines().skip(1).filter(|line| {
            let name = line.split(':').next().unwrap_or_default().to_ascii_lowercase();
            !line.is_empty() && name != "proxy-authorization" && name != "connection"
        });
        let lines: String = kept.map(|line| format!("{line}\r\n")).collect();
        let request = format!("{method} /{rest} HTTP/1.1\r\n{lines}connection: close\r\n\r\n");
        let _ = server.write_all(request.as_bytes());
    }
    let (mut from_client, mut to_server) = (client.try_clone().unwrap(), server.try_clone().unwrap());
    let up = std::thread::spawn(move || {
        let _ = std::io::copy(&mut from_client, &mut to_server);
        let _ = to_server.shutdown(std::net::Shutdown::Write);
    });
    let _ = std::io::copy(&mut server, &mut client);
    let _ = client.shutdown(std::net::Shutdown::Both);
    let _ = up.join();
}
