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

/// A host, as it says and as it is with what is reserved there: kept, so that a pod that looks for a place copies nothing.
#[derive(Debug)]
struct Known {
    said: HostView,
    view: HostView,
    /// It does not answer: what it has may be another thing when it does again.
    away: bool,
}

#[derive(Debug, Default)]
struct State {
    hosts: BTreeMap<String, Known>,
    pods: HashMap<String, Held>,
}

impl State {
    /// Counts anew what is reserved on a host.
    fn count(&mut self, host: &str) {
        if let Some(known) = self.hosts.get_mut(host) {
            known.view = with_reserved(&known.said, &self.pods);
        }
    }

    fn insert(&mut self, uid: &str, held: Held) -> Option<Held> {
        let host = held.host.clone();
        let before = self.pods.insert(uid.to_owned(), held);
        if let Some(before) = before.as_ref().filter(|before| before.host != host) {
            self.count(&before.host);
        }
        self.count(&host);
        before
    }
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
        {
            let state = &mut *self.state();
            let known = Known { view: with_reserved(&view, &state.pods), said: view, away: false };
            state.hosts.insert(known.said.id.clone(), known);
        }
        self.tell();
    }

    /// The host does not answer any more. What is placed there stays placed there.
    pub fn host_lost(&self, id: &str) {
        if let Some(host) = self.state().hosts.get_mut(id) {
            host.said.ready = false;
            host.view.ready = false;
            host.away = true;
        }
    }

    /// The host was taken out of the node for good.
    pub fn host_removed(&self, id: &str) {
        self.state().hosts.remove(id);
    }

    /// A pod is on a host already: a durable placement that was read.
    pub fn hold(&self, uid: &str, host: &str, request: &Request) {
        let held = Held::of(host, request);
        let before = {
            let mut state = self.state();
            if state.pods.get(uid) == Some(&held) {
                return;
            }
            state.insert(uid, held)
        };
        if before.is_some() {
            self.tell();
        }
    }

    /// Picks a host and reserves room there.
    pub fn place(&self, uid: &str, request: &Request) -> Result<String, Unfit> {
        let mut state = self.state();
        if let Some(held) = state.pods.get(uid) {
            return Ok(held.host.clone());
        }
        let host = choose(uid, request, state.hosts.values().map(|known| &known.view))?.id.clone();
        state.insert(uid, Held::of(&host, request));
        Ok(host)
    }

    /// What the pod asks more of than these hosts, all of the node's, have together. `None` also while one of them has not
    /// been heard of, or is away: it may have the room.
    pub fn excess(&self, request: &Request, hosts: &BTreeSet<String>) -> Option<Excess> {
        let state = self.state();
        let known = hosts.iter().map(|id| state.hosts.get(id).filter(|known| !known.away).map(|known| &known.view));
        let views: Vec<&HostView> = known.collect::<Option<_>>()?;
        if views.is_empty() { None } else { excess(request, &views) }
    }

    /// The pod holds nothing any more.
    pub fn release(&self, uid: &str) {
        let released = {
            let mut state = self.state();
            let held = state.pods.remove(uid);
            if let Some(held) = &held {
                state.count(&held.host);
            }
            held.is_some()
        };
        if released {
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
        self.state().hosts.values().map(|known| known.view.clone()).collect()
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
    fn what_is_held_is_counted_where_it_is_whatever_comes_first() {
        let table = Reservations::default();
        let used = |host: &str| {
            let hosts = table.hosts();
            hosts.iter().find(|view| view.id == host).map(|view| view.used.milli_cpu)
        };
        table.hold("p", "a", &request(600));
        table.host(host("a", 1000));
        table.host(host("b", 1000));
        assert_eq!((used("a"), used("b")), (Some(600), Some(0)));
        table.hold("p", "a", &request(700));
        assert_eq!((used("a"), used("b")), (Some(700), Some(0)));
        table.hold("p", "b", &request(700));
        assert_eq!((used("a"), used("b")), (Some(0), Some(700)));
        let own = HostView { used: Amounts { milli_cpu: 800, ..Amounts::default() }, ..host("b", 1000) };
        table.host(own);
        assert_eq!(used("b"), Some(800), "what it reports is more");
        table.release("p");
        table.host(host("b", 1000));
        assert_eq!(used("b"), Some(0));
    }

    #[test]
    fn nothing_is_too_much_while_a_host_is_away() {
        let table = Reservations::default();
        table.host(host("a", 1000));
        table.host(HostView { ready: false, ..host("b", 1000) });
        let hosts = ["a", "b"].map(str::to_owned).into();
        assert!(table.excess(&request(2001), &hosts).is_some(), "one that says that it is not ready says what it has");
        table.host_lost("b");
        assert_eq!(table.excess(&request(2001), &hosts), None, "it may come back larger");
        table.host(host("b", 9000));
        assert_eq!(table.excess(&request(2001), &hosts), None);
        assert!(table.excess(&request(10_001), &hosts).is_some());
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
