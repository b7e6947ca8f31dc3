//! Fields of JSON objects, each with the path that errors name it by.
//!
//! `null` counts as not there, as it does where the schema was written. A key that an object has twice is an error: readers
//! differ in which one they take, and so would see two manifests in one.

use std::collections::BTreeSet;
use std::fmt;
use std::str::FromStr;

use serde::de::{Deserialize, Deserializer, Error, MapAccess, SeqAccess, Visitor};
use serde_json::{Map, Number, Value};

use super::error::ManifestError;

/// What an AC Identifier is.
pub(super) const AC_IDENTIFIER: &str =
    "an AC Identifier: lower-case letters and digits, single -, ., _, ~ or / between them";
/// What an AC Name is.
pub(super) const AC_NAME: &str = "an AC Name: lower-case letters and digits, single - between them";
/// What an image ID is.
pub(super) const IMAGE_ID: &str = "an image ID: sha512- and 128 lower-case hex digits";

/// Any JSON, no key twice.
pub(super) struct Strict(pub(super) Value);

impl<'de> Deserialize<'de> for Strict {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(StrictVisitor)
    }
}

struct StrictVisitor;

impl<'de> Visitor<'de> for StrictVisitor {
    type Value = Strict;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("JSON")
    }

    fn visit_unit<E>(self) -> Result<Strict, E> {
        Ok(Strict(Value::Null))
    }

    fn visit_bool<E>(self, value: bool) -> Result<Strict, E> {
        Ok(Strict(value.into()))
    }

    fn visit_u64<E>(self, value: u64) -> Result<Strict, E> {
        Ok(Strict(value.into()))
    }

    fn visit_i64<E>(self, value: i64) -> Result<Strict, E> {
        Ok(Strict(value.into()))
    }

    fn visit_f64<E>(self, value: f64) -> Result<Strict, E> {
        Ok(Strict(Number::from_f64(value).map_or(Value::Null, Value::Number)))
    }

    fn visit_str<E>(self, value: &str) -> Result<Strict, E> {
        Ok(Strict(value.into()))
    }

    fn visit_string<E>(self, value: String) -> Result<Strict, E> {
        Ok(Strict(value.into()))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut access: A) -> Result<Strict, A::Error> {
        let mut values = Vec::new();
        while let Some(Strict(value)) = access.next_element()? {
            values.push(value);
        }
        Ok(Strict(Value::Array(values)))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut access: A) -> Result<Strict, A::Error> {
        let mut map = Map::new();
        while let Some(key) = access.next_key::<String>()? {
            if map.contains_key(&key) {
                return Err(A::Error::custom(format!("the key {key:?} is there twice")));
            }
            let Strict(value) = access.next_value()?;
            map.insert(key, value);
        }
        Ok(Strict(Value::Object(map)))
    }
}

/// An object and where it stands.
pub(super) struct Object<'a> {
    path: String,
    map: &'a Map<String, Value>,
}

impl<'a> Object<'a> {
    /// The object that this must be.
    pub(super) fn of(path: impl Into<String>, value: &'a Value) -> Result<Self, ManifestError> {
        let path = path.into();
        match value {
            Value::Object(map) => Ok(Self { path, map }),
            other => Err(ManifestError::field(path, other, "a JSON object")),
        }
    }

    /// The name of a field of it in errors.
    pub(super) fn path(&self, key: &str) -> String {
        match self.path.as_str() {
            "" => key.to_owned(),
            path => format!("{path}.{key}"),
        }
    }

    /// All keys and values.
    pub(super) fn map(&self) -> &'a Map<String, Value> {
        self.map
    }

    /// A field, if it is there.
    pub(super) fn get(&self, key: &str) -> Option<&'a Value> {
        self.map.get(key).filter(|value| !value.is_null())
    }

    /// An error about a field's value.
    pub(super) fn wrong(&self, key: &str, value: &Value, allowed: impl Into<String>) -> ManifestError {
        ManifestError::field(self.path(key), value, allowed)
    }

    /// An error about a field that is missing.
    pub(super) fn missing(&self, key: &str, allowed: impl Into<String>) -> ManifestError {
        ManifestError::Missing { field: self.path(key), allowed: allowed.into() }
    }

    /// A text, if it is there.
    pub(super) fn text(&self, key: &str) -> Result<Option<&'a str>, ManifestError> {
        self.get(key).map(|value| text(&self.path(key), value)).transpose()
    }

    /// A text that must be there.
    pub(super) fn required(&self, key: &str) -> Result<&'a str, ManifestError> {
        self.text(key)?.ok_or_else(|| self.missing(key, "a text"))
    }

    /// A text of a form of its own, which is described by `allowed`, if it is there.
    pub(super) fn parsed<T: FromStr>(&self, key: &str, allowed: &str) -> Result<Option<T>, ManifestError> {
        let Some(text) = self.text(key)? else { return Ok(None) };
        let parsed = text.parse().map_err(|_| ManifestError::text(self.path(key), text, allowed));
        parsed.map(Some)
    }

    /// The same, which must be there.
    pub(super) fn required_parsed<T: FromStr>(&self, key: &str, allowed: &str) -> Result<T, ManifestError> {
        self.parsed(key, allowed)?.ok_or_else(|| self.missing(key, allowed))
    }

    /// A truth, `false` unless it is there.
    pub(super) fn flag(&self, key: &str) -> Result<bool, ManifestError> {
        match self.get(key) {
            None => Ok(false),
            Some(Value::Bool(flag)) => Ok(*flag),
            Some(other) => Err(self.wrong(key, other, "true or false")),
        }
    }

    /// A whole number that is not negative, if it is there.
    pub(super) fn number(&self, key: &str) -> Result<Option<u64>, ManifestError> {
        let number = |value: &'a Value| {
            value.as_u64().ok_or_else(|| self.wrong(key, value, "a whole number, not negative"))
        };
        self.get(key).map(number).transpose()
    }

    /// The values of a list, none unless it is there.
    pub(super) fn list(&self, key: &str) -> Result<Vec<(String, &'a Value)>, ManifestError> {
        let path = self.path(key);
        match self.get(key) {
            None => Ok(Vec::new()),
            Some(Value::Array(values)) => {
                Ok(values.iter().enumerate().map(|(at, value)| (format!("{path}[{at}]"), value)).collect())
            }
            Some(other) => Err(self.wrong(key, other, "a list")),
        }
    }

    /// The same of objects.
    pub(super) fn objects(&self, key: &str) -> Result<Vec<Object<'a>>, ManifestError> {
        self.list(key)?.into_iter().map(|(path, value)| Object::of(path, value)).collect()
    }

    /// The same of texts.
    pub(super) fn texts(&self, key: &str) -> Result<Vec<String>, ManifestError> {
        self.list(key)?.into_iter().map(|(path, value)| Ok(text(&path, value)?.to_owned())).collect()
    }

    /// An object whose values are texts, empty unless it is there.
    pub(super) fn map_of_texts(
        &self,
        key: &str,
    ) -> Result<std::collections::BTreeMap<String, String>, ManifestError> {
        let Some(value) = self.get(key) else { return Ok(Default::default()) };
        let object = Object::of(self.path(key), value)?;
        let pair =
            |(key, value): (&String, &Value)| Ok((key.clone(), text(&object.path(key), value)?.to_owned()));
        object.map.iter().map(pair).collect()
    }
}

/// The text that this must be. None has a NUL in it: neither files nor processes can be given one.
pub(super) fn text<'a>(path: &str, value: &'a Value) -> Result<&'a str, ManifestError> {
    match value {
        Value::String(text) if !text.contains('\0') => Ok(text),
        other => Err(ManifestError::field(path, other, "a text without NUL in it")),
    }
}

/// Remembers names, each of which may come once.
#[derive(Default)]
pub(super) struct Once(BTreeSet<String>);

impl Once {
    /// Takes the next name.
    pub(super) fn take(&mut self, object: &Object<'_>, key: &str, name: &str) -> Result<(), ManifestError> {
        match self.0.insert(name.to_owned()) {
            true => Ok(()),
            false => Err(ManifestError::text(object.path(key), name, "another one than those before it")),
        }
    }
}
