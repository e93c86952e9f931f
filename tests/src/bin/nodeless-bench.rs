//! The benchmarks' program; `hack/bench` prepares the machine and calls it.

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context, Result};
use clap::{Args, Parser, Subcommand};
use tests::bench::figure::Figure;
use tests::bench::snapshot::Picture;
use tests::bench::{self, oci};

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
    /// Sandboxes made, run and destroyed without pause, on this host; and the same beside idle ones.
    LaunchRate(LaunchRate),
    /// A program asked for in a running container -> its exit known, on this host.
    Exec(Exec),
    /// Memory that idle pods cost, on this host.
    Density(Density),
    /// Many pods asked to go -> all that they held released, on this host.
    Teardown(Teardown),
    /// An agent started again over running pods -> all of them taken back, on this host.
    Restart(Restart),
    /// A layer of a real image -> a snapshot on the disk, on this host.
    Convert(Convert),
    /// What the snapshot of a real image takes on the disk.
    Store(Store),
    /// An image of ten layers that is here -> its root, on this host.
    Mount(Mount),
    /// An image in a registry -> the first byte of its container, on this host.
    Pull(Pull),
    /// Makes the root file system that the benchmarks of sandboxes run; their scripts call it.
    #[command(hide = true)]
    Rootfs {
        /// Where.
        dir: std::path::PathBuf,
    },
    /// Carries out orders of standard input with one peer; the benchmarks call it.
    #[command(hide = true)]
    Peer {
        /// NAME=PROGRAM=DIR.
        #[arg(value_parser = peer)]
        peer: oci::Peer,
    },
    /// Carries out orders of standard input with as little as the kernel needs; the benchmarks call it.
    #[command(hide = true)]
    Floor {
        /// An EROFS layer of what `rootfs` makes.
        #[arg(long)]
        layer: PathBuf,
        /// An empty directory.
        #[arg(long)]
        dir: PathBuf,
    },
    /// A network namespace that is given up when standard input ends; the benchmarks call it.
    #[command(hide = true)]
    Fence,
    /// The same with an instance of containerd.
    #[command(hide = true)]
    Containerd {
        /// An empty directory.
        dir: PathBuf,
        /// An image archive.
        image: PathBuf,
    },
}

/// What the benchmarks of sandboxes on this host share.
#[derive(Args)]
struct Host {
    /// The static shim.
    #[arg(long)]
    shim: PathBuf,
    /// An EROFS layer of what `rootfs` makes.
    #[arg(long)]
    layer: PathBuf,
    /// An empty directory.
    #[arg(long)]
    dir: PathBuf,
    /// An OCI runtime to measure beside it, NAME=PROGRAM=DIR; the directory holds `rootfs`, bundles are made in it.
    #[arg(long, value_parser = peer)]
    peer: Vec<oci::Peer>,
    /// Only this figure, or all of them.
    #[arg(long)]
    only: Vec<String>,
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
    #[command(flatten)]
    host: Host,
    /// Launches one after the other.
    #[arg(long, default_value_t = 200)]
    singles: usize,
    /// Launches at once.
    #[arg(long, default_value_t = 200)]
    burst: usize,
}

#[derive(Args)]
struct LaunchRate {
    #[command(flatten)]
    host: Host,
    /// How long each side works.
    #[arg(long, default_value_t = 4)]
    seconds: u64,
    /// Idle sandboxes beside which the rate is measured again.
    #[arg(long, default_value_t = 500)]
    idle: usize,
    /// Workers on either side, instead of the number that serves best.
    #[arg(long)]
    workers: Option<usize>,
}

#[derive(Args)]
struct Exec {
    #[command(flatten)]
    host: Host,
    /// Execs one after the other.
    #[arg(long, default_value_t = 200)]
    count: usize,
}

/// containerd as a peer.
#[derive(Args)]
struct Containerd {
    /// An empty directory for an instance of containerd to measure beside it.
    #[arg(long, requires = "containerd_image")]
    containerd: Option<PathBuf>,
    /// The archive of an image `bench:1` of what `rootfs` makes.
    #[arg(long)]
    containerd_image: Option<PathBuf>,
}

#[derive(Args)]
struct Density {
    #[command(flatten)]
    host: Host,
    #[command(flatten)]
    containerd: Containerd,
    /// Pods of ours.
    #[arg(long, default_value_t = 500)]
    pods: usize,
    /// Containers of the peer.
    #[arg(long, default_value_t = 100)]
    peer_containers: usize,
}

#[derive(Args)]
struct Teardown {
    #[command(flatten)]
    host: Host,
    #[command(flatten)]
    containerd: Containerd,
    /// Pods at once.
    #[arg(long, default_value_t = 100)]
    pods: usize,
    /// How often ours is repeated.
    #[arg(long, default_value_t = 5)]
    rounds: usize,
}

#[derive(Args)]
struct Restart {
    /// An image with busybox, `oci-layout:DIR`.
    #[arg(long)]
    image: String,
    /// Only this figure, or all of them.
    #[arg(long)]
    only: Vec<String>,
    /// Pods.
    #[arg(long, default_value_t = 110)]
    pods: usize,
    /// How often the agent is killed and started again.
    #[arg(long, default_value_t = 5)]
    rounds: usize,
}

/// What the benchmarks of images share.
#[derive(Args)]
struct Pictured {
    /// What `hack/lib/pictures.sh` makes.
    #[arg(long)]
    picture: PathBuf,
    /// An empty directory.
    #[arg(long)]
    dir: PathBuf,
    /// Only this figure, or all of them.
    #[arg(long)]
    only: Vec<String>,
}

#[derive(Args)]
struct Convert {
    #[command(flatten)]
    pictured: Pictured,
    /// Turns.
    #[arg(long, default_value_t = 5)]
    rounds: usize,
}

#[derive(Args)]
struct Store {
    #[command(flatten)]
    pictured: Pictured,
}

#[derive(Args)]
struct Mount {
    #[command(flatten)]
    host: Host,
    #[command(flatten)]
    containerd: Containerd,
    /// Layers above the lowest, which is `--layer`.
    #[arg(long)]
    upper: Vec<PathBuf>,
}

#[derive(Args)]
struct Pull {
    #[command(flatten)]
    host: Host,
    #[command(flatten)]
    containerd: Containerd,
    /// The image, HOST:PORT/NAME:TAG.
    #[arg(long)]
    image: String,
    /// An empty directory for skopeo, umoci and runc to be measured beside it.
    #[arg(long)]
    programs: Option<PathBuf>,
    /// Turns.
    #[arg(long, default_value_t = 5)]
    rounds: usize,
}

impl Containerd {
    fn given(self) -> Option<bench::containerd::Containerd> {
        Some(bench::containerd::Containerd { dir: self.containerd?, image: self.containerd_image? })
    }
}

fn peer(text: &str) -> Result<oci::Peer, String> {
    let parts: Vec<&str> = text.splitn(3, '=').collect();
    let [name, program, dir] = parts[..] else { return Err("write NAME=PROGRAM=DIR".to_owned()) };
    Ok(oci::Peer { name: name.to_owned(), program: program.into(), dir: dir.into() })
}

impl Host {
    /// What is measured on, and which figures.
    fn split(self) -> (bench::host::Host, Vec<String>) {
        let Self { shim, layer, dir, peer, only } = self;
        (bench::host::Host { shim, layer, dir, peers: peer }, only)
    }
}

fn main() -> ExitCode {
    // Before there is any thread: a converter gives up its privileges.
    if std::env::args().nth(1).is_some_and(|argument| argument == bench::snapshot::CONVERT) {
        return image_snapshot::convert::run_converter();
    }
    match obey_or_measure() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("Error: {error:?}");
            ExitCode::FAILURE
        }
    }
}

fn obey_or_measure() -> Result<()> {
    match Cli::parse().command {
        // In a process of one thread.
        Command::Floor { layer, dir } => bench::floor::Floor { layer, dir }.obey(),
        command => measure(command),
    }
}

#[tokio::main]
async fn measure(command: Command) -> Result<()> {
    match command {
        Command::List => bench::figures().for_each(|figure| println!("{}", figure.name)),
        Command::Start(args) => start(args).await?,
        Command::Launch(Launch { host, singles, burst }) => {
            let (host, only) = host.split();
            print(bench::launch::run(&bench::launch::Options { host, singles, burst }, wanted(&only)).await?)?;
        }
        Command::LaunchRate(LaunchRate { host, seconds, idle, workers }) => {
            let (host, only) = host.split();
            let options = bench::rate::Options { host, duration: Duration::from_secs(seconds), idle, workers };
            print(bench::rate::run(&options, wanted(&only)).await?)?;
        }
        Command::Exec(Exec { host, count }) => {
            let (host, only) = host.split();
            print(bench::exec::run(&bench::exec::Options { host, count }, wanted(&only)).await?)?;
        }
        Command::Density(Density { host, containerd, pods, peer_containers }) => {
            let (host, only) = host.split();
            let options = bench::density::Options { host, containerd: containerd.given(), pods, peer_containers };
            print(bench::density::run(&options, wanted(&only)).await?)?;
        }
        Command::Teardown(Teardown { host, containerd, pods, rounds }) => {
            let (host, only) = host.split();
            let options = bench::teardown::Options { host, containerd: containerd.given(), pods, rounds };
            print(bench::teardown::run(&options, wanted(&only)).await?)?;
        }
        Command::Restart(Restart { image, only, pods, rounds }) => {
            let options = bench::restart::Options { image, pods, rounds };
            print(bench::restart::run(&options, wanted(&only)).await?)?;
        }
        Command::Convert(Convert { pictured: Pictured { picture, dir, only }, rounds }) => {
            let options = bench::convert::Options { picture: Picture { dir: picture }, dir, rounds };
            print(bench::convert::run(&options, wanted(&only)).await?)?;
        }
        Command::Store(Store { pictured: Pictured { picture, dir, only } }) => {
            let options = bench::store::Options { picture: Picture { dir: picture }, dir };
            print(bench::store::run(&options, wanted(&only)).await?)?;
        }
        Command::Mount(Mount { host, containerd, upper }) => {
            let (host, only) = host.split();
            let options = bench::mount::Options { host, layers: upper, containerd: containerd.given() };
            print(bench::mount::run(&options, wanted(&only)).await?)?;
        }
        Command::Pull(Pull { host, containerd, image, programs, rounds }) => {
            let (host, only) = host.split();
            let options = bench::pull::Options { host, image, containerd: containerd.given(), programs, rounds };
            print(bench::pull::run(&options, wanted(&only)).await?)?;
        }
        Command::Rootfs { dir } => bench::rootfs::write(&dir).context("make the benchmarks' root")?,
        Command::Peer { peer } => peer.obey()?,
        Command::Floor { layer, dir } => bench::floor::Floor { layer, dir }.obey()?,
        Command::Fence => bench::released::fence::stand()?,
        Command::Containerd { dir, image } => bench::containerd::Containerd { dir, image }.obey()?,
    }
    Ok(())
}

fn wanted(only: &[String]) -> impl Fn(&str) -> bool {
    |name| only.is_empty() || only.iter().any(|one| one == name)
}

fn print(figures: Vec<Figure>) -> Result<()> {
    for figure in figures {
        println!("{}", serde_json::to_string(&figure)?);
    }
    Ok(())
}

async fn start(args: Start) -> Result<()> {
    let client = kube::Client::try_default().await.context("connect to the cluster named by KUBECONFIG")?;
    let Start { node, peer, image, only, singles, burst, no_token, command } = args;
    let options = bench::start::Options { node, peers: peer, image, command, singles, burst, token: !no_token };
    print(bench::start::run(client, &options, wanted(&only)).await?)
}
