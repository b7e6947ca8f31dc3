//! The cases, by what they are about.

mod aci;
mod aci_blobs;
mod attributes;
mod compression;
mod dialects;
mod escapes;
mod limits;
mod links;
mod sparse;
mod whiteouts;

use crate::case::{Case, Group};

/// All of them, in the order of the table.
pub(crate) fn all() -> Vec<Case> {
    [
        ("dialects", dialects::add as fn(&mut Group)),
        ("sparse", sparse::add),
        ("links", links::add),
        ("compression", compression::add),
        ("whiteouts", whiteouts::add),
        ("escapes", escapes::add),
        ("attributes", attributes::add),
        ("limits", limits::add),
        ("aci", aci::add),
        ("aci", aci_blobs::add),
    ]
    .into_iter()
    .flat_map(|(name, add)| {
        let mut group = Group::new(name);
        add(&mut group);
        group.done()
    })
    .flat_map(|case| {
        let as_aci = (case.group != "aci").then(|| case.as_aci());
        std::iter::once(case).chain(as_aci)
    })
    .collect()
}
