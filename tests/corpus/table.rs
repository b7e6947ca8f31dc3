//! The corpus as a table.

use std::collections::BTreeMap;
use std::time::Duration;

use crate::run::{BACKENDS, Outcome, Rights};

pub(crate) fn heading(rights: Rights) -> &'static str {
    match rights {
        Rights::Root => "root",
        Rights::Images => "root, images",
        Rights::One => "rootless, one ID",
        Rights::Full => "rootless, 65,536 IDs",
    }
}

/// Prints it; whether anything is wrong.
pub(crate) fn print(
    all: &[(&'static str, &'static str)],
    found: &[Outcome],
    notes: &[String],
    broken: &[String],
    took: Duration,
) -> bool {
    let mut by_name: BTreeMap<&str, BTreeMap<usize, &Outcome>> = BTreeMap::new();
    for outcome in found {
        by_name.entry(&outcome.case).or_default().insert(outcome.rights as usize, outcome);
    }
    let mut reasons: Vec<String> = vec![];
    let mut cell = |text: &str| match text.strip_prefix("skipped (").and_then(|rest| rest.strip_suffix(')')) {
        None => text.to_owned(),
        Some(why) => {
            let at = reasons.iter().position(|reason| reason == why).unwrap_or_else(|| {
                reasons.push(why.to_owned());
                reasons.len() - 1
            });
            format!("skip {}", at + 1)
        }
    };
    let width = all.iter().map(|(_, name)| name.len()).max().unwrap_or_default();
    let columns = Rights::ALL.map(|rights| format!("{:24}", heading(rights))).join("| ");
    println!("\n{:12} {:width$} | {columns}|    ms", "", "");
    let backends = BACKENDS.map(|backend| format!("{backend:8}")).join("");
    println!("{:12} {:width$} | {}|", "group", "case", Rights::ALL.map(|_| backends.clone()).join("| "));
    let mut counts: BTreeMap<(usize, String), usize> = BTreeMap::new();
    let mut rows = 0;
    for (group, name) in all {
        let Some(outcomes) = by_name.get(name) else { continue };
        rows += 1;
        let cells = Rights::ALL.map(|rights| match outcomes.get(&(rights as usize)) {
            None => format!("{:24}", "."),
            Some(outcome) => outcome
                .cells
                .each_ref()
                .map(|text| {
                    let text = cell(text);
                    let kind = text.split(' ').next().unwrap_or_default().to_owned();
                    *counts.entry((rights as usize, kind)).or_default() += 1;
                    format!("{text:8}")
                })
                .join(""),
        });
        let millis: u64 = outcomes.values().map(|outcome| outcome.millis).sum();
        println!("{group:12} {name:width$} | {}| {millis:5}", cells.join("| "));
    }
    println!();
    for (at, reason) in reasons.iter().enumerate() {
        println!("skip {}: {reason}", at + 1);
    }
    for note in notes {
        println!("note: {note}");
    }
    println!(".: not tried with these rights");
    for rights in Rights::ALL {
        let of = |kind: &str| counts.get(&(rights as usize, kind.to_owned())).copied().unwrap_or_default();
        println!(
            "{}: {} ok, {} refused, {} skipped, {} failed",
            heading(rights),
            of("ok"),
            of("refused"),
            of("skip"),
            of("FAILED")
        );
    }
    let wrong: Vec<_> = found.iter().filter(|outcome| !outcome.problems.is_empty()).collect();
    for outcome in &wrong {
        println!("\nFAILED {}: {} ({})", outcome.group, outcome.case, heading(outcome.rights));
        for problem in &outcome.problems {
            println!("  {problem}");
        }
    }
    for failure in broken {
        println!("\nFAILED {failure}");
    }
    println!("\ncorpus: {rows} cases, {} failures, {:.1} s", wrong.len() + broken.len(), took.as_secs_f64());
    !wrong.is_empty() || !broken.is_empty()
}
