//! `nodeless-shim keeper …`: the host's keeper, whose forks are the sandboxes' shims.

use std::process::ExitCode;

fn main() -> ExitCode {
    let mut arguments = std::env::args_os().skip(1);
    let result: Result<(), Box<dyn std::error::Error>> =
        match arguments.next().as_deref().and_then(|word| word.to_str()) {
            Some("keeper") => keeper(arguments).map_err(Into::into),
            Some("--version") => {
                println!("nodeless-shim {}", env!("CARGO_PKG_VERSION"));
                return ExitCode::SUCCESS;
            }
            _ => {
                eprintln!("usage: nodeless-shim keeper --run-dir DIR --layer-dir DIR --cgroup-parent NAME | --version");
                return ExitCode::from(2);
            }
        };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("nodeless-shim: {}", sandbox::sys::say::chain(error.as_ref()));
            ExitCode::FAILURE
        }
    }
}

fn keeper(arguments: impl Iterator<Item = std::ffi::OsString>) -> Result<(), sandbox::keeper::KeeperError> {
    let config = sandbox::keeper::Config::parse(arguments)?;
    sandbox::keeper::forget_inherited()?;
    sandbox::keeper::run(&config)
}
