//! Which backends work here, and which is used.
