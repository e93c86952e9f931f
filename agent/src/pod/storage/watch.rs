//! Looks at a pod's disk again and again, as long as it may write.
//!
//! Looking costs a walk over everything that the pod has. So only pods with a limit are looked at, one at a time on the whole
//! host, and a pod whose walk takes long is looked at less often: at most a twentieth of one processor goes into it.

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

/// Returns what is exceeded, as soon as something is.
pub async fn until_exceeded(pod: Arc<Pod>, dirs: PodDirs, turn: Arc<Semaphore>) -> String {
    let mut pause = EVERY;
    loop {
        tokio::time::sleep(pause).await;
        let begun = Instant::now();
        match look(&pod, &dirs, &turn).await {
            Ok(usage) => {
                if let Some(message) = pod.spec.as_ref().and_then(|spec| limits::exceeded(spec, &usage)) {
                    return message;
                }
            }
            Err(error) => tracing::warn!(error, "what a pod keeps on disk could not be measured"),
        }
        pause = EVERY.max(begun.elapsed() * REST);
    }
}

/// One look, when it is this pod's turn.
pub async fn look(pod: &Arc<Pod>, dirs: &PodDirs, turn: &Semaphore) -> Result<usage::Usage, String> {
    let _turn = turn.acquire().await.map_err(|error| error.to_string())?;
    let (pod, dirs) = (pod.clone(), dirs.clone());
    let measured = tokio::task::spawn_blocking(move || match &pod.spec {
        Some(spec) => usage::measure(spec, &dirs),
        None => Ok(usage::Usage::default()),
    });
    measured.await.map_err(|error| error.to_string())?.map_err(|error| error.to_string())
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
        let watching = tokio::spawn(until_exceeded(pod, dirs, turn));
        std::fs::write(volume.join("a"), vec![1; 512 << 10]).unwrap();
        tokio::time::sleep(EVERY * 5).await;
        assert!(!watching.is_finished(), "half of what it may keep is no reason");
        std::fs::write(volume.join("b"), vec![1; 600 << 10]).unwrap();
        assert_eq!(watching.await.unwrap(), "Usage of EmptyDir volume \"e\" exceeds the limit \"1Mi\". ");
    }
}
