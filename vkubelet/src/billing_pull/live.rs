//! What the connected hosts say of open intervals at this nanosecond.

use std::time::{SystemTime, UNIX_EPOCH};

use agent_api::proto::{LiveUsage as Told, LiveUsageReply};
use agent_api::usage::{Held, Used};
use async_trait::async_trait;
use billing::live::{LiveError, LiveInterval, LiveUsage};
use futures::future::join_all;

use crate::hosts::Hosts;

/// Asks every connected host.
#[derive(Debug, Clone)]
pub struct HostsLive {
    hosts: Hosts,
}

impl HostsLive {
    /// Of these hosts.
    pub fn new(hosts: Hosts) -> Self {
        Self { hosts }
    }
}

#[async_trait]
impl LiveUsage for HostsLive {
    async fn live(&self, uid: &str) -> Result<Vec<LiveInterval>, LiveError> {
        let asked = self.hosts.list().into_iter().map(|host| async move {
            let answer = host.handle.live_usage(vec![uid.to_owned()]).await;
            (host.handle.host_id().to_owned(), answer)
        });
        let (mut found, mut failed) = (Vec::new(), None);
        for (host, answer) in join_all(asked).await {
            match answer {
                Ok(reply) => found.extend(intervals(&host, reply)),
                Err(status) => failed = Some(LiveError { host, source: status.into() }),
            }
        }
        // A host that does not answer matters only when no other one holds the pod.
        match failed {
            Some(error) if found.is_empty() => Err(error),
            _ => Ok(found),
        }
    }
}

fn intervals(host: &str, reply: LiveUsageReply) -> impl Iterator<Item = LiveInterval> {
    let (host, boot_id, now_ns) = (host.to_owned(), reply.boot_id, reply.now_boottime_ns);
    let now_wall_ns = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .ok()
        .and_then(|age| u64::try_from(age.as_nanos()).ok())
        .unwrap_or(0);
    reply.pods.into_iter().map(move |told: Told| LiveInterval {
        host: host.clone(),
        boot_id: boot_id.clone(),
        now_ns,
        now_wall_ns,
        uid: told.uid,
        namespace: told.namespace,
        name: told.name,
        sandbox_id: told.sandbox_id,
        start_ns: told.held_boottime_ns,
        start_wall_ns: told.held_wall_ns,
        held: Held {
            milli_cpu: told.held_milli_cpu,
            memory_bytes: told.held_memory_bytes,
            ephemeral_bytes: told.held_ephemeral_bytes,
            gpus: 0,
        },
        used: Used { cpu_ns: told.used_cpu_ns, memory_kib_s: told.used_memory_kib_s, ..Used::default() },
        sandbox_kind: told.sandbox_kind,
        price_class: told.price_class,
        images: told.images,
    })
}
