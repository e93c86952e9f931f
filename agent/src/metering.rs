//! The meter as pod tasks see it, and what it asks of sandboxes and network.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use agent_api::usage::Held;
use async_trait::async_trait;
use sandbox::contract::Sandboxes;
use sandbox::spec::SandboxId;
use tokio::sync::Mutex;

use crate::meter::{self, Meter, MeterError, UsedNow, UsedProvider};
use crate::network::{Network, Traffic};
use crate::ports::{Interval, Metered, Metering, PortError};

/// How long one look at all links serves.
const TRAFFIC_AGE: Duration = Duration::from_secs(1);

/// The real meter.
#[derive(Debug, Clone)]
pub struct PodMeter(pub Arc<Meter>);

fn metered(at: meter::Instant) -> Metered {
    Metered { boottime_ns: at.boottime_ns, wall_ns: at.wall_ns }
}

fn held(interval: &Interval) -> Held {
    Held {
        milli_cpu: interval.milli_cpu,
        memory_bytes: interval.memory_bytes,
        ephemeral_bytes: interval.ephemeral_bytes,
        gpus: 0,
    }
}

#[async_trait]
impl Metering for PodMeter {
    async fn start(&self, interval: &Interval) -> Result<Metered, PortError> {
        let interval = meter::Interval {
            pod_uid: interval.pod_uid.clone(),
            pod_namespace: interval.pod_namespace.clone(),
            pod_name: interval.pod_name.clone(),
            sandbox_id: interval.sandbox.0.clone(),
            held: held(interval),
            sandbox_kind: "namespace".to_owned(),
            price_class: "on-demand".to_owned(),
            images: interval.images.clone(),
        };
        self.0.start(interval).await.map(metered).map_err(|error| PortError::new("start of the meter", &error))
    }

    async fn resize(&self, interval: &Interval) -> Result<(), PortError> {
        let resized = self.0.resize(&interval.sandbox.0, held(interval)).await;
        resized.map(drop).map_err(|error| PortError::new("change of what is metered", &error))
    }

    async fn look(&self, sandbox: &SandboxId) {
        self.0.look(&sandbox.0).await;
    }

    async fn stop(&self, sandbox: &SandboxId) -> Result<Metered, PortError> {
        match self.0.stop(&sandbox.0, None).await {
            Ok(at) => Ok(metered(at)),
            // Its start never became durable, or its records are of another boot: nothing is being billed.
            Err(MeterError::Unknown { .. }) => {
                let now = crate::clock::Now::read();
                Ok(Metered { boottime_ns: now.boottime_ns, wall_ns: now.wall_ns })
            }
            Err(error) => Err(PortError::new("stop of the meter", &error)),
        }
    }

    async fn adopt(&self, live: &[SandboxId]) -> Result<(), PortError> {
        let live: Vec<String> = live.iter().map(|id| id.0.clone()).collect();
        let adopted =
            self.0.adopt(&live, &[]).await.map_err(|error| PortError::new("adoption by the meter", &error))?;
        for sandbox in &adopted.unmetered {
            tracing::warn!(sandbox.id = sandbox, "a live sandbox was not metered");
        }
        Ok(())
    }
}

/// Counters of sandboxes, from their cgroups and links.
pub struct Counters {
    sandboxes: Arc<dyn Sandboxes>,
    network: Network,
    traffic: Mutex<Option<(Instant, BTreeMap<String, Traffic>)>>,
}

impl std::fmt::Debug for Counters {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Counters").finish_non_exhaustive()
    }
}

impl Counters {
    /// Of these sandboxes.
    pub fn new(sandboxes: Arc<dyn Sandboxes>, network: Network) -> Self {
        Self { sandboxes, network, traffic: Mutex::default() }
    }

    async fn traffic(&self, sandbox: &str) -> Traffic {
        let mut cached = self.traffic.lock().await;
        let fresh = cached.as_ref().is_some_and(|(at, _)| at.elapsed() < TRAFFIC_AGE);
        if !fresh {
            match self.network.traffic().await {
                Ok(all) => *cached = Some((Instant::now(), all)),
                Err(error) => tracing::debug!(error = crate::errors::chain(&error), "links cannot be counted now"),
            }
        }
        cached.as_ref().and_then(|(_, all)| all.get(sandbox).copied()).unwrap_or_default()
    }
}

#[async_trait]
impl UsedProvider for Counters {
    async fn used(&self, sandbox_id: &str) -> Option<UsedNow> {
        let stats = self.sandboxes.stats(&SandboxId(sandbox_id.to_owned())).await.ok()?;
        let traffic = self.traffic(sandbox_id).await;
        Some(UsedNow {
            cpu_ns: stats.pod.cpu_ns,
            memory_bytes: stats.pod.memory_bytes,
            network_rx_bytes: traffic.rx_bytes,
            network_tx_bytes: traffic.tx_bytes,
        })
    }
}
