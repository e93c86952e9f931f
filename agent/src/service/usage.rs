//! Usage records and what is held now.

use agent_api::codes::Code;
use agent_api::proto;
use tokio_stream::StreamExt as _;
use tonic::Status;

use super::{Answers, Service};
use crate::errors::chain;

impl Service {
    pub(super) fn boots(&self) -> proto::UsageBootsReply {
        let boots = self.meter.spool().boots().into_iter().map(|boot| proto::UsageBoot {
            boot_id: boot.boot_id,
            last_seq: boot.last_seq,
            acked_seq: boot.acked_seq,
            current: boot.current,
        });
        proto::UsageBootsReply { boots: boots.collect() }
    }

    pub(super) fn usage(&self, asked: proto::PullUsageRequest) -> Answers<proto::UsageBatch> {
        let reader = self.meter.spool().read(&asked.boot_id, asked.after, asked.follow);
        Box::pin(reader.into_stream().map(|batch| match batch {
            Ok(batch) => Ok(proto::UsageBatch { records_json: batch.records }),
            Err(error) if error.is_lost() => Err(Code::DataLoss.status(chain(&error))),
            Err(error) => Err(Code::Internal.status(chain(&error))),
        }))
    }

    pub(super) async fn acknowledge(&self, asked: proto::AckUsageRequest) -> Result<proto::AckUsageReply, Status> {
        let acked = self.meter.spool().ack(&asked.boot_id, asked.seq).await;
        acked.map_err(|error| Code::InvalidArgument.status(chain(&error)))?;
        Ok(proto::AckUsageReply {})
    }

    pub(super) async fn live(&self, uids: Vec<String>) -> proto::LiveUsageReply {
        let view = self.meter.live().await;
        let wanted = |uid: &String| uids.is_empty() || uids.contains(uid);
        let pods = view.intervals.into_iter().filter(|live| wanted(&live.interval.pod_uid)).map(|live| {
            let interval = live.interval;
            proto::LiveUsage {
                uid: interval.pod_uid,
                held_boottime_ns: live.started.boottime_ns,
                duration_ns: live.duration_ns,
                used_cpu_ns: live.used.cpu_ns,
                memory_bytes: live.memory_bytes,
                held_milli_cpu: interval.held.milli_cpu,
                held_memory_bytes: interval.held.memory_bytes,
                sandbox_id: interval.sandbox_id,
                namespace: interval.pod_namespace,
                name: interval.pod_name,
                held_wall_ns: live.started.wall_ns,
                used_memory_kib_s: live.used.memory_kib_s,
                held_ephemeral_bytes: interval.held.ephemeral_bytes,
                sandbox_kind: interval.sandbox_kind,
                price_class: interval.price_class,
                images: interval.images,
            }
        });
        proto::LiveUsageReply { pods: pods.collect(), now_boottime_ns: view.now.boottime_ns, boot_id: view.boot_id }
    }
}
