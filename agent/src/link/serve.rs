//! One connection to vkubelet, for ever.

use std::path::PathBuf;
use std::sync::{Mutex, PoisonError};
use std::time::Instant;

use agent_api::identity::tls::{self, HANDSHAKE_TIMEOUT};
use agent_api::transport::preamble::{Preamble, PreambleError};
use agent_api::transport::{self};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tonic::service::Routes;

use super::backoff::{Backoff, SETTLED};
use super::dial::{self, DialError};
use super::identity::LinkIdentity;
use super::renew;

/// What the link needs.
#[derive(Debug, Clone)]
pub struct LinkConfig {
    /// Who we are; see [`super::load`].
    pub identity: LinkIdentity,
    /// `HOST:PORT` that decides over the one remembered by the join.
    pub vkubelet: Option<String>,
    /// The agent's state directory, where a renewed certificate goes.
    pub state_dir: PathBuf,
    /// Our version, for people.
    pub version: String,
}

/// How the link stands.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub enum LinkState {
    /// Dialling for the first time.
    #[default]
    Connecting,
    /// vkubelet has welcomed us on this connection.
    Connected,
    /// The last attempt or connection ended; dialling goes on.
    Disconnected {
        /// Why, with its causes, for people.
        reason: String,
        /// An operator must act.
        needs_operator: bool,
    },
}

/// Keeps one connection to vkubelet and serves `routes` on it until `shutdown` is cancelled. `state` tells how it stands.
/// Never gives up: whatever is wrong may be put right while pods run.
pub async fn serve(config: LinkConfig, routes: Routes, state: watch::Sender<LinkState>, shutdown: CancellationToken) {
    let address = config.vkubelet.unwrap_or_else(|| config.identity.vkubelet.clone());
    let identity = Mutex::new(config.identity);
    tokio::select! {
        () = keep_connected(&identity, &address, routes, state, shutdown) => {}
        () = renew::keep_fresh(&identity, &address, &config.state_dir, &config.version) => {}
    }
}

async fn keep_connected(
    identity: &Mutex<LinkIdentity>,
    address: &str,
    routes: Routes,
    state: watch::Sender<LinkState>,
    shutdown: CancellationToken,
) {
    let mut backoff = Backoff::default();
    while !shutdown.is_cancelled() {
        let began = Instant::now();
        let current = identity.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let once = connect(&current, address, routes.clone(), &state, shutdown.clone());
        let (reason, needs_operator) = match Box::pin(once).await {
            Ok(reason) => (reason, false),
            Err(error) => (with_causes(&error), error.needs_operator()),
        };
        if shutdown.is_cancelled() {
            return;
        }
        let was_connected = *state.borrow() == LinkState::Connected;
        if was_connected && began.elapsed() >= SETTLED {
            backoff.reset();
        }
        let wait = backoff.next(random());
        report(&state, address, reason, needs_operator);
        tokio::select! {
            () = shutdown.cancelled() => return,
            () = tokio::time::sleep(wait) => {}
        }
    }
}

/// One connection. `Ok`: it stood, and ended for this reason.
async fn connect(
    identity: &LinkIdentity,
    address: &str,
    routes: Routes,
    state: &watch::Sender<LinkState>,
    shutdown: CancellationToken,
) -> Result<String, DialError> {
    let tls = tls::agent(&identity.ca_pem, &identity.certificate_pem, &identity.key_pem);
    let config = tls.map_err(DialError::Identity)?;
    let establish = async {
        let mut stream = dial::dial(address, config).await?;
        let welcome = tokio::time::timeout(HANDSHAKE_TIMEOUT, Preamble::read(&mut stream)).await;
        match welcome.map_err(|_| DialError::Timeout { address: address.to_owned() })? {
            Ok(Preamble::Welcome) => Ok(stream),
            Ok(Preamble::Refused { code, message }) => {
                Err(DialError::Refused { address: address.to_owned(), code, message })
            }
            Err(PreambleError::Read(source)) => Err(DialError::of_tls(address, source)),
            Err(source) => Err(DialError::Welcome { address: address.to_owned(), source }),
        }
    };
    let stream = tokio::select! {
        () = shutdown.cancelled() => return Ok("shutting down".to_owned()),
        established = establish => established?,
    };
    tracing::info!(host.id = %identity.host_id, address, "connected to vkubelet");
    state.send_replace(LinkState::Connected);
    let serving = transport::serve(stream, routes, shutdown).await;
    let link = serving.map_err(|source| DialError::Serve { address: address.to_owned(), source })?;
    Ok(link.last_error().unwrap_or_else(|| "closed by vkubelet".to_owned()))
}

/// Says a reason once, not once for each attempt.
fn report(state: &watch::Sender<LinkState>, address: &str, reason: String, needs_operator: bool) {
    let now = LinkState::Disconnected { reason, needs_operator };
    if *state.borrow() == now {
        return;
    }
    if let LinkState::Disconnected { reason, .. } = &now {
        if needs_operator {
            tracing::error!(address, reason, "no connection to vkubelet, and dialling again will not help by itself");
        } else {
            tracing::warn!(address, reason, "no connection to vkubelet");
        }
    }
    state.send_replace(now);
}

fn with_causes(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(inner) = cause {
        text.push_str(": ");
        text.push_str(&inner.to_string());
        cause = inner.source();
    }
    text
}

fn random() -> u64 {
    // Version 4 UUIDs are the randomness at hand; 6 of 128 bits are fixed, and none of them is in the lower 62.
    let (_, low) = uuid::Uuid::new_v4().as_u64_pair();
    low << 2
}
