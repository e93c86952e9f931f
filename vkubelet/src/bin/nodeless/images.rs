//! images: list, pull with progress, remove.

use std::collections::HashMap;

use http::Method;
use indicatif::{MultiProgress, ProgressBar, ProgressStyle};
use vkubelet::client_api::types::{ImageItem, List, PullOrder, PullProgress, RemovedItem};

use crate::args::{ImagesCommand, Output};
use crate::connect::{Connection, Lines, target};
use crate::failure::Failure;
use crate::{age, table};

pub(crate) async fn images(
    connection: &Connection,
    command: Option<ImagesCommand>,
    output: Output,
) -> Result<u8, Failure> {
    match command {
        None | Some(ImagesCommand::Ls) => list(connection, output).await,
        Some(ImagesCommand::Pull { image, host }) => {
            let order = PullOrder { reference: image, host: host.unwrap_or_default() };
            pull(connection, &order, output).await
        }
        Some(ImagesCommand::Rm { image, host }) => remove(connection, &image, host.as_deref(), output).await,
    }
}

async fn list(connection: &Connection, output: Output) -> Result<u8, Failure> {
    let list: List<ImageItem> = connection.json(Method::GET, "/v1/images").await?;
    if output == Output::Json {
        return table::json(&list.items).map(|()| 0);
    }
    let now = jiff::Timestamp::now().as_second();
    let row = |image: &ImageItem| {
        let digest = image.digest.strip_prefix("sha256:").unwrap_or(&image.digest);
        vec![
            image.host.clone(),
            image.references.first().cloned().unwrap_or_else(|| "<none>".to_owned()),
            digest.chars().take(12).collect(),
            table::bytes(image.size_bytes),
            image.layers.to_string(),
            if image.in_use { "now".to_owned() } else { age::human(now - image.last_used_unix) },
        ]
    };
    let rows: Vec<Vec<String>> = list.items.iter().map(row).collect();
    table::print(&["HOST", "IMAGE", "DIGEST", "SIZE", "LAYERS", "USED"], &rows).map(|()| 0)
}

async fn pull(connection: &Connection, order: &PullOrder, output: Output) -> Result<u8, Failure> {
    let body = serde_json::json!(order);
    let mut lines = Lines::new(connection.request(Method::POST, "/v1/images", Some(&body)).await?);
    let mut bars = Bars::new(output == Output::Table);
    let mut last: HashMap<String, PullProgress> = HashMap::new();
    while let Some(progress) = lines.next::<PullProgress>().await? {
        bars.show(&progress);
        last.insert(progress.host.clone(), progress);
    }
    bars.finish();
    if output == Output::Json {
        table::json(&last.values().collect::<Vec<_>>())?;
    }
    let mut code = 0;
    for progress in last.values() {
        if progress.complete && output == Output::Table {
            table::write(&format!("{}: {} is ready\n", progress.host, order.reference))?;
        } else if !progress.complete {
            let why = if progress.error.is_empty() { "the pull ended early" } else { &progress.error };
            eprintln!("error: {}: {why}", progress.host);
            code = 1;
        }
    }
    Ok(code)
}

async fn remove(connection: &Connection, image: &str, host: Option<&str>, output: Output) -> Result<u8, Failure> {
    let mut query = vec![("reference", image)];
    query.extend(host.map(|host| ("host", host)));
    let list: List<RemovedItem> = connection.json(Method::DELETE, &target(&["v1", "images"], &query)).await?;
    if output == Output::Json {
        return table::json(&list.items).map(|()| 0);
    }
    let mut code = 0;
    for item in list.items {
        match (item.removed, item.error.is_empty()) {
            (true, _) => table::write(&format!("{}: removed, {} free\n", item.host, table::bytes(item.freed_bytes)))?,
            (false, true) => table::write(&format!("{}: not there\n", item.host))?,
            (false, false) => {
                eprintln!("error: {}: {}", item.host, item.error);
                code = 1;
            }
        }
    }
    Ok(code)
}

/// One bar per host and layer.
struct Bars {
    all: Option<MultiProgress>,
    bars: HashMap<String, ProgressBar>,
}

impl Bars {
    fn new(shown: bool) -> Self {
        Self { all: shown.then(MultiProgress::new), bars: HashMap::new() }
    }

    fn show(&mut self, progress: &PullProgress) {
        let Some(all) = &self.all else { return };
        if progress.complete || !progress.error.is_empty() {
            return;
        }
        let key = format!("{} {}", progress.host, progress.layer);
        let bar = self.bars.entry(key).or_insert_with(|| {
            let bar = all.add(ProgressBar::new(progress.total_bytes));
            let template = "{prefix:20!} {msg:24!} [{bar:30}] {bytes}/{total_bytes}";
            let style = ProgressStyle::with_template(template).unwrap_or_else(|_| ProgressStyle::default_bar());
            bar.set_style(style.progress_chars("=> "));
            let layer = progress.layer.strip_prefix("sha256:").unwrap_or(&progress.layer);
            bar.set_prefix(if layer.is_empty() { progress.host.clone() } else { layer.chars().take(12).collect() });
            bar
        });
        bar.set_length(progress.total_bytes);
        bar.set_position(progress.done_bytes);
        bar.set_message(progress.phase.clone());
    }

    fn finish(&mut self) {
        for bar in self.bars.values() {
            bar.abandon();
        }
    }
}
