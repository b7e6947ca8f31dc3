//! OCI image layouts, as directory or tar (OCI image-spec, image-layout.md).
//!
//! `index.json` leads to manifests by name and platform; blobs lie at `blobs/<algorithm>/<hex>`, a path made of a parsed
//! digest and nothing else. Manifests and configs are verified by length and digest before they are looked at; layers by
//! the store when they are unpacked.

use std::fs::{self, File};
use std::io::{self, Read};
use std::path::{Path, PathBuf};

use keelblock_actors::error::quote;
use keelblock_actors::image::digest::Digest;
use keelblock_actors::image::name::ImageName;
use keelblock_actors::image::plan::{ImageIdentity, ImagePlan, LayerSource};
use keelblock_actors::image::reference::Reference;
use serde::Deserialize;

use super::error::ArchiveError;
use super::index::{TarIndex, verify};
use crate::limits::Limits;
use crate::provider::manifest::{
    BadJson, Descriptor, ImageManifest, Index, ManifestError, Parsed, Platform, parse, parse_config, plan,
};

const LAYOUT: &str = "oci-layout";
const INDEX: &str = "index.json";
const NAME: &str = "org.opencontainers.image.ref.name";
/// Where containerd and docker keep the full name; the standard annotation then holds the tag alone.
const FULL_NAME: &str = "io.containerd.image.name";

/// Where the files of a layout are.
pub(super) enum Layout {
    /// In this directory.
    Directory(PathBuf),
    /// In this archive.
    Archive(TarIndex),
}

impl Layout {
    /// The layout in a directory, which must be one.
    pub(super) fn directory(path: &Path) -> Result<Self, ArchiveError> {
        let failed = |source| ArchiveError::Open { archive: path.to_owned(), source };
        if !fs::metadata(path).map_err(failed)?.is_dir() {
            let source = io::Error::new(
                io::ErrorKind::NotADirectory,
                "it is no directory; use oci-archive: for the tar of a layout",
            );
            return Err(failed(source));
        }
        Ok(Self::Directory(path.to_owned()))
    }

    fn path(&self) -> &Path {
        match self {
            Self::Directory(path) => path,
            Self::Archive(index) => &index.archive,
        }
    }

    /// The bytes of one of its files.
    fn document(&self, name: &str, limit: u64, flag: &'static str) -> Result<Vec<u8>, ArchiveError> {
        match self {
            Self::Archive(index) => index.document(name, limit, flag),
            Self::Directory(directory) => {
                let path = directory.join(name);
                let size = self.size(name)?;
                let failed = |source| ArchiveError::Read { archive: path.clone(), source };
                let mut bytes = Vec::new();
                let file = File::open(&path).map_err(failed)?;
                file.take(limit.saturating_add(1)).read_to_end(&mut bytes).map_err(failed)?;
                if bytes.len() as u64 > limit {
                    let (archive, member) = (directory.clone(), name.to_owned());
                    return Err(ArchiveError::TooLarge { archive, member, size, limit, flag });
                }
                Ok(bytes)
            }
        }
    }

    /// The length of one of its files, which must be there and regular. Symbolic links are followed: some tools share
    /// blobs that way, and what they lead to must still have the digest it is named by.
    fn size(&self, name: &str) -> Result<u64, ArchiveError> {
        match self {
            Self::Archive(index) => Ok(index.find(name)?.size),
            Self::Directory(directory) => {
                let path = directory.join(name);
                match fs::metadata(&path) {
                    Ok(meta) if meta.is_file() => Ok(meta.len()),
                    Ok(meta) => {
                        let found = if meta.is_dir() { "a directory" } else { "a special file" };
                        let (archive, member) = (directory.clone(), name.to_owned());
                        Err(ArchiveError::NotRegular { archive, member, found })
                    }
                    Err(error) if error.kind() == io::ErrorKind::NotFound => Err(self.missing(name)),
                    Err(source) => Err(ArchiveError::Read { archive: path, source }),
                }
            }
        }
    }

    fn missing(&self, name: &str) -> ArchiveError {
        match self {
            Self::Archive(index) => index.missing(name),
            Self::Directory(directory) => {
                ArchiveError::Missing { archive: directory.clone(), member: quote(name), hint: "" }
            }
        }
    }

    /// A manifest, index or config, verified.
    fn blob(&self, blob: &Descriptor, limit: u64, flag: &'static str) -> Result<Vec<u8>, ArchiveError> {
        let name = blob_name(&blob.digest);
        self.check_size(&name, blob.size)?;
        let bytes = self.document(&name, limit, flag)?;
        verify(self.path(), &name, &bytes, &blob.digest)?;
        Ok(bytes)
    }

    fn check_size(&self, name: &str, expected: u64) -> Result<(), ArchiveError> {
        let actual = self.size(name)?;
        if actual == expected {
            return Ok(());
        }
        let (archive, member) = (self.path().to_owned(), name.to_owned());
        Err(ArchiveError::WrongSize { archive, member, expected, actual })
    }

    /// Where a layer is. It was found to be there.
    fn source(&self, blob: &Descriptor) -> LayerSource {
        let member = blob_name(&blob.digest);
        match self {
            Self::Directory(directory) => LayerSource::File { path: directory.join(member) },
            Self::Archive(index) => {
                // A member that vanished between two looks at a map in memory cannot be.
                let (offset, size) =
                    index.find(&member).map_or((0, 0), |extent| (extent.offset, extent.size));
                LayerSource::Archive { path: index.bytes.clone(), member, offset, size }
            }
        }
    }

    fn unusable(&self, member: &str, source: ManifestError) -> ArchiveError {
        ArchiveError::Manifest { archive: self.path().to_owned(), member: quote(member), source }
    }
}

fn blob_name(digest: &Digest) -> String {
    format!("blobs/{}/{}", digest.algorithm(), digest.hex())
}

/// The plan of an image of the layout: the one by this name, or the only one.
pub(super) fn resolve(
    layout: &Layout,
    tag: Option<&str>,
    name: ImageName,
    platform: &Platform,
    limits: &Limits,
) -> Result<ImagePlan, ArchiveError> {
    check_version(layout, limits)?;
    let bytes = layout.document(INDEX, limits.manifest_bytes_max, "manifest_bytes_max")?;
    let index = match parse(&bytes, None) {
        Ok(Parsed::Index(index)) => index,
        Ok(Parsed::Image(_)) => {
            let (media_type, found) = (INDEX.to_owned(), "an image manifest");
            return Err(layout.unusable(INDEX, ManifestError::Content { media_type, found }));
        }
        Ok(Parsed::Schema1(_)) => return Err(layout.unusable(INDEX, ManifestError::Schema1Here)),
        Err(source) => return Err(layout.unusable(INDEX, source)),
    };
    let entry = choose(layout, &index, tag, platform)?;
    let (manifest, digest) = follow(layout, entry, platform, limits)?;
    let member = blob_name(&digest);
    let bytes = layout.blob(&manifest.config, limits.config_bytes_max, "config_bytes_max")?;
    let config = parse_config(&bytes)
        .map_err(|source| layout.unusable(&blob_name(&manifest.config.digest), source))?;
    let identity = ImageIdentity { name, manifest: digest, config: manifest.config.digest.clone() };
    let plan = plan(identity, &manifest, config, limits, |layer| layout.source(layer))
        .map_err(|source| layout.unusable(&member, source))?;
    for layer in &manifest.layers {
        layout.check_size(&blob_name(&layer.digest), layer.size)?;
    }
    Ok(plan)
}

fn check_version(layout: &Layout, limits: &Limits) -> Result<(), ArchiveError> {
    #[derive(Deserialize)]
    #[serde(rename_all = "camelCase")]
    struct Marker {
        image_layout_version: String,
    }
    let bytes = match layout.document(LAYOUT, limits.manifest_bytes_max, "manifest_bytes_max") {
        Err(ArchiveError::Missing { archive, member, hint: "" }) => {
            let hint = if matches!(layout, Layout::Archive(index) if index.has("manifest.json")) {
                ", but is an archive of docker save; use docker-archive: for it"
            } else {
                ", so it is no OCI image layout"
            };
            return Err(ArchiveError::Missing { archive, member, hint });
        }
        other => other?,
    };
    let marker: Marker = serde_json::from_slice(&bytes).map_err(|error| ArchiveError::Json {
        archive: layout.path().to_owned(),
        member: LAYOUT.into(),
        source: BadJson::from(error),
    })?;
    if marker.image_layout_version.split('.').next() == Some("1") {
        return Ok(());
    }
    let version = quote(&marker.image_layout_version);
    Err(ArchiveError::LayoutVersion { archive: layout.path().to_owned(), version })
}

/// The entry of `index.json` that a tag means, or no tag.
fn choose<'a>(
    layout: &Layout,
    index: &'a Index,
    tag: Option<&str>,
    platform: &Platform,
) -> Result<&'a Descriptor, ArchiveError> {
    let images: Vec<&Descriptor> = index.manifests.iter().filter(|entry| entry.is_of_an_image()).collect();
    let matching: Vec<&Descriptor> = match tag {
        None => images.clone(),
        // The nearest kind of match that there is; a farther one never adds to it.
        Some(tag) => {
            let by = |test: fn(&Descriptor, &str) -> bool| {
                images.iter().copied().filter(|entry| test(entry, tag)).collect::<Vec<_>>()
            };
            [is_called, is_short_for, has_tag]
                .into_iter()
                .map(by)
                .find(|found| !found.is_empty())
                .unwrap_or_default()
        }
    };
    let archive = layout.path().to_owned();
    let Some(first) = matching.first() else {
        let wanted = quote(tag.unwrap_or("any"));
        return Err(ArchiveError::NoSuchImage { archive, wanted, offered: offered(&images) });
    };
    let first_name = names(first).next();
    if matching.iter().all(|entry| entry.digest == first.digest) {
        return Ok(first);
    }
    if matching.iter().any(|entry| names(entry).next() != first_name) {
        return Err(ArchiveError::Several { archive, offered: offered(&images) });
    }
    // One name, several manifests: they differ by platform, or nothing tells them apart.
    let same = Index { manifests: matching.iter().map(|&entry| entry.clone()).collect() };
    let chosen = same.choose(platform).map_err(|source| layout.unusable(INDEX, source))?;
    matching.into_iter().find(|entry| **entry == *chosen).ok_or_else(|| layout.missing(INDEX))
}

/// The names an entry goes by.
fn names(entry: &Descriptor) -> impl Iterator<Item = &str> {
    [FULL_NAME, NAME].into_iter().filter_map(|key| entry.annotations.get(key)).map(String::as_str)
}

fn is_called(entry: &Descriptor, tag: &str) -> bool {
    names(entry).any(|name| name == tag)
}

/// Both are references of one image: `hello` and `docker.io/library/hello:latest`.
fn is_short_for(entry: &Descriptor, tag: &str) -> bool {
    let canonical = |text: &str| text.parse::<Reference>().ok().map(|reference| reference.canonical());
    canonical(tag).is_some_and(|wanted| names(entry).any(|name| canonical(name).as_ref() == Some(&wanted)))
}

/// The entry goes by a full reference that has this tag.
fn has_tag(entry: &Descriptor, tag: &str) -> bool {
    names(entry).any(|name| name.parse::<Reference>().is_ok_and(|name| name.tag.as_deref() == Some(tag)))
}

fn offered(images: &[&Descriptor]) -> String {
    let mut list: Vec<String> = Vec::new();
    for name in images.iter().filter_map(|entry| names(entry).last()) {
        let name = format!("{:?}", quote(name));
        if !list.contains(&name) && list.len() < 32 {
            list.push(name);
        }
    }
    if list.is_empty() { format!("{} without a name", images.len()) } else { quote(&list.join(", ")) }
}

/// From an entry through indexes to an image manifest, and its digest.
fn follow(
    layout: &Layout,
    entry: &Descriptor,
    platform: &Platform,
    limits: &Limits,
) -> Result<(ImageManifest, Digest), ArchiveError> {
    let mut entry = entry.clone();
    for _ in 0..=limits.index_depth_max {
        let member = blob_name(&entry.digest);
        let bytes = layout.blob(&entry, limits.manifest_bytes_max, "manifest_bytes_max")?;
        match parse(&bytes, Some(&entry.media_type)).map_err(|source| layout.unusable(&member, source))? {
            Parsed::Image(manifest) => return Ok((manifest, entry.digest)),
            Parsed::Schema1(_) => return Err(layout.unusable(&member, ManifestError::Schema1Here)),
            Parsed::Index(index) => {
                entry = index.choose(platform).map_err(|source| layout.unusable(&member, source))?.clone();
            }
        }
    }
    Err(ArchiveError::Limit {
        archive: layout.path().to_owned(),
        limit: limits.index_depth_max as u64,
        unit: "indexes within indexes",
        flag: "index_depth_max",
    })
}
