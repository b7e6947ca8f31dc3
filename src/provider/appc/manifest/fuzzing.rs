//! The fuzz target `appc_manifest`.

use keelblock_actors::image::appc::AppcManifest;
use serde_json::Value;

use super::{parse, to_json};
use crate::provider::appc::quantity::Quantity;

const BYTES_MAX: u64 = 1 << 20;

/// Image manifests: what is taken keeps to the rules that can be said in a line each, is what a plain JSON reader reads, and reads
/// the same when it is written by the specification, or as records are. Bytes that are no JSON are a quantity, which prints back to itself.
pub(crate) fn appc_manifest(bytes: &[u8]) {
    if let Ok(text) = std::str::from_utf8(bytes) {
        quantity(text.trim());
    }
    let Ok(manifest) = parse(bytes, BYTES_MAX) else { return };
    let plain: Value = serde_json::from_slice(bytes).expect("it was read as JSON");
    assert_eq!(plain["acKind"], "ImageManifest");
    assert_eq!(plain["name"], manifest.name.name.as_str());
    let length = |value: &Value| value.as_array().map_or(0, Vec::len);
    assert_eq!(length(&plain["labels"]), manifest.name.labels.len());
    assert_eq!(length(&plain["annotations"]), manifest.annotations.len());
    assert_eq!(length(&plain["dependencies"]), manifest.dependencies.len());
    assert_eq!(length(&plain["pathWhitelist"]), manifest.path_whitelist.len());
    assert!(manifest.path_whitelist.iter().all(|path| path.starts_with('/')));
    assert_eq!(parse(to_json(&manifest).to_string().as_bytes(), u64::MAX).as_ref(), Ok(&manifest));
    let record = serde_json::to_string(&manifest).expect("a record is written");
    assert_eq!(serde_json::from_str::<AppcManifest>(&record).expect("and read"), manifest);
    for name in manifest.dependencies.iter().map(|dependency| &dependency.name).chain([&manifest.name]) {
        assert_eq!(name.to_string().parse().as_ref(), Ok(name));
    }
    let Some(app) = manifest.app else { return };
    assert!(!app.user.is_empty() && !app.group.is_empty());
    assert!(app.exec.first().is_none_or(|program| !program.is_empty()));
    assert!(app.ports.iter().all(|port| port.port > 0 && u32::from(port.port) + port.count <= 65536));
    assert!(app.mount_points.iter().all(|point| point.path.starts_with('/')));
    assert!(app.event_handlers.len() <= 2);
    let texts = app.exec.iter().chain(app.environment.iter().flat_map(|(name, value)| [name, value]));
    texts.for_each(|text| assert!(!text.contains('\0')));
    for isolator in app.isolators.iter().filter(|isolator| isolator.name.as_str().starts_with("resource/")) {
        let value: Value = serde_json::from_str(&isolator.value).expect("JSON as it was");
        for text in [&value["limit"], &value["request"]].into_iter().filter_map(Value::as_str) {
            // Those that nobody knows may have any value.
            quantity(text);
        }
    }
}

fn quantity(text: &str) {
    let Ok(quantity) = text.parse::<Quantity>() else { return };
    assert_eq!(quantity.to_string().parse(), Ok(quantity), "{text}");
    assert_eq!(quantity.ceil().is_none(), quantity.is_negative());
    assert!(quantity.ceil() <= Some(i64::MAX as u64));
}
