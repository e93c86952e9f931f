//! A hostile program: what somebody would run in a container in order to leave it.
//!
//! It runs inside a real sandbox and prints what it got: `BREACH …` for what no container may, `SEEN …` for what the test
//! wants to know, and at last `TRIED n`. Whoever started it judges; that nothing was tried is a failure of the test.
//!
//! ```text
//! race A B COUNTER                   exchanges A and B for ever; counts in the file COUNTER
//! steal DIRECTORY PREY BAIT COUNTER  exchanges PREY and BAIT as soon as PREY appears, for ever
//! idle                               does nothing, for ever, without opening anything
//! fds                                what descriptors it was given
//! hunt STOP [shared]                 looks into every other process until the file STOP appears
//! keeper STOP                        looks into whatever has the keeper's memory until the file STOP appears
//! overwrite STOP                     writes to the runtime's program wherever it runs, until the file STOP appears
//! links DECOY MARK                   reaches for the file DECOY by every magic link; MARK is what it holds
//! plant DIRECTORY TARGET             fills a directory with links to TARGET and other traps
//! mounts DECOY MARK [strong]         mounts, unmounts, remounts, changes root; strong: with capabilities, effects count
//! cgroups                            writes wherever control groups are shown
//! cover PROGRAM…                     as a container's first process: puts traps over /proc and /dev, then runs PROGRAM
//! surface …                          the kernel's surface: see `surface`
//! look DIRECTORY…                    the mount points, and what is in each directory
//! ```

mod files;
mod links;
mod mounts;
mod processes;
mod race;
mod raw;
mod report;
mod surface;

use std::io;
use std::process::ExitCode;

use report::Report;

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = arguments.iter().map(String::as_str).collect();
    if let ["surface", words @ ..] = &words[..] {
        // Its tests judge by its lines and not by a report.
        return if surface::run(words) { ExitCode::SUCCESS } else { ExitCode::from(2) };
    }
    match run(&words) {
        Ok(Some(report)) => {
            report.end();
            ExitCode::SUCCESS
        }
        Ok(None) => {
            eprintln!("attacker: {words:?} is no attack");
            ExitCode::from(2)
        }
        Err(error) => {
            eprintln!("attacker: {words:?}: {error}");
            ExitCode::FAILURE
        }
    }
}

fn run(words: &[&str]) -> io::Result<Option<Report>> {
    Ok(Some(match words {
        ["race", a, b, counter] => race::exchange(a, b, counter)?,
        ["steal", directory, prey, bait, counter] => race::steal(directory, prey, bait, counter)?,
        ["idle"] => race::idle(),
        ["fds"] => files::descriptors()?,
        ["hunt", stop] => processes::hunt(stop, false),
        ["hunt", stop, "shared"] => processes::hunt(stop, true),
        ["keeper", stop] => processes::keeper(stop),
        ["overwrite", stop] => processes::overwrite(stop),
        ["links", decoy, mark] => links::reach(decoy, mark),
        ["plant", directory, target] => links::plant(directory, target)?,
        ["mounts", decoy, mark] => mounts::attack(decoy, mark, false),
        ["mounts", decoy, mark, "strong"] => mounts::attack(decoy, mark, true),
        ["cgroups"] => mounts::control_groups(),
        ["cover", program @ ..] if !program.is_empty() => mounts::cover(program)?,
        ["look", directories @ ..] => files::look(directories)?,
        _ => return Ok(None),
    }))
}
