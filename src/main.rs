//! The `keelblock` command: see [`keelblock::cli`].

fn main() -> std::process::ExitCode {
    keelblock::cli::main()
}
