//! The fixtures are what `fixtures/README.md` says, and their program does what it says there.

use std::fs;
use std::io::Write;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use keelblock_actors::image::digest::Digest;

fn fixtures() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures")
}

/// All files below a directory.
fn files(directory: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    let mut directories = vec![directory.to_owned()];
    while let Some(directory) = directories.pop() {
        for entry in fs::read_dir(directory).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() { directories.push(path) } else { found.push(path) }
        }
    }
    found
}

#[test]
fn every_row_of_the_readme_has_the_digest_of_its_file() {
    let readme = fs::read_to_string(fixtures().join("README.md")).unwrap();
    let mut rows = 0;
    for line in readme.lines().filter(|line| line.starts_with("| `")) {
        let cells: Vec<&str> = line.split('|').map(|cell| cell.trim().trim_matches('`')).collect();
        let bytes =
            fs::read(fixtures().join(cells[1])).unwrap_or_else(|error| panic!("{}: {error}", cells[1]));
        assert_eq!(cells[2], Digest::of(&bytes).to_string(), "{}", cells[1]);
        assert!(cells[3..7].iter().all(|cell| !cell.is_empty()), "{line}");
        rows += 1;
    }
    let images = files(&fixtures().join("images"));
    let listed = images.iter().filter(|path| !path.to_str().unwrap().contains("/oci/hello/"));
    let of = |directory: &str| files(&fixtures().join(directory)).len();
    let others = of("mountinfo") + of("manifests") + of("fuzz") + 3;
    assert_eq!(
        rows,
        listed.count() + others,
        "a row for each image, mount table, manifest and corpus, the layout's index, and two of the program"
    );
}

#[test]
fn all_fixtures_together_stay_below_a_megabyte() {
    let bytes: u64 = files(&fixtures()).iter().map(|path| fs::metadata(path).unwrap().len()).sum();
    assert!(bytes < 1_000_000, "{bytes}");
    assert!(fs::metadata(fixtures().join("program/keelbox-x86_64")).unwrap().len() < 40_000);
}

/// Runs the program; `None` where the processor is another.
fn keelbox(arguments: &[&str], input: &str) -> Option<Output> {
    if !cfg!(target_arch = "x86_64") {
        eprintln!("skipped: the committed program is for x86-64");
        return None;
    }
    let mut child = Command::new(fixtures().join("program/keelbox-x86_64"))
        .args(arguments)
        .env_clear()
        .env("WHO", "you there")
        .env("PATH", "/nowhere:/bin:/usr/bin")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    child.stdin.take().unwrap().write_all(input.as_bytes()).unwrap();
    Some(child.wait_with_output().unwrap())
}

#[track_caller]
fn assert_says(arguments: &[&str], input: &str, output: &str, status: i32) {
    let Some(found) = keelbox(arguments, input) else { return };
    let stdout = String::from_utf8_lossy(&found.stdout);
    let stderr = String::from_utf8_lossy(&found.stderr);
    assert_eq!((stdout.as_ref(), found.status.code()), (output, Some(status)), "{arguments:?}: {stderr}");
}

#[test]
fn the_program_speaks_enough_shell() {
    for (script, output, status) in [
        ("echo a  b 'c  d' \"$WHO\" \\$x", "a b c  d you there $x\n", 0),
        ("false || echo or; true && echo and; false && echo not", "or\nand\n", 1),
        ("exit 3; echo not", "", 3),
        ("false; echo $? ${WHO}s", "1 you theres\n", 0),
        ("cd /; pwd # not this", "/\n", 0),
        ("/nowhere/at/all", "", 127),
        ("no-such-command", "", 127),
        ("/etc/passwd", "", 126),
        ("exec /bin/sh -c 'exit 7'", "", 7),
        ("/bin/sh -c 'kill -9 $$'; echo $?", "137\n", 0),
        ("echo 'open", "", 2),
        ("", "", 0),
    ] {
        assert_says(&["sh", "-c", script], "", output, status);
    }
    assert_says(&["sh"], "echo one\necho two\nfalse", "one\ntwo\n", 1);
}

#[test]
fn the_program_reads_and_writes_files() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("file").display().to_string();
    let script = format!("write {path} one; echo two >> {path}; cat {path}; rm {path}; cat {path}");
    assert_says(&["sh", "-c", &script], "", "one\ntwo\n", 1);
    assert_says(&["cat"], "through", "through", 0);
    for name in ["b", "c", "a"] {
        fs::write(directory.path().join(name), "").unwrap();
    }
    assert_says(&["ls", directory.path().to_str().unwrap()], "", "a\nb\nc\n", 0);
    assert_says(&["stat", "/dev/null"], "", "character 666 0:0 0 /dev/null\n", 0);
    assert_says(&["ls", "/nowhere"], "", "", 1);
}

#[test]
fn the_program_tells_who_and_where_it_is() {
    assert_says(&["env"], "", "PATH=/nowhere:/bin:/usr/bin\nWHO=you there\n", 0);
    assert_says(&["tty"], "", "not a terminal\n", 1);
    let Some(id) = keelbox(&["id"], "") else { return };
    let id = String::from_utf8(id.stdout).unwrap();
    assert!(id.starts_with("uid=") && id.contains("\nCapEff:") && id.contains("\nNoNewPrivs:"), "{id}");
    let hello = keelbox(&["hello"], "").unwrap();
    assert!(String::from_utf8(hello.stdout).unwrap().starts_with("Hello from keelbox"));
    let unknown = keelbox(&["juggle"], "").unwrap();
    assert_eq!(unknown.status.code(), Some(127));
    let killed = keelbox(&["kill-self", "9"], "").unwrap();
    assert_eq!(killed.status.signal(), Some(9));
}

#[test]
fn the_program_names_the_signals_it_gets() {
    use std::io::{BufRead, BufReader};
    if !cfg!(target_arch = "x86_64") {
        eprintln!("skipped: the committed program is for x86-64");
        return;
    }
    let mut child = Command::new(fixtures().join("program/keelbox-x86_64"))
        .arg("trap")
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let pid = nix::unistd::Pid::from_raw(i32::try_from(child.id()).unwrap());
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
    let mut next = || lines.next().unwrap().unwrap();
    assert_eq!(next(), "ready");
    for (signal, name) in [
        (nix::sys::signal::SIGUSR1, "SIGUSR1"),
        (nix::sys::signal::SIGWINCH, "SIGWINCH"),
        (nix::sys::signal::SIGTERM, "SIGTERM"),
    ] {
        nix::sys::signal::kill(pid, signal).unwrap();
        assert_eq!(next(), name);
    }
    assert_eq!(child.wait().unwrap().code(), Some(0));
}
