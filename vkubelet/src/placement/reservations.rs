//! Who holds what on which host. Choosing and reserving is one step under one lock.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::{Mutex, MutexGuard, PoisonError};

use tokio::sync::watch;

use super::choose::{Amounts, HostView, Unfit, choose};
use super::oversize::{Excess, excess};
use super::request::{HostPort, Request};

/// The hosts that are known, and the pods placed on them.
#[derive(Debug)]
pub struct Reservations {
    state: Mutex<State>,
    /// Grows whenever room may have appeared: waiting pods then try again.
    changed: watch::Sender<u64>,
}

/// What a pod holds, and on which host.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Held {
    host: String,
    amounts: Amounts,
    scalars: BTreeMap<String, u64>,
    ports: Vec<HostPort>,
}

impl Held {
    fn of(host: &str, request: &Request) -> Self {
        Self {
            host: host.to_owned(),
            amounts: amounts(request),
            scalars: request.scalars.clone(),
            ports: request.host_ports.clone(),
        }
    }
}

#[derive(Debug, Default)]
struct State {
    hosts: BTreeMap<String, HostView>,
    pods: HashMap<String, Held>,
}

impl Default for Reservations {
    fn default() -> Self {
        Self { state: Mutex::default(), changed: watch::channel(0).0 }
    }
}

impl Reservations {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A host's newest state. `view.used` is what the host itself reports.
    pub fn host(&self, view: HostView) {
        self.state().hosts.insert(view.id.clone(), view);
        self.tell();
    }

    /// The host does not answer any more. What is placed there stays placed there.
    pub fn host_lost(&self, id: &str) {
        if let Some(host) = self.state().hosts.get_mut(id) {
            host.ready = false;
        }
    }

    /// The host was taken out of the node for good.
    pub fn host_removed(&self, id: &str) {
        self.state().hosts.remove(id);
    }

    /// A pod is on a host already: a durable placement that was read.
    pub fn hold(&self, uid: &str, host: &str, request: &Request) {
        let held = Held::of(host, request);
        let before = self.state().pods.insert(uid.to_owned(), held.clone());
        if before.is_some_and(|before| before != held) {
            self.tell();
        }
    }

    /// Picks a host and reserves room there.
    pub fn place(&self, uid: &str, request: &Request) -> Result<String, Unfit> {
        let mut state = self.state();
        if let Some(held) = state.pods.get(uid) {
            return Ok(held.host.clone());
        }
        let views: Vec<HostView> = state.hosts.values().map(|host| with_reserved(host, &state.pods)).collect();
        let host = choose(uid, request, &views)?.id.clone();
        state.pods.insert(uid.to_owned(), Held::of(&host, request));
        Ok(host)
    }

    /// What the pod asks more of than these hosts, all of the node's, have together. `None` also while one of them has not
    /// been heard of: it may have the room.
    pub fn excess(&self, request: &Request, hosts: &BTreeSet<String>) -> Option<Excess> {
        let state = self.state();
        let views: Option<Vec<HostView>> =
            hosts.iter().map(|id| state.hosts.get(id).map(|host| with_reserved(host, &state.pods))).collect();
        views.filter(|views| !views.is_empty()).and_then(|views| excess(request, &views))
    }

    /// The pod holds nothing any more.
    pub fn release(&self, uid: &str) {
        if self.state().pods.remove(uid).is_some() {
            self.tell();
        }
    }

    /// Wakes when room may have appeared.
    #[must_use]
    pub fn changed(&self) -> watch::Receiver<u64> {
        self.changed.subscribe()
    }

    /// Every host with what is held there: for people.
    #[must_use]
    pub fn hosts(&self) -> Vec<HostView> {
        let state = self.state();
        state.hosts.values().map(|host| with_reserved(host, &state.pods)).collect()
    }

    fn tell(&self) {
        self.changed.send_modify(|n| *n = n.wrapping_add(1));
    }
}

fn amounts(request: &Request) -> Amounts {
    Amounts {
        milli_cpu: request.milli_cpu,
        memory_bytes: request.memory_bytes,
        ephemeral_bytes: request.ephemeral_bytes,
        pods: 1,
    }
}

fn with_reserved(host: &HostView, pods: &HashMap<String, Held>) -> HostView {
    let mut reserved = Amounts::default();
    let mut scalars: BTreeMap<&String, u64> = BTreeMap::new();
    let mut view = host.clone();
    for Held { amounts: held, scalars: own, ports, .. } in pods.values().filter(|held| held.host == host.id) {
        view.used_ports.extend(ports.iter().cloned());
        for (name, amount) in own {
            let sum = scalars.entry(name).or_default();
            *sum = sum.saturating_add(*amount);
        }
        reserved.milli_cpu = reserved.milli_cpu.saturating_add(held.milli_cpu);
        reserved.memory_bytes = reserved.memory_bytes.saturating_add(held.memory_bytes);
        reserved.ephemeral_bytes = reserved.ephemeral_bytes.saturating_add(held.ephemeral_bytes);
        reserved.pods = reserved.pods.saturating_add(held.pods);
    }
    view.used.milli_cpu = view.used.milli_cpu.max(reserved.milli_cpu);
    view.used.memory_bytes = view.used.memory_bytes.max(reserved.memory_bytes);
    view.used.ephemeral_bytes = view.used.ephemeral_bytes.max(reserved.ephemeral_bytes);
    view.used.pods = view.used.pods.max(reserved.pods);
    for (name, amount) in scalars {
        let used = view.used_scalars.entry(name.clone()).or_default();
        *used = amount.max(*used);
    }
    view
}

#[cfg(test)]
mod tests {
    use super::*;

    fn host(id: &str, cpu: u64) -> HostView {
        HostView {
            id: id.to_owned(),
            ready: true,
            capacity: Amounts { milli_cpu: cpu, memory_bytes: 1 << 30, pods: 10, ..Amounts::default() },
            sandbox_kinds: ["namespace".to_owned()].into(),
            ..HostView::default()
        }
    }

    fn request(cpu: u64) -> Request {
        Request { milli_cpu: cpu, sandbox_kind: "namespace".to_owned(), ..Request::default() }
    }

    #[test]
    fn two_pods_never_count_on_the_same_room() {
        let table = Reservations::default();
        table.host(host("a", 1000));
        assert_eq!(table.place("p", &request(600)).unwrap(), "a");
        assert!(table.place("q", &request(600)).is_err());
        table.release("p");
        assert_eq!(table.place("q", &request(600)).unwrap(), "a");
    }

    #[test]
    fn two_pods_never_count_on_the_same_device() {
        let table = Reservations::default();
        table.host(HostView { scalars: [("a.com/x".to_owned(), 1)].into(), ..host("a", 1000) });
        let ask = Request { scalars: [("a.com/x".to_owned(), 1)].into(), ..request(1) };
        assert_eq!(table.place("p", &ask).unwrap(), "a");
        assert!(table.place("q", &ask).unwrap_err().message.contains("insufficient a.com/x"));
        table.release("p");
        assert_eq!(table.place("q", &ask).unwrap(), "a");
    }

    #[test]
    fn a_placed_pod_stays() {
        let table = Reservations::default();
        table.host(host("a", 1000));
        table.place("p", &request(600)).unwrap();
        table.host_lost("a");
        table.host(host("b", 9000));
        assert_eq!(table.place("p", &request(600)).unwrap(), "a");
    }

    #[test]
    fn released_room_wakes_those_who_wait() {
        let table = Reservations::default();
        table.host(host("a", 1000));
        table.place("p", &request(600)).unwrap();
        let mut changed = table.changed();
        changed.mark_unchanged();
        table.release("p");
        assert!(changed.has_changed().unwrap());
    }
}
