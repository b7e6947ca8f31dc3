//! Pure parsing of manifests, indexes and configs.
