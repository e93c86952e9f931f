use serde_json::json;

use super::*;

fn snapshot(spec: serde_json::Value) -> ImageSnapshot {
    serde_json::from_value(json!({
        "apiVersion": "nodeless.dev/v1alpha1", "kind": "ImageSnapshot",
        "metadata": {"name": "s", "uid": "u", "generation": 3, "creationTimestamp": "2026-01-01T00:00:00Z"}, "spec": spec,
    }))
    .unwrap()
}

fn at(text: &str) -> Timestamp {
    text.parse().unwrap()
}

fn ready(name: &str, digest: &str) -> PreparedImage {
    let (phase, digest) = ("ready".to_owned(), digest.to_owned());
    let since_unix = at("2026-01-01T00:00:30Z").as_second();
    PreparedImage {
        reference: name.to_owned(),
        phase,
        digest,
        size_bytes: 3 << 19,
        layers: 2,
        since_unix,
        ..Default::default()
    }
}

fn pulling(name: &str, done_bytes: u64) -> PreparedImage {
    PreparedImage {
        reference: name.to_owned(),
        phase: "pulling".to_owned(),
        done_bytes,
        total_bytes: 100,
        ..Default::default()
    }
}

fn failed(name: &str) -> PreparedImage {
    let (reason, message) = ("ErrImagePull".to_owned(), "no such image".to_owned());
    PreparedImage { reference: name.to_owned(), phase: "failed".to_owned(), reason, message, ..Default::default() }
}

fn said(images: &[PreparedImage]) -> Said {
    Said::Images(images.iter().map(|image| (image.reference.clone(), image.clone())).collect())
}

fn look(snapshot: &ImageSnapshot, hosts: &[(&str, Said)], now: &str) -> ImageSnapshotStatus {
    let targets = Ok(hosts.iter().map(|(name, _)| (*name).to_owned()).collect());
    let said = hosts.iter().map(|(name, said)| ((*name).to_owned(), said.clone())).collect();
    status(snapshot, &Facts { node: "n", targets: &targets, said: &said, secrets: &[], now: at(now) })
}

const NOW: &str = "2026-01-01T00:01:00Z";

#[test]
fn the_whole_is_what_its_hosts_are() {
    let of = snapshot(json!({"images": ["x", "y"]}));
    let both = said(&[ready("x", "sha256:a"), ready("y", "sha256:b")]);
    let table = [
        (vec![], Phase::Pending, "0/0"),
        (vec![("a", Said::Nothing)], Phase::Pending, "0/1"),
        (vec![("a", said(&[]))], Phase::Pending, "0/1"),
        (vec![("a", said(&[pulling("x", 1)]))], Phase::Pulling, "0/1"),
        (vec![("a", said(&[ready("x", "sha256:a")]))], Phase::Pulling, "0/1"),
        (vec![("a", both.clone()), ("b", Said::Nothing)], Phase::Pulling, "1/2"),
        (vec![("a", both.clone()), ("b", both.clone())], Phase::Ready, "2/2"),
        (vec![("a", both.clone()), ("b", said(&[ready("x", "sha256:a"), failed("y")]))], Phase::Failing, "1/2"),
        (vec![("a", Said::TooOld)], Phase::Failing, "0/1"),
    ];
    for (hosts, phase, count) in table {
        let status = look(&of, &hosts, NOW);
        assert_eq!((status.phase, status.ready.as_str()), (phase, count), "{hosts:?}");
        let condition = &status.conditions[0];
        assert_eq!(
            (condition.type_.as_str(), condition.status == "True"),
            ("Ready", phase == Phase::Ready),
            "{hosts:?}"
        );
        assert_eq!(status.observed_generation, Some(3));
    }
}

#[test]
fn sizes_digests_progress_and_what_keeps_a_host_are_told() {
    let of = snapshot(json!({"images": ["x", "y"]}));
    let status =
        look(&of, &[("a", said(&[ready("x", "sha256:a"), pulling("y", 40)])), ("b", said(&[failed("x")]))], NOW);
    assert_eq!((status.hosts[0].pulled_bytes, status.hosts[0].total_bytes), (Some(40), Some(100)));
    assert_eq!(status.hosts[1].message.as_deref(), Some("x: ErrImagePull: no such image"));
    assert_eq!(status.message.as_deref(), Some("b: x: ErrImagePull: no such image"));
    assert_eq!(status.images[0].digests, ["sha256:a"]);
    assert_eq!(
        (status.images[0].size_bytes, status.images[0].layers, status.size_bytes),
        (Some(3 << 19), Some(2), None)
    );
    let status = look(&of, &[("a", said(&[ready("x", "sha256:a"), ready("y", "sha256:b")]))], NOW);
    assert_eq!((status.size.as_deref(), status.hosts[0].size_bytes), (Some("3.0Mi"), 3 << 20));
    assert_eq!(status.hosts[0].ready_since.as_ref().unwrap().0, at("2026-01-01T00:00:30Z"));
}

#[test]
fn saying_it_again_changes_nothing_and_transitions_keep_their_time() {
    let mut of = snapshot(json!({"images": ["x"], "imagePullSecrets": [{"name": "s"}]}));
    let hosts = [("a", said(&[ready("x", "sha256:a")]))];
    of.status = Some(look(&of, &hosts, NOW));
    let later = look(&of, &hosts, "2026-01-01T00:05:00Z");
    assert_eq!(of.status.as_ref(), Some(&later));
    let failing = look(&of, &[("a", said(&[failed("x")]))], "2026-01-01T00:06:00Z");
    assert_eq!(failing.conditions[0].last_transition_time.0, at("2026-01-01T00:06:00Z"));
    assert_eq!(failing.conditions[1].last_transition_time.0, at(NOW));
    assert_eq!(failing.images[0].size_bytes, Some(3 << 19), "what is known of it stays known");
}

#[test]
fn hosts_of_other_nodes_and_hosts_not_heard_yet_stay_as_they_were_said_to_be() {
    let mut of = snapshot(json!({"images": ["x"]}));
    let other = HostStatus { node: "m".to_owned(), name: "z".to_owned(), phase: Phase::Ready, ..HostStatus::default() };
    let first = look(&of, &[("a", said(&[ready("x", "sha256:a")]))], NOW);
    of.status = Some(ImageSnapshotStatus { hosts: vec![other.clone(), first.hosts[0].clone()], ..first.clone() });
    let again = look(&of, &[("a", Said::Nothing)], "2026-01-01T00:02:00Z");
    assert_eq!(again.hosts, [other, first.hosts[0].clone()]);
    assert_eq!((again.phase, again.ready.as_str()), (Phase::Ready, "2/2"));
    assert_eq!(again.images, first.images);
}

#[test]
fn an_agent_that_has_just_come_back_is_not_taken_for_one_that_has_lost_its_images() {
    let mut of = snapshot(json!({"images": ["x", "y"]}));
    let both = said(&[ready("x", "sha256:a"), ready("y", "sha256:b")]);
    of.status = Some(look(&of, &[("a", both)], NOW));
    for words in [said(&[]), said(&[ready("x", "sha256:a")])] {
        assert_eq!(look(&of, &[("a", words)], NOW).hosts, of.status.as_ref().unwrap().hosts);
    }
    let lost = said(&[ready("x", "sha256:a"), pulling("y", 1)]);
    assert_eq!(look(&of, &[("a", lost)], NOW).phase, Phase::Pulling);
    // Another image is asked for: that is not what was said of.
    of.metadata.generation = Some(4);
    assert_eq!(look(&of, &[("a", said(&[]))], NOW).phase, Phase::Pending);
}

#[test]
fn an_object_whose_time_is_over_says_so() {
    let of = snapshot(json!({"images": ["x"], "retention": {"seconds": 30}}));
    let status = look(&of, &[], NOW);
    assert_eq!((status.phase, status.expires.unwrap().0), (Phase::Expired, at("2026-01-01T00:00:30Z")));
    assert_eq!(status.conditions[0].reason, "Expired");
}

#[test]
fn only_bytes_that_have_come_are_progress() {
    let of = snapshot(json!({"images": ["x"]}));
    let at = |done| look(&of, &[("a", said(&[pulling("x", done)]))], NOW);
    assert!(differ_in_progress_only(&at(1), &at(2)));
    assert!(!differ_in_progress_only(&at(1), &look(&of, &[("a", said(&[failed("x")]))], NOW)));
}

#[test]
fn nodes_that_disagree_about_pull_secrets_do_not_take_each_others_word_back() {
    let mut of = snapshot(json!({"images": ["x"], "imagePullSecrets": [{"name": "s"}]}));
    let (targets, heard) = (Ok(BTreeSet::from(["a".to_owned()])), BTreeMap::from([("a".to_owned(), Said::Nothing)]));
    let missing = ["secret \"s\" is not there; it must be in its namespace".to_owned()];
    let mut look = |node: &str, secrets: &[String]| {
        let facts = Facts { node, targets: &targets, said: &heard, secrets, now: at(NOW) };
        let status = status(&of, &facts);
        let condition = status.conditions[1].clone();
        of.status = Some(status);
        (condition.status, condition.message)
    };
    let no = "False".to_owned();
    let of_n = format!("n: {}", missing[0]);
    assert_eq!(look("n", &missing), (no.clone(), of_n.clone()));
    // The other finds it; the first still does not.
    assert_eq!(look("m", &[]), (no.clone(), of_n.clone()));
    assert_eq!(look("n", &missing), (no.clone(), of_n.clone()));
    assert_eq!(look("m", &missing), (no.clone(), format!("m: {}; {of_n}", missing[0])));
    assert_eq!(look("n", &[]).1, format!("m: {}", missing[0]));
    assert_eq!(look("m", &[]), ("True".to_owned(), String::new()));
}
