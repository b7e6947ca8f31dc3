//! temp
#![allow(missing_docs)]
use super::*;
use keelblock_actors::container::BackendName;
use keelblock_actors::ports::Backend;
use std::path::Path;
use std::sync::Arc;
pub struct Chosen {
    pub name: BackendName,
    pub backends: Vec<Arc<dyn Backend>>,
}
pub fn choose(
    requested: Option<BackendName>,
    _w: &Path,
    _s: &Path,
    _rootless: bool,
    outlive: bool,
) -> Result<Chosen, BackendError> {
    let name =
        requested.unwrap_or(if outlive && _rootless { BackendName::Copy } else { BackendName::Overlay });
    Ok(Chosen {
        name,
        backends: vec![Arc::new(OverlayBackend::default()), Arc::new(CopyBackend), Arc::new(BindBackend)],
    })
}
