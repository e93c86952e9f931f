//! The benchmarks' program; `hack/bench` prepares the machine and calls it.

use anyhow::{Context, Result};
use clap::{Args, Parser, Subcommand};
use tests::bench;

/// Idle until SIGTERM, then ends at once: PID 1 ignores signals that it has no handler for.
const ENDS_ON_TERM: [&str; 3] = ["sh", "-c", "trap 'exit 0' TERM; sleep 3600 & wait"];

#[derive(Parser)]
#[command(about = "Measures a node; prints one JSON object a line")]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Prints the names of all figures.
    List,
    /// Pod created -> Running, one after the other and many at once; and deleted -> gone.
    Start(Start),
}

#[derive(Args)]
struct Start {
    /// The node's name.
    #[arg(long)]
    node: String,
    /// Another node of the cluster to measure beside it.
    #[arg(long)]
    peer: Vec<String>,
    /// An image that the nodes can pull.
    #[arg(long)]
    image: String,
    /// Only this figure, or all of them.
    #[arg(long)]
    only: Vec<String>,
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
}

#[tokio::main]
async fn main() -> Result<()> {
    match Cli::parse().command {
        Command::List => bench::figures().for_each(|figure| println!("{}", figure.name)),
        Command::Start(args) => start(args).await?,
    }
    Ok(())
}

async fn start(args: Start) -> Result<()> {
    let client = kube::Client::try_default().await.context("connect to the cluster named by KUBECONFIG")?;
    let Start { node, peer, image, only, singles, burst, no_token, command } = args;
    let options = bench::start::Options { node, peers: peer, image, command, singles, burst, token: !no_token };
    let wanted = |name: &str| only.is_empty() || only.iter().any(|one| one == name || one == "start");
    for figure in bench::start::run(client, &options, wanted).await? {
        println!("{}", serde_json::to_string(&figure)?);
    }
    Ok(())
}
