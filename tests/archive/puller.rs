//! The local puller on files that change under it.

use std::fs;
use std::io::Read;

use keelblock::puller::local::LocalPuller;
use keelblock_actors::error::{FetchError, chain};
use keelblock_actors::image::plan::LayerSource;
use keelblock_actors::ports::Puller;

use crate::support::*;

#[test]
fn a_layer_whose_file_changed_since_is_refused_or_breaks_off() {
    let room = Room::new();
    let path = room.file("a.tar", &new_form(&[("x", &["a:1"])]));
    let plan = room.archives.docker_archive(&path, None).unwrap();
    let layer = &plan.layers[0];
    fs::File::options().write(true).open(&path).unwrap().set_len(100).unwrap();
    let error = fetch(layer).unwrap_err();
    assert!(matches!(&error, FetchError::Refused { .. }));
    assert!(chain(&error).contains("replaced since the image was resolved"), "{}", chain(&error));
    fs::remove_file(&path).unwrap();
    let error = fetch(layer).unwrap_err();
    assert!(matches!(&error, FetchError::Refused { .. }));
    assert!(chain(&error).contains("a.tar"), "{}", chain(&error));
    fs::create_dir(&path).unwrap();
    assert!(chain(&fetch(layer).unwrap_err()).contains("not a regular file"));
}

#[test]
fn a_file_that_shrinks_under_its_reader_is_an_error_of_the_reader() {
    let room = Room::new();
    let path = room.file("blob", &[7; 100_000]);
    let mut layer =
        room.archives.docker_archive(&fixtures().join("single.tar"), None).unwrap().layers.remove(0);
    layer.source = LayerSource::File { path: path.clone() };
    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    let mut blob = runtime.block_on(LocalPuller.open(&layer)).unwrap();
    assert_eq!(blob.size, Some(100_000));
    let mut first = [0; 1000];
    blob.reader.read_exact(&mut first).unwrap();
    assert_eq!(first, [7; 1000]);
    fs::File::options().write(true).open(&path).unwrap().set_len(5000).unwrap();
    let error = blob.reader.read_to_end(&mut Vec::new()).unwrap_err();
    assert_eq!(error.kind(), std::io::ErrorKind::UnexpectedEof);
}
