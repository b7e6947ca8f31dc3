//! Credentials that come with an image.

use std::fmt;
use std::sync::Arc;

/// The docker config of an `Image` message (Mesos `Image.docker.config`): who to be at which registry, for this pull alone.
///
/// Its text is not looked at here. It is compared, so that nobody gets an answer that was given to somebody else; it is never
/// printed and never written down, which is why it has neither `Display` nor `Serialize`.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Access(Arc<str>);

impl Access {
    /// Of the JSON text of a `config.json` or `.dockercfg`.
    pub fn new(config: impl Into<Arc<str>>) -> Self {
        Self(config.into())
    }

    /// The text, for whoever shows it to a registry.
    pub fn config(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Access {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("(secret)")
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::image::name::ImageRequest;

    #[test]
    fn it_is_equal_by_content_and_never_printed() {
        let access = Access::new(r#"{"auths":{"r.io":{"auth":"dTpodXNo"}}}"#);
        assert_eq!(access, Access::new(access.config().to_owned()));
        assert_ne!(access, Access::new("{}"));
        let request = ImageRequest::cached("app".parse().unwrap()).with_access(Some(access));
        assert!(!format!("{request:?}").contains("dTpodXNo"));
    }
}
