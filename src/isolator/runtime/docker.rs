//! What a Docker image's config asks.

use keelblock_actors::image::plan::RuntimeConfig;

use super::{Asked, AskedDirectory, AskedUser};

/// Its environment, user and directory; a directory that is missing is made.
pub(super) fn asked(image: &RuntimeConfig, ignore_user: bool) -> Asked {
    Asked {
        environment: image.env.clone(),
        user: image.user.clone().filter(|_| !ignore_user).map(AskedUser::Docker),
        directory: image.working_dir.clone().map(|path| AskedDirectory { path, must_exist: false }),
    }
}
