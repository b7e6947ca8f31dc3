//! Image manifests: from the bytes of `manifest` in an ACI to an [`AppcManifest`], by the rules of the specification (0.8.11,
//! aci.md and types.md) and of its schema.
//!
//! Where the two differ, or leave something open:
//! - fields that are not known are ignored, as later versions may add some; names of fields are exact but for
//!   `supplementaryGids`, which is what the example of the specification writes;
//! - a key twice in one object, at any depth, is refused: readers differ in which one counts;
//! - `null` counts as not there;
//! - `arch` without `os` is refused: it means nothing then, so whoever wrote it meant something else;
//! - names of environment variables begin with a letter or `_`, as in the schema;
//! - the acVersion may be any of the major version 0, which is the only one there ever was.

mod app;
mod error;
mod isolators;
mod json;
mod labels;
#[cfg(test)]
mod tests;
mod values;
mod write;

use keelblock_actors::image::appc::{AppcManifest, AppcName, Dependency};

pub use self::error::ManifestError;
use self::json::{AC_IDENTIFIER, IMAGE_ID, Object, Strict};
pub use self::write::to_json;
use crate::provider::manifest::BadJson;

/// The kind of document it must be.
const KIND: &str = "ImageManifest";

/// Reads a manifest of at most so many bytes.
///
/// # Errors
/// [`ManifestError`], which names the field, what it is and what it may be.
pub fn parse(bytes: &[u8], bytes_max: u64) -> Result<AppcManifest, ManifestError> {
    if bytes.len() as u64 > bytes_max {
        return Err(ManifestError::TooLarge { limit: bytes_max });
    }
    let Strict(document) = serde_json::from_slice(bytes).map_err(BadJson::from)?;
    let manifest =
        Object::of("", &document).map_err(|_| ManifestError::field("all", &document, "a JSON object"))?;
    let kind = manifest.required("acKind")?;
    if kind != KIND {
        return Err(ManifestError::text("acKind", kind, format!("{KIND:?}")));
    }
    let version = manifest.required("acVersion")?;
    values::version(version).map_err(|allowed| ManifestError::text("acVersion", version, allowed))?;
    let name = manifest.required_parsed("name", AC_IDENTIFIER)?;
    let app = manifest.get("app").map(|app| app::read(&Object::of("app", app)?)).transpose()?;
    Ok(AppcManifest {
        ac_version: version.to_owned(),
        name: AppcName { name, labels: labels::labels(&manifest)? },
        app,
        dependencies: manifest.objects("dependencies")?.iter().map(dependency).collect::<Result<_, _>>()?,
        path_whitelist: whitelist(&manifest)?,
        annotations: labels::annotations(&manifest)?,
    })
}

fn dependency(object: &Object<'_>) -> Result<Dependency, ManifestError> {
    let name = object.required_parsed("imageName", AC_IDENTIFIER)?;
    Ok(Dependency {
        name: AppcName { name, labels: labels::labels(object)? },
        image_id: object.parsed("imageID", IMAGE_ID)?,
        // Where the schema was written, 0 is what is not there.
        size: object.number("size")?.filter(|size| *size > 0),
    })
}

fn whitelist(manifest: &Object<'_>) -> Result<Vec<String>, ManifestError> {
    let paths = manifest.texts("pathWhitelist")?;
    match paths.iter().position(|path| !path.starts_with('/')) {
        None => Ok(paths),
        Some(at) => Err(ManifestError::text(format!("pathWhitelist[{at}]"), &paths[at], "an absolute path")),
    }
}
