//! The benchmarks' program; `hack/bench` prepares the machine and calls it.

use anyhow::{Context, Result};
use clap::{Parser, Subcommand};

/// Idle until SIGTERM, then ends at once: PID 1 ignores signals that it has no handler for.
const ENDS_ON_TERM: [&str; 3] = ["sh", "-c", "trap 'exit 0' TERM; sleep 3600 & wait"];

#[derive(Parser)]
#[command(about = "Measures a node; prints one JSON object a line")]
struct Args {
    #[command(subcommand)]
    bench: Bench,
}

#[derive(Subcommand)]
enum Bench {
    /// Pod created -> Running, one after the other and many at once.
    Start {
        /// The node's name.
        #[arg(long)]
        node: String,
        /// An image that the node can pull.
        #[arg(long)]
        image: String,
        /// Pods one after the other.
        #[arg(long, default_value_t = 50)]
        singles: usize,
        /// Pods at once.
        #[arg(long, default_value_t = 100)]
        burst: usize,
        /// Without the service-account token volume.
        #[arg(long)]
        no_token: bool,
        /// The container's command.
        #[arg(last = true, default_values_t = ENDS_ON_TERM.map(str::to_owned))]
        command: Vec<String>,
    },
}

#[tokio::main]
async fn main() -> Result<()> {
    let args = Args::parse();
    let client = kube::Client::try_default().await.context("connect to the cluster named by KUBECONFIG")?;
    let figures = match args.bench {
        Bench::Start { node, image, singles, burst, no_token, command } => {
            let options = tests::bench::start::Options { node, image, command, singles, burst, token: !no_token };
            tests::bench::start::run(client, &options).await?
        }
    };
    for figure in figures {
        println!("{}", serde_json::to_string(&figure)?);
    }
    Ok(())
}
