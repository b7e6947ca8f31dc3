//! The life of a supervisor whose command has hooks: pre-start hooks one after the other, the command, post-stop hooks.
//!
//! All of them are forked here, in their turn, from what lies in the [`super::arena`]: none of them waits in the
//! container, to be seen and killed there. Hooks are the image's, so the supervisor is hardened before the first; what
//! it keeps as long as there are processes to be made are the capabilities to make them: those of the container, and
//! those to become its user. Its descriptors are those that the launching process made for this launch.
//!
//! Signals go to whoever runs, hook or command. An order to kill all ends the story: nothing follows.

use std::os::fd::RawFd;

use libc::{c_int, pid_t};

use super::arena::Seen;
use super::init::{Attended, Ends, attend, close_all_but, harden, limit, record};
use super::task::{self, Role};
use super::{NOT_STARTED, Report, State, close, errno, fork, pipe, stage, tell};

/// The wait status of a container whose command never ran.
const FAILED: c_int = NOT_STARTED << 8;

pub(super) fn run(
    story: Seen,
    status: RawFd,
    report: RawFd,
    ends: Ends,
    maps: RawFd,
    state: &mut State,
) -> ! {
    harden(maps, story.capabilities);
    for number in 0..story.before {
        let Attended { ended, all } = hook(&story, number, number, report, state);
        if all || ended != 0 {
            tell(report, Report { stage: stage::HOOK_ENDED, index: number as u32, detail: 0, errno: ended });
            record(status, if all { libc::SIGKILL } else { FAILED });
            ends.end(FAILED);
        }
    }
    tell(report, Report { stage: stage::COMMAND_BEGINS, index: 0, detail: 0, errno: 0 });
    let child = command(&story, status, report, ends, state);
    let Attended { ended, all } = attend(child);
    // Now, so that it is known also if a hook is killed with the container.
    record(status, ended);
    if !all && task::was_executed(status) {
        for number in 0..story.after {
            let Attended { ended, all } = hook(&story, story.before + 1 + number, number, story.late, state);
            if ended != 0 {
                let index = (story.before + number) as u32;
                tell(story.late, Report { stage: stage::HOOK_ENDED, index, detail: 0, errno: ended });
            }
            if all {
                break;
            }
        }
    }
    ends.end(ended)
}

/// Runs a hook to its end. With the first, all that precedes hooks is done, which is told before it does anything.
fn hook(story: &Seen, process: usize, number: usize, report: RawFd, state: &mut State) -> Attended {
    let after = process > story.before;
    let number = if after { story.before + number } else { number } as u32;
    let failed = |errno| {
        tell(report, Report { stage: stage::HOOK, index: number, detail: 0, errno });
        Attended { ended: FAILED, all: false }
    };
    let Ok(go) = pipe() else { return failed(errno()) };
    match fork() {
        0 => {
            // Or its own end would keep it waiting.
            close(go[1]);
            task::run(&story.process(process), Role::Hook { number, go: go[0] }, report, state)
        }
        child if child < 0 => failed(errno()),
        child => {
            if number == 0 && !after {
                tell(report, Report { stage: stage::HOOKS_BEGIN, index: 0, detail: 0, errno: 0 });
            }
            close(go[0]);
            close(go[1]);
            attend(child)
        }
    }
}

/// Forks the command, and gives up what is not needed beside it.
fn command(story: &Seen, status: RawFd, report: RawFd, ends: Ends, state: &mut State) -> pid_t {
    let failed = |errno| {
        tell(report, Report { stage: stage::FORK, index: 0, detail: 0, errno });
        record(status, FAILED);
        ends.end(FAILED)
    };
    let Ok(hardened) = pipe() else { failed(errno()) };
    match fork() {
        0 => {
            // Or its own end would keep it waiting.
            close(hardened[1]);
            let role = Role::Command { go: hardened[0], status };
            task::run(&story.process(story.before), role, report, state)
        }
        child if child < 0 => failed(errno()),
        child => {
            if story.after == 0 {
                limit(ends.capabilities);
                close_all_but(status);
            } else {
                // With the command its terminal ends: what comes after has none.
                if state.terminal >= 0 {
                    close(state.terminal);
                    state.terminal = -1;
                }
                close(report);
                close(hardened[0]);
                close(hardened[1]);
            }
            child
        }
    }
}
