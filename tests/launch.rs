//! Real containers: what is executed, as whom, with what, and how it ends.

mod launch_support;

use keelblock_actors::container::ExitStatus;
use launch_support::{house, line, program};

#[test]
fn a_command_runs_in_its_root_and_its_output_comes_back() {
    let Some(house) = house() else { return };
    let output = house.output("first", "echo hello; ls /; cat /proc/1/comm; id");
    println!("{output}");
    assert!(output.starts_with("hello\n"));
    assert!(output.contains("keelblock-init"));
}

#[test]
fn exit_statuses_are_exact() {
    let Some(house) = house() else { return };
    for code in [0u8, 1, 7, 125, 126, 127, 128, 137, 254, 255] {
        let context = house.context(&format!("exit-{code}"), line(&format!("exit {code}")));
        assert_eq!(house.run(&context).0, ExitStatus::Exited(code));
    }
    for signal in [1, 2, 3, 6, 9, 11, 15, 34, 64] {
        let context = house.context(
            &format!("signal-{signal}"),
            program(&["/bin/sh", "-c", &format!("kill -{signal} $$; sleep 9")]),
        );
        assert_eq!(house.run(&context).0, ExitStatus::Signaled(signal));
    }
}
