//! `hosts.toml` in the forms that its documentation has, and in wrong ones.

use proptest::prelude::*;

use super::*;
use crate::puller::registry::InsecureRegistries;
use keelblock_actors::image::reference::Reference;

const DIR: &str = "/etc/certs.d/r.io";

fn own(name: &str) -> Endpoint {
    let reference: Reference = name.parse().unwrap();
    Endpoint::of(&reference, None, &InsecureRegistries::default())
}

fn file(text: &str) -> HostsFile {
    HostsFile::parse(text, Path::new(DIR)).unwrap_or_else(|error| panic!("{text}: {error:?}"))
}

/// The address of a manifest at each server, in order.
fn addresses(text: &str, name: &str) -> Vec<String> {
    let endpoints = file(text).endpoints(&own(name));
    endpoints.iter().map(|endpoint| endpoint.address("manifests/1").unwrap().to_string()).collect()
}

#[test]
fn hosts_are_asked_in_the_order_of_the_file_and_the_registry_last() {
    let text = r#"
        server = "https://registry-1.docker.io"
        [host."https://z.mirror:5000"]
          capabilities = ["pull"]
        [host."http://a.mirror/prefix"]
        [host."m.mirror/v2/proxy"]
          override_path = true
    "#;
    assert_eq!(
        addresses(text, "busybox"),
        [
            "https://z.mirror:5000/v2/library/busybox/manifests/1?ns=docker.io",
            "http://a.mirror/prefix/v2/library/busybox/manifests/1?ns=docker.io",
            "https://m.mirror/v2/proxy/library/busybox/manifests/1?ns=docker.io",
            "https://registry-1.docker.io/v2/library/busybox/manifests/1",
        ]
    );
}

#[test]
fn without_a_server_the_registry_is_asked_as_ever() {
    let mirror = "[host.\"http://m\"]\n";
    assert_eq!(addresses(mirror, "r.io:5000/x").last().unwrap(), "https://r.io:5000/v2/x/manifests/1");
    assert_eq!(
        addresses(mirror, "127.0.0.1:5000/x").last().unwrap(),
        "http://127.0.0.1:5000/v2/x/manifests/1"
    );
    assert_eq!(addresses("", "r.io/x"), ["https://r.io/v2/x/manifests/1"]);
    assert_eq!(addresses("server = ''", "r.io/x"), ["https://r.io/v2/x/manifests/1"]);
    // Another server in its place is a mirror, and told so.
    assert_eq!(addresses("server = 'http://other:1'", "r.io/x"), ["http://other:1/v2/x/manifests/1?ns=r.io"]);
}

#[test]
fn paths_are_those_of_containerd() {
    let address = |host: &str, more: &str| {
        let text = format!("[host.\"{host}\"]\n{more}\n");
        let all = addresses(&text, "r.io/x");
        all[0].strip_suffix("/x/manifests/1?ns=r.io").unwrap().to_owned()
    };
    for (host, plain, overridden) in [
        ("https://m", "https://m/v2", "https://m"),
        ("https://m/", "https://m/v2", "https://m"),
        ("https://m/v2", "https://m/v2", "https://m/v2"),
        ("https://m/v2/", "https://m/v2", "https://m/v2"),
        ("https://m/a//b/./c/../", "https://m/a/b/v2", "https://m/a/b"),
        ("m:5000", "https://m:5000/v2", "https://m:5000"),
        ("http://[::1]:5000", "http://[::1]:5000/v2", "http://[::1]:5000"),
        ("HTTP://M", "http://m/v2", "http://m"),
    ] {
        assert_eq!(address(host, ""), plain, "{host}");
        assert_eq!(address(host, "override_path = true"), overridden, "{host}");
    }
}

#[test]
fn every_form_of_a_key_is_understood() {
    let text = r#"
        ca = "ca.pem"
        [host."https://a"]
          capabilities = ["pull", "Resolve", "push"]
          ca = ["/abs/ca.pem", "b.pem"]
          client = "both.pem"
          skip_verify = true
          dial_timeout = "1m1.5s"
          [host."https://a".header]
            x-one = "1"
            X-Two = ["2", "3"]
        [host."https://b"]
          capabilities = ["resolve"]
          client = ["one.pem", "/two.pem"]
          dial_timeout = "250ms"
        [host."https://c"]
          capabilities = ["push", "fly"]
          client = [["c.pem", "c.key"]]
          unheard = 1
    "#;
    let file = file(text);
    let hosts: Vec<Host> = file.endpoints(&own("r.io/x")).iter().map(|one| (*one.host).clone()).collect();
    let [a, b, c, server] = hosts.as_slice() else { panic!("{hosts:?}") };
    let at = |name: &str| Path::new(DIR).join(name);
    let both = |name: &str| (at(name), at(name));
    assert_eq!(a.trust.ca, [PathBuf::from("/abs/ca.pem"), at("b.pem")]);
    assert_eq!(a.trust.client, [both("both.pem")]);
    assert!(a.trust.skip_verify && a.mirror && a.resolve && a.pull);
    assert_eq!(a.connect, Some(Duration::from_millis(61500)));
    assert_eq!(a.headers["x-one"], "1");
    assert_eq!(a.headers.get_all("x-two").iter().collect::<Vec<_>>(), ["2", "3"]);
    assert!(!format!("{a:?}").contains("\"2\""), "values of headers are secrets");
    assert_eq!((a.name.as_str(), server.name.as_str()), ("a", "r.io"));
    assert_eq!(b.trust.client, [both("one.pem"), (PathBuf::from("/two.pem"), PathBuf::from("/two.pem"))]);
    assert_eq!((b.resolve, b.pull, b.connect), (true, false, Some(Duration::from_millis(250))));
    assert_eq!(c.trust.client, [(at("c.pem"), at("c.key"))]);
    assert_eq!((c.resolve, c.pull), (false, false));
    assert_eq!(server.trust.ca, [at("ca.pem")]);
    assert!(!server.mirror && !server.trust.skip_verify);
    assert_eq!(file.unknown, ["host.\"https://c\".capabilities: fly", "host.\"https://c\".unheard"]);
}

#[test]
fn wrong_values_are_named_with_their_key() {
    for (text, key) in [
        ("server = 1", "server"),
        ("server = 'ftp://x'", "server"),
        ("server = 'https://user:secret@x'", "server"),
        ("server = 'https://x?y'", "server"),
        ("host = 1", "host"),
        ("[host]\na = 1", "host.\"a\""),
        ("[host.'https://']", "host.\"https://\""),
        ("[host.'https://a:99999']", "host.\"https://a:99999\""),
        ("[host.'a b']", "host.\"a b\""),
        ("[host.a]\nca = 1", "host.\"a\".ca"),
        ("[host.a]\nca = ['x', 1]", "host.\"a\".ca"),
        ("[host.a]\nclient = [['x']]", "host.\"a\".client"),
        ("[host.a]\nclient = [['x', 'y', 'z']]", "host.\"a\".client"),
        ("[host.a]\nclient = {}", "host.\"a\".client"),
        ("skip_verify = 'true'", "skip_verify"),
        ("[host.a]\noverride_path = 1", "host.\"a\".override_path"),
        ("capabilities = 'pull'", "capabilities"),
        ("capabilities = [1]", "capabilities"),
        ("[host.a]\nheader = []", "host.\"a\".header"),
        ("[host.a.header]\n'a b' = 'x'", "host.\"a\".header.a b"),
        ("[host.a.header]\nx = \"secret\\n\"", "host.\"a\".header.x"),
        ("[host.a.header]\nConnection = 'close'", "host.\"a\".header.Connection"),
        ("dial_timeout = 5", "dial_timeout"),
        ("dial_timeout = '5'", "dial_timeout"),
        ("dial_timeout = '-5s'", "dial_timeout"),
        ("dial_timeout = '5x'", "dial_timeout"),
        ("dial_timeout = '1..2s'", "dial_timeout"),
        ("dial_timeout = '99999999999999999999999h'", "dial_timeout"),
    ] {
        let error = HostsFile::parse(text, Path::new(DIR)).unwrap_err();
        let HostsFileError::Key(WrongKey(named, _)) = &error else { panic!("{text}: {error:?}") };
        assert_eq!(named, key, "{text}");
        let shown = error.of(Path::new("/f/hosts.toml")).to_string();
        assert!(!shown.contains("secret") || text.contains("server"), "{shown}");
    }
    let torn =
        HostsFile::parse("server = 'x'\n[host.\"x\".header]\nauthorization = \"secret", Path::new(DIR));
    let torn = torn.unwrap_err().of(Path::new("/f/hosts.toml")).to_string();
    assert!(torn.starts_with("/f/hosts.toml is not valid TOML: line 3: "), "{torn}");
    assert!(!torn.contains("secret"), "{torn}");
}

#[test]
fn plain_http_with_certificates_may_mean_tls() {
    let upgrades = |text: &str| file(text).endpoints(&own("r.io/x"))[0].host.may_upgrade;
    assert!(upgrades("[host.'http://a']\nskip_verify = true"));
    assert!(!upgrades("[host.'http://a']"));
    assert!(!upgrades("[host.'https://a']\nskip_verify = true"));
}

proptest! {
    #[test]
    fn any_text_is_understood_or_refused(text in "\\PC{0,200}") {
        let _ = HostsFile::parse(&text, Path::new(DIR));
    }

    #[test]
    fn the_order_of_hosts_is_kept(names in prop::collection::hash_set("[a-z]{1,8}", 1..20)) {
        let names: Vec<String> = names.into_iter().collect();
        let text: String = names.iter().map(|name| format!("[host.\"http://{name}\"]\n")).collect();
        let servers: Vec<String> =
            file(&text).endpoints(&own("r.io/x")).iter().map(|one| one.host.server.clone()).collect();
        prop_assert_eq!(&servers[..names.len()], &names[..]);
        prop_assert_eq!(&servers[names.len()], "r.io");
    }

    #[test]
    fn an_address_of_a_host_is_one_that_can_be_asked(address in "[a-zA-Z0-9:/.@?#\\[\\]-]{0,30}") {
        if let Some((_, server, path)) = place(&address, false) {
            let whole: Result<Uri, _> = format!("http://{server}{path}/x").parse();
            prop_assert!(whole.is_ok_and(|uri| uri.authority().is_some_and(|own| own.as_str() == server)));
        }
    }
}
