//! `keelblock appc trust`, `untrust` and `keys`.

use std::path::PathBuf;

use serde_json::Value;

use crate::support::binary::{Room, need_programs};
use crate::support::pgp::{Key, Shape};

fn room(name: &str) -> Room {
    Room::new(&format!("appc-trust-{name}"))
}

fn put(room: &Room, file: &str, keys: &[&Key]) -> PathBuf {
    let path = room.join(file);
    std::fs::write(&path, keys.iter().map(|key| key.armored()).collect::<String>()).unwrap();
    path
}

fn trusted(room: &Room) -> Vec<(Option<String>, String)> {
    let listed = room.keelblock(["appc", "keys", "--json"]).run().code(0);
    let keys: Vec<Value> = serde_json::from_str(&listed.stdout()).unwrap();
    let text = |value: &Value| value.as_str().map(str::to_owned);
    keys.iter().map(|key| (text(&key["prefix"]), text(&key["fingerprint"]).unwrap())).collect()
}

#[test]
fn keys_are_trusted_listed_and_untrusted() {
    let room = room("life");
    let (one, two) = (
        Shape::new(1).make(),
        Shape { expires: Some(4_000_000_000 - 1_451_606_400), ..Shape::new(2) }.make(),
    );
    let file = put(&room, "keys.asc", &[&one, &two]);
    let file = file.to_str().unwrap();
    assert_eq!(trusted(&room), []);
    let (first, second) = (one.fingerprint(), two.fingerprint());

    // As gpg prints it.
    let grouped: Vec<_> =
        first.to_uppercase().as_bytes().chunks(4).map(|c| String::from_utf8_lossy(c).into_owned()).collect();
    let done = room
        .keelblock([
            "appc",
            "trust",
            "--prefix",
            "example.com/app",
            "--fingerprint",
            &grouped.join(" "),
            file,
        ])
        .run()
        .code(0);
    assert_eq!(done.stdout(), format!("{first} example.com/app\n"));
    assert!(done.stderr().contains("Signer 1 <signer1@example.com>"), "{}", done.stderr());
    assert!(done.stderr().contains(&format!("key {second} was not asked for")), "{}", done.stderr());
    room.keelblock(["appc", "trust", "--root", "--skip-fingerprint-review", file]).run().code(0);
    let prefix = Some("example.com/app".to_owned());
    let mut all = vec![(None, first.clone()), (None, second.clone()), (prefix, first.clone())];
    all[..2].sort();
    assert_eq!(trusted(&room), all);

    let table = room.keelblock(["appc", "keys"]).run().code(0).stdout();
    let lines: Vec<_> = table.lines().collect();
    assert_eq!(
        lines[0].split_whitespace().collect::<Vec<_>>(),
        ["PREFIX", "FINGERPRINT", "EXPIRES", "USER", "IDS"]
    );
    assert_eq!(lines.len(), 4);
    assert!(table.contains("2096-10-02") && table.contains("never"), "{table}");
    assert!(lines[3].starts_with("example.com/app"), "{table}");

    let gone = room.keelblock(["appc", "untrust", "--root", &second]).run().code(0);
    assert_eq!(gone.stdout(), format!("{second} all names\n"));
    room.keelblock(["appc", "untrust", &first]).run().code(0);
    assert_eq!(trusted(&room), []);
    let missing = room.keelblock(["appc", "untrust", &first]).run().code(125);
    assert!(missing.stderr().contains("was not trusted"), "{}", missing.stderr());
}

#[test]
fn nothing_is_trusted_that_nobody_looked_at() {
    let room = room("review");
    let (one, two) = (Shape::new(1).make(), Shape::new(2).make());
    let file = put(&room, "keys.asc", &[&one]);
    let file = file.to_str().unwrap();
    let refuse = |args: &[&str], status: i32, says: &str| {
        let refused = room.keelblock(["appc", "trust"]).args(args).run().code(status);
        assert!(refused.stderr().contains(says), "{}", refused.stderr());
        assert_eq!(trusted(&room), []);
    };
    // Standard input is no terminal, whatever comes from there.
    let fingerprint = one.fingerprint();
    refuse(&["--prefix", "example.com", file], 2, &format!("--fingerprint {fingerprint}"));
    refuse(&[file, "--skip_fingerprint_review"], 2, "--prefix");
    refuse(&["--root", "--prefix", "a", file], 2, "cannot be used");
    refuse(&["--prefix", "Example", "--skip_fingerprint_review", file], 2, "no AC Identifier");
    refuse(&["--root", "--fingerprint", &two.fingerprint(), file], 125, &fingerprint);
    refuse(&["--root", "--fingerprint", &fingerprint[32..], file], 2, "all 40 or 64");
    let both = ["--root", "--fingerprint", &fingerprint, "--skip_fingerprint_review", file];
    refuse(&both, 2, "cannot be used");
    refuse(&["--root", "--skip_fingerprint_review", "/no/such/file"], 125, "/no/such/file");
    let text = room.join("text");
    std::fs::write(&text, "hello").unwrap();
    refuse(&["--root", "--skip_fingerprint_review", text.to_str().unwrap()], 125, "not in ASCII armour");
    // One that can verify nothing; and then the good one beside it is not trusted either.
    let revoked = Shape { revoked: true, ..Shape::new(3) }.make();
    let mixed = put(&room, "mixed.asc", &[&one, &revoked]);
    refuse(&["--root", "--skip_fingerprint_review", mixed.to_str().unwrap()], 125, "has been revoked");
    room.keelblock(["appc"]).run().code(2);
}

#[test]
fn on_a_terminal_each_key_is_shown_and_asked_for() {
    need_programs!("script");
    let room = room("terminal");
    // What it calls itself must not steer the terminal.
    let evil = Shape { user_id: "Evil \u{1b}[2J <e@example.com>".to_owned(), ..Shape::new(4) }.make();
    let (one, two) = (Shape::new(1).make(), Shape::new(2).make());
    let file = put(&room, "keys.asc", &[&evil, &one, &two]);
    let inner = room.keelblock(["appc", "trust", "--prefix", "example.com/app"]).arg(&file).shell_line();
    let answer = |answers: &str, status: i32| {
        let run = room.bare([] as [&str; 0]).program("script").args(["-qec", &inner, "/dev/null"]);
        run.stdin(answers).run().code(status).stdout()
    };
    let shown = answer("\nn\nno\n", 125);
    assert!(shown.contains("no key was trusted") && !shown.contains('\u{1b}'), "{shown}");
    assert_eq!(trusted(&room), []);
    let shown = answer("n\nyes\nY\n", 0);
    assert!(shown.contains("Trust this key for example.com/app and example.com/app/...? [y/N]"), "{shown}");
    assert!(shown.contains("Signer 1 <signer1@example.com>") && shown.contains("made 2016-01-01"), "{shown}");
    let mut fingerprints: Vec<_> = trusted(&room).into_iter().map(|(_, fingerprint)| fingerprint).collect();
    let mut wanted = vec![one.fingerprint(), two.fingerprint()];
    fingerprints.sort();
    wanted.sort();
    assert_eq!(fingerprints, wanted);
}

#[test]
fn the_help_says_what_to_compare() {
    let room = room("help");
    let help = room.keelblock(["appc", "trust", "--help"]).run().code(0).stdout();
    for said in
        ["--prefix <NAME>", "--root", "--fingerprint", "--skip_fingerprint_review", "gpg --armor --export"]
    {
        assert!(help.contains(said), "{help}");
    }
    for command in ["untrust", "keys"] {
        room.keelblock(["appc", command, "--help"]).run().code(0);
    }
}

#[test]
fn damaged_key_files_are_named_and_the_others_listed() {
    let room = room("damaged");
    let key = Shape::new(1).make();
    let file = put(&room, "keys.asc", &[&key]);
    room.keelblock(["appc", "trust", "--root", "--skip_fingerprint_review"]).arg(&file).run().code(0);
    let damaged = room.work_dir().join("trustedkeys/root.d/0123");
    std::fs::write(&damaged, "half a k").unwrap();
    let listed = room.keelblock(["appc", "keys", "--json"]).run().code(0);
    assert!(listed.stderr().contains(damaged.to_str().unwrap()), "{}", listed.stderr());
    assert!(listed.stdout().contains(&key.fingerprint()), "{}", listed.stdout());
}
