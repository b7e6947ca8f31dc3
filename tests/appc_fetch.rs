//! ACIs are fetched whatever their server does, once for all who want the same, and not again while they are the same. Requests
//! and bytes are counted; which places are asked is seen in `appc_discovery.rs`.

use std::collections::HashSet;
use std::path::Path;
use std::time::Duration;

use keelblock::provider::appc::ports::{AciFetchError, AciSource, FetchedAci};
use keelblock_actors::error::chain;
use keelblock_actors::progress::LayerEvent;

mod support {
    pub(crate) mod acis;
    pub(crate) mod appc;
    pub(crate) mod registry;
    pub(crate) mod servers;
}
use support::acis::{AciServer, Answer, Ending, Request, Served, right};
use support::appc::{Rig, bytes, named, signed, sized};

const PATH: &str = "/e.com/app-1-linux-amd64.aci";
const SIGNATURE: &str = "/e.com/app-1-linux-amd64.aci.asc";
const NAME: &str = "e.com/app:1";
/// What most of the archives here have.
const SIZE: usize = 3 << 20;

fn rig(server: &AciServer) -> Rig {
    rig_with(server, 0)
}

/// With so many retries.
fn rig_with(server: &AciServer, retries: usize) -> Rig {
    Rig::new(&format!("http://{}/", server.host()), |settings| settings.limits.retries_max = retries)
}

/// One that serves an archive of [`SIZE`] bytes.
fn serving() -> AciServer {
    let server = AciServer::start();
    server.put(PATH, bytes(SIZE));
    server
}

/// The first answers as these are; the others are right.
fn at_first(
    server: &AciServer,
    answers: impl Fn(&Request, &Served) -> Option<Answer> + Send + Sync + 'static,
) {
    server.script(move |request, file| file.and_then(|file| answers(request, file)));
}

fn metrics(rig: &Rig, server: &AciServer) -> keelblock::puller::registry::HostMetrics {
    rig.source.metrics()[&server.host()].clone()
}

// ---- once, and not again ------------------------------------------------------------------------------------------

#[test]
fn what_is_still_the_same_is_not_fetched_again_and_what_is_not_gets_a_name_of_its_own() {
    let server = serving();
    server.put(SIGNATURE, "first");
    let rig = rig(&server);
    let (first, _) = rig.fetched(signed(NAME));
    assert_eq!((first.bytes_fetched, server.requests().len()), (SIZE as u64 + 5, 3));
    let (again, got) = rig.fetched(signed(NAME));
    assert_eq!((again.bytes_fetched, &again.path, got), (0, &first.path, bytes(SIZE)));
    let is_start = |event: &&LayerEvent| matches!(event, LayerEvent::Started { .. });
    assert_eq!(
        rig.told.0.lock().unwrap().iter().filter(is_start).count(),
        1,
        "what is not fetched is not told of"
    );
    assert_eq!(again.signature, first.signature);
    assert_eq!(server.requests().len(), 5);
    // Another source, as in another process.
    let other = Rig::on(&rig.spool, &format!("http://{}", server.host()), |_| {});
    assert_eq!(other.fetched(named(NAME)).0.bytes_fetched, 0);

    server.put(PATH, bytes(SIZE + 1));
    server.put(SIGNATURE, "second");
    let (second, got) = rig.fetched(signed(NAME));
    assert_eq!((second.bytes_fetched, got), (SIZE as u64 + 7, bytes(SIZE + 1)));
    assert_eq!(second.signature.unwrap().bytes, b"second");
    assert_ne!(second.path, first.path);
    assert_eq!(std::fs::read(&first.path).unwrap(), bytes(SIZE), "who resolved it may still read it");
    assert_eq!(rig.spooled().len(), 3, "two archives, and what is known of the last: {:?}", rig.spooled());
    server.remove(SIGNATURE);
    assert_eq!(rig.fetched(signed(NAME)).0.signature, None);
}

#[test]
fn a_server_that_knows_no_conditions_is_believed_by_its_tag_and_one_without_tags_is_asked_for_all() {
    let server = serving();
    at_first(&server, |_, file| {
        let answer = Answer::new(200, file.bytes.as_slice());
        Some(file.etag.iter().fold(answer, |answer, etag| answer.header("ETag", etag)))
    });
    let rig = rig(&server);
    let (first, _) = rig.fetched(named(NAME));
    assert_eq!(rig.fetched(named(NAME)).0.path, first.path);
    server.put_as(PATH, bytes(SIZE), None);
    for _ in 0..2 {
        let (fetched, got) = rig.fetched(named(NAME));
        assert_eq!((fetched.bytes_fetched, got), (SIZE as u64, bytes(SIZE)));
    }
    assert_eq!(server.requests().len(), 4);
}

#[test]
fn a_date_does_where_there_is_no_tag() {
    let server = serving();
    at_first(&server, |request, file| {
        let (changed, now) = ("Mon, 02 Jan 2023 10:00:00 GMT", "Mon, 02 Jan 2023 10:02:00 GMT");
        let dated = |answer: Answer| answer.header("Last-Modified", changed).header("Date", now);
        Some(match (request.header("if-modified-since"), request.header("if-range")) {
            (Some(since), _) if since == changed => dated(Answer { length: None, ..Answer::new(304, "") }),
            (_, Some(of)) if of == changed => {
                dated(right(request, &Served { etag: Some(changed.to_owned()), ..file.clone() }))
            }
            _ => dated(Answer::new(200, file.bytes.as_slice())).cut(1 << 20, Ending::Fin),
        })
    });
    let rig = rig_with(&server, 1);
    assert!(rig.fetched(named(NAME)).1 == bytes(SIZE));
    assert_eq!((server.requests().len(), metrics(&rig, &server).resumed), (2, 1));
    assert_eq!(rig.fetched(named(NAME)).0.bytes_fetched, 0);
    assert_eq!(server.requests().len(), 3);
    // A server that knows no conditions.
    at_first(&server, |_, file| {
        let changed = "Mon, 02 Jan 2023 10:00:00 GMT";
        Some(Answer::new(200, file.bytes.as_slice()).header("Last-Modified", changed))
    });
    assert_eq!(rig.fetched(named(NAME)).0.bytes_fetched, 0);
}

#[test]
fn all_who_want_the_same_at_once_share_one_fetch() {
    let server = serving();
    at_first(&server, |request, file| {
        (request.nth == 0).then(|| right(request, file).cut(1000, Ending::Held))
    });
    let rig = rig(&server);
    let all: Vec<_> = (0..50).map(|_| rig.source.fetch(named(NAME))).collect();
    // Somebody on the same spool, as another process is, waits for it too.
    let other = Rig::on(&rig.spool, &format!("http://{}", server.host()), |_| {});
    let others: Vec<_> = [NAME, NAME].map(|name| other.source.fetch(signed(name))).into();
    server.wait_for(1);
    let one = other.runtime.spawn(other.source.fetch(named(NAME)));
    server.release();
    let fetched = rig.runtime.block_on(futures_util::future::join_all(all));
    let paths: HashSet<_> = fetched.into_iter().map(|fetched| fetched.unwrap().path).collect();
    assert_eq!(paths.len(), 1);
    let fetched = other.runtime.block_on(one).unwrap().unwrap();
    assert!(paths.contains(&fetched.path) && fetched.bytes_fetched == 0);
    for fetched in other.runtime.block_on(futures_util::future::join_all(others)) {
        assert!(paths.contains(&fetched.unwrap().path));
    }
    // The archive once, whole; for the signature there was one question of two who asked at once.
    let wholes =
        server.requests().iter().filter(|r| r.path == PATH && r.header("if-none-match").is_none()).count();
    let signatures = server.requests().iter().filter(|r| r.path == SIGNATURE).count();
    assert_eq!((wholes, signatures), (1, 1), "{:?}", server.asked());
}

#[test]
fn whoever_waits_for_another_process_need_not_ask() {
    let server = serving();
    at_first(&server, |request, file| {
        (request.nth == 0).then(|| right(request, file).cut(1000, Ending::Held))
    });
    let rig = rig(&server);
    let first = rig.runtime.spawn(rig.source.fetch(named(NAME)));
    server.wait_for(1);
    let other = Rig::on(&rig.spool, &format!("http://{}", server.host()), |_| {});
    let second = other.source.fetch(named(NAME));
    // There is one thread, and it takes tasks in their order: when this one is done, the second has begun to wait.
    other.runtime.block_on(other.runtime.spawn(async {})).unwrap();
    server.release();
    let first = rig.runtime.block_on(first).unwrap().unwrap();
    let second = other.runtime.block_on(second).unwrap();
    assert_eq!((first.path, server.requests().len()), (second.path, 1));
}

#[test]
fn the_last_to_leave_ends_the_fetch_and_nothing_is_left() {
    let server = serving();
    at_first(&server, |request, file| {
        (request.nth == 0).then(|| right(request, file).cut(1000, Ending::Held))
    });
    let rig = rig(&server);
    let (one, other) = (rig.source.fetch(named(NAME)), rig.source.fetch(named(NAME)));
    server.wait_for(1);
    drop(one);
    assert_eq!(rig.spooled().len(), 1);
    drop(other);
    // It ends when the runtime gets to it; the next fetch waits for that.
    server.release();
    let (fetched, got) = rig.fetched(named(NAME));
    assert_eq!((fetched.bytes_fetched, got), (SIZE as u64, bytes(SIZE)));
    assert_eq!(server.requests().len(), 2);
    assert_eq!(rig.spooled().len(), 2, "{:?}", rig.spooled());
}

#[test]
fn one_of_two_who_leaves_does_not_end_it() {
    let server = serving();
    at_first(&server, |request, file| {
        (request.nth == 0).then(|| right(request, file).cut(1000, Ending::Held))
    });
    let rig = rig(&server);
    let (one, other) = (rig.source.fetch(named(NAME)), rig.source.fetch(named(NAME)));
    server.wait_for(1);
    drop(one);
    server.release();
    rig.runtime.block_on(other).unwrap();
    assert_eq!(server.requests().len(), 1);
}

#[test]
fn what_a_dead_process_left_is_taken_over_and_what_was_torn_is_not_used() {
    let server = serving();
    let rig = rig(&server);
    rig.fetched(named(NAME));
    let known = rig.spooled().into_iter().find(|name| name.ends_with(".json")).unwrap();
    let key = known.split('.').next().unwrap();
    std::fs::write(rig.spool.join(format!("{key}.part")), bytes(5 << 20)).unwrap();
    std::fs::write(rig.spool.join(&known), "{\"file\": \"x").unwrap();
    let (fetched, got) = rig.fetched(named(NAME));
    assert_eq!((fetched.bytes_fetched, got), (SIZE as u64, bytes(SIZE)));
    // An archive that is not as long as it was.
    std::fs::write(&fetched.path, "short").unwrap();
    let (fetched, got) = rig.fetched(named(NAME));
    assert_eq!((fetched.bytes_fetched, got), (SIZE as u64, bytes(SIZE)));
}

#[test]
fn a_pair_that_is_replaced_between_archive_and_signature_is_fetched_again_once() {
    let server = serving();
    server.put(SIGNATURE, "of the first");
    let (first, second) = (bytes(1000), bytes(2000));
    let theirs = (first.clone(), second.clone());
    // The second pair is there once the first archive was asked for.
    server.script(move |request, _| {
        let (archive, signature, tag) = match request.path == PATH && request.nth == 0 {
            true => (&theirs.0, "", "\"1\""),
            false => (&theirs.1, "of the second", "\"2\""),
        };
        let bytes = if request.path == PATH { archive.clone() } else { signature.as_bytes().to_vec() };
        let served = Served { bytes: bytes.into(), etag: Some(tag.to_owned()) };
        Some(right(request, &served))
    });
    let rig = rig(&server);
    let (fetched, got) = rig.fetched(signed(NAME));
    assert_eq!((got, fetched.signature.unwrap().bytes), (second, b"of the second".to_vec()));
    assert_eq!(server.requests().len(), 3);
    assert!(rig.log().contains("an archive was replaced while its signature was fetched"));
}

/// The first and last thing that was told of an archive; its bytes since it last began; how often it was tried again.
fn progress(rig: &Rig) -> (Option<LayerEvent>, Option<LayerEvent>, u64, usize) {
    let told = rig.told.0.lock().unwrap();
    let (mut bytes, mut retries) = (0, 0);
    for event in told.iter() {
        match event {
            LayerEvent::Started { .. } => bytes = 0,
            LayerEvent::Fetched { bytes: more } => bytes += more,
            LayerEvent::Retrying { .. } => retries += 1,
            _ => {}
        }
    }
    (told.first().copied(), told.last().copied(), bytes, retries)
}

// ---- faults -------------------------------------------------------------------------------------------------------

#[test]
fn what_breaks_off_goes_on_where_it_was() {
    for ending in [Ending::Rst, Ending::Fin, Ending::Stall] {
        let server = serving();
        at_first(&server, move |request, file| {
            (request.nth < 2).then(|| {
                let answer = right(request, file);
                answer.cut(1 << 20, ending)
            })
        });
        let rig = Rig::new(&format!("http://{}/", server.host()), |settings| {
            // A reset may come before much has.
            settings.limits.retries_max = 2;
            if ending == Ending::Stall {
                settings.limits.stall_timeout = Duration::from_secs(1);
            }
        });
        let (fetched, got) = rig.fetched(named(NAME));
        assert!(got == bytes(SIZE), "{ending:?}");
        let requests = server.requests();
        assert_eq!(requests.len(), 3, "{ending:?}");
        assert!(requests[0].header("range").is_none());
        for request in &requests[1..] {
            assert_eq!(request.header("if-range"), requests[1].header("if-range"));
            assert!(
                request.header("if-range").unwrap().starts_with('"') && request.header("range").is_some()
            );
        }
        // Whoever looks on is told of each byte, and of each new attempt.
        let (first, last, bytes, retries) = progress(&rig);
        assert_eq!(first, Some(LayerEvent::Started { total: Some(SIZE as u64) }));
        assert_eq!((last, bytes, retries), (Some(LayerEvent::Committed), SIZE as u64, 2), "{ending:?}");
        // None comes twice.
        assert_eq!(fetched.bytes_fetched, SIZE as u64);
        assert_eq!((metrics(&rig, &server).resumed, metrics(&rig, &server).bytes_again), (2, 0));
    }
}

#[test]
fn without_a_strong_tag_or_ranges_it_begins_anew() {
    let weak = |request: &Request, file: &Served| {
        let file = Served { etag: Some("W/\"1\"".to_owned()), ..file.clone() };
        let answer = right(request, &file);
        Some(if request.nth == 0 { answer.cut(1 << 20, Ending::Fin) } else { answer })
    };
    let ignored = |request: &Request, file: &Served| {
        let answer = Answer::new(200, file.bytes.as_slice()).header("ETag", "\"1\"");
        Some(if request.nth == 0 { answer.cut(1 << 20, Ending::Fin) } else { answer })
    };
    let nonsense = |request: &Request, file: &Served| {
        let answer = right(request, file);
        match request.nth {
            0 => Some(answer.cut(1 << 20, Ending::Fin)),
            1 => Some(
                Answer::new(206, &file.bytes[..100]).header("Content-Range", format!("bytes 0-99/{SIZE}")),
            ),
            _ => None,
        }
    };
    type Script = fn(&Request, &Served) -> Option<Answer>;
    for (script, requests) in [(weak as Script, 2), (ignored as Script, 2), (nonsense as Script, 3)] {
        let server = serving();
        at_first(&server, script);
        let rig = rig_with(&server, 2);
        let (_, got) = rig.fetched(named(NAME));
        assert!(got == bytes(SIZE));
        assert_eq!(server.requests().len(), requests);
        assert_eq!(metrics(&rig, &server).bytes_again, 1 << 20);
        let (_, last, told, _) = progress(&rig);
        assert_eq!((last, told), (Some(LayerEvent::Committed), SIZE as u64));
    }
}

#[test]
fn an_archive_that_is_another_when_it_goes_on_is_fetched_whole() {
    let server = serving();
    let other = bytes(SIZE / 2);
    let theirs = other.clone();
    at_first(&server, move |request, file| {
        Some(match request.nth {
            0 => right(request, file).cut(1 << 20, Ending::Fin),
            _ => right(request, &Served { bytes: theirs.clone().into(), etag: Some("\"2\"".to_owned()) }),
        })
    });
    let rig = rig_with(&server, 1);
    assert!(rig.fetched(named(NAME)).1 == other);
    assert_eq!(server.requests().len(), 2);
}

#[test]
fn what_may_pass_is_asked_again_and_what_does_not_is_given_up() {
    let server = serving();
    at_first(&server, |request, _| {
        (request.nth < 2).then(|| Answer::new(503, "").header("Retry-After", "0"))
    });
    let rig = rig_with(&server, 2);
    rig.fetched(named(NAME));
    assert_eq!((server.requests().len(), metrics(&rig, &server).retries), (3, 2));

    let server = serving();
    at_first(&server, |_, _| Some(Answer::new(503, "").header("Retry-After", "3600")));
    let error = rig_with(&server, 5).refusal(named(NAME));
    assert!(error.contains("it answers HTTP 503") && server.requests().len() == 1, "{error}");

    let server = serving();
    at_first(&server, |request, file| Some(right(request, file).cut(100_000, Ending::Fin)));
    let error = rig_with(&server, 3).refusal(named(NAME));
    assert!(error.contains("it broke off at byte 400000, and was asked for 4 times"), "{error}");
    assert_eq!(server.requests().len(), 4, "100 KB each time are no progress");

    for status in [404, 410] {
        let server = serving();
        at_first(&server, move |_, _| Some(Answer::new(status, "")));
        let rig = rig_with(&server, 5);
        let error = rig.fetch(named(NAME)).unwrap_err();
        assert!(matches!(error, AciFetchError::NotFound { .. }), "{error:?}");
        assert_eq!((server.requests().len(), rig.spooled().len()), (1, 0));
    }
    let server = serving();
    at_first(&server, |_, _| Some(Answer::new(501, "")));
    let error = rig_with(&server, 5).fetch(named(NAME)).unwrap_err();
    assert!(matches!(error, AciFetchError::Failed { .. }) && server.requests().len() == 1, "{error:?}");
}

#[test]
fn a_wrong_size_is_seen_early() {
    let server = serving();
    let rig = rig(&server);
    for wrong in [SIZE as u64 - 1, SIZE as u64 + 1] {
        let error = rig.refusal(sized(NAME, wrong));
        assert!(error.contains(&format!("it has {SIZE} bytes, where {wrong} are wanted")), "{error}");
    }
    assert_eq!(metrics(&rig, &server).bytes, 0, "its head says so");
    rig.fetched(sized(NAME, SIZE as u64));
    let error = rig.refusal(sized(NAME, 5));
    assert!(error.contains("where 5 are wanted"), "what is here is no better: {error}");

    // Nothing says how long it is.
    let server = serving();
    at_first(&server, |_, file| {
        let answer = Answer { length: None, ..Answer::new(200, file.bytes.as_slice()) };
        Some(answer.cut(SIZE, Ending::Fin))
    });
    let rig = self::rig(&server);
    let error = rig.refusal(sized(NAME, SIZE as u64 + 1));
    assert!(error.contains(&format!("it has {SIZE} bytes, where {} are wanted", SIZE + 1)), "{error}");
    let error = rig.refusal(sized(NAME, 1000));
    assert!(error.contains("bytes, where 1000 are wanted"), "{error}");
    rig.fetched(sized(NAME, SIZE as u64));
}

#[test]
fn a_body_without_end_and_one_that_is_too_long_are_cut() {
    let server = serving();
    at_first(&server, |request, file| {
        let endless = Answer { length: None, ..Answer::new(200, file.bytes.as_slice()) };
        (request.nth == 0).then(|| endless.cut(SIZE, Ending::Endless))
    });
    let limit = SIZE as u64 - 1;
    let rig =
        Rig::new(&format!("http://{}/", server.host()), |settings| settings.limits.layer_bytes_max = limit);
    let error = rig.refusal(named(NAME));
    assert!(error.contains(&format!("it has more than {limit} bytes (--layer_bytes_max)")), "{error}");
    let before = metrics(&rig, &server).bytes;
    let error = rig.refusal(named(NAME));
    assert!(error.contains("--layer_bytes_max") && metrics(&rig, &server).bytes == before, "{error}");
    server.put(SIGNATURE, vec![b'x'; 65537]);
    let rig = self::rig(&server);
    let error = rig.refusal(signed(NAME));
    assert!(error.contains("it has more than 65536 bytes"), "{error}");
}

#[test]
fn a_page_is_no_archive_and_no_signature() {
    let server = serving();
    let rig = rig(&server);
    at_first(&server, |_, _| {
        let page = Answer::new(200, "\n<!doctype html><title>Welcome</title>");
        Some(page.header("Content-Type", "text/html"))
    });
    let error = rig.refusal(named(NAME));
    assert!(error.contains("a page came, and no archive (text/html)"), "{error}");
    server.script(|request, _| {
        (request.path == SIGNATURE).then(|| Answer::new(200, "<html>not here, though it says 200</html>"))
    });
    assert_eq!(rig.fetched(signed(NAME)).0.signature, None);
    // As object stores say it.
    server.script(|request, _| (request.path == SIGNATURE).then(|| Answer::new(403, "")));
    assert_eq!(rig.fetched(signed(NAME)).0.signature, None);
    // That it cannot be told is another matter.
    server.script(|request, _| (request.path == SIGNATURE).then(|| Answer::new(500, "")));
    let error = rig.refusal(signed(NAME));
    assert!(error.contains("it answers HTTP 500"), "{error}");
}

#[test]
fn redirects_are_followed_and_not_for_ever() {
    let server = serving();
    let host = server.host();
    server.put("/there", bytes(10));
    server.script(move |request, _| match request.path.as_str() {
        "/e.com/app-1-linux-amd64.aci" => Some(Answer::redirect(302, "/there")),
        "/e.com/loop-1-linux-amd64.aci" => {
            Some(Answer::redirect(302, format!("http://{host}{}", request.path)))
        }
        "/there" => None,
        path => Some(Answer::redirect(307, format!("{path}x"))),
    });
    let rig = rig(&server);
    assert_eq!(rig.fetched(named(NAME)).1, bytes(10));
    let error = rig.refusal(named("e.com/loop:1"));
    assert!(error.contains("redirects in a circle"), "{error}");
    let error = rig.refusal(named("e.com/ever:1"));
    assert!(error.contains("redirects once more after 5 redirects (--redirects_max)"), "{error}");
}

#[test]
fn a_server_that_says_nothing_is_given_up() {
    let server = serving();
    at_first(&server, |request, file| Some(right(request, file).cut(1 << 20, Ending::Stall)));
    let rig = Rig::new(&format!("http://{}/", server.host()), |settings| {
        settings.limits.stall_timeout = Duration::from_millis(200);
    });
    let error = rig.refusal(named(NAME));
    assert!(error.contains("sent nothing for 0.2 s (--stall_timeout)"), "{error}");
}

// ---- the spool ----------------------------------------------------------------------------------------------------

/// A tmpfs of so many bytes, until dropped.
struct Small(tempfile::TempDir);

impl Small {
    fn new(bytes: u64) -> Option<Self> {
        let dir = tempfile::tempdir().unwrap();
        if !nix::unistd::geteuid().is_root() {
            println!("skipped: to mount a filesystem needs root");
            return None;
        }
        let flags = nix::mount::MsFlags::empty();
        let options = format!("size={bytes}");
        let mounted =
            nix::mount::mount(Some("tmpfs"), dir.path(), Some("tmpfs"), flags, Some(options.as_str()));
        match mounted {
            Ok(()) => Some(Self(dir)),
            Err(error) => {
                println!("skipped: no tmpfs can be mounted here: {error}");
                None
            }
        }
    }

    fn path(&self) -> &Path {
        self.0.path()
    }
}

impl Drop for Small {
    fn drop(&mut self) {
        let _ = nix::mount::umount2(self.0.path(), nix::mount::MntFlags::MNT_DETACH);
    }
}

#[test]
fn a_full_disk_is_said_and_nothing_is_left() {
    let Some(small) = Small::new(2 << 20) else { return };
    let server = serving();
    at_first(&server, |request, file| {
        let unknown = Answer { length: None, ..Answer::new(200, file.bytes.as_slice()) };
        (request.nth == 1).then(|| unknown.cut(SIZE, Ending::Fin))
    });
    let rig = Rig::on(&small.path().join("spool"), &format!("http://{}", server.host()), |_| {});
    // The first time its length is known before, the second time it is not.
    let error = rig.refusal(named(NAME));
    assert!(
        error.contains("there is no room for it in") && error.contains("3145728 bytes are needed"),
        "{error}"
    );
    assert_eq!(metrics(&rig, &server).bytes, 0);
    let error = rig.refusal(named(NAME));
    assert!(error.contains("there is no room for it in") && error.contains("keelblock prune"), "{error}");
    assert!(metrics(&rig, &server).bytes > 1 << 20);
    assert_eq!(rig.spooled(), [] as [&str; 0]);
}

#[test]
fn some_of_the_disk_stays_free() {
    let server = serving();
    let rig = Rig::new(&format!("http://{}/", server.host()), |settings| {
        settings.limits.disk_free_min = Some(1 << 60);
    });
    let error = rig.refusal(named(NAME));
    assert!(error.contains("1152921504606846976 are to stay so (--disk_free_min)"), "{error}");
    assert_eq!(metrics(&rig, &server).bytes, 0);
}

#[test]
fn a_spool_that_cannot_be_written_is_named() {
    let dir = tempfile::tempdir().unwrap();
    let spool = dir.path().join("file");
    std::fs::write(&spool, "x").unwrap();
    let server = serving();
    let rig = Rig::on(&spool, &format!("http://{}", server.host()), |_| {});
    let error = chain(&rig.fetch(named(NAME)).unwrap_err());
    assert!(error.contains(&format!("cannot write {}", spool.display())), "{error}");
    assert_eq!(server.requests().len(), 0);
}

#[test]
fn the_puller_gives_what_was_fetched_and_says_when_it_is_gone() {
    use keelblock::puller::appc::AppcPuller;
    use keelblock_actors::ports::Puller;
    let server = serving();
    let rig = rig(&server);
    let (FetchedAci { path, from, .. }, _) = rig.fetched(named(NAME));
    let layer = support::appc::layer(from.clone(), path.clone());
    let mut blob = rig.runtime.block_on(AppcPuller.open(&layer)).unwrap();
    let mut got = Vec::new();
    blob.reader.read_to_end(&mut got).unwrap();
    assert!(got == bytes(SIZE) && blob.size == Some(SIZE as u64));
    std::fs::remove_file(&path).unwrap();
    let error = rig.runtime.block_on(AppcPuller.open(&layer)).err().unwrap();
    let error = chain(&error);
    assert!(error.contains(&from) && error.contains("pull the image again"), "{error}");
}
