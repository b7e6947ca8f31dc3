//! Archives and layouts resolved and their layers read: the fixtures, what other tools make, and what enemies make.

mod compressed;
mod docker_save;
mod names;
mod oci;
mod puller;
mod support;
mod tar;
