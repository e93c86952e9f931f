//! What an object says of itself, from what hosts say. Pure.

use std::collections::{BTreeMap, BTreeSet};

use agent_api::proto::PreparedImage;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, Time};
use k8s_openapi::jiff::Timestamp;

use super::plan::{BadSelector, expires, is_expired};
use super::resource::{HostStatus, ImageSnapshot, ImageSnapshotStatus, ImageStatus, Phase};

/// What a host has said.
#[derive(Debug, Clone, Default, PartialEq)]
pub enum Said {
    /// Nothing yet, in this process's life.
    #[default]
    Nothing,
    /// Its agent is of a version that prepares no images.
    TooOld,
    /// How it goes with each image, by name.
    Images(BTreeMap<String, PreparedImage>),
}

/// Everything that an object's status is made of.
#[derive(Debug)]
pub struct Facts<'a> {
    /// Our virtual node.
    pub node: &'a str,
    /// Our hosts that shall have it.
    pub targets: &'a Result<BTreeSet<String>, BadSelector>,
    /// What each of our hosts has said.
    pub said: &'a BTreeMap<String, Said>,
    /// What is wrong with its pull secrets.
    pub secrets: &'a [String],
    /// The time.
    pub now: Timestamp,
}

/// The status as it should be. Entries of other nodes' hosts stay as they are.
#[must_use]
pub fn status(snapshot: &ImageSnapshot, facts: &Facts<'_>) -> ImageSnapshotStatus {
    let before = snapshot.status.clone().unwrap_or_default();
    let none = BTreeSet::new();
    let targets = facts.targets.as_ref().unwrap_or(&none);
    let (ours, others): (Vec<HostStatus>, Vec<HostStatus>) =
        before.hosts.iter().cloned().partition(|host| host.node == facts.node);
    let shared = !others.is_empty();
    let of = |name: &String| {
        let earlier = ours.iter().find(|host| host.name == *name);
        host(snapshot, facts, name, facts.said.get(name).unwrap_or(&Said::Nothing), earlier)
    };
    let mut hosts: Vec<HostStatus> = others.into_iter().chain(targets.iter().map(of)).collect();
    hosts.sort_by(|a, b| (&a.node, &a.name).cmp(&(&b.node, &b.name)));
    let images = images(snapshot, facts, targets, &before, shared);
    let ready = hosts.iter().filter(|host| host.phase == Phase::Ready).count();
    let expired = is_expired(snapshot, facts.now);
    let phase = if expired { Phase::Expired } else { sum(hosts.iter().map(|host| host.phase)) };
    let size = images.iter().map(|image| image.size_bytes).sum::<Option<i64>>();
    let message = match (facts.targets, phase) {
        (Err(error), _) => Some(error.to_string()),
        (_, Phase::Expired) => Some("its time is over: its images are kept ready no more".to_owned()),
        (_, Phase::Pending) if hosts.is_empty() => Some("no host is selected".to_owned()),
        _ => hosts.iter().find_map(|h| h.message.as_ref().map(|text| format!("{}: {text}", h.name))),
    };
    let mut status = ImageSnapshotStatus {
        observed_generation: snapshot.metadata.generation,
        phase,
        ready: format!("{ready}/{}", hosts.len()),
        wanted_hosts: i32::try_from(hosts.len()).unwrap_or(i32::MAX),
        ready_hosts: i32::try_from(ready).unwrap_or(i32::MAX),
        size_bytes: size,
        size: size.map(amount),
        expires: expires(snapshot).map(Time),
        message,
        images,
        hosts,
        conditions: Vec::new(),
    };
    status.conditions = conditions(snapshot, facts, &before, &status);
    status
}

/// One number more than its parts: what is worst decides, but one that is not ready yet is more than none begun.
fn sum(phases: impl Iterator<Item = Phase>) -> Phase {
    let all: BTreeSet<Phase> = phases.collect();
    if all.contains(&Phase::Failing) {
        Phase::Failing
    } else if !all.is_empty() && all.iter().all(|phase| *phase == Phase::Ready) {
        Phase::Ready
    } else if all.contains(&Phase::Pulling) || all.contains(&Phase::Ready) {
        Phase::Pulling
    } else {
        Phase::Pending
    }
}

fn of_image(image: Option<&PreparedImage>) -> Phase {
    match image.map(|image| image.phase.as_str()) {
        Some("ready") => Phase::Ready,
        Some("pulling") => Phase::Pulling,
        Some("failed") => Phase::Failing,
        _ => Phase::Pending,
    }
}

fn host(
    snapshot: &ImageSnapshot,
    facts: &Facts<'_>,
    name: &str,
    said: &Said,
    earlier: Option<&HostStatus>,
) -> HostStatus {
    let empty = HostStatus { node: facts.node.to_owned(), name: name.to_owned(), ..HostStatus::default() };
    let reports = match said {
        Said::Nothing => return earlier.cloned().unwrap_or(empty),
        Said::TooOld => {
            let message = Some("its agent is of a version that prepares no images".to_owned());
            return HostStatus { phase: Phase::Failing, message, ..empty };
        }
        Said::Images(reports) => reports,
    };
    let images: Vec<Option<&PreparedImage>> = snapshot.spec.images.iter().map(|name| reports.get(name)).collect();
    // An agent that has just been told, or has just come back, has not looked at all of them yet.
    let unheard = images.iter().any(Option::is_none);
    if let Some(earlier) = earlier.filter(|_| unheard && same_generation(snapshot)) {
        return earlier.clone();
    }
    let phase = sum(images.iter().map(|image| of_image(*image)));
    let known = || images.iter().copied().flatten();
    let ready = || known().filter(|image| image.phase == "ready");
    let pulling = || known().filter(|image| image.phase == "pulling" && image.total_bytes > 0);
    let message = known()
        .find(|image| image.phase == "failed")
        .map(|image| format!("{}: {}: {}", image.reference, image.reason, image.message));
    let ready_since = (phase == Phase::Ready).then(|| {
        let since = ready().map(|image| image.since_unix).max().unwrap_or_default();
        Time(Timestamp::from_second(since).unwrap_or(facts.now))
    });
    let amount = |of: fn(&PreparedImage) -> u64| signed(pulling().map(of).sum());
    let on_its_way = pulling().next().is_some();
    HostStatus {
        phase,
        ready_images: i32::try_from(ready().count()).unwrap_or(i32::MAX),
        size_bytes: signed(ready().map(|image| image.size_bytes).sum()),
        pulled_bytes: on_its_way.then(|| amount(|image| image.done_bytes)),
        total_bytes: on_its_way.then(|| amount(|image| image.total_bytes)),
        ready_since,
        message: message.map(|text| text.chars().take(1024).collect()),
        ..empty
    }
}

/// Whether the status answers the object as it is now.
fn same_generation(snapshot: &ImageSnapshot) -> bool {
    let answered = snapshot.status.as_ref().and_then(|status| status.observed_generation);
    answered.is_some() && answered == snapshot.metadata.generation
}

fn images(
    snapshot: &ImageSnapshot,
    facts: &Facts<'_>,
    targets: &BTreeSet<String>,
    before: &ImageSnapshotStatus,
    shared: bool,
) -> Vec<ImageStatus> {
    let unseen = targets.iter().any(|host| matches!(facts.said.get(host), None | Some(Said::Nothing)));
    let one = |name: &String| {
        let earlier = before.images.iter().find(|image| image.name == *name);
        // What other nodes found, and hosts that have not spoken yet, stays said.
        let mut digests: BTreeSet<String> = earlier
            .filter(|_| shared || unseen)
            .map(|image| image.digests.iter().cloned().collect())
            .unwrap_or_default();
        let mut found = None;
        for host in targets {
            if let Some(Said::Images(reports)) = facts.said.get(host)
                && let Some(image) = reports.get(name).filter(|image| image.phase == "ready")
            {
                digests.insert(image.digest.clone());
                found = Some(image);
            }
        }
        let said = earlier.filter(|_| shared || found.is_none());
        ImageStatus {
            name: name.clone(),
            digests: digests.into_iter().collect(),
            // Where several nodes say what they found the largest stands: else each would correct the others for ever.
            size_bytes: found.map(|image| signed(image.size_bytes)).max(said.and_then(|image| image.size_bytes)),
            layers: found
                .map(|image| i32::try_from(image.layers).unwrap_or(i32::MAX))
                .max(said.and_then(|image| image.layers)),
        }
    };
    snapshot.spec.images.iter().map(one).collect()
}

fn conditions(
    snapshot: &ImageSnapshot,
    facts: &Facts<'_>,
    before: &ImageSnapshotStatus,
    status: &ImageSnapshotStatus,
) -> Vec<Condition> {
    let condition = |type_: &str, is: bool, reason: &str, message: String| {
        let word = if is { "True" } else { "False" };
        let earlier = before.conditions.iter().find(|c| c.type_ == type_ && c.status == word);
        Condition {
            type_: type_.to_owned(),
            status: word.to_owned(),
            reason: reason.to_owned(),
            message,
            observed_generation: snapshot.metadata.generation,
            last_transition_time: earlier.map_or_else(|| Time(facts.now), |c| c.last_transition_time.clone()),
        }
    };
    let count =
        format!("{} of {} hosts have all {} images", status.ready_hosts, status.wanted_hosts, status.images.len());
    let (is, reason) = match (facts.targets, status.phase) {
        (Err(_), _) => (false, "InvalidHostSelector"),
        (_, Phase::Ready) => (true, "OnAllHosts"),
        (_, Phase::Pending) if status.hosts.is_empty() => (false, "NoHosts"),
        (_, Phase::Pending) => (false, "NotBegun"),
        (_, Phase::Pulling) => (false, "Pulling"),
        (_, Phase::Failing) => (false, "Failing"),
        (_, Phase::Expired) => (false, "Expired"),
    };
    let message = status.message.as_ref().map_or_else(|| count.clone(), |text| format!("{count}; {text}"));
    let mut all = vec![condition("Ready", is, reason, message)];
    if !snapshot.spec.image_pull_secrets.is_empty() {
        let problems = secret_problems(facts, before, status);
        let found = problems.is_empty();
        let reason = if found { "Found" } else { "NotUsable" };
        all.push(condition("PullSecretsFound", found, reason, problems.join("; ")));
    }
    all
}

/// What is wrong with the pull secrets, `NODE: problem`: of this node what it has found, of others that have hosts of the object what they have said.
/// Each node may read what another may not; if each spoke for all, the condition would follow whoever wrote last.
fn secret_problems(facts: &Facts<'_>, before: &ImageSnapshotStatus, status: &ImageSnapshotStatus) -> Vec<String> {
    let nodes: BTreeSet<&str> = status.hosts.iter().map(|host| host.node.as_str()).collect();
    let said = before.conditions.iter().find(|c| c.type_ == "PullSecretsFound").map_or("", |c| c.message.as_str());
    let mut problems: Vec<String> = Vec::new();
    let mut ours = true;
    for part in said.split("; ") {
        let node = part.split_once(": ").map(|(node, _)| node);
        match node.filter(|node| *node == facts.node || nodes.contains(node)) {
            Some(node) if node == facts.node => ours = true,
            Some(_) => {
                ours = false;
                problems.push(part.to_owned());
            }
            // A problem may hold the separator itself.
            None if ours => {}
            None => {
                if let Some(last) = problems.last_mut() {
                    last.push_str("; ");
                    last.push_str(part);
                }
            }
        }
    }
    problems.extend(facts.secrets.iter().map(|problem| format!("{}: {problem}", facts.node)));
    problems.sort();
    problems
}

/// Two statuses that differ in nothing but how many bytes have come.
#[must_use]
pub fn differ_in_progress_only(a: &ImageSnapshotStatus, b: &ImageSnapshotStatus) -> bool {
    let still = |status: &ImageSnapshotStatus| {
        let mut status = status.clone();
        for host in &mut status.hosts {
            (host.pulled_bytes, host.total_bytes) = (None, None);
        }
        status
    };
    still(a) == still(b)
}

fn signed(bytes: u64) -> i64 {
    i64::try_from(bytes).unwrap_or(i64::MAX)
}

/// `12.3Mi`.
fn people(bytes: u64) -> String {
    for (shift, unit) in [(30, "Gi"), (20, "Mi"), (10, "Ki")] {
        if bytes >= 1 << shift {
            let tenths = (u128::from(bytes) * 10) >> shift;
            return format!("{}.{}{unit}", tenths / 10, tenths % 10);
        }
    }
    bytes.to_string()
}

/// `12.3Mi`, for words elsewhere.
pub(super) fn amount(bytes: i64) -> String {
    people(u64::try_from(bytes).unwrap_or(0))
}

#[cfg(test)]
mod tests;
