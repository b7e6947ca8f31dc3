//! What is remembered of containers, on disk.
