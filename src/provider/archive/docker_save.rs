//! `docker save` archives.
//!
//! The new form (docker 1.10 and later, podman, crane, bazel) has `manifest.json`; since docker 25 it is an OCI layout
//! besides, whose blobs `manifest.json` names. The old form has `repositories` and a directory for each layer with
//! `json` (which names its parent) and `layer.tar`. Layers have no digest of their own in either, so they are
//! verified by diff ID alone; the old form does not state those, so its layers are hashed here, on every resolve: about
//! a second per 1.5 GB. (moby `image/spec/v1.1.md`, `v1.2.md`; Mesos `docker/local_puller.cpp`.)

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::io::Read;

use keelblock_actors::error::quote;
use keelblock_actors::image::digest::{DiffId, Digest, Hasher};
use keelblock_actors::image::name::ImageName;
use keelblock_actors::image::plan::{BlobSpec, ImageIdentity, ImagePlan, LayerKey, LayerSource, LayerSpec};
use keelblock_actors::image::reference::Reference;
use keelblock_actors::stop::Stop;
use serde::Deserialize;

use super::error::ArchiveError;
use super::index::{Extent, TarIndex, verify};
use super::named_by_digest;
use super::spool::{Wrapping, each_buffer};
use crate::limits::Limits;
use crate::provider::manifest::{BadJson, List, ManifestError, parse_config};

const MANIFEST: &str = "manifest.json";
const REPOSITORIES: &str = "repositories";

/// The plan of an image of the archive: the one `reference` names, or the only one.
pub(super) fn resolve(
    archive: &TarIndex,
    reference: Option<&Reference>,
    name: ImageName,
    limits: &Limits,
    stop: &Stop,
) -> Result<ImagePlan, ArchiveError> {
    let image = if archive.has(MANIFEST) {
        new_form(archive, reference, limits)?
    } else if archive.has(REPOSITORIES) || archive.names().any(|name| name.ends_with("/layer.tar")) {
        old_form(archive, reference, limits, stop)?
    } else {
        let hint = if archive.has("oci-layout") {
            ", but is an OCI image layout; use oci-archive: for it"
        } else {
            " and no \"repositories\", so it was not made by docker save"
        };
        let archive = archive.archive.clone();
        return Err(ArchiveError::Missing { archive, member: MANIFEST.into(), hint });
    };
    let mut layers = Vec::with_capacity(image.layers.len());
    for (member, extent, diff_id) in image.layers {
        layers.push(LayerSpec {
            key: LayerKey::Diff(diff_id),
            blob: BlobSpec { digest: None, size: Some(extent.size), compression: None, media_type: None },
            source: LayerSource::Archive {
                path: archive.bytes.clone(),
                member,
                offset: extent.offset,
                size: extent.size,
            },
            aci: None,
            access: None,
        });
    }
    let config = Digest::of(&image.config);
    let identity = ImageIdentity { name, manifest: config.clone(), config };
    Ok(ImagePlan {
        identity,
        layers,
        runtime: image.runtime,
        platform: None,
        chosen_for: None,
        signed: false,
    })
}

/// An image found, in either form.
struct Found {
    config: Vec<u8>,
    runtime: keelblock_actors::image::plan::RuntimeConfig,
    /// Base first.
    layers: Vec<(String, Extent, DiffId)>,
}

// ---- new form -----------------------------------------------------------------------------------------------

/// An entry of `manifest.json`.
#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Entry {
    config: String,
    repo_tags: Option<List<String>>,
    layers: Option<List<String>>,
}

fn new_form(
    archive: &TarIndex,
    reference: Option<&Reference>,
    limits: &Limits,
) -> Result<Found, ArchiveError> {
    let bytes = archive.document(MANIFEST, limits.manifest_bytes_max, "manifest_bytes_max")?;
    let entries: List<Entry> =
        serde_json::from_slice(&bytes).map_err(|error| bad_json(archive, MANIFEST, error))?;
    let tags = |entry: &Entry| entry.repo_tags.iter().flat_map(|tags| tags.0.clone()).collect::<Vec<_>>();
    let images: Vec<(Entry, Vec<String>)> =
        entries.0.into_iter().map(|entry| (tags(&entry), entry)).map(|(tags, entry)| (entry, tags)).collect();
    let named: Vec<(usize, &str)> = images
        .iter()
        .enumerate()
        .flat_map(|(place, (_, tags))| tags.iter().map(move |tag| (place, tag.as_str())))
        .collect();
    let place = match reference {
        Some(reference) => choose(archive, reference, &named)?,
        None if images.len() == 1 => 0,
        None if images.is_empty() => return Err(no_image(archive, "any", &named)),
        None => {
            // The same image twice is one image.
            let configs: HashSet<&str> = images.iter().map(|(entry, _)| entry.config.as_str()).collect();
            if configs.len() > 1 {
                return Err(several(archive, &named));
            }
            0
        }
    };
    let entry = &images[place].0;

    let bytes = archive.document(&entry.config, limits.config_bytes_max, "config_bytes_max")?;
    if let Some(digest) = promised(&entry.config) {
        verify(&archive.archive, &entry.config, &bytes, &digest)?;
    }
    let unusable = |source| ArchiveError::Manifest {
        archive: archive.archive.clone(),
        member: quote(&entry.config),
        source,
    };
    let config = parse_config(&bytes).map_err(unusable)?;
    let members = entry.layers.as_ref().map_or(&[][..], |layers| &layers.0);
    let (layers, diff_ids) = (members.len(), config.diff_ids.len());
    if layers > limits.layers_max {
        return Err(unusable(ManifestError::TooManyLayers { layers, limit: limits.layers_max }));
    }
    if layers != diff_ids {
        return Err(unusable(ManifestError::LayerCount { layers, diff_ids }));
    }
    let mut found = Vec::with_capacity(layers);
    for (member, diff_id) in members.iter().zip(config.diff_ids) {
        found.push((quote(member), archive.find(member)?, diff_id));
    }
    Ok(Found { config: bytes, runtime: config.runtime, layers: found })
}

/// The digest that the name of a config member promises: `<hex>.json`, `blobs/sha256/<hex>`, `sha256:<hex>`.
fn promised(member: &str) -> Option<Digest> {
    let last = member.rsplit('/').next().unwrap_or(member);
    match member.strip_prefix("blobs/") {
        Some(blob) => blob.replacen('/', ":", 1).parse().ok(),
        None => last.parse().ok().or_else(|| named_by_digest(last.strip_suffix(".json")?)),
    }
}

// ---- old form -----------------------------------------------------------------------------------------------

/// What counts in `<layer>/json`.
#[derive(Deserialize)]
struct LayerJson {
    parent: Option<String>,
}

fn old_form(
    archive: &TarIndex,
    reference: Option<&Reference>,
    limits: &Limits,
    stop: &Stop,
) -> Result<Found, ArchiveError> {
    let top = old_top(archive, reference, limits)?;
    // Walked from the top down, base last.
    let (mut chain, mut seen) = (Vec::new(), HashSet::new());
    let mut config = Vec::new();
    let mut next = Some(top);
    while let Some(id) = next {
        let (json, parent) = layer_json(archive, &id, limits)?;
        if chain.is_empty() {
            config = json;
        }
        if !seen.insert(id.clone()) {
            return Err(ArchiveError::Cycle { archive: archive.archive.clone(), layer: quote(&id) });
        }
        chain.push(id);
        if chain.len() > limits.layers_max {
            let source = ManifestError::TooManyLayers { layers: chain.len(), limit: limits.layers_max };
            let (archive, member) = (archive.archive.clone(), quote(&chain[0]));
            return Err(ArchiveError::Manifest { archive, member, source });
        }
        next = parent;
    }
    let parsed = parse_config(&config).map_err(|source| {
        let (archive, member) = (archive.archive.clone(), quote(&format!("{}/json", chain[0])));
        ArchiveError::Manifest { archive, member, source }
    })?;
    let (mut layers, mut hashed) = (Vec::with_capacity(chain.len()), HashMap::new());
    for id in chain.iter().rev() {
        let member = format!("{id}/layer.tar");
        let extent = archive.find(&member)?;
        // Links let several layers share their bytes.
        let diff_id = match hashed.get(&extent) {
            Some(diff_id) => DiffId::clone(diff_id),
            None => diff_id(archive, extent, stop)?,
        };
        hashed.insert(extent, diff_id.clone());
        layers.push((quote(&member), extent, diff_id));
    }
    Ok(Found { config, runtime: parsed.runtime, layers })
}

/// The ID of the topmost layer of the image.
fn old_top(
    archive: &TarIndex,
    reference: Option<&Reference>,
    limits: &Limits,
) -> Result<String, ArchiveError> {
    let mut tagged = Vec::new();
    if archive.has(REPOSITORIES) {
        let bytes = archive.document(REPOSITORIES, limits.manifest_bytes_max, "manifest_bytes_max")?;
        let repositories: BTreeMap<String, BTreeMap<String, String>> =
            serde_json::from_slice(&bytes).map_err(|error| bad_json(archive, REPOSITORIES, error))?;
        for (repository, tags) in repositories {
            tagged.extend(tags.into_iter().map(|(tag, id)| (id, format!("{repository}:{tag}"))));
        }
    }
    let named: Vec<(usize, &str)> =
        tagged.iter().enumerate().map(|(place, (_, name))| (place, name.as_str())).collect();
    if let Some(reference) = reference {
        return choose(archive, reference, &named).map(|place| tagged[place].0.clone());
    }
    let mut tops: BTreeSet<String> = tagged.iter().map(|(id, _)| id.clone()).collect();
    if tops.is_empty() {
        // Saved by ID, so without a name: layers that are nobody's parent.
        let ids = archive.names().filter_map(|name| name.strip_suffix("/json")).map(str::to_owned);
        tops = ids.collect();
        for id in tops.clone() {
            if let (_, Some(parent)) = layer_json(archive, &id, limits)? {
                tops.remove(&parent);
            }
        }
    }
    match (tops.pop_first(), tops.is_empty()) {
        (Some(only), true) => Ok(only),
        (None, _) => Err(no_image(archive, "any", &named)),
        _ => Err(several(archive, &named)),
    }
}

/// The bytes of `<id>/json`, and the parent it names.
fn layer_json(
    archive: &TarIndex,
    id: &str,
    limits: &Limits,
) -> Result<(Vec<u8>, Option<String>), ArchiveError> {
    let member = format!("{id}/json");
    let bytes = archive.document(&member, limits.config_bytes_max, "config_bytes_max")?;
    let json: LayerJson =
        serde_json::from_slice(&bytes).map_err(|error| bad_json(archive, &member, error))?;
    Ok((bytes, json.parent.filter(|parent| !parent.is_empty())))
}

/// The digest of a layer's tar, decompressed if need be.
fn diff_id(archive: &TarIndex, extent: Extent, stop: &Stop) -> Result<DiffId, ArchiveError> {
    let mut first = [0; 8];
    let most = first.len().min(usize::try_from(extent.size).unwrap_or(usize::MAX));
    archive.reader(extent).read_exact(&mut first[..most]).map_err(|source| archive.unread(source))?;
    let wrapping = Wrapping::by_magic(&first[..most]);
    let tar = wrapping.decoder(archive.reader(extent)).map_err(|source| archive.unread(source))?;
    let mut hasher = Hasher::sha256();
    each_buffer(&archive.archive, tar, stop, |bytes| {
        hasher.update(bytes);
        Ok(())
    })?;
    Ok(DiffId(hasher.finish()))
}

// ---- names --------------------------------------------------------------------------------------------------

/// The place of the image that a reference means, among names as the archive has them. `hello`, `library/hello` and
/// `docker.io/library/hello:latest` are one name; `localhost/hello`, as podman has it, serves for `hello` too when
/// nothing is nearer.
fn choose(archive: &TarIndex, reference: &Reference, named: &[(usize, &str)]) -> Result<usize, ArchiveError> {
    let find = |wanted: &Reference| {
        let wanted = wanted.canonical();
        let same = |name: &str| name.parse::<Reference>().is_ok_and(|name| name.canonical() == wanted);
        named.iter().find(|(_, name)| same(name)).map(|(place, _)| *place)
    };
    let local = || {
        let local = Reference { registry: Some("localhost".into()), ..reference.clone() };
        reference.registry.is_none().then(|| find(&local)).flatten()
    };
    find(reference).or_else(local).ok_or_else(|| no_image(archive, &reference.to_string(), named))
}

fn list(named: &[(usize, &str)]) -> String {
    let names: Vec<String> = named.iter().take(32).map(|(_, name)| format!("{:?}", quote(name))).collect();
    if names.is_empty() { "none with a name".into() } else { quote(&names.join(", ")) }
}

fn no_image(archive: &TarIndex, wanted: &str, named: &[(usize, &str)]) -> ArchiveError {
    let (archive, wanted) = (archive.archive.clone(), quote(wanted));
    ArchiveError::NoSuchImage { archive, wanted, offered: list(named) }
}

fn several(archive: &TarIndex, named: &[(usize, &str)]) -> ArchiveError {
    ArchiveError::Several { archive: archive.archive.clone(), offered: list(named) }
}

fn bad_json(archive: &TarIndex, member: &str, error: serde_json::Error) -> ArchiveError {
    let (archive, member) = (archive.archive.clone(), quote(member));
    ArchiveError::Json { archive, member, source: BadJson::from(error) }
}
