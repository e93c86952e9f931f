//! `nodeless`: the command-line client of vkubelet. As `kubectl-nodeless` on the PATH it is also `kubectl nodeless`.

mod age;
mod args;
mod bill;
mod completion;
mod connect;
mod exec;
mod failure;
mod hosts;
mod images;
mod pods;
mod run;
mod table;
mod timeline;

use std::process::ExitCode;

use clap::Parser;

use args::{Cli, Command};
use connect::Connection;
use failure::Failure;

fn main() -> ExitCode {
    let cli = Cli::parse();
    let runtime = match tokio::runtime::Builder::new_current_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => {
            eprintln!("error: start: {error}");
            return ExitCode::FAILURE;
        }
    };
    let code = runtime.block_on(Box::pin(obey(cli)));
    // A read of a terminal cannot be cancelled: it must not hold up the end.
    runtime.shutdown_background();
    match code {
        Ok(code) => ExitCode::from(code),
        Err(Failure::PipeClosed) => ExitCode::SUCCESS,
        Err(failure) => {
            eprintln!("error: {failure}");
            ExitCode::FAILURE
        }
    }
}

async fn obey(cli: Cli) -> Result<u8, Failure> {
    let connection = Connection::new(cli.socket);
    let out = cli.output;
    match cli.command {
        Command::Run(order) => run::run(&connection, *order, out).await,
        Command::Ps(order) => pods::ps(&connection, &order, out).await.map(|()| 0),
        Command::Logs(order) => pods::logs(&connection, &order).await.map(|()| 0),
        Command::Exec(order) => exec::exec(&connection, &order).await,
        Command::Rm(order) => pods::rm(&connection, &order).await.map(|()| 0),
        Command::Describe(order) => pods::describe(&connection, &order, out).await.map(|()| 0),
        Command::Hosts(order) => hosts::hosts(&connection, order.command, out).await.map(|()| 0),
        Command::Images(order) => images::images(&connection, order.command, out).await,
        Command::Bill(order) => bill::bill(&connection, &order, out).await.map(|()| 0),
        Command::Completion { shell } => {
            completion::print(shell);
            Ok(0)
        }
    }
}
