//! Pods: list, create, delete, watch, logs.

use std::collections::HashMap;
use std::time::Duration;

use agent_api::proto::Timeline;
use axum::Json;
use axum::body::Body;
use axum::extract::{Path, Query, State};
use axum::response::{IntoResponse, Response};
use bytes::Bytes;
use futures::{Stream, StreamExt, stream};
use http::{StatusCode, header};
use serde_json::Value;

use super::types::{List, PodEventItem, PodItem, PodTimeline, ProblemItem};
use super::{ClientApi, Problem};
use crate::desired::SourceKind;
use crate::kubelet_api::logs as log_query;
use crate::pod::board::Entry;

/// A watch of a pod that is not there (yet) waits this long for it.
const APPEARS_WITHIN: Duration = Duration::from_secs(5);

pub(super) async fn list(State(api): State<ClientApi>) -> Json<List<PodItem>> {
    Json(List { items: api.controller.board().all().iter().map(item).collect() })
}

pub(super) async fn get(
    State(api): State<ClientApi>,
    Path((namespace, name)): Path<(String, String)>,
) -> Result<Json<PodItem>, Problem> {
    find(&api, &namespace, &name).map(|entry| Json(item(&entry)))
}

fn find(api: &ClientApi, namespace: &str, name: &str) -> Result<Entry, Problem> {
    api.controller
        .board()
        .find(namespace, name)
        .ok_or_else(|| Problem::not_found(format!("pod {namespace}/{name} not found; `nodeless ps` lists the pods")))
}

pub(super) async fn create(State(api): State<ClientApi>, Json(pod): Json<Value>) -> Result<Response, Problem> {
    let source =
        [SourceKind::Manifest, SourceKind::Kubernetes].into_iter().find_map(|kind| api.controller.source(kind));
    let Some(source) = source else { return Err(Problem::bad_request("vkubelet has no source of pods")) };
    let created = source.pods.create(pod).await?;
    let body = serde_json::json!({"namespace": created.namespace, "name": created.name, "uid": created.uid});
    Ok((StatusCode::CREATED, Json(body)).into_response())
}

pub(super) async fn delete(
    State(api): State<ClientApi>,
    Path((namespace, name)): Path<(String, String)>,
    Query(query): Query<HashMap<String, String>>,
) -> Result<StatusCode, Problem> {
    let grace = match query.get("grace") {
        None => None,
        Some(text) => match text.parse::<i64>() {
            Ok(seconds) if seconds >= 0 => Some(seconds),
            _ => return Err(Problem::bad_request(format!("grace: {text:?} is not a number of seconds"))),
        },
    };
    let entry = find(&api, &namespace, &name)?;
    let Some(source) = api.controller.source(entry.pod.source) else {
        return Err(Problem::bad_request("the pod's source is not configured any more"));
    };
    source.pods.delete(&entry.pod.pod_ref, grace).await?;
    Ok(StatusCode::ACCEPTED)
}

/// The pod now and on each change, until it is gone.
pub(super) async fn watch(
    State(api): State<ClientApi>,
    Path((namespace, name)): Path<(String, String)>,
) -> Result<Response, Problem> {
    let board = api.controller.board().clone();
    let mut changed = board.changed();
    let appears = async {
        loop {
            if let Some(entry) = board.find(&namespace, &name) {
                return entry;
            }
            if changed.changed().await.is_err() {
                std::future::pending::<()>().await;
            }
        }
    };
    let Ok(entry) = tokio::time::timeout(APPEARS_WITHIN, appears).await else {
        return Err(find(&api, &namespace, &name).err().unwrap_or_else(|| Problem::not_found("pod not found")));
    };
    let uid = entry.pod.uid().to_owned();
    let items = stream::unfold((changed, None::<PodItem>, false), move |(mut changed, mut last, mut ended)| {
        let (board, uid) = (board.clone(), uid.clone());
        async move {
            while !ended {
                match board.get(&uid) {
                    None => ended = true,
                    Some(entry) => {
                        let now = item(&entry);
                        if last.as_ref() != Some(&now) {
                            last = Some(now.clone());
                            return Some((now, (changed, last, false)));
                        }
                        ended = changed.changed().await.is_err();
                    }
                }
            }
            None
        }
    });
    Ok(lines(items))
}

/// A JSON object a line.
pub(super) fn lines<T: serde::Serialize + Send + 'static>(items: impl Stream<Item = T> + Send + 'static) -> Response {
    let lines = items.map(|item| {
        let mut line = serde_json::to_vec(&item)?;
        line.push(b'\n');
        Ok::<_, serde_json::Error>(Bytes::from(line))
    });
    ([(header::CONTENT_TYPE, "application/x-ndjson")], Body::from_stream(lines)).into_response()
}

pub(super) async fn logs(
    State(api): State<ClientApi>,
    Path((namespace, name)): Path<(String, String)>,
    Query(mut query): Query<HashMap<String, String>>,
) -> Result<Response, Problem> {
    let container = query.remove("container").unwrap_or_default();
    let now_ns = i64::try_from(jiff::Timestamp::now().as_nanosecond()).unwrap_or(i64::MAX);
    let mut request = log_query::parse(&query, now_ns).map_err(|e| Problem::bad_request(e.to_string()))?;
    request.container = container;
    let stream = api.access.logs(&namespace, &name, request).await?;
    let bytes = stream.map(|chunk| chunk.map(|c| c.data).map_err(|s| std::io::Error::other(s.message().to_owned())));
    Ok(([(header::CONTENT_TYPE, "text/plain; charset=utf-8")], Body::from_stream(bytes)).into_response())
}

pub(super) async fn problems(State(api): State<ClientApi>) -> Json<List<ProblemItem>> {
    let problems = api.manifest.map(|m| m.problems()).unwrap_or_default();
    Json(List { items: problems.into_iter().map(|(path, problem)| ProblemItem { path, problem }).collect() })
}

fn item(entry: &Entry) -> PodItem {
    let pod = &entry.pod;
    let object: Value = serde_json::from_slice(&pod.pod_json).unwrap_or_default();
    let status = entry.report.as_ref().map_or_else(|| object["status"].clone(), |r| (*r.status).clone());
    let containers = status["containerStatuses"].as_array().cloned().unwrap_or_default();
    let count = |list: &[Value]| u32::try_from(list.len()).unwrap_or(u32::MAX);
    let restarts = containers.iter().filter_map(|c| c["restartCount"].as_u64()).sum::<u64>();
    let ready: Vec<Value> = containers.iter().filter(|c| c["ready"] == true).cloned().collect();
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let phase = status["phase"].as_str().unwrap_or("Pending").to_owned();
    PodItem {
        namespace: pod.pod_ref.namespace.clone(),
        name: pod.pod_ref.name.clone(),
        uid: pod.pod_ref.uid.clone(),
        source: pod.source.as_str().to_owned(),
        host: entry.host.clone().unwrap_or_default(),
        display: display(&phase, &status, pod.deletion.is_some()),
        phase,
        ready: count(&ready),
        containers: u32::try_from(pod.pod.spec.as_ref().map_or(0, |s| s.containers.len())).unwrap_or(u32::MAX),
        restarts: u32::try_from(restarts).unwrap_or(u32::MAX),
        ip: text(&status["podIP"]),
        created: text(&object["metadata"]["creationTimestamp"]),
        deleting: pod.deletion.is_some() || entry.gone,
        waiting: entry.waiting.clone().unwrap_or_default(),
        timeline: timeline(entry),
        spec: object["spec"].clone(),
        status,
        events: entry
            .events
            .iter()
            .map(|e| PodEventItem {
                kind: e.kind.as_str().to_owned(),
                reason: e.reason.clone(),
                message: e.message.clone(),
                unix_ns: e.unix_ns,
            })
            .collect(),
    }
}

/// The STATUS column of `kubectl get pods`, as far as a node knows it.
fn display(phase: &str, status: &Value, deleting: bool) -> String {
    if deleting && !matches!(phase, "Succeeded" | "Failed") {
        return "Terminating".to_owned();
    }
    let mut word = status["reason"].as_str().unwrap_or(phase).to_owned();
    for container in status["containerStatuses"].as_array().into_iter().flatten().rev() {
        let state = &container["state"];
        if let Some(reason) = state["waiting"]["reason"].as_str() {
            word = reason.to_owned();
        } else if let Some(reason) = state["terminated"]["reason"].as_str() {
            word = reason.to_owned();
        } else if state["terminated"].is_object() {
            word = match (state["terminated"]["signal"].as_i64(), state["terminated"]["exitCode"].as_i64()) {
                (Some(signal), _) if signal != 0 => format!("Signal:{signal}"),
                (_, code) => format!("ExitCode:{}", code.unwrap_or_default()),
            };
        }
    }
    if word == "Completed" && phase == "Running" { "Running".to_owned() } else { word }
}

fn timeline(entry: &Entry) -> PodTimeline {
    let agent = entry.report.as_ref().and_then(|r| r.timeline).unwrap_or_default();
    let Timeline {
        accepted_ns,
        held_ns,
        image_ready_ns,
        sandbox_ready_ns,
        started_ns,
        first_byte_ns,
        finished_ns,
        released_ns,
        held_boottime_ns,
        released_boottime_ns,
    } = agent;
    PodTimeline {
        seen_ns: entry.times.seen_ns,
        placed_ns: entry.times.placed_ns,
        sent_ns: entry.times.sent_ns,
        accepted_ns,
        held_ns,
        image_ready_ns,
        sandbox_ready_ns,
        started_ns,
        first_byte_ns,
        finished_ns,
        released_ns,
        held_boottime_ns,
        released_boottime_ns,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn the_status_word_is_the_one_kubectl_shows() {
        let waiting = json!({"containerStatuses": [{"state": {"waiting": {"reason": "ImagePullBackOff"}}}]});
        assert_eq!(display("Pending", &waiting, false), "ImagePullBackOff");
        let killed =
            json!({"containerStatuses": [{"state": {"terminated": {"reason": "OOMKilled", "exitCode": 137}}}]});
        assert_eq!(display("Failed", &killed, false), "OOMKilled");
        let done = json!({"containerStatuses": [{"state": {"terminated": {"reason": "Completed"}}}]});
        assert_eq!(display("Succeeded", &done, false), "Completed");
        let running = json!({"containerStatuses": [{"state": {"running": {}}}]});
        assert_eq!(display("Running", &running, true), "Terminating");
        assert_eq!(display("Failed", &json!({"reason": "UnsupportedField"}), false), "UnsupportedField");
    }
}
