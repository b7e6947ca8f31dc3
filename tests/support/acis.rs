//! A web server on loopback that serves files under any host name, as one behind a proxy sees them; what becomes of a request
//! may be scripted. Sockets and bytes are its own, so that it can do what no HTTP library would.

#![allow(dead_code, unreachable_pub, reason = "each file of tests uses its part of this")]

use std::collections::HashMap;
use std::io::{BufRead, BufReader, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex};
use std::thread::JoinHandle;

/// One request, as it came.
#[derive(Clone, Debug)]
pub struct Request {
    pub host: String,
    /// With its query.
    pub path: String,
    pub headers: HashMap<String, String>,
    /// How many for the same host and path came before it.
    pub nth: usize,
}

impl Request {
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name).map(String::as_str)
    }
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
    /// The body comes again and again, until nobody reads it.
    Endless,
    /// Nothing more comes until [`AciServer::release`].
    Held,
}

/// An answer.
#[derive(Clone, Debug)]
pub struct Answer {
    pub status: u16,
    pub headers: Vec<(String, String)>,
    /// What its head says of the length.
    pub length: Option<usize>,
    pub body: Vec<u8>,
    /// Of the body, what is sent before it ends in another way than whole.
    pub cut: usize,
    pub ending: Ending,
}

impl Answer {
    pub fn new(status: u16, body: impl Into<Vec<u8>>) -> Self {
        let body = body.into();
        let (length, cut) = (Some(body.len()), body.len());
        Self { status, headers: Vec::new(), length, body, cut, ending: Ending::Whole }
    }

    pub fn header(mut self, name: &str, value: impl ToString) -> Self {
        self.headers.push((name.to_owned(), value.to_string()));
        self
    }

    pub fn redirect(status: u16, to: impl ToString) -> Self {
        Self::new(status, "").header("Location", to)
    }

    /// Ends so after these many bytes of the body.
    pub fn cut(mut self, after: usize, ending: Ending) -> Self {
        (self.cut, self.ending) = (after, ending);
        self
    }
}

/// A file that is served.
#[derive(Clone, Debug)]
pub struct Served {
    pub bytes: Arc<Vec<u8>>,
    pub etag: Option<String>,
}

/// What a good server answers to a request for this file.
pub fn right(request: &Request, file: &Served) -> Answer {
    let tagged = |answer: Answer| match &file.etag {
        Some(etag) => answer.header("ETag", etag).header("Accept-Ranges", "bytes"),
        None => answer,
    };
    let (bytes, etag) = (&file.bytes, file.etag.as_deref());
    if etag.is_some() && request.header("if-none-match") == etag {
        return tagged(Answer { length: None, ..Answer::new(304, "") });
    }
    let range =
        request.header("range").filter(|_| request.header("if-range").is_none_or(|of| Some(of) == etag));
    let first =
        range.and_then(|range| range.strip_prefix("bytes=")?.strip_suffix('-')?.parse::<usize>().ok());
    tagged(match first {
        Some(first) if first < bytes.len() => Answer::new(206, &bytes[first..])
            .header("Content-Range", format!("bytes {first}-{}/{}", bytes.len() - 1, bytes.len())),
        Some(_) => Answer::new(416, ""),
        None => Answer::new(200, bytes.as_slice()),
    })
}

type Script = Arc<dyn Fn(&Request, Option<&Served>) -> Option<Answer> + Send + Sync>;

#[derive(Default)]
struct Shared {
    files: Mutex<HashMap<String, Served>>,
    script: Mutex<Option<Script>>,
    requests: Mutex<Vec<Request>>,
    /// Body bytes that were written.
    sent: AtomicU64,
    /// How often those who are held were released; and whether the server ends.
    released: Mutex<(usize, bool)>,
    change: Condvar,
}

/// See the module. Ends when dropped, with every connection.
pub struct AciServer {
    address: SocketAddr,
    shared: Arc<Shared>,
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl AciServer {
    pub fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let (shared, stop) = (Arc::<Shared>::default(), Arc::new(AtomicBool::new(false)));
        let (serving, stopping) = (shared.clone(), stop.clone());
        let thread = std::thread::spawn(move || {
            let mut connections = Vec::new();
            for stream in listener.incoming() {
                if stopping.load(Ordering::SeqCst) {
                    break;
                }
                let Ok(stream) = stream else { continue };
                let (shared, own) = (serving.clone(), stream.try_clone().unwrap());
                connections.push((stream, std::thread::spawn(move || serve(&shared, &own))));
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

    /// Serves a file at `host/path`, or `/path` of any host; its ETag is made of its bytes.
    pub fn put(&self, at: &str, bytes: impl Into<Vec<u8>>) {
        let bytes = bytes.into();
        let etag = Some(format!("\"{}\"", &keelblock_actors::image::digest::Digest::of(&bytes).hex()[..16]));
        self.put_as(at, bytes, etag);
    }

    pub fn put_as(&self, at: &str, bytes: impl Into<Vec<u8>>, etag: Option<String>) {
        let file = Served { bytes: Arc::new(bytes.into()), etag };
        self.shared.files.lock().unwrap().insert(at.to_owned(), file);
    }

    pub fn remove(&self, at: &str) {
        self.shared.files.lock().unwrap().remove(at);
    }

    /// Answers as `script` says, and what is right where that says nothing.
    pub fn script(
        &self,
        script: impl Fn(&Request, Option<&Served>) -> Option<Answer> + Send + Sync + 'static,
    ) {
        *self.shared.script.lock().unwrap() = Some(Arc::new(script));
    }

    pub fn requests(&self) -> Vec<Request> {
        self.shared.requests.lock().unwrap().clone()
    }

    /// `host/path` of all requests, in their order.
    pub fn asked(&self) -> Vec<String> {
        self.requests().iter().map(|request| format!("{}{}", request.host, request.path)).collect()
    }

    /// Waits until there are so many requests.
    pub fn wait_for(&self, count: usize) {
        let released = self.shared.released.lock().unwrap();
        let few = |_: &mut (usize, bool)| self.shared.requests.lock().unwrap().len() < count;
        let limit = std::time::Duration::from_secs(60);
        let (_guard, timeout) = self.shared.change.wait_timeout_while(released, limit, few).unwrap();
        assert!(!timeout.timed_out(), "{:?}", self.asked());
    }

    pub fn sent(&self) -> u64 {
        self.shared.sent.load(Ordering::SeqCst)
    }

    /// Lets those go on that are held, now and later.
    pub fn release(&self) {
        self.shared.released.lock().unwrap().0 += 1;
        self.shared.change.notify_all();
    }
}

impl Drop for AciServer {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::SeqCst);
        self.shared.released.lock().unwrap().1 = true;
        self.shared.change.notify_all();
        // Wakes the listener.
        let _ = TcpStream::connect(self.address);
        let _ = self.thread.take().map(JoinHandle::join);
    }
}

fn serve(shared: &Shared, stream: &TcpStream) {
    let mut reader = BufReader::new(stream);
    // It speaks no TLS, and says so by hanging up.
    if reader.fill_buf().is_ok_and(|bytes| bytes.first() == Some(&0x16)) {
        let _ = stream.shutdown(std::net::Shutdown::Both);
        return;
    }
    while let Some(mut request) = read_request(&mut reader) {
        {
            let mut requests = shared.requests.lock().unwrap();
            let same = |other: &&Request| other.host == request.host && other.path == request.path;
            request.nth = requests.iter().filter(same).count();
            requests.push(request.clone());
        }
        drop(shared.released.lock().unwrap());
        shared.change.notify_all();
        let file = {
            let files = shared.files.lock().unwrap();
            let at = [format!("{}{}", request.host, request.path), request.path.clone()];
            at.iter().find_map(|at| files.get(at)).cloned()
        };
        let script = shared.script.lock().unwrap().clone();
        let scripted = script.and_then(|script| script(&request, file.as_ref()));
        let answer = scripted.unwrap_or_else(|| match &file {
            Some(file) => right(&request, file),
            None => Answer::new(404, "not here"),
        });
        // A proxy that has a connection for each request says so.
        let close = request.header("connection") == Some("close");
        let answer = if close { answer.header("Connection", "close") } else { answer };
        if write_answer(shared, stream, &answer).is_err() {
            return;
        }
        match answer.ending {
            Ending::Whole | Ending::Held if !close => {}
            Ending::Whole | Ending::Held | Ending::Fin | Ending::Endless => {
                drop(stream.shutdown(std::net::Shutdown::Both))
            }
            Ending::Rst => {
                // As closing it would with SO_LINGER 0, were this the last descriptor of it.
                let _ = rustix::net::connect_unspec(stream);
            }
            Ending::Stall => wait(shared, false),
        }
        if close || !matches!(answer.ending, Ending::Whole | Ending::Held) {
            return;
        }
    }
}

/// Until somebody releases, or the server ends.
fn wait(shared: &Shared, for_release: bool) {
    let released = shared.released.lock().unwrap();
    let held = |(released, ended): &mut (usize, bool)| !(*ended || (for_release && *released > 0));
    drop(shared.change.wait_while(released, held).unwrap());
}

fn read_request(reader: &mut BufReader<&TcpStream>) -> Option<Request> {
    let mut line = String::new();
    reader.read_line(&mut line).ok().filter(|&count| count > 0)?;
    let path = line.split_whitespace().nth(1)?.to_owned();
    let mut headers = HashMap::new();
    loop {
        let mut line = String::new();
        reader.read_line(&mut line).ok().filter(|&count| count > 0)?;
        let Some((name, value)) = line.trim_end().split_once(": ") else { break };
        headers.insert(name.to_ascii_lowercase(), value.to_owned());
    }
    let host = headers.get("host").cloned().unwrap_or_default();
    Some(Request { host, path, headers, nth: 0 })
}

fn write_answer(shared: &Shared, mut stream: &TcpStream, answer: &Answer) -> std::io::Result<()> {
    let mut head = format!("HTTP/1.1 {} X\r\n", answer.status);
    for (name, value) in &answer.headers {
        head += &format!("{name}: {value}\r\n");
    }
    if let Some(length) = answer.length {
        head += &format!("Content-Length: {length}\r\n");
    }
    stream.write_all(format!("{head}\r\n").as_bytes())?;
    let send = |mut stream: &TcpStream, bytes: &[u8]| -> std::io::Result<()> {
        for piece in bytes.chunks(16 << 10) {
            stream.write_all(piece)?;
            shared.sent.fetch_add(piece.len() as u64, Ordering::SeqCst);
        }
        Ok(())
    };
    let (first, rest) = answer.body.split_at(answer.cut.min(answer.body.len()));
    send(stream, first)?;
    match answer.ending {
        Ending::Whole => send(stream, rest),
        Ending::Held => {
            wait(shared, true);
            send(stream, rest)
        }
        Ending::Endless => loop {
            send(stream, first)?;
        },
        Ending::Fin | Ending::Rst | Ending::Stall => Ok(()),
    }
}
