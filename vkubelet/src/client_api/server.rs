//! The Unix socket and who may use it.

use std::io;
use std::time::Duration;

use tokio::net::{UnixListener, UnixStream};
use tokio_util::sync::CancellationToken;

use super::{ClientApi, router};

/// Serves until `stop`.
pub async fn serve(listener: UnixListener, api: ClientApi, stop: CancellationToken) {
    let admitted = Admitted { listener, own_uid: rustix::process::geteuid().as_raw() };
    tokio::select! {
        // Infinite streams (logs, watches) end with the daemon.
        _ = axum::serve(admitted, router(api)).into_future() => {}
        () = stop.cancelled() => {}
    }
}

struct Admitted {
    listener: UnixListener,
    own_uid: u32,
}

impl axum::serve::Listener for Admitted {
    type Io = UnixStream;
    type Addr = tokio::net::unix::SocketAddr;

    async fn accept(&mut self) -> (Self::Io, Self::Addr) {
        loop {
            match self.listener.accept().await {
                Ok((stream, address)) => match stream.peer_cred() {
                    Ok(peer) if peer.uid() == 0 || peer.uid() == self.own_uid => return (stream, address),
                    Ok(peer) => tracing::warn!(peer.uid = peer.uid(), "refused a client of another user"),
                    Err(error) => {
                        tracing::warn!(
                            error = &error as &dyn std::error::Error,
                            "refused a client that cannot be identified"
                        );
                    }
                },
                Err(error) => {
                    tracing::warn!(error = &error as &dyn std::error::Error, "client could not be accepted");
                    tokio::time::sleep(Duration::from_millis(50)).await;
                }
            }
        }
    }

    fn local_addr(&self) -> io::Result<Self::Addr> {
        self.listener.local_addr()
    }
}
