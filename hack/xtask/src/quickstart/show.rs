//! Prints for a person. Nothing here decides anything.

use std::collections::HashMap;
use std::io::{IsTerminal, Write as _};
use std::time::Duration;

use indicatif::{HumanBytes, MultiProgress, ProgressBar, ProgressDrawTarget, ProgressStyle};
use serde_json::Value;

use super::outcome::{Outcome, Timeline};

/// How wide the bars of the timeline are, in cells.
const CELLS: f64 = 40.0;

/// What a shell calls the end of a program by SIGPIPE.
const NOBODY_READS: i32 = 141;

/// Prints a line. Who is read by nobody any more (`| head`) has nothing left to do.
pub(crate) fn line(text: &str) {
    if writeln!(std::io::stdout(), "{text}").is_err() {
        std::process::exit(NOBODY_READS);
    }
}

/// Where to print, or nowhere.
pub(crate) struct Show {
    speaks: bool,
    colours: bool,
}

impl Show {
    pub(crate) fn new(speaks: bool) -> Self {
        let colours = speaks && std::io::stdout().is_terminal() && std::env::var_os("NO_COLOR").is_none();
        Self { speaks, colours }
    }

    fn paint(&self, code: &str, text: &str) -> String {
        if self.colours { format!("\x1b[{code}m{text}\x1b[0m") } else { text.to_owned() }
    }

    fn say(&self, text: &str) {
        if self.speaks {
            line(text);
        }
    }

    fn heading(&self, what: &str, more: &str) {
        self.say(&format!("\n{}  {}", self.paint("1;36", &format!("{what:<9}")), self.paint("2", more)));
    }

    fn quoted(&self, text: &str) {
        for line in text.lines() {
            self.say(&format!("  {} {line}", self.paint("2", "│")));
        }
    }

    pub(crate) fn title(&self, image: &str) {
        self.heading("image", image);
    }

    /// Progress of the layers.
    pub(crate) fn bars(&self) -> Bars {
        let bars = MultiProgress::new();
        if !self.speaks {
            bars.set_draw_target(ProgressDrawTarget::hidden());
        }
        Bars { bars, layers: HashMap::new(), speaks: self.speaks, bytes: 0 }
    }

    /// Where the start's time went.
    pub(crate) fn timeline(&self, pod: &Value) {
        let timeline = Timeline::of(pod);
        let host = pod["host"].as_str().unwrap_or_default();
        self.heading("start", &format!("{} on host {host}", pod["name"].as_str().unwrap_or_default()));
        let steps = [
            ("accepted", timeline.accepted_ns),
            ("placed", timeline.placed_ns),
            ("held", timeline.held_ns),
            ("image ready", timeline.image_ready_ns),
            ("sandbox up", timeline.sandbox_ready_ns),
            ("started", timeline.started_ns),
            ("first byte", timeline.first_byte_ns),
        ];
        let mut steps: Vec<(&str, f64)> =
            steps.into_iter().filter(|(_, at)| *at > 0).map(|(name, at)| (name, timeline.ms_until(at))).collect();
        steps.sort_by(|a, b| a.1.total_cmp(&b.1));
        let whole = steps.last().map_or(1.0, |(_, at)| at.max(0.001));
        for (name, at) in steps {
            let cells = (at / whole * CELLS).round() as usize;
            let bar = self.paint("32", &"━".repeat(cells));
            self.say(&format!("  {name:<12} {at:>9.2} ms  {bar}{}", self.paint("1;32", "●")));
        }
    }

    pub(crate) fn exec(&self, text: &str) {
        self.heading("exec", "sh -c 'id; cat /proc/1/comm; nproc'");
        self.quoted(text.trim_end());
    }

    pub(crate) fn logs(&self, text: &str) {
        self.heading("logs", "");
        self.quoted(text.trim_end());
    }

    /// The bill while it grows.
    pub(crate) fn ticker(&self) -> Ticker {
        self.heading("bill", "GET /billing/v1/pods/{uid}, while the pod runs");
        let bar = if self.speaks { ProgressBar::new_spinner() } else { ProgressBar::hidden() };
        if let Ok(style) = ProgressStyle::with_template("  {spinner:.yellow} {msg}") {
            bar.set_style(style);
        }
        // Where nothing can be drawn over, one line a second.
        Ticker { lines: self.speaks && bar.is_hidden(), bar, last: std::cell::Cell::new(0) }
    }

    pub(crate) fn record(&self, record: &Value) {
        self.heading("record", "final, as billed");
        let number = |value: &Value| value.to_string();
        self.say(&format!("  held         {} .. {}", said(&record["start"]), said(&record["end"])));
        self.say(&format!("  duration     {} ns", number(&record["duration_ns"])));
        self.say(&format!("  billed       {} s", self.paint("1", &number(&record["billed_seconds"]))));
        self.say(&format!(
            "  cpu          {} mCPU held, {:.3} s used",
            number(&record["held"]["milli_cpu"]),
            record["used"]["cpu_ns"].as_f64().unwrap_or(0.0) / 1e9
        ));
        self.say(&format!(
            "  memory       {} held, {} byte-seconds used",
            HumanBytes(record["held"]["memory_bytes"].as_u64().unwrap_or(0)),
            number(&record["used"]["memory_byte_seconds"])
        ));
        if let Some(amount) = record["cost"]["amount"].as_str() {
            self.say(&format!("  cost         {amount} {}", said(&record["cost"]["currency"])));
        }
    }

    pub(crate) fn again(&self, outcome: &Outcome) {
        self.heading("again", "the same pod, its snapshot there");
        self.say(&format!(
            "  started in {} ms (first: {:.2} ms, its snapshot {:.2} ms)\n",
            self.paint("1;32", &format!("{:.2}", outcome.second_start_ms)),
            outcome.start_ms,
            outcome.snapshot_ms
        ));
    }
}

fn said(value: &Value) -> &str {
    value.as_str().unwrap_or("?")
}

/// One bar for each layer.
pub(crate) struct Bars {
    bars: MultiProgress,
    layers: HashMap<String, ProgressBar>,
    speaks: bool,
    bytes: u64,
}

impl Bars {
    /// Takes one line of the pull's answer.
    pub(crate) fn update(&mut self, progress: &Value) {
        let layer = progress["layer"].as_str().unwrap_or_default();
        if layer.is_empty() {
            return;
        }
        let bar = self.layers.entry(layer.to_owned()).or_insert_with(|| {
            let bar = self.bars.add(ProgressBar::new(0));
            let template = "  {prefix} {bar:32.cyan/dim} {bytes:>10} of {total_bytes:<10} {msg}";
            if let Ok(style) = ProgressStyle::with_template(template) {
                bar.set_style(style.progress_chars("━╸─"));
            }
            bar.set_prefix(layer.trim_start_matches("sha256:").chars().take(12).collect::<String>());
            bar
        });
        let (done, total) =
            (progress["done_bytes"].as_u64().unwrap_or(0), progress["total_bytes"].as_u64().unwrap_or(0));
        if total > 0 {
            bar.set_length(total);
        }
        bar.set_position(done.max(bar.position()));
        bar.set_message(progress["phase"].as_str().unwrap_or_default().to_owned());
    }

    /// Leaves the bars as they are and says how long it took.
    pub(crate) fn finish(mut self, took: Duration) {
        for bar in self.layers.values() {
            self.bytes += bar.length().unwrap_or(0);
            if let Some(length) = bar.length() {
                bar.set_position(length);
            }
            bar.abandon_with_message("snapshot");
        }
        if self.speaks {
            let of = if self.bytes > 0 { format!(" of {}", HumanBytes(self.bytes)) } else { String::new() };
            line(&format!("  snapshot{of} ready in {:.1} ms", took.as_secs_f64() * 1e3));
        }
    }
}

/// One line that changes.
pub(crate) struct Ticker {
    bar: ProgressBar,
    lines: bool,
    last: std::cell::Cell<u64>,
}

impl Ticker {
    /// Takes the bill of this moment.
    pub(crate) fn tick(&self, bill: &Value) {
        let held = bill["duration_ns"].as_u64().unwrap_or(0);
        let billed = bill["billed_seconds"].as_u64().unwrap_or(0);
        let cpu = bill["used"]["cpu_ns"].as_f64().unwrap_or(0.0) / 1e6;
        let cost = bill["cost"]["amount"].as_str().map_or_else(String::new, |amount| {
            format!("   {amount} {}", bill["cost"]["currency"].as_str().unwrap_or_default())
        });
        let line = format!("held {:>14.9} s   billed {billed} s   cpu {cpu:.1} ms{cost}", held as f64 / 1e9);
        if self.lines && billed > self.last.replace(billed) {
            self::line(&format!("  {line}"));
        }
        self.bar.set_message(line);
        self.bar.tick();
    }

    /// Leaves the last line.
    pub(crate) fn finish(&self) {
        self.bar.abandon();
    }
}
