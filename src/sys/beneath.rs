//! Paths resolved beneath a directory descriptor, and files made there.
