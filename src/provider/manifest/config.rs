//! The image config: diff IDs, and how the image wants to be run (docker image-spec v1.2, OCI config.md).

use std::collections::BTreeMap;

use keelblock_actors::error::quote;
use keelblock_actors::image::digest::DiffId;
use keelblock_actors::image::plan::RuntimeConfig;
use serde::Deserialize;

use super::{BadJson, List, ManifestError, Platform};

/// What keelblock takes from an image config.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ImageConfig {
    /// Digests of the uncompressed layers, base first. Empty for images of the docker v1 format, whose
    /// configs have none.
    pub diff_ids: Vec<DiffId>,
    /// How the image wants to be run.
    pub runtime: RuntimeConfig,
    /// What it runs on, where it says so.
    pub platform: Option<Platform>,
}

/// Reads an image config. `null` and absence mean the same everywhere, as for programs written in Go; a missing
/// `config` section is an empty one.
///
/// # Errors
/// [`ManifestError::Config`] for what is no such document, [`ManifestError::RootfsType`] for another operating system's
/// root filesystem, [`ManifestError::Nul`] for strings that no process can be given.
pub fn parse_config(bytes: &[u8]) -> Result<ImageConfig, ManifestError> {
    super::depth::check(bytes).map_err(|source| ManifestError::Config { source })?;
    let document: Document = serde_json::from_slice(bytes)
        .map_err(|error| ManifestError::Config { source: BadJson::from(error) })?;
    let rootfs = document.rootfs.unwrap_or_default();
    if let Some(kind) = rootfs.kind.filter(|kind| kind != "layers" && !kind.is_empty()) {
        return Err(ManifestError::RootfsType(quote(&kind)));
    }
    Ok(ImageConfig {
        diff_ids: rootfs.diff_ids.map_or_else(Vec::new, |list| list.0),
        runtime: document.config.unwrap_or_default().runtime()?,
        platform: written_platform(document.os, document.architecture, document.variant),
    })
}

/// The platform in a config, if it is one: an image with a strange one is still an image.
pub(super) fn written_platform(
    os: Option<String>,
    architecture: Option<String>,
    variant: Option<String>,
) -> Option<Platform> {
    let (os, architecture) = (os?, architecture?);
    let written = match variant.filter(|variant| !variant.is_empty()) {
        Some(variant) => format!("{os}/{architecture}/{variant}"),
        None => format!("{os}/{architecture}"),
    };
    written.parse().ok()
}

#[derive(Deserialize)]
struct Document {
    os: Option<String>,
    architecture: Option<String>,
    variant: Option<String>,
    rootfs: Option<Rootfs>,
    config: Option<Section>,
}

#[derive(Default, Deserialize)]
struct Rootfs {
    #[serde(rename = "type")]
    kind: Option<String>,
    diff_ids: Option<List<DiffId>>,
}

/// The section `config` of a config.
#[derive(Default, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub(super) struct Section {
    entrypoint: Option<Words>,
    cmd: Option<Words>,
    env: Option<Vec<String>>,
    working_dir: Option<String>,
    user: Option<String>,
    stop_signal: Option<String>,
    labels: Option<BTreeMap<String, Option<String>>>,
}

/// A list of words; a lone string is a list of one, as dockerd reads it (moby `api/types/strslice`).
#[derive(Deserialize)]
#[serde(untagged, expecting = "expected a list of strings, or one string")]
enum Words {
    Many(Vec<String>),
    One(String),
}

impl Words {
    fn list(this: Option<Self>) -> Vec<String> {
        match this {
            None => Vec::new(),
            Some(Self::Many(words)) => words,
            Some(Self::One(word)) => vec![word],
        }
    }
}

impl Section {
    pub(super) fn runtime(self) -> Result<RuntimeConfig, ManifestError> {
        let said = |text: Option<String>| text.filter(|text| !text.is_empty());
        let split = |entry: String| {
            let (name, value) = entry.split_once('=')?;
            (!name.is_empty()).then(|| (name.to_owned(), value.to_owned()))
        };
        let runtime = RuntimeConfig {
            entrypoint: Words::list(self.entrypoint),
            cmd: Words::list(self.cmd),
            env: self.env.unwrap_or_default().into_iter().filter_map(split).collect(),
            working_dir: said(self.working_dir).map(Into::into),
            user: said(self.user),
            stop_signal: said(self.stop_signal),
            appc: None,
            labels: self
                .labels
                .unwrap_or_default()
                .into_iter()
                .map(|(name, value)| (name, value.unwrap_or_default()))
                .collect(),
        };
        let env = runtime.env.iter().flat_map(|(name, value)| [name, value]);
        let working_dir = runtime.working_dir.iter().filter_map(|path| path.to_str());
        let strings = (runtime.entrypoint.iter().map(|text| ("Entrypoint", text.as_str())))
            .chain(runtime.cmd.iter().map(|text| ("Cmd", text.as_str())))
            .chain(env.map(|text| ("Env", text.as_str())))
            .chain(working_dir.map(|text| ("WorkingDir", text)))
            .chain(runtime.user.iter().map(|text| ("User", text.as_str())))
            .chain(runtime.stop_signal.iter().map(|text| ("StopSignal", text.as_str())));
        for (field, text) in strings {
            if text.contains('\0') {
                return Err(ManifestError::Nul { field });
            }
        }
        Ok(runtime)
    }
}
