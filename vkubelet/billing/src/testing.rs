//! Records for this crate's tests: chains as an agent would write them.

use agent_api::usage::{GENESIS, Held, Kind, SCHEMA, UsageRecord, Used};

/// Writes one boot's chain.
#[derive(Debug, Clone)]
pub(crate) struct Chain {
    pub(crate) host: String,
    pub(crate) boot_id: String,
    seq: u64,
    hash: String,
}

impl Chain {
    pub(crate) fn new(host: &str, boot_id: &str) -> Self {
        Self { host: host.into(), boot_id: boot_id.into(), seq: 0, hash: GENESIS.into() }
    }

    /// A record of sandbox `sb-POD`, which started at `start`.
    pub(crate) fn add(&mut self, kind: Kind, pod: &str, start: u64, at: u64) -> UsageRecord {
        self.add_changed(kind, pod, start, at, |_| ())
    }

    pub(crate) fn add_changed(
        &mut self,
        kind: Kind,
        pod: &str,
        start: u64,
        at: u64,
        change: impl FnOnce(&mut UsageRecord),
    ) -> UsageRecord {
        let wall = 1_700_000_000_000_000_000;
        let mut record = UsageRecord {
            schema: SCHEMA,
            host: self.host.clone(),
            boot_id: self.boot_id.clone(),
            seq: self.seq + 1,
            kind,
            pod_uid: format!("uid-{pod}"),
            pod_namespace: "default".into(),
            pod_name: pod.into(),
            sandbox_id: format!("sb-{pod}"),
            start_boottime_ns: start,
            start_wall_ns: wall + start,
            boottime_ns: at,
            wall_ns: wall + at,
            held: Held { milli_cpu: 500, memory_bytes: 1 << 30, ephemeral_bytes: 0, gpus: 0 },
            used: Used { cpu_ns: at - start, ..Used::default() },
            sandbox_kind: "namespace".into(),
            price_class: "on-demand".into(),
            images: vec!["sha256:aa".into()],
            prev_hash: String::new(),
            hash: String::new(),
        };
        change(&mut record);
        let record = record.seal(&self.hash);
        (self.seq, self.hash) = (record.seq, record.hash.clone());
        record
    }
}
