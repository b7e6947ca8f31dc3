//! stub
#![allow(missing_docs)]
#[derive(Debug, thiserror::Error)]
#[error("x")]
pub struct RootlessError;
pub fn enter_if_needed() -> Result<(), RootlessError> {
    Ok(())
}
pub fn entered() -> bool {
    false
}
