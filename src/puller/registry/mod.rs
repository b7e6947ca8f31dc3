//! Blobs and manifests over HTTP: the distribution API, v2.
