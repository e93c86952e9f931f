//! The command line.

use std::path::PathBuf;

use clap::{Args, Parser, Subcommand, ValueEnum};

/// Where vkubelet's socket is unless told otherwise.
const SOCKET: &str = "/run/nodeless/vkubelet/vkubelet.sock";

/// Run pods on a nodeless node, and see what they do and cost.
#[derive(Debug, Parser)]
#[command(name = "nodeless", version)]
pub(crate) struct Cli {
    /// vkubelet's client socket.
    #[arg(long, global = true, env = "NODELESS_SOCKET", default_value = SOCKET)]
    pub(crate) socket: PathBuf,
    /// For people or for programs.
    #[arg(short, long, global = true, value_enum, default_value_t = Output::Table)]
    pub(crate) output: Output,
    /// What to do.
    #[command(subcommand)]
    pub(crate) command: Command,
}

/// How answers look.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Output {
    /// Aligned columns.
    Table,
    /// One JSON document.
    Json,
}

/// What to do.
#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Run an image as a pod.
    Run(Box<RunOrder>),
    /// List pods.
    Ps(PsOrder),
    /// Print a container's log.
    Logs(LogsOrder),
    /// Run a command in a container; its exit code is ours.
    Exec(ExecOrder),
    /// End pods.
    Rm(RmOrder),
    /// Show one pod: status, start timeline, events.
    Describe(PodName),
    /// Hosts: list; let held pods go.
    Hosts(HostsOrder),
    /// Images: list, pull, remove.
    Images(ImagesOrder),
    /// Show what pods are billed.
    Bill(BillOrder),
    /// Print a shell's completion script.
    Completion {
        /// Which shell.
        shell: clap_complete::Shell,
    },
}

/// A pod by name.
#[derive(Debug, Args)]
pub(crate) struct PodName {
    /// The pod.
    pub(crate) pod: String,
    /// Its namespace.
    #[arg(short, long, default_value = "default")]
    pub(crate) namespace: String,
}

/// What to run.
#[derive(Debug, Args)]
pub(crate) struct RunOrder {
    /// The image.
    pub(crate) image: String,
    /// Name of the pod [default: made of the image's name].
    #[arg(long)]
    pub(crate) name: Option<String>,
    /// Namespace of the pod.
    #[arg(short, long, default_value = "default")]
    pub(crate) namespace: String,
    /// When to start it again.
    #[arg(long, value_enum, default_value_t = Restart::Never)]
    pub(crate) restart: Restart,
    /// Environment variable, NAME=VALUE; may be repeated.
    #[arg(short, long = "env", value_name = "NAME=VALUE")]
    pub(crate) env: Vec<String>,
    /// CPU: requested and limited, such as 500m.
    #[arg(long)]
    pub(crate) cpu: Option<String>,
    /// Memory: requested and limited, such as 64Mi.
    #[arg(long)]
    pub(crate) memory: Option<String>,
    /// Show how the pod starts, follow its log, and end with its exit code.
    #[arg(short, long)]
    pub(crate) watch: bool,
    /// With --watch: remove the pod when it has ended.
    #[arg(long, requires = "watch")]
    pub(crate) rm: bool,
    /// Command and arguments instead of the image's.
    #[arg(last = true)]
    pub(crate) command: Vec<String>,
}

/// restartPolicy.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
#[value(rename_all = "PascalCase")]
pub(crate) enum Restart {
    /// Run once.
    Never,
    /// Until it succeeds.
    OnFailure,
    /// For ever.
    Always,
}

impl Restart {
    /// As Kubernetes writes it.
    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Self::Never => "Never",
            Self::OnFailure => "OnFailure",
            Self::Always => "Always",
        }
    }
}

/// Which pods.
#[derive(Debug, Args)]
pub(crate) struct PsOrder {
    /// Only this namespace.
    #[arg(short, long)]
    pub(crate) namespace: Option<String>,
    /// Also hosts, addresses and why a pod waits.
    #[arg(short, long)]
    pub(crate) wide: bool,
}

/// Which log.
#[derive(Debug, Args)]
pub(crate) struct LogsOrder {
    /// The pod.
    #[command(flatten)]
    pub(crate) pod: PodName,
    /// The container, when there are several.
    #[arg(short, long)]
    pub(crate) container: Option<String>,
    /// Go on as more is written.
    #[arg(short, long)]
    pub(crate) follow: bool,
    /// Of the container's previous life.
    #[arg(short, long)]
    pub(crate) previous: bool,
    /// With the time before each line.
    #[arg(long)]
    pub(crate) timestamps: bool,
    /// Only so many last lines.
    #[arg(long)]
    pub(crate) tail: Option<i64>,
    /// Only the last so many seconds.
    #[arg(long, value_name = "SECONDS")]
    pub(crate) since: Option<i64>,
}

/// What to run where.
#[derive(Debug, Args)]
pub(crate) struct ExecOrder {
    /// The pod.
    #[command(flatten)]
    pub(crate) pod: PodName,
    /// The container, when there are several.
    #[arg(short, long)]
    pub(crate) container: Option<String>,
    /// Pass our standard input on.
    #[arg(short = 'i', long)]
    pub(crate) stdin: bool,
    /// The command.
    #[arg(last = true, required = true)]
    pub(crate) command: Vec<String>,
}

/// Which pods to end.
#[derive(Debug, Args)]
pub(crate) struct RmOrder {
    /// The pods.
    #[arg(required = true)]
    pub(crate) pods: Vec<String>,
    /// Their namespace.
    #[arg(short, long, default_value = "default")]
    pub(crate) namespace: String,
    /// Seconds from SIGTERM to SIGKILL [default: the pod's own].
    #[arg(long)]
    pub(crate) grace: Option<u32>,
    /// Do not wait until they are gone.
    #[arg(long)]
    pub(crate) no_wait: bool,
}

/// Hosts.
#[derive(Debug, Args)]
pub(crate) struct HostsOrder {
    /// What to do; without it, list.
    #[command(subcommand)]
    pub(crate) command: Option<HostsCommand>,
}

/// What to do with hosts.
#[derive(Debug, Subcommand)]
pub(crate) enum HostsCommand {
    /// List them.
    Ls,
    /// End the pods that a host holds: they are not wanted any more, but too many at once had no deletion mark.
    Release {
        /// The host.
        host: String,
    },
}

/// Images.
#[derive(Debug, Args)]
pub(crate) struct ImagesOrder {
    /// What to do; without it, list.
    #[command(subcommand)]
    pub(crate) command: Option<ImagesCommand>,
}

/// What to do with images.
#[derive(Debug, Subcommand)]
pub(crate) enum ImagesCommand {
    /// List them.
    Ls,
    /// Make a snapshot ahead of its use.
    Pull {
        /// The image.
        image: String,
        /// Only on this host.
        #[arg(long)]
        host: Option<String>,
    },
    /// Remove one.
    Rm {
        /// The image.
        image: String,
        /// Only the copy of this namespace, as `images ls` shows it (with --image-copies=namespace) [default: every copy].
        #[arg(long, value_name = "NAMESPACE")]
        copy_of: Option<String>,
        /// Only on this host.
        #[arg(long)]
        host: Option<String>,
    },
    /// Read every layer and compare it with what was written; exit code 1 if one is not sound.
    Verify {
        /// Pull again what is damaged and not in use.
        #[arg(long)]
        repair: bool,
        /// Only on this host.
        #[arg(long)]
        host: Option<String>,
    },
    /// Remove the images that no pod uses and no ImageSnapshot pins.
    Gc {
        /// Only those that have not been used for so many seconds.
        #[arg(long, default_value_t = 120)]
        unused_for: u64,
        /// Only on this host.
        #[arg(long)]
        host: Option<String>,
    },
}

/// Whose bill.
#[derive(Debug, Args)]
pub(crate) struct BillOrder {
    /// One pod by name or UID, to this nanosecond; without it, all.
    pub(crate) pod: Option<String>,
    /// Only this namespace.
    #[arg(short, long)]
    pub(crate) namespace: Option<String>,
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn what_follows_the_dashes_is_the_command() {
        let cli = Cli::try_parse_from(["nodeless", "exec", "web", "--", "ls", "-l"]).unwrap();
        let Command::Exec(order) = cli.command else { panic!() };
        assert_eq!(order.command, ["ls", "-l"]);
        let cli = Cli::try_parse_from(["nodeless", "run", "busybox", "--restart", "OnFailure", "--", "sh"]).unwrap();
        let Command::Run(order) = cli.command else { panic!() };
        assert_eq!((order.restart, order.command), (Restart::OnFailure, vec!["sh".to_owned()]));
    }
}
