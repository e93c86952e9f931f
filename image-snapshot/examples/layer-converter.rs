//! The smallest layer converter; tests use it, and the agent does the same under a subcommand.

use std::process::ExitCode;

fn main() -> ExitCode {
    image_snapshot::convert::run_converter()
}
