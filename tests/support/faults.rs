//! A registry on loopback that fails on purpose: it holds one image of one layer, and a script says what becomes of each
//! request. Sockets and bytes are its own, so that it can do what no HTTP library would.

#![allow(dead_code, unreachable_pub, reason = "each file of tests uses its part of this")]

use std::io::{BufRead, BufReader, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex};
use std::thread::JoinHandle;
use std::time::Duration;

use keelblock_actors::image::digest::Digest;

pub const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
const CONFIG: &str = "application/vnd.oci.image.config.v1+json";
const LAYER: &str = "application/vnd.oci.image.layer.v1.tar";
/// Bytes written at once.
const PIECE: usize = 16 << 10;

/// An image of one layer.
#[derive(Clone)]
pub struct FaultImage {
    pub layer: Arc<Vec<u8>>,
    pub layer_digest: Digest,
    pub config: Vec<u8>,
    pub config_digest: Digest,
    pub manifest: Vec<u8>,
    pub manifest_digest: Digest,
}

impl FaultImage {
    /// Of this tar.
    pub fn new(layer: Vec<u8>) -> Self {
        let layer_digest = Digest::of(&layer);
        let config = serde_json::json!({
            "architecture": "amd64", "os": "linux",
            "rootfs": {"type": "layers", "diff_ids": [layer_digest]},
        });
        let config = config.to_string().into_bytes();
        let config_digest = Digest::of(&config);
        let manifest = serde_json::json!({
            "schemaVersion": 2, "mediaType": MANIFEST,
            "config": {"mediaType": CONFIG, "digest": config_digest, "size": config.len()},
            "layers": [{"mediaType": LAYER, "digest": layer_digest, "size": layer.len()}],
        });
        let manifest = manifest.to_string().into_bytes();
        let manifest_digest = Digest::of(&manifest);
        Self { layer: Arc::new(layer), layer_digest, config, config_digest, manifest, manifest_digest }
    }
}

/// What a request is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum What {
    Tag,
    Manifest,
    Config,
    Layer,
    Other,
}

/// One request, as it came.
#[derive(Clone, Debug)]
pub struct Request {
    pub what: What,
    pub path: String,
    /// First byte, and last if it says.
    pub range: Option<(usize, Option<usize>)>,
    pub authorization: Option<String>,
    /// How many for the same came before it.
    pub nth: usize,
    /// On which connection, counted from 0.
    pub connection: usize,
}

/// How an answer ends, after the bytes of its body.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ending {
    Whole,
    /// The connection is closed.
    Fin,
    /// It is reset: what was not read yet is lost.
    Rst,
    /// Nothing more comes, for ever.
    Stall,
}

/// An answer.
#[derive(Clone, Debug)]
pub struct Answer {
    pub status: u16,
    pub headers: Vec<(String, String)>,
    /// What its head says of the length; `None` = as long as the body, before that was cut.
    pub length: Option<usize>,
    pub body: Vec<u8>,
    pub ending: Ending,
    /// The pause after each piece of 16 KiB.
    pub pace: Duration,
}

impl Answer {
    pub fn new(status: u16, body: impl Into<Vec<u8>>) -> Self {
        let (headers, body) = (Vec::new(), body.into());
        Self { status, headers, length: Some(body.len()), body, ending: Ending::Whole, pace: Duration::ZERO }
    }

    pub fn header(mut self, name: &str, value: impl ToString) -> Self {
        self.headers.push((name.to_owned(), value.to_string()));
        self
    }

    /// An error of the distribution API.
    pub fn error(status: u16, code: &str, message: &str) -> Self {
        let body = serde_json::json!({"errors": [{"code": code, "message": message}]});
        Self::new(status, body.to_string()).header("Content-Type", "application/json")
    }

    /// Ends so after these many bytes of the body.
    pub fn cut(mut self, after: usize, ending: Ending) -> Self {
        self.body.truncate(after);
        self.ending = ending;
        self
    }

    pub fn pace(mut self, pace: Duration) -> Self {
        self.pace = pace;
        self
    }
}

/// What becomes of a request.
#[derive(Clone, Debug)]
pub enum Act {
    Answer(Answer),
    /// These bytes, and the connection is closed.
    Raw(Vec<u8>),
    /// Nothing, for ever.
    Silent,
}

/// All of these bytes, or the range that was asked for, as a good server gives them.
pub fn whole(request: &Request, bytes: &[u8]) -> Answer {
    match request.range {
        Some((first, last)) if first < bytes.len() => {
            let last = last.unwrap_or(usize::MAX).min(bytes.len() - 1);
            Answer::new(206, &bytes[first..=last])
                .header("Content-Range", format!("bytes {first}-{last}/{}", bytes.len()))
        }
        Some(_) => Answer::new(416, "").header("Content-Range", format!("bytes */{}", bytes.len())),
        None => Answer::new(200, bytes),
    }
    .header("Accept-Ranges", "bytes")
}

type Script = Box<dyn Fn(&Request, &FaultImage) -> Option<Act> + Send + Sync>;

struct Shared {
    image: FaultImage,
    script: Script,
    requests: Mutex<Vec<Request>>,
    /// Body bytes of layers, by connection.
    sent: Mutex<Vec<u64>>,
    /// Answers with the layer that are being written, and the most there were at once.
    at_once: Mutex<(usize, usize)>,
    ended: Mutex<bool>,
    end: Condvar,
}

/// See the module. Ends when dropped, with every connection.
pub struct FaultRegistry {
    address: SocketAddr,
    shared: Arc<Shared>,
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl FaultRegistry {
    /// One that does as `script` says, and what is right where that says nothing.
    pub fn start(
        image: FaultImage,
        script: impl Fn(&Request, &FaultImage) -> Option<Act> + Send + Sync + 'static,
    ) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let shared = Arc::new(Shared {
            image,
            script: Box::new(script),
            requests: Mutex::default(),
            sent: Mutex::default(),
            at_once: Mutex::default(),
            ended: Mutex::default(),
            end: Condvar::new(),
        });
        let stop = Arc::new(AtomicBool::new(false));
        let (serving, stopping) = (shared.clone(), stop.clone());
        let thread = std::thread::spawn(move || {
            let mut connections = Vec::new();
            for stream in listener.incoming() {
                if stopping.load(Ordering::SeqCst) {
                    break;
                }
                let Ok(stream) = stream else { continue };
                let number = connections.len();
                let (shared, own) = (serving.clone(), stream.try_clone().unwrap());
                serving.sent.lock().unwrap().push(0);
                let thread = std::thread::spawn(move || serve(&shared, &own, number));
                connections.push((stream, thread));
            }
            for (stream, thread) in connections {
                let _ = stream.shutdown(std::net::Shutdown::Both);
                let _ = thread.join();
            }
        });
        Self { address, shared, stop, thread: Some(thread) }
    }

    /// `127.0.0.1:port`.
    pub fn host(&self) -> String {
        self.address.to_string()
    }

    pub fn requests(&self) -> Vec<Request> {
        self.shared.requests.lock().unwrap().clone()
    }

    /// How many requests for the layer.
    pub fn of_layer(&self) -> usize {
        self.requests().iter().filter(|request| request.what == What::Layer).count()
    }

    /// The most answers with the layer that were being written at once.
    pub fn at_once(&self) -> usize {
        self.shared.at_once.lock().unwrap().1
    }

    /// Bytes of the layer that were written, by connection.
    pub fn sent(&self) -> Vec<u64> {
        self.shared.sent.lock().unwrap().clone()
    }
}

impl Drop for FaultRegistry {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::SeqCst);
        *self.shared.ended.lock().unwrap() = true;
        self.shared.end.notify_all();
        // Wakes the listener.
        let _ = TcpStream::connect(self.address);
        let _ = self.thread.take().map(JoinHandle::join);
    }
}

fn serve(shared: &Shared, stream: &TcpStream, connection: usize) {
    let mut reader = BufReader::new(stream);
    // It speaks no TLS, and says so by hanging up.
    if reader.fill_buf().is_ok_and(|bytes| bytes.first() == Some(&0x16)) {
        let _ = stream.shutdown(std::net::Shutdown::Both);
        return;
    }
    while let Some(mut request) = read_request(&mut reader, shared, connection) {
        {
            let mut requests = shared.requests.lock().unwrap();
            request.nth = requests.iter().filter(|other| other.what == request.what).count();
            requests.push(request.clone());
        }
        let act = (shared.script)(&request, &shared.image).unwrap_or_else(|| right(&request, &shared.image));
        let answer = match act {
            Act::Answer(answer) => answer,
            Act::Raw(bytes) => {
                let _ = (&mut &*stream).write_all(&bytes);
                let _ = stream.shutdown(std::net::Shutdown::Both);
                return;
            }
            Act::Silent => return stall(shared),
        };
        let is_layer = request.what == What::Layer;
        if is_layer {
            let (now, most) = &mut *shared.at_once.lock().unwrap();
            *now += 1;
            *most = (*most).max(*now);
        }
        let written = write_answer(shared, stream, &answer, is_layer.then_some(connection));
        shared.at_once.lock().unwrap().0 -= usize::from(is_layer);
        if written.is_err() {
            return;
        }
        match answer.ending {
            Ending::Whole => {}
            Ending::Fin => drop(stream.shutdown(std::net::Shutdown::Both)),
            Ending::Rst => {
                // As closing it would with SO_LINGER 0, were this the last descriptor of it.
                let _ = rustix::net::connect_unspec(stream);
            }
            Ending::Stall => return stall(shared),
        }
        if answer.ending != Ending::Whole {
            return;
        }
    }
}

/// Until the registry ends.
fn stall(shared: &Shared) {
    let ended = shared.ended.lock().unwrap();
    drop(shared.end.wait_while(ended, |ended| !*ended).unwrap());
}

fn right(request: &Request, image: &FaultImage) -> Act {
    Act::Answer(match request.what {
        What::Tag | What::Manifest => {
            Answer::new(200, image.manifest.clone()).header("Content-Type", MANIFEST)
        }
        What::Config => whole(request, &image.config),
        What::Layer => whole(request, &image.layer),
        What::Other if request.path == "/v2/" => Answer::new(200, "{}"),
        What::Other => Answer::error(404, "NAME_UNKNOWN", "not here"),
    })
}

fn read_request(reader: &mut BufReader<&TcpStream>, shared: &Shared, connection: usize) -> Option<Request> {
    let mut line = String::new();
    reader.read_line(&mut line).ok().filter(|&count| count > 0)?;
    let path = line.split_whitespace().nth(1)?.to_owned();
    let (mut range, mut authorization) = (None, None);
    loop {
        let mut line = String::new();
        reader.read_line(&mut line).ok().filter(|&count| count > 0)?;
        let Some((name, value)) = line.trim_end().split_once(": ") else { break };
        match &*name.to_ascii_lowercase() {
            "range" => {
                let (first, last) = value.strip_prefix("bytes=")?.split_once('-')?;
                range = Some((first.parse().ok()?, last.parse().ok()));
            }
            "authorization" => authorization = Some(value.to_owned()),
            _ => {}
        }
    }
    let image = &shared.image;
    let what = match path.rsplit('/').next()? {
        _ if !path.contains("/manifests/") && !path.contains("/blobs/") => What::Other,
        name if name == image.manifest_digest.to_string() => What::Manifest,
        name if name == image.config_digest.to_string() => What::Config,
        name if name == image.layer_digest.to_string() => What::Layer,
        _ if path.contains("/manifests/") => What::Tag,
        _ => What::Other,
    };
    Some(Request { what, path, range, authorization, nth: 0, connection })
}

fn write_answer(
    shared: &Shared,
    mut stream: &TcpStream,
    answer: &Answer,
    counted: Option<usize>,
) -> std::io::Result<()> {
    let mut head = format!("HTTP/1.1 {} X\r\n", answer.status);
    for (name, value) in &answer.headers {
        head += &format!("{name}: {value}\r\n");
    }
    if let Some(length) = answer.length {
        head += &format!("Content-Length: {length}\r\n");
    }
    stream.write_all(format!("{head}\r\n").as_bytes())?;
    for piece in answer.body.chunks(PIECE) {
        stream.write_all(piece)?;
        if let Some(connection) = counted {
            shared.sent.lock().unwrap()[connection] += piece.len() as u64;
        }
        if !answer.pace.is_zero() {
            std::thread::sleep(answer.pace);
        }
    }
    Ok(())
}
