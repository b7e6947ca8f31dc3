//! Every rule: a value that keeps to it, and values that do not.

use keelblock_actors::image::appc::{AppcManifest, EventName, Port};
use serde_json::{Value, json};

use super::{ManifestError, parse, to_json};

const BYTES_MAX: u64 = 64 << 10;

fn minimal() -> Value {
    json!({"acKind": "ImageManifest", "acVersion": "0.8.11", "name": "example.com/app"})
}

fn read(manifest: &Value) -> Result<AppcManifest, ManifestError> {
    parse(manifest.to_string().as_bytes(), BYTES_MAX)
}

/// The minimal manifest with a field.
fn with(key: &str, value: Value) -> Result<AppcManifest, ManifestError> {
    let mut manifest = minimal();
    manifest[key] = value;
    read(&manifest)
}

/// With an app that has a field.
fn app(key: &str, value: Value) -> Result<AppcManifest, ManifestError> {
    let mut app = json!({"exec": ["/a"], "user": "0", "group": "0"});
    app[key] = value;
    with("app", app)
}

/// With one isolator.
fn isolator(name: &str, value: Value) -> Result<AppcManifest, ManifestError> {
    app("isolators", json!([{"name": name, "value": value}]))
}

/// Which field an error is about.
fn field(result: Result<AppcManifest, ManifestError>) -> String {
    match result {
        Err(ManifestError::Field { field, found, allowed }) => {
            assert!(!allowed.is_empty() && !found.is_empty());
            field
        }
        Err(ManifestError::Missing { field, .. }) => format!("no {field}"),
        Err(other) => other.to_string(),
        Ok(manifest) => panic!("it is taken: {manifest:?}"),
    }
}

#[test]
fn the_example_of_the_specification_is_read() {
    let id = format!("sha512-{}", "ab".repeat(64));
    let document = json!({
        "acKind": "ImageManifest", "acVersion": "0.8.11", "name": "example.com/reduce-worker",
        "labels": [{"name": "version", "value": "1.0.0"}, {"name": "arch", "value": "amd64"}, {"name": "os", "value": "linux"}],
        "app": {
            "exec": ["/usr/bin/reduce-worker", "--quiet"], "user": "100", "group": "300", "supplementaryGids": [400, 500],
            "eventHandlers": [
                {"exec": ["/usr/bin/data-downloader"], "name": "pre-start"},
                {"exec": ["/usr/bin/deregister-worker", "--verbose"], "name": "post-stop"},
            ],
            "workingDirectory": "/opt/work",
            "environment": [{"name": "REDUCE_WORKER_DEBUG", "value": "true"}],
            "isolators": [
                {"name": "resource/cpu", "value": {"request": "250m", "limit": "500m"}},
                {"name": "resource/memory", "value": {"request": "1G", "limit": "2G"}},
                {"name": "os/linux/capabilities-retain-set", "value": {"set": ["CAP_NET_BIND_SERVICE"]}},
            ],
            "mountPoints": [{"name": "work", "path": "/var/lib/work", "readOnly": false}],
            "ports": [
                {"name": "health", "port": 4000, "protocol": "tcp", "socketActivated": true},
                {"name": "ftp-data", "port": 20000, "count": 1000, "protocol": "tcp"},
            ],
        },
        "dependencies": [{
            "imageName": "example.com/reduce-worker-base", "imageID": id,
            "labels": [{"name": "os", "value": "linux"}, {"name": "env", "value": "canary"}], "size": 22017258,
        }],
        "pathWhitelist": ["/etc/ca/example.com/crt", "/etc/systemd/system/"],
        "annotations": [
            {"name": "authors", "value": "Carly Container <carly@example.com>"},
            {"name": "created", "value": "2014-10-27T19:32:27.67021798Z"},
            {"name": "documentation", "value": "https://example.com/docs"},
            {"name": "homepage", "value": "https://example.com"},
            {"name": "appc.io/executor/supports-systemd-notify", "value": "false"},
        ],
    });
    let manifest = read(&document).unwrap();
    // Written and read again it is the same; and what is not there is not written.
    assert_eq!(read(&to_json(&manifest)).unwrap(), manifest);
    assert_eq!(to_json(&read(&minimal()).unwrap()), minimal());
    assert_eq!(manifest.name.to_string(), "example.com/reduce-worker:1.0.0,arch=amd64,os=linux");
    let app = manifest.app.unwrap();
    assert_eq!((app.exec.len(), app.user.as_str(), app.group.as_str()), (2, "100", "300"));
    assert_eq!(app.supplementary_gids, [400, 500]);
    assert_eq!(app.event_handlers[0].name, EventName::PreStart);
    assert_eq!(app.event_handlers[1].exec.len(), 2);
    assert_eq!(app.environment, [("REDUCE_WORKER_DEBUG".to_owned(), "true".to_owned())]);
    assert_eq!(app.isolators[1].value, r#"{"limit":"2G","request":"1G"}"#);
    assert_eq!(app.mount_points[0].path, "/var/lib/work");
    let counts: Vec<_> =
        app.ports.iter().map(|Port { count, socket_activated, .. }| (*count, *socket_activated)).collect();
    assert_eq!(counts, [(1, true), (1000, false)]);
    let dependency = &manifest.dependencies[0];
    assert_eq!(dependency.name.to_string(), "example.com/reduce-worker-base,env=canary,os=linux");
    assert_eq!(dependency.image_id.as_ref().unwrap().to_string(), id);
    assert_eq!(dependency.size, Some(22017258));
    assert_eq!((manifest.path_whitelist.len(), manifest.annotations.len()), (2, 5));
}

#[test]
fn kind_version_and_name_must_be_there() {
    let manifest = read(&minimal()).unwrap();
    assert_eq!((manifest.app, manifest.dependencies.len(), manifest.path_whitelist.len()), (None, 0, 0));
    for key in ["acKind", "acVersion", "name"] {
        let mut without = minimal();
        without.as_object_mut().unwrap().remove(key);
        assert_eq!(field(read(&without)), format!("no {key}"));
        assert_eq!(field(with(key, json!(7))), key);
        assert_eq!(field(with(key, json!(null))), format!("no {key}"));
        assert_eq!(field(with(key, json!(""))), key);
    }
    assert_eq!(field(with("acKind", json!("PodManifest"))), "acKind");
    assert_eq!(field(with("acVersion", json!("1.0.0"))), "acVersion");
    for name in ["Example", "a b", "a//b", "/a", "a/../b", "a:1"] {
        assert_eq!(field(with("name", json!(name))), "name", "{name}");
    }
}

#[test]
fn what_is_no_json_or_ambiguous_is_refused() {
    for text in
        ["", "{", "[]", "7", "{}x", "\u{0}", "{\"acKind\": \"ImageManifest\", \"acKind\": \"ImageManifest\"}"]
    {
        assert!(parse(text.as_bytes(), BYTES_MAX).is_err(), "{text}");
    }
    let twice = r#"{"acKind":"ImageManifest","acVersion":"0.8.11","name":"a","app":{"exec":[],"user":"0","group":"0","x":[{"y":1,"y":2}]}}"#;
    let error = parse(twice.as_bytes(), BYTES_MAX).unwrap_err();
    assert!(keelblock_actors::error::chain(&error).contains("the key \"y\" is there twice"), "{error:?}");
    assert!(parse("[".repeat(100_000).as_bytes(), 1 << 20).is_err());
    assert!(parse(&[0xff, 0xfe], BYTES_MAX).is_err());
    let bytes = minimal().to_string();
    assert!(parse(bytes.as_bytes(), bytes.len() as u64).is_ok());
    assert!(matches!(parse(bytes.as_bytes(), bytes.len() as u64 - 1), Err(ManifestError::TooLarge { .. })));
}

#[test]
fn unknown_fields_are_ignored_and_null_is_nothing() {
    with("novelty", json!({"a": [1]})).unwrap();
    app("novelty", json!(1)).unwrap();
    for key in ["labels", "app", "annotations", "dependencies", "pathWhitelist"] {
        with(key, json!(null)).unwrap();
        assert_eq!(field(with(key, json!(7))), key);
    }
    for key in [
        "exec",
        "eventHandlers",
        "environment",
        "mountPoints",
        "ports",
        "isolators",
        "supplementaryGIDs",
        "workingDirectory",
        "userAnnotations",
    ] {
        app(key, json!(null)).unwrap();
        assert_eq!(field(app(key, json!(7))), format!("app.{key}"));
    }
}

#[test]
fn labels_are_unique_and_of_known_platforms() {
    let labels = |pairs: &[(&str, &str)]| {
        let labels: Vec<_> =
            pairs.iter().map(|(name, value)| json!({"name": name, "value": value})).collect();
        with("labels", json!(labels))
    };
    for good in [
        &[("version", "1.0"), ("channel", "any text, commas too")][..],
        &[("os", "linux")],
        &[("os", "linux"), ("arch", "amd64")],
        &[("os", "linux"), ("arch", "aarch64_be")],
        &[("os", "linux"), ("arch", "s390x")],
        &[("os", "freebsd"), ("arch", "arm")],
        &[("os", "darwin"), ("arch", "x86_64")],
        &[("x", "")],
    ] {
        labels(good).unwrap();
    }
    assert_eq!(field(labels(&[("name", "x")])), "labels");
    assert_eq!(field(labels(&[("a", "1"), ("a", "1")])), "labels[1].name");
    assert_eq!(field(labels(&[("A", "1")])), "labels[0].name");
    assert_eq!(field(labels(&[("os", "plan9")])), "labels (os)");
    assert_eq!(field(labels(&[("os", "linux"), ("arch", "x86_64")])), "labels (arch)");
    assert_eq!(field(labels(&[("os", "darwin"), ("arch", "amd64")])), "labels (arch)");
    assert_eq!(field(labels(&[("arch", "amd64")])), "labels (arch)");
    assert_eq!(field(with("labels", json!([{"name": "a"}]))), "no labels[0].value");
    assert_eq!(field(with("labels", json!([{"value": "a"}]))), "no labels[0].name");
    assert_eq!(field(with("labels", json!([{"name": "a", "value": 1}]))), "labels[0].value");
    assert_eq!(field(with("labels", json!(["a"]))), "labels[0]");
}

#[test]
fn annotations_are_unique_and_those_of_the_specification_have_their_form() {
    let annotation = |name: &str, value: &str| with("annotations", json!([{"name": name, "value": value}]));
    annotation("created", "2014-10-27T19:32:27Z").unwrap();
    annotation("homepage", "https://example.com").unwrap();
    annotation("anything", "at all").unwrap();
    assert_eq!(field(annotation("created", "yesterday")), "annotations (created)");
    assert_eq!(field(annotation("homepage", "ftp://example.com")), "annotations (homepage)");
    assert_eq!(field(annotation("documentation", "man 1 app")), "annotations (documentation)");
    let twice = json!([{"name": "a", "value": "1"}, {"name": "a", "value": "2"}]);
    assert_eq!(field(with("annotations", twice)), "annotations[1].name");
}

#[test]
fn dependencies_have_a_name_and_may_have_more() {
    let dependency = |value: Value| with("dependencies", json!([value]));
    let id = format!("sha512-{}", "0".repeat(128));
    dependency(json!({"imageName": "a"})).unwrap();
    let manifest = dependency(json!({"imageName": "a", "imageID": id, "size": 0, "labels": null})).unwrap();
    assert_eq!(manifest.dependencies[0].size, None);
    assert_eq!(field(dependency(json!({}))), "no dependencies[0].imageName");
    assert_eq!(field(dependency(json!({"imageName": "A"}))), "dependencies[0].imageName");
    for bad in ["sha512-12", "sha256-00", "", "md5-0"] {
        assert_eq!(
            field(dependency(json!({"imageName": "a", "imageID": bad}))),
            "dependencies[0].imageID",
            "{bad}"
        );
    }
    for size in [json!(-1), json!(1.5), json!("7"), json!(1e30)] {
        assert_eq!(field(dependency(json!({"imageName": "a", "size": size}))), "dependencies[0].size");
    }
    let labels = json!({"imageName": "a", "labels": [{"name": "os", "value": "linux"}, {"name": "os", "value": "linux"}]});
    assert_eq!(field(dependency(labels)), "dependencies[0].labels[1].name");
}

#[test]
fn a_path_whitelist_has_absolute_paths() {
    with("pathWhitelist", json!([])).unwrap();
    with("pathWhitelist", json!(["/a", "/etc/systemd/system/"])).unwrap();
    assert_eq!(field(with("pathWhitelist", json!(["/a", "b"]))), "pathWhitelist[1]");
    assert_eq!(field(with("pathWhitelist", json!([""]))), "pathWhitelist[0]");
    assert_eq!(field(with("pathWhitelist", json!([7]))), "pathWhitelist[0]");
}

#[test]
fn an_app_has_a_user_and_a_group_and_may_have_no_command() {
    assert!(app("exec", json!(null)).unwrap().app.unwrap().exec.is_empty());
    assert!(app("exec", json!([])).unwrap().app.unwrap().exec.is_empty());
    assert_eq!(field(app("exec", json!(["", "a"]))), "app.exec[0]");
    assert_eq!(field(app("exec", json!(["a\u{0}b"]))), "app.exec[0]");
    for key in ["user", "group"] {
        assert_eq!(field(app(key, json!(null))), format!("no app.{key}"));
        assert_eq!(field(app(key, json!(""))), format!("app.{key}"));
        assert_eq!(field(app(key, json!(0))), format!("app.{key}"));
        app(key, json!("/usr/bin/ping")).unwrap();
    }
    assert_eq!(field(app("workingDirectory", json!("work"))), "app.workingDirectory");
    assert_eq!(app("workingDirectory", json!("")).unwrap().app.unwrap().working_directory, None);
    assert_eq!(app("supplementaryGIDs", json!([0, 7])).unwrap().app.unwrap().supplementary_gids, [0, 7]);
    for group in [json!(-1), json!(4294967295u64), json!("7"), json!(1.5)] {
        assert_eq!(field(app("supplementaryGIDs", json!([group]))), "app.supplementaryGIDs[0]");
    }
    app("userLabels", json!({"Any Text": "x"})).unwrap();
    assert_eq!(field(app("userAnnotations", json!({"a": 1}))), "app.userAnnotations.a");
}

#[test]
fn event_handlers_are_one_of_each_name() {
    let handler = |name: &str| json!({"name": name, "exec": ["/x"]});
    app("eventHandlers", json!([handler("pre-start"), handler("post-stop")])).unwrap();
    assert_eq!(field(app("eventHandlers", json!([handler("post-start")]))), "app.eventHandlers[0].name");
    assert_eq!(field(app("eventHandlers", json!([{"exec": ["/x"]}]))), "no app.eventHandlers[0].name");
    let twice = json!([handler("pre-start"), handler("pre-start")]);
    assert_eq!(field(app("eventHandlers", twice)), "app.eventHandlers[1].name");
    let idle = app("eventHandlers", json!([{"name": "pre-start", "exec": []}])).unwrap();
    assert!(idle.app.unwrap().event_handlers.is_empty());
}

#[test]
fn variables_have_names_that_shells_know() {
    let variable = |name: &str| app("environment", json!([{"name": name, "value": "a=b\nc"}]));
    for name in ["A", "_", "a1", "A.B-C", "path"] {
        variable(name).unwrap();
    }
    for name in ["", "1A", "-A", ".A", "A=B", "A B", "é"] {
        assert_eq!(field(variable(name)), "app.environment[0].name", "{name}");
    }
    let twice = json!([{"name": "A", "value": "1"}, {"name": "A", "value": "1"}]);
    assert_eq!(field(app("environment", twice)), "app.environment[1].name");
    assert_eq!(field(app("environment", json!([{"name": "A"}]))), "no app.environment[0].value");
}

#[test]
fn mount_points_have_unique_names_and_absolute_paths() {
    let point = |name: &str, path: &str| json!({"name": name, "path": path});
    let read =
        app("mountPoints", json!([point("work-1", "/w"), {"name": "b", "path": "/b", "readOnly": true}]))
            .unwrap();
    assert!(read.app.unwrap().mount_points[1].read_only);
    assert_eq!(field(app("mountPoints", json!([point("a/b", "/w")]))), "app.mountPoints[0].name");
    assert_eq!(field(app("mountPoints", json!([point("a", "w")]))), "app.mountPoints[0].path");
    assert_eq!(field(app("mountPoints", json!([point("a", "")]))), "app.mountPoints[0].path");
    assert_eq!(
        field(app("mountPoints", json!([point("a", "/w"), point("a", "/x")]))),
        "app.mountPoints[1].name"
    );
    let odd = json!([{"name": "a", "path": "/a", "readOnly": "yes"}]);
    assert_eq!(field(app("mountPoints", odd)), "app.mountPoints[0].readOnly");
}

#[test]
fn ports_end_at_65535() {
    let port = |port: Value, count: Value| {
        app("ports", json!([{"name": "http", "protocol": "tcp", "port": port, "count": count}]))
    };
    let count = |result: Result<AppcManifest, ManifestError>| result.unwrap().app.unwrap().ports[0].count;
    assert_eq!(count(port(json!(1), json!(null))), 1);
    assert_eq!(count(port(json!(65535), json!(0))), 1);
    assert_eq!(count(port(json!(65535), json!(1))), 1);
    assert_eq!(count(port(json!(1), json!(65535))), 65535);
    for bad in [json!(0), json!(65536), json!(-1), json!("80")] {
        assert_eq!(field(port(bad, json!(1))), "app.ports[0].port");
    }
    assert_eq!(field(port(json!(null), json!(1))), "no app.ports[0].port");
    assert_eq!(field(port(json!(65535), json!(2))), "app.ports[0].count");
    assert_eq!(field(port(json!(2), json!(u64::MAX))), "app.ports[0].count");
    assert_eq!(
        field(app("ports", json!([{"name": "a.b", "protocol": "tcp", "port": 1}]))),
        "app.ports[0].name"
    );
    assert_eq!(field(app("ports", json!([{"name": "a", "port": 1}]))), "no app.ports[0].protocol");
}

#[test]
fn isolators_of_the_specification_have_the_values_that_it_says() {
    for (name, value) in [
        ("resource/cpu", json!({"request": "250m", "limit": "500m"})),
        ("resource/cpu", json!({"limit": 0.5})),
        ("resource/memory", json!({"limit": "1Gi"})),
        ("resource/memory", json!({"limit": 1e9, "request": null, "default": false})),
        ("resource/block-bandwidth", json!({"default": true, "limit": "2M"})),
        ("resource/block-iops", json!({"default": true, "limit": "1000"})),
        ("resource/network-bandwidth", json!({"default": true, "limit": "1G"})),
        ("os/linux/capabilities-retain-set", json!({"set": ["CAP_NET_ADMIN"]})),
        ("os/linux/capabilities-remove-set", json!({"set": ["CAP_MKNOD"]})),
        ("os/linux/no-new-privileges", json!(true)),
        ("os/linux/seccomp-remove-set", json!({"set": ["clock_adjtime"], "errno": "ENOTSUP"})),
        ("os/linux/seccomp-retain-set", json!({"set": ["@appc.io/all"], "errno": ""})),
        ("os/linux/oom-score-adj", json!(-1000)),
        ("os/linux/cpu-shares", json!(2)),
        ("os/linux/selinux-context", json!({"user": "u", "role": "r", "type": "t", "level": "s0:c1"})),
        ("os/linux/apparmor-profile", json!({"profile": "p"})),
        ("os/unix/sysctl", json!({"net.ipv4.tcp_mtu_probing": "1"})),
        ("example.com/own", json!(null)),
        ("example.com/own", json!({"any": ["thing"]})),
    ] {
        let read = isolator(name, value.clone()).unwrap_or_else(|error| panic!("{name} {value}: {error}"));
        assert_eq!(read.app.unwrap().isolators[0].value, value.to_string());
    }
    for (name, value, at) in [
        ("resource/cpu", json!({"limit": "half"}), ".limit"),
        ("resource/cpu", json!({"limit": "-1"}), ".limit"),
        ("resource/cpu", json!({"request": ["1"]}), ".request"),
        ("resource/memory", json!({"limit": "1G", "default": true}), ".default"),
        ("resource/memory", json!("1G"), ""),
        ("resource/block-bandwidth", json!({"limit": "2M"}), ".default"),
        ("resource/block-iops", json!({"default": true, "request": "1"}), ".request"),
        ("resource/network-bandwidth", json!({"default": "true"}), ".default"),
        ("os/linux/no-new-privileges", json!("true"), ""),
        ("os/linux/seccomp-remove-set", json!({"set": ["x"], "errno": "eperm"}), ".errno"),
        ("os/linux/seccomp-remove-set", json!({"set": ["x"], "errno": "PERM"}), ".errno"),
        ("os/linux/oom-score-adj", json!(1001), ""),
        ("os/linux/oom-score-adj", json!(1.5), ""),
        ("os/linux/cpu-shares", json!(1), ""),
        ("os/linux/cpu-shares", json!(262145), ""),
        ("os/linux/selinux-context", json!({"user": "a:b", "role": "r", "type": "t", "level": "l"}), ".user"),
        ("os/linux/selinux-context", json!({"user": "u", "role": "r", "type": "t", "level": ""}), ".level"),
        ("os/linux/apparmor-profile", json!({"profile": ""}), ".profile"),
        ("os/unix/sysctl", json!({"a": 1}), ".a"),
    ] {
        assert_eq!(
            field(isolator(name, value.clone())),
            format!("app.isolators[0].value{at}"),
            "{name} {value}"
        );
    }
    for name in ["os/linux/capabilities-retain-set", "os/linux/seccomp-retain-set"] {
        for value in [json!({}), json!({"set": []}), json!({"set": null})] {
            assert_eq!(field(isolator(name, value)), "no app.isolators[0].value.set");
        }
    }
    assert_eq!(field(isolator("Resource", json!(1))), "app.isolators[0].name");
    assert_eq!(field(app("isolators", json!([{"name": "resource/cpu"}]))), "no app.isolators[0].value");
}

#[test]
fn isolators_that_exclude_each_other_do() {
    let two = |first: &str, second: &str, value: Value| {
        app("isolators", json!([{"name": first, "value": value}, {"name": second, "value": value}]))
    };
    let set = json!({"set": ["x"]});
    for kind in ["capabilities", "seccomp"] {
        let name = |which: &str| format!("os/linux/{kind}-{which}-set");
        assert_eq!(field(two(&name("retain"), &name("remove"), set.clone())), "app.isolators[1].name");
        assert_eq!(field(two(&name("remove"), &name("retain"), set.clone())), "app.isolators[1].name");
    }
    let seccomp = "os/linux/seccomp-remove-set";
    assert_eq!(field(two(seccomp, seccomp, set)), "app.isolators[1].name");
    for name in ["os/linux/oom-score-adj", "os/linux/cpu-shares"] {
        assert_eq!(field(two(name, name, json!(2))), "app.isolators[1].name");
    }
    // The last one counts.
    two("resource/cpu", "resource/cpu", json!({"limit": "1"})).unwrap();
}

#[test]
fn errors_name_field_value_and_what_is_allowed() {
    let long = "x".repeat(10_000);
    let error = with("acKind", json!(long)).unwrap_err().to_string();
    assert!(
        error.starts_with("acKind of the manifest is \"xxx")
            && error.ends_with("it must be \"ImageManifest\""),
        "{error}"
    );
    assert!(error.len() < 400);
    let error = app("user", json!(null)).unwrap_err().to_string();
    assert_eq!(
        error,
        "the manifest has no app.user: it must be there, and be a name, a number or an absolute path"
    );
}
