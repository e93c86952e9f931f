//! One pod's bill, made of its intervals. Pure.
//!
//! What a pod held is the union of half-open intervals `[start, end)` in nanoseconds of CLOCK_BOOTTIME: where sandboxes of one pod
//! overlap on one boot of one host, the instant counts once, with the larger of what they held. Instants of different boots or hosts cannot be compared, so their
//! unions are added. The sum is rounded up to seconds once.

mod sweep;
#[cfg(test)]
mod tests;

use agent_api::usage::{Held, Used};
use jiff::Timestamp;
use serde::Serialize;
use utoipa::ToSchema;

use crate::live::LiveInterval;
use crate::price::{Plan, Quantity};
use crate::store::{PodUsage, StoredInterval};

/// A pod's bill: one record.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, ToSchema)]
pub struct PodBill {
    /// Pod UID.
    pub uid: String,
    /// Pod namespace.
    pub namespace: String,
    /// Pod name.
    pub name: String,
    /// `open` while a sandbox is held, then `final`.
    pub state: State,
    /// The hosts that it ran on.
    pub hosts: Vec<String>,
    /// When it first held resources (RFC 3339, wall clock: a label).
    #[schema(format = DateTime)]
    pub start: String,
    /// Up to when it is known to have held resources; when `final`, its release (RFC 3339, wall clock: a label).
    #[schema(format = DateTime)]
    pub end: String,
    /// How long resources were held, in nanoseconds of CLOCK_BOOTTIME.
    pub duration_ns: u64,
    /// The duration rounded up once, and at least the plan's minimum.
    pub billed_seconds: u64,
    /// The most that was held at one time.
    pub held: HeldBill,
    /// Held CPU integrated over the duration, in core-nanoseconds.
    #[schema(value_type = u64)]
    pub cpu_core_ns: u128,
    /// The same in core-seconds, a decimal.
    #[schema(example = "0.5")]
    pub cpu_core_seconds: String,
    /// Held memory integrated over the duration, in byte-seconds.
    #[schema(value_type = u64)]
    pub memory_byte_seconds: u128,
    /// What was used of it.
    pub used: UsedBill,
    /// `namespace` or `microvm`.
    pub sandbox_kind: String,
    /// `on-demand`, `spot` …
    pub price_class: String,
    /// Image digests of its containers.
    pub images: Vec<String>,
    /// The intervals, by start.
    pub segments: Vec<Segment>,
    /// What it costs, when there is a price plan.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cost: Option<Cost>,
}

/// Whether more can come.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum State {
    /// A sandbox is held.
    Open,
    /// Everything has been released.
    Final,
}

/// Resources held.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, ToSchema)]
pub struct HeldBill {
    /// CPU in thousandths of a core.
    pub milli_cpu: u64,
    /// Memory in bytes.
    pub memory_bytes: u64,
    /// Ephemeral storage in bytes.
    pub ephemeral_bytes: u64,
    /// Whole GPUs.
    pub gpus: u32,
}

/// Resources used.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, ToSchema)]
pub struct UsedBill {
    /// CPU time in nanoseconds.
    pub cpu_ns: u64,
    /// Memory in use integrated over time, in byte-seconds (in steps of 1,024).
    #[schema(value_type = u64)]
    pub memory_byte_seconds: u128,
    /// Bytes received.
    pub network_rx_bytes: u64,
    /// Bytes sent.
    pub network_tx_bytes: u64,
}

/// One interval of one sandbox.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, ToSchema)]
pub struct Segment {
    /// Host id.
    pub host: String,
    /// The host's boot, to which the nanoseconds belong.
    pub boot_id: String,
    /// The sandbox.
    pub sandbox_id: String,
    /// CLOCK_BOOTTIME in nanoseconds, inclusive.
    pub start_ns: u64,
    /// CLOCK_BOOTTIME in nanoseconds, exclusive.
    pub end_ns: u64,
    /// Wall time at the start (RFC 3339, a label).
    #[schema(format = DateTime)]
    pub start: String,
    /// Wall time at the end (RFC 3339, a label).
    #[schema(format = DateTime)]
    pub end: String,
    /// Still held; `end` moves.
    pub open: bool,
}

/// A price. Amounts are decimals as text, exact to 12 places.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, ToSchema)]
pub struct Cost {
    /// ISO 4217 code.
    pub currency: String,
    /// The sum.
    #[schema(example = "0.000084")]
    pub amount: String,
    /// For CPU.
    pub cpu: String,
    /// For memory.
    pub memory: String,
}

/// The bill of one pod. A pod without intervals has none.
pub fn bill(pod: &PodUsage, plan: &Plan) -> Option<PodBill> {
    let (first, last) = (
        pod.intervals.iter().min_by_key(|interval| interval.start_wall_ns)?,
        pod.intervals.iter().max_by_key(|interval| interval.proven_wall_ns)?,
    );
    let sweep = sweep::sweep(&pod.intervals);
    let billed_seconds = plan.billed_seconds(sweep.duration_ns);
    let rounding = u128::from(billed_seconds) * 1_000_000_000
        - u128::from(sweep.duration_ns).min(u128::from(billed_seconds) * 1_000_000_000);
    let cost = plan.is_priced().then(|| {
        let quantity = Quantity {
            milli_cpu_ns: sweep.milli_cpu_ns + rounding * u128::from(sweep.last_milli_cpu),
            byte_ns: sweep.byte_ns + rounding * u128::from(sweep.last_memory_bytes),
        };
        let priced = plan.price(quantity);
        Cost {
            currency: plan.currency.clone(),
            amount: priced.cpu.plus(priced.memory).to_string(),
            cpu: priced.cpu.to_string(),
            memory: priced.memory.to_string(),
        }
    });
    let mut hosts: Vec<String> = pod.intervals.iter().map(|interval| interval.host.clone()).collect();
    hosts.sort();
    hosts.dedup();
    let mut images: Vec<String> = pod.intervals.iter().flat_map(|interval| interval.images.iter().cloned()).collect();
    images.sort();
    images.dedup();
    let cpu_core_ns = sweep.milli_cpu_ns / 1_000;
    Some(PodBill {
        uid: pod.uid.clone(),
        namespace: pod.namespace.clone(),
        name: pod.name.clone(),
        state: if pod.intervals.iter().any(is_open) { State::Open } else { State::Final },
        hosts,
        start: label(first.start_wall_ns),
        end: label(last.proven_wall_ns),
        duration_ns: sweep.duration_ns,
        billed_seconds,
        held: most_held(&pod.intervals),
        cpu_core_ns,
        cpu_core_seconds: seconds(cpu_core_ns),
        memory_byte_seconds: sweep.byte_ns / 1_000_000_000,
        used: used(&pod.intervals),
        sandbox_kind: last.sandbox_kind.clone(),
        price_class: last.price_class.clone(),
        images,
        segments: pod.intervals.iter().map(segment).collect(),
        cost,
    })
}

/// Brings open intervals to the instant that their hosts tell, and adds those that have not been stored yet.
/// `None` in and nothing live: there is no such pod.
pub fn with_live(stored: Option<PodUsage>, live: Vec<LiveInterval>) -> Option<PodUsage> {
    let mut pod = match (stored, live.first()) {
        (Some(pod), _) => pod,
        (None, Some(first)) => PodUsage {
            uid: first.uid.clone(),
            namespace: first.namespace.clone(),
            name: first.name.clone(),
            intervals: Vec::new(),
        },
        (None, None) => return None,
    };
    for now in live {
        let same = |interval: &&mut StoredInterval| {
            (&interval.host, &interval.boot_id, &interval.sandbox_id, interval.start_ns)
                == (&now.host, &now.boot_id, &now.sandbox_id, now.start_ns)
        };
        match pod.intervals.iter_mut().find(same) {
            // The release overtook the question.
            Some(interval) if !is_open(interval) || interval.proven_ns >= now.now_ns => {}
            Some(interval) => {
                (interval.proven_ns, interval.proven_wall_ns, interval.used) = (now.now_ns, now.now_wall_ns, now.used);
            }
            None => pod.intervals.push(StoredInterval {
                host: now.host,
                boot_id: now.boot_id,
                boot_over: false,
                sandbox_id: now.sandbox_id,
                start_ns: now.start_ns,
                start_wall_ns: now.start_wall_ns,
                proven_ns: now.now_ns.max(now.start_ns),
                proven_wall_ns: now.now_wall_ns,
                ended: false,
                held: now.held,
                used: now.used,
                sandbox_kind: now.sandbox_kind,
                price_class: now.price_class,
                images: now.images,
            }),
        }
    }
    Some(pod)
}

/// More may come for it.
pub fn is_open(interval: &StoredInterval) -> bool {
    !interval.ended && !interval.boot_over
}

fn segment(interval: &StoredInterval) -> Segment {
    Segment {
        host: interval.host.clone(),
        boot_id: interval.boot_id.clone(),
        sandbox_id: interval.sandbox_id.clone(),
        start_ns: interval.start_ns,
        end_ns: interval.proven_ns,
        start: label(interval.start_wall_ns),
        end: label(interval.proven_wall_ns),
        open: is_open(interval),
    }
}

fn most_held(intervals: &[StoredInterval]) -> HeldBill {
    intervals.iter().map(|interval| &interval.held).fold(HeldBill::default(), |most, held: &Held| HeldBill {
        milli_cpu: most.milli_cpu.max(held.milli_cpu),
        memory_bytes: most.memory_bytes.max(held.memory_bytes),
        ephemeral_bytes: most.ephemeral_bytes.max(held.ephemeral_bytes),
        gpus: most.gpus.max(held.gpus),
    })
}

fn used(intervals: &[StoredInterval]) -> UsedBill {
    intervals.iter().map(|interval| &interval.used).fold(UsedBill::default(), |sum, used: &Used| UsedBill {
        cpu_ns: sum.cpu_ns.saturating_add(used.cpu_ns),
        memory_byte_seconds: sum.memory_byte_seconds + u128::from(used.memory_kib_s) * 1024,
        network_rx_bytes: sum.network_rx_bytes.saturating_add(used.network_rx_bytes),
        network_tx_bytes: sum.network_tx_bytes.saturating_add(used.network_tx_bytes),
    })
}

/// RFC 3339 in UTC with nanoseconds as far as needed.
fn label(wall_ns: u64) -> String {
    Timestamp::from_nanosecond(i128::from(wall_ns)).unwrap_or(Timestamp::MAX).to_string()
}

/// Nanoseconds as a decimal number of seconds, exactly.
fn seconds(ns: u128) -> String {
    let decimals = format!("{:09}", ns % 1_000_000_000);
    let decimals = decimals.trim_end_matches('0');
    format!("{}{}{decimals}", ns / 1_000_000_000, if decimals.is_empty() { "" } else { "." })
}
