//! Shell completion.

use clap::CommandFactory;
use clap_complete::{Shell, generate};

use crate::args::Cli;

/// Prints the script.
pub(crate) fn print(shell: Shell) {
    generate(shell, &mut Cli::command(), "nodeless", &mut std::io::stdout());
}
