//! images: list, pull with progress, remove, verify, collect.

use std::collections::HashMap;

use http::Method;
use indicatif::{MultiProgress, ProgressBar, ProgressStyle};
use vkubelet::client_api::types::{CollectedItem, ImageItem, List, PullOrder, PullProgress, RemovedItem, VerifiedItem};

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
        Some(ImagesCommand::Rm { image, copy_of, host }) => {
            let mut query = vec![("reference", image.as_str())];
            query.extend(copy_of.as_deref().map(|domain| ("domain", domain)));
            query.extend(host.as_deref().map(|host| ("host", host)));
            remove(connection, &query, output).await
        }
        Some(ImagesCommand::Verify { repair, host }) => verify(connection, repair, host.as_deref(), output).await,
        Some(ImagesCommand::Gc { unused_for, host }) => collect(connection, unused_for, host.as_deref(), output).await,
    }
}

async fn list(connection: &Connection, output: Output) -> Result<u8, Failure> {
    let list: List<ImageItem> = connection.json(Method::GET, "/v1/images").await?;
    if output == Output::Json {
        return table::json(&list.items).map(|()| 0);
    }
    let now = jiff::Timestamp::now().as_second();
    let rows: Vec<Vec<String>> = list.items.iter().map(|image| row(image, now)).collect();
    table::print(&COLUMNS, &rows).map(|()| 0)
}

const COLUMNS: [&str; 8] = ["HOST", "IMAGE", "DIGEST", "SIZE", "LAYERS", "USED", "KEPT", "COPY OF"];

fn row(image: &ImageItem, now: i64) -> Vec<String> {
    let digest = image.digest.strip_prefix("sha256:").unwrap_or(&image.digest);
    vec![
        image.host.clone(),
        image.references.first().cloned().unwrap_or_else(|| "<none>".to_owned()),
        digest.chars().take(12).collect(),
        table::bytes(image.size_bytes),
        image.layers.to_string(),
        if image.in_use { "now".to_owned() } else { age::human(now - image.last_used_unix) },
        if image.pinned { "pinned" } else { "" }.to_owned(),
        image.domain.clone(),
    ]
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

async fn remove(connection: &Connection, query: &[(&str, &str)], output: Output) -> Result<u8, Failure> {
    let list: List<RemovedItem> = connection.json(Method::DELETE, &target(&["v1", "images"], query)).await?;
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

async fn verify(connection: &Connection, repair: bool, host: Option<&str>, output: Output) -> Result<u8, Failure> {
    let mut query = vec![("repair", if repair { "true" } else { "false" })];
    query.extend(host.map(|host| ("host", host)));
    let path = target(&["v1", "images", "verify"], &query);
    let mut lines = Lines::new(connection.request(Method::POST, &path, None).await?);
    let (mut all, mut sound, mut code) = (Vec::new(), 0, 0);
    while let Some(item) = lines.next::<VerifiedItem>().await? {
        if item.verdict == "sound" {
            sound += 1;
        } else {
            let mended = item.action == "repaired";
            code |= u8::from(!mended);
            if output == Output::Table {
                complain(&item)?;
            }
        }
        all.push(item);
    }
    match output {
        Output::Json => table::json(&all)?,
        Output::Table => table::write(&format!("{sound} of {} layers are sound\n", all.len()))?,
    }
    Ok(code)
}

fn complain(item: &VerifiedItem) -> Result<(), Failure> {
    if !item.error.is_empty() {
        eprintln!("error: {}: {}", item.host, item.error);
        return Ok(());
    }
    let done =
        [&item.action, &item.message].into_iter().filter(|text| !text.is_empty()).map(|text| format!(": {text}"));
    let done: String = done.collect();
    let images = if item.references.is_empty() { "no image".to_owned() } else { item.references.join(", ") };
    table::write(&format!("{}: {} of {images} is {}{done}\n", item.host, item.layer, item.verdict))
}

async fn collect(connection: &Connection, unused_for: u64, host: Option<&str>, output: Output) -> Result<u8, Failure> {
    let seconds = unused_for.to_string();
    let mut query = vec![("unused", seconds.as_str())];
    query.extend(host.map(|host| ("host", host)));
    let list: List<CollectedItem> = connection.json(Method::POST, &target(&["v1", "images", "gc"], &query)).await?;
    if output == Output::Json {
        return table::json(&list.items).map(|()| 0);
    }
    let mut code = 0;
    for item in list.items {
        if !item.error.is_empty() {
            eprintln!("error: {}: {}", item.host, item.error);
            code = 1;
            continue;
        }
        for image in &item.references {
            table::write(&format!("{}: removed {image}\n", item.host))?;
        }
        table::write(&format!("{}: {} free\n", item.host, table::bytes(item.freed_bytes)))?;
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn images_are_listed_in_columns() {
        let image = ImageItem {
            host: "host-1".to_owned(),
            references: vec!["docker.io/library/nginx:1.29".to_owned()],
            digest: format!("sha256:{}", "0123456789abcdef".repeat(4)),
            size_bytes: 193 << 20,
            layers: 7,
            last_used_unix: 1000,
            in_use: false,
            pinned: true,
            domain: String::new(),
        };
        let copy = ImageItem { in_use: true, pinned: false, domain: "shop".to_owned(), ..image.clone() };
        let nameless = ImageItem { host: "h".to_owned(), references: Vec::new(), ..copy.clone() };
        let rows: Vec<Vec<String>> = [image, copy, nameless].iter().map(|image| row(image, 1090)).collect();
        assert_eq!(
            table::format(&COLUMNS, &rows),
            "HOST     IMAGE                          DIGEST         SIZE    LAYERS   USED   KEPT     COPY OF\n\
             host-1   docker.io/library/nginx:1.29   0123456789ab   193Mi   7        90s    pinned\n\
             host-1   docker.io/library/nginx:1.29   0123456789ab   193Mi   7        now             shop\n\
             h        <none>                         0123456789ab   193Mi   7        now             shop\n"
        );
    }
}
