//! `vkubelet`: the virtual node's daemon.

use std::process::ExitCode;

use agent_api::trace::Exporter;
use anyhow::Context;
use clap::Parser;
use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;
use vkubelet::config::{Cli, Command, Config, HostCommand, RunFlags, TokenCommand};
use vkubelet::hosts::roster;
use vkubelet::hosts::tokens::{self, TokenOptions};
use vkubelet::{hosts, observe, run};

fn main() -> ExitCode {
    match start() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            // The chain of causes on one line; a backtrace helps nobody who runs a daemon.
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn start() -> anyhow::Result<()> {
    let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
    let cli = Cli::parse();
    match cli.command {
        None => daemon(cli.run),
        Some(Command::Run(flags)) => daemon(*flags),
        Some(Command::CaHash(state)) => {
            println!("{}", hosts::ca_hash(&state.state_dir).context("read the CA")?);
            Ok(())
        }
        Some(Command::Manifests { node_name }) => {
            print!("{}", vkubelet::snapshots::manifests(&node_name).context("write the manifests")?);
            Ok(())
        }
        Some(Command::Host { command }) => host(command),
        Some(Command::Token { command: TokenCommand::Create { ttl, uses, host_id, rejoin, state } }) => {
            let options = TokenOptions { ttl, uses, rejoin, host_id };
            println!("{}", tokens::create(&state.state_dir, &options).context("make a token")?);
            Ok(())
        }
    }
}

fn host(command: HostCommand) -> anyhow::Result<()> {
    match command {
        HostCommand::List(state) => {
            for (host_id, host) in roster::read(&state.state_dir).context("read the enrolled hosts")? {
                let state = if host.revoked_unix.is_some() { "revoked" } else { "enrolled" };
                println!("{host_id}\t{state}\t{}", host.key);
            }
            Ok(())
        }
        HostCommand::Revoke { host_id, state } => {
            let now = std::time::SystemTime::now().duration_since(std::time::SystemTime::UNIX_EPOCH)?;
            let known = roster::revoke(&state.state_dir, &host_id, now.as_secs()).context("revoke the host")?;
            anyhow::ensure!(known, "no host {host_id} is enrolled here");
            Ok(())
        }
    }
}

fn daemon(flags: RunFlags) -> anyhow::Result<()> {
    let config = Config::load(flags)?;
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().context("start the runtime")?;
    let exporter = {
        let _guard = runtime.enter();
        let endpoint = config.otlp_endpoint.as_deref();
        endpoint.map(|to| Exporter::new(to, "vkubelet")).transpose().context("--otlp-endpoint")?
    };
    observe::init(config.log_format, exporter.as_ref());
    tracing::info!(?config, "vkubelet starts");
    let end = runtime.block_on(async {
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
        Box::pin(run::run(config, stop)).await.map_err(anyhow::Error::from)
    });
    if let Some(exporter) = exporter {
        exporter.flush();
    }
    end
}
