//! run: an image as a pod; with --watch also how it starts, what it prints, how it ends.

use http::Method;
use indicatif::{ProgressBar, ProgressStyle};
use serde_json::{Value, json};
use vkubelet::client_api::types::PodItem;

use crate::args::{Output, RunOrder};
use crate::connect::{Connection, Lines, target};
use crate::failure::Failure;
use crate::pods::copy;
use crate::{table, timeline};

pub(crate) async fn run(connection: &Connection, order: RunOrder, output: Output) -> Result<u8, Failure> {
    let name = match &order.name {
        Some(name) => name.clone(),
        None => name_of(&order.image),
    };
    let pod = pod(&order, &name)?;
    connection.request(Method::POST, "/v1/pods", Some(&pod)).await?;
    if !order.watch {
        if output == Output::Json {
            let item: PodItem =
                connection.json(Method::GET, &target(&["v1", "pods", &order.namespace, &name], &[])).await?;
            return table::json(&item).map(|()| 0);
        }
        table::write(&format!("pod \"{name}\" created\n"))?;
        return Ok(0);
    }
    let last = watch(connection, &order, &name, output).await?;
    if order.rm {
        let path = target(&["v1", "pods", &order.namespace, &name], &[]);
        connection.request(Method::DELETE, &path, None).await?;
    }
    if output == Output::Json {
        table::json(&last)?;
    }
    Ok(exit_code(&last))
}

/// Shows the start, then the log, then returns the pod as it ended.
async fn watch(connection: &Connection, order: &RunOrder, name: &str, output: Output) -> Result<PodItem, Failure> {
    let path = target(&["v1", "pods", &order.namespace, name, "watch"], &[]);
    let mut lines = Lines::new(connection.request(Method::GET, &path, None).await?);
    let mut start = Start::new(output == Output::Table);
    let mut last = loop {
        let Some(pod) = lines.next::<PodItem>().await? else {
            return Err(Failure::Talk(format!("pod {name} was removed before it started")));
        };
        start.show(&pod);
        if pod.timeline.started_ns > 0 || is_ended(&pod) {
            break pod;
        }
    };
    start.finish();
    let ended = is_ended(&last);
    let logs = target(&["v1", "pods", &order.namespace, name, "logs"], &[("follow", "true")]);
    let printing = async {
        if output == Output::Table && last.timeline.started_ns > 0 { copy(connection, &logs).await } else { Ok(()) }
    };
    let ending = async {
        let mut newest = None;
        if !ended {
            while let Some(pod) = lines.next::<PodItem>().await? {
                let done = is_ended(&pod);
                newest = Some(pod);
                if done {
                    break;
                }
            }
        }
        Ok::<_, Failure>(newest)
    };
    let (printed, newest) = futures::join!(printing, ending);
    printed?;
    if let Some(newest) = newest? {
        last = newest;
    }
    if output == Output::Table {
        for (name, total, step) in timeline::steps(&last.timeline) {
            eprintln!("{name:<26}{total:>10.1} ms   (+{step:.1})");
        }
    }
    Ok(last)
}

fn is_ended(pod: &PodItem) -> bool {
    matches!(pod.phase.as_str(), "Succeeded" | "Failed")
}

/// The first container's exit code; 1 for a pod that failed without one.
fn exit_code(pod: &PodItem) -> u8 {
    let code = pod.status["containerStatuses"][0]["state"]["terminated"]["exitCode"].as_i64();
    match code {
        Some(code) => u8::try_from(code & 0xff).unwrap_or(1),
        None => u8::from(pod.phase == "Failed"),
    }
}

/// The line that shows what a start waits for.
struct Start {
    bar: ProgressBar,
    told: usize,
}

impl Start {
    fn new(shown: bool) -> Self {
        let bar = if shown { ProgressBar::new_spinner() } else { ProgressBar::hidden() };
        let style =
            ProgressStyle::with_template("{spinner} {msg}").unwrap_or_else(|_| ProgressStyle::default_spinner());
        bar.set_style(style);
        bar.enable_steady_tick(std::time::Duration::from_millis(100));
        Self { bar, told: 0 }
    }

    fn show(&mut self, pod: &PodItem) {
        for event in pod.events.iter().skip(self.told).filter(|e| e.kind == "Warning") {
            self.bar.println(format!("{}: {}", event.reason, event.message));
        }
        self.told = pod.events.len();
        let t = &pod.timeline;
        let step = match () {
            () if !pod.waiting.is_empty() => pod.waiting.as_str(),
            () if t.sandbox_ready_ns > 0 => "starting the container",
            () if t.image_ready_ns > 0 => "starting the sandbox",
            () if t.accepted_ns > 0 => pod.events.last().map_or("preparing the image", |e| e.message.as_str()),
            () if t.placed_ns > 0 => "sending to the host",
            () => "placing",
        };
        self.bar.set_message(step.to_owned());
    }

    fn finish(&self) {
        self.bar.finish_and_clear();
    }
}

/// `docker.io/library/busybox:1.36` gives `busybox-x7k2p`.
fn name_of(image: &str) -> String {
    let last = image.rsplit('/').next().unwrap_or_default();
    let base = last.split([':', '@']).next().unwrap_or_default().to_lowercase();
    let clean: String = base.chars().map(|c| if c.is_ascii_alphanumeric() { c } else { '-' }).take(40).collect();
    let clean = clean.trim_matches('-');
    let unique: String = uuid::Uuid::new_v4().simple().to_string().chars().take(5).collect();
    if clean.is_empty() { format!("pod-{unique}") } else { format!("{clean}-{unique}") }
}

fn pod(order: &RunOrder, name: &str) -> Result<Value, Failure> {
    let env: Vec<Value> = order
        .env
        .iter()
        .map(|pair| {
            let (key, value) =
                pair.split_once('=').ok_or_else(|| Failure::Argument(format!("--env {pair:?}: write NAME=VALUE")))?;
            Ok(json!({"name": key, "value": value}))
        })
        .collect::<Result<_, Failure>>()?;
    let mut container = json!({"name": "main", "image": order.image, "env": env});
    if !order.command.is_empty() {
        container["command"] = json!(order.command);
    }
    let mut limits = serde_json::Map::new();
    for (resource, amount) in [("cpu", &order.cpu), ("memory", &order.memory)] {
        if let Some(amount) = amount {
            limits.insert(resource.to_owned(), json!(amount));
        }
    }
    if !limits.is_empty() {
        container["resources"] = json!({"limits": limits});
    }
    Ok(json!({
        "apiVersion": "v1", "kind": "Pod",
        "metadata": {"name": name, "namespace": order.namespace},
        "spec": {"restartPolicy": order.restart.as_str(), "containers": [container]},
    }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_is_made_of_the_image() {
        for (image, want) in [
            ("docker.io/library/busybox:1.36", "busybox-"),
            ("My_App@sha256:00", "my-app-"),
            ("oci-layout:/tmp/x", "x-"),
            ("///", "pod-"),
        ] {
            let name = name_of(image);
            assert!(name.starts_with(want) && name.len() == want.len() + 5, "{image}: {name}");
        }
    }

    #[test]
    fn the_exit_code_is_the_containers() {
        let mut pod = PodItem { phase: "Failed".into(), ..PodItem::default() };
        assert_eq!(exit_code(&pod), 1);
        pod.status = json!({"containerStatuses": [{"state": {"terminated": {"exitCode": 42}}}]});
        assert_eq!(exit_code(&pod), 42);
    }
}
