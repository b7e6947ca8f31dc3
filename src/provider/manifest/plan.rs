//! Manifest and config joined into a plan.

use keelblock_actors::error::quote;
use keelblock_actors::image::plan::{
    BlobSpec, Compression, ImageIdentity, ImagePlan, LayerKey, LayerSource, LayerSpec,
};

use super::{Descriptor, ImageConfig, ImageManifest, ManifestError, essence};
use crate::limits::Limits;

/// The plan of an image: each layer by its diff ID, with the blob that the manifest has for it and the source that
/// `source` gives for that. An image without layers is one too (`FROM scratch` and nothing more).
///
/// # Errors
/// [`ManifestError::LayerCount`], [`ManifestError::TooManyLayers`], [`ManifestError::LayerMediaType`].
pub fn plan(
    identity: ImageIdentity,
    manifest: &ImageManifest,
    config: ImageConfig,
    limits: &Limits,
    source: impl Fn(&Descriptor) -> LayerSource,
) -> Result<ImagePlan, ManifestError> {
    let (layers, diff_ids) = (manifest.layers.len(), config.diff_ids.len());
    if layers > limits.layers_max {
        return Err(ManifestError::TooManyLayers { layers, limit: limits.layers_max });
    }
    if layers != diff_ids {
        return Err(ManifestError::LayerCount { layers, diff_ids });
    }
    let mut specs = Vec::with_capacity(layers);
    for (place, (layer, diff_id)) in manifest.layers.iter().zip(config.diff_ids).enumerate() {
        let Some(compression) = layer_compression(&layer.media_type) else {
            let media_type = quote(&layer.media_type);
            return Err(ManifestError::LayerMediaType { number: place + 1, media_type });
        };
        specs.push(LayerSpec {
            key: LayerKey::Diff(diff_id),
            blob: BlobSpec {
                digest: Some(layer.digest.clone()),
                size: Some(layer.size),
                compression: Some(compression),
                media_type: Some(quote(&layer.media_type)),
            },
            source: source(layer),
            aci: None,
            access: None,
        });
    }
    let platform = config.platform.map(|platform| platform.to_string());
    Ok(ImagePlan {
        identity,
        layers: specs,
        runtime: config.runtime,
        platform,
        chosen_for: None,
        signed: false,
    })
}

/// How a layer of this media type is wrapped; `None` for what is no layer media type. "Foreign" and
/// "nondistributable" layers are layers like others: where they come from is their registry's business.
pub fn layer_compression(media_type: &str) -> Option<Compression> {
    const TARS: [&str; 4] = [
        "application/vnd.oci.image.layer.v1.tar",
        "application/vnd.oci.image.layer.nondistributable.v1.tar",
        "application/vnd.docker.image.rootfs.diff.tar",
        "application/vnd.docker.image.rootfs.foreign.diff.tar",
    ];
    let media_type = essence(media_type);
    let suffix = TARS.iter().find_map(|tar| media_type.strip_prefix(tar))?;
    // OCI joins the suffix by `+`, docker by `.`; nobody gains by our being strict about which.
    match suffix {
        "" => Some(Compression::None),
        "+gzip" | ".gzip" => Some(Compression::Gzip),
        "+zstd" | ".zstd" => Some(Compression::Zstd),
        _ => None,
    }
}
