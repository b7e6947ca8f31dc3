//! Mounts: the new mount API, and what is mounted.
