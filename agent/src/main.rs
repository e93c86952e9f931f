//! The agent of one host.

use std::process::ExitCode;

use agent::config::{Cli, Command, Config, JoinFlags, LogFormat, default_host_id};
use agent::link::{self, JoinOptions};
use agent::{observe, reset, run};
use agent_api::identity::{HostId, SpkiHash};
use agent_api::trace::Exporter;
use anyhow::Context as _;
use clap::Parser as _;
use tokio::runtime::Runtime;
use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;

fn main() -> anyhow::Result<ExitCode> {
    let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
    match Cli::parse().command {
        Command::Run(flags) => {
            let host_id = flags.host_id.clone();
            let config = Config::load(*flags).context("configuration")?;
            let runtime = runtime()?;
            let exporter = exporter(&config, &runtime)?;
            observe::init(config.log_format, exporter.as_ref());
            tracing::info!(?config, "nodeless-agent starts");
            let end = runtime.block_on(daemon(config, host_id));
            if let Some(exporter) = exporter {
                exporter.flush();
            }
            end?;
        }
        Command::Join(flags) => {
            observe::init(LogFormat::Text, None);
            runtime()?.block_on(join(flags))?;
        }
        Command::Reset(flags) => {
            let config = Config::load(*flags).context("configuration")?;
            observe::init(config.log_format, None);
            runtime()?.block_on(reset::run(&config)).context("reset")?;
        }
        Command::ConvertLayer => return Ok(image_snapshot::convert::run_converter()),
    }
    Ok(ExitCode::SUCCESS)
}

fn runtime() -> anyhow::Result<Runtime> {
    tokio::runtime::Builder::new_multi_thread().enable_all().build().context("start the runtime")
}

fn exporter(config: &Config, runtime: &Runtime) -> anyhow::Result<Option<Exporter>> {
    let _guard = runtime.enter();
    config.otlp_endpoint.as_deref().map(|to| Exporter::new(to, "nodeless-agent")).transpose().context("--otlp-endpoint")
}

async fn daemon(config: Config, host_id: Option<String>) -> anyhow::Result<()> {
    let stop = CancellationToken::new();
    let mut terminate = signal(SignalKind::terminate()).context("listen for SIGTERM")?;
    let mut interrupt = signal(SignalKind::interrupt()).context("listen for SIGINT")?;
    let asked = stop.clone();
    tokio::spawn(async move {
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
        tracing::info!("asked to end");
        asked.cancel();
    });
    Box::pin(run::run(config, host_id, stop)).await.context("nodeless-agent")
}

async fn join(flags: JoinFlags) -> anyhow::Result<()> {
    let ca_hash: SpkiHash = flags.ca_hash.parse().context("--ca-hash")?;
    let host_id = match flags.host_id {
        Some(text) => HostId::new(text).context("--host-id")?,
        None => {
            let name = rustix::system::uname().nodename().to_string_lossy().into_owned();
            default_host_id("/etc/machine-id".as_ref(), &name).context("no host id; name one with --host-id")?
        }
    };
    let options = JoinOptions {
        vkubelet: flags.vkubelet,
        token: flags.token,
        ca_hash,
        host_id,
        state_dir: flags.state_dir,
        version: env!("CARGO_PKG_VERSION").to_owned(),
    };
    let joined = Box::pin(link::join(options)).await.context("join")?;
    println!("host {} is part of node {}", joined.host_id, joined.node_name);
    Ok(())
}
