//! The manifest source as the core sees it.

use std::path::PathBuf;
use std::sync::mpsc;
use std::sync::{Arc, Mutex, PoisonError};

use async_trait::async_trait;
use serde_json::Value;
use tokio::sync::{broadcast, oneshot};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::owner::{Command, Owner, Visible};
use super::records::{Records, RecordsError};
use super::watch;
use crate::desired::{Desired, DesiredPod, PodRef, SourceKind};
use crate::ports::{
    Event, EventSink, EventType, PodSource, PortError, ReferenceChanged, ReferenceKind, ReferencedObject, References,
    SourcePorts, StatusReport, StatusSink, Token, TokenAsk,
};

/// What the source needs to know.
#[derive(Debug, Clone)]
pub struct ManifestSettings {
    /// Where the manifests are.
    pub directory: PathBuf,
    /// vkubelet's state directory; ours is `manifest/` in it.
    pub state_dir: PathBuf,
    /// Our node's name.
    pub node_name: String,
}

/// The running source. Cheap to clone.
#[derive(Debug, Clone)]
pub struct ManifestSource {
    commands: mpsc::Sender<Command>,
    visible: Arc<Mutex<Visible>>,
    changes: broadcast::Sender<ReferenceChanged>,
}

impl ManifestSource {
    /// Reads the records, starts the owner thread and the watch.
    pub fn start(
        settings: ManifestSettings,
        desired: Desired,
        tracker: &TaskTracker,
        stop: &CancellationToken,
    ) -> Result<Self, RecordsError> {
        let records = Records::open(&settings.state_dir)?;
        let pods = records.load()?.into_iter().map(|record| (record.uid.clone(), record)).collect();
        let (commands, inbox) = mpsc::channel();
        let visible = Arc::new(Mutex::new(Visible::default()));
        let changes = broadcast::channel(256).0;
        let owner = Owner {
            directory: settings.directory.clone(),
            node_name: settings.node_name,
            records,
            pods,
            desired,
            visible: Arc::clone(&visible),
            changes: changes.clone(),
        };
        // The thread ends with the last sender.
        std::thread::Builder::new().name("manifest".to_owned()).spawn(move || owner.run(&inbox)).map_err(|source| {
            RecordsError::Io { verb: "start the thread for", path: settings.directory.clone(), source }
        })?;
        let (sender, directory, stop) = (commands.clone(), settings.directory, stop.clone());
        tracker.spawn(async move {
            let rescan = || {
                let _ = sender.send(Command::Rescan);
            };
            watch::run(&directory, rescan, stop).await;
        });
        Ok(Self { commands, visible, changes })
    }

    /// As the core sees it.
    #[must_use]
    pub fn ports(&self) -> SourcePorts {
        let this = Arc::new(self.clone());
        SourcePorts {
            kind: SourceKind::Manifest,
            status: this.clone(),
            events: this.clone(),
            references: this.clone(),
            pods: this,
        }
    }

    /// What is wrong in the directory: per file, naming the field and what to do.
    #[must_use]
    pub fn problems(&self) -> Vec<(String, String)> {
        let visible = self.visible.lock().unwrap_or_else(PoisonError::into_inner);
        visible.problems.iter().map(|(path, problem)| (path.clone(), problem.clone())).collect()
    }

    async fn ask<T>(
        &self,
        what: &str,
        command: impl FnOnce(oneshot::Sender<Result<T, PortError>>) -> Command,
    ) -> Result<T, PortError> {
        let gone = || PortError::CouldNotAsk { what: what.to_owned(), source: "the manifest thread has ended".into() };
        let (reply, answer) = oneshot::channel();
        self.commands.send(command(reply)).map_err(|_| gone())?;
        answer.await.map_err(|_| gone())?
    }

    fn object(&self, kind: ReferenceKind, namespace: &str, name: &str) -> Option<ReferencedObject> {
        let visible = self.visible.lock().unwrap_or_else(PoisonError::into_inner);
        visible.objects.get(&(kind, namespace.to_owned(), name.to_owned())).cloned()
    }
}

#[async_trait]
impl StatusSink for ManifestSource {
    fn report(&self, pod: &Arc<DesiredPod>, report: StatusReport) {
        let phase = report.status["phase"].as_str().unwrap_or_default();
        if report.terminated && matches!(phase, "Succeeded" | "Failed") {
            let (uid, status) = (pod.uid().to_owned(), (*report.status).clone());
            let _ = self.commands.send(Command::Ended { uid, status });
        }
    }

    async fn place(&self, pod: &DesiredPod, host: &str) -> Result<(), PortError> {
        let (uid, host) = (pod.uid().to_owned(), host.to_owned());
        self.ask("a placement", |reply| Command::Place { uid, host, reply }).await
    }

    async fn remove(&self, pod: &DesiredPod) -> Result<(), PortError> {
        let uid = pod.uid().to_owned();
        self.ask("a removal", |reply| Command::Remove { uid, reply }).await
    }
}

impl EventSink for ManifestSource {
    fn event(&self, pod: &PodRef, event: Event) {
        // The board keeps the last ones for people; here is no API that keeps them.
        let Event { kind, reason, message, field_path, .. } = event;
        match kind {
            EventType::Normal => {
                tracing::info!(
                    pod.uid = pod.uid,
                    pod.namespace = pod.namespace,
                    pod.name = pod.name,
                    reason,
                    detail = message,
                    field_path,
                    "event"
                );
            }
            EventType::Warning => {
                tracing::warn!(
                    pod.uid = pod.uid,
                    pod.namespace = pod.namespace,
                    pod.name = pod.name,
                    reason,
                    detail = message,
                    field_path,
                    "event"
                );
            }
        }
    }
}

#[async_trait]
impl References for ManifestSource {
    async fn config_map(&self, namespace: &str, name: &str) -> Result<Option<ReferencedObject>, PortError> {
        Ok(self.object(ReferenceKind::ConfigMap, namespace, name))
    }

    async fn secret(&self, namespace: &str, name: &str) -> Result<Option<ReferencedObject>, PortError> {
        Ok(self.object(ReferenceKind::Secret, namespace, name))
    }

    async fn token(&self, ask: &TokenAsk) -> Result<Option<Token>, PortError> {
        Err(PortError::Unsupported {
            what: format!("a token of serviceaccount {}/{}", ask.pod.namespace, ask.service_account),
            message: "there is no API server behind a manifest: remove the serviceAccountToken volume".to_owned(),
        })
    }

    fn changes(&self) -> broadcast::Receiver<ReferenceChanged> {
        self.changes.subscribe()
    }

    fn absent_hint(&self) -> Option<&'static str> {
        Some("add a file with it to the manifest directory")
    }
}

#[async_trait]
impl PodSource for ManifestSource {
    fn kind(&self) -> SourceKind {
        SourceKind::Manifest
    }

    async fn create(&self, pod: Value) -> Result<PodRef, PortError> {
        self.ask("a new manifest", |reply| Command::Create { pod, reply }).await
    }

    async fn delete(&self, pod: &PodRef, grace_seconds: Option<i64>) -> Result<bool, PortError> {
        let uid = pod.uid.clone();
        self.ask("a deletion", |reply| Command::Delete { uid, grace_seconds, reply }).await
    }
}

#[cfg(test)]
mod tests;
