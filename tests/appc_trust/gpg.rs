//! GnuPG as the peer: what it signs is verified here, and what is signed here is verified by it.

use std::path::PathBuf;
use std::process::{Command, Stdio};

use keelblock::provider::appc::trust::{Unfit, read_keys};

use crate::support::binary::{find_program, need_programs};
use crate::support::pgp::{Manner, Shape, SubkeyShape, now};
use crate::{Bench, NAME, refused};

const ACI: &[u8] = b"an archive that gpg signs";

/// A home of gpg, without a passphrase for anything.
struct Gpg {
    home: tempfile::TempDir,
}

impl Gpg {
    fn new() -> Self {
        // Its agent's sockets need a short path.
        let home = tempfile::Builder::new().prefix("kg").tempdir_in("/tmp").unwrap();
        Self { home }
    }

    fn path(&self, file: &str) -> PathBuf {
        self.home.path().join(file)
    }

    fn output(&self, args: &[&str]) -> std::process::Output {
        let mut command = Command::new(find_program("gpg").unwrap());
        command.arg("--homedir").arg(self.home.path()).args(["--batch", "--yes", "--quiet", "--no-tty"]);
        command.args(["--pinentry-mode", "loopback", "--passphrase", "", "--trust-model", "always"]);
        command.args(args).stdin(Stdio::null()).output().unwrap()
    }

    #[track_caller]
    fn run(&self, args: &[&str]) -> String {
        let output = self.output(args);
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(output.status.success(), "gpg {args:?}: {said}");
        String::from_utf8(output.stdout).unwrap()
    }

    /// Makes a key and returns its fingerprint.
    fn make(&self, user: &str, algorithm: &str, usage: &str) -> String {
        self.run(&["--quick-gen-key", user, algorithm, usage, "never"]);
        self.fingerprint(user)
    }

    fn fingerprint(&self, user: &str) -> String {
        let listed = self.run(&["--with-colons", "--list-keys", user]);
        let line = listed.lines().find(|line| line.starts_with("fpr:")).unwrap();
        line.split(':').nth(9).unwrap().to_lowercase()
    }

    fn export(&self, user: &str) -> String {
        self.run(&["--armor", "--export", user])
    }

    /// A detached signature, with more options.
    fn sign(&self, user: &str, options: &[&str]) -> String {
        let (data, signature) = (self.path("data"), self.path("data.asc"));
        std::fs::write(&data, ACI).unwrap();
        let files =
            ["--output", signature.to_str().unwrap(), "--armor", "--detach-sign", data.to_str().unwrap()];
        self.run(&[options, &["-u", user], &files].concat());
        std::fs::read_to_string(signature).unwrap()
    }
}

impl Drop for Gpg {
    fn drop(&mut self) {
        if let Some(gpgconf) = find_program("gpgconf") {
            let kill = ["--kill", "all"];
            let _ = Command::new(gpgconf).arg("--homedir").arg(self.home.path()).args(kill).status();
        }
    }
}

#[test]
fn what_gpg_signs_with_keys_of_any_kind_is_accepted() {
    need_programs!("gpg");
    let gpg = Gpg::new();
    for algorithm in ["rsa2048", "rsa4096", "ed25519", "nistp256", "nistp521"] {
        let user = format!("{algorithm} <{algorithm}@example.com>");
        let fingerprint = gpg.make(&user, algorithm, "sign");
        let bench = Bench::new();
        bench.trust(Some(NAME), &gpg.export(&user));
        let key = &bench.store().keys().unwrap().0[0];
        assert_eq!(key.certificate.fingerprint(), fingerprint);
        assert_eq!(key.certificate.user_ids(), [user.as_str()]);
        let signature = gpg.sign(&user, &[]);
        bench.check(ACI, &signature).unwrap_or_else(|error| panic!("{algorithm}: {error}"));
        refused(bench.check(b"another", &signature), &fingerprint);
        if algorithm == "ed25519" {
            for hash in ["SHA256", "SHA384", "SHA512"] {
                bench.check(ACI, &gpg.sign(&user, &["--digest-algo", hash])).unwrap();
            }
            refused(bench.check(ACI, &gpg.sign(&user, &["--digest-algo", "SHA224"])), "its hash is SHA224");
            refused(bench.check(ACI, &gpg.sign(&user, &["--textmode"])), "over text");
        }
        if algorithm == "rsa2048" {
            for hash in ["SHA1", "RIPEMD160"] {
                let signature = gpg.sign(&user, &["--digest-algo", hash, "--allow-weak-digest-algos"]);
                refused(bench.check(ACI, &signature), &format!("its hash is {hash}"));
            }
        }
    }
}

#[test]
fn weak_keys_of_gpg_are_refused() {
    need_programs!("gpg");
    let gpg = Gpg::new();
    for (algorithm, says) in [("dsa2048", "it is DSA"), ("rsa1024", "RSA with 1024 bits")] {
        let user = format!("{algorithm}@example.com");
        gpg.make(&user, algorithm, "sign");
        let key = gpg.export(&user);
        let unfit = read_keys(key.as_bytes(), "x").unwrap()[0].usable(now().into()).unwrap_err();
        assert!(matches!(&unfit, Unfit::Weak(why) if why.contains(says)), "{unfit}");
        let bench = Bench::new();
        bench.trust(None, &key);
        refused(bench.check(ACI, &gpg.sign(&user, &[])), says);
    }
}

#[test]
fn keys_from_the_time_of_appc_vouch_for_themselves_with_sha_1() {
    need_programs!("gpg");
    let gpg = Gpg::new();
    for (hash, taken) in [("SHA1", true), ("RIPEMD160", false)] {
        let user = format!("{hash}@example.com");
        let weak = ["--cert-digest-algo", hash, "--allow-weak-digest-algos"];
        gpg.run(&[&weak[..], &["--quick-gen-key", &user, "rsa2048", "sign", "never"]].concat());
        let bench = Bench::new();
        bench.trust(None, &gpg.export(&user));
        let checked = bench.check(ACI, &gpg.sign(&user, &["--digest-algo", "SHA256"]));
        match taken {
            true => checked.unwrap(),
            false => refused(checked, "no valid self-signature"),
        }
    }
}

#[test]
fn signing_subkeys_of_gpg_are_accepted_until_they_are_revoked() {
    need_programs!("gpg");
    let gpg = Gpg::new();
    let fingerprint = gpg.make("a@example.com", "ed25519", "cert");
    gpg.run(&["--quick-add-key", &fingerprint, "rsa2048", "sign", "never"]);
    gpg.run(&["--quick-add-key", &fingerprint, "cv25519", "encr", "never"]);
    let bench = Bench::new();
    bench.trust(None, &gpg.export("a@example.com"));
    let signature = gpg.sign("a@example.com", &[]);
    bench.check(ACI, &signature).unwrap();
    refused(bench.check(b"another", &signature), "was changed");
    let edit = format!("{}", gpg.path("edit").display());
    std::fs::write(&edit, "key 1\nrevkey\ny\n0\n\ny\nsave\n").unwrap();
    gpg.run(&["--no-batch", "--command-file", &edit, "--edit-key", &fingerprint]);
    bench.trust(None, &gpg.export("a@example.com"));
    refused(bench.check(ACI, &signature), "has been revoked");
}

#[test]
fn keys_that_gpg_revoked_or_that_expired_are_refused() {
    need_programs!("gpg");
    let gpg = Gpg::new();
    let bench = Bench::new();
    let fingerprint = gpg.make("r@example.com", "ed25519", "sign");
    let signature = gpg.sign("r@example.com", &[]);
    bench.trust(None, &gpg.export("r@example.com"));
    bench.check(ACI, &signature).unwrap();
    let revocation = gpg.path(&format!("openpgp-revocs.d/{}.rev", fingerprint.to_uppercase()));
    let text = std::fs::read_to_string(&revocation).unwrap().replace(":-----BEGIN", "-----BEGIN");
    std::fs::write(&revocation, text).unwrap();
    gpg.run(&["--import", revocation.to_str().unwrap()]);
    bench.trust(None, &gpg.export("r@example.com"));
    refused(bench.check(ACI, &signature), "has been revoked");

    // A key of a year that is over, and what it signed meanwhile.
    let then = ["--faked-system-time", "20200201T000000"];
    gpg.run(&[&then[..], &["--quick-gen-key", "e@example.com", "ed25519", "sign", "1y"]].concat());
    let signature = gpg.sign("e@example.com", &then);
    bench.trust(None, &gpg.export("e@example.com"));
    refused(bench.check(ACI, &signature), "has expired on 2021-01-31");

    // A signature of a day that is over, and one from tomorrow.
    let fingerprint = gpg.make("s@example.com", "ed25519", "sign");
    bench.trust(None, &gpg.export("s@example.com"));
    gpg.run(&[&then[..], &["--quick-gen-key", "o@example.com", "ed25519", "sign", "never"]].concat());
    bench.trust(None, &gpg.export("o@example.com"));
    let options = [&then[..], &["--default-sig-expire", "1d"]].concat();
    refused(bench.check(ACI, &gpg.sign("o@example.com", &options)), "has expired on 2020-02-02");
    let later = ["--faked-system-time", "20990101T000000"];
    let future = gpg.sign("s@example.com", &later);
    refused(bench.check(ACI, &future), "from the future, 2099-01-01");
    refused(bench.check(ACI, &future), &fingerprint);
}

#[test]
fn several_signatures_of_gpg_in_one_file() {
    need_programs!("gpg");
    let gpg = Gpg::new();
    for user in ["a@example.com", "b@example.com"] {
        gpg.make(user, "ed25519", "sign");
    }
    let signature = gpg.sign("a@example.com", &["-u", "b@example.com"]);
    for user in ["a@example.com", "b@example.com"] {
        let bench = Bench::new();
        bench.trust(None, &gpg.export(user));
        bench.check(ACI, &signature).unwrap();
        refused(bench.check(b"another", &signature), "was changed");
    }
    refused(Bench::new().check(ACI, &signature), "not trusted");
}

#[test]
fn what_is_signed_here_gpg_verifies() {
    need_programs!("gpg");
    let gpg = Gpg::new();
    let subkey = Some(SubkeyShape::default());
    for (shape, by_subkey) in [(Shape::new(1), false), (Shape { subkey, ..Shape::new(2) }, true)] {
        let key = shape.make();
        let (public, data, signature) = (gpg.path("key"), gpg.path("data"), gpg.path("signature"));
        // As the store writes it.
        let bench = Bench::new();
        let stored = std::fs::read_to_string(&bench.trust(None, &key.armored())[0]).unwrap();
        std::fs::write(&public, stored).unwrap();
        std::fs::write(&data, ACI).unwrap();
        let text = key.sign_as(ACI, Manner { by_subkey, ..Manner::default() });
        bench.check(ACI, &text).unwrap();
        std::fs::write(&signature, text).unwrap();
        gpg.run(&["--import", public.to_str().unwrap()]);
        assert_eq!(gpg.fingerprint(&key.fingerprint()), key.fingerprint());
        let verify = ["--verify", signature.to_str().unwrap(), data.to_str().unwrap()];
        gpg.run(&verify);
        std::fs::write(&data, b"another").unwrap();
        assert!(!gpg.output(&verify).status.success());
    }
}
