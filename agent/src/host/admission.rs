//! Has this host room for a pod? Worded as a kubelet's admission words it. Pure.

use super::host_ports;
use crate::board::Posted;
use crate::intent::Intent;
use crate::pod::spec::resources::{Amounts, pod_requests};
use crate::pod::spec::scalars::{self, Scalars};
use crate::pod::state::Verdict;

/// What this host gives.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Room {
    /// CPU, memory, ephemeral storage.
    pub amounts: Amounts,
    /// Memory, in bytes, that is there and that pods cannot request: it is set aside as huge pages.
    pub set_aside: u64,
    /// Huge pages and devices.
    pub scalars: Scalars,
    /// Pods.
    pub pods: u32,
}

/// What is taken of it: amounts and number of pods that are not terminated.
pub fn taken(posted: &[Posted]) -> (Amounts, u32) {
    let mut sum = Amounts::default();
    let mut count = 0;
    for pod in posted.iter().filter(|p| !p.terminated) {
        sum.milli_cpu = sum.milli_cpu.saturating_add(pod.requests.milli_cpu);
        sum.memory = sum.memory.saturating_add(pod.requests.memory);
        sum.ephemeral = sum.ephemeral.saturating_add(pod.requests.ephemeral);
        count += 1;
    }
    (sum, count)
}

/// What is taken of huge pages and devices.
pub fn taken_scalars(posted: &[Posted]) -> Scalars {
    scalars::sum(posted.iter().filter(|p| !p.terminated).map(|p| &p.scalars))
}

/// Admits a pod beside those that are there, or says why not.
pub fn admit(room: &Room, posted: &[Posted], intent: &Intent) -> Result<(), Verdict> {
    let refuse = |reason: &str, message: String| {
        Err(Verdict { reason: reason.to_owned(), message: format!("Pod was rejected: {message}"), disrupted: false })
    };
    let Some(spec) = intent.pod.spec.as_ref() else {
        return refuse("UnexpectedAdmissionError", "the pod has no specification".to_owned());
    };
    let read = pod_requests(spec).and_then(|wanted| Ok((wanted, scalars::of_pod(spec)?)));
    let (wanted, scalars) = match read {
        Ok(wanted) => wanted,
        Err(error) => return refuse("UnexpectedAdmissionError", error.to_string()),
    };
    let (used, pods) = taken(posted);
    let has = room.amounts;
    if let Some(message) = lacks("pods", 1, u64::from(pods), u64::from(room.pods)) {
        return refuse("OutOfpods", message);
    }
    if let Some((resource, message)) = lacking(has, used, wanted) {
        return refuse(&format!("OutOf{resource}"), message);
    }
    let used = taken_scalars(posted);
    let of = |map: &Scalars, name: &str| map.get(name).copied().unwrap_or(0);
    for (name, wanted) in &scalars {
        if let Some(message) = lacks(name, *wanted, of(&used, name), of(&room.scalars, name)) {
            return refuse(&format!("OutOf{name}"), message);
        }
    }
    let kept = posted.iter().filter(|pod| !pod.terminated).flat_map(|pod| &pod.host_ports);
    if host_ports::taken(&host_ports::claimed(spec), kept) {
        let message = "node(s) didn't have free ports for the requested pod ports";
        return refuse("NodePorts", format!("Predicate NodePorts failed: {message}"));
    }
    Ok(())
}

fn lacks(resource: &str, wanted: u64, used: u64, capacity: u64) -> Option<String> {
    (wanted > 0 && used.saturating_add(wanted) > capacity).then(|| {
        format!("Node didn't have enough resource: {resource}, requested: {wanted}, used: {used}, capacity: {capacity}")
    })
}

fn lacking(has: Amounts, used: Amounts, wanted: Amounts) -> Option<(&'static str, String)> {
    [
        ("cpu", wanted.milli_cpu, used.milli_cpu, has.milli_cpu),
        ("memory", wanted.memory, used.memory, has.memory),
        ("ephemeral-storage", wanted.ephemeral, used.ephemeral, has.ephemeral),
    ]
    .into_iter()
    .find_map(|(name, wanted, used, has)| Some((name, lacks(name, wanted, used, has)?)))
}

/// What a host that has so much lacks for a pod that wants another amount than it had, beside what others use.
pub fn shortage(has: Amounts, used: Amounts, wanted: Amounts) -> Option<String> {
    lacking(has, used, wanted).map(|(_, message)| message)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::intent::Source;
    use crate::resolved::Resolved;

    fn intent(cpu: &str, memory: &str) -> Intent {
        let pod = serde_json::json!({
            "metadata": {"name": "p", "namespace": "n", "uid": "u"},
            "spec": {"containers": [{"name": "c", "resources": {"requests": {"cpu": cpu, "memory": memory}}}]}
        });
        Intent::new("u".into(), 1, pod, Resolved::default(), Source::Kubernetes, None).unwrap()
    }

    #[test]
    fn a_pod_that_does_not_fit_is_refused_by_the_resource_it_lacks() {
        let room =
            Room { amounts: Amounts { milli_cpu: 2000, memory: 1 << 30, ephemeral: 0 }, pods: 2, ..Room::default() };
        let there = Posted { requests: Amounts { milli_cpu: 1500, memory: 0, ephemeral: 0 }, ..Posted::default() };
        let gone = Posted { terminated: true, ..there.clone() };
        let reason = |posted: &[Posted], cpu, memory| admit(&room, posted, &intent(cpu, memory)).map_err(|v| v.reason);
        assert_eq!(reason(&[], "2", "1Gi"), Ok(()));
        assert_eq!(reason(&[], "2001m", "1"), Err("OutOfcpu".to_owned()));
        assert_eq!(reason(std::slice::from_ref(&there), "501m", "1"), Err("OutOfcpu".to_owned()));
        assert_eq!(reason(std::slice::from_ref(&there), "500m", "2Gi"), Err("OutOfmemory".to_owned()));
        assert_eq!(reason(&[there.clone(), there.clone()], "0", "0"), Err("OutOfpods".to_owned()));
        assert_eq!(reason(&[gone.clone(), gone], "2", "0"), Ok(()));
        let message = admit(&room, &[there], &intent("1", "1")).unwrap_err().message;
        assert_eq!(
            message,
            "Pod was rejected: Node didn't have enough resource: cpu, requested: 1000, used: 1500, capacity: 2000"
        );
    }

    #[test]
    fn huge_pages_that_the_host_does_not_have_are_refused_by_name() {
        let room = Room {
            amounts: Amounts { milli_cpu: 2000, memory: 1 << 30, ephemeral: 0 },
            scalars: [("hugepages-2Mi".to_owned(), 8 << 20), ("hugepages-1Gi".to_owned(), 0)].into(),
            pods: 10,
            ..Room::default()
        };
        let pod = |name: &str, amount: &str| {
            let limits = serde_json::json!({"cpu": "1", "memory": "1Mi", name: amount});
            let pod = serde_json::json!({
                "metadata": {"name": "p", "namespace": "n", "uid": "u"},
                "spec": {"containers": [{"name": "c", "resources": {"limits": limits}}]}
            });
            Intent::new("u".into(), 1, pod, Resolved::default(), Source::Kubernetes, None).unwrap()
        };
        let there = Posted { scalars: [("hugepages-2Mi".to_owned(), 6 << 20)].into(), ..Posted::default() };
        let reason = |posted: &[Posted], name, amount| {
            admit(&room, posted, &pod(name, amount)).map_err(|verdict| verdict.reason)
        };
        assert_eq!(reason(&[], "hugepages-2Mi", "8Mi"), Ok(()));
        assert_eq!(reason(std::slice::from_ref(&there), "hugepages-2Mi", "2Mi"), Ok(()));
        assert_eq!(reason(std::slice::from_ref(&there), "hugepages-2Mi", "4Mi"), Err("OutOfhugepages-2Mi".to_owned()));
        assert_eq!(reason(&[], "hugepages-1Gi", "1Gi"), Err("OutOfhugepages-1Gi".to_owned()));
        assert_eq!(
            admit(&room, &[there], &pod("hugepages-16Mi", "16Mi")).unwrap_err().message,
            "Pod was rejected: Node didn't have enough resource: hugepages-16Mi, requested: 16777216, used: 0, capacity: 0"
        );
    }
}
