//! Makes images for the tests: layers entry by entry, an OCI layout around them, and root filesystems of
//! programs of this very machine, so that the tests need neither a network nor a compiler.

#![allow(dead_code, unused_macros, unused_imports, reason = "each file of tests uses its part of this")]

use std::collections::BTreeSet;
use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use tar::{EntryType, Header};

use super::binary::find_program;

/// `sha256:` and hex digits of these bytes.
pub(crate) fn digest(bytes: &[u8]) -> String {
    let hex: String = Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect();
    format!("sha256:{hex}")
}

/// A layer being written: a tar, entry by entry.
pub(crate) struct Layer {
    tar: tar::Builder<Vec<u8>>,
    dirs: BTreeSet<PathBuf>,
    mtime: u64,
}

impl Layer {
    /// An empty one.
    pub(crate) fn new() -> Self {
        Self { tar: tar::Builder::new(Vec::new()), dirs: BTreeSet::new(), mtime: 1_600_000_000 }
    }

    fn header(&mut self, kind: EntryType, mode: u32) -> Header {
        let mut header = Header::new_gnu();
        header.set_entry_type(kind);
        header.set_mode(mode);
        header.set_uid(0);
        header.set_gid(0);
        header.set_size(0);
        // Every entry has a time of its own: a time that is lost or swapped is seen.
        self.mtime += 1;
        header.set_mtime(self.mtime);
        header
    }

    fn parents(&mut self, path: &str) {
        let mut missing = Vec::new();
        let mut parent = Path::new(path).parent();
        while let Some(dir) = parent.filter(|dir| !dir.as_os_str().is_empty()) {
            if !self.dirs.contains(dir) {
                missing.push(dir.to_owned());
            }
            parent = dir.parent();
        }
        for dir in missing.into_iter().rev() {
            self.add_dir(dir.to_str().expect("test paths are text"), 0o755);
        }
    }

    fn add_dir(&mut self, path: &str, mode: u32) {
        self.dirs.insert(path.into());
        let mut header = self.header(EntryType::Directory, mode);
        self.tar.append_data(&mut header, format!("{path}/"), &[][..]).expect("memory holds it");
    }

    /// A directory; its parents too.
    pub(crate) fn dir(mut self, path: &str, mode: u32) -> Self {
        self.parents(path);
        self.add_dir(path, mode);
        self
    }

    /// A file.
    pub(crate) fn file(self, path: &str, bytes: impl AsRef<[u8]>, mode: u32) -> Self {
        self.owned_file(path, bytes, mode, (0, 0))
    }

    /// A file without entries for its parents, as some tools write layers: those of the layers below stay as they are.
    pub(crate) fn orphan(mut self, path: &str, bytes: impl AsRef<[u8]>) -> Self {
        let mut header = self.header(EntryType::Regular, 0o644);
        header.set_size(bytes.as_ref().len() as u64);
        self.tar.append_data(&mut header, path, bytes.as_ref()).expect("memory holds it");
        self
    }

    /// A file of another owner.
    pub(crate) fn owned_file(
        mut self,
        path: &str,
        bytes: impl AsRef<[u8]>,
        mode: u32,
        (uid, gid): (u64, u64),
    ) -> Self {
        self.parents(path);
        let mut header = self.header(EntryType::Regular, mode);
        header.set_uid(uid);
        header.set_gid(gid);
        header.set_size(bytes.as_ref().len() as u64);
        self.tar.append_data(&mut header, path, bytes.as_ref()).expect("memory holds it");
        self
    }

    /// A file with extended attributes and a time finer than a second, in PAX records.
    pub(crate) fn pax_file(mut self, path: &str, bytes: &[u8], mode: u32, pax: &[(&str, &[u8])]) -> Self {
        self.parents(path);
        self.tar.append_pax_extensions(pax.iter().copied()).expect("memory holds it");
        self.file(path, bytes, mode)
    }

    /// A symbolic link.
    pub(crate) fn symlink(mut self, path: &str, target: &str) -> Self {
        self.parents(path);
        let mut header = self.header(EntryType::Symlink, 0o777);
        self.tar.append_link(&mut header, path, target).expect("memory holds it");
        self
    }

    /// One more name of a file that is in this layer already.
    pub(crate) fn hard_link(mut self, path: &str, target: &str) -> Self {
        self.parents(path);
        let mut header = self.header(EntryType::Link, 0o644);
        self.tar.append_link(&mut header, path, target).expect("memory holds it");
        self
    }

    /// A fifo or device.
    pub(crate) fn node(mut self, path: &str, kind: EntryType, mode: u32, (major, minor): (u32, u32)) -> Self {
        self.parents(path);
        let mut header = self.header(kind, mode);
        header.set_device_major(major).expect("a GNU header has devices");
        header.set_device_minor(minor).expect("a GNU header has devices");
        self.tar.append_data(&mut header, path, &[][..]).expect("memory holds it");
        self
    }

    /// Removes a path of the layers below.
    pub(crate) fn whiteout(self, path: &str) -> Self {
        let (dir, name) = path.rsplit_once('/').unwrap_or(("", path));
        let slash = if dir.is_empty() { "" } else { "/" };
        self.file(&format!("{dir}{slash}.wh.{name}"), "", 0o644)
    }

    /// Hides what the layers below have in this directory.
    pub(crate) fn opaque(self, dir: &str) -> Self {
        self.file(&format!("{dir}/.wh..wh..opq"), "", 0o644)
    }

    /// A program of this machine, at the same path, with the libraries it loads.
    pub(crate) fn program(mut self, name: &str) -> Self {
        let file = find_program(name).unwrap_or_else(|| panic!("{name} is not installed"));
        let real = fs::canonicalize(&file).expect("it was found a moment ago");
        let mut files = vec![(PathBuf::from("/bin").join(name), real.clone())];
        // ldd fails on static programs: they need nothing then.
        let listed = Command::new("ldd").arg(&real).output().map(|o| o.stdout).unwrap_or_default();
        for word in String::from_utf8_lossy(&listed).split_whitespace().filter(|word| word.starts_with('/')) {
            files.push((word.into(), fs::canonicalize(word).expect("ldd named it")));
        }
        for (path, source) in files {
            let path = path.strip_prefix("/").expect("it is absolute").to_str().expect("it is text");
            if self.dirs.insert(path.into()) {
                self = self.file(path, fs::read(source).expect("programs can be read"), 0o755);
            }
        }
        self
    }

    /// The tar.
    pub(crate) fn finish(self) -> Vec<u8> {
        self.tar.into_inner().expect("memory holds it")
    }
}

/// How a layer is compressed in an image.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Compression {
    None,
    Gzip,
    Zstd,
}

/// An image being put together.
pub(crate) struct Image {
    layers: Vec<(Vec<u8>, Compression)>,
    config: Value,
}

impl Image {
    /// One without layers that says nothing.
    pub(crate) fn new() -> Self {
        Self { layers: Vec::new(), config: json!({"Env": ["PATH=/usr/sbin:/usr/bin:/sbin:/bin"]}) }
    }

    /// One more layer on top.
    pub(crate) fn layer(self, layer: Layer) -> Self {
        self.compressed(layer.finish(), Compression::Gzip)
    }

    /// One more layer on top: a tar, and how it is compressed.
    pub(crate) fn compressed(mut self, tar: Vec<u8>, compression: Compression) -> Self {
        self.layers.push((tar, compression));
        self
    }

    /// Sets a key of the config section: `Env`, `Cmd`, `Entrypoint`, `User`, `WorkingDir`.
    pub(crate) fn config(mut self, key: &str, value: Value) -> Self {
        self.config[key] = value;
        self
    }

    /// Writes an OCI layout with this one image in it; gives its digest.
    pub(crate) fn write_oci(&self, dir: &Path, tag: &str) -> String {
        let blobs = dir.join("blobs/sha256");
        fs::create_dir_all(&blobs).expect("the room can be written");
        let put = |bytes: &[u8]| {
            let digest = digest(bytes);
            fs::write(blobs.join(&digest["sha256:".len()..]), bytes).expect("the room can be written");
            digest
        };
        let (mut descriptors, mut diff_ids) = (Vec::new(), Vec::new());
        for (tar, compression) in &self.layers {
            diff_ids.push(digest(tar));
            let (blob, suffix) = match compression {
                Compression::None => (tar.clone(), ""),
                Compression::Gzip => {
                    let mut gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
                    gzip.write_all(tar).expect("memory holds it");
                    (gzip.finish().expect("memory holds it"), "+gzip")
                }
                Compression::Zstd => (zstd::encode_all(&tar[..], 1).expect("memory holds it"), "+zstd"),
            };
            descriptors.push(json!({
                "mediaType": format!("application/vnd.oci.image.layer.v1.tar{suffix}"),
                "digest": put(&blob),
                "size": blob.len(),
            }));
        }
        let config = serde_json::to_vec(&json!({
            "architecture": if cfg!(target_arch = "aarch64") { "arm64" } else { "amd64" },
            "os": "linux",
            "config": self.config,
            "rootfs": {"type": "layers", "diff_ids": diff_ids},
        }))
        .expect("it is JSON");
        let manifest = serde_json::to_vec(&json!({
            "schemaVersion": 2,
            "mediaType": "application/vnd.oci.image.manifest.v1+json",
            "config": {
                "mediaType": "application/vnd.oci.image.config.v1+json",
                "digest": put(&config),
                "size": config.len(),
            },
            "layers": descriptors,
        }))
        .expect("it is JSON");
        let manifest_digest = put(&manifest);
        let index = json!({
            "schemaVersion": 2,
            "manifests": [{
                "mediaType": "application/vnd.oci.image.manifest.v1+json",
                "digest": manifest_digest,
                "size": manifest.len(),
                "annotations": {"org.opencontainers.image.ref.name": tag},
            }],
        });
        fs::write(dir.join("index.json"), index.to_string()).expect("the room can be written");
        fs::write(dir.join("oci-layout"), r#"{"imageLayoutVersion":"1.0.0"}"#)
            .expect("the room can be written");
        manifest_digest
    }
}

/// The programs that [`shell`] has.
const PROGRAMS: [&str; 14] = [
    "sh", "cat", "echo", "env", "id", "ls", "mkdir", "pwd", "readlink", "rm", "sleep", "stty", "touch",
    "true",
];

/// A layer with a shell and the usual small programs.
pub(crate) fn shell() -> Layer {
    let mut layer = Layer::new()
        .dir("tmp", 0o1777)
        .dir("root", 0o700)
        .dir("proc", 0o755)
        .dir("sys", 0o755)
        .dir("dev", 0o755)
        // A root that cannot be written, of the bind backend, must bring the mount points of its sandbox.
        .dir("mnt/mesos/sandbox", 0o755)
        .file("etc/passwd", "root:x:0:0:root:/root:/bin/sh\nweb:x:1000:1001:web:/home:/bin/sh\n", 0o644)
        .file("etc/group", "root:x:0:\nweb:x:1001:\n", 0o644);
    for program in PROGRAMS {
        layer = layer.program(program);
    }
    layer
}

/// An image of twelve layers, large enough that those who want it at once meet in the middle of fetching it. Layer
/// `n` has the file `/data/<n>`, which begins with `layer <n>`.
pub(crate) fn twelve_layers() -> Image {
    (0..11_u32).fold(Image::new().compressed(shell().finish(), Compression::None), |image, layer| {
        let text = format!("layer {layer}\n").repeat(100_000);
        image.layer(Layer::new().file(&format!("data/{layer}"), text, 0o644))
    })
}
