//! Ways to a registry: proxies, TLS with authorities and certificates of one's own, HTTP/2, both families of addresses.
//! nginx is the TLS front, `openssl` makes certificates; tests that need them are skipped, saying so, where they are not
//! installed.

use std::net::TcpListener;
use std::path::PathBuf;
use std::process::Command;

use keelblock::puller::registry::{NoProxy, Proxies, Proxy, RegistrySettings};

mod support {
    pub(crate) mod client;
    pub(crate) mod registry;
    pub(crate) mod servers;
}
use support::client::{Rig, read};
use support::registry::{Reply, TestRegistry};
use support::servers::{Authority, Cache, ForwardProxy, Nginx, have};

const LAYERS: [&[u8]; 2] = [b"base layer", b"top layer"];
const TLS: &str = "127.0.0.1:PORT ssl";
const HTTP2: &str = "127.0.0.1:PORT ssl http2";

/// A name that no resolver needs to ask anybody about: its first part is longer than names can have.
fn nowhere() -> String {
    format!("{}.invalid", "n".repeat(64))
}

fn with_image() -> TestRegistry {
    let registry = TestRegistry::start();
    registry.put_image("app", "1", &LAYERS);
    registry
}

#[track_caller]
fn expect_pull(rig: &Rig, name: &str) {
    let layers: Vec<_> = rig.plan(name).layers.iter().map(|layer| rig.fetch(layer)).collect();
    assert_eq!(layers, LAYERS);
}

/// An authority, a registry, and nginx with TLS before it. `None`: said why.
fn over_tls(listen: &str, more: impl Fn(&Authority) -> String) -> Option<(Authority, TestRegistry, Nginx)> {
    if !have(&["nginx", "openssl"]) {
        return None;
    }
    let (authority, registry) = (Authority::new(), with_image());
    let front = Nginx::front(&authority, listen, &more(&authority), &registry.host());
    Some((authority, registry, front))
}

fn through(proxy: &str) -> Proxies {
    let proxy = Some(Proxy::parse(proxy, "--https_proxy"));
    Proxies { https: proxy.clone(), http: proxy, without: NoProxy::default() }
}

/// `hosts.toml` for a registry, in a directory as `--registry_config_path` names it.
fn hosts(registry: &str, text: &str) -> (tempfile::TempDir, PathBuf) {
    let dir = tempfile::tempdir().unwrap();
    let own = dir.path().join(registry);
    std::fs::create_dir(&own).unwrap();
    std::fs::write(own.join("hosts.toml"), text).unwrap();
    let path = dir.path().to_owned();
    (dir, path)
}

// ---- proxies ------------------------------------------------------------------------------------------------

#[test]
fn https_goes_through_a_tunnel_and_http_in_absolute_form() {
    let Some((authority, registry, front)) = over_tls(HTTP2, |_| String::new()) else { return };
    // Basic of `me:s3cret`.
    let shown = Some("Basic bWU6czNjcmV0");
    let to_front = ForwardProxy::start(format!("127.0.0.1:{}", front.port()), shown, None);
    let rig = Rig::new(|settings| {
        settings.ca_file = Some(authority.file("ca.pem"));
        settings.proxies = through(&format!("http://me:s3cret@{}", to_front.host()));
    });
    expect_pull(&rig, "registry.test:5000/app:1");
    let seen = to_front.seen();
    assert_eq!(seen, ["CONNECT registry.test:5000 HTTP/1.1"], "one tunnel serves all");

    let to_registry = ForwardProxy::start(registry.host(), shown, None);
    let rig_http = Rig::new(|settings| {
        settings.insecure = "registry.test".parse().unwrap();
        settings.proxies = through(&format!("http://me:s3cret@{}", to_registry.host()));
    });
    expect_pull(&rig_http, "registry.test/app:1");
    let seen = to_registry.seen();
    assert_eq!(seen[0], "GET http://registry.test/v2/app/manifests/1 HTTP/1.1");
    assert_eq!(seen.len(), 4, "{seen:?}");
    for log in [rig.log(), rig_http.log()] {
        assert!(!log.contains("s3cret") && !log.contains("bWU6"), "{log}");
    }
}

#[test]
fn hosts_of_no_proxy_and_loopback_are_asked_directly() {
    let registry = with_image();
    let proxy = ForwardProxy::start(registry.host(), None, None);
    let rig = Rig::new(|settings| settings.proxies = through(&proxy.host()));
    expect_pull(&rig, &format!("{}/app:1", registry.host()));
    let rig = Rig::new(|settings| {
        settings.insecure = nowhere().parse().unwrap();
        settings.proxies = Proxies { without: NoProxy::parse(".other, invalid"), ..through(&proxy.host()) };
    });
    let error = rig.refusal(&format!("{}/app:1", nowhere()));
    assert!(error.contains(&format!("cannot resolve host {:?}", nowhere())), "{error}");
    assert_eq!(proxy.seen().len(), 0);
}

#[test]
fn each_fault_of_a_proxy_has_its_own_words() {
    let registry = with_image();
    let nobody = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().to_string();
    let error_of = |name: &str, proxies: Proxies| {
        let rig = Rig::new(|settings| {
            settings.insecure = "plain.test".parse().unwrap();
            settings.proxies = proxies;
        });
        let error = rig.refusal(name);
        assert!(!error.contains("hush") && !rig.log().contains("hush"), "{error}");
        error
    };
    let refusing = |authorization, status| ForwardProxy::start(registry.host(), authorization, status);
    let (wants, blocks, broken) = (
        refusing(Some("Basic x"), None),
        refusing(None, Some("403 Blocked")),
        refusing(None, Some("502 Bad Gateway")),
    );
    let at = |proxy: &ForwardProxy| through(&format!("http://me:hush@{}", proxy.host()));
    for (proxies, expected) in [
        (
            at(&wants),
            format!(
                "proxy http://{} refuses CONNECT (HTTP 407, \"Proxy Authentication Required\"); give",
                wants.host()
            ),
        ),
        (at(&blocks), format!("proxy http://{} refuses CONNECT (HTTP 403, \"Blocked\")", blocks.host())),
        (at(&broken), "refuses CONNECT (HTTP 502, \"Bad Gateway\")".to_owned()),
        (through(&format!("http://me:hush@{nobody}")), format!("cannot connect to proxy http://{nobody}")),
        (
            through("socks5://me:hush@127.0.0.1:1080"),
            "names a socks5 proxy, which is not supported".to_owned(),
        ),
        (
            through("http://proxy.invalid:3128"),
            "cannot connect to proxy http://proxy.invalid:3128: ".to_owned(),
        ),
    ] {
        let error = error_of("tls.test/app:1", proxies);
        assert!(
            error.contains("cannot reach tls.test") && error.contains(&expected),
            "{expected} in {error}"
        );
    }
    let error = error_of("plain.test/app:1", at(&wants));
    let expected = format!("proxy http://{} refuses to ask plain.test", wants.host());
    assert!(error.contains(&expected), "{error}");
    // A registry, or any other server that is none: nobody speaks for what it does not understand.
    let error = error_of("tls.test/app:1", through(&registry.host()));
    assert!(error.contains("refuses CONNECT (HTTP 404"), "{error}");
    assert!(error.contains("it seems to be no proxy for https"), "{error}");
}

#[test]
fn nginx_is_no_proxy_for_https_and_is_told_so() {
    if !have(&["nginx"]) {
        return;
    }
    let nginx = Nginx::start("127.0.0.1:PORT", "location / { return 200; }");
    let rig = Rig::new(|settings| settings.proxies = through(&format!("http://127.0.0.1:{}", nginx.port())));
    let error = rig.refusal("tls.test/app:1");
    assert!(error.contains("refuses CONNECT (HTTP 40"), "{error}");
    assert!(error.contains("it seems to be no proxy for https"), "{error}");
}

#[test]
fn a_proxy_may_be_spoken_to_over_tls() {
    let Some((authority, registry, _front)) = over_tls(TLS, |_| String::new()) else { return };
    // nginx takes the absolute form for what it is, and forwards it: enough of a proxy for plain http.
    let proxy = Nginx::front(&authority, TLS, "", &registry.host());
    let rig = Rig::new(|settings| {
        settings.ca_file = Some(authority.file("ca.pem"));
        settings.insecure = "plain.test".parse().unwrap();
        settings.proxies = through(&format!("https://localhost:{}", proxy.port()));
    });
    expect_pull(&rig, "plain.test/app:1");
    assert!(proxy.wait_for_log(4).iter().all(|request| request.path.starts_with("http://plain.test/v2/")));
    let untrusting =
        Rig::new(|settings| settings.proxies = through(&format!("https://localhost:{}", proxy.port())));
    let error = untrusting.refusal("tls.test/app:1");
    assert!(
        error.contains(&format!("cannot connect to proxy https://localhost:{}", proxy.port())),
        "{error}"
    );
    assert!(error.contains("UnknownIssuer"), "{error}");
}

#[test]
fn flags_and_environment_of_the_binary_choose_the_proxy() {
    let registry = with_image();
    let (by_flag, by_environment) =
        (ForwardProxy::start(registry.host(), None, None), ForwardProxy::start(registry.host(), None, None));
    let dir = tempfile::tempdir().unwrap();
    let insecure = format!("--docker_insecure_registries={}", nowhere());
    let run = |args: &[&str]| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_keelblock"));
        for name in
            ["HTTPS_PROXY", "https_proxy", "http_proxy", "ALL_PROXY", "all_proxy", "NO_PROXY", "no_proxy"]
        {
            command.env_remove(name);
        }
        command.env("HTTP_PROXY", format!("http://me:hush@{}", by_environment.host()));
        command.arg("pull").arg(format!("--work_dir={}", dir.path().display()));
        command.args([&insecure, "--retries_max=0", "--log_level=trace"]);
        let output = command.args(args).arg(format!("docker:{}/none:1", nowhere())).output().unwrap();
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(!output.status.success() && !said.contains("hush"), "{said}");
        said
    };
    let said = run(&[]);
    assert!(said.contains("has no manifest 1 of none"), "{said}");
    assert_eq!((by_environment.seen().len(), by_flag.seen().len()), (1, 0));
    run(&[&format!("--http_proxy=http://me:hush@{}", by_flag.host())]);
    assert_eq!((by_environment.seen().len(), by_flag.seen().len()), (1, 1));
    let said = run(&["--no_proxy=invalid"]);
    assert!(said.contains("cannot resolve host"), "{said}");
    let said = run(&["--http_proxy=socks5://me:hush@h:1"]);
    assert!(said.contains("socks5 proxy, which is not supported"), "{said}");
    assert_eq!((by_environment.seen().len(), by_flag.seen().len()), (1, 1));
}

// ---- trust --------------------------------------------------------------------------------------------------

#[test]
fn an_authority_is_believed_where_it_is_named_and_nowhere_else() {
    let Some((authority, _registry, front)) = over_tls(TLS, |_| String::new()) else { return };
    let registry = format!("localhost:{}", front.port());
    let name = format!("{registry}/app:1");
    let error = Rig::new(|_| {}).refusal(&name);
    let words = "signed by an unknown authority; if that is its own, give its certificate by --registry_ca, or as `ca` in its hosts.toml";
    assert!(error.contains(words), "{error}");
    expect_pull(&Rig::new(|settings| settings.ca_file = Some(authority.file("ca.pem"))), &name);
    let ca = authority.file("ca.pem");
    for text in [
        format!("ca = {ca:?}\n"),
        format!("server = \"https://{registry}\"\nca = [{ca:?}]\n"),
        "skip_verify = true\n".to_owned(),
    ] {
        let (_dir, path) = hosts(&registry, &text);
        expect_pull(&Rig::new(|settings| settings.hosts_dirs = vec![path]), &name);
    }
    // Docker's form.
    let dir = tempfile::tempdir().unwrap();
    std::fs::create_dir(dir.path().join(&registry)).unwrap();
    std::fs::copy(&ca, dir.path().join(&registry).join("ca.crt")).unwrap();
    expect_pull(&Rig::new(|settings| settings.hosts_dirs = vec![dir.path().to_owned()]), &name);
    // What is believed at one host is not believed at another.
    let (_dir, path) = hosts("other.test", "skip_verify = true\n");
    let error = Rig::new(|settings| settings.hosts_dirs = vec![path]).refusal(&name);
    assert!(error.contains(words), "{error}");
}

#[test]
fn an_authority_that_is_replaced_is_read_again() {
    let Some((authority, _registry, front)) = over_tls(TLS, |_| String::new()) else { return };
    let registry = format!("localhost:{}", front.port());
    let other = Authority::new();
    let (dir, path) = hosts(&registry, "ca = 'ca.pem'\n");
    let file = dir.path().join(&registry).join("ca.pem");
    std::fs::copy(other.file("ca.pem"), &file).unwrap();
    let rig = Rig::new(|settings| settings.hosts_dirs = vec![path]);
    let error = rig.refusal(&format!("{registry}/app:1"));
    assert!(error.contains("unknown authority"), "{error}");
    std::fs::remove_file(&file).unwrap();
    std::fs::copy(authority.file("ca.pem"), &file).unwrap();
    expect_pull(&rig, &format!("{registry}/app:1"));
}

#[test]
fn client_certificates_of_every_kind_are_shown() {
    let verify = |authority: &Authority| {
        format!("ssl_client_certificate {}/ca.pem; ssl_verify_client on;", authority.path().display())
    };
    let Some((authority, _registry, front)) = over_tls(TLS, verify) else { return };
    let registry = format!("localhost:{}", front.port());
    let name = format!("{registry}/app:1");
    let ca = authority.file("ca.pem");
    let rig = |text: &str| {
        let (dir, path) = hosts(&registry, &format!("ca = {ca:?}\n{text}"));
        (Rig::new(|settings| settings.hosts_dirs = vec![path]), dir)
    };
    let error = rig("").0.refusal(&name);
    assert!(error.contains("it wants a client certificate that it knows: name one as `client`"), "{error}");

    let client_auth = "extendedKeyUsage=clientAuth";
    authority.sign("rsa", &["-newkey", "rsa:2048", "-nodes"], client_auth);
    authority.openssl(&["rsa", "-traditional", "-in", "rsa.key", "-out", "pkcs1.key"]);
    authority.openssl(&["ec", "-in", "client.key", "-out", "sec1.key"]);
    for (file, header) in
        [("client.key", "PRIVATE"), ("pkcs1.key", "RSA PRIVATE"), ("sec1.key", "EC PRIVATE")]
    {
        let key = std::fs::read_to_string(authority.file(file)).unwrap();
        assert!(key.contains(&format!("-----BEGIN {header} KEY-----")), "{file}: {key}");
    }
    let at = |name: &str| authority.file(name);
    let both = at("both.pem");
    let joined =
        [std::fs::read(at("client.key")).unwrap(), std::fs::read(at("client.pem")).unwrap()].concat();
    std::fs::write(&both, joined).unwrap();
    let stranger = Authority::new();
    let (strange, strange_key) = (stranger.file("client.pem"), stranger.file("client.key"));
    for client in [
        format!("{both:?}"),
        format!("[{both:?}]"),
        format!("[[{:?}, {:?}]]", at("client.pem"), at("client.key")),
        format!("[[{:?}, {:?}]]", at("rsa.pem"), at("pkcs1.key")),
        format!("[[{:?}, {:?}]]", at("client.pem"), at("sec1.key")),
        // Of several the one that the server's authority has signed.
        format!("[[{strange:?}, {strange_key:?}], {both:?}]"),
    ] {
        expect_pull(&rig(&format!("client = {client}\n")).0, &name);
    }
    for (client, expected) in [
        (format!("[[{strange:?}, {strange_key:?}]]"), "it wants a client certificate that it knows"),
        (format!("[[{:?}, {:?}]]", at("client.pem"), at("rsa.key")), "does not belong to the certificate in"),
        (format!("{:?}", at("client.pem")), "holds no private key that can be used"),
        (format!("{:?}", at("client.key")), "holds no certificate"),
        (format!("{:?}", at("missing.pem")), "missing.pem (`client` of its hosts.toml)"),
    ] {
        let error = rig(&format!("client = {client}\n")).0.refusal(&name);
        assert!(error.contains(expected), "{expected} in {error}");
    }
}

/// Where blobs lie: nginx that refuses whoever shows a certificate; and the registry redirects there.
fn storage(authority: &Authority, registry: &TestRegistry) -> Nginx {
    let at = authority.path().display();
    let storage = Nginx::start(
        TLS,
        &format!(
            "ssl_certificate {at}/server.pem; ssl_certificate_key {at}/server.key;\n\
             ssl_client_certificate {at}/ca.pem; ssl_verify_client optional_no_ca;\n\
             location / {{ if ($ssl_client_verify != NONE) {{ return 418; }} proxy_pass http://{}; }}",
            registry.host()
        ),
    );
    let to = storage.port();
    registry.script(move |seen| {
        let redirected = seen.path.contains("/blobs/") && seen.query != "there";
        redirected.then(|| Reply::redirect(format!("https://localhost:{to}{}?there", seen.path)))
    });
    storage
}

#[test]
fn after_a_redirect_no_certificate_of_ours_is_shown() {
    let Some((authority, registry, front)) = over_tls(TLS, |_| String::new()) else { return };
    let storage = storage(&authority, &registry);
    let name = format!("localhost:{}", front.port());
    let at = authority.path().display();
    let text = format!("ca = \"{at}/ca.pem\"\nclient = [[\"{at}/client.pem\", \"{at}/client.key\"]]\n");
    let (_dir, path) = hosts(&name, &text);
    expect_pull(&Rig::new(|settings| settings.hosts_dirs = vec![path]), &format!("{name}/app:1"));
    assert_eq!(storage.wait_for_log(3).len(), 3);
}

#[test]
fn after_a_redirect_certificates_are_verified_whatever_the_registry_need_not_show() {
    let Some((authority, registry, front)) = over_tls(TLS, |_| String::new()) else { return };
    let _storage = storage(&authority, &registry);
    let name = format!("localhost:{}", front.port());
    let (_dir, path) = hosts(&name, "skip_verify = true\n");
    let error = Rig::new(|settings| settings.hosts_dirs = vec![path]).refusal(&format!("{name}/app:1"));
    assert!(error.contains("cannot get config") && error.contains("unknown authority"), "{error}");
}

#[test]
fn authorities_of_the_environment_are_believed() {
    let Some((authority, _registry, front)) = over_tls(TLS, |_| String::new()) else { return };
    let dir = tempfile::tempdir().unwrap();
    let certificates = tempfile::tempdir().unwrap();
    // As c_rehash names it; the name is not looked at, as all files are read.
    std::fs::copy(authority.file("ca.pem"), certificates.path().join("0a1b2c3d.0")).unwrap();
    let ca = authority.file("ca.pem");
    for (variable, value, expected) in [
        ("SSL_CERT_FILE", ca.as_path(), "has no manifest 1 of none"),
        ("SSL_CERT_DIR", certificates.path(), "has no manifest 1 of none"),
        ("SSL_CERT_FILE", std::path::Path::new("/dev/null"), "unknown authority"),
    ] {
        let output = Command::new(env!("CARGO_BIN_EXE_keelblock"))
            .env_remove("SSL_CERT_FILE")
            .env_remove("SSL_CERT_DIR")
            .env(variable, value)
            .arg("pull")
            .arg(format!("--work_dir={}", dir.path().display()))
            .args(["--retries_max=0", &format!("docker:localhost:{}/none:1", front.port())])
            .output()
            .unwrap();
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(said.contains(expected), "{variable}: {said}");
    }
}

// ---- HTTP/2 -------------------------------------------------------------------------------------------------

fn trusting(authority: &Authority) -> impl FnOnce(&mut RegistrySettings) + use<> {
    let file = authority.file("ca.pem");
    move |settings| settings.ca_file = Some(file)
}

#[test]
fn blobs_that_are_not_read_do_not_hold_up_others_on_their_connection() {
    let Some((authority, registry, front)) = over_tls(HTTP2, |_| String::new()) else { return };
    // More in all than any window, and each more than a stream's.
    let layers: Vec<Vec<u8>> = (0..14u8).map(|n| vec![n; 6 << 20]).collect();
    let slices: Vec<&[u8]> = layers.iter().map(Vec::as_slice).collect();
    registry.put_image("large", "1", &slices);
    let rig = Rig::new(trusting(&authority));
    let plan = rig.plan(&format!("localhost:{}/large:1", front.port()));
    let (last, held) = plan.layers.split_last().unwrap();
    let held: Vec<_> = held.iter().map(|layer| rig.open(layer).unwrap()).collect();
    assert!(rig.fetch(last) == layers[13], "it comes though thirteen others wait");
    for (blob, expected) in held.into_iter().zip(&layers) {
        assert!(read(blob) == *expected);
    }
    let log = front.wait_for_log(17);
    assert_eq!(log.len(), 17, "manifest, where plain http was tried first, config, layers: {log:#?}");
    let over_two: Vec<_> = log.iter().filter(|request| request.protocol == "HTTP/2.0").collect();
    assert_eq!(over_two.len(), 16);
    assert!(over_two.iter().all(|request| request.connection == over_two[0].connection), "{log:#?}");
}

#[test]
fn docker_registry_behind_nginx_is_pulled_over_http2() {
    if !have(&["docker-registry", "nginx", "openssl"]) {
        return;
    }
    let (authority, upstream) = (Authority::new(), TestRegistry::start());
    let image = upstream.put_image("app", "1", &LAYERS);
    let cache = Cache::before(&upstream, &image);
    let front = Nginx::front(&authority, HTTP2, "", &cache.address());
    // Its own log tells how it was asked; plain http is not tried where https is written.
    let (_dir, path) = hosts("r.test", &format!("server = \"https://localhost:{}\"\n", front.port()));
    let rig = Rig::new(|settings| {
        trusting(&authority)(settings);
        settings.hosts_dirs = vec![path];
    });
    expect_pull(&rig, "r.test/app:1");
    let log = front.wait_for_log(4);
    assert_eq!(log.len(), 4, "{log:#?}");
    assert!(log.iter().all(|request| request.protocol == "HTTP/2.0"), "{log:#?}");
    assert!(log.iter().all(|request| request.path.ends_with("?ns=r.test")), "{log:#?}");
}

#[test]
fn a_server_without_http2_and_the_flag_against_it_are_honoured() {
    for (listen, http2) in [(TLS, true), (HTTP2, false)] {
        let Some((authority, _registry, front)) = over_tls(listen, |_| String::new()) else { return };
        let rig = Rig::new(|settings| {
            trusting(&authority)(settings);
            settings.http2 = http2;
        });
        expect_pull(&rig, &format!("localhost:{}/app:1", front.port()));
        let log = front.wait_for_log(5);
        assert!(log.iter().all(|request| request.protocol == "HTTP/1.1"), "{log:#?}");
        let tls: Vec<_> = log.iter().filter(|request| request.connection != log[0].connection).collect();
        assert!(tls.iter().all(|request| request.connection == tls[0].connection), "it is reused: {log:#?}");
    }
}

#[test]
fn an_http2_connection_that_ends_is_made_again() {
    // Two requests a connection, then nginx says GOAWAY.
    let Some((authority, registry, front)) = over_tls(HTTP2, |_| "keepalive_requests 2;".to_owned()) else {
        return;
    };
    let rig = Rig::new(trusting(&authority));
    for _ in 0..3 {
        expect_pull(&rig, &format!("localhost:{}/app:1", front.port()));
    }
    assert_eq!(registry.seen().len(), 12);
}

// ---- addresses ----------------------------------------------------------------------------------------------

#[test]
fn addresses_of_the_sixth_version_are_spoken_to() {
    if TcpListener::bind("[::1]:0").is_err() {
        eprintln!("skipped: no IPv6 on loopback");
        return;
    }
    let Some((authority, _registry, front)) =
        over_tls("127.0.0.1:PORT ssl http2; listen [::1]:PORT ssl http2", |_| String::new())
    else {
        return;
    };
    let rig = Rig::new(trusting(&authority));
    expect_pull(&rig, &format!("[::1]:{}/app:1", front.port()));
    // Both at once: a name of both, one of which answers.
    let Some((authority, _registry, front)) = over_tls(TLS, |_| String::new()) else { return };
    let rig = Rig::new(trusting(&authority));
    expect_pull(&rig, &format!("localhost:{}/app:1", front.port()));
}

#[test]
fn a_name_without_address_is_told() {
    let rig = Rig::new(|settings| {
        settings.insecure = nowhere().parse().unwrap();
        settings.limits.retries_max = 5;
    });
    let error = rig.refusal(&format!("{}/app:1", nowhere()));
    let expected = format!("cannot reach {0}: cannot resolve host {0:?}: ", nowhere());
    assert!(error.contains(&expected), "{error}");
}
