//! The store of trusted keys.

use std::fs::{self, Permissions};
use std::os::unix::fs::{PermissionsExt, symlink};

use keelblock::provider::appc::trust::Scope;

use crate::support::pgp::Shape;
use crate::{Bench, refused};

const ACI: &[u8] = b"an archive";

#[test]
fn a_key_counts_for_the_names_it_was_trusted_for() {
    let bench = Bench::new();
    let key = Shape::new(1).make();
    bench.trust(Some("example.com/a"), &key.armored());
    let signature = key.sign(ACI);
    let check = |name: &str| bench.check_as(name, ACI, Some(signature.as_bytes()));
    check("example.com/a").unwrap();
    check("example.com/a/b").unwrap();
    for name in ["example.com/ab", "example.com", "example.org/a"] {
        refused(check(name), "trusted for example.com/a only");
        refused(check(name), &format!("keelblock appc trust --prefix {name} FILE"));
    }
    bench.trust(None, &key.armored());
    check("example.org/a").unwrap();
    let root = bench.store().remove(Some(&Scope::Root), &key.fingerprint()).unwrap();
    assert_eq!(root, [Scope::Root]);
    refused(check("example.org/a"), "trusted for example.com/a only");
}

#[test]
fn keys_lie_where_rkt_had_them() {
    let bench = Bench::new();
    let key = Shape::new(1).make();
    let paths = [bench.trust(Some("example.com/a/b"), &key.armored()), bench.trust(None, &key.armored())];
    let fingerprint = key.fingerprint();
    let below = |path: &str| bench.dir.path().join("trustedkeys").join(path).join(&fingerprint);
    assert_eq!(paths.concat(), [below("prefix.d/example.com,a,b"), below("root.d")]);
    let text = fs::read_to_string(below("root.d")).unwrap();
    assert!(text.starts_with("-----BEGIN PGP PUBLIC KEY BLOCK-----\n"), "{text}");
    assert_eq!(below("root.d").metadata().unwrap().permissions().mode() & 0o777, 0o600);
    // One that rkt wrote is read: as it is exported, with a comment.
    let other = Shape::new(2).make();
    let theirs = bench.dir.path().join("trustedkeys/root.d").join(other.fingerprint());
    fs::write(&theirs, other.armored().replace("BLOCK-----\n\n", "BLOCK-----\nVersion: GnuPG v1\n\n"))
        .unwrap();
    fs::set_permissions(&theirs, Permissions::from_mode(0o644)).unwrap();
    bench.check(ACI, &other.sign(ACI)).unwrap();
}

#[test]
fn keys_are_trusted_twice_and_untrusted_once() {
    let bench = Bench::new();
    let key = Shape::new(1).make();
    for _ in 0..2 {
        bench.trust(Some("example.com/a"), &key.armored());
    }
    bench.trust(Some("example.com/b"), &key.armored());
    assert_eq!(bench.store().keys().unwrap().0.len(), 2);
    let removed = bench.store().remove(None, &key.fingerprint()).unwrap();
    let removed: Vec<_> = removed.iter().map(ToString::to_string).collect();
    assert_eq!(removed, ["example.com/a", "example.com/b"]);
    assert!(bench.store().keys().unwrap().0.is_empty());
    assert!(bench.store().remove(None, &key.fingerprint()).unwrap().is_empty());
    let left = fs::read_dir(bench.dir.path().join("trustedkeys/prefix.d")).unwrap().count();
    assert_eq!(left, 0, "no empty directories");
    refused(bench.check(ACI, &key.sign(ACI)), "not trusted");
}

#[test]
fn files_that_cannot_be_relied_on_are_skipped_and_named() {
    let bench = Bench::new();
    let good = Shape::new(1).make();
    bench.trust(None, &good.armored());
    let dir = bench.dir.path().join("trustedkeys/root.d");
    let other = Shape::new(2).make();
    let (text, name) = (other.armored(), other.fingerprint());
    let put = |file: &str, text: &str, mode: u32| {
        let path = dir.join(file);
        fs::write(&path, text).unwrap();
        fs::set_permissions(&path, Permissions::from_mode(mode)).unwrap();
        path
    };
    let both = format!("{text}{}", good.armored());
    for (file, content, mode, why) in [
        (name.as_str(), &text[..text.len() / 2], 0o600, "cut off"),
        (&name, "", 0o600, "armour"),
        (&name, &text, 0o622, "others than its owner can write it"),
        (&name, &text, 0o620, "others than its owner can write it"),
        (&name, &both, 0o600, "several keys"),
        ("0000000000000000000000000000000000000000", &text, 0o600, "not that of its name"),
    ] {
        let path = put(file, content, mode);
        let (keys, skipped) = bench.store().keys().unwrap();
        assert_eq!(keys.len(), 1, "{why}");
        assert_eq!(skipped.len(), 1);
        assert!(skipped[0].path == path && skipped[0].why.contains(why), "{skipped:?} does not say {why}");
        // The others count all the same.
        bench.check(ACI, &good.sign(ACI)).unwrap();
        refused(bench.check(ACI, &other.sign(ACI)), "not trusted");
        fs::remove_file(path).unwrap();
    }
    // A link to a key, a directory, a pipe.
    let aside = bench.dir.path().join("aside");
    fs::write(&aside, &text).unwrap();
    symlink(&aside, dir.join(&name)).unwrap();
    fs::create_dir(dir.join("directory")).unwrap();
    nix::unistd::mkfifo(&dir.join("pipe"), nix::sys::stat::Mode::S_IRUSR).unwrap();
    let (keys, skipped) = bench.store().keys().unwrap();
    assert_eq!((keys.len(), skipped.len()), (1, 3), "{skipped:?}");
    fs::remove_file(dir.join(&name)).unwrap();
    put(&name, &text, 0o600);
    bench.check(ACI, &other.sign(ACI)).unwrap();
    // Whoever can write the directory could put a key there.
    fs::set_permissions(&dir, Permissions::from_mode(0o777)).unwrap();
    let (keys, skipped) = bench.store().keys().unwrap();
    assert!(keys.is_empty() && skipped[0].why.contains("can write it"), "{skipped:?}");
    refused(bench.check(ACI, &good.sign(ACI)), "not trusted");
}

#[test]
fn what_a_dying_writer_left_is_no_key() {
    let bench = Bench::new();
    let key = Shape::new(1).make();
    let path = &bench.trust(None, &key.armored())[0];
    fs::write(path.with_file_name(".new-1-0"), "half").unwrap();
    let (keys, skipped) = bench.store().keys().unwrap();
    assert_eq!((keys.len(), skipped.len()), (1, 0));
}
