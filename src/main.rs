//! The `keelblock` command.

fn main() {}
