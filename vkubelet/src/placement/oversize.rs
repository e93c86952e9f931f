//! Whether a pod asks for more than the whole node has. A kubelet refuses such a pod for good; so do we, and only such a pod:
//! one that all hosts together could hold waits until one of them has room, as hosts come and go. Pure.

use super::choose::HostView;
use super::request::Request;

/// What the node lacks.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Excess {
    /// `OutOfcpu`, `OutOfmemory`, `OutOfhugepages-2Mi` …
    pub reason: String,
    /// In a kubelet's words.
    pub message: String,
}

/// The first resource of which the pod asks more than these hosts, all of the node's, have together: what the node publishes
/// as allocatable.
#[must_use]
pub fn excess(request: &Request, hosts: &[&HostView]) -> Option<Excess> {
    let sum = |of: &dyn Fn(&HostView) -> u64| hosts.iter().map(|host| of(host)).fold(0_u64, u64::saturating_add);
    let plain = [
        ("cpu", request.milli_cpu, sum(&|h| h.used.milli_cpu), sum(&|h| h.capacity.milli_cpu)),
        ("memory", request.memory_bytes, sum(&|h| h.used.memory_bytes), sum(&|h| h.capacity.memory_bytes)),
        (
            "ephemeral-storage",
            request.ephemeral_bytes,
            sum(&|h| h.used.ephemeral_bytes),
            sum(&|h| h.capacity.ephemeral_bytes),
        ),
    ];
    let scalars = request.scalars.iter().filter_map(|(name, wanted)| {
        let has = sum(&|h| h.scalars.get(name).copied().unwrap_or(0));
        // As a kubelet: a device that the node does not publish is nobody's yet.
        (has > 0 || name.starts_with("hugepages-"))
            .then(|| (name.as_str(), *wanted, sum(&|h| h.used_scalars.get(name).copied().unwrap_or(0)), has))
    });
    let (name, wanted, used, has) = plain.into_iter().chain(scalars).find(|(_, wanted, _, has)| wanted > has)?;
    Some(Excess {
        reason: format!("OutOf{name}"),
        message: format!(
            "Pod was rejected: Node didn't have enough resource: {name}, requested: {wanted}, used: {used}, capacity: {has}"
        ),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::placement::choose::Amounts;

    fn host(cpu: u64, device: u64) -> HostView {
        HostView {
            capacity: Amounts { milli_cpu: cpu, memory_bytes: 1 << 30, ephemeral_bytes: 1 << 30, pods: 10 },
            used: Amounts { milli_cpu: 500, ..Amounts::default() },
            scalars: [("a.com/x".to_owned(), device), ("hugepages-2Mi".to_owned(), 0)].into(),
            ..HostView::default()
        }
    }

    fn reason(request: &Request) -> Option<String> {
        excess(request, &[&host(4000, 1), &host(2000, 0)]).map(|excess| excess.reason)
    }

    #[test]
    fn only_more_than_all_hosts_have_together_is_too_much() {
        let cpu = |milli_cpu| Request { milli_cpu, ..Request::default() };
        assert_eq!(reason(&cpu(6000)), None, "no single host has it, the node does");
        assert_eq!(reason(&cpu(6001)).as_deref(), Some("OutOfcpu"));
        assert_eq!(
            excess(&cpu(6001), &[&host(4000, 1), &host(2000, 0)]).map(|excess| excess.message).as_deref(),
            Some(
                "Pod was rejected: Node didn't have enough resource: cpu, requested: 6001, used: 1000, capacity: 6000"
            )
        );
        assert_eq!(reason(&Request { memory_bytes: 3 << 30, ..cpu(1) }).as_deref(), Some("OutOfmemory"));
        assert_eq!(reason(&Request { ephemeral_bytes: 3 << 30, ..cpu(1) }).as_deref(), Some("OutOfephemeral-storage"));
        let scalar = |name: &str, n| Request { scalars: [(name.to_owned(), n)].into(), ..Request::default() };
        assert_eq!(reason(&scalar("a.com/x", 1)), None);
        assert_eq!(reason(&scalar("a.com/x", 2)).as_deref(), Some("OutOfa.com/x"));
        assert_eq!(reason(&scalar("b.com/y", 2)), None, "nobody has published it");
        assert_eq!(reason(&scalar("hugepages-2Mi", 2 << 20)).as_deref(), Some("OutOfhugepages-2Mi"));
        assert_eq!(reason(&scalar("hugepages-1Gi", 1 << 30)).as_deref(), Some("OutOfhugepages-1Gi"));
    }
}
