//! A registry on loopback, in this process: serves what is put into it, counts what it is asked, and misbehaves on demand.

#![allow(dead_code, unreachable_pub, reason = "each file of tests uses its part of this")]

use std::collections::HashMap;
use std::convert::Infallible;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener};
use std::pin::Pin;
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll};
use std::thread::JoinHandle;

use bytes::Bytes;
use hyper::body::{Body, Frame, Incoming, SizeHint};
use hyper::service::service_fn;
use hyper::{Request, Response};
use hyper_util::rt::TokioIo;
use keelblock_actors::image::digest::Digest;
use tokio::sync::oneshot;

pub const DOCKER_MANIFEST: &str = "application/vnd.docker.distribution.manifest.v2+json";
pub const OCI_MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
pub const OCI_INDEX: &str = "application/vnd.oci.image.index.v1+json";
pub const OCI_CONFIG: &str = "application/vnd.oci.image.config.v1+json";
pub const OCI_LAYER: &str = "application/vnd.oci.image.layer.v1.tar";

/// One request, as it came.
#[derive(Clone, Debug)]
pub struct Seen {
    pub method: String,
    pub path: String,
    pub query: String,
    pub authorization: Option<String>,
    pub accept: Option<String>,
    pub range: Option<String>,
    /// What a POST carries.
    pub body: String,
}

/// What is sent of a body, and what then happens.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ending {
    /// It ends.
    Whole,
    /// The connection is cut.
    Cut,
    /// Nothing more comes, for ever.
    Stall,
}

/// An answer.
#[derive(Clone, Debug)]
pub struct Reply {
    pub status: u16,
    pub headers: Vec<(String, String)>,
    pub body: Bytes,
    pub ending: Ending,
    /// Nothing comes at all, not even a head.
    pub silent: bool,
}

impl Reply {
    pub fn new(status: u16, body: impl Into<Bytes>) -> Self {
        Self { status, headers: Vec::new(), body: body.into(), ending: Ending::Whole, silent: false }
    }

    pub fn header(mut self, name: &str, value: impl ToString) -> Self {
        self.headers.push((name.to_owned(), value.to_string()));
        self
    }

    pub fn redirect(to: impl ToString) -> Self {
        Self::new(307, "").header("location", to)
    }

    /// An error answer of the distribution API.
    pub fn error(status: u16, code: &str, message: &str) -> Self {
        let body = serde_json::json!({"errors": [{"code": code, "message": message, "detail": {}}]});
        Self::new(status, body.to_string()).header("content-type", "application/json; charset=utf-8")
    }

    pub fn ending(mut self, ending: Ending) -> Self {
        self.ending = ending;
        self
    }

    pub fn silent() -> Self {
        Self { silent: true, ..Self::new(200, "") }
    }
}

type Script = Arc<dyn Fn(&Seen) -> Option<Reply> + Send + Sync>;

#[derive(Default)]
struct State {
    replies: HashMap<String, Reply>,
    seen: Vec<Seen>,
    scripts: Vec<Script>,
}

/// The registry. Ends when dropped, with every connection.
pub struct TestRegistry {
    address: SocketAddr,
    state: Arc<Mutex<State>>,
    stop: Option<oneshot::Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

/// An image that was put into a registry.
#[derive(Clone, Debug)]
pub struct TestImage {
    pub manifest: Digest,
    pub manifest_bytes: Vec<u8>,
    pub config: Digest,
    pub layers: Vec<Digest>,
    pub diff_ids: Vec<Digest>,
}

impl TestRegistry {
    pub fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        listener.set_nonblocking(true).unwrap();
        let address = listener.local_addr().unwrap();
        let state = Arc::new(Mutex::new(State::default()));
        let (stop, stopped) = oneshot::channel();
        let serving = state.clone();
        let thread = std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            runtime.block_on(async move {
                let serve = serve(listener, serving);
                tokio::select! { () = serve => {}, _ = stopped => {} }
            });
        });
        Self { address, state, stop: Some(stop), thread: Some(thread) }
    }

    /// `127.0.0.1:port`.
    pub fn host(&self) -> String {
        self.address.to_string()
    }

    /// `http://127.0.0.1:port`.
    pub fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    /// Answers this path with that from now on.
    pub fn on(&self, path: impl Into<String>, reply: Reply) {
        self.state.lock().unwrap().replies.insert(path.into(), reply);
    }

    /// Asks `script` before anything else; the first that has an answer gives it.
    pub fn script(&self, script: impl Fn(&Seen) -> Option<Reply> + Send + Sync + 'static) {
        self.state.lock().unwrap().scripts.push(Arc::new(script));
    }

    /// Demands one of `tokens` for everything below `/v2/`, and says where they are given: to `realm`.
    pub fn demand_bearer(&self, realm: String, valid: Arc<Mutex<Vec<String>>>) {
        self.script(move |seen| {
            if !seen.path.starts_with("/v2/") {
                return None;
            }
            let shown = seen.authorization.as_deref().and_then(|text| text.strip_prefix("Bearer "));
            if shown.is_some_and(|token| valid.lock().unwrap().iter().any(|valid| valid == token)) {
                return None;
            }
            let repository = seen.path.split('/').nth(2).unwrap_or_default();
            let challenge =
                format!(r#"Bearer realm="{realm}",service="test",scope="repository:{repository}:pull""#);
            Some(
                Reply::error(401, "UNAUTHORIZED", "authentication required")
                    .header("www-authenticate", challenge),
            )
        });
    }

    pub fn put_blob(&self, repository: &str, bytes: impl Into<Bytes>) -> Digest {
        let bytes = bytes.into();
        let digest = Digest::of(&bytes);
        let reply = Reply::new(200, bytes).header("content-type", "application/octet-stream");
        self.on(format!("/v2/{repository}/blobs/{digest}"), reply);
        digest
    }

    /// Puts a manifest under its digest and a tag.
    pub fn put_manifest(&self, repository: &str, tag: &str, media_type: &str, bytes: &[u8]) -> Digest {
        let digest = Digest::of(bytes);
        let reply = Reply::new(200, bytes.to_vec())
            .header("content-type", media_type)
            .header("docker-content-digest", &digest);
        self.on(format!("/v2/{repository}/manifests/{digest}"), reply.clone());
        self.on(format!("/v2/{repository}/manifests/{tag}"), reply);
        digest
    }

    /// Puts an OCI image of these layers, which are taken for plain tars.
    pub fn put_image(&self, repository: &str, tag: &str, layers: &[&[u8]]) -> TestImage {
        let diff_ids: Vec<Digest> = layers.iter().map(|layer| Digest::of(layer)).collect();
        for layer in layers {
            self.put_blob(repository, layer.to_vec());
        }
        let config = serde_json::json!({
            "architecture": "amd64", "os": "linux",
            "config": {"Cmd": ["/bin/true"], "Env": ["A=1"]},
            "rootfs": {"type": "layers", "diff_ids": diff_ids},
        });
        let config_bytes = config.to_string();
        let config = self.put_blob(repository, config_bytes.clone());
        let descriptors: Vec<_> = (layers.iter().zip(&diff_ids))
            .map(|(layer, digest)| descriptor(OCI_LAYER, digest, layer.len()))
            .collect();
        let manifest = serde_json::json!({
            "schemaVersion": 2, "mediaType": OCI_MANIFEST,
            "config": descriptor(OCI_CONFIG, &config, config_bytes.len()),
            "layers": descriptors,
        });
        let manifest_bytes = manifest.to_string().into_bytes();
        let manifest = self.put_manifest(repository, tag, OCI_MANIFEST, &manifest_bytes);
        TestImage { manifest, manifest_bytes, config, layers: diff_ids.clone(), diff_ids }
    }

    /// Every request so far.
    pub fn seen(&self) -> Vec<Seen> {
        self.state.lock().unwrap().seen.clone()
    }

    /// How often this path was asked for.
    pub fn count(&self, path: &str) -> usize {
        self.state.lock().unwrap().seen.iter().filter(|seen| seen.path == path).count()
    }
}

impl Drop for TestRegistry {
    fn drop(&mut self) {
        drop(self.stop.take());
        self.thread.take().map(JoinHandle::join);
    }
}

pub fn descriptor(media_type: &str, digest: &Digest, size: usize) -> serde_json::Value {
    serde_json::json!({"mediaType": media_type, "digest": digest, "size": size})
}

/// A server that reads a request and sends these bytes, whatever they are, to the first `connections` clients.
pub fn raw_server(answer: &'static [u8], connections: usize) -> (String, JoinHandle<()>) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let host = listener.local_addr().unwrap().to_string();
    let thread = std::thread::spawn(move || {
        for _ in 0..connections {
            let (mut connection, _) = listener.accept().unwrap();
            let _ = connection.read(&mut [0; 4096]);
            let _ = connection.write_all(answer);
        }
    });
    (host, thread)
}

async fn serve(listener: TcpListener, state: Arc<Mutex<State>>) {
    let listener = tokio::net::TcpListener::from_std(listener).unwrap();
    // Dropped with this future, and all connections with it.
    let mut connections = tokio::task::JoinSet::new();
    loop {
        let Ok((connection, _)) = listener.accept().await else { return };
        let state = state.clone();
        connections.spawn(async move {
            let service = service_fn(move |request| answer(request, state.clone()));
            let served = hyper::server::conn::http1::Builder::new();
            let _ = served.serve_connection(TokioIo::new(connection), service).await;
        });
    }
}

async fn answer(
    request: Request<Incoming>,
    state: Arc<Mutex<State>>,
) -> Result<Response<ReplyBody>, Infallible> {
    let header = |name: &str| {
        request.headers().get(name).map(|value| String::from_utf8_lossy(value.as_bytes()).into_owned())
    };
    let seen = Seen {
        method: request.method().to_string(),
        path: request.uri().path().to_owned(),
        query: request.uri().query().unwrap_or_default().to_owned(),
        authorization: header("authorization"),
        accept: header("accept"),
        range: header("range"),
        body: String::new(),
    };
    let sent = http_body_util::BodyExt::collect(request.into_body()).await;
    let sent = sent.map(|body| body.to_bytes()).unwrap_or_default();
    let seen = Seen { body: String::from_utf8_lossy(&sent).into_owned(), ..seen };
    let (scripts, stored) = {
        let mut state = state.lock().unwrap();
        state.seen.push(seen.clone());
        (state.scripts.clone(), state.replies.get(&seen.path).cloned())
    };
    let scripted = scripts.iter().find_map(|script| script(&seen));
    let unknown = if seen.path.contains("/blobs/") { "BLOB_UNKNOWN" } else { "MANIFEST_UNKNOWN" };
    let reply = scripted.or(stored).unwrap_or_else(|| Reply::error(404, unknown, "it is not here"));
    if reply.silent {
        std::future::pending::<()>().await;
    }
    let mut response = Response::builder().status(reply.status);
    for (name, value) in &reply.headers {
        response = response.header(name, value);
    }
    let stated =
        reply.headers.iter().any(|(name, _)| name == "content-length" || name == "transfer-encoding");
    let body = ReplyBody { rest: reply.body, ending: reply.ending, sized: !stated, flushed: false };
    Ok(response.body(body).unwrap())
}

/// The body of a [`Reply`], in pieces.
struct ReplyBody {
    rest: Bytes,
    ending: Ending,
    sized: bool,
    flushed: bool,
}

impl Body for ReplyBody {
    type Data = Bytes;
    type Error = std::io::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, std::io::Error>>> {
        if !self.rest.is_empty() {
            let count = self.rest.len().min(32 << 10);
            return Poll::Ready(Some(Ok(Frame::data(self.rest.split_to(count)))));
        }
        match self.ending {
            Ending::Whole => Poll::Ready(None),
            // Being asked again, hyper sends what it has before it hears of the end.
            Ending::Cut if !self.flushed => {
                self.flushed = true;
                context.waker().wake_by_ref();
                Poll::Pending
            }
            Ending::Cut => Poll::Ready(Some(Err(std::io::Error::other("cut")))),
            Ending::Stall => Poll::Pending,
        }
    }

    fn size_hint(&self) -> SizeHint {
        match (self.sized, self.ending) {
            (true, Ending::Whole) => SizeHint::with_exact(self.rest.len() as u64),
            _ => SizeHint::default(),
        }
    }
}
