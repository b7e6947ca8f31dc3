//! The command against `docker-registry` with passwords and with tokens, its credentials from files and from a helper
//! program, everything logged: and no secret anywhere in what it says.

use std::io::Write;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{SystemTime, UNIX_EPOCH};

use serde_json::json;

mod support {
    pub(crate) mod binary;
    pub(crate) mod images;
    pub(crate) mod peers;
    pub(crate) mod registry;
}

use support::binary::{Invocation, Room, need_programs, run_program};
use support::images::{Compression, Image, shell};
use support::peers::Registry;
use support::registry::{Reply, Seen, TestRegistry};

const PASSWORD: &str = "open-sesame-7";
/// `user:open-sesame-7`.
const CODED: &str = "dXNlcjpvcGVuLXNlc2FtZS03";
/// The password by bcrypt, as `htpasswd -nbB` writes it.
const HASHED: &str = "user:$2y$05$abcdefghijklmnopqrstuuYhafDARXY0KToV89BBvM5ig95pRHC2G";

const IMAGE: &str = "team/app:1";

/// Pushes the image of these tests, by the user that they log in as.
fn push(registry: &Registry, room: &Room) {
    let layout = room.join("layout");
    Image::new().compressed(shell().finish(), Compression::Gzip).write_oci(&layout, "t");
    let source = format!("oci:{}:t", layout.display());
    let target = format!("docker://{}", registry.image(IMAGE));
    let login = format!("user:{PASSWORD}");
    let fixed = ["--insecure-policy", "copy", "--quiet", "--dest-tls-verify=false", "--dest-creds", &login];
    run_program("skopeo", fixed.into_iter().chain([source.as_str(), &target]));
}

/// A pull by a user whose home is the room, with everything logged.
fn pull<'r>(room: &'r Room, image: &str) -> Invocation<'r> {
    let mut pull = room.keelblock(["--log_level=trace", "--retries_max=0", "pull", image]);
    pull = pull.env("HOME", room.path());
    for name in ["XDG_RUNTIME_DIR", "XDG_CONFIG_HOME", "DOCKER_CONFIG", "REGISTRY_AUTH_FILE"] {
        pull = pull.env(name, "");
    }
    pull
}

#[track_caller]
fn expect_no_secret(text: &str) {
    for secret in [PASSWORD, CODED] {
        assert!(!text.contains(secret), "{secret} is in:\n{text}");
    }
}

fn config(host: impl ToString) -> String {
    json!({"auths": {host.to_string(): {"auth": CODED}}}).to_string()
}

/// A helper program in a directory of its own, which is given as the first of `PATH`.
fn helper(room: &Room, script: &str) -> String {
    let dir = room.join("bin");
    std::fs::create_dir_all(&dir).unwrap();
    // Written by another process: one that this one has open could not be executed.
    let mut shell = Command::new("sh")
        .args(["-c", r#"cat > "$0" && chmod 755 "$0""#])
        .arg(dir.join("docker-credential-test"))
        .stdin(Stdio::piped())
        .spawn()
        .unwrap();
    shell.stdin.take().unwrap().write_all(format!("#!/bin/sh\n{script}\n").as_bytes()).unwrap();
    assert!(shell.wait().unwrap().success());
    format!("{}:{}", dir.display(), std::env::var("PATH").unwrap_or_default())
}

#[test]
fn every_source_logs_in_at_a_registry_with_passwords() {
    need_programs!("docker-registry", "skopeo");
    let room = Room::new("credentials");
    std::fs::write(room.join("htpasswd"), HASHED).unwrap();
    let auth = format!("auth: {{htpasswd: {{realm: r, path: {}}}}}", room.join("htpasswd").display());
    let registry = Registry::start_with(&auth);
    push(&registry, &room);
    let (image, host) = (registry.image(IMAGE), registry.address().to_string());
    let usual = room.join(".docker/config.json");

    let nobody = pull(&room, &image).run().code(125).stderr();
    assert!(nobody.contains(&format!("none for {host} in ")), "{nobody}");
    assert!(nobody.contains(&usual.display().to_string()), "{nobody}");

    std::fs::create_dir_all(room.join(".docker")).unwrap();
    let wrong = json!({"auths": {&host: {"username": "user", "password": "no"}}}).to_string();
    std::fs::write(&usual, wrong).unwrap();
    let denied = pull(&room, &image).run().code(125).stderr();
    let expected = format!("asked as \"user\" of {}", usual.display());
    assert!(denied.contains(&expected), "{denied}");

    // Each is asked anew, and each counts before what is in the usual places.
    let login = format!("user:{PASSWORD}");
    expect_no_secret(&pull(&room, &image).env("KEELBLOCK_DOCKER_AUTH", login).run().ok().stderr());
    let text = config(&host);
    expect_no_secret(&pull(&room, &image).env("KEELBLOCK_DOCKER_CONFIG", &text).run().ok().stderr());
    std::fs::create_dir_all(room.join("other")).unwrap();
    std::fs::write(room.join("other/config.json"), config(format!("{host}/team"))).unwrap();
    let by_directory = pull(&room, &image).arg("--docker_config=other").run().ok().stderr();
    expect_no_secret(&by_directory);
    let named = room.join("other/config.json");
    expect_no_secret(&pull(&room, &image).env("REGISTRY_AUTH_FILE", named).run().ok().stderr());

    let script = format!(
        r#"read server; [ "$server" = {host} ] || exit 2; echo '{{"ServerURL":"{host}","Username":"user","Secret":"{PASSWORD}"}}'"#
    );
    let path = helper(&room, &script);
    for member in [json!({"credHelpers": {&host: "test"}}), json!({"credsStore": "test"})] {
        std::fs::write(&usual, member.to_string()).unwrap();
        expect_no_secret(&pull(&room, &image).env("PATH", &path).run().ok().stderr());
    }
    let missing = pull(&room, &image).run().code(125).stderr();
    let expected =
        format!("cannot run docker-credential-test, which credsStore of {} names", usual.display());
    assert!(missing.contains(&expected), "{missing}");
    let path = helper(&room, "echo 'the keychain is locked' >&2; exit 1");
    let locked = pull(&room, &image).env("PATH", &path).run().code(125).stderr();
    assert!(locked.contains("it says \"the keychain is locked\""), "{locked}");

    std::fs::write(&usual, PASSWORD).unwrap();
    let broken = pull(&room, &image).run().code(125).stderr();
    assert!(broken.contains(&usual.display().to_string()) && broken.contains("it is no JSON"), "{broken}");
    for text in [nobody, denied, missing, locked, broken] {
        expect_no_secret(&text);
    }
}

/// The base64 of JSON Web Tokens (RFC 7515).
fn base64_url(bytes: &[u8]) -> String {
    let mut openssl = Command::new("openssl")
        .args(["base64", "-A"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    openssl.stdin.take().unwrap().write_all(bytes).unwrap();
    let text = String::from_utf8(openssl.wait_with_output().unwrap().stdout).unwrap();
    text.trim().trim_end_matches('=').replace('+', "-").replace('/', "_")
}

/// A token for what is asked, signed by the key in this directory.
fn signed(dir: &Path, seen: &Seen) -> String {
    let query = seen.query.replace("%3A", ":").replace("%2F", "/").replace("%2C", ",");
    let scope = query.split('&').find_map(|part| part.strip_prefix("scope=repository:"));
    let (name, actions) = scope.and_then(|scope| scope.rsplit_once(':')).unwrap_or_default();
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs();
    let claims = json!({
        "iss": "keelblock-test", "aud": "keelblock-test", "sub": "user", "jti": "1",
        "iat": now, "nbf": now - 60, "exp": now + 600,
        "access": [{"type": "repository", "name": name, "actions": actions.split(',').collect::<Vec<_>>()}],
    });
    let pem = std::fs::read_to_string(dir.join("cert.pem")).unwrap();
    let der: String = pem.lines().filter(|line| !line.starts_with('-')).collect();
    let head = json!({"typ": "JWT", "alg": "RS256", "x5c": [der]});
    let text =
        format!("{}.{}", base64_url(head.to_string().as_bytes()), base64_url(claims.to_string().as_bytes()));
    let mut openssl = Command::new("openssl")
        .args(["dgst", "-sha256", "-sign"])
        .arg(dir.join("key.pem"))
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    openssl.stdin.take().unwrap().write_all(text.as_bytes()).unwrap();
    format!("{text}.{}", base64_url(&openssl.wait_with_output().unwrap().stdout))
}

#[test]
fn a_registry_with_tokens_lets_in_whom_its_token_server_knows() {
    need_programs!("docker-registry", "skopeo", "openssl");
    let room = Room::new("tokens");
    let (key, certificate) = (room.join("key.pem"), room.join("cert.pem"));
    let (key_text, certificate_text) = (key.display().to_string(), certificate.display().to_string());
    run_program(
        "openssl",
        [
            "req",
            "-x509",
            "-newkey",
            "rsa:2048",
            "-nodes",
            "-days",
            "2",
            "-subj",
            "/CN=tokens",
            "-keyout",
            &key_text,
            "-out",
            &certificate_text,
        ],
    );
    let server = TestRegistry::start();
    let dir = room.path().to_owned();
    server.script(move |seen| {
        let known = seen.authorization.as_deref() == Some(&format!("Basic {CODED}"));
        // Strangers are given a token that opens nothing.
        let stranger = seen.authorization.is_none();
        if !known && !stranger {
            return Some(Reply::new(401, r#"{"details":"incorrect username or password"}"#));
        }
        let nothing = Seen { query: String::new(), ..seen.clone() };
        let token = signed(&dir, if known { seen } else { &nothing });
        Some(Reply::new(200, json!({"token": token, "expires_in": 600}).to_string()))
    });
    let auth = format!(
        "auth: {{token: {{realm: \"{}/token\", service: keelblock-test, issuer: keelblock-test, rootcertbundle: {certificate_text}}}}}",
        server.url()
    );
    let registry = Registry::start_with(&auth);
    push(&registry, &room);
    let image = registry.image(IMAGE);
    let before = server.seen().len();
    let text = config(registry.address());
    let known = pull(&room, &image).env("KEELBLOCK_DOCKER_CONFIG", &text).run().ok().stderr();
    // One token for manifest, config and layers.
    let asked = &server.seen()[before..];
    assert_eq!(asked.len(), 1, "{asked:#?}");
    assert_eq!(asked[0].query, "service=keelblock-test&scope=repository:team/app:pull");
    let stranger = pull(&room, &image).run().code(125).stderr();
    assert!(
        stranger.contains("(HTTP 401)") && stranger.contains("asked without credentials (none for"),
        "{stranger}"
    );
    let wrong = pull(&room, &image).env("KEELBLOCK_DOCKER_AUTH", "user:no").run().code(125).stderr();
    let expected =
        "answers HTTP 401; it says \"incorrect username or password\"; asked as \"user\" of --docker_auth";
    assert!(wrong.contains(expected), "{wrong}");
    for text in [known, stranger, wrong] {
        expect_no_secret(&text);
        // What a token begins with: `{"alg":`, as serde_json sorts members.
        assert!(!text.contains("eyJhbGciOi"), "a token is in:\n{text}");
    }
}
