//! The corpus: everything a layer can say and everything it must not, each case with what must become of it, as root
//! and rootless, in every backend; at the end all of it as a table.
//!
//! A program of its own, for two reasons: a user namespace is entered by a process with one thread, and the table is
//! to be seen when all is well. It starts itself again, once for each kind of rights:
//!
//! - as root, who keeps layers as trees;
//! - as root, who keeps them as images, which must show what trees of the same layers show;
//! - as nobody, who enters a user namespace with that one ID;
//! - as a user without a name in a user namespace with 65,536 IDs, as /etc/subuid would give them.
//!
//! Every argument that is no option is a part of names of cases or groups to be run; `--list` only names them.
//! Each case is also run with its layers as ACIs (`aci`), under its name and `-as-aci`. `cases/` holds the cases, `case` what one is, `tree` how a tree is written down, `ground` where canaries live.

mod aci;
mod bombs;
mod case;
mod cases;
mod documents;
mod ground;
#[allow(dead_code, reason = "it serves the tests of archives, too")]
#[path = "../archive/support.rs"]
mod layouts;
mod page;
mod run;
mod stacks;
mod table;
#[path = "../support/tarball.rs"]
mod tarball;
mod tree;

use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitCode, Stdio};

use nix::sched::{CloneFlags, unshare};

use crate::ground::Ground;
use crate::run::{Outcome, Rights};

/// Tells a process what it was started for.
const STAGE: &str = "KEELBLOCK_CORPUS_STAGE";
/// The words to look for in names, one a line.
const FILTER: &str = "KEELBLOCK_CORPUS_FILTER";

const NOBODY: u32 = 65534;
/// Where the IDs of the larger namespace begin.
const FIRST_SUBORDINATE: u32 = 1_000_000_000;

/// Which rows are wanted.
#[derive(Clone)]
pub(crate) struct Filter(Vec<String>);

impl Filter {
    pub(crate) fn takes(&self, group: &str, name: &str) -> bool {
        let part = |word: &String| name.contains(&word[..]) || group.contains(&word[..]);
        self.0.is_empty() || self.0.iter().any(part)
    }
}

fn main() -> ExitCode {
    let Ok(stage) = std::env::var(STAGE) else { return parent() };
    // Modes must come out right whatever the umask is, so here it is one that takes something.
    nix::sys::stat::umask(nix::sys::stat::Mode::from_bits_truncate(0o027));
    let filter = std::env::var(FILTER).unwrap_or_default();
    let filter = Filter(filter.lines().map(str::to_owned).collect());
    if let Some(name) = stage.strip_prefix("bomb ") {
        bombs::child(name);
        return ExitCode::SUCCESS;
    }
    let rights = match stage.as_str() {
        "root" => Rights::Root,
        "images" => {
            if let Some(why) = tarball::no_images(&bed(Rights::Images)) {
                println!("skipped {why}");
                return ExitCode::SUCCESS;
            }
            Rights::Images
        }
        "one" => {
            enter_with_one_id();
            Rights::One
        }
        "full" => {
            enter_with_many_ids();
            Rights::Full
        }
        other => panic!("{other} is no stage"),
    };
    cases_of(rights, &filter);
    ExitCode::SUCCESS
}

fn parent() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let filter = Filter(arguments.iter().filter(|word| !word.starts_with('-')).cloned().collect());
    let all = names();
    let bad = run::bad_names(&all);
    assert!(bad.is_empty(), "names that are used twice or are more than a-z, 0-9 and hyphens: {bad:?}");
    let wanted: Vec<_> = all.iter().filter(|(group, name)| filter.takes(group, name)).collect();
    if arguments.iter().any(|word| word == "--list") {
        wanted.iter().for_each(|(group, name)| println!("{group}: {name}"));
        return ExitCode::SUCCESS;
    }
    if wanted.is_empty() {
        println!("corpus: no case has such a name");
        return ExitCode::SUCCESS;
    }
    let began = std::time::Instant::now();
    let mut notes = vec![];
    let root = tarball::root();
    let mut children = vec![];
    for rights in Rights::ALL {
        match start(rights, root, &filter) {
            Ok(child) => children.push((rights, child)),
            Err(why) => notes.push(format!("nothing was tried with {}: {why}", table::heading(rights))),
        }
    }
    // All at once; each has its own thread here, so that none waits for its output to be read.
    let readers: Vec<_> = children
        .into_iter()
        .map(|(rights, child)| (rights, std::thread::spawn(move || outcomes(child))))
        .collect();
    let mut found: Vec<Outcome> = vec![];
    let mut broken = vec![];
    for (rights, reader) in readers {
        let (outcomes, more, failure) = reader.join().unwrap();
        let heading = table::heading(rights);
        notes.extend(more.into_iter().map(|note| format!("{heading}: {note}")));
        broken.extend(failure.map(|failure| format!("{heading}: {failure}")));
        found.extend(outcomes);
    }
    let images = root && tarball::no_images(&bed(Rights::Images)).is_none();
    found.extend(bombs::run(&filter, images, &mut notes));
    found.extend(documents::run(&filter));
    found.extend(stacks::run(&filter, root, &mut notes));
    found.extend(page::run(&filter, &all));
    let wrong = table::print(&all, &found, &notes, &broken, began.elapsed());
    if wrong { ExitCode::FAILURE } else { ExitCode::SUCCESS }
}

/// Group and name of every row.
fn names() -> Vec<(&'static str, &'static str)> {
    let mut all: Vec<_> = cases::all().iter().map(|case| (case.group, case.name)).collect();
    all.extend(bombs::names());
    all.extend(documents::names());
    all.extend(stacks::names());
    all.extend(page::names());
    all
}

/// A process that runs the cases with these rights.
fn start(rights: Rights, root: bool, filter: &Filter) -> Result<Child, String> {
    if !root && rights != Rights::One {
        return Err("it needs root".to_owned());
    }
    // By the link: the directory of this program may be closed to others.
    let mut command = Command::new("/proc/self/exe");
    command.env(FILTER, filter.0.join("\n")).stdin(Stdio::piped()).stdout(Stdio::piped()).current_dir("/");
    let (stage, id) = match rights {
        Rights::Root => ("root", None),
        Rights::Images => ("images", None),
        Rights::One => ("one", root.then_some(NOBODY)),
        Rights::Full => ("full", Some(FIRST_SUBORDINATE)),
    };
    command.env(STAGE, stage);
    if let Some(id) = id {
        command.uid(id).gid(id);
    }
    let mut child = command.spawn().map_err(|error| format!("it cannot be started: {error}"))?;
    if rights == Rights::Full {
        map_ids(&mut child)?;
    }
    Ok(child)
}

/// Gives a process that waits in its new user namespace its IDs.
fn map_ids(child: &mut Child) -> Result<(), String> {
    // It has unshared when it says so.
    let mut byte = [0];
    child.stdout.as_mut().unwrap().read_exact(&mut byte).map_err(|error| format!("it ended: {error}"))?;
    for file in ["uid_map", "gid_map"] {
        std::fs::write(format!("/proc/{}/{file}", child.id()), format!("0 {FIRST_SUBORDINATE} 65536"))
            .map_err(|error| format!("its {file} cannot be written: {error}"))?;
    }
    child.stdin.as_mut().unwrap().write_all(b"x").map_err(|error| format!("it ended: {error}"))
}

fn enter_with_many_ids() {
    enter();
    std::io::stdout().write_all(b"x").unwrap();
    std::io::stdout().flush().unwrap();
    std::io::stdin().read_exact(&mut [0]).unwrap();
    assert!(rustix::process::geteuid().is_root(), "the first ID is root here");
}

fn enter_with_one_id() {
    let (uid, gid) = (rustix::process::geteuid().as_raw(), rustix::process::getegid().as_raw());
    enter();
    std::fs::write("/proc/self/setgroups", "deny").unwrap();
    std::fs::write("/proc/self/uid_map", format!("0 {uid} 1")).unwrap();
    std::fs::write("/proc/self/gid_map", format!("0 {gid} 1")).unwrap();
}

fn enter() {
    if let Err(error) = unshare(CloneFlags::CLONE_NEWUSER | CloneFlags::CLONE_NEWNS) {
        println!("skipped no user namespace can be made here: {error}");
        std::process::exit(0);
    }
}

/// Where the cases are run: in memory, where that keeps xattrs of ordinary users, else on disk.
fn bed(rights: Rights) -> PathBuf {
    let keeps_xattrs = |dir: &Path| {
        let file = tempfile::NamedTempFile::new_in(dir).ok()?;
        rustix::fs::setxattr(file.path(), "user.trial", b"x", rustix::fs::XattrFlags::empty()).ok()
    };
    let memory = PathBuf::from("/dev/shm");
    // What is there can only be mounted by way of a loop device.
    if rights == Rights::Images {
        return std::env::temp_dir();
    }
    if keeps_xattrs(&memory).is_some() { memory } else { std::env::temp_dir() }
}

fn cases_of(rights: Rights, filter: &Filter) {
    // What a case panics with is told with its name, once.
    std::panic::set_hook(Box::new(|_| {}));
    let ground = Ground::new(&bed(rights));
    let no_overlay = run::overlay_is_missing(&ground);
    if let Some(why) = &no_overlay {
        println!("note overlayfs cannot be mounted: {why}");
    }
    let no_overlay = no_overlay.map(|_| "no overlayfs");
    for case in cases::all().into_iter().filter(|case| filter.takes(case.group, case.name)) {
        let outcome = run::run(&case, &ground, rights, no_overlay);
        println!("outcome {}", serde_json::to_string(&outcome).unwrap());
    }
    println!("done");
}

/// What a process said: outcomes, notes, and why it did not come to its end.
fn outcomes(mut child: Child) -> (Vec<Outcome>, Vec<String>, Option<String>) {
    let (mut found, mut notes, mut done) = (vec![], vec![], false);
    let lines = BufReader::new(child.stdout.take().unwrap()).lines();
    for line in lines.map_while(Result::ok) {
        match line.split_once(' ') {
            Some(("outcome", json)) => found.push(serde_json::from_str(json).unwrap()),
            Some(("note", note)) => notes.push(note.to_owned()),
            Some(("skipped", why)) => {
                notes.push(format!("nothing was tried: {why}"));
                done = true;
            }
            _ if line == "done" => done = true,
            _ => notes.push(line),
        }
    }
    let status = child.wait().unwrap();
    let failure = (!done || !status.success()).then(|| {
        let last = found.last().map_or("none".to_owned(), |last: &Outcome| last.case.clone());
        format!("its process ended with {status}; the last case it finished was {last}")
    });
    (found, notes, failure)
}
