//! Images from Debian's `docker-registry`, pushed there by `skopeo`, run by the real binary with each backend; and
//! the root filesystems it makes, held against those of `umoci unpack` entry by entry.

use std::fs;
use std::path::{Path, PathBuf};

use serde_json::json;
use tar::EntryType;

mod support {
    pub(crate) mod binary;
    pub(crate) mod images;
    pub(crate) mod peers;
    pub(crate) mod tree;
}

use support::binary::{Room, need_programs, need_root, run_program};
use support::images::{Compression, Image, Layer, shell};
use support::peers::{Registry, debian_tar};
use support::tree::{Difference, Tree};

const BACKENDS: [&str; 3] = ["overlay", "copy", "bind"];

/// How an image may lie in a registry: name, and what tells skopeo to put it so.
const FORMS: [(&str, &[&str]); 3] = [
    ("schema2-gzip", &["--format", "v2s2"]),
    ("oci-gzip", &["--format", "oci"]),
    ("oci-zstd", &["--format", "oci", "--dest-compress-format", "zstd"]),
];

/// An image of one layer.
fn one_layer() -> Image {
    Image::new().layer(shell().file("etc/motd", "one layer\n", 0o644))
}

/// An image whose upper layers replace, remove and hide.
fn three_layers() -> Image {
    Image::new()
        .layer(
            shell()
                .file("etc/motd", "base\n", 0o644)
                .file("etc/removed", "still here\n", 0o644)
                .file("opt/a", "a\n", 0o644)
                .file("opt/b", "b\n", 0o644),
        )
        .layer(Layer::new().file("etc/motd", "three layers\n", 0o644).whiteout("etc/removed"))
        .layer(Layer::new().dir("opt", 0o755).opaque("opt").file("opt/c", "c\n", 0o644))
}

#[test]
fn images_run_by_tag_and_by_digest_with_each_backend() {
    need_root!();
    need_programs!("docker-registry", "skopeo");
    let room = Room::new("backends");
    let registry = Registry::start();
    one_layer().write_oci(&room.join("one"), "latest");
    three_layers().write_oci(&room.join("three"), "latest");
    for (form, options) in FORMS {
        for image in ["one", "three"] {
            let source = format!("oci:{}:latest", room.join(image).display());
            let name = format!("{image}/{form}");
            let digest = registry.push(&source, &format!("{name}:1.0"), options);
            for backend in BACKENDS {
                let by_tag = registry.image(&format!("{name}:1.0"));
                let by_digest = registry.image(&format!("{name}@{digest}"));
                for reference in [by_tag, by_digest] {
                    let line = "cat /etc/motd; test ! -e /etc/removed || echo removed is there; \
                                test ! -d /opt || ls /opt; exit 7";
                    let flag = format!("--image_provisioner_backend={backend}");
                    room.keelblock([&flag, "run", &reference, "--", "sh", "-c", line])
                        .run()
                        .code(7)
                        .printed(if image == "one" { "one layer\n" } else { "three layers\nc\n" });
                }
            }
        }
    }
    room.expect_no_leftovers();
}

#[test]
fn zstd_layers_really_are_zstd_in_the_registry() {
    need_programs!("docker-registry", "skopeo");
    let room = Room::new("zstd");
    let registry = Registry::start();
    one_layer().write_oci(&room.join("one"), "latest");
    registry.push(&format!("oci:{}:latest", room.join("one").display()), "one:1", FORMS[2].1);
    let manifest = registry.manifest("one:1").to_string();
    assert!(manifest.contains("tar+zstd"), "the test of zstd layers would prove nothing: {manifest}");
}

#[test]
fn the_bind_backend_shows_many_layers_unless_it_is_strict() {
    need_root!();
    let room = Room::new("bind");
    three_layers().write_oci(&room.join("three"), "latest");
    let image = format!("oci:{}:latest", room.join("three").display());
    let bind = "--image_provisioner_backend=bind";
    let said = room.keelblock([bind, "provision", "--json", "--id", "three", &image]).run().ok().json();
    let bound = Tree::read(Path::new(said["rootfs"].as_str().unwrap()));
    room.keelblock(["destroy", "three"]).run().ok();
    let said = room.keelblock(["provision", "--json", "--id", "three", &image]).run().ok().json();
    let overlaid = Tree::read(Path::new(said["rootfs"].as_str().unwrap()));
    bound.expect_same("bind", &overlaid, "overlay", |_| None);
    room.keelblock(["destroy", "three"]).run().ok();
    room.keelblock([bind, "--bind_strict", "run", &image, "--", "true"]).run().failed_naming(&[
        "bind",
        "the image has 3",
        "--bind_strict",
    ]);
    room.expect_no_leftovers();
}

#[test]
fn a_pull_counts_what_it_fetched_and_a_second_one_fetches_nothing() {
    need_programs!("docker-registry", "skopeo");
    let room = Room::new("pull");
    let registry = Registry::start();
    three_layers().write_oci(&room.join("three"), "latest");
    let source = format!("oci:{}:latest", room.join("three").display());
    let digest = registry.push(&source, "three:1", &["--format", "oci"]);
    let manifest = registry.manifest("three:1");
    let layers = manifest["layers"].as_array().unwrap();
    let bytes: u64 = layers.iter().map(|layer| layer["size"].as_u64().unwrap()).sum();

    let name = registry.image("three:1");
    let before = registry.requests().len();
    let first = sole(room.keelblock(["pull", "--json", &name]).run().ok().json());
    let wanted = json!({"layers_fetched": 3, "layers_reused": 0, "bytes_fetched": bytes});
    for (key, value) in wanted.as_object().unwrap() {
        assert_eq!(&first[key], value, "{key} of {first}");
    }
    assert_eq!(first["digest"].as_str().or(first["image"]["digest"].as_str()), Some(&digest[..]), "{first}");
    let fetched = registry.blobs_fetched(before);
    for layer in layers {
        let count = fetched.iter().filter(|blob| layer["digest"].as_str() == Some(blob)).count();
        assert_eq!(count, 1, "blob requests: {fetched:?}");
    }

    let before = registry.requests().len();
    let second = sole(room.keelblock(["pull", "--json", &name]).run().ok().json());
    assert_eq!((second["layers_fetched"].as_u64(), second["bytes_fetched"].as_u64()), (Some(0), Some(0)));
    assert_eq!(second["layers_reused"], 3);
    let again = registry.blobs_fetched(before);
    assert!(layers.iter().all(|layer| !again.iter().any(|blob| layer["digest"] == blob[..])), "{again:?}");
}

/// The document of a command on one image, whether it stands alone or in a list of one.
fn sole(json: serde_json::Value) -> serde_json::Value {
    match json {
        serde_json::Value::Array(mut list) if list.len() == 1 => list.remove(0),
        other => other,
    }
}

#[test]
fn a_debian_runs_apt_get() {
    need_root!();
    need_programs!("docker-registry", "skopeo", "debootstrap");
    let Some(tar) = debian_tar() else { return };
    let room = Room::new("debian");
    let registry = Registry::start();
    let base = fs::read(tar).unwrap();
    let image = |name: &str, image: Image| {
        image.write_oci(&room.join(name), "latest");
        registry.push(&format!("oci:{}:latest", room.join(name).display()), &format!("{name}:12"), &[]);
        registry.image(&format!("{name}:12"))
    };
    let plain = Image::new().compressed(base.clone(), Compression::Gzip);
    let changed = Image::new()
        .compressed(base, Compression::Gzip)
        .layer(Layer::new().whiteout("usr/share/doc").file("etc/motd", "changed\n", 0o644));
    for reference in [image("plain", plain), image("changed", changed)] {
        for backend in BACKENDS {
            let flag = format!("--image_provisioner_backend={backend}");
            let args = [&flag, "run", "--sandbox_directory=/mnt", &reference, "--", "apt-get", "--version"];
            let said = room.keelblock(args).run().ok().stdout();
            assert!(said.starts_with("apt 2."), "{backend}: {said}");
        }
    }
    room.expect_no_leftovers();
}

/// A bundled image, which lies in the repository as `docker save` wrote it.
fn bundled(name: &str) -> String {
    format!("docker-archive:{}/fixtures/images/{name}.tar", env!("CARGO_MANIFEST_DIR"))
}

#[test]
fn the_bundled_images_run_from_a_registry_as_they_do_from_their_archives() {
    need_root!();
    need_programs!("docker-registry", "skopeo");
    let room = Room::new("bundled");
    let registry = Registry::start();
    for name in ["hello", "single", "layers", "entrypoint"] {
        registry.push(&bundled(name), &format!("{name}:1"), &[]);
        let local = room.keelblock(["run", &bundled(name)]).run().ok().stdout();
        assert!(!local.is_empty(), "{name} says nothing: it proves nothing");
        room.keelblock(["run", &registry.image(&format!("{name}:1"))]).run().ok().printed(&local);
    }
    room.expect_no_leftovers();
}

/// A layer with one of everything that tars can say, over a Debian.
fn everything() -> Layer {
    let long = format!("opt/{}/{}/{}", "d".repeat(120), "e".repeat(120), "f".repeat(200));
    // Version 2 of file capabilities: CAP_NET_BIND_SERVICE permitted and effective.
    let capability = [1, 0, 0, 2, 0, 4, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
    let mut layer = Layer::new()
        // Removed, hidden, and replaced by another type.
        .whiteout("usr/share/doc")
        .whiteout("etc/issue")
        .dir("etc/apt", 0o755)
        .opaque("etc/apt")
        .file("etc/apt/sources.list", "# nothing\n", 0o600)
        .file("etc/cron.daily", "a file in place of a directory\n", 0o644)
        .dir("etc/hostname", 0o711)
        .file("etc/hostname/inside", "a directory in place of a file\n", 0o644)
        .dir("usr/bin/pager", 0o755)
        .symlink("etc/debian_version", "in/place/of/a/file")
        .whiteout("does/not/exist/below")
        // Modes and owners.
        .file("opt/setuid", "s", 0o4755)
        .file("opt/setgid", "s", 0o2711)
        .dir("opt/sticky", 0o1777)
        .dir("opt/setgid-dir", 0o2775)
        .file("opt/none", "", 0)
        .owned_file("opt/owned", "o", 0o640, (12345, 54321))
        .owned_file("opt/large-owner", "o", 0o640, (2_000_000_000, 2_000_000_001))
        // Links, within the layer and to nowhere.
        .file("opt/link-1", "linked\n", 0o644)
        .hard_link("opt/link-2", "opt/link-1")
        .hard_link("opt/sticky/link-3", "opt/link-1")
        .symlink("opt/absolute", "/etc/passwd")
        .symlink("opt/escaping", "../../../../etc/passwd")
        .symlink("opt/dangling", "nowhere")
        .symlink("opt/long-target", &"t/".repeat(400))
        // Nodes.
        .node("opt/fifo", EntryType::Fifo, 0o640, (0, 0))
        .node("opt/null", EntryType::Char, 0o666, (1, 3))
        .node("opt/loop", EntryType::Block, 0o660, (7, 300))
        // Names.
        .file(&long, "long\n", 0o644)
        .file("opt/names with spaces and \u{fc}nic\u{f6}de", "n", 0o644)
        .file("opt/ new\nline", "n", 0o644)
        .file("opt/..dots", "n", 0o644);
    layer = layer
        .pax_file("opt/fine-time", b"t", 0o644, &[("mtime", b"1600000000.123456789")])
        .pax_file("opt/before-1970", b"t", 0o644, &[("mtime", b"-5.5")])
        .pax_file("opt/capability", b"c", 0o755, &[("SCHILY.xattr.security.capability", &capability)])
        .pax_file(
            "opt/attributes",
            b"x",
            0o444,
            &[("SCHILY.xattr.user.color", b"blue"), ("SCHILY.xattr.user.binary", b"\x01\x02=\n\xff")],
        );
    layer.dir("opt/last", 0o700)
}

/// A layer of files with holes that GNU tar wrote, in one of its formats; and the files themselves.
fn sparse(room: &Room, format: &str) -> (Vec<u8>, PathBuf) {
    use std::os::unix::fs::FileExt;
    let top = room.join(format!("sparse-{format}"));
    let dir = top.join("holes");
    fs::create_dir_all(&dir).unwrap();
    let make = |name: &str, size: u64, at: &[u64]| {
        let file = fs::File::create(dir.join(name)).unwrap();
        file.set_len(size).unwrap();
        for offset in at {
            file.write_all_at(b"data between holes", *offset).unwrap();
        }
    };
    make("only-a-hole", 1 << 20, &[]);
    make("hole-first", 1 << 20, &[(1 << 20) - 18]);
    make("many", 64 << 20, &(0..40).map(|n| n * 1_500_000).collect::<Vec<_>>());
    let tar = room.join(format!("sparse-{format}.tar"));
    let format = format!("--format={format}");
    run_program("tar", ["-S", &format, "-C", path(&top), "-cf", path(&tar), "holes"]);
    (fs::read(tar).unwrap(), dir)
}

/// umoci refuses the old form of GNU tar (type `S`), so here the files themselves are what is right.
#[test]
fn files_with_holes_are_whole_in_both_forms_of_gnu_tar() {
    need_root!();
    need_programs!("tar");
    for format in ["gnu", "pax"] {
        let room = Room::new("holes");
        let (tar, dir) = sparse(&room, format);
        Image::new().compressed(tar, Compression::None).write_oci(&room.join("oci"), "latest");
        let image = format!("oci:{}:latest", room.join("oci").display());
        let said = room.keelblock(["provision", "--json", "--id", "holes", &image]).run().ok().json();
        let rootfs = said["rootfs"].as_str().expect("the document names the root filesystem").to_owned();
        let (theirs, ours) = (Tree::read(&dir), Tree::read(&Path::new(&rootfs).join("holes")));
        // GNU's form of the header has whole seconds only.
        theirs.expect_same("the files", &ours, format, |d| {
            (format == "gnu" && d.aspect == "mtime").then_some("the gnu format keeps whole seconds")
        });
        let many = fs::File::open(Path::new(&rootfs).join("holes/many")).unwrap();
        let length = many.metadata().unwrap().len();
        assert!(data_bytes(&many) < length / 4, "{format}: the holes were filled with zeros");
        drop(many);
        room.keelblock(["destroy", "holes"]).run().ok();
        room.expect_no_leftovers();
    }
}

/// How much of a file is no hole; an image's blocks do not say.
fn data_bytes(file: &fs::File) -> u64 {
    let (mut at, mut bytes) = (0, 0);
    while let Ok(start) = rustix::fs::seek(file, rustix::fs::SeekFrom::Data(at)) {
        at = rustix::fs::seek(file, rustix::fs::SeekFrom::Hole(start)).unwrap();
        bytes += at - start;
    }
    bytes
}

fn path(path: &Path) -> &str {
    path.to_str().unwrap()
}

/// Where the trees of umoci and keelblock differ, and that is right so.
fn excused(_difference: &Difference) -> Option<&'static str> {
    None
}

#[test]
fn a_directory_that_a_layer_says_nothing_of_stays_as_it_was_below() {
    need_root!();
    need_programs!("umoci");
    let room = on_disk("implied");
    let layout = room.join("implied");
    Image::new()
        .layer(Layer::new().dir("root", 0o700).dir("srv/deep", 0o1770).file("srv/deep/below", "b", 0o644))
        .layer(Layer::new().orphan("root/orphan", "o").orphan("srv/deep/orphan", "o"))
        .layer(Layer::new().dir("srv/deep", 0o750))
        .layer(Layer::new().orphan("srv/deep/again", "a").orphan("root/again", "a"))
        .write_oci(&layout, "latest");
    compare_with_umoci(&room, &layout, &format!("oci:{}:latest", layout.display()), 4);
}

/// Provisions an image with overlay and with copy, and holds the trees against that of `umoci unpack`.
fn compare_with_umoci(room: &Room, layout: &Path, reference: &str, layers: usize) -> Tree {
    let bundle = room.join(format!("{}-bundle", layout.file_name().unwrap().to_str().unwrap()));
    run_program("umoci", ["unpack", "--image", &format!("{}:latest", path(layout)), path(&bundle)]);
    let theirs = Tree::read(&bundle.join("rootfs"));
    for backend in ["overlay", "copy"] {
        let flag = format!("--image_provisioner_backend={backend}");
        let args = [&flag, "provision", "--json", "--id", backend, reference];
        let said = room.keelblock(args).run().ok().json();
        assert_eq!(said["backend"], backend);
        assert_eq!(said["layers"].as_array().map(Vec::len), Some(layers), "{said}");
        let rootfs = said["rootfs"].as_str().expect("the document names the root filesystem").to_owned();
        let ours = Tree::read(Path::new(&rootfs));
        theirs.expect_same("umoci", &ours, backend, excused);
        room.keelblock(["destroy", backend]).run().ok();
        assert!(!Path::new(&rootfs).exists(), "{rootfs} outlived its container");
    }
    theirs
}

#[test]
fn the_root_filesystems_of_the_bundled_images_are_those_of_umoci() {
    need_root!();
    need_programs!("skopeo", "umoci");
    let room = on_disk("bundled-trees");
    for (name, layers) in [("hello", 2), ("single", 1), ("layers", 7), ("devices", 2)] {
        let layout = room.join(name);
        let target = format!("oci:{}:latest", layout.display());
        run_program("skopeo", ["--insecure-policy", "copy", "--quiet", &bundled(name), &target]);
        let theirs = compare_with_umoci(&room, &layout, &bundled(name), layers);
        assert!(theirs.len() > 3, "{name} is empty");
    }
    room.expect_no_leftovers();
}

/// A room on the disk, not in memory: tmpfs has no user xattrs on older kernels.
fn on_disk(name: &str) -> Room {
    Room::below(Path::new(env!("CARGO_TARGET_TMPDIR")), name)
}

#[test]
fn the_root_filesystem_is_that_of_umoci_entry_by_entry() {
    need_root!();
    need_programs!("docker-registry", "skopeo", "debootstrap", "umoci", "tar");
    let Some(tar) = debian_tar() else { return };
    let room = on_disk("umoci");
    let registry = Registry::start();
    let layout = room.join("everything");
    Image::new()
        .compressed(fs::read(tar).unwrap(), Compression::Gzip)
        .layer(everything())
        .compressed(sparse(&room, "pax").0, Compression::Gzip)
        .write_oci(&layout, "latest");
    registry.push(&format!("oci:{}:latest", layout.display()), "everything:1", &["--format", "oci"]);
    let theirs = compare_with_umoci(&room, &layout, &registry.image("everything:1"), 3);
    assert!(theirs.len() > 5000, "a Debian has more than {} entries", theirs.len());
    assert!(!theirs.has("etc/issue") && !theirs.has("etc/apt/apt.conf.d") && theirs.has("opt/null"));
    room.expect_no_leftovers();
}
