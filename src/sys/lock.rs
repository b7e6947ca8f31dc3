//! File locks that die with their process.
