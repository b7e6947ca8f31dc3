//! `isolators`: limits and rights by name.
//!
//! Those of the specification are checked here, so that whoever applies them finds values of the right form. Others are kept as
//! they are: what to do with them is for whoever runs the app.

use keelblock_actors::image::appc::{AcIdentifier, Isolator};
use serde_json::Value;

use super::error::ManifestError;
use super::json::{AC_IDENTIFIER, Object, text};
use crate::provider::appc::quantity::Quantity;

/// What the value of an isolator must be.
#[derive(Clone, Copy)]
enum Form {
    /// A request and a limit.
    Resource,
    /// A limit for all devices alike: `default` must be true, and there is no request.
    ResourceOfAll,
    /// A set of names, not empty.
    Set,
    /// The same, and the error number of what is not allowed.
    Seccomp,
    /// True or false.
    Flag,
    /// A whole number within these.
    Number { least: i64, most: i64 },
    /// Names and values.
    Texts,
    /// Four parts of a context.
    Selinux,
    /// The name of a profile.
    Apparmor,
}

/// One that the specification has.
struct Known {
    name: &'static str,
    form: Form,
    /// Whether there may be several: the last one counts.
    several: bool,
    /// Which must not stand beside it.
    excludes: Option<&'static str>,
}

const fn known(name: &'static str, form: Form, several: bool, excludes: Option<&'static str>) -> Known {
    Known { name, form, several, excludes }
}

const KNOWN: [Known; 15] = [
    known("resource/block-bandwidth", Form::ResourceOfAll, true, None),
    known("resource/block-iops", Form::ResourceOfAll, true, None),
    known("resource/cpu", Form::Resource, true, None),
    known("resource/memory", Form::Resource, true, None),
    known("resource/network-bandwidth", Form::ResourceOfAll, true, None),
    known("os/linux/capabilities-retain-set", Form::Set, true, Some("os/linux/capabilities-remove-set")),
    known("os/linux/capabilities-remove-set", Form::Set, true, Some("os/linux/capabilities-retain-set")),
    known("os/linux/no-new-privileges", Form::Flag, true, None),
    known("os/linux/seccomp-retain-set", Form::Seccomp, false, Some("os/linux/seccomp-remove-set")),
    known("os/linux/seccomp-remove-set", Form::Seccomp, false, Some("os/linux/seccomp-retain-set")),
    known("os/linux/oom-score-adj", Form::Number { least: -1000, most: 1000 }, false, None),
    known("os/linux/cpu-shares", Form::Number { least: 2, most: 262_144 }, false, None),
    known("os/linux/selinux-context", Form::Selinux, false, None),
    known("os/linux/apparmor-profile", Form::Apparmor, false, None),
    known("os/unix/sysctl", Form::Texts, false, None),
];

/// `isolators` of an app.
pub(super) fn read(app: &Object<'_>) -> Result<Vec<Isolator>, ManifestError> {
    let mut isolators: Vec<Isolator> = Vec::new();
    for object in app.objects("isolators")? {
        let name: AcIdentifier = object.required_parsed("name", AC_IDENTIFIER)?;
        // `null` is a value too.
        let value =
            object.map().get("value").ok_or_else(|| object.missing("value", "what the isolator is given"))?;
        if let Some(known) = KNOWN.iter().find(|known| known.name == name.as_str()) {
            let has = |name: &str| isolators.iter().any(|one| one.name.as_str() == name);
            if !known.several && has(known.name) {
                return Err(ManifestError::text(
                    object.path("name"),
                    known.name,
                    "another one: there may be one of it",
                ));
            }
            if let Some(other) = known.excludes.filter(|other| has(other)) {
                let allowed = format!("another one: it excludes {other}, which is there too");
                return Err(ManifestError::text(object.path("name"), known.name, allowed));
            }
            check(known.form, &object.path("value"), value)?;
        }
        isolators.push(Isolator { name, value: value.to_string() });
    }
    Ok(isolators)
}

fn check(form: Form, path: &str, value: &Value) -> Result<(), ManifestError> {
    match form {
        Form::Flag => match value {
            Value::Bool(_) => Ok(()),
            other => Err(ManifestError::field(path, other, "true or false")),
        },
        Form::Number { least, most } => match value.as_i64().filter(|number| (least..=most).contains(number))
        {
            Some(_) => Ok(()),
            None => Err(ManifestError::field(path, value, format!("a whole number, {least} to {most}"))),
        },
        Form::Resource => resource(&Object::of(path, value)?, false),
        Form::ResourceOfAll => resource(&Object::of(path, value)?, true),
        Form::Set => set(&Object::of(path, value)?),
        Form::Seccomp => {
            let object = Object::of(path, value)?;
            set(&object)?;
            let errno = object.text("errno")?.unwrap_or_default();
            let good = errno.starts_with('E')
                && errno.bytes().all(|byte| byte.is_ascii_uppercase() || byte.is_ascii_digit());
            match errno.is_empty() || good {
                true => Ok(()),
                false => {
                    Err(ManifestError::text(object.path("errno"), errno, "the name of an error, as in EPERM"))
                }
            }
        }
        Form::Texts => {
            let object = Object::of(path, value)?;
            object.map().iter().try_for_each(|(key, value)| text(&object.path(key), value).map(drop))
        }
        Form::Selinux => {
            let object = Object::of(path, value)?;
            for (part, with_colons) in [("user", false), ("role", false), ("type", false), ("level", true)] {
                let text = object.required(part)?;
                if text.is_empty() || (!with_colons && text.contains(':')) {
                    return Err(ManifestError::text(
                        object.path(part),
                        text,
                        "a text that is not empty, without colons",
                    ));
                }
            }
            Ok(())
        }
        Form::Apparmor => {
            let object = Object::of(path, value)?;
            match object.required("profile")? {
                "" => Err(ManifestError::text(object.path("profile"), "", "the name of a profile")),
                _ => Ok(()),
            }
        }
    }
}

/// `request` and `limit`, each if it is there.
fn resource(object: &Object<'_>, of_all: bool) -> Result<(), ManifestError> {
    if object.flag("default")? != of_all {
        let allowed = format!("{of_all} of this isolator");
        return Err(object.wrong("default", &Value::Bool(!of_all), allowed));
    }
    if let Some(request) = object.get("request").filter(|_| of_all) {
        return Err(object.wrong("request", request, "left out of this isolator, which has a limit alone"));
    }
    ["request", "limit"].into_iter().try_for_each(|key| quantity(object, key).map(drop))
}

/// A quantity, as text or number, if it is there.
fn quantity(object: &Object<'_>, key: &str) -> Result<Option<Quantity>, ManifestError> {
    let Some(value) = object.get(key) else { return Ok(None) };
    let text = match value {
        Value::String(text) => text.clone(),
        Value::Number(number) => number.to_string(),
        other => return Err(object.wrong(key, other, "a quantity, as text or number")),
    };
    match text.parse::<Quantity>() {
        Ok(quantity) if !quantity.is_negative() => Ok(Some(quantity)),
        Ok(_) => Err(object.wrong(key, value, "a quantity that is not negative")),
        Err(error) => Err(object.wrong(key, value, format!("a quantity: {error}"))),
    }
}

fn set(object: &Object<'_>) -> Result<(), ManifestError> {
    match object.texts("set")?.is_empty() {
        false => Ok(()),
        true => Err(object.missing("set", "a list of names that is not empty")),
    }
}
