//! Every pod of this host: which are wanted, which run; the fence, admission, complete-set sync and its brake.
//!
//! All changes go through one lock, so that capacity is never given away twice and a sync sees one state of affairs. What takes
//! time (the ledger's disk) is awaited under it per pod only where the next decision depends on it.

mod brake;
#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use tokio::sync::{Mutex, oneshot};

use crate::board::Posted;
use crate::cpus;
use crate::devices::{self, Assigned, Taken, taken_cpus};
use crate::host::admission::{self, Room};
use crate::host::host_ports;
use crate::intent::Intent;
use crate::ledger::{LedgerError, PodRecord, new_record};
use crate::pod::plan::Plan;
use crate::pod::refusals;
use crate::pod::spec::resources::pod_requests;
use crate::pod::spec::scalars;
use crate::pod::state::{PodState, Verdict};
use crate::pod::task::{Beginning, Handle, PodTask, Request, Standing, World};

/// How long a pod's disk may take to be looked at.
const PATIENCE: std::time::Duration = std::time::Duration::from_secs(60);

/// Why a request changed nothing.
#[derive(Debug, thiserror::Error)]
pub enum RosterError {
    /// A lower epoch than one seen before.
    #[error("epoch {epoch} is lower than {highest}: another vkubelet has taken over")]
    Fenced {
        /// The caller's.
        epoch: u64,
        /// The highest seen.
        highest: u64,
    },
    /// Pods are still being recovered.
    #[error("the agent is still recovering its pods")]
    Recovering,
    /// Not durable, so not accepted.
    #[error("pod {uid} could not be written down: {message}")]
    NotWritten {
        /// Which pod.
        uid: String,
        /// Why.
        message: String,
    },
    /// The epoch could not be written down.
    #[error("epoch could not be written down")]
    Epoch(#[source] LedgerError),
    /// A uid that cannot be a file name.
    #[error("pod uid {uid:?} is not 1 to 128 characters of letters, digits, '.', '-' and '_'")]
    BadUid {
        /// As given.
        uid: String,
    },
    /// The pod still holds something.
    #[error("pod {uid} is not terminated")]
    NotTerminated {
        /// Which pod.
        uid: String,
    },
}

/// What a complete-set sync did.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Synced {
    /// UIDs that the brake kept.
    pub held: Vec<String>,
    /// Why each of these was not taken in.
    pub refused: Vec<(String, String)>,
}

struct Inner {
    epoch: u64,
    pods: BTreeMap<String, Handle>,
    recovering: bool,
}

/// The roster; shared by reference.
pub struct Roster {
    world: Arc<World>,
    room: Room,
    inner: Mutex<Inner>,
}

impl std::fmt::Debug for Roster {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Roster").field("room", &self.room).finish_non_exhaustive()
    }
}

/// A pod found in the ledger, and what became of its sandbox.
#[derive(Debug)]
pub struct Survivor {
    /// Its record.
    pub record: PodRecord,
    /// Its intent.
    pub intent: Intent,
    /// Its sandbox lives.
    pub alive: bool,
    /// It is from another boot.
    pub rebooted: bool,
    /// Its secret material is at hand, or it needs none.
    pub material: bool,
}

impl Roster {
    /// An empty roster that refuses everything until [`Roster::recovered`].
    pub fn new(world: Arc<World>, room: Room, epoch: u64) -> Self {
        let inner = Inner { epoch, pods: BTreeMap::new(), recovering: true };
        Self { world, room, inner: Mutex::new(inner) }
    }

    /// The world of its pods.
    pub fn world(&self) -> &Arc<World> {
        &self.world
    }

    /// What this host has to give.
    pub fn room(&self) -> &Room {
        &self.room
    }

    /// Takes back what was there before the agent's restart; from now on requests are answered.
    pub async fn recovered(&self, survivors: Vec<Survivor>) {
        let mut inner = self.inner.lock().await;
        for survivor in survivors {
            let Survivor { record, intent, alive, rebooted, material } = survivor;
            let uid = intent.uid.clone();
            // Counted before the first new pod is looked at, not when its task has got so far.
            self.reserve(&intent, &record.assigned, record.takes_room(), record.state.is_terminal());
            let beginning = Beginning::Recovered { alive, rebooted, material };
            let handle = PodTask::spawn(self.world.clone(), intent, record, beginning);
            inner.pods.insert(uid, handle);
        }
        inner.recovering = false;
        self.world.metrics.set_ready();
    }

    /// Checks the fence, and raises it. Called before any change.
    pub async fn fence(&self, epoch: u64) -> Result<(), RosterError> {
        let mut inner = self.inner.lock().await;
        self.fence_locked(&mut inner, epoch).await
    }

    async fn fence_locked(&self, inner: &mut Inner, epoch: u64) -> Result<(), RosterError> {
        if epoch < inner.epoch {
            self.world.metrics.fenced();
            tracing::warn!(epoch, highest = inner.epoch, "a call from an overtaken vkubelet was refused");
            return Err(RosterError::Fenced { epoch, highest: inner.epoch });
        }
        if epoch > inner.epoch {
            let ledger = self.world.ledger.clone();
            let written = tokio::task::spawn_blocking(move || ledger.save_epoch(epoch)).await;
            match written {
                Ok(result) => result.map_err(RosterError::Epoch)?,
                Err(error) => {
                    return Err(RosterError::NotWritten { uid: String::new(), message: error.to_string() });
                }
            }
            inner.epoch = epoch;
        }
        Ok(())
    }

    /// One pod's desired state.
    pub async fn apply(&self, epoch: u64, intent: Intent) -> Result<(), RosterError> {
        let waiting = {
            let mut inner = self.inner.lock().await;
            self.fence_locked(&mut inner, epoch).await?;
            if inner.recovering {
                return Err(RosterError::Recovering);
            }
            self.apply_locked(&mut inner, intent).await?
        };
        waiting.done().await
    }

    async fn apply_locked(&self, inner: &mut Inner, intent: Intent) -> Result<Waiting, RosterError> {
        let uid = intent.uid.clone();
        check_uid(&uid)?;
        let (sender, answer) = oneshot::channel();
        // A task that ended without being forgotten (its first write failed) has left nothing: a new one begins.
        match inner.pods.get(&uid).filter(|handle| !handle.requests.is_closed()) {
            Some(handle) => {
                let handle = handle.requests.clone();
                if handle.send(Request::Intent(Box::new(intent), sender)).await.is_err() {
                    inner.pods.remove(&uid);
                }
            }
            // Generation 0 only says that the pod is wanted: what it refers to has not been looked up yet.
            None if intent.generation == 0 => drop(sender.send(Ok(()))),
            None if intent.has_ended() => {
                self.post_ended(&intent);
                let _ = sender.send(Ok(()));
            }
            None => self.begin(inner, intent, sender),
        }
        Ok(Waiting { uid, answer })
    }

    fn begin(&self, inner: &mut Inner, intent: Intent, accepted: oneshot::Sender<Result<(), String>>) {
        let uid = intent.uid.clone();
        let (judged, notes) = self.judge(&intent);
        let (assigned, verdict) = match judged {
            Ok(assigned) => (assigned, None),
            Err(verdict) => (Assigned::default(), Some(verdict)),
        };
        let state = PodState::new(Plan::of(&intent.pod).slots.len());
        let record = PodRecord { assigned, ..new_record(&intent, state, &self.world.boot_id) };
        // Room is taken before the next pod is looked at, not when the task has got so far.
        self.reserve(&intent, &record.assigned, verdict.is_none(), false);
        let beginning = Beginning::New { verdict, notes, accepted };
        inner.pods.insert(uid, PodTask::spawn(self.world.clone(), intent, record, beginning));
    }

    fn reserve(&self, intent: &Intent, assigned: &Assigned, takes_room: bool, terminated: bool) {
        let spec = intent.pod.spec.as_ref().filter(|_| takes_room);
        self.world.board.reserve(Posted {
            uid: intent.uid.clone(),
            namespace: intent.namespace().to_owned(),
            name: intent.name().to_owned(),
            generation: intent.generation,
            requests: spec.and_then(|spec| pod_requests(spec).ok()).unwrap_or_default(),
            scalars: spec.and_then(|spec| scalars::of_pod(spec).ok()).unwrap_or_default(),
            assigned: spec.map(|_| assigned.clone()).unwrap_or_default(),
            host_ports: spec.map(host_ports::claimed).unwrap_or_default(),
            terminated,
            deleting: intent.deletion.is_some(),
            ..Posted::default()
        });
    }

    /// A pod that ended in a life of this host that nobody here remembers: it is never started again.
    fn post_ended(&self, intent: &Intent) {
        let status = intent.raw.get("status").map(ToString::to_string).unwrap_or_default();
        self.world.board.post(Posted {
            uid: intent.uid.clone(),
            namespace: intent.namespace().to_owned(),
            name: intent.name().to_owned(),
            generation: intent.generation,
            status_json: status.into_bytes().into(),
            terminated: true,
            deleting: intent.deletion.is_some(),
            ..Posted::default()
        });
    }

    /// Admission: what this version cannot do, then what this host has no room for; gives what only one can have.
    fn judge(&self, intent: &Intent) -> (Result<Assigned, Verdict>, Vec<(&'static str, String)>) {
        let found = refusals::find(intent, &self.world.host.trust);
        self.world.metrics.unknown_fields(found.unknown.len());
        let mut notes = Vec::new();
        let refuse = |reason: &str, message: &str| {
            let message = format!("Pod was rejected: {message}");
            Err(Verdict { reason: reason.to_owned(), message, disrupted: false })
        };
        if !found.unknown.is_empty() {
            notes.push(("UnknownPodField", refusals::unknown_message(&found.unknown)));
        }
        if !found.unenforced.is_empty() {
            notes.push(("UnenforcedPodField", refusals::unenforced_message(&found.unenforced)));
        }
        if !found.refused.is_empty() {
            return (refuse("UnsupportedPodField", &refusals::refused_message(&found.refused)), notes);
        }
        if let Some((reason, message)) = found.verdict {
            return (refuse(reason, &message), notes);
        }
        let posted = self.world.board.all();
        // Units before amounts, as a kubelet looks at them.
        let holders = || posted.iter().filter(|pod| !pod.terminated).map(|pod| &pod.assigned);
        let host = &self.world.host;
        let assigned = intent.pod.spec.as_ref().map_or_else(
            || Ok(Assigned::default()),
            |spec| {
                let devices = devices::assign(&host.trust.devices, &Taken::by(holders()), spec)?;
                let cpus = match &host.cpus {
                    Some(cpus) => cpus::assign(cpus, &taken_cpus(holders()), spec)?,
                    None => Default::default(),
                };
                Ok(Assigned { cpus, ..devices })
            },
        );
        let judged = match assigned {
            Ok(assigned) => admission::admit(&self.room, &posted, intent).map(|()| assigned),
            Err::<_, String>(message) => refuse("UnexpectedAdmissionError", &message),
        };
        (judged, notes)
    }

    /// The complete desired set. Pods that are not in it and carry no deletion mark are removed, unless the brake holds.
    /// `unreadable`: pods that are wanted, too, but came damaged; nothing is done about them. `confirmed`: pods whose removal an
    /// operator has confirmed; the brake does not count them.
    pub async fn sync(
        &self,
        epoch: u64,
        intents: Vec<Intent>,
        unreadable: &[String],
        confirmed: &[String],
    ) -> Result<Synced, RosterError> {
        let mut inner = self.inner.lock().await;
        self.fence_locked(&mut inner, epoch).await?;
        if inner.recovering {
            return Err(RosterError::Recovering);
        }
        let wanted: BTreeSet<String> = intents.iter().map(|i| &i.uid).chain(unreadable).cloned().collect();
        let posted = self.world.board.all();
        let running: Vec<&Posted> = posted.iter().filter(|p| !p.terminated).collect();
        let unwanted = running.iter().filter(|p| !wanted.contains(&p.uid) && !p.deleting).map(|p| p.uid.clone());
        let (mut going, unmarked): (Vec<String>, Vec<String>) = unwanted.partition(|uid| confirmed.contains(uid));
        let mut synced = Synced::default();
        let mut waiting = Vec::new();
        for intent in intents {
            let uid = intent.uid.clone();
            match self.apply_locked(&mut inner, intent).await {
                Ok(answer) => waiting.push(answer),
                Err(error) => synced.refused.push((uid, error.to_string())),
            }
        }
        if brake::holds(running.len(), unmarked.len()) {
            self.world.metrics.brake_held();
            tracing::error!(
                running = running.len(),
                unwanted = unmarked.len(),
                "a complete-set sync would remove too many running pods without a deletion mark: held"
            );
            synced.held = unmarked;
        } else {
            going.extend(unmarked);
        }
        for uid in going {
            tracing::warn!(pod.uid = uid, "pod is no longer wanted");
            if let Some(handle) = inner.pods.get(&uid) {
                let _ = handle.requests.send(Request::Remove).await;
            }
        }
        // Terminated pods that nobody knows any more are forgotten.
        let gone: Vec<String> =
            posted.iter().filter(|p| p.terminated && !wanted.contains(&p.uid)).map(|p| p.uid.clone()).collect();
        for uid in gone {
            self.forget_locked(&mut inner, &uid).await?;
        }
        drop(inner);
        for answer in waiting {
            let uid = answer.uid.clone();
            if let Err(error) = answer.done().await {
                synced.refused.push((uid, error.to_string()));
            }
        }
        Ok(synced)
    }

    /// How pods stand that may have to make way, by uid.
    pub async fn standing(&self) -> Vec<(String, Standing)> {
        let handles: Vec<(String, Handle)> =
            self.inner.lock().await.pods.iter().map(|(uid, handle)| (uid.clone(), handle.clone())).collect();
        let mut standing = Vec::new();
        for (uid, handle) in handles {
            let (sender, answer) = oneshot::channel();
            if handle.requests.send(Request::Standing(sender)).await.is_ok()
                && let Ok(Ok(pod)) = tokio::time::timeout(PATIENCE, answer).await
            {
                standing.push((uid, pod));
            }
        }
        standing
    }

    /// Ends a pod, because the node is short of what it keeps.
    pub async fn evict(&self, uid: &str, message: String) {
        let handle = self.inner.lock().await.pods.get(uid).cloned();
        if let Some(handle) = handle {
            let _ = handle.requests.send(Request::Evict { message }).await;
        }
    }

    /// The pod's object is gone: nothing of it needs to be remembered.
    pub async fn forget(&self, epoch: u64, uid: &str) -> Result<(), RosterError> {
        let mut inner = self.inner.lock().await;
        self.fence_locked(&mut inner, epoch).await?;
        if inner.recovering {
            return Err(RosterError::Recovering);
        }
        if self.forget_locked(&mut inner, uid).await? {
            Ok(())
        } else {
            Err(RosterError::NotTerminated { uid: uid.to_owned() })
        }
    }

    async fn forget_locked(&self, inner: &mut Inner, uid: &str) -> Result<bool, RosterError> {
        let Some(handle) = inner.pods.get(uid) else {
            self.world.board.remove(uid);
            return Ok(true);
        };
        let (sender, answer) = oneshot::channel();
        let asked = handle.requests.send(Request::Forget(sender)).await.is_ok();
        let forgotten = !asked || answer.await.unwrap_or(true);
        if forgotten {
            inner.pods.remove(uid);
        }
        Ok(forgotten)
    }

    /// Lets go of the pod tasks; what they wanted written is durable when this returns. Pods go on running.
    pub async fn close(&self) {
        let mut inner = self.inner.lock().await;
        inner.recovering = true;
        let pods = std::mem::take(&mut inner.pods);
        let mut endings = Vec::new();
        for (_, handle) in pods {
            let Handle { requests, mut generation } = handle;
            drop(requests);
            endings.push(async move { while generation.changed().await.is_ok() {} });
        }
        futures::future::join_all(endings).await;
    }
}

/// An answer that comes when an intent is durable.
struct Waiting {
    uid: String,
    answer: oneshot::Receiver<Result<(), String>>,
}

impl Waiting {
    async fn done(self) -> Result<(), RosterError> {
        match self.answer.await {
            Ok(Ok(())) => Ok(()),
            Ok(Err(message)) => Err(RosterError::NotWritten { uid: self.uid, message }),
            Err(_) => Err(RosterError::NotWritten { uid: self.uid, message: "its task has ended".to_owned() }),
        }
    }
}

fn check_uid(uid: &str) -> Result<(), RosterError> {
    let plain = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'-' | b'_');
    if uid.is_empty() || uid.len() > 128 || uid.starts_with('.') || !uid.bytes().all(plain) {
        return Err(RosterError::BadUid { uid: uid.to_owned() });
    }
    Ok(())
}
