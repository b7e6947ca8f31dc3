//! `docs/security.md` names the test or case that shows each of its claims: they must be there.

use std::path::Path;
use std::time::Instant;

use crate::Filter;
use crate::run::Outcome;

const GROUP: &str = "page";
const NAME: &str = "every-test-that-the-security-page-names-exists";

pub(crate) fn names() -> Vec<(&'static str, &'static str)> {
    vec![(GROUP, NAME)]
}

pub(crate) fn run(filter: &Filter, cases: &[(&'static str, &'static str)]) -> Vec<Outcome> {
    if !filter.takes(GROUP, NAME) {
        return vec![];
    }
    let began = Instant::now();
    let house = Path::new(env!("CARGO_MANIFEST_DIR"));
    let page = std::fs::read_to_string(house.join("docs/security.md")).unwrap_or_default();
    let mut problems = vec![];
    let (mut of_cases, mut of_tests) = (0, 0);
    for quoted in page.lines().flat_map(quoted) {
        if let Some(name) = quoted.strip_prefix("corpus:") {
            of_cases += 1;
            if !cases.iter().any(|(_, case)| *case == name) {
                problems.push(format!("there is no case {name}"));
            }
        } else if let Some((file, test)) = quoted.rsplit_once("::").filter(|(file, _)| file.ends_with(".rs"))
        {
            of_tests += 1;
            let text = std::fs::read_to_string(house.join(file)).unwrap_or_default();
            let found = text.lines().any(|line| {
                let line = line.trim_start();
                let line = line.strip_prefix("async ").unwrap_or(line);
                line.strip_prefix("fn ")
                    .is_some_and(|rest| rest.strip_prefix(test).is_some_and(|rest| rest.starts_with('(')))
            });
            if !found {
                problems.push(format!("there is no test {test} in {file}"));
            }
        } else if quoted.contains('/') && quoted.starts_with("src/") {
            let path = house.join(quoted);
            if !path.exists() {
                problems.push(format!("there is no {quoted}"));
            }
        }
    }
    if of_cases < 20 || of_tests < 5 {
        problems
            .push(format!("only {of_cases} cases and {of_tests} tests are named; is the page read right?"));
    }
    let verdict = if problems.is_empty() { "ok" } else { "FAILED" };
    vec![Outcome::of_one(GROUP, NAME, verdict, problems, began)]
}

/// What stands between backticks in a line.
fn quoted(line: &str) -> impl Iterator<Item = &str> {
    line.split('`').skip(1).step_by(2)
}
