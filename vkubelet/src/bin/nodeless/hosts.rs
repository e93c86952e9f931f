//! hosts.

use http::Method;
use vkubelet::client_api::types::{HostItem, List};

use crate::args::Output;
use crate::connect::Connection;
use crate::failure::Failure;
use crate::table;

pub(crate) async fn hosts(connection: &Connection, output: Output) -> Result<(), Failure> {
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
    table::print(&["NAME", "STATUS", "PODS", "CPU", "MEMORY", "ARCH", "VERSION", "ADDRESS"], &rows)
}

fn row(host: &HostItem) -> Vec<String> {
    let status = match (host.connected, host.ready) {
        (false, _) => "Away".to_owned(),
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
