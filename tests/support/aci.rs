//! Builds ACIs: a manifest and files below `rootfs`, in any compression, the same bytes every time.

#![allow(dead_code, reason = "each test crate uses a part")]

use std::io::Write;

use serde_json::{Value, json};
use sha2::Digest as _;

/// How an archive is compressed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum Pack {
    #[default]
    Plain,
    Gzip,
    Bzip2,
    Xz,
    Zstd,
}

/// An ACI in the making.
#[derive(Clone, Debug)]
pub(crate) struct Aci {
    /// Of the manifest.
    pub(crate) manifest: Value,
    entries: Vec<Entry>,
    pack: Pack,
}

#[derive(Clone, Debug)]
struct Entry {
    path: String,
    kind: tar::EntryType,
    mode: u32,
    data: Vec<u8>,
    link: String,
}

impl Aci {
    /// `example.com/app:1.0` for linux on amd64, with an empty rootfs. Other labels as in `NAME:VERSION,label=value`.
    pub(crate) fn new(name: &str) -> Self {
        let (head, labels) = name.split_once(',').unwrap_or((name, ""));
        let (name, version) =
            head.split_once(':').map_or((head, None), |(name, version)| (name, Some(version)));
        let mut pairs: Vec<(&str, &str)> = version.iter().map(|version| ("version", *version)).collect();
        pairs.extend(labels.split(',').filter_map(|pair| pair.split_once('=')));
        for (label, value) in [("os", "linux"), ("arch", "amd64")] {
            if !pairs.iter().any(|(name, _)| *name == label) {
                pairs.push((label, value));
            }
        }
        // A label without value is none.
        pairs.retain(|(_, value)| !value.is_empty());
        let labels: Vec<_> =
            pairs.iter().map(|(name, value)| json!({"name": name, "value": value})).collect();
        let manifest =
            json!({"acKind": "ImageManifest", "acVersion": "0.8.11", "name": name, "labels": labels});
        Self { manifest, entries: Vec::new(), pack: Pack::default() }.dir("", 0o755)
    }

    /// With a field of the manifest.
    pub(crate) fn field(mut self, key: &str, value: Value) -> Self {
        self.manifest[key] = value;
        self
    }

    /// With an app of this command, run by root.
    pub(crate) fn app(self, exec: &[&str]) -> Self {
        self.field("app", json!({"exec": exec, "user": "0", "group": "0"}))
    }

    /// With one more dependency: `NAME[:VERSION][,label=value...]`.
    pub(crate) fn needs(self, name: &str) -> Self {
        self.needs_with(name, json!({}))
    }

    /// The same with more fields.
    pub(crate) fn needs_with(mut self, name: &str, more: Value) -> Self {
        let (head, labels) = name.split_once(',').unwrap_or((name, ""));
        let (name, version) =
            head.split_once(':').map_or((head, None), |(name, version)| (name, Some(version)));
        let mut pairs: Vec<(&str, &str)> = version.iter().map(|version| ("version", *version)).collect();
        pairs.extend(labels.split(',').filter_map(|pair| pair.split_once('=')));
        let labels: Vec<_> =
            pairs.iter().map(|(name, value)| json!({"name": name, "value": value})).collect();
        let mut dependency = json!({"imageName": name, "labels": labels});
        for (key, value) in more.as_object().into_iter().flatten() {
            dependency[key] = value.clone();
        }
        match &mut self.manifest["dependencies"] {
            Value::Array(all) => all.push(dependency),
            other => *other = json!([dependency]),
        }
        self
    }

    /// With a whitelist.
    pub(crate) fn only(self, paths: &[&str]) -> Self {
        self.field("pathWhitelist", json!(paths))
    }

    /// With a file; directories above it are those that have entries.
    pub(crate) fn file(self, path: &str, mode: u32, data: impl AsRef<[u8]>) -> Self {
        self.entry(path, tar::EntryType::Regular, mode, data.as_ref(), "")
    }

    pub(crate) fn dir(self, path: &str, mode: u32) -> Self {
        self.entry(path, tar::EntryType::Directory, mode, b"", "")
    }

    pub(crate) fn symlink(self, path: &str, target: &str) -> Self {
        self.entry(path, tar::EntryType::Symlink, 0o777, b"", target)
    }

    /// Another name of a file of it.
    pub(crate) fn hard_link(self, path: &str, target: &str) -> Self {
        self.entry(path, tar::EntryType::Link, 0o755, b"", &format!("rootfs/{target}"))
    }

    fn entry(mut self, path: &str, kind: tar::EntryType, mode: u32, data: &[u8], link: &str) -> Self {
        let path = format!("rootfs/{path}").trim_end_matches('/').to_owned();
        self.entries.push(Entry { path, kind, mode, data: data.to_vec(), link: link.to_owned() });
        self
    }

    pub(crate) fn packed(self, pack: Pack) -> Self {
        Self { pack, ..self }
    }

    /// The uncompressed tar.
    pub(crate) fn tar(&self) -> Vec<u8> {
        let mut builder = tar::Builder::new(Vec::new());
        let manifest = Entry {
            path: "manifest".to_owned(),
            kind: tar::EntryType::Regular,
            mode: 0o644,
            data: self.manifest.to_string().into_bytes(),
            link: String::new(),
        };
        for entry in std::iter::once(&manifest).chain(&self.entries) {
            let mut header = tar::Header::new_gnu();
            header.set_entry_type(entry.kind);
            header.set_mode(entry.mode);
            header.set_uid(rustix::process::geteuid().as_raw().into());
            header.set_gid(rustix::process::getegid().as_raw().into());
            header.set_mtime(1_000_000_000);
            header.set_size(entry.data.len() as u64);
            match entry.link.as_str() {
                "" => builder.append_data(&mut header, &entry.path, &entry.data[..]).unwrap(),
                link => builder.append_link(&mut header, &entry.path, link).unwrap(),
            }
        }
        builder.into_inner().unwrap()
    }

    /// `sha512-...`.
    pub(crate) fn id(&self) -> String {
        let digest = sha2::Sha512::digest(self.tar());
        let hex: String = digest.iter().map(|byte| format!("{byte:02x}")).collect();
        format!("sha512-{hex}")
    }

    /// The archive.
    pub(crate) fn bytes(&self) -> Vec<u8> {
        let tar = self.tar();
        match self.pack {
            Pack::Plain => tar,
            Pack::Gzip => {
                let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::best());
                encoder.write_all(&tar).and_then(|()| encoder.finish()).unwrap()
            }
            Pack::Bzip2 => {
                let mut encoder = bzip2::write::BzEncoder::new(Vec::new(), bzip2::Compression::best());
                encoder.write_all(&tar).and_then(|()| encoder.finish()).unwrap()
            }
            Pack::Xz => {
                let mut encoder = liblzma::write::XzEncoder::new(Vec::new(), 6);
                encoder.write_all(&tar).and_then(|()| encoder.finish()).unwrap()
            }
            Pack::Zstd => zstd::encode_all(&tar[..], 3).unwrap(),
        }
    }
}
