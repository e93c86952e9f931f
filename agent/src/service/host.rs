//! How the host does: capacity, what is taken of it, conditions, images.

use std::collections::BTreeMap;
use std::time::Duration;

use agent_api::proto;

use super::{Answers, Service, answers};
use crate::host::admission::{taken, taken_scalars};
use crate::host::facts;
use crate::host::thresholds::Shortage;

/// Changes are gathered for this long before they are told.
const GATHER: Duration = Duration::from_millis(500);
/// Conditions are looked at this often.
const LOOK: Duration = Duration::from_secs(10);
/// Images told to placement, the largest first. (The Node object names fewer of them.)
const MOST_IMAGES: usize = 1000;

impl Service {
    pub(super) async fn host_status(&self) -> proto::HostStatus {
        let world = self.roster.world();
        let room = self.roster.room();
        let posted = world.board.all();
        let (used, pods) = taken(&posted);
        world.metrics.pods(pods as usize);
        let facts = &self.facts;
        proto::HostStatus {
            capacity_milli_cpu: room.amounts.milli_cpu,
            capacity_memory_bytes: room.amounts.memory.saturating_add(room.set_aside),
            allocatable_memory_bytes: Some(room.amounts.memory),
            capacity_scalars: room.scalars.clone().into_iter().collect(),
            allocated_scalars: taken_scalars(&posted).into_iter().collect(),
            capacity_ephemeral_bytes: room.amounts.ephemeral,
            capacity_pods: room.pods,
            allocated_milli_cpu: used.milli_cpu,
            allocated_memory_bytes: used.memory,
            allocated_pods: pods,
            architecture: facts.architecture.clone(),
            kernel_version: facts.kernel_version.clone(),
            os_image: facts.os_image.clone(),
            hostname: facts.hostname.clone(),
            addresses: world.host.ips.clone(),
            pod_cidr: self.pod_cidr.clone(),
            labels: BTreeMap::from([
                ("kubernetes.io/arch".to_owned(), facts.architecture.clone()),
                ("kubernetes.io/os".to_owned(), "linux".to_owned()),
                ("kubernetes.io/hostname".to_owned(), facts.hostname.clone()),
            ])
            .into_iter()
            .chain(self.labels.clone())
            .collect(),
            conditions: self.conditions(),
            images: self.host_images().await,
            sandbox_kinds: vec!["namespace".to_owned()],
            cgroup_layout: facts.cgroup_layout.clone(),
            boot_id: facts.boot_id.clone(),
            machine_id: facts.machine_id.clone(),
            system_uuid: facts.system_uuid.clone(),
        }
    }

    fn conditions(&self) -> Vec<proto::Condition> {
        let thresholds = self.roster.world().thresholds;
        let memory = facts::available_memory();
        let low_memory = memory.is_some_and(|(free, all)| thresholds.memory.shortage(free, all).is_some());
        let state_dir = &self.roster.world().state_dir;
        let shortage = facts::disk(state_dir).and_then(|(free, all)| thresholds.disk.shortage(free, all));
        let short_of_disk = shortage.map(|Shortage { free, wanted }| {
            let mib = |bytes: u64| bytes >> 20;
            let (free, wanted, dir) = (mib(free), mib(wanted), state_dir.display());
            format!("kubelet has disk pressure: {free} MiB are free at {dir}, {wanted} MiB must be")
        });
        let one = |name: &str, status: bool, (yes, no): (&str, &str), (yes_text, no_text): (&str, &str)| {
            let (reason, message) = if status { (yes, yes_text) } else { (no, no_text) };
            proto::Condition { r#type: name.to_owned(), status, reason: reason.to_owned(), message: message.to_owned() }
        };
        let ready = self.roster.world().metrics.is_ready();
        vec![
            one(
                "MemoryPressure",
                low_memory,
                ("KubeletHasInsufficientMemory", "KubeletHasSufficientMemory"),
                ("kubelet has insufficient memory available", "kubelet has sufficient memory available"),
            ),
            one(
                "DiskPressure",
                short_of_disk.is_some(),
                ("KubeletHasDiskPressure", "KubeletHasNoDiskPressure"),
                (short_of_disk.as_deref().unwrap_or_default(), "kubelet has no disk pressure"),
            ),
            one(
                "PIDPressure",
                false,
                ("KubeletHasInsufficientPID", "KubeletHasSufficientPID"),
                ("kubelet has insufficient PID available", "kubelet has sufficient PID available"),
            ),
            one(
                "Ready",
                ready,
                ("KubeletReady", "KubeletNotReady"),
                ("kubelet is posting ready status", "the agent is recovering its pods"),
            ),
        ]
    }

    async fn host_images(&self) -> Vec<proto::HostImage> {
        let mut list = self.images.images().list().await.unwrap_or_default();
        list.sort_by_key(|image| std::cmp::Reverse(image.size));
        list.truncate(MOST_IMAGES);
        list.into_iter()
            .map(|image| proto::HostImage { names: vec![image.repo_digest, image.reference], size_bytes: image.size })
            .collect()
    }

    pub(super) fn host_changes(&self) -> Answers<proto::HostStatus> {
        let service = self.clone();
        let (sender, stream) = answers();
        tokio::spawn(async move {
            let mut changes = service.roster.world().board.changes();
            let mut prepared = service.prepared.reports();
            let mut last = None;
            loop {
                changes.borrow_and_update();
                prepared.borrow_and_update();
                let status = service.host_status().await;
                if last.as_ref() != Some(&status) {
                    last = Some(status.clone());
                    if sender.send(Ok(status)).await.is_err() {
                        return;
                    }
                }
                tokio::select! {
                    changed = changes.changed() => if changed.is_err() { return },
                    changed = prepared.changed() => if changed.is_err() { return },
                    () = tokio::time::sleep(LOOK) => {}
                    () = sender.closed() => return,
                }
                tokio::time::sleep(GATHER).await;
            }
        });
        stream
    }
}
