//! Blobs in files and archives on this machine.
