//! bill: what pods held, for how long, and what they are billed.

use http::Method;
use serde::Deserialize;
use serde_json::Value;
use vkubelet::client_api::types::{List, PodItem};

use crate::args::{BillOrder, Output};
use crate::connect::{Connection, target};
use crate::failure::Failure;
use crate::table;

#[derive(Deserialize)]
struct Page {
    records: Vec<Value>,
    next_cursor: Option<String>,
}

pub(crate) async fn bill(connection: &Connection, order: &BillOrder, output: Output) -> Result<(), Failure> {
    let records = match &order.pod {
        Some(pod) => one(connection, pod, order.namespace.as_deref()).await?,
        None => all(connection, order.namespace.as_deref()).await?,
    };
    if output == Output::Json {
        return table::json(&records);
    }
    let rows: Vec<Vec<String>> = records.iter().map(row).collect();
    let head = ["NAMESPACE", "POD", "STATE", "BILLED", "HELD FOR", "CPU", "MEMORY", "CPU USED", "COST"];
    table::print(&head, &rows)
}

/// The bill of the pod with that name or UID; of all its lives when the name was used again.
async fn one(connection: &Connection, pod: &str, namespace: Option<&str>) -> Result<Vec<Value>, Failure> {
    let mut uids: Vec<String> = Vec::new();
    let live: List<PodItem> = connection.json(Method::GET, "/v1/pods").await?;
    let ours = |p: &&PodItem| p.uid == pod || (p.name == pod && namespace.is_none_or(|n| n == p.namespace));
    uids.extend(live.items.iter().filter(ours).map(|p| p.uid.clone()));
    for record in pages(connection, &[("pod", pod)], namespace).await? {
        let uid = record["uid"].as_str().unwrap_or_default().to_owned();
        if !uids.contains(&uid) {
            uids.push(uid);
        }
    }
    let mut records = Vec::new();
    for uid in &uids {
        match connection.json(Method::GET, &target(&["billing", "v1", "pods", uid], &[])).await {
            Ok(record) => records.push(record),
            // It has held nothing yet.
            Err(failure) if failure.is_not_found() => {}
            Err(failure) => return Err(failure),
        }
    }
    if records.is_empty() {
        let what = if uids.is_empty() { "no pod of that name or UID is known" } else { "it has held nothing yet" };
        return Err(Failure::Argument(format!("no bill for {pod}: {what}")));
    }
    Ok(records)
}

async fn all(connection: &Connection, namespace: Option<&str>) -> Result<Vec<Value>, Failure> {
    pages(connection, &[], namespace).await
}

async fn pages(
    connection: &Connection,
    query: &[(&str, &str)],
    namespace: Option<&str>,
) -> Result<Vec<Value>, Failure> {
    let mut records = Vec::new();
    let mut cursor: Option<String> = None;
    loop {
        let mut query = query.to_vec();
        query.extend(namespace.map(|n| ("namespace", n)));
        query.extend(cursor.as_deref().map(|c| ("cursor", c)));
        let page: Page = connection.json(Method::GET, &target(&["billing", "v1", "records"], &query)).await?;
        records.extend(page.records);
        match page.next_cursor {
            Some(next) => cursor = Some(next),
            None => return Ok(records),
        }
    }
}

fn row(record: &Value) -> Vec<String> {
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let number = |value: &Value| value.as_u64().unwrap_or_default();
    let held = &record["held"];
    let cost = match record["cost"]["amount"].as_str() {
        Some(amount) => format!("{amount} {}", text(&record["cost"]["currency"])),
        None => "-".to_owned(),
    };
    vec![
        text(&record["namespace"]),
        text(&record["name"]),
        text(&record["state"]),
        format!("{} s", number(&record["billed_seconds"])),
        format!("{:.9} s", number(&record["duration_ns"]) as f64 / 1e9),
        table::cpu(number(&held["milli_cpu"])),
        table::bytes(number(&held["memory_bytes"])),
        format!("{:.3} s", number(&record["used"]["cpu_ns"]) as f64 / 1e9),
        cost,
    ]
}
