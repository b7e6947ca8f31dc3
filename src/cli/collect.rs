//! What nobody waits for, done by a process of its own: layers on their way to the disk, and trees on their way out.
//!
//! A command leaves the layers it pulled to be settled ([`DiskStore::settle`]), only moves large trees away
//! ([`crate::gc`]), and starts `keelblock collect` at its end, if there is anything to do and nobody is at it. That process inherits nothing that anybody could wait for or miss: no descriptor, no
//! session, no working directory, no environment; it has a low priority, and ends when nothing is left. When
//! it is killed, the next command starts another.

use std::process::{Command, Stdio};

use keelblock_actors::stop::Stop;
use slog::{Logger, debug};

use super::{CliError, args};
use crate::config::Config;
use crate::gc::{self, Collector, Swept};
use crate::store::{DiskStore, Privileges, StoreSettings};
use crate::sys::{detach, priority};

/// Starts the process, if it has anything to do. Not being able to is no failure of the command: the next one tries.
pub(super) fn hand_over(config: &Config, log: &Logger) {
    let garbage = || config.gc_dirs().iter().any(|place| gc::is_waiting(place));
    let stores = config.store_dirs();
    if !stores.iter().any(|dir| DiskStore::is_unsettled(dir)) && !garbage() {
        return;
    }
    let flag = |name: &str, path: &std::path::Path| {
        let mut flag = std::ffi::OsString::from(format!("--{name}="));
        flag.push(path);
        flag
    };
    // Not by its path, where an update may have put another by now.
    let started = Command::new("/proc/self/exe")
        .arg(args::COLLECT)
        .arg(flag("work_dir", &config.work_dir))
        .arg(flag("docker_store_dir", &config.store_dir()))
        .args(stores.get(1).map(|dir| flag("appc_store_dir", dir)))
        .env_clear()
        .current_dir("/")
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        // It forks first thing, and what is waited for is not the work.
        .status();
    match started {
        Ok(status) if status.success() => {}
        Ok(status) => debug!(log, "what is left to be done stays for now"; "status" => %status),
        Err(error) => debug!(log, "what is left to be done stays for now"; "error" => %error),
    }
}

/// The process itself. Nobody hears of its failures: who wants to know asks `prune --wait`.
pub(super) fn collect(config: &Config) -> Result<u8, CliError> {
    match detach::detach().map_err(|source| CliError::Io { act: "detach from the caller", source })? {
        detach::Side::Parent => {}
        detach::Side::Child => {
            priority::lower();
            settle(config);
            drop(sweep(config));
        }
    }
    Ok(0)
}

/// Writes layers to disk. What fails stays marked in the store, where the next command finds it.
fn settle(config: &Config) {
    let Ok(privileges) = Privileges::detect() else { return };
    let log = Logger::root(slog::Discard, slog::o!());
    for dir in config.store_dirs() {
        let settings = StoreSettings {
            collector: Collector::later(),
            ..StoreSettings::new(config.limits.clone(), privileges)
        };
        let _ = DiskStore::open_with(&dir, settings, log.clone()).and_then(|store| store.settle());
    }
}

/// Removes all of it now.
pub(super) fn sweep(config: &Config) -> Swept {
    let mut all = Swept::default();
    for place in config.gc_dirs() {
        let swept = gc::sweep(&place, &Stop::default());
        all.removed += swept.removed;
        all.failures.extend(swept.failures);
    }
    all
}
