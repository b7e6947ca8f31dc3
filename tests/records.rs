//! Records on a real disk: names taken and given back, by threads and by processes that are killed.

use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::Barrier;
use std::sync::atomic::{AtomicUsize, Ordering};

use keelblock::records::DiskRecords;
use keelblock::sys::process_identity::{boot_id, is_alive};
use keelblock_actors::container::{
    BackendName, ContainerId, ContainerRecord, PhaseName, RootfsId, RootfsRecord,
};
use keelblock_actors::error::{RecordError, chain};
use keelblock_actors::image::digest::{DiffId, Digest};
use keelblock_actors::ports::{Owner, Records};

fn id(text: &str) -> ContainerId {
    text.parse().unwrap()
}

fn record(records: &DiskRecords, name: &str) -> ContainerRecord {
    ContainerRecord {
        id: id(name),
        phase: PhaseName::Running,
        created_ms: 5,
        owner: Some(records.us()),
        image: None,
        rootfs: None,
        init: None,
        argv: vec!["sh".to_owned()],
        image_isolators: Vec::new(),
    }
}

fn rootfses(backend: BackendName) -> RootfsRecord {
    RootfsRecord {
        layers: [DiffId(Digest::of(b"layer"))].into(),
        images: Vec::new(),
        rootfses: vec![(RootfsId(0), backend), (RootfsId(1), backend)],
        boot_id: boot_id().unwrap().to_owned(),
    }
}

/// Everything below, by path.
fn listing(directory: &Path) -> Vec<String> {
    let mut found = Vec::new();
    let mut waiting = vec![directory.to_owned()];
    while let Some(at) = waiting.pop() {
        for entry in std::fs::read_dir(&at).unwrap() {
            let path = entry.unwrap().path();
            found.push(path.strip_prefix(directory).unwrap().display().to_string());
            if path.is_dir() && !path.is_symlink() {
                waiting.push(path);
            }
        }
    }
    found.sort();
    found
}

#[test]
fn a_container_is_remembered_and_forgotten_without_a_trace() {
    let work = tempfile::tempdir().unwrap();
    let records = DiskRecords::open(&work.path().join("made/for/it")).unwrap();
    let work = work.path().join("made/for/it");
    assert_eq!(listing(&work), ["containers", "provisioner", "provisioner/containers"]);
    let guard = records.create(&id("web")).unwrap();
    assert!(records.sandbox(&id("web")).is_dir());
    let (container, layers) = (record(&records, "web"), rootfses(BackendName::Copy));
    records.write_container(&container).unwrap();
    records.write_rootfses(&id("web"), &layers).unwrap();
    let place = records.place(&id("web"), BackendName::Copy, RootfsId(1));
    let real = work.canonicalize().unwrap();
    assert_eq!(place.rootfs, real.join("provisioner/containers/web/backends/copy/rootfses/1"));
    assert_eq!(place.scratch, real.join("provisioner/containers/web/backends/copy/scratch/1"));
    std::fs::create_dir_all(place.rootfs.join("left/over")).unwrap();
    std::fs::write(records.sandbox(&id("web")).join("stdout"), "text").unwrap();

    let found = records.read(&id("web")).unwrap().unwrap();
    assert_eq!(found.owner, Owner::Us);
    assert_eq!(found.container, Some(container));
    assert_eq!(found.rootfses, Some(layers));
    assert_eq!(records.list().unwrap().len(), 1);
    assert!(!records.destroy_requested(&id("web")));
    records.request_destroy(&id("web")).unwrap();
    assert!(records.destroy_requested(&id("web")));

    records.remove(&id("web")).unwrap();
    drop(guard);
    assert_eq!(listing(&work), ["containers", "provisioner", "provisioner/containers"]);
    assert!(records.read(&id("web")).unwrap().is_none());
    let again = records.create(&id("web")).unwrap();
    assert!(!records.destroy_requested(&id("web")), "the wish was for the other one");
    records.remove(&id("web")).unwrap();
    drop(again);
}

#[test]
fn a_name_is_taken_by_one_of_many_at_once() {
    let work = tempfile::tempdir().unwrap();
    // Half of them see the other half as another process.
    let records = [DiskRecords::open(work.path()).unwrap(), DiskRecords::open(work.path()).unwrap()];
    for round in 0..20 {
        let (taken, barrier) = (AtomicUsize::new(0), Barrier::new(8));
        std::thread::scope(|scope| {
            for thread in 0..8 {
                let (records, taken, barrier) = (&records[thread % 2], &taken, &barrier);
                scope.spawn(move || {
                    barrier.wait();
                    let result = records.create(&id("web"));
                    // Nobody gives it back before all have tried.
                    barrier.wait();
                    match result {
                        Ok(guard) => {
                            taken.fetch_add(1, Ordering::Relaxed);
                            records.remove(&id("web")).unwrap();
                            drop(guard);
                        }
                        Err(RecordError::Exists { .. }) => {}
                        Err(other) => panic!("{}", chain(&other)),
                    }
                });
            }
        });
        assert_eq!(taken.into_inner(), 1, "round {round}");
        assert_eq!(listing(work.path()), ["containers", "provisioner", "provisioner/containers"]);
    }
}

#[test]
fn names_taken_and_given_back_in_a_hurry_are_never_had_by_two() {
    let work = tempfile::tempdir().unwrap();
    let records = [DiskRecords::open(work.path()).unwrap(), DiskRecords::open(work.path()).unwrap()];
    let (inside, done) = (AtomicUsize::new(0), AtomicUsize::new(0));
    std::thread::scope(|scope| {
        for thread in 0..4 {
            let (records, inside, done) = (&records[thread % 2], &inside, &done);
            scope.spawn(move || {
                for turn in 0..300 {
                    let guard = if turn % 2 == 0 {
                        records.create(&id("web")).ok()
                    } else {
                        records.adopt(&id("web")).ok().flatten()
                    };
                    let Some(guard) = guard else {
                        records.list().unwrap();
                        continue;
                    };
                    assert_eq!(inside.fetch_add(1, Ordering::SeqCst), 0, "two have it");
                    records.write_container(&record(records, "web")).unwrap();
                    assert_eq!(records.read(&id("web")).unwrap().unwrap().owner, Owner::Us);
                    // Every other one is left behind, for `adopt`.
                    if turn % 4 != 0 {
                        records.remove(&id("web")).unwrap();
                    }
                    inside.fetch_sub(1, Ordering::SeqCst);
                    drop(guard);
                    done.fetch_add(1, Ordering::Relaxed);
                }
            });
        }
    });
    assert!(done.into_inner() > 0);
    if let Some(guard) = records[0].adopt(&id("web")).unwrap() {
        records[0].remove(&id("web")).unwrap();
        drop(guard);
    }
    records[0].list().unwrap();
    assert_eq!(listing(work.path()), ["containers", "provisioner", "provisioner/containers"]);
}

#[test]
fn a_container_left_by_its_guard_is_nobodys_until_it_is_adopted() {
    let work = tempfile::tempdir().unwrap();
    let records = DiskRecords::open(work.path()).unwrap();
    let other = DiskRecords::open(work.path()).unwrap();
    let guard = records.create(&id("stays")).unwrap();
    records.write_container(&record(&records, "stays")).unwrap();
    assert_eq!(other.read(&id("stays")).unwrap().unwrap().owner, Owner::Other);
    assert!(matches!(other.adopt(&id("stays")), Err(RecordError::Elsewhere { .. })));
    assert!(matches!(other.create(&id("stays")), Err(RecordError::Exists { .. })));
    drop(guard);
    assert_eq!(records.read(&id("stays")).unwrap().unwrap().owner, Owner::Nobody);
    assert!(matches!(other.create(&id("stays")), Err(RecordError::Exists { .. })), "its record is left");
    let guard = other.adopt(&id("stays")).unwrap().unwrap();
    assert_eq!(other.read(&id("stays")).unwrap().unwrap().owner, Owner::Us);
    assert_eq!(records.read(&id("stays")).unwrap().unwrap().owner, Owner::Other);
    other.remove(&id("stays")).unwrap();
    drop(guard);
    assert!(other.adopt(&id("stays")).unwrap().is_none());
    assert!(matches!(records.request_destroy(&id("stays")), Err(RecordError::Io { .. })));
}

#[test]
fn damaged_records_are_as_good_as_none_and_the_directories_tell_the_rest() {
    let work = tempfile::tempdir().unwrap();
    let records = DiskRecords::open(work.path()).unwrap();
    drop(records.create(&id("web")).unwrap());
    let place = records.place(&id("web"), BackendName::Overlay, RootfsId(3));
    std::fs::create_dir_all(&place.scratch).unwrap();
    std::fs::create_dir_all(records.place(&id("web"), BackendName::Copy, RootfsId(0)).rootfs).unwrap();
    std::fs::create_dir_all(place.scratch.parent().unwrap().join("not-a-number")).unwrap();
    let container = work.path().join("containers/web/record.json");
    let layers = work.path().join("provisioner/containers/web/layers.json");
    let whole = serde_json::to_vec(&record(&records, "web")).unwrap();
    let stranger = serde_json::to_vec(&record(&records, "other")).unwrap();
    for text in [&b""[..], b"{", b"null", b"\xff\xfe", &whole[..whole.len() / 2], &[b' '; 10_000], &stranger]
    {
        std::fs::write(&container, text).unwrap();
        std::fs::write(&layers, text).unwrap();
        let found = records.list().unwrap().pop().unwrap();
        assert_eq!(found.owner, Owner::Nobody);
        assert_eq!(found.container, None);
        let on_disk = [(RootfsId(0), BackendName::Copy), (RootfsId(3), BackendName::Overlay)];
        assert_eq!(found.rootfses.unwrap().rootfses, on_disk);
    }
    std::fs::write(&container, whole).unwrap();
    assert!(records.read(&id("web")).unwrap().unwrap().container.is_some());
}

#[test]
fn a_long_record_is_read_to_its_end() {
    let work = tempfile::tempdir().unwrap();
    let records = DiskRecords::open(work.path()).unwrap();
    let _guard = records.create(&id("web")).unwrap();
    for words in [1, 400, 500, 5000] {
        let long = ContainerRecord { argv: vec!["argument".to_owned(); words], ..record(&records, "web") };
        records.write_container(&long).unwrap();
        assert_eq!(records.read(&id("web")).unwrap().unwrap().container, Some(long));
    }
    assert_eq!(listing(&work.path().join("containers/web")), ["lock", "record.json", "sandbox"]);
}

#[test]
fn rootfses_without_their_container_are_found_and_can_be_taken_over() {
    let work = tempfile::tempdir().unwrap();
    let records = DiskRecords::open(work.path()).unwrap();
    records.write_rootfses(&id("orphan"), &rootfses(BackendName::Overlay)).unwrap();
    let found = records.list().unwrap();
    assert_eq!((found.len(), found[0].owner), (1, Owner::Nobody));
    assert!(found[0].container.is_none() && found[0].rootfses.is_some());
    assert!(matches!(records.create(&id("orphan")), Err(RecordError::Exists { .. })));
    assert_eq!(listing(&work.path().join("containers")), Vec::<String>::new());
    let guard = records.adopt(&id("orphan")).unwrap().unwrap();
    records.remove(&id("orphan")).unwrap();
    drop(guard);
    assert!(records.list().unwrap().is_empty());
    assert_eq!(listing(work.path()), ["containers", "provisioner", "provisioner/containers"]);
}

#[test]
fn a_mounted_rootfs_is_never_removed_with_its_container() {
    if !rustix::process::geteuid().is_root() {
        eprintln!("skipped: mounts need root");
        return;
    }
    let work = tempfile::tempdir().unwrap();
    let canary = tempfile::tempdir().unwrap();
    std::fs::write(canary.path().join("file"), "alive").unwrap();
    let records = DiskRecords::open(work.path()).unwrap();
    let guard = records.create(&id("web")).unwrap();
    let place = records.place(&id("web"), BackendName::Overlay, RootfsId(0));
    std::fs::create_dir_all(place.scratch.join("upper")).unwrap();
    std::fs::create_dir_all(place.rootfs.join("deep")).unwrap();
    let deep = place.rootfs.join("deep");
    for target in [&place.rootfs, &deep] {
        rustix::mount::mount_bind(canary.path(), target).unwrap();
        let error = records.remove(&id("web")).unwrap_err();
        assert!(chain(&error).contains(target.to_str().unwrap()), "{}", chain(&error));
        assert!(chain(&error).contains("mounted"), "{}", chain(&error));
        assert!(canary.path().join("file").exists());
        if *target == place.rootfs {
            assert!(place.scratch.join("upper").exists(), "nothing was begun");
        }
        rustix::mount::unmount(target, rustix::mount::UnmountFlags::empty()).unwrap();
    }
    records.remove(&id("web")).unwrap();
    drop(guard);
    assert!(canary.path().join("file").exists());
}

#[test]
fn strangers_in_the_directory_are_left_alone_and_leftovers_of_the_dead_are_not() {
    let work = tempfile::tempdir().unwrap();
    let records = DiskRecords::open(work.path()).unwrap();
    let containers = work.path().join("containers");
    std::fs::create_dir_all(containers.join(".new-1-2-3/sandbox")).unwrap();
    std::fs::create_dir_all(containers.join(".old-1-2-3/sandbox")).unwrap();
    std::fs::write(containers.join(".old-1-2-3/lock"), "").unwrap();
    std::fs::create_dir_all(containers.join("not.an.id")).unwrap();
    std::fs::write(containers.join("a-file"), "").unwrap();
    assert!(records.list().unwrap().is_empty());
    assert_eq!(listing(&containers), ["a-file", "not.an.id"]);
}

/// Runs in a process of its own, started by the tests below: takes the container `web` and waits.
#[test]
fn child_holds_a_container() {
    let Some(work) = std::env::var_os("KEELBLOCK_TEST_HOLD") else { return };
    let records = DiskRecords::open(Path::new(&work)).unwrap();
    let _guard = records.create(&id("web")).unwrap();
    records.write_container(&record(&records, "web")).unwrap();
    println!("\nholding");
    std::io::stdout().flush().unwrap();
    let mut line = String::new();
    let _ = std::io::stdin().read_line(&mut line);
}

fn child(work: &Path) -> Child {
    let mut child = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "child_holds_a_container", "--nocapture"])
        .env("KEELBLOCK_TEST_HOLD", work)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let lines = BufReader::new(child.stdout.take().unwrap()).lines();
    assert!(lines.map_while(Result::ok).any(|line| line == "holding"));
    child
}

#[test]
fn the_container_of_a_killed_process_is_nobodys_at_once() {
    let work = tempfile::tempdir().unwrap();
    let records = DiskRecords::open(work.path()).unwrap();
    let mut child = child(work.path());
    let found = records.list().unwrap().pop().unwrap();
    assert_eq!(found.owner, Owner::Other);
    let owner = found.container.unwrap().owner.unwrap();
    assert!(owner.pid == child.id() && is_alive(&owner));
    assert!(matches!(records.create(&id("web")), Err(RecordError::Exists { .. })));
    assert!(matches!(records.adopt(&id("web")), Err(RecordError::Elsewhere { .. })));
    records.request_destroy(&id("web")).unwrap();

    child.kill().unwrap();
    child.wait().unwrap();
    let found = records.list().unwrap().pop().unwrap();
    assert_eq!(found.owner, Owner::Nobody);
    assert!(!is_alive(&owner));
    let guard = records.adopt(&id("web")).unwrap().unwrap();
    records.remove(&id("web")).unwrap();
    drop(guard);
    assert_eq!(listing(work.path()), ["containers", "provisioner", "provisioner/containers"]);
}

#[test]
fn a_lock_is_not_inherited_by_a_program_that_is_started() {
    let work = tempfile::tempdir().unwrap();
    let records = DiskRecords::open(work.path()).unwrap();
    let guard = records.create(&id("web")).unwrap();
    records.write_container(&record(&records, "web")).unwrap();
    let mut program = Command::new("cat").stdin(Stdio::piped()).spawn().unwrap();
    drop(guard);
    assert_eq!(records.read(&id("web")).unwrap().unwrap().owner, Owner::Nobody);
    drop(program.stdin.take());
    program.wait().unwrap();
}

#[test]
fn identifiers_and_time_are_of_this_process_and_now() {
    let work = tempfile::tempdir().unwrap();
    let records = DiskRecords::open(work.path()).unwrap();
    let us = records.us();
    assert_eq!(us.pid, std::process::id());
    assert!(is_alive(&us));
    assert_eq!(us.boot_id.len(), 36);
    assert!(records.now_ms() > 1_700_000_000_000);
}
