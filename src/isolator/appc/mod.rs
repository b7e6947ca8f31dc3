//! Parts of `appc/runtime` that stand for themselves: whose file an app runs as, where its volumes go, what becomes of
//! its isolators.

pub(super) mod isolators;
pub(super) mod mount_points;
pub(super) mod owner;
#[cfg(test)]
mod tests;

/// A manifest for tests.
#[cfg(test)]
pub(super) fn sample(
    app: Option<keelblock_actors::image::appc::App>,
) -> keelblock_actors::image::appc::AppcManifest {
    keelblock_actors::image::appc::AppcManifest {
        ac_version: "0.8.11".to_owned(),
        name: "example.com/some_app:1.0,os=linux".parse().expect("a name"),
        app,
        dependencies: Vec::new(),
        path_whitelist: Vec::new(),
        annotations: Default::default(),
    }
}
