//! Keeps hosts told and objects' statuses true. One task owns all of it.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::time::Duration;

use agent_api::proto::RegistryCredential;
use futures::{Stream, StreamExt};
use k8s_openapi::jiff::Timestamp;
use kube::api::{ApiResource, DynamicObject, PostParams};
use kube::runtime::{WatchStreamExt, watcher};
use kube::{Api, Client, ResourceExt};
use tokio::sync::{broadcast, mpsc, watch};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::converse::{self, Set, Word};
use super::events;
use super::plan::{self, Share};
use super::resource::ImageSnapshot;
use super::secrets::Secrets;
use super::status::{Facts, Said, differ_in_progress_only, status};
use crate::hosts::{ConnectedHost, HostEvent, Hosts};
use crate::ports::References;

/// A host that has been away for so long is one no more, until it comes back.
const AWAY: Duration = Duration::from_secs(60);
/// Changes that come within this time are acted on together.
const SETTLE: Duration = Duration::from_millis(50);
/// Bytes that have come are written no more often.
const PROGRESS_EVERY: Duration = Duration::from_secs(2);
/// Nothing is written more often: two virtual nodes that cannot agree on an object do not fight over it.
const WRITE_EVERY: Duration = Duration::from_millis(300);
/// Everything is looked at again after this time: secrets change unseen.
const LOOK: Duration = Duration::from_secs(30);
/// After a write that failed.
const RETRY: Duration = Duration::from_secs(2);
/// Words of hosts that may wait.
const QUEUE: usize = 256;

/// What the controller works with.
pub(crate) struct Setting {
    /// The API server.
    pub(crate) client: Client,
    /// Our virtual node.
    pub(crate) node: String,
    /// Its hosts.
    pub(crate) hosts: Hosts,
    /// For pull secrets.
    pub(crate) references: Arc<dyn References>,
}

struct Host {
    labels: plan::Labels,
    /// The connection; 0: none in this life.
    connection: u64,
    away_since: Option<Instant>,
    set: watch::Sender<Set>,
}

struct Controller {
    setting: Setting,
    api: Api<ImageSnapshot>,
    secrets: Secrets,
    /// `None` until the first complete list.
    snapshots: Option<BTreeMap<String, ImageSnapshot>>,
    listing: BTreeMap<String, ImageSnapshot>,
    hosts: BTreeMap<String, Host>,
    said: BTreeMap<String, Said>,
    written: HashMap<String, Instant>,
    words: mpsc::Sender<Word>,
    /// Told once that the resource is not defined, or not ours to see.
    complained: bool,
}

/// Runs until cancelled.
pub(crate) async fn run(setting: Setting, stop: CancellationToken) {
    let mut events = setting.hosts.events();
    let (words, mut heard) = mpsc::channel(QUEUE);
    let api: Api<ImageSnapshot> = Api::all(setting.client.clone());
    // As they are: one that this version cannot read must not end the watch of the others.
    let raw: Api<DynamicObject> = Api::all_with(setting.client.clone(), &ApiResource::erase::<ImageSnapshot>(&()));
    let mut objects = Box::pin(watcher(raw, watcher::Config::default()).default_backoff());
    let secrets = Secrets::new(Arc::clone(&setting.references));
    let mut controller = Controller {
        api,
        secrets,
        snapshots: None,
        listing: BTreeMap::new(),
        hosts: BTreeMap::new(),
        said: BTreeMap::new(),
        written: HashMap::new(),
        words,
        complained: false,
        setting,
    };
    for host in controller.setting.hosts.list() {
        controller.connected(&host);
    }
    let mut wake = Instant::now() + LOOK;
    loop {
        tokio::select! {
            () = stop.cancelled() => return,
            () = tokio::time::sleep_until(wake) => {}
            step = controller.listen(&mut objects, &mut events, &mut heard) => if !step { return },
        }
        // What comes together is acted on together.
        let settled = Instant::now() + SETTLE;
        while let Ok(true) =
            tokio::time::timeout_at(settled, controller.listen(&mut objects, &mut events, &mut heard)).await
        {}
        tokio::select! {
            () = stop.cancelled() => return,
            next = controller.reconcile() => wake = next,
        }
    }
}

impl Controller {
    /// Takes in one thing that happened. False: nothing will any more.
    async fn listen(
        &mut self,
        objects: &mut (impl Stream<Item = Result<watcher::Event<DynamicObject>, watcher::Error>> + Unpin),
        events: &mut broadcast::Receiver<HostEvent>,
        heard: &mut mpsc::Receiver<Word>,
    ) -> bool {
        tokio::select! {
            event = objects.next() => match event {
                Some(event) => self.object(event),
                None => return false,
            },
            event = events.recv() => match event {
                Ok(event) => self.host(event),
                Err(broadcast::error::RecvError::Lagged(_)) => {
                    let there = self.setting.hosts.list();
                    let lost = |id: &String| !there.iter().any(|host| host.handle.host_id() == id);
                    for (_, host) in self.hosts.iter_mut().filter(|(id, _)| lost(id)) {
                        host.away_since.get_or_insert_with(Instant::now);
                    }
                    for host in there {
                        self.connected(&host);
                    }
                }
                Err(broadcast::error::RecvError::Closed) => return false,
            },
            word = heard.recv() => if let Some(word) = word {
                let current = self.hosts.get(&word.host).is_some_and(|host| host.connection == word.connection);
                if current {
                    self.said.insert(word.host, word.said);
                }
            },
        }
        true
    }

    fn object(&mut self, event: Result<watcher::Event<DynamicObject>, watcher::Error>) {
        match event {
            Ok(watcher::Event::Init) => self.listing.clear(),
            Ok(watcher::Event::InitApply(object)) => {
                let name = object.name_any();
                let known = || self.snapshots.as_ref().and_then(|all| all.get(&name)).cloned();
                if let Some(object) = parse(object).or_else(known) {
                    self.listing.insert(name, object);
                }
            }
            Ok(watcher::Event::InitDone) => {
                if self.snapshots.is_none() {
                    tracing::info!(snapshots = self.listing.len(), "image snapshots are served");
                    self.remember();
                }
                self.snapshots = Some(std::mem::take(&mut self.listing));
                self.complained = false;
            }
            Ok(watcher::Event::Apply(object)) => {
                if let (Some(all), Some(object)) = (&mut self.snapshots, parse(object)) {
                    all.insert(object.name_any(), object);
                }
            }
            Ok(watcher::Event::Delete(object)) => {
                if let Some(all) = &mut self.snapshots {
                    all.remove(&object.name_any());
                }
                self.written.remove(&object.name_any());
            }
            // Without the definition there is nothing to serve; that is said once, not each half minute.
            Err(error) if !self.complained => {
                self.complained = true;
                tracing::info!(
                    error = &error as &dyn std::error::Error,
                    "image snapshots cannot be listed (`vkubelet manifests` prints what the cluster needs); trying on"
                );
            }
            Err(error) => tracing::debug!(error = &error as &dyn std::error::Error, "image snapshots cannot be listed"),
        }
    }

    /// Hosts that have snapshots by an earlier life's word count until they come, or stay away.
    fn remember(&mut self) {
        let node = &self.setting.node;
        let entries = self.listing.values().filter_map(|object| object.status.as_ref()).flat_map(|s| &s.hosts);
        for entry in entries.filter(|entry| entry.node == *node) {
            self.hosts.entry(entry.name.clone()).or_insert_with(|| Host {
                labels: None,
                connection: 0,
                away_since: Some(Instant::now()),
                set: watch::Sender::default(),
            });
        }
    }

    fn host(&mut self, event: HostEvent) {
        match event {
            HostEvent::Connected(host) => self.connected(&host),
            HostEvent::Changed { host_id, status } => {
                if let Some(host) = self.hosts.get_mut(&host_id) {
                    host.labels = Some(status.labels.into_iter().collect());
                }
            }
            HostEvent::Disconnected { host_id, connection, .. } => {
                if let Some(host) = self.hosts.get_mut(&host_id).filter(|host| host.connection == connection) {
                    host.away_since = Some(Instant::now());
                }
            }
            HostEvent::Refused { .. } => {}
        }
    }

    fn connected(&mut self, host: &ConnectedHost) {
        let (id, connection) = (host.handle.host_id(), host.handle.connection());
        let labels = Some(host.status.labels.clone().into_iter().collect());
        if let Some(known) = self.hosts.get_mut(id)
            && known.connection == connection
        {
            (known.labels, known.away_since) = (labels, None);
            return;
        }
        let set = watch::Sender::new(None);
        tokio::spawn(converse::run(host.handle.clone(), set.subscribe(), self.words.clone()));
        self.hosts.insert(id.to_owned(), Host { labels, connection, away_since: None, set });
    }

    /// Brings hosts and objects in line; when to look again.
    async fn reconcile(&mut self) -> Instant {
        let now = Instant::now();
        let mut wake = now + LOOK;
        self.hosts.retain(|id, host| {
            let Some(gone) = host.away_since.map(|since| since + AWAY) else { return true };
            if gone > now {
                wake = wake.min(gone);
                return true;
            }
            self.said.remove(id);
            false
        });
        let Some(mut snapshots) = self.snapshots.take() else { return wake };
        let secrets = self.credentials(&snapshots).await;
        let wall = Timestamp::now();
        let labels: BTreeMap<String, plan::Labels> =
            self.hosts.iter().map(|(id, host)| (id.clone(), host.labels.clone())).collect();
        let targets: BTreeMap<&String, _> = snapshots
            .iter()
            .map(|(name, snapshot)| (name, plan::targets(snapshot, &self.setting.node, &labels, wall)))
            .collect();
        self.tell_hosts(&snapshots, &targets, &secrets);
        let mut statuses = Vec::new();
        for (name, snapshot) in &snapshots {
            let (Some(targets), Some((_, problems))) = (targets.get(name), secrets.get(name)) else { continue };
            let facts = Facts { node: &self.setting.node, targets, said: &self.said, secrets: problems, now: wall };
            statuses.push((name.clone(), status(snapshot, &facts)));
            if let Some(left) = plan::expires(snapshot).filter(|at| *at > wall) {
                let left = Duration::try_from(left.duration_since(wall)).unwrap_or_default();
                wake = wake.min(now + left.min(LOOK) + Duration::from_millis(10));
            }
        }
        for (name, new) in statuses {
            let Some(snapshot) = snapshots.get_mut(&name) else { continue };
            if snapshot.metadata.deletion_timestamp.is_some() || snapshot.status.as_ref() == Some(&new) {
                continue;
            }
            let old = snapshot.status.clone().unwrap_or_default();
            let only_progress = snapshot.status.is_some() && differ_in_progress_only(&old, &new);
            let pause = if only_progress { PROGRESS_EVERY } else { WRITE_EVERY };
            let due = self.written.get(&name).map_or(now, |at| *at + pause);
            if due > now {
                wake = wake.min(due);
                continue;
            }
            let mut object = snapshot.clone();
            object.metadata.managed_fields = None;
            object.status = Some(new);
            match self.api.replace_status(&name, &PostParams::default(), &object).await {
                Ok(written) => {
                    self.written.insert(name, Instant::now());
                    let new = written.status.clone().unwrap_or_default();
                    for change in events::changes(&self.setting.node, &old, &new) {
                        events::write(&self.setting.client, &self.setting.node, &written, &change).await;
                    }
                    *snapshot = written;
                }
                // Its newer version is on its way to us, or its end.
                Err(kube::Error::Api(status)) if status.is_conflict() || status.is_not_found() => {
                    wake = wake.min(now + RETRY);
                }
                Err(error) => {
                    tracing::warn!(
                        snapshot = name,
                        error = &error as &dyn std::error::Error,
                        "an image snapshot's status could not be written; trying again"
                    );
                    wake = wake.min(now + RETRY);
                }
            }
        }
        self.snapshots = Some(snapshots);
        wake
    }

    async fn credentials(&mut self, snapshots: &BTreeMap<String, ImageSnapshot>) -> BTreeMap<String, Credentials> {
        let mut all = BTreeMap::new();
        for (name, snapshot) in snapshots {
            let secrets = snapshot.spec.image_pull_secrets.iter().map(|secret| secret.name.as_str());
            all.insert(name.clone(), self.secrets.of(secrets).await);
        }
        all
    }

    fn tell_hosts(
        &self,
        snapshots: &BTreeMap<String, ImageSnapshot>,
        targets: &BTreeMap<&String, Result<std::collections::BTreeSet<String>, plan::BadSelector>>,
        secrets: &BTreeMap<String, Credentials>,
    ) {
        let shares: Vec<Share<'_>> = snapshots
            .iter()
            .filter_map(|(name, snapshot)| {
                let targets = targets.get(name)?.as_ref().ok()?;
                Some(Share { snapshot, targets, credentials: &secrets.get(name)?.0 })
            })
            .collect();
        for (id, host) in self.hosts.iter().filter(|(_, host)| host.away_since.is_none()) {
            let wanted = Some(plan::wanted(id, &shares));
            host.set.send_if_modified(|set| {
                let changed = *set != wanted;
                *set = wanted;
                changed
            });
        }
    }
}

/// What it wants, unless this version cannot read it: then what it wanted before stays wanted.
fn parse(object: DynamicObject) -> Option<ImageSnapshot> {
    let name = object.name_any();
    match object.try_parse() {
        Ok(snapshot) => Some(snapshot),
        Err(error) => {
            tracing::error!(
                snapshot = name,
                error = &error as &dyn std::error::Error,
                "an image snapshot cannot be read and is left alone"
            );
            None
        }
    }
}

/// Of an object's pull secrets, and what is wrong with them.
type Credentials = (Vec<RegistryCredential>, Vec<String>);
