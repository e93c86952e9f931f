//! The benchmarks' program; `hack/bench` prepares the machine and calls it.

use std::path::PathBuf;

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
    /// A sandbox asked for -> the first byte of its container, on this host.
    Launch(Launch),
    /// Launches by one peer, one for each line of standard input; `launch` calls it.
    LaunchPeer {
        /// NAME=PROGRAM=BUNDLE.
        #[arg(long, value_parser = peer)]
        peer: bench::launch::oci::Peer,
    },
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

#[derive(Args)]
struct Launch {
    /// The static shim.
    #[arg(long)]
    shim: PathBuf,
    /// An EROFS layer with /bin/echo.
    #[arg(long)]
    layer: PathBuf,
    /// An empty directory.
    #[arg(long)]
    dir: PathBuf,
    /// An OCI runtime to measure beside it, NAME=PROGRAM=BUNDLE; the bundle holds `rootfs`, its config.json is written.
    #[arg(long, value_parser = peer)]
    peer: Vec<bench::launch::oci::Peer>,
    /// Only this figure, or all of them.
    #[arg(long)]
    only: Vec<String>,
    /// Launches one after the other.
    #[arg(long, default_value_t = 200)]
    singles: usize,
    /// Launches at once.
    #[arg(long, default_value_t = 200)]
    burst: usize,
}

fn peer(text: &str) -> Result<bench::launch::oci::Peer, String> {
    let parts: Vec<&str> = text.splitn(3, '=').collect();
    let [name, program, bundle] = parts[..] else { return Err("write NAME=PROGRAM=BUNDLE".to_owned()) };
    Ok(bench::launch::oci::Peer { name: name.to_owned(), program: program.into(), bundle: bundle.into() })
}

#[tokio::main]
async fn main() -> Result<()> {
    match Cli::parse().command {
        Command::List => bench::figures().for_each(|figure| println!("{}", figure.name)),
        Command::Start(args) => start(args).await?,
        Command::Launch(args) => launch(args).await?,
        Command::LaunchPeer { peer } => peer.obey()?,
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

async fn launch(args: Launch) -> Result<()> {
    let Launch { shim, layer, dir, peer, only, singles, burst } = args;
    for one in &peer {
        bench::launch::oci::write_config(&one.bundle, &format!("/nodeless-bench-peer/{}", one.name))?;
    }
    let options = bench::launch::Options { shim, layer, dir, peers: peer, singles, burst };
    let wanted = |name: &str| only.is_empty() || only.iter().any(|one| one == name || one == "launch");
    for figure in bench::launch::run(&options, wanted).await? {
        println!("{}", serde_json::to_string(&figure)?);
    }
    Ok(())
}
