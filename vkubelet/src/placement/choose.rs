//! The decision: filters, then a score. Pure.

use std::borrow::Cow;
use std::collections::{BTreeMap, BTreeSet};

use super::request::{HostPort, Request};

/// One host as placement sees it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct HostView {
    /// Its id.
    pub id: String,
    /// Connected, synced and ready by its own word.
    pub ready: bool,
    /// Memory, disk or processes are short there: no new pods.
    pub pressed: bool,
    /// Go's name: `amd64`, `arm64`.
    pub architecture: String,
    /// What it has.
    pub capacity: Amounts,
    /// What is held there: the larger of what it reports and what is reserved here.
    pub used: Amounts,
    /// Huge pages in bytes and devices in units that it has, by Kubernetes' names.
    pub scalars: BTreeMap<String, u64>,
    /// The same of what is held there.
    pub used_scalars: BTreeMap<String, u64>,
    /// Host ports that pods keep there.
    pub used_ports: Vec<HostPort>,
    /// `namespace`, `microvm`.
    pub sandbox_kinds: BTreeSet<String>,
    /// Snapshots it holds, by canonical name.
    pub images: BTreeSet<String>,
}

/// Processor, memory and number of pods.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Amounts {
    /// Thousandths of a processor.
    pub milli_cpu: u64,
    /// Bytes.
    pub memory_bytes: u64,
    /// Bytes of disk.
    pub ephemeral_bytes: u64,
    /// Pods.
    pub pods: u32,
}

/// Why one host cannot take the pod.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
enum Misfit {
    NotReady,
    Pressed,
    Architecture,
    SandboxKind,
    TooManyPods,
    Cpu,
    Memory,
    Ephemeral,
    Ports,
    /// Huge pages or devices of this name.
    Scalar(String),
}

impl Misfit {
    /// It asks for too much, as far as is known.
    fn is_of_amounts(&self) -> bool {
        matches!(self, Self::Cpu | Self::Memory | Self::Ephemeral | Self::Scalar(_))
    }

    fn words(&self) -> Cow<'static, str> {
        let words = match self {
            Self::NotReady => "not ready",
            Self::Pressed => "short of memory, disk or processes",
            Self::Architecture => "of another architecture",
            Self::SandboxKind => "without the sandbox kind that runtimeClassName asks for",
            Self::TooManyPods => "full of pods",
            Self::Cpu => "with insufficient cpu",
            Self::Memory => "with insufficient memory",
            Self::Ephemeral => "with insufficient ephemeral-storage",
            Self::Ports => "without free ports for the requested pod ports",
            Self::Scalar(name) => return format!("with insufficient {name}").into(),
        };
        words.into()
    }
}

/// No host can take the pod now.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct Unfit {
    /// As the scheduler words it: `0/3 hosts are available: 2 with insufficient cpu, 1 not ready.`
    pub message: String,
}

/// Picks the host for a pod, or says why none fits. The same input gives the same answer; `uid` breaks ties so that equal
/// hosts share the load.
pub fn choose<'h>(
    uid: &str,
    request: &Request,
    hosts: impl IntoIterator<Item = &'h HostView>,
) -> Result<&'h HostView, Unfit> {
    let mut misfits: BTreeMap<Misfit, u32> = BTreeMap::new();
    let mut total = 0u32;
    let mut best: Option<((u64, u64, u64), &HostView)> = None;
    // Hosts that would take it when empty.
    let mut large_enough = 0u32;
    for host in hosts {
        total += 1;
        large_enough += u32::from(unfit(request, host, &Load::NONE).is_empty());
        let reasons = misfits_of(request, host);
        if reasons.is_empty() {
            let score = score(uid, request, host);
            if best.is_none_or(|(so_far, _)| score > so_far) {
                best = Some((score, host));
            }
        }
        for reason in reasons {
            *misfits.entry(reason).or_default() += 1;
        }
    }
    best.map(|(_, host)| host).ok_or_else(|| {
        let mut message = explain(total, &misfits);
        if total > 0 && large_enough == 0 && misfits.keys().any(Misfit::is_of_amounts) {
            message.push_str(" None of them could take the pod even when empty.");
        }
        Unfit { message }
    })
}

fn explain(total: u32, misfits: &BTreeMap<Misfit, u32>) -> String {
    if total == 0 {
        return "no host has joined this node: run `nodeless-agent join` on one".to_owned();
    }
    let list: Vec<String> = misfits.iter().map(|(reason, n)| format!("{n} {}", reason.words())).collect();
    format!("0/{total} hosts are available: {}.", list.join(", "))
}

/// What is held of a host.
struct Load<'h> {
    used: Amounts,
    scalars: Option<&'h BTreeMap<String, u64>>,
    ports: &'h [HostPort],
}

impl Load<'static> {
    const NONE: Self = Self {
        used: Amounts { milli_cpu: 0, memory_bytes: 0, ephemeral_bytes: 0, pods: 0 },
        scalars: None,
        ports: &[],
    };
}

fn misfits_of(request: &Request, host: &HostView) -> Vec<Misfit> {
    if !host.ready {
        return vec![Misfit::NotReady];
    }
    if host.pressed {
        return vec![Misfit::Pressed];
    }
    unfit(request, host, &Load { used: host.used, scalars: Some(&host.used_scalars), ports: &host.used_ports })
}

/// Why a host that is well cannot take the pod beside this load.
fn unfit(request: &Request, host: &HostView, load: &Load<'_>) -> Vec<Misfit> {
    if request.architecture.as_ref().is_some_and(|a| *a != host.architecture) {
        return vec![Misfit::Architecture];
    }
    if !host.sandbox_kinds.contains(&request.sandbox_kind) {
        return vec![Misfit::SandboxKind];
    }
    let fits =
        |used: u64, asked: u64, capacity: u64| asked == 0 || used.checked_add(asked).is_some_and(|sum| sum <= capacity);
    let mut misfits = Vec::new();
    if load.used.pods >= host.capacity.pods {
        misfits.push(Misfit::TooManyPods);
    }
    if !fits(load.used.milli_cpu, request.milli_cpu, host.capacity.milli_cpu) {
        misfits.push(Misfit::Cpu);
    }
    if !fits(load.used.memory_bytes, request.memory_bytes, host.capacity.memory_bytes) {
        misfits.push(Misfit::Memory);
    }
    if !fits(load.used.ephemeral_bytes, request.ephemeral_bytes, host.capacity.ephemeral_bytes) {
        misfits.push(Misfit::Ephemeral);
    }
    if request.host_ports.iter().any(|port| load.ports.iter().any(|used| used.excludes(port))) {
        misfits.push(Misfit::Ports);
    }
    let of = |map: &BTreeMap<String, u64>, name: &str| map.get(name).copied().unwrap_or(0);
    let used = |name: &str| load.scalars.map_or(0, |scalars| of(scalars, name));
    for (name, asked) in &request.scalars {
        if !fits(used(name), *asked, of(&host.scalars, name)) {
            misfits.push(Misfit::Scalar(name.clone()));
        }
    }
    misfits
}

/// Snapshots present first (each missing one costs seconds), then the emptier host, then a draw by UID.
fn score(uid: &str, request: &Request, host: &HostView) -> (u64, u64, u64) {
    let present = request.images.iter().filter(|image| host.images.contains(*image)).count() as u64;
    let free = |used: u64, asked: u64, capacity: u64| -> u64 {
        let left = capacity.saturating_sub(used).saturating_sub(asked);
        u64::try_from(u128::from(left) * 1000 / u128::from(capacity.max(1))).unwrap_or(0)
    };
    let room = free(host.used.milli_cpu, request.milli_cpu, host.capacity.milli_cpu)
        + free(host.used.memory_bytes, request.memory_bytes, host.capacity.memory_bytes)
        + free(u64::from(host.used.pods), 1, u64::from(host.capacity.pods));
    (present, room, draw(uid, &host.id))
}

/// FNV-1a: stable over versions and processes, which the standard hasher is not.
pub(crate) fn draw(uid: &str, host: &str) -> u64 {
    uid.bytes()
        .chain([0])
        .chain(host.bytes())
        .fold(0xcbf2_9ce4_8422_2325, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn host(id: &str, cpu: u64, used: u64) -> HostView {
        HostView {
            id: id.to_owned(),
            ready: true,
            pressed: false,
            architecture: "amd64".to_owned(),
            capacity: Amounts { milli_cpu: cpu, memory_bytes: 1 << 30, pods: 10, ..Amounts::default() },
            used: Amounts { milli_cpu: used, memory_bytes: 0, pods: 0, ..Amounts::default() },
            sandbox_kinds: ["namespace".to_owned()].into(),
            ..HostView::default()
        }
    }

    fn request(cpu: u64) -> Request {
        Request {
            milli_cpu: cpu,
            sandbox_kind: "namespace".to_owned(),
            images: vec!["a:1".to_owned()],
            ..Request::default()
        }
    }

    #[test]
    fn the_emptier_host_wins() {
        let hosts = [host("a", 1000, 600), host("b", 1000, 100)];
        assert_eq!(choose("u", &request(100), &hosts).unwrap().id, "b");
    }

    #[test]
    fn a_present_snapshot_beats_an_emptier_host() {
        let mut hosts = [host("a", 1000, 600), host("b", 1000, 100)];
        hosts[0].images.insert("a:1".to_owned());
        assert_eq!(choose("u", &request(100), &hosts).unwrap().id, "a");
    }

    #[test]
    fn unfit_says_why_host_by_host() {
        let mut hosts = vec![host("a", 100, 0), host("b", 100, 50), host("c", 9000, 0), host("d", 9000, 0)];
        hosts[2].ready = false;
        hosts[3].capacity.pods = 0;
        let mut ask = request(200);
        ask.memory_bytes = 2 << 30;
        assert_eq!(
            choose("u", &ask, &hosts).unwrap_err().message,
            "0/4 hosts are available: 1 not ready, 1 full of pods, 2 with insufficient cpu, 3 with insufficient memory. \
             None of them could take the pod even when empty."
        );
        assert!(choose("u", &ask, &[]).unwrap_err().message.contains("nodeless-agent join"));
    }

    #[test]
    fn architecture_and_sandbox_kind_filter() {
        let hosts = [host("a", 1000, 0)];
        let arm = Request { architecture: Some("arm64".to_owned()), ..request(1) };
        assert!(choose("u", &arm, &hosts).unwrap_err().message.contains("another architecture"));
        let vm = Request { sandbox_kind: "microvm".to_owned(), ..request(1) };
        assert!(choose("u", &vm, &hosts).unwrap_err().message.contains("sandbox kind"));
    }

    #[test]
    fn devices_and_huge_pages_choose_the_host_that_has_them_left() {
        let mut hosts = [host("a", 1000, 0), host("b", 1000, 900), host("c", 1000, 900)];
        for host in &mut hosts[1..] {
            host.scalars = [("a.com/x".to_owned(), 2)].into();
        }
        hosts[1].used_scalars = [("a.com/x".to_owned(), 1)].into();
        let mut ask = Request { scalars: [("a.com/x".to_owned(), 2)].into(), ..request(1) };
        assert_eq!(choose("u", &ask, &hosts).unwrap().id, "c");
        ask.scalars.insert("a.com/x".to_owned(), 3);
        assert_eq!(
            choose("u", &ask, &hosts).unwrap_err().message,
            "0/3 hosts are available: 3 with insufficient a.com/x. None of them could take the pod even when empty."
        );
    }

    #[test]
    fn a_host_whose_ports_are_free_is_chosen() {
        let mut hosts = [host("a", 1000, 0), host("b", 1000, 900)];
        let port = |address: &str| HostPort { port: 80, protocol: "TCP".to_owned(), address: address.to_owned() };
        hosts[0].used_ports = vec![port("")];
        let ask = Request { host_ports: vec![port("10.0.0.1")], ..request(1) };
        assert_eq!(choose("u", &ask, &hosts).unwrap().id, "b");
        hosts[1].used_ports = vec![port("10.0.0.1")];
        let words = "0/2 hosts are available: 2 without free ports for the requested pod ports.";
        assert_eq!(choose("u", &ask, &hosts).unwrap_err().message, words);
        hosts[1].used_ports = vec![port("10.0.0.2")];
        assert_eq!(choose("u", &ask, &hosts).unwrap().id, "b");
    }

    #[test]
    fn a_pod_that_no_host_could_take_even_when_empty_is_told_so() {
        let hosts = [host("a", 1000, 900), host("b", 2000, 0)];
        let said = |cpu| choose("u", &request(cpu), &hosts).unwrap_err().message;
        let words =
            "0/2 hosts are available: 2 with insufficient cpu. None of them could take the pod even when empty.";
        assert_eq!(said(2001), words);
        let mut hosts = hosts;
        hosts[1].used.milli_cpu = 1500;
        assert_eq!(
            choose("u", &request(1000), &hosts).unwrap_err().message,
            "0/2 hosts are available: 2 with insufficient cpu."
        );
    }

    #[test]
    fn a_pod_that_asks_for_nothing_fits_a_full_host_that_has_pod_slots() {
        assert!(choose("u", &request(0), &[host("a", 1000, 1000)]).is_ok());
    }

    fn hosts_strategy() -> impl Strategy<Value = Vec<HostView>> {
        let one = (0u64..4000, 0u64..4000, 0u32..12, any::<bool>(), any::<bool>());
        proptest::collection::vec(one, 0..6).prop_map(|rows| {
            rows.into_iter()
                .enumerate()
                .map(|(i, (capacity, used, pods, ready, image))| {
                    let mut view = host(&format!("h{i}"), capacity, used);
                    view.used.pods = pods;
                    view.ready = ready;
                    if image {
                        view.images.insert("a:1".to_owned());
                    }
                    view
                })
                .collect()
        })
    }

    proptest! {
        #[test]
        fn the_chosen_host_has_room_and_none_is_refused_while_one_fits(
            hosts in hosts_strategy(), cpu in 0u64..4000, uid in "[a-z]{4}"
        ) {
            let ask = request(cpu);
            let fits = |h: &HostView| {
                h.ready && h.used.pods < h.capacity.pods && (cpu == 0 || h.used.milli_cpu + cpu <= h.capacity.milli_cpu)
            };
            match choose(&uid, &ask, &hosts) {
                Ok(chosen) => prop_assert!(fits(chosen)),
                Err(_) => prop_assert!(!hosts.iter().any(fits)),
            }
        }

        #[test]
        fn the_order_of_hosts_does_not_matter(hosts in hosts_strategy(), cpu in 0u64..4000, uid in "[a-z]{4}") {
            let ask = request(cpu);
            let forward = choose(&uid, &ask, &hosts).map(|h| h.id.clone());
            let backward = choose(&uid, &ask, hosts.iter().rev()).map(|h| h.id.clone());
            prop_assert_eq!(forward, backward);
        }
    }
}
