//! The API server's own count of what is written for pods.

use std::ops::Sub;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use kube::Client;

/// Counts that stay the same for this long are final; asked for no longer than [`PATIENCE`].
const QUIET: Duration = Duration::from_secs(2);
const PATIENCE: Duration = Duration::from_secs(30);

/// Writes of all clients.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub(super) struct Writes {
    /// Of the status of pods.
    pub(super) status: f64,
    /// Service-account tokens asked for.
    pub(super) tokens: f64,
    /// Events.
    pub(super) events: f64,
}

impl Sub for Writes {
    type Output = Self;

    fn sub(self, before: Self) -> Self {
        Self {
            status: self.status - before.status,
            tokens: self.tokens - before.tokens,
            events: self.events - before.events,
        }
    }
}

/// The counts, once they are at rest.
pub(super) async fn settled(client: &Client) -> Result<Writes> {
    let began = Instant::now();
    let mut last = read(client).await?;
    let mut since = Instant::now();
    while since.elapsed() < QUIET && began.elapsed() < PATIENCE {
        tokio::time::sleep(Duration::from_millis(250)).await;
        let now = read(client).await?;
        if now != last {
            (last, since) = (now, Instant::now());
        }
    }
    Ok(last)
}

async fn read(client: &Client) -> Result<Writes> {
    let text = client.request_text(http::Request::get("/metrics").body(vec![])?).await.context("read /metrics")?;
    Ok(count(&text))
}

fn count(metrics: &str) -> Writes {
    let mut writes = Writes::default();
    for line in metrics.lines().filter(|l| l.starts_with("apiserver_request_total{")) {
        let Some((labels, value)) = line.rsplit_once(' ') else {
            continue;
        };
        let has = |pair: &str| labels.contains(pair);
        // APPLY is a PATCH too, and the API server counts it apart.
        if !["PATCH", "PUT", "POST", "APPLY"].iter().any(|verb| has(&format!("verb=\"{verb}\""))) {
            continue;
        }
        let value = value.parse::<f64>().unwrap_or_default();
        if has("resource=\"pods\"") && has("subresource=\"status\"") {
            writes.status += value;
        } else if has("resource=\"serviceaccounts\"") && has("subresource=\"token\"") {
            writes.tokens += value;
        } else if has("resource=\"events\"") {
            writes.events += value;
        }
    }
    writes
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_writes_of_the_three_kinds_are_counted() {
        let metrics = "\
apiserver_request_total{code=\"200\",resource=\"pods\",scope=\"resource\",subresource=\"status\",verb=\"PATCH\"} 3\n\
apiserver_request_total{code=\"409\",resource=\"pods\",scope=\"resource\",subresource=\"status\",verb=\"PATCH\"} 1\n\
apiserver_request_total{code=\"200\",resource=\"pods\",scope=\"resource\",subresource=\"status\",verb=\"APPLY\"} 1\n\
apiserver_request_total{code=\"200\",resource=\"pods\",scope=\"resource\",subresource=\"\",verb=\"GET\"} 9\n\
apiserver_request_total{code=\"201\",resource=\"pods\",scope=\"resource\",subresource=\"\",verb=\"POST\"} 9\n\
apiserver_request_total{code=\"201\",resource=\"serviceaccounts\",subresource=\"token\",verb=\"POST\"} 2\n\
apiserver_request_total{code=\"201\",resource=\"events\",subresource=\"\",verb=\"POST\"} 4\n";
        assert_eq!(count(metrics), Writes { status: 5.0, tokens: 2.0, events: 4.0 });
    }
}
