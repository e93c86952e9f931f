//! Developer commands: `cargo xtask COMMAND`.
//!
//! - `busybox-layout DIR`: an image made on the spot of this machine's busybox ([`layout`]);
//! - `host-ready HOST`: waits until a node has a host that takes pods ([`host_ready`]);
//! - `quickstart …`: the show of `hack/quickstart`, for a node that runs already ([`quickstart`]).
//!
//! This crate knows none of ours: it speaks to a node as any client does, over its socket.

mod busybox;
mod client;
mod host_ready;
mod layout;
mod quickstart;

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Result;
use clap::{Parser, Subcommand};

#[derive(Parser)]
#[command(name = "cargo xtask", about = "Developer commands")]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Make an OCI layout of this machine's static busybox, and print its reference
    BusyboxLayout(busybox::Options),
    /// Wait until a host takes pods
    HostReady(host_ready::Options),
    /// Show the main job on a node that runs already (see hack/quickstart)
    Quickstart(quickstart::Options),
    /// Print the name and tag part of an OCI layout's image reference
    LayoutReference {
        /// The layout
        dir: PathBuf,
    },
}

fn main() -> ExitCode {
    let result: Result<()> = match Arguments::parse().command {
        Command::BusyboxLayout(options) => busybox::run(&options),
        Command::HostReady(options) => host_ready::run(&options),
        Command::Quickstart(options) => quickstart::run(options),
        Command::LayoutReference { dir } => layout::reference(&dir).map(|reference| println!("{reference}")),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            // So that `hack/quickstart` does not show the daemons' logs, which have nothing to add.
            if error.is::<quickstart::NoImage>() { ExitCode::from(3) } else { ExitCode::FAILURE }
        }
    }
}
