//! Images of hosts.

use std::collections::HashMap;

use agent_api::proto::PullImageProgress;
use axum::Json;
use axum::extract::{Query, State};
use axum::response::Response;
use futures::future::join_all;
use futures::{Stream, StreamExt, stream};

use super::pods::lines;
use super::types::{CollectedItem, ImageItem, List, PullOrder, PullProgress, RemovedItem, VerifiedItem};
use super::{ClientApi, Problem};
use crate::hosts::HostHandle;

/// The named host, or all that are connected.
fn chosen(api: &ClientApi, host: &str) -> Result<Vec<HostHandle>, Problem> {
    if !host.is_empty() {
        let missing = || Problem::not_found(format!("host {host} is not connected; `nodeless hosts` lists the hosts"));
        return api.hosts.handle(host).map(|handle| vec![handle]).ok_or_else(missing);
    }
    let all: Vec<HostHandle> = api.hosts.list().into_iter().map(|h| h.handle).collect();
    if all.is_empty() {
        return Err(Problem::not_found("no host is connected: run `nodeless-agent join` on one"));
    }
    Ok(all)
}

pub(super) async fn list(
    State(api): State<ClientApi>,
    Query(query): Query<HashMap<String, String>>,
) -> Result<Json<List<ImageItem>>, Problem> {
    let handles = chosen(&api, query.get("host").map_or("", String::as_str))?;
    let answers = join_all(handles.iter().map(|handle| async move { (handle.host_id(), handle.list_images().await) }));
    let mut items = Vec::new();
    for (host, answer) in answers.await {
        let reply = answer.map_err(|status| Problem::of_host(host, &status))?;
        items.extend(reply.images.into_iter().map(|image| ImageItem {
            host: host.to_owned(),
            references: image.references,
            digest: image.digest,
            size_bytes: image.size_bytes,
            layers: image.layers,
            last_used_unix: image.last_used_unix,
            in_use: image.in_use,
            pinned: image.pinned,
            domain: image.domain,
        }));
    }
    Ok(Json(List { items }))
}

pub(super) async fn pull(State(api): State<ClientApi>, Json(order): Json<PullOrder>) -> Result<Response, Problem> {
    if order.reference.is_empty() {
        return Err(Problem::bad_request("reference: is missing"));
    }
    let handles = chosen(&api, &order.host)?;
    // Whoever may write manifests may name paths on hosts; so may the same people here.
    let source = if api.manifest.is_some() { "manifest" } else { "client" };
    let streams = handles.into_iter().map(|handle| Box::pin(progress(handle, order.reference.clone(), source)));
    Ok(lines(stream::select_all(streams)))
}

fn progress(handle: HostHandle, reference: String, source: &'static str) -> impl Stream<Item = PullProgress> {
    let host = handle.host_id().to_owned();
    let begin = async move {
        let end = |error: String, complete: bool| PullProgress {
            host: host.clone(),
            error,
            complete,
            ..PullProgress::default()
        };
        match handle.pull_image(&reference, Vec::new(), source).await {
            Err(status) => stream::iter([end(status.message().to_owned(), false)]).boxed(),
            Ok(updates) => {
                let (each, last) = (host.clone(), end(String::new(), true));
                let failed = std::sync::Arc::new(std::sync::atomic::AtomicBool::new(false));
                let seen = std::sync::Arc::clone(&failed);
                let lines = updates.map(move |update| match update {
                    Ok(update) => one(&each, update),
                    Err(status) => {
                        seen.store(true, std::sync::atomic::Ordering::Relaxed);
                        PullProgress {
                            host: each.clone(),
                            error: status.message().to_owned(),
                            ..PullProgress::default()
                        }
                    }
                });
                let end =
                    stream::once(async move { (!failed.load(std::sync::atomic::Ordering::Relaxed)).then_some(last) });
                lines.chain(end.filter_map(std::future::ready)).boxed()
            }
        }
    };
    stream::once(begin).flatten()
}

fn one(host: &str, update: PullImageProgress) -> PullProgress {
    PullProgress {
        host: host.to_owned(),
        phase: update.phase,
        layer: update.layer,
        done_bytes: update.done_bytes,
        total_bytes: update.total_bytes,
        message: update.message,
        ..PullProgress::default()
    }
}

pub(super) async fn remove(
    State(api): State<ClientApi>,
    Query(query): Query<HashMap<String, String>>,
) -> Result<Json<List<RemovedItem>>, Problem> {
    let reference = query.get("reference").filter(|r| !r.is_empty());
    let reference = reference.ok_or_else(|| Problem::bad_request("reference: is missing"))?;
    let domain = query.get("domain").map(String::as_str);
    let handles = chosen(&api, query.get("host").map_or("", String::as_str))?;
    let removed = handles.iter().map(|handle| async move {
        let host = handle.host_id().to_owned();
        match handle.remove_image(reference, domain).await {
            Ok(reply) => {
                RemovedItem { host, removed: reply.removed, freed_bytes: reply.freed_bytes, error: String::new() }
            }
            Err(status) => RemovedItem { host, removed: false, freed_bytes: 0, error: status.message().to_owned() },
        }
    });
    Ok(Json(List { items: join_all(removed).await }))
}

pub(super) async fn verify(
    State(api): State<ClientApi>,
    Query(query): Query<HashMap<String, String>>,
) -> Result<Response, Problem> {
    let handles = chosen(&api, query.get("host").map_or("", String::as_str))?;
    let repair = query.get("repair").is_some_and(|word| word == "true");
    Ok(lines(stream::select_all(handles.into_iter().map(|handle| Box::pin(verified(handle, repair))))))
}

fn verified(handle: HostHandle, repair: bool) -> impl Stream<Item = VerifiedItem> {
    let begin = async move {
        let host = handle.host_id().to_owned();
        let failed = {
            let host = host.clone();
            move |status: &tonic::Status| VerifiedItem {
                host: host.clone(),
                error: status.message().to_owned(),
                ..VerifiedItem::default()
            }
        };
        match handle.verify_images(repair).await {
            Err(status) => stream::iter([failed(&status)]).boxed(),
            Ok(layers) => layers
                .map(move |layer| match layer {
                    Ok(layer) => VerifiedItem {
                        host: host.clone(),
                        layer: layer.layer,
                        verdict: layer.verdict,
                        references: layer.references,
                        action: layer.action,
                        message: layer.message,
                        error: String::new(),
                    },
                    Err(status) => failed(&status),
                })
                .boxed(),
        }
    };
    stream::once(begin).flatten()
}

pub(super) async fn collect(
    State(api): State<ClientApi>,
    Query(query): Query<HashMap<String, String>>,
) -> Result<Json<List<CollectedItem>>, Problem> {
    let seconds = query.get("unused").map_or(Ok(0), |text| text.parse::<u64>());
    let seconds = seconds.map_err(|_| Problem::bad_request("unused: is not a number of seconds"))?;
    let handles = chosen(&api, query.get("host").map_or("", String::as_str))?;
    let collected = handles.iter().map(|handle| async move {
        let host = handle.host_id().to_owned();
        match handle.collect_images(seconds).await {
            Ok(reply) => CollectedItem {
                host,
                references: reply.references,
                layers: reply.layers,
                freed_bytes: reply.freed_bytes,
                error: String::new(),
            },
            Err(status) => CollectedItem { host, error: status.message().to_owned(), ..CollectedItem::default() },
        }
    });
    Ok(Json(List { items: join_all(collected).await }))
}
