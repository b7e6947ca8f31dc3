//! stub
#![allow(missing_docs)]
use keelblock_actors::launch::CapabilitySet;
pub const DEFAULT: CapabilitySet = CapabilitySet(0);
pub fn parse_set(_: &str) -> Result<CapabilitySet, super::IsolationError> {
    Err(super::IsolationError)
}
