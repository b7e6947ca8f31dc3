//! Processes killed in the middle of mounting and unmounting: the next one takes away whatever they left.

use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Command, Stdio};

use keelblock::backend::{BindBackend, CopyBackend, OverlayBackend};
use keelblock_actors::ports::{Backend, LayerDir, RootfsPlace};
use keelblock_actors::stop::Stop;

use crate::support::*;

const WORK: &str = "KEELBLOCK_TEST_KILLED_WORK";
const BACKEND: &str = "KEELBLOCK_TEST_KILLED_BACKEND";

fn parts(bed: &Path) -> (Vec<LayerDir>, RootfsPlace) {
    let layer = |name: &str| LayerDir {
        diff_id: keelblock_actors::image::digest::DiffId(keelblock_actors::image::digest::Digest::of(
            name.as_bytes(),
        )),
        path: bed.join("store").join(name),
        user_xattrs: false,
        whiteouts: false,
        implied: std::sync::Arc::default(),
        hold: std::sync::Arc::new(()),
    };
    let place = RootfsPlace {
        container: "c1".parse().unwrap(),
        id: keelblock_actors::container::RootfsId(0),
        rootfs: bed.join("rootfses/0"),
        scratch: bed.join("scratch/0"),
    };
    (vec![layer("base"), layer("top")], place)
}

fn backend(name: &str) -> Box<dyn Backend> {
    match name {
        "copy" => Box::new(CopyBackend::default()),
        "bind" => Box::new(BindBackend::default()),
        _ => Box::new(OverlayBackend::default()),
    }
}

/// Runs in a process of its own, started by the test below: mounts and unmounts until it is killed.
#[test]
fn child_mounts_and_unmounts() {
    let (Some(work), Ok(name)) = (std::env::var_os(WORK), std::env::var(BACKEND)) else { return };
    let (stack, place) = parts(Path::new(&work));
    let backend = backend(&name);
    loop {
        backend.mount(&stack, &place, &Stop::default()).unwrap();
        println!("\nmounted");
        std::io::stdout().flush().unwrap();
        backend.unmount(&place).unwrap();
    }
}

#[test]
fn whatever_moment_a_process_is_killed_the_next_takes_away_what_it_left() {
    if !privileged() {
        return;
    }
    for name in ["overlay", "copy", "bind"] {
        let bed = Bed::in_memory();
        let (base, top) = (bed.layer("base"), bed.layer("top"));
        for file in 0..300 {
            base.file(&format!("{}/{file}", file % 10), "base");
        }
        top.file("3/3", "top").whiteout("4/4");
        let (stack, place) = parts(bed.path());
        let (layers_before, backend) = (snapshot(&bed.path().join("store")), backend(name));
        for rounds in 0..12 {
            let mut child = Command::new(std::env::current_exe().unwrap())
                .args(["--exact", "killed::child_mounts_and_unmounts", "--nocapture"])
                .env(WORK, bed.path())
                .env(BACKEND, name)
                .stdout(Stdio::piped())
                .spawn()
                .unwrap();
            // Killed after another number of rounds each time, wherever it is then.
            let lines = BufReader::new(child.stdout.take().unwrap()).lines().map_while(Result::ok);
            assert_eq!(lines.filter(|line| line == "mounted").take(rounds + 1).count(), rounds + 1);
            child.kill().unwrap();
            child.wait().unwrap();

            backend.unmount(&place).unwrap();
            assert!(!place.rootfs.exists() && !place.scratch.exists());
            assert!(bed.mounts().is_empty());
            backend.mount(&stack, &place, &Stop::default()).unwrap();
            assert_eq!(std::fs::read_to_string(place.rootfs.join("3/3")).unwrap(), "top");
            assert!(backend.unmount(&place).unwrap());
        }
        assert_same(&layers_before, &snapshot(&bed.path().join("store")));
    }
}
