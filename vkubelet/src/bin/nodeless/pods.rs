//! ps, logs, rm, describe.

use std::io::Write;
use std::time::Duration;

use http::Method;
use http_body_util::BodyExt;
use vkubelet::client_api::types::{List, PodItem, ProblemItem};

use crate::age;
use crate::args::{LogsOrder, Output, PodName, PsOrder, RmOrder};
use crate::connect::{Connection, Lines, target};
use crate::failure::Failure;
use crate::{table, timeline};

/// Waiting for a removal: the longest grace period that anybody sets, and a margin.
const REMOVED_WITHIN: Duration = Duration::from_secs(660);

pub(crate) async fn ps(connection: &Connection, order: &PsOrder, output: Output) -> Result<(), Failure> {
    let mut list: List<PodItem> = connection.json(Method::GET, "/v1/pods").await?;
    list.items.retain(|pod| order.namespace.as_ref().is_none_or(|n| *n == pod.namespace));
    if output == Output::Json {
        return table::json(&list.items);
    }
    let mut head = vec!["NAMESPACE", "NAME", "READY", "STATUS", "RESTARTS", "AGE"];
    if order.wide {
        head.extend(["IP", "HOST", "WAITS FOR"]);
    }
    let rows: Vec<Vec<String>> = list.items.iter().map(|pod| row(pod, order.wide)).collect();
    if rows.is_empty() {
        eprintln!("No pods. Put a manifest into vkubelet's --pod-manifest-path, or: nodeless run IMAGE");
    } else {
        table::print(&head, &rows)?;
    }
    problems(connection).await
}

fn row(pod: &PodItem, wide: bool) -> Vec<String> {
    let dash = |text: &str| if text.is_empty() { "<none>".to_owned() } else { text.to_owned() };
    let mut row = vec![
        pod.namespace.clone(),
        pod.name.clone(),
        format!("{}/{}", pod.ready, pod.containers),
        pod.display.clone(),
        pod.restarts.to_string(),
        age::since(&pod.created),
    ];
    if wide {
        row.extend([dash(&pod.ip), dash(&pod.host), pod.waiting.clone()]);
    }
    row
}

/// Manifests that are not taken are no pods, but somebody looks for them here.
async fn problems(connection: &Connection) -> Result<(), Failure> {
    let list: List<ProblemItem> = connection.json(Method::GET, "/v1/problems").await?;
    for item in list.items {
        eprintln!("warning: {}: {}", item.path, item.problem);
    }
    Ok(())
}

pub(crate) async fn logs(connection: &Connection, order: &LogsOrder) -> Result<(), Failure> {
    let tail = order.tail.map(|n| n.to_string());
    let since = order.since.map(|n| n.to_string());
    let mut query: Vec<(&str, &str)> = Vec::new();
    let flags = [("follow", order.follow), ("previous", order.previous), ("timestamps", order.timestamps)];
    query.extend(flags.into_iter().filter(|(_, on)| *on).map(|(name, _)| (name, "true")));
    query.extend(order.container.as_deref().map(|c| ("container", c)));
    query.extend(tail.as_deref().map(|n| ("tailLines", n)));
    query.extend(since.as_deref().map(|n| ("sinceSeconds", n)));
    let path = target(&["v1", "pods", &order.pod.namespace, &order.pod.pod, "logs"], &query);
    copy(connection, &path).await
}

/// Copies an answer to standard output.
pub(crate) async fn copy(connection: &Connection, path: &str) -> Result<(), Failure> {
    let mut body = connection.request(Method::GET, path, None).await?.into_body();
    let mut out = std::io::stdout();
    while let Some(frame) = body.frame().await {
        let frame = frame.map_err(|e| Failure::Talk(format!("the log ended early: {e}")))?;
        if let Ok(data) = frame.into_data() {
            out.write_all(&data).and_then(|()| out.flush()).map_err(Failure::output)?;
        }
    }
    Ok(())
}

pub(crate) async fn rm(connection: &Connection, order: &RmOrder) -> Result<(), Failure> {
    for pod in &order.pods {
        let grace = order.grace.map(|n| n.to_string());
        let query: Vec<(&str, &str)> = grace.as_deref().map(|n| ("grace", n)).into_iter().collect();
        // Watched from before, so that its end is this pod's and not a successor's.
        let watch = target(&["v1", "pods", &order.namespace, pod, "watch"], &[]);
        let mut watch = Lines::new(connection.request(Method::GET, &watch, None).await?);
        let path = target(&["v1", "pods", &order.namespace, pod], &query);
        connection.request(Method::DELETE, &path, None).await?;
        if !order.no_wait {
            let gone = async {
                while watch.next::<PodItem>().await?.is_some() {}
                Ok::<(), Failure>(())
            };
            match tokio::time::timeout(REMOVED_WITHIN, gone).await {
                Ok(result) => result?,
                Err(_) => {
                    return Err(Failure::Talk(format!(
                        "pod {pod} is still there; `nodeless describe {pod}` says more"
                    )));
                }
            }
        }
        table::write(&format!("pod \"{pod}\" deleted\n"))?;
    }
    Ok(())
}

pub(crate) async fn describe(connection: &Connection, order: &PodName, output: Output) -> Result<(), Failure> {
    let path = target(&["v1", "pods", &order.namespace, &order.pod], &[]);
    let pod: PodItem = connection.json(Method::GET, &path).await?;
    if output == Output::Json {
        return table::json(&pod);
    }
    let mut text = String::new();
    let mut line = |name: &str, value: &str| {
        if !value.is_empty() {
            text.push_str(&format!("{name:<12}{value}\n"));
        }
    };
    line("Name:", &pod.name);
    line("Namespace:", &pod.namespace);
    line("UID:", &pod.uid);
    line("Source:", &pod.source);
    line("Host:", &pod.host);
    line("Status:", &pod.display);
    line("IP:", &pod.ip);
    line("Waits for:", &pod.waiting);
    line("Message:", pod.status["message"].as_str().unwrap_or_default());
    text.push_str("Containers:\n");
    for container in pod.status["containerStatuses"].as_array().into_iter().flatten() {
        let name = container["name"].as_str().unwrap_or_default();
        text.push_str(&format!("  {name}: {}\n", container["state"]));
    }
    text.push_str("Timeline:\n");
    for (name, total, step) in timeline::steps(&pod.timeline) {
        text.push_str(&format!("  {name:<26}{total:>10.1} ms   (+{step:.1})\n"));
    }
    text.push_str("Events:\n");
    for event in &pod.events {
        let age = age::human(jiff::Timestamp::now().as_second() - event.unix_ns / 1_000_000_000);
        text.push_str(&format!("  {:<8} {age:>6}  {:<20} {}\n", event.kind, event.reason, event.message));
    }
    table::write(&text)
}
