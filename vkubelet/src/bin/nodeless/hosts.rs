//! hosts: list them, let held pods go.

use http::Method;
use vkubelet::client_api::types::{HostItem, List, ReleasedItem};

use crate::args::{HostsCommand, Output};
use crate::connect::{Connection, target};
use crate::failure::Failure;
use crate::table;

pub(crate) async fn hosts(
    connection: &Connection,
    command: Option<HostsCommand>,
    output: Output,
) -> Result<(), Failure> {
    match command {
        None | Some(HostsCommand::Ls) => list(connection, output).await,
        Some(HostsCommand::Release { host }) => release(connection, &host, output).await,
    }
}

async fn release(connection: &Connection, host: &str, output: Output) -> Result<(), Failure> {
    let path = target(&["v1", "hosts", host, "release"], &[]);
    let released: ReleasedItem = connection.json(Method::POST, &path).await?;
    if output == Output::Json {
        return table::json(&released);
    }
    println!("host {} ends {} pods:", released.host, released.pods.len());
    released.pods.iter().for_each(|uid| println!("{uid}"));
    Ok(())
}

async fn list(connection: &Connection, output: Output) -> Result<(), Failure> {
    let list: List<HostItem> = connection.json(Method::GET, "/v1/hosts").await?;
    if output == Output::Json {
        return table::json(&list.items);
    }
    if list.items.is_empty() {
        eprintln!(
            "No host has joined. Make a token with `vkubelet token create`, then run `nodeless-agent join` on a host."
        );
        return Ok(());
    }
    let rows: Vec<Vec<String>> = list.items.iter().map(row).collect();
    table::print(&["NAME", "STATUS", "PODS", "CPU", "MEMORY", "ARCH", "VERSION", "ADDRESS"], &rows)?;
    for host in list.items.iter().filter(|host| !host.held_pods.is_empty()) {
        eprintln!(
            "{0}: {1} running pods are not wanted any more, but have no deletion mark, and are kept. If they are to end: \
             `nodeless hosts release {0}`.",
            host.id,
            host.held_pods.len()
        );
    }
    Ok(())
}

fn row(host: &HostItem) -> Vec<String> {
    let status = match (host.connected, host.ready) {
        (false, _) => "Away".to_owned(),
        (true, true) if !host.held_pods.is_empty() => format!("Ready ({} pods held)", host.held_pods.len()),
        (true, true) => "Ready".to_owned(),
        (true, false) if host.conditions.is_empty() => "NotReady".to_owned(),
        (true, false) => format!("NotReady ({})", host.conditions.join("; ")),
    };
    vec![
        host.id.clone(),
        status,
        format!("{}/{}", host.used_pods, host.capacity_pods),
        format!("{}/{}", table::cpu(host.used_milli_cpu), table::cpu(host.capacity_milli_cpu)),
        format!("{}/{}", table::bytes(host.used_memory_bytes), table::bytes(host.capacity_memory_bytes)),
        host.architecture.clone(),
        host.version.clone(),
        host.addresses.first().cloned().unwrap_or_default(),
    ]
}
