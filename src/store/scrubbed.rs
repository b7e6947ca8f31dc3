//! When layers were last verified, for all processes on the store. A hint: whatever is lost of it is verified earlier.

use std::collections::BTreeMap;
use std::io;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use keelblock_actors::error::StoreError;
use keelblock_actors::image::digest::DiffId;

use super::layout::Layout;
use super::stage;

/// Seconds since 1970, by layer.
type Times = BTreeMap<String, u64>;

/// Those of these layers that were not verified for so long, the longest first. Times ahead of the clock count for nothing.
pub(super) fn due(layout: &Layout, layers: &[DiffId], interval: Duration) -> Result<Vec<DiffId>, StoreError> {
    let (times, now) = (read(layout)?, now());
    let when =
        |layer: &DiffId| times.get(&layer.to_string()).copied().filter(|when| *when <= now).unwrap_or(0);
    let mut due: Vec<_> =
        layers.iter().filter(|layer| now - when(layer) >= interval.as_secs()).cloned().collect();
    due.sort_by_key(when);
    Ok(due)
}

/// Takes note that a layer was verified now, and forgets those that are gone.
pub(super) fn remember(layout: &Layout, layer: &DiffId) -> Result<(), StoreError> {
    let mut times = read(layout)?;
    times.retain(|name, _| name.parse::<DiffId>().is_ok_and(|layer| layout.layer(&layer).exists()));
    times.insert(layer.to_string(), now());
    let path = layout.scrubbed();
    let failed = |source| StoreError::Io { act: "write", path: path.clone(), source };
    let text = serde_json::to_vec(&times).map_err(|error| failed(error.into()))?;
    stage::write(layout, &path, &text).map_err(failed)
}

fn read(layout: &Layout) -> Result<Times, StoreError> {
    let path = layout.scrubbed();
    match std::fs::read(&path) {
        // What a power cut has torn.
        Ok(text) => Ok(serde_json::from_slice(&text).unwrap_or_default()),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Times::new()),
        Err(source) => Err(StoreError::Io { act: "read", path, source }),
    }
}

fn now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs())
}
