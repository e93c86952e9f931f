//! A disk that is nearly full: who has to make way, in the kubelet's order and words.
//!
//! The one that keeps more than it requests goes first, then the one of lower priority, then the one that keeps most beyond
//! its request. One at a time: the disk is looked at again before the next.

use std::cmp::Reverse;
use std::sync::Arc;
use std::time::Duration;

use super::facts;
use super::thresholds::Shortage;
use crate::pod::task::Standing;
use crate::quantity::binary;
use crate::roster::Roster;

/// A kubelet looks this often.
const EVERY: Duration = Duration::from_secs(10);
/// How long one that makes way is waited for before the next one has to.
const WAY: Duration = Duration::from_secs(30);

/// Who goes first.
fn choose(pods: &[(String, Standing)]) -> Option<&(String, Standing)> {
    pods.iter().min_by_key(|(_, pod)| {
        let used = pod.usage.total();
        (Reverse(used > pod.request), pod.priority, Reverse(i128::from(used) - i128::from(pod.request)))
    })
}

/// Why, as a kubelet says it.
fn message(shortage: Shortage, pod: &Standing) -> String {
    let mut text = format!(
        "The node was low on resource: ephemeral-storage. Threshold quantity: {}, available: {}. ",
        binary(shortage.wanted),
        binary(shortage.free)
    );
    for (container, used) in &pod.usage.containers {
        let request = pod.container_requests.get(container).map_or("0", String::as_str);
        if *used > crate::quantity::whole(request).unwrap_or(0) {
            let used = binary(*used);
            text.push_str(&format!(
                "Container {container} was using {used}, request is {request}, has larger consumption of ephemeral-storage. "
            ));
        }
    }
    text
}

/// Makes room whenever the disk of the state directory is short, until the agent stops.
pub async fn run(roster: Arc<Roster>) {
    let (state_dir, threshold) = (roster.world().state_dir.clone(), roster.world().thresholds.disk);
    loop {
        tokio::time::sleep(EVERY).await;
        let short = facts::disk(&state_dir).and_then(|(free, all)| threshold.shortage(free, all));
        let Some(shortage) = short else { continue };
        let standing = roster.standing().await;
        let Some((uid, pod)) = choose(&standing) else { continue };
        tracing::warn!(
            pod.uid = uid,
            free = shortage.free,
            wanted = shortage.wanted,
            "the disk is short: a pod makes way"
        );
        roster.evict(uid, message(shortage, pod)).await;
        let gone = async {
            let mut changes = roster.world().board.changes();
            while roster.world().board.get(uid).is_some_and(|pod| !pod.terminated) && changes.changed().await.is_ok() {}
        };
        if tokio::time::timeout(WAY, gone).await.is_err() {
            tracing::warn!(pod.uid = uid, "a pod that has to make way is still there");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pod::storage::usage::Usage;

    const GIB: u64 = 1 << 30;

    fn pod(name: &str, priority: i32, used: u64, request: u64) -> (String, Standing) {
        let usage = Usage { containers: [("c".to_owned(), used)].into(), ..Usage::default() };
        let container_requests = [("c".to_owned(), binary(request))].into();
        (name.to_owned(), Standing { priority, usage, request, container_requests })
    }

    #[test]
    fn usage_over_request_goes_before_priority_and_priority_before_the_amount() {
        let first = |pods: &[(String, Standing)]| choose(pods).map(|(name, _)| name.clone());
        assert_eq!(first(&[]), None);
        let within = pod("within", -5, 9 * GIB, 10 * GIB);
        let important = pod("important", 10, 8 * GIB, GIB);
        let small = pod("small", 0, 2 * GIB, GIB);
        let large = pod("large", 0, 3 * GIB, GIB);
        let all = [within.clone(), important.clone(), small.clone(), large.clone()];
        assert_eq!(first(&all).unwrap(), "large");
        assert_eq!(first(&[within.clone(), important.clone(), small]).unwrap(), "small");
        assert_eq!(first(&[within.clone(), important]).unwrap(), "important");
        assert_eq!(first(&[within]).unwrap(), "within");
    }

    #[test]
    fn the_words_are_the_kubelets() {
        let shortage = Shortage { free: 1025 << 10, wanted: 2 << 20 };
        assert_eq!(
            message(shortage, &pod("a", 0, 3 << 20, 1 << 20).1),
            "The node was low on resource: ephemeral-storage. Threshold quantity: 2Mi, available: 1025Ki. Container c was \
             using 3Mi, request is 1Mi, has larger consumption of ephemeral-storage. "
        );
        assert!(!message(shortage, &pod("a", 0, 1 << 20, 1 << 20).1).contains("Container"));
    }
}
