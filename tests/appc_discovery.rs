//! ACIs are found by their names: simple discovery over http, https and in directories, meta discovery by the tags of pages.
//! Requests are counted, on a server of the tests' own that stands for every host behind a proxy. What becomes of a fetch is
//! seen in `appc_fetch.rs`.

use keelblock::provider::appc::ports::{AciFetchError, WantedAci};
use keelblock::puller::registry::Sources;
use keelblock_actors::error::chain;

mod support {
    pub(crate) mod acis;
    pub(crate) mod appc;
    pub(crate) mod registry;
    pub(crate) mod servers;
}
use support::acis::{AciServer, Answer};
use support::appc::{Rig, bytes, named, page, signed, through};
use support::servers::{Authority, ForwardProxy, Nginx, have};

// ---- simple discovery -----------------------------------------------------------------------------------------

#[test]
fn simple_discovery_asks_for_name_version_os_and_arch() {
    let server = AciServer::start();
    let archive = bytes(100_000);
    server.put("/acis/example.com/app-1.2-linux-amd64.aci", archive.clone());
    server.put("/acis/example.com/app-1.2-linux-amd64.aci.asc", "a signature");
    let rig = Rig::new(&format!("http://{}/acis", server.host()), |_| {});
    let (fetched, got) = rig.fetched(signed("example.com/app:1.2"));
    assert_eq!(got, archive);
    let from = format!("http://{}/acis/example.com/app-1.2-linux-amd64.aci", server.host());
    assert_eq!((fetched.from.as_str(), fetched.bytes_fetched), (from.as_str(), 100_011));
    let signature = fetched.signature.unwrap();
    assert_eq!((signature.bytes.as_slice(), signature.from), (&b"a signature"[..], format!("{from}.asc")));
    // Archive, signature, and whether the archive is still the one.
    assert_eq!(server.requests().len(), 3);
    assert!(fetched.path.starts_with(&rig.spool) && fetched.path.is_absolute());
}

#[test]
fn no_version_is_the_latest_and_a_signature_need_not_be_there() {
    let server = AciServer::start();
    server.put("/example.com/app-latest-linux-amd64.aci", bytes(10));
    let rig = Rig::new(&format!("http://{}", server.host()), |_| {});
    let (fetched, got) = rig.fetched(signed("example.com/app"));
    assert_eq!((got, fetched.signature, fetched.bytes_fetched), (bytes(10), None, 10));
    let asked =
        ["", ".asc"].map(|end| format!("{}/example.com/app-latest-linux-amd64.aci{end}", server.host()));
    assert_eq!(server.asked(), asked);
}

#[test]
fn hosts_are_asked_over_tls_unless_they_are_insecure_or_the_prefix_is_http() {
    let server = AciServer::start();
    server.put("plain.test/app-latest-linux-amd64.aci", bytes(10));
    let proxy = ForwardProxy::start(server.host(), None, None);
    let rig = |prefix| {
        Rig::new(prefix, |settings| {
            settings.insecure = "plain.test".parse().unwrap();
            settings.proxies = through(&proxy);
        })
    };
    rig("https://").fetched(named("plain.test/app"));
    assert_eq!(proxy.seen(), ["GET http://plain.test/app-latest-linux-amd64.aci HTTP/1.1"]);
    // Nobody speaks TLS behind this proxy.
    let error = rig("https://").refusal(named("tls.test/app"));
    assert!(error.contains("https://tls.test/app-latest-linux-amd64.aci"), "{error}");
    assert_eq!(proxy.seen().len(), 2, "meta discovery would ask the same host: {:?}", proxy.seen());
    assert_eq!(proxy.seen()[1], "CONNECT tls.test:443 HTTP/1.1");
    server.put("tls.test/app-latest-linux-amd64.aci", bytes(10));
    rig("http://").fetched(named("tls.test/app"));
    assert_eq!(proxy.seen()[2], "GET http://tls.test/app-latest-linux-amd64.aci HTTP/1.1");
}

#[test]
fn labels_are_escaped_and_those_that_are_missing_are_named() {
    let server = AciServer::start();
    server.put("/a.b/c-1%2F..%2F2%3Fx%25-linux-amd64.aci", bytes(10));
    let rig = Rig::new(&format!("http://{}", server.host()), |_| {});
    rig.fetched(named("a.b/c:1/../2?x%25"));
    let wanted = WantedAci::Named { name: "a.b/c,os=linux".parse().unwrap(), size: None, signature: false };
    let error = rig.refusal(wanted);
    assert!(error.contains("it needs the label arch, which a.b/c,os=linux has not"), "{error}");
    assert_eq!(server.requests().len(), 1);
}

#[test]
fn with_a_host_in_the_prefix_no_other_place_is_asked() {
    let server = AciServer::start();
    let rig = Rig::new(&format!("http://{}/x/", server.host()), |_| {});
    let error = rig.fetch(named("example.com/app:1")).unwrap_err();
    let place = format!("http://{}/x/example.com/app-1-linux-amd64.aci", server.host());
    assert!(matches!(&error, AciFetchError::NotFound { place: at, .. } if *at == place), "{error:?}");
    assert!(chain(&error).contains("it answers HTTP 404"), "{}", chain(&error));
    assert_eq!(server.requests().len(), 1);
}

// ---- directories --------------------------------------------------------------------------------------------------

#[test]
fn a_directory_is_a_place_too() {
    let dir = tempfile::tempdir().unwrap();
    std::fs::create_dir_all(dir.path().join("e.com")).unwrap();
    let file = dir.path().join("e.com/app-1-linux-amd64.aci");
    std::fs::write(&file, bytes(10)).unwrap();
    for prefix in [format!("{}", dir.path().display()), format!("file://{}/", dir.path().display())] {
        let rig = Rig::new(&prefix, |_| {});
        let (fetched, _) = rig.fetched(signed("e.com/app:1"));
        assert_eq!((&fetched.path, fetched.bytes_fetched, fetched.signature), (&file, 0, None));
        let error = rig.fetch(named("e.com/app:2")).unwrap_err();
        let place = dir.path().join("e.com/app-2-linux-amd64.aci").display().to_string();
        assert!(matches!(&error, AciFetchError::NotFound { place: at, .. } if *at == place), "{error:?}");
        let error = rig.refusal(named("e.com/app:..%2F1"));
        assert!(error.contains("the label version=") && error.contains("cannot be part of"), "{error}");
        assert_eq!(rig.spooled(), [] as [&str; 0], "nothing is copied");
    }
    let rig = Rig::new(&dir.path().display().to_string(), |_| {});
    let error = rig.refusal(support::appc::sized("e.com/app:1", 11));
    assert!(error.contains("it has 10 bytes, where 11 are wanted"), "{error}");
    std::fs::write(dir.path().join("e.com/app-1-linux-amd64.aci.asc"), "signed").unwrap();
    assert_eq!(rig.fetched(signed("e.com/app:1")).0.signature.unwrap().bytes, b"signed");
}

#[test]
fn a_file_is_taken_as_it_is() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("my.aci");
    let rig = Rig::new("https://", |_| {});
    let wanted = |path: &std::path::Path| WantedAci::File { path: path.to_owned(), signature: true };
    assert!(matches!(rig.fetch(wanted(&path)), Err(AciFetchError::NotFound { .. })));
    std::fs::write(&path, bytes(10)).unwrap();
    assert_eq!(rig.fetched(wanted(&path)).0.signature, None);
    std::fs::write(dir.path().join("my.aci.asc"), "signed").unwrap();
    let (fetched, _) = rig.fetched(wanted(&path));
    assert_eq!((fetched.path, fetched.signature.unwrap().bytes), (path, b"signed".to_vec()));
    let error = rig.refusal(wanted(dir.path()));
    assert!(error.contains("it is not a regular file"), "{error}");
    std::fs::write(dir.path().join("my.aci.asc"), vec![b'x'; 65537]).unwrap();
    let error = rig.refusal(wanted(&dir.path().join("my.aci")));
    assert!(error.contains("my.aci.asc") && error.contains("it has more than 65536 bytes"), "{error}");
}

// ---- meta discovery -----------------------------------------------------------------------------------------------

#[test]
fn meta_discovery_walks_up_the_path_to_a_page_that_has_a_tag_for_the_name() {
    let server = AciServer::start();
    // None, one without tags, one for another name that begins alike, and at last the one.
    server.put("e.com/a/b?ac-discovery=1", page(&[("keywords", "x y")]));
    server
        .put("e.com/a?ac-discovery=1", page(&[("ac-discovery", "e.com/a/b/ap http://s.test/{name}.{ext}")]));
    let template = "e.com http://s.test/{os}/{arch}/{name}-{version}.{ext}";
    server.put("e.com/?ac-discovery=1", page(&[("ac-discovery", template)]));
    server.put("s.test/linux/amd64/e.com/a/b/app-3.aci", bytes(1000));
    let (rig, _proxy) = Rig::behind(&server, "http://");
    let (fetched, got) = rig.fetched(named("e.com/a/b/app:3"));
    assert_eq!((got, fetched.from.as_str()), (bytes(1000), "http://s.test/linux/amd64/e.com/a/b/app-3.aci"));
    let asked = [
        "e.com/a/b/app-3-linux-amd64.aci",
        "e.com/a/b/app?ac-discovery=1",
        "e.com/a/b?ac-discovery=1",
        "e.com/a?ac-discovery=1",
        "e.com/?ac-discovery=1",
        "s.test/linux/amd64/e.com/a/b/app-3.aci",
    ];
    assert_eq!(server.asked(), asked);
}

#[test]
fn templates_are_tried_in_order_and_those_that_cannot_be_filled_say_why() {
    let server = AciServer::start();
    let tags = [
        ("ac-discovery", "e.com hdfs://s.test/{name}.{ext}"),
        ("ac-discovery", "e.com http://s.test/{flavour}/{name}.{ext}"),
        ("ac-discovery", "e.com http://s.test/{?name}.{ext}"),
        ("ac-discovery", "e.com http://s.test/{name}.aci"),
        ("ac-discovery", "e.com http://s.test/name}.{ext}"),
        ("ac-discovery", "e.com http://one.test/{name}.{ext}?sig=hush"),
        ("ac-discovery", "three words here"),
        ("ac-discovery", "e.com http://two.test/{name},{name,version}.{ext}"),
    ];
    server.put("e.com/app?ac-discovery=1", page(&tags));
    let (rig, _proxy) = Rig::behind(&server, "http://");
    let error = rig.refusal(named("e.com/app"));
    for said in [
        "http://e.com/app-latest-linux-amd64.aci: it answers HTTP 404",
        "hdfs://s.test/{name}.{ext}: there is no address to ask: images cannot be fetched by \"hdfs\"",
        "it needs the label flavour, which e.com/app,arch=amd64,os=linux has not",
        "is no simple expansion of RFC 6570",
        "it has no {ext}",
        "it has a brace that does not close or open",
        "http://one.test/e.com/app.aci: it answers HTTP 404",
        "http://two.test/e.com/app,e.com/app,latest.aci: it answers HTTP 404",
    ] {
        assert!(error.contains(said), "{said} in {error}");
    }
    assert!(!error.contains("hush") && !rig.log().contains("hush"), "{error}");
    server.put("two.test/e.com/app,e.com/app,latest.aci", bytes(10));
    server.put("two.test/e.com/app,e.com/app,latest.aci.asc", "signed");
    let (fetched, _) = rig.fetched(signed("e.com/app"));
    assert_eq!(fetched.from, "http://two.test/e.com/app,e.com/app,latest.aci");
    assert_eq!(fetched.signature.unwrap().bytes, b"signed");
}

#[test]
fn tags_that_are_none_are_none() {
    let server = AciServer::start();
    let tag = "<meta name=ac-discovery content='e.com http://evil.test/{name}.{ext}'>";
    let html = format!(
        "<!doctype html><!-- {tag} --><html><head><title>{tag}</title><script>var x = \"{tag}\";</script>\
         <style>/* {tag} */</style><template>{tag}</template><textarea>{tag}</textarea><link title=\"{tag}\">\
         <META content = \"e.com\n http&#58;//good.test/{{name}}.{{ext}}\" data-x=1 NAME='AC-Discovery' />\
         <meta name=ac-discovery name=x content=\"e.com\"></head><body>{tag}</body>{tag}"
    );
    server.put("e.com/app?ac-discovery=1", html);
    server.put("good.test/e.com/app.aci", bytes(10));
    server.put("evil.test/e.com/app.aci", bytes(11));
    let (rig, _proxy) = Rig::behind(&server, "http://");
    let (fetched, _) = rig.fetched(named("e.com/app"));
    assert_eq!(fetched.from, "http://good.test/e.com/app.aci");
    server.remove("good.test/e.com/app.aci");
    rig.refusal(named("e.com/app"));
    assert!(server.asked().iter().all(|asked| !asked.starts_with("evil")), "{:?}", server.asked());
}

#[test]
fn a_name_that_is_a_host_alone_is_asked_by_its_page() {
    let server = AciServer::start();
    server.put("app.test/?ac-discovery=1", page(&[("ac-discovery", "app.test http://s.test/{name}.{ext}")]));
    server.put("s.test/app.test.aci", bytes(10));
    let (rig, _proxy) = Rig::behind(&server, "http://");
    rig.fetched(named("app.test"));
    assert_eq!(server.asked(), ["app.test/?ac-discovery=1", "s.test/app.test.aci"]);
}

#[test]
fn a_page_that_fails_ends_the_search_and_one_without_end_is_cut() {
    let server = AciServer::start();
    server.script(|request, _| match request.path.as_str() {
        "/a/b?ac-discovery=1" => Some(Answer::new(500, "")),
        "/long?ac-discovery=1" => {
            let tag = page(&[("ac-discovery", "e.com http://s.test/{name}.{ext}")]).into_bytes();
            let page = [tag, vec![b' '; 2 << 20]].concat();
            Some(
                Answer { length: None, ..Answer::new(200, page) }
                    .cut(3 << 20, support::acis::Ending::Endless),
            )
        }
        "/late?ac-discovery=1" => {
            let tag = page(&[("ac-discovery", "e.com http://s.test/{name}.{ext}")]).into_bytes();
            Some(Answer::new(200, [vec![b' '; 1 << 20], tag].concat()))
        }
        _ => None,
    });
    server.put("s.test/e.com/long.aci", bytes(10));
    let (rig, _proxy) = Rig::behind(&server, "http://");
    let error = rig.refusal(named("e.com/a/b"));
    assert!(error.contains("http://e.com/a/b?ac-discovery=1: it answers HTTP 500"), "{error}");
    assert_eq!(server.requests().len(), 2);
    rig.fetched(named("e.com/long"));
    let error = rig.refusal(named("e.com/late"));
    assert!(error.contains("it has no tag ac-discovery in its first 1048576 bytes"), "{error}");
}

#[test]
fn keys_are_named_by_pages_and_small_things_are_bounded() {
    let server = AciServer::start();
    let tags = [
        ("ac-discovery-pubkeys", "e.com/other http://k.test/no.gpg"),
        ("ac-discovery-pubkeys", "e.com http://k.test/missing.gpg"),
        ("ac-discovery-pubkeys", "e.com http://k.test/keys.gpg?x=1"),
    ];
    server.put("e.com/?ac-discovery=1", page(&tags));
    server.put("k.test/keys.gpg?x=1", "some keys");
    let (rig, _proxy) = Rig::behind(&server, "http://");
    let keys = |name: &str| {
        let name = name.parse().unwrap();
        rig.runtime.block_on(rig.source.keys(&name)).map_err(|error| chain(&error))
    };
    let found = keys("e.com/app").unwrap();
    assert_eq!(found.len(), 1);
    let expected = ("e.com", "http://k.test/keys.gpg", &b"some keys"[..]);
    assert_eq!((found[0].prefix.as_str(), found[0].from.as_str(), found[0].bytes.as_slice()), expected);
    let error = keys("f.com/app").unwrap_err();
    assert!(error.contains("http://f.com/?ac-discovery=1: it answers HTTP 404"), "{error}");
    let small = |limit| rig.runtime.block_on(rig.source.get_small("http://k.test/keys.gpg?x=1", limit));
    assert_eq!(small(9).unwrap(), b"some keys");
    assert_eq!(small(8).unwrap_err().to_string(), "it has more than 8 bytes");
}

// ---- over TLS -----------------------------------------------------------------------------------------------------

/// A server behind nginx with TLS, which stands for every host, and a source that trusts it.
fn over_tls(
    server: &AciServer,
    change: impl FnOnce(&mut keelblock::puller::registry::RegistrySettings),
) -> Option<(Rig, ForwardProxy, Nginx)> {
    if !have(&["nginx", "openssl"]) {
        return None;
    }
    let authority = Authority::new();
    authority.sign(
        "server",
        &["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"],
        "subjectAltName=DNS:e.test,DNS:s.test,DNS:t.test,DNS:r.test,DNS:warm.test",
    );
    let front = Nginx::front(&authority, "127.0.0.1:PORT ssl", "", &server.host());
    let proxy = ForwardProxy::start(format!("127.0.0.1:{}", front.port()), None, None);
    let rig = Rig::new("https://", |settings| {
        settings.ca_file = Some(authority.file("ca.pem"));
        settings.proxies = through(&proxy);
        change(settings);
    });
    // The certificates are read with the first request.
    server.put("warm.test/up-latest-linux-amd64.aci", bytes(1));
    rig.fetched(named("warm.test/up"));
    Some((rig, proxy, front))
}

#[test]
fn what_is_found_over_tls_does_not_lead_to_plain_http() {
    let server = AciServer::start();
    let Some((rig, proxy, _front)) = over_tls(&server, |_| {}) else { return };
    let tags = [
        ("ac-discovery", "e.test http://plain.test/{name}.{ext}"),
        ("ac-discovery", "e.test http://127.0.0.1/{name}.{ext}"),
        ("ac-discovery", "e.test https://s.test/{name}.{ext}"),
        ("ac-discovery-pubkeys", "e.test http://plain.test/keys"),
    ];
    server.put("e.test/app?ac-discovery=1", page(&tags));
    server.script(|request, _| match (request.host.as_str(), request.path.as_str()) {
        ("s.test", "/e.test/down.aci") => Some(Answer::redirect(302, "http://plain.test/x")),
        ("s.test", "/e.test/app.aci") => Some(Answer::redirect(301, "https://t.test/there")),
        ("e.test", "/down?ac-discovery=1") => Some(Answer::redirect(302, "/app?ac-discovery=1")),
        _ => None,
    });
    // The tags are for all of e.test.
    server.put("t.test/there", bytes(10));
    let (fetched, _) = rig.fetched(named("e.test/app"));
    assert_eq!(fetched.from, "https://s.test/e.test/app.aci");
    let error = rig.refusal(named("e.test/down"));
    assert!(error.contains("it is plain http, while it was found over TLS, which is refused"), "{error}");
    assert!(error.contains("redirects from https to plain http at plain.test, which is refused"), "{error}");
    let keys = rig.runtime.block_on(rig.source.keys(&"e.test/app".parse().unwrap())).unwrap_err();
    assert!(chain(&keys).contains("found over TLS"), "{}", chain(&keys));
    assert!(proxy.seen().iter().all(|seen| seen.starts_with("CONNECT")), "{:?}", proxy.seen());
}

#[test]
fn an_insecure_host_that_wants_tls_gets_it() {
    let server = AciServer::start();
    let insecure = |settings: &mut keelblock::puller::registry::RegistrySettings| {
        settings.insecure = "s.test,t.test".parse().unwrap();
    };
    let Some((rig, proxy, _front)) = over_tls(&server, insecure) else { return };
    server.put("s.test/app-latest-linux-amd64.aci", bytes(10));
    assert_eq!(rig.fetched(named("s.test/app")).0.from, "https://s.test/app-latest-linux-amd64.aci");
    server.put(
        "t.test/?ac-discovery=1",
        page(&[
            ("ac-discovery", "t.test https://s.test/{name}.{ext}"),
            ("ac-discovery-pubkeys", "t.test https://s.test/keys"),
        ]),
    );
    server.put("s.test/t.test/app.aci", bytes(10));
    server.put("s.test/keys", "keys");
    rig.fetched(named("t.test/app"));
    let keys = rig.runtime.block_on(rig.source.keys(&"t.test/app".parse().unwrap())).unwrap();
    assert_eq!(keys[0].bytes, b"keys");
    let plain = proxy.seen().iter().filter(|seen| seen.starts_with("GET http://")).count();
    assert_eq!(plain, 2 + 2, "one for each archive, a page for each part of a name: {:?}", proxy.seen());
}

#[test]
fn passwords_go_over_tls_and_to_their_host_alone() {
    let server = AciServer::start();
    let config = |dir: &std::path::Path| {
        // `me:hush`, for each of these.
        let auths = ["s.test", "plain.test", "r.test"]
            .map(|host| format!("\"{host}\": {{\"auth\": \"bWU6aHVzaA==\"}}"));
        let path = dir.join("config.json");
        std::fs::write(&path, format!("{{\"auths\": {{{}}}}}", auths.join(", "))).unwrap();
        let source = keelblock::puller::registry::DockerConfigSource::Path(path);
        std::sync::Arc::new(Sources::new(None, Some(source), Vec::new(), &Default::default()))
    };
    let dir = tempfile::tempdir().unwrap();
    server.script(|request, file| match request.host.as_str() {
        "r.test" => Some(Answer::redirect(307, "https://s.test/elsewhere")),
        "s.test" | "t.test" | "plain.test" => match request.header("authorization") {
            Some("Basic bWU6aHVzaA==") if file.is_some() => None,
            _ => Some(Answer::new(401, "who?").header("WWW-Authenticate", "Basic realm=x")),
        },
        _ => None,
    });
    for path in ["s.test/app-1-linux-amd64.aci", "plain.test/app-1-linux-amd64.aci", "/elsewhere"] {
        server.put(path, bytes(10));
    }
    let Some((rig, _proxy, _front)) = over_tls(&server, |settings| settings.credentials = config(dir.path()))
    else {
        return;
    };
    rig.fetched(named("s.test/app:1"));
    let error = rig.refusal(named("t.test/app:1"));
    assert!(error.contains("HTTP 401; it wants a user name and password: write them for t.test"), "{error}");
    let error = rig.refusal(named("r.test/app:1"));
    assert!(error.contains("it answers HTTP 401"), "{error}");
    let shown: Vec<_> =
        server.requests().into_iter().filter(|r| r.header("authorization").is_some()).collect();
    assert!(shown.len() == 1 && shown[0].host == "s.test", "{shown:?}");

    let proxy = ForwardProxy::start(server.host(), None, None);
    let plain = Rig::new("http://", |settings| {
        settings.proxies = through(&proxy);
        settings.credentials = config(dir.path());
    });
    let error = plain.refusal(named("plain.test/app:1"));
    assert!(error.contains("HTTP 401; passwords are not sent over plain http"), "{error}");
    for log in [rig.log(), plain.log()] {
        assert!(!log.contains("hush") && !log.contains("bWU6"), "{log}");
    }
}
