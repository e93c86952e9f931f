//! Looks at a pod's disk again and again, as long as it may write.
//!
//! Looking costs a walk over everything that the pod has. So only pods with a limit are looked at, one at a time on the whole
//! host, and a pod whose walk takes long is looked at less often: at most a twentieth of one processor goes into it.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use k8s_openapi::api::core::v1::Pod;
use tokio::sync::Semaphore;

use super::{limits, usage};
use crate::pod::volumes::PodDirs;

/// A kubelet looks this often.
const EVERY: Duration = Duration::from_secs(10);
/// So many times as long as a look took is waited before the next one.
const REST: u32 = 20;

/// What of a pod is looked at.
#[derive(Clone)]
pub struct Watched {
    /// The pod.
    pub pod: Arc<Pod>,
    /// Where its files are.
    pub dirs: PodDirs,
    /// What its containers have in roots whose files are nowhere there.
    pub written: Arc<dyn Fn() -> BTreeMap<String, u64> + Send + Sync>,
}

/// Returns what is exceeded, as soon as something is.
pub async fn until_exceeded(watched: Watched, turn: Arc<Semaphore>) -> String {
    let mut pause = EVERY;
    loop {
        tokio::time::sleep(pause).await;
        let (measured, took) = look(&watched, &turn).await;
        pause = EVERY.max(took * REST);
        match measured {
            Ok(usage) => {
                let pod = &watched.pod;
                if let Some(message) = pod.spec.as_ref().and_then(|spec| limits::exceeded(spec, &usage)) {
                    return message;
                }
            }
            Err(error) => tracing::warn!(error, "what a pod keeps on disk could not be measured"),
        }
    }
}

/// One look, when it is this pod's turn; and how long it took, whether or not it came to an end.
pub async fn look(watched: &Watched, turn: &Semaphore) -> (Result<usage::Usage, String>, Duration) {
    let _turn = match turn.acquire().await {
        Ok(turn) => turn,
        Err(error) => return (Err(error.to_string()), Duration::ZERO),
    };
    let begun = Instant::now();
    let watched = watched.clone();
    let measured = tokio::task::spawn_blocking(move || match &watched.pod.spec {
        Some(spec) => usage::measure(spec, &watched.dirs, &(watched.written)()).map_err(|error| error.to_string()),
        None => Ok(usage::Usage::default()),
    });
    let measured = measured.await.unwrap_or_else(|error| Err(error.to_string()));
    (measured, begun.elapsed())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_pod_is_watched_until_it_keeps_more_than_it_may() {
        let dir = tempfile::tempdir().unwrap();
        let dirs = PodDirs::new(&dir.path().join("state"), &dir.path().join("run"), "u");
        let volume = dirs.disk.join("volumes/e");
        std::fs::create_dir_all(&volume).unwrap();
        let pod: Arc<Pod> = Arc::new(
            serde_json::from_value(serde_json::json!({"spec": {
                "containers": [{"name": "a"}], "volumes": [{"name": "e", "emptyDir": {"sizeLimit": "1Mi"}}]}}))
            .unwrap(),
        );
        let turn = Arc::new(Semaphore::new(1));
        let watched = Watched { pod, dirs, written: Arc::new(BTreeMap::new) };
        let watching = tokio::spawn(until_exceeded(watched, turn));
        std::fs::write(volume.join("a"), vec![1; 512 << 10]).unwrap();
        tokio::time::sleep(EVERY * 5).await;
        assert!(!watching.is_finished(), "half of what it may keep is no reason");
        std::fs::write(volume.join("b"), vec![1; 600 << 10]).unwrap();
        assert_eq!(watching.await.unwrap(), "Usage of EmptyDir volume \"e\" exceeds the limit \"1Mi\". ");
    }
}
