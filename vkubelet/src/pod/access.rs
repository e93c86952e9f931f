//! Logs, exec and attachments of a pod by name: finds its host and asks it.

use agent_api::codes::{Code, StatusExt};
use agent_api::proto::{ExecInput, ExecOutput, LogsChunk, LogsRequest};
use futures::Stream;
use k8s_openapi::api::core::v1::Pod;
use tonic::Streaming;

use super::board::{Board, Entry};
use crate::hosts::{HostHandle, Hosts};

/// Why a pod cannot be reached.
#[derive(Debug, thiserror::Error)]
pub enum AccessError {
    /// No such pod or container.
    #[error("{0}")]
    NotFound(String),
    /// The pod or container is not in a state for this; the message says what it waits for.
    #[error("{0}")]
    WrongState(String),
    /// The host could not be asked.
    #[error("{0}")]
    CouldNotAsk(String),
}

impl AccessError {
    fn of(status: &tonic::Status) -> Self {
        let message = status.message().to_owned();
        match status.error_code() {
            Code::NotFound => Self::NotFound(message),
            code if code.is_unanswered() => Self::CouldNotAsk(message),
            Code::Internal | Code::EpochFenced => Self::CouldNotAsk(message),
            _ => Self::WrongState(message),
        }
    }
}

/// Reaches pods. Cheap to clone.
#[derive(Debug, Clone)]
pub struct PodAccess {
    board: Board,
    hosts: Hosts,
}

impl PodAccess {
    /// Over these pods and hosts.
    #[must_use]
    pub fn new(board: Board, hosts: Hosts) -> Self {
        Self { board, hosts }
    }

    /// The pods.
    #[must_use]
    pub fn board(&self) -> &Board {
        &self.board
    }

    /// A container's log. An empty `container` means the only one, or the one that the annotation
    /// `kubectl.kubernetes.io/default-container` names.
    pub async fn logs(
        &self,
        namespace: &str,
        name: &str,
        mut request: LogsRequest,
    ) -> Result<Streaming<LogsChunk>, AccessError> {
        let (entry, host) = self.reach(namespace, name)?;
        request.uid = entry.pod.uid().to_owned();
        request.container = container(&entry.pod.pod, &request.container)?;
        host.logs(request).await.map_err(|status| AccessError::of(&status))
    }

    /// Runs a command; the first input must be a start, whose pod and container are filled in by [`Self::exec_target`].
    pub async fn exec<S>(&self, target: &ExecTarget, input: S) -> Result<Streaming<ExecOutput>, AccessError>
    where
        S: Stream<Item = ExecInput> + Send + 'static,
    {
        target.host.exec(input).await.map_err(|status| AccessError::of(&status))
    }

    /// Connects with a container's own streams; the first input as for [`Self::exec`].
    pub async fn attach<S>(&self, target: &ExecTarget, input: S) -> Result<Streaming<ExecOutput>, AccessError>
    where
        S: Stream<Item = ExecInput> + Send + 'static,
    {
        target.host.attach(input).await.map_err(|status| AccessError::of(&status))
    }

    /// Where an exec or an attachment goes.
    pub fn exec_target(&self, namespace: &str, name: &str, wanted: &str) -> Result<ExecTarget, AccessError> {
        let (entry, host) = self.reach(namespace, name)?;
        let container = container(&entry.pod.pod, wanted)?;
        let (has_stdin, has_terminal) = streams(&entry.pod.pod, &container);
        Ok(ExecTarget { uid: entry.pod.uid().to_owned(), container, has_stdin, has_terminal, host })
    }

    fn reach(&self, namespace: &str, name: &str) -> Result<(Entry, HostHandle), AccessError> {
        let entry = self
            .board
            .find(namespace, name)
            .ok_or_else(|| AccessError::NotFound(format!("pod {namespace}/{name} not found")))?;
        let Some(host) = entry.host.clone() else {
            let why = entry.waiting.as_deref().unwrap_or("it has just been created");
            return Err(AccessError::WrongState(format!("pod {namespace}/{name} is not placed on a host yet: {why}")));
        };
        let handle = self.hosts.handle(&host).ok_or_else(|| {
            AccessError::CouldNotAsk(format!("host {host} of pod {namespace}/{name} is not connected"))
        })?;
        Ok((entry, handle))
    }
}

/// A container of a pod on its host.
#[derive(Debug, Clone)]
pub struct ExecTarget {
    /// The pod.
    pub uid: String,
    /// The container.
    pub container: String,
    /// It has a standard input of its own.
    pub has_stdin: bool,
    /// It has a terminal of its own.
    pub has_terminal: bool,
    host: HostHandle,
}

/// Whether a container asks for standard input, and for a terminal.
fn streams(pod: &Pod, name: &str) -> (bool, bool) {
    let spec = pod.spec.as_ref();
    let plain = spec.iter().flat_map(|s| s.containers.iter().chain(s.init_containers.iter().flatten()));
    let ephemeral = spec.iter().flat_map(|s| s.ephemeral_containers.iter().flatten());
    let mut all = plain.map(|c| (&c.name, c.stdin, c.tty)).chain(ephemeral.map(|c| (&c.name, c.stdin, c.tty)));
    let found = all.find(|(known, ..)| *known == name);
    found.map_or((false, false), |(_, stdin, tty)| (stdin == Some(true), tty == Some(true)))
}

fn container(pod: &Pod, wanted: &str) -> Result<String, AccessError> {
    let spec = pod.spec.as_ref();
    let main: Vec<&str> = spec.iter().flat_map(|s| &s.containers).map(|c| c.name.as_str()).collect();
    let init = spec.iter().flat_map(|s| s.init_containers.iter().flatten()).map(|c| c.name.as_str());
    let ephemeral = spec.iter().flat_map(|s| s.ephemeral_containers.iter().flatten()).map(|c| c.name.as_str());
    if wanted.is_empty() {
        let annotations = pod.metadata.annotations.as_ref();
        let default = annotations.and_then(|a| a.get("kubectl.kubernetes.io/default-container"));
        return match (default, main.as_slice()) {
            (Some(name), _) if main.contains(&name.as_str()) => Ok(name.clone()),
            (_, [only]) => Ok((*only).to_owned()),
            _ => Err(AccessError::WrongState(format!("a container name must be given, one of: {}", main.join(", ")))),
        };
    }
    if main.iter().copied().chain(init).chain(ephemeral).any(|name| name == wanted) {
        return Ok(wanted.to_owned());
    }
    Err(AccessError::NotFound(format!("container {wanted} not found in the pod, which has: {}", main.join(", "))))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn pod(names: &[&str], default: Option<&str>) -> Pod {
        let containers: Vec<_> = names.iter().map(|n| json!({"name": n})).collect();
        let annotations = default.map(|d| json!({"kubectl.kubernetes.io/default-container": d}));
        serde_json::from_value(json!({"metadata": {"annotations": annotations}, "spec": {"containers": containers}}))
            .unwrap()
    }

    #[test]
    fn an_unnamed_container_is_the_only_or_the_default_one() {
        assert_eq!(container(&pod(&["a"], None), "").unwrap(), "a");
        assert_eq!(container(&pod(&["a", "b"], Some("b")), "").unwrap(), "b");
        assert!(
            matches!(container(&pod(&["a", "b"], None), ""), Err(AccessError::WrongState(m)) if m.contains("a, b"))
        );
        assert!(matches!(container(&pod(&["a"], None), "x"), Err(AccessError::NotFound(_))));
    }
}
