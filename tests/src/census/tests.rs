use super::collect;
use super::{Census, Kind};

fn census(things: &[(Kind, &str)]) -> Census {
    let mut census = Census::default();
    for (kind, what) in things {
        census.add(*kind, *what);
    }
    census
}

#[test]
fn a_machine_that_did_not_change_has_no_difference() {
    let before = census(&[(Kind::Mount, "/a"), (Kind::Process, "p")]);
    assert!(before.left_since(&before).is_empty());
}

#[test]
fn what_is_new_was_left() {
    let before = census(&[(Kind::Mount, "/a")]);
    let after = census(&[(Kind::Mount, "/a"), (Kind::Cgroup, "/sys/fs/cgroup/x")]);
    let left: Vec<String> = after.left_since(&before).iter().map(ToString::to_string).collect();
    assert_eq!(left, ["left: cgroup /sys/fs/cgroup/x"]);
}

#[test]
fn a_second_mount_at_the_same_place_is_seen() {
    let before = census(&[(Kind::Mount, "/a")]);
    let after = census(&[(Kind::Mount, "/a"), (Kind::Mount, "/a")]);
    let left: Vec<String> = after.left_since(&before).iter().map(ToString::to_string).collect();
    assert_eq!(left, ["left: mount /a (1 before, 2 now)"]);
}

#[test]
fn a_mount_that_is_gone_is_a_fault_and_a_process_that_ended_is_not() {
    let before = census(&[(Kind::Mount, "/a"), (Kind::Process, "p")]);
    let gone: Vec<String> = Census::default().left_since(&before).iter().map(ToString::to_string).collect();
    assert_eq!(gone, ["gone: mount /a"]);
}

#[test]
fn a_file_of_ours_is_found_on_this_machine() {
    let file = tempfile::Builder::new().prefix("nodeless-census-").tempfile_in("/tmp").unwrap();
    let census = collect::take().unwrap();
    let expected = file.path().display().to_string();
    assert_eq!(census.0[&Kind::File].get(&expected), Some(&1));
    assert!(census.0[&Kind::Mount].keys().any(|mount| mount.starts_with("/proc ")));
}
