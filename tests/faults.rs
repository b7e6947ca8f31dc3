//! What becomes of a pull when the registry or the line fails: one table, printed and checked, of what the user sees, how many bytes
//! came for nothing, and how many requests it took.
//!
//! No harness: the table is printed also when all is well.

use std::collections::BTreeSet;
use std::path::Path;
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, SystemTime};

use keelblock::config::Config;
use keelblock::limits::Limits;
use keelblock::puller::registry::HostMetrics;
use keelblock::{Agent, ImageRequest, LayerEvent, Observer};
use keelblock_actors::error::chain;
use keelblock_actors::image::plan::LayerKey;
use keelblock_actors::messages::PulledImage;

mod support {
    pub(crate) mod faults;
}
use support::faults::{Act, Answer, Ending, FaultImage, FaultRegistry, MANIFEST, Request, What, whole};

/// Bytes of the file in the layer: a tar of it is a little longer.
const CONTENT: usize = 2 << 20;
/// Where most faults strike.
const HALF: usize = 1 << 20;

/// Numbers that look random, the same for the same seed (xorshift64*).
struct Dice(u64);

impl Dice {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }

    fn below(&mut self, limit: usize) -> usize {
        (self.next() % limit as u64) as usize
    }
}

/// An image whose layer is a tar of one file of noise.
fn image(content: usize, seed: u64) -> FaultImage {
    let mut dice = Dice(seed | 1);
    let noise: Vec<u8> =
        std::iter::repeat_with(|| dice.next().to_le_bytes()).flatten().take(content).collect();
    let mut builder = tar::Builder::new(Vec::new());
    let mut header = tar::Header::new_ustar();
    header.set_size(noise.len() as u64);
    header.set_mode(0o644);
    builder.append_data(&mut header, "file", &*noise).unwrap();
    FaultImage::new(builder.into_inner().unwrap())
}

fn limits() -> Limits {
    Limits {
        retries_max: 3,
        retry_pause: Duration::from_millis(1),
        retry_pause_max: Duration::from_millis(5),
        fetch_ranges_max: 1,
        ..Limits::default()
    }
}

/// What was told of a pull.
#[derive(Default)]
struct Told {
    again: AtomicU64,
    fetched: AtomicU64,
}

impl Observer for Told {
    fn layer(&self, _: &LayerKey, event: LayerEvent) {
        match event {
            LayerEvent::Again { bytes } => drop(self.again.fetch_add(bytes, Ordering::SeqCst)),
            LayerEvent::Fetched { bytes } => drop(self.fetched.fetch_add(bytes, Ordering::SeqCst)),
            _ => {}
        }
    }
}

/// A pull by an agent of its own.
struct Pull {
    pulled: Result<PulledImage, String>,
    metrics: HostMetrics,
    /// Bytes that came for nothing, and those that did not.
    again: u64,
    fetched: u64,
}

fn pull(home: &Path, name: &str, limits: Limits) -> Pull {
    let config = Config { work_dir: home.to_owned(), limits, ..Config::default() };
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
    let told = Arc::new(Told::default());
    let (pulled, metrics) = runtime.block_on(async {
        let log = slog::Logger::root(slog::Discard, slog::o!());
        let agent = Agent::start(config, told.clone(), log).await.unwrap();
        let pulled = agent.pull(ImageRequest::cached(name.parse().unwrap())).await;
        let metrics = agent.registry_metrics().into_values().next().unwrap_or_default();
        agent.shutdown().await;
        (pulled.map_err(|error| chain(&*error)), metrics)
    });
    let of = |count: &AtomicU64| count.load(Ordering::SeqCst);
    Pull { pulled, metrics, again: of(&told.again), fetched: of(&told.fetched) }
}

type Script = Box<dyn Fn(&Request, &FaultImage) -> Option<Act> + Send + Sync>;

/// One row of the table.
struct Case {
    fault: &'static str,
    script: Script,
    /// What the error must hold, `SIZE` being the bytes of the layer and `HOST` the registry; `None` = the pull succeeds.
    error: Option<&'static str>,
    /// Bytes that come for nothing.
    again: Again,
    /// Requests for the layer.
    requests: usize,
    limits: Limits,
}

#[derive(Clone, Copy)]
enum Again {
    Exactly(usize),
    /// All of the layer.
    All,
}

/// A fault of the answers to the requests for the layer.
fn layer(
    fault: &'static str,
    script: impl Fn(&Request, &FaultImage) -> Option<Act> + Send + Sync + 'static,
    error: Option<&'static str>,
    again: usize,
    requests: usize,
) -> Case {
    let script = move |request: &Request, image: &FaultImage| {
        (request.what == What::Layer).then(|| script(request, image))?
    };
    let (again, limits) = (Again::Exactly(again), limits());
    Case { fault, script: Box::new(script), error, again, requests, limits }
}

/// A fault of the first answer only.
fn once(answer: impl Fn(&Request, &FaultImage) -> Act) -> impl Fn(&Request, &FaultImage) -> Option<Act> {
    move |request, image| (request.nth == 0).then(|| answer(request, image))
}

/// The first answer is cut in the middle; what comes then is for the others to say.
fn then(answer: impl Fn(&Request, &FaultImage) -> Act) -> impl Fn(&Request, &FaultImage) -> Option<Act> {
    move |request, image| match request.nth {
        0 => Some(cut(request, image, HALF, Ending::Fin)),
        1 => Some(answer(request, image)),
        _ => None,
    }
}

fn cut(request: &Request, image: &FaultImage, after: usize, ending: Ending) -> Act {
    Act::Answer(whole(request, &image.layer).cut(after, ending))
}

/// As a server that has never heard of ranges.
fn without_ranges(image: &FaultImage) -> Answer {
    Answer::new(200, image.layer.to_vec())
}

#[allow(clippy::too_many_lines)] // A table.
fn cases() -> Vec<Case> {
    let impatient = || Limits { stall_timeout: Duration::from_secs(1), ..limits() };
    vec![
        layer("closed after 1 MiB", once(|r, i| cut(r, i, HALF, Ending::Fin)), None, 0, 2),
        layer("reset after 1 MiB", once(|r, i| cut(r, i, HALF, Ending::Rst)), None, 0, 2),
        layer("closed before the head", once(|_, _| Act::Raw(Vec::new())), None, 0, 2),
        layer("closed in the head", once(|_, _| Act::Raw(b"HTTP/1.1 200 O".to_vec())), None, 0, 2),
        layer(
            "always closed before the head",
            |_, _| Some(Act::Raw(Vec::new())),
            Some("broke off: cannot get blob DIGEST of app from registry HOST"),
            0,
            4,
        ),
        layer(
            "always closed at once, after 1 MiB",
            |r, i| Some(cut(r, i, if r.nth == 0 { HALF } else { 0 }, Ending::Fin)),
            Some(
                "broke off after 1048576 of SIZE bytes; tried again 3 times in all, at last: cannot get blob",
            ),
            0,
            4,
        ),
        layer(
            "chunked and ended too early",
            once(|_, image| {
                let mut bytes = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n100000\r\n".to_vec();
                bytes.extend_from_slice(&image.layer[..HALF]);
                bytes.extend_from_slice(b"\r\n0\r\n\r\n");
                Act::Raw(bytes)
            }),
            None,
            0,
            2,
        ),
        layer(
            "garbage amid chunks",
            once(|_, image| {
                let mut bytes = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n100000\r\n".to_vec();
                bytes.extend_from_slice(&image.layer[..HALF]);
                bytes.extend_from_slice(b"\r\nno size\r\n");
                Act::Raw(bytes)
            }),
            None,
            0,
            2,
        ),
        layer(
            "a length that is too small",
            |_, image| Some(Act::Answer(Answer::new(200, &image.layer[..HALF]))),
            Some("registry HOST gives 1048576 bytes for blob DIGEST of app, but its manifest says SIZE"),
            0,
            1,
        ),
        layer(
            "longer than it says, chunked",
            |_, image| {
                let mut answer =
                    without_ranges(image).header("Connection", "close").cut(usize::MAX, Ending::Fin);
                answer.length = None;
                answer.body.extend_from_slice(&[0; 10]);
                Some(Act::Answer(answer))
            },
            Some("bytes for blob DIGEST of app, but its manifest says SIZE; it is corrupt or lies"),
            0,
            1,
        ),
        Case {
            limits: impatient(),
            ..layer("stall after 1 MiB", once(|r, i| cut(r, i, HALF, Ending::Stall)), None, 0, 2)
        },
        Case {
            limits: Limits { retries_max: 1, ..impatient() },
            ..layer(
                "stall for ever",
                |r, i| Some(cut(r, i, if r.nth == 0 { HALF } else { 0 }, Ending::Stall)),
                Some(
                    "after 1048576 of SIZE bytes; tried again 1 times in all, at last: cannot get blob DIGEST of app from registry HOST: HOST sent nothing for 1 s (--stall_timeout)",
                ),
                0,
                2,
            )
        },
        Case { limits: impatient(), ..layer("no head for too long", once(|_, _| Act::Silent), None, 0, 2) },
        layer(
            "drip",
            |r, i| Some(Act::Answer(whole(r, &i.layer).pace(Duration::from_micros(500)))),
            None,
            0,
            1,
        ),
        layer(
            "503, then well",
            once(|_, _| Act::Answer(Answer::error(503, "UNAVAILABLE", "busy"))),
            None,
            0,
            2,
        ),
        layer(
            "503 for ever",
            |_, _| Some(Act::Answer(Answer::error(503, "UNAVAILABLE", "busy"))),
            Some(
                "registry HOST answers HTTP 503 when asked for blob DIGEST of app; it says \"UNAVAILABLE: busy\"",
            ),
            0,
            4,
        ),
        layer(
            "503 when it is to go on",
            then(|_, _| Act::Answer(Answer::error(503, "UNAVAILABLE", "busy"))),
            None,
            0,
            3,
        ),
        layer(
            "429 with Retry-After, then well",
            once(|_, _| Act::Answer(Answer::error(429, "TOOMANYREQUESTS", "slow").header("Retry-After", 0))),
            None,
            0,
            2,
        ),
        layer(
            "429 that asks for an hour",
            |_, _| {
                Some(Act::Answer(Answer::error(429, "TOOMANYREQUESTS", "slow").header("Retry-After", 3600)))
            },
            Some(
                "registry HOST limits requests and refuses blob DIGEST of app for now (HTTP 429); it says \"TOOMANYREQUESTS: slow\"; asked without credentials, try again in 3600 s",
            ),
            0,
            1,
        ),
        layer(
            "gone when it is to go on",
            |r, i| match r.nth {
                0 => Some(cut(r, i, HALF, Ending::Fin)),
                _ => Some(Act::Answer(Answer::error(404, "BLOB_UNKNOWN", "gone"))),
            },
            Some(
                "broke off after 1048576 of SIZE bytes; tried again 1 times in all, at last: registry HOST has no blob DIGEST of app (HTTP 404); it says \"BLOB_UNKNOWN: gone\"",
            ),
            0,
            2,
        ),
        token_that_ends(),
        flipped_once(),
        Case {
            again: Again::All,
            ..layer(
                "a bit flipped, always",
                |_, image| {
                    let mut bytes = image.layer.to_vec();
                    bytes[HALF] ^= 1;
                    Some(Act::Answer(Answer::new(200, bytes)))
                },
                Some("but its manifest names DIGEST; the source is corrupt or lies"),
                0,
                2,
            )
        },
        layer("ranges ignored: 200", then(|_, i| Act::Answer(without_ranges(i))), None, HALF, 2),
        layer("ranges refused: 416", then(|_, _| Act::Answer(Answer::new(416, ""))), None, 0, 3).again_half(),
        layer(
            "a range from elsewhere, said so",
            then(|_, image| {
                let (first, last) = (HALF + 1, image.layer.len() - 1);
                let total = image.layer.len();
                Act::Answer(
                    Answer::new(206, &image.layer[first..])
                        .header("Content-Range", format!("bytes {first}-{last}/{total}")),
                )
            }),
            None,
            0,
            3,
        )
        .again_half(),
        layer(
            "a range without Content-Range",
            then(|_, image| Act::Answer(Answer::new(206, &image.layer[HALF..]))),
            None,
            0,
            3,
        )
        .again_half(),
        layer(
            "a range of another total",
            |request, image| match request.nth {
                0 => Some(cut(request, image, HALF, Ending::Fin)),
                _ => Some(Act::Answer(
                    Answer::new(206, &image.layer[HALF..])
                        .header("Content-Range", "bytes 1048576-1048577/1048578"),
                )),
            },
            Some("registry HOST gives 1048578 bytes for blob DIGEST of app, but its manifest says SIZE"),
            0,
            3,
        ),
        Case {
            again: Again::All,
            ..layer(
                "a range from elsewhere, not said",
                then(|request, image| {
                    let mut answer = whole(request, &image.layer);
                    answer.body = image.layer[..answer.body.len()].to_vec();
                    Act::Answer(answer)
                }),
                None,
                0,
                3,
            )
        },
        layer(
            "a range cut short by the server",
            |request, image| {
                let (first, _) = request.range.unwrap_or_default();
                let ranged = Request { range: Some((first, Some(first + HALF - 1))), ..request.clone() };
                let cut = || cut(request, image, HALF, Ending::Fin);
                Some(if request.nth == 0 { cut() } else { Act::Answer(whole(&ranged, &image.layer)) })
            },
            None,
            0,
            3,
        ),
        layer(
            "Content-Encoding, another length",
            |_, _| Some(Act::Answer(Answer::new(200, "short").header("Content-Encoding", "gzip"))),
            Some(
                "registry HOST sends blob DIGEST of app with Content-Encoding \"gzip\", which was not asked for",
            ),
            0,
            2,
        ),
        layer(
            "Content-Encoding, but sent as it is",
            |_, image| Some(Act::Answer(without_ranges(image).header("Content-Encoding", "gzip"))),
            None,
            0,
            1,
        ),
        layer(
            "redirects in a circle",
            |request, _| Some(Act::Answer(Answer::new(307, "").header("Location", &request.path))),
            Some("HOST redirects in a circle"),
            0,
            1,
        ),
        layer(
            "not HTTP",
            |_, _| Some(Act::Raw(b"220 mail ready\r\n".to_vec())),
            Some("HOST answers with something that is not HTTP"),
            0,
            1,
        ),
        Case {
            fault: "tag moved during the pull",
            // The layer is cut, and from then on the tag means something else.
            script: Box::new(|request, image| match request.what {
                What::Tag if request.nth > 0 => {
                    Some(Act::Answer(Answer::new(200, "{}").header("Content-Type", MANIFEST)))
                }
                What::Layer if request.nth == 0 => Some(cut(request, image, HALF, Ending::Fin)),
                _ => None,
            }),
            error: None,
            again: Again::Exactly(0),
            requests: 2,
            limits: limits(),
        },
    ]
}

impl Case {
    fn again_half(self) -> Self {
        Self { again: Again::Exactly(HALF), ..self }
    }
}

/// The token that was given ends in the middle of the layer.
fn token_that_ends() -> Case {
    let script = |request: &Request, image: &FaultImage| {
        if request.path.starts_with("/token") {
            let token = format!(r#"{{"token":"t{}"}}"#, request.nth);
            return Some(Act::Answer(Answer::new(200, token)));
        }
        let shown = request.authorization.as_deref();
        let valid = match (request.what, request.range) {
            (What::Layer, Some(_)) => shown == Some("Bearer t1"),
            _ => shown == Some("Bearer t0"),
        };
        if !valid {
            let challenge = r#"Bearer realm="/token",service="s",scope="repository:app:pull""#;
            return Some(Act::Answer(
                Answer::error(401, "UNAUTHORIZED", "who?").header("WWW-Authenticate", challenge),
            ));
        }
        (request.what == What::Layer && request.nth == 0).then(|| cut(request, image, HALF, Ending::Fin))
    };
    Case {
        fault: "the token ends in the middle",
        script: Box::new(script),
        error: None,
        again: Again::Exactly(0),
        requests: 3,
        limits: limits(),
    }
}

fn flipped_once() -> Case {
    Case {
        again: Again::All,
        ..layer(
            "a bit flipped on the line, once",
            once(|_, image| {
                let mut bytes = image.layer.to_vec();
                bytes[HALF] ^= 1;
                Act::Answer(Answer::new(200, bytes))
            }),
            None,
            0,
            2,
        )
    }
}

/// Runs a case; the line of the table, and what is wrong with it.
fn run(case: Case, image: &FaultImage) -> (String, Vec<String>) {
    let home = tempfile::tempdir().unwrap();
    let Case { fault, script, error, again, requests, limits } = case;
    // Realms are whole addresses, and the registry's is known once it runs.
    let address = Arc::new(std::sync::OnceLock::<String>::new());
    let known = address.clone();
    let registry = FaultRegistry::start(image.clone(), move |request, image| {
        let act = script(request, image)?;
        Some(match act {
            Act::Answer(mut answer) => {
                let host = known.get().map_or("", String::as_str);
                for (name, value) in &mut answer.headers {
                    if name == "WWW-Authenticate" {
                        *value = value.replace("realm=\"/", &format!("realm=\"http://{host}/"));
                    }
                }
                Act::Answer(answer)
            }
            act => act,
        })
    });
    let host = registry.host();
    address.set(host.clone()).unwrap();
    let Pull { pulled, again: shown, .. } = pull(home.path(), &format!("{host}/app:1"), limits);
    let mut wrong = Vec::new();
    let size = image.layer.len();
    let expected_again = match again {
        Again::Exactly(bytes) => bytes,
        Again::All => size,
    } as u64;
    let seen = match &pulled {
        Ok(pulled) => {
            if pulled.bytes_fetched != size as u64 {
                wrong.push(format!("{} bytes fetched of {size}", pulled.bytes_fetched));
            }
            if pulled.transfer.bytes_again != shown {
                wrong.push(format!("{shown} bytes again were told of {:?}", pulled.transfer));
            }
            "pulled".to_owned()
        }
        Err(error) => error
            .replace(&host, "HOST")
            .replace(&image.layer_digest.to_string(), "DIGEST")
            .replace(&size.to_string(), "SIZE"),
    };
    match (error, &pulled) {
        (None, Ok(_)) => {}
        (Some(text), Err(_)) if seen.contains(text) => {}
        (expected, _) => wrong.push(format!("the user sees\n      {seen}\n    not\n      {expected:?}")),
    }
    if shown != expected_again {
        wrong.push(format!("{shown} bytes again, not {expected_again}"));
    }
    if registry.of_layer() != requests {
        wrong.push(format!("{} requests for the layer, not {requests}", registry.of_layer()));
    }
    let line = format!("{fault:<38} {shown:>9} {:>9}  {seen}", registry.of_layer());
    (line, wrong)
}

/// A pull that is cut ten times at random places ends exact, and next to nothing came twice.
fn cut_ten_times(seed: u64) -> (String, Vec<String>) {
    let image = image(8 << 20, seed);
    let size = image.layer.len();
    let mut dice = Dice(seed | 1);
    let mut places = BTreeSet::new();
    while places.len() < 10 {
        places.insert(1 + dice.below(size - 1));
    }
    let shown = format!("{places:?}");
    let endings: Vec<_> =
        (0..10).map(|_| if dice.below(2) == 0 { Ending::Fin } else { Ending::Rst }).collect();
    let registry = FaultRegistry::start(image, move |request, image| {
        if request.what != What::Layer {
            return None;
        }
        let first = request.range.map_or(0, |(first, _)| first);
        // A reset may lose what was on its way, so that the same place would come again: each cuts once.
        let place = *places.iter().nth(request.nth)?;
        let ending = endings[request.nth];
        Some(cut(request, image, place.saturating_sub(first), ending))
    });
    let home = tempfile::tempdir().unwrap();
    let limits = Limits { retries_max: 10, ..limits() };
    let Pull { pulled, metrics, fetched, .. } =
        pull(home.path(), &format!("{}/app:1", registry.host()), limits);
    let mut wrong = Vec::new();
    match pulled {
        Err(error) => wrong.push(error),
        Ok(pulled) => {
            // Its digest was verified, or it would not be here.
            if pulled.transfer.bytes_again * 100 >= size as u64 {
                wrong.push(format!("{:?}", pulled.transfer));
            }
            if [pulled.bytes_fetched, metrics.bytes, fetched] != [size as u64; 3] {
                wrong.push(format!("{pulled:?}, {metrics:?}, {fetched} bytes told, of {size}"));
            }
        }
    }
    if registry.of_layer() != 11 {
        wrong.push(format!("{} requests, not 11", registry.of_layer()));
    }
    let line = format!(
        "cut ten times at random (seed {seed}): resumed {}, bytes again {}, requests {}, places {shown}",
        metrics.resumed,
        metrics.bytes_again,
        registry.of_layer()
    );
    (line, wrong)
}

/// A registry that slows each connection down is asked for ranges over several.
fn slow_connections(ranges_refused: bool) -> (String, Vec<String>) {
    const RANGE: usize = 64 << 10;
    let image = image(CONTENT, 7);
    let size = image.layer.len();
    let registry = FaultRegistry::start(image, move |request, image| {
        if request.what != What::Layer {
            return None;
        }
        let answer = if ranges_refused && request.range.is_some() {
            without_ranges(image)
        } else {
            whole(request, &image.layer)
        };
        Some(Act::Answer(answer.pace(Duration::from_millis(4))))
    });
    let home = tempfile::tempdir().unwrap();
    let limits = Limits {
        fetch_ranges_min: 1 << 20,
        fetch_ranges_max: 4,
        fetch_range_bytes: RANGE as u64,
        ..limits()
    };
    let Pull { pulled, .. } = pull(home.path(), &format!("{}/app:1", registry.host()), limits);
    let sent: Vec<_> = registry.sent().into_iter().filter(|&bytes| bytes > 0).collect();
    let mut wrong = Vec::new();
    match pulled {
        Err(error) => wrong.push(error),
        Ok(pulled) if ranges_refused => {
            if pulled.bytes_fetched != size as u64 {
                wrong.push(format!("{} bytes of {size}", pulled.bytes_fetched));
            }
        }
        Ok(pulled) => {
            // The first stream passed on the rest to ranges, none of which came twice.
            if pulled.transfer.ranges < 8 || pulled.transfer.bytes_again != 0 {
                wrong.push(format!("{:?}", pulled.transfer));
            }
            if pulled.bytes_fetched != size as u64 {
                wrong.push(format!("{} bytes of {size}", pulled.bytes_fetched));
            }
            // The one that begins, and two to four for ranges: so many at once. There may be more one after the other, when a
            // range begins while the connection of the one before it is on its way back to the pool.
            if sent.len() < 2 || registry.at_once() > 5 || sent.len() >= registry.of_layer() {
                wrong.push(format!("{} connections, {} at once", sent.len(), registry.at_once()));
            }
            // No connection brought it all.
            if sent.iter().any(|&bytes| bytes * 10 > size as u64 * 8) {
                wrong.push(format!("bytes by connection: {sent:?} of {size}"));
            }
        }
    }
    let title = if ranges_refused { "slow connections, ranges refused" } else { "slow connections" };
    let line = format!("{title}: {} requests, bytes by connection {sent:?}", registry.of_layer());
    (line, wrong)
}

fn main() -> ExitCode {
    let only: Vec<String> = std::env::args().skip(1).filter(|text| !text.starts_with('-')).collect();
    let wanted = |name: &str| only.is_empty() || only.iter().any(|text| name.contains(text.as_str()));
    let mut failures = 0;
    let mut tell = |(line, wrong): (String, Vec<String>)| {
        println!("{line}");
        for text in wrong {
            failures += 1;
            println!("  WRONG: {text}");
        }
    };
    println!("{:<38} {:>9} {:>9}  what the user sees", "fault", "again", "requests");
    let one = image(CONTENT, 1);
    for case in cases() {
        if wanted(case.fault) {
            tell(run(case, &one));
        }
    }
    if wanted("random") {
        let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        let given = std::env::var("FAULTS_SEED").ok().and_then(|text| text.parse().ok());
        tell(cut_ten_times(given.unwrap_or(now.as_micros() as u64)));
    }
    if wanted("slow") {
        tell(slow_connections(false));
        tell(slow_connections(true));
    }
    println!("{failures} of the above are wrong");
    if failures == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}
