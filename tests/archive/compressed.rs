//! Compressed archives and the files they are laid out in.

use std::fs;
use std::time::{Duration, SystemTime};

use keelblock::limits::Limits;
use keelblock::provider::archive::{ArchiveError, SPOOL_IDLE};
use keelblock_actors::image::digest::Digest;
use keelblock_actors::stop::Stop;

use crate::support::*;

#[test]
fn a_compressed_archive_is_laid_out_once_and_read_from_there() {
    let room = Room::new();
    let tar = new_form(&[("x", &["a:1"])]);
    let plain = room.archives.docker_archive(&room.file("plain.tar", &tar), None).unwrap();
    for (name, bytes) in [("a.tar.gz", gzip(&tar)), ("a.tar.zst", zstd::encode_all(&tar[..], 1).unwrap())] {
        let path = room.file(name, &bytes);
        let plan = room.archives.docker_archive(&path, None).unwrap();
        assert_eq!(diff_ids(&plan), diff_ids(&plain));
        assert_layers_are_true(&plan);
        let spooled =
            room.spooled().into_iter().find(|name| name.starts_with(&Digest::of(&bytes).hex())).unwrap();
        let spooled = room.directory.path().join("spool").join(spooled);
        assert_eq!(fs::read(&spooled).unwrap(), tar);
        let before = fs::metadata(&spooled).unwrap();
        let copy = room.file(&format!("copy-{name}"), &bytes);
        room.archives.docker_archive(&copy, None).unwrap();
        use std::os::unix::fs::MetadataExt;
        assert_eq!(
            fs::metadata(&spooled).unwrap().ino(),
            before.ino(),
            "the same content is not laid out twice"
        );
        assert_eq!(before.mode() & 0o777, 0o600);
    }
    assert_eq!(room.spooled().len(), 2, "{:?}", room.spooled());
    // An archive made of several gzip members, as parallel compressors write them.
    let (left, right) = tar.split_at(700);
    let members = [gzip(left), gzip(right)].concat();
    assert_layers_are_true(&room.docker(&members).unwrap());
}

#[test]
fn a_compressed_archive_of_an_oci_layout_works_too() {
    let room = Room::new();
    let bytes = gzip(&fs::read(fixtures().join("hello-oci.tar")).unwrap());
    let plan = room.archives.oci_archive(&room.file("x.tgz", &bytes), Some("latest")).unwrap();
    assert_layers_are_true(&plan);
}

#[test]
fn a_bomb_or_a_broken_stream_leaves_no_file() {
    let room = Room::within(Limits { archive_bytes_max: 100_000, ..Limits::default() });
    let bomb = gzip(&vec![0; 10_000_000]);
    assert!(matches!(cause(room.docker(&bomb)), ArchiveError::Limit { flag: "archive_bytes_max", .. }));
    let cut = gzip(&new_form(&[("x", &["a:1"])]));
    for length in [10, cut.len() / 2, cut.len() - 1] {
        assert!(matches!(cause(room.docker(&cut[..length])), ArchiveError::Read { .. }), "{length}");
    }
    let mut flipped = cut.clone();
    let last = flipped.len() - 6;
    flipped[last] ^= 1;
    assert!(matches!(cause(room.docker(&flipped)), ArchiveError::Read { .. }), "the checksum of gzip counts");
    assert!(room.spooled().is_empty(), "{:?}", room.spooled());
}

#[test]
fn idle_spooled_files_and_those_of_dead_writers_are_swept() {
    let room = Room::new();
    let fresh = room.file("a.tgz", &gzip(&new_form(&[("x", &["a:1"])])));
    room.archives.docker_archive(&fresh, None).unwrap();
    let spooled = room.spooled().remove(0);
    let (_, boot) = spooled.split_once('.').unwrap();
    let idle = room.file(&format!("spool/idle.{boot}"), b"x");
    let then = SystemTime::now() - SPOOL_IDLE - Duration::from_secs(1);
    fs::File::options().write(true).open(&idle).unwrap().set_modified(then).unwrap();
    room.file("spool/of.an-earlier-boot.tar", b"x");
    room.file("spool/dead.part", b"x");
    room.file("spool/keep.me", b"x");
    let writer = fs::File::create(room.directory.path().join("spool/live.part")).unwrap();
    rustix::fs::flock(&writer, rustix::fs::FlockOperation::LockExclusive).unwrap();
    assert_eq!(room.archives.sweep(), 3);
    let mut left = room.spooled();
    left.sort();
    assert_eq!(left.len(), 3, "{left:?}");
    assert!(
        left.contains(&spooled) && left.contains(&"live.part".into()) && left.contains(&"keep.me".into())
    );
}

#[test]
fn many_at_once_lay_a_compressed_archive_out_once() {
    let room = Room::new();
    let path = room.file("a.tgz", &gzip(&new_form(&[("x", &["a:1"])])));
    std::thread::scope(|scope| {
        let jobs: Vec<_> =
            (0..8).map(|_| scope.spawn(|| room.archives.docker_archive(&path, None))).collect();
        for job in jobs {
            assert_layers_are_true(&job.join().unwrap().unwrap());
        }
    });
    assert_eq!(room.spooled().len(), 1, "{:?}", room.spooled());
}

#[test]
fn raising_stop_ends_the_work() {
    let room = Room::new();
    let stop = Stop::default();
    stop.raise();
    let archives = room.archives.stopping(&stop);
    for bytes in [gzip(&new_form(&[("x", &["a:1"])])), new_form(&[("x", &["a:1"])])] {
        let result = archives.docker_archive(&room.file("a", &bytes), None);
        assert!(matches!(cause(result), ArchiveError::Stopped { .. }));
    }
    assert!(room.spooled().is_empty());
}
