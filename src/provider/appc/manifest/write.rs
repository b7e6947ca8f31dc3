//! A manifest in the form of the specification, for people and programs that know it.

use std::collections::BTreeMap;

use keelblock_actors::image::appc::{AcIdentifier, App, AppcManifest, AppcName, Dependency, Isolator};
use serde_json::{Map, Value, json};

/// The manifest as the specification writes it (aci.md). What the image left out is left out.
pub fn to_json(manifest: &AppcManifest) -> Value {
    let mut document = Map::new();
    let mut put = |key: &str, value: Value| {
        if !is_empty(&value) {
            document.insert(key.to_owned(), value);
        }
    };
    put("acKind", super::KIND.into());
    put("acVersion", json!(manifest.ac_version));
    put("name", json!(manifest.name.name));
    put("labels", pairs(&manifest.name.labels));
    put("app", manifest.app.as_ref().map_or(Value::Null, app));
    put("dependencies", manifest.dependencies.iter().map(dependency).collect());
    put("pathWhitelist", json!(manifest.path_whitelist));
    put("annotations", pairs(&manifest.annotations));
    Value::Object(document)
}

fn is_empty(value: &Value) -> bool {
    value.is_null() || value.as_array().is_some_and(Vec::is_empty)
}

fn pairs(of: &BTreeMap<AcIdentifier, String>) -> Value {
    of.iter().map(|(name, value)| json!({"name": name, "value": value})).collect()
}

fn dependency(dependency: &Dependency) -> Value {
    let AppcName { name, labels } = &dependency.name;
    let mut document = json!({ "imageName": name });
    if let Some(id) = &dependency.image_id {
        document["imageID"] = json!(id);
    }
    if !labels.is_empty() {
        document["labels"] = pairs(labels);
    }
    if let Some(size) = dependency.size {
        document["size"] = json!(size);
    }
    document
}

/// As it is kept, but for isolators, whose values are JSON there.
fn app(app: &App) -> Value {
    let mut document = json!(app);
    if !app.isolators.is_empty() {
        document["isolators"] = app.isolators.iter().map(isolator).collect();
    }
    document
}

fn isolator(isolator: &Isolator) -> Value {
    // It was JSON when it was read.
    let value: Value = serde_json::from_str(&isolator.value).unwrap_or_default();
    json!({"name": isolator.name, "value": value})
}
