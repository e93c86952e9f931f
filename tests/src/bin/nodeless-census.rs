//! `nodeless-census take FILE` writes down what this machine holds; `nodeless-census compare FILE` says what was left since
//! and fails when anything was. What takes a moment to go away (a namespace, a zombie) is given `--patience`.

use std::fs;
use std::path::PathBuf;
use std::process::ExitCode;
use std::thread::sleep;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use clap::{Parser, Subcommand};
use tests::census::{Census, collect};

#[derive(Parser)]
#[command(about = "Counts what a machine holds, before and after a test run")]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Write down what is there
    Take { file: PathBuf },
    /// Say what was left since
    Compare {
        file: PathBuf,
        /// Seconds that things may take to go away
        #[arg(long, default_value_t = 10)]
        patience: u64,
    },
}

fn main() -> ExitCode {
    match run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            // The alternate form prints the causes, and no stack.
            eprintln!("census: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run() -> Result<()> {
    match Arguments::parse().command {
        Command::Take { file } => {
            let census = collect::take()?;
            let text = serde_json::to_string_pretty(&census).context("cannot write the census as JSON")?;
            fs::write(&file, text).with_context(|| format!("cannot write {}", file.display()))?;
            println!("census: {} things counted", census.len());
            Ok(())
        }
        Command::Compare { file, patience } => {
            let text = fs::read_to_string(&file).with_context(|| format!("cannot read {}", file.display()))?;
            let before: Census =
                serde_json::from_str(&text).with_context(|| format!("cannot parse {}", file.display()))?;
            let until = Instant::now() + Duration::from_secs(patience);
            let differences = loop {
                let differences = collect::take()?.left_since(&before);
                if differences.is_empty() || Instant::now() >= until {
                    break differences;
                }
                sleep(Duration::from_millis(200));
            };
            for difference in &differences {
                println!("census: {difference}");
            }
            if !differences.is_empty() {
                bail!("the machine is not as it was: {} differences", differences.len());
            }
            println!("census: nothing was left");
            Ok(())
        }
    }
}
