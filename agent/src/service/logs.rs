//! `kubectl logs`.

use agent_api::codes::Code;
use agent_api::proto;
use sandbox::shim::log::Stream;
use tokio_util::sync::CancellationToken;
use tonic::Status;

use super::{Answers, Service, answers};
use crate::board::{Board, Posted};
use crate::errors::chain;
use crate::logs::{attempt, follow, select::Selection};
use crate::pod::volumes::PodDirs;

impl Service {
    pub(super) fn read_logs(&self, asked: proto::LogsRequest) -> Result<Answers<proto::LogsChunk>, Status> {
        let world = self.roster.world();
        let posted = world
            .board
            .get(&asked.uid)
            .ok_or_else(|| Code::NotFound.status(format!("pod {} is not on this host", asked.uid)))?;
        let container = named(&posted, &asked.container)?;
        let found = posted.containers.get(&container).copied().unwrap_or_default();
        let status = serde_json::from_slice(&posted.status_json).map_err(|e| Code::Internal.status(e.to_string()))?;
        let attempt = match attempt::choose(&status, &posted.name, &container, asked.previous) {
            Ok(attempt) => attempt,
            // Its first line is awaited.
            Err(_) if found.starting && !asked.previous => found.number,
            Err(why) => return Err(Code::WrongState.status(why)),
        };
        let selection = selection(&asked)?;
        let directory = PodDirs::new(&world.state_dir, &world.run_dir, &asked.uid).logs().join(&container);
        let (sender, stream) = answers();
        let (out, mut bytes) = tokio::sync::mpsc::channel(4);
        let ended = CancellationToken::new();
        let follows = asked.follow && !asked.previous;
        if follows {
            tokio::spawn(cancel_at_end(world.board.clone(), asked.uid, container, attempt, ended.clone()));
        }
        let reader = tokio::spawn(follow::send(directory, attempt, selection, follows, ended.clone(), out));
        let metrics = world.metrics.clone();
        tokio::spawn(async move {
            // However this ends, nobody watches the board for it any longer.
            let _watch = ended.drop_guard();
            while let Some(data) = bytes.recv().await {
                metrics.log_bytes(data.len());
                if sender.send(Ok(proto::LogsChunk { data })).await.is_err() {
                    return;
                }
            }
            let failed = match reader.await {
                Ok(Ok(())) => return,
                Ok(Err(error)) => chain(&error),
                Err(error) => error.to_string(),
            };
            let _ = sender.send(Err(Code::Internal.status(failed))).await;
        });
        Ok(stream)
    }
}

/// The container asked for; a pod with one container needs no name.
pub(super) fn named(posted: &Posted, container: &str) -> Result<String, Status> {
    if container.is_empty() {
        let mut names = posted.containers.keys();
        return match (names.next(), names.next()) {
            (Some(only), None) => Ok(only.clone()),
            _ => Err(Code::InvalidArgument.status("a container name must be given: the pod has several")),
        };
    }
    if posted.containers.contains_key(container) {
        Ok(container.to_owned())
    } else {
        Err(Code::NotFound.status(format!("container \"{container}\" is not in pod \"{}\"", posted.name)))
    }
}

fn selection(asked: &proto::LogsRequest) -> Result<Selection, Status> {
    let stream = match asked.stream.as_str() {
        "" | "All" => None,
        "Stdout" => Some(Stream::Stdout),
        "Stderr" => Some(Stream::Stderr),
        other => return Err(Code::InvalidArgument.status(format!("stream {other:?} is not All, Stdout or Stderr"))),
    };
    let tail = asked.tail_lines.map(usize::try_from).transpose();
    let limit = asked.limit_bytes.map(u64::try_from).transpose();
    let (Ok(tail), Ok(limit)) = (tail, limit) else {
        return Err(Code::InvalidArgument.status("tail lines and limit bytes must not be negative"));
    };
    Ok(Selection { tail, since_ns: asked.since_unix_ns, limit, timestamps: asked.timestamps, stream })
}

/// Cancels when this attempt of the container no longer runs and will not begin to.
async fn cancel_at_end(board: Board, uid: String, container: String, attempt: u32, ended: CancellationToken) {
    let mut changes = board.changes();
    loop {
        changes.borrow_and_update();
        let runs = board.get(&uid).and_then(|p| p.containers.get(&container).copied()).is_some_and(|c| {
            // Asked to start and not running yet counts as running: its first line is awaited.
            c.number == attempt && c.created && (c.running || c.starting)
        });
        if !runs {
            ended.cancel();
            return;
        }
        tokio::select! {
            changed = changes.changed() => if changed.is_err() { return },
            () = ended.cancelled() => return,
        }
    }
}
