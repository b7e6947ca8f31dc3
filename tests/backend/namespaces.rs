//! The backends as root of a user namespace only: this test starts itself again in one.

use std::process::Command;

use keelblock::backend::{BindBackend, choose};
use keelblock_actors::container::BackendName;

use crate::support::*;

const INSIDE: &str = "KEELBLOCK_TEST_IN_USER_NAMESPACE";

#[test]
fn in_a_user_namespace_all_backends_work_with_user_attributes() {
    if std::env::var_os(INSIDE).is_some() {
        return inside();
    }
    let us = std::env::current_exe().unwrap();
    let name = "namespaces::in_a_user_namespace_all_backends_work_with_user_attributes";
    let mut command = Command::new("unshare");
    command.args(["--user", "--map-root-user", "--mount"]).arg(us).args(["--exact", name, "--nocapture"]);
    let probe = Command::new("unshare").args(["--user", "--map-root-user", "--mount", "true"]).output();
    if !probe.is_ok_and(|output| output.status.success()) {
        eprintln!("skipped: no user namespaces here");
        return;
    }
    let output = command.env(INSIDE, "1").output().unwrap();
    let text = String::from_utf8_lossy(&output.stdout) + String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success() && text.contains("1 passed"), "{text}");
}

fn inside() {
    let bed = Bed::rootless();
    let chosen = choose(None, &bed.path().join("work"), &bed.path().join("store"), true, false).unwrap();
    assert_eq!(chosen.default, BackendName::Overlay, "{:?}", chosen.fallback);
    assert!(choose(Some(BackendName::Bind), bed.path(), bed.path(), true, false).is_ok());

    let (base, top) = (bed.layer("base"), bed.layer("top"));
    base.file("opaque/gone", "")
        .file("gone", "")
        .file("kept", "kept")
        .mode("kept", 0o4755)
        .hard_link("too", "kept");
    top.opaque("opaque").file("opaque/new", "").whiteout("gone").directory("closed", 0o000);
    top.whiteout("lonely/never-was");
    let tree = bed.agreed_tree(&[&base, &top]);
    assert_eq!(names(&tree), ["", "closed", "kept", "lonely", "opaque", "opaque/new", "too"]);
    let bound = bed.tree_of(&BindBackend::default().strict(true), &stack(&[&base]));
    assert_same(&bound, &snapshot(&base.path));
}
