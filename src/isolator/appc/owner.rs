//! Whom an app runs as: `user`, `group` and `supplementaryGIDs` (appc spec 0.8.11, aci.md, `app`).
//!
//! A name is looked for in the image's own `/etc/passwd` or `/etc/group`; what is not there and all digits is a number;
//! what begins with a slash is a file of the image, whose owner or group it is. That file is found with links followed
//! inside the image's root, whatever they say.

use std::os::fd::AsFd;
use std::path::Path;

use keelblock_actors::image::appc::App;
use keelblock_actors::launch::Credentials;
use rustix::fs::{Mode, OFlags, ResolveFlags, Stat, fstat, openat2};

use crate::isolator::user::{User, UserError, entries, groups, number, open_root, read};

/// Who that is in the root filesystem at `root`.
pub(in crate::isolator) fn resolve(root: &Path, app: &App, bytes_max: u64) -> Result<User, UserError> {
    let directory = open_root(root)?;
    let file = |path: &str, what| owner(&directory, path, what);
    let passwd = read(&directory, "/etc/passwd", root, bytes_max)?;
    let named = entries(&passwd).find(|entry| entry.name == app.user);
    let uid = match &named {
        _ if app.user.starts_with('/') => checked(file(&app.user, "user")?.st_uid, &app.user)?,
        Some(entry) => entry.uid,
        None => number("user", &app.user, "/etc/passwd")?,
    };
    let group = read(&directory, "/etc/group", root, bytes_max)?;
    let gid = match groups(&group).find(|(name, ..)| *name == app.group) {
        _ if app.group.starts_with('/') => checked(file(&app.group, "group")?.st_gid, &app.group)?,
        Some((_, gid, _)) => gid,
        None => number("group", &app.group, "/etc/group")?,
    };
    for (number, text) in [(uid, &app.user), (gid, &app.group)] {
        checked(number, text)?;
    }
    for gid in &app.supplementary_gids {
        checked(*gid, "supplementaryGIDs")?;
    }
    let home = named.or_else(|| entries(&passwd).find(|entry| entry.uid == uid));
    let home = home.map(|entry| entry.home.to_owned()).filter(|home| home.starts_with('/'));
    Ok(User { credentials: Credentials { uid, gid, groups: app.supplementary_gids.clone() }, home })
}

/// The last number means "as it is" to the kernel, and no user.
fn checked(number: u32, text: &str) -> Result<u32, UserError> {
    match number {
        u32::MAX => Err(UserError::Number { what: "user", text: keelblock_actors::error::quote(text) }),
        number => Ok(number),
    }
}

fn owner(root: impl AsFd, path: &str, what: &'static str) -> Result<Stat, UserError> {
    let inside = ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS;
    openat2(root, path, OFlags::PATH | OFlags::CLOEXEC, Mode::empty(), inside).and_then(fstat).map_err(
        |source| UserError::Owner { what, path: keelblock_actors::error::quote(path), source: source.into() },
    )
}
