//! What a scan of the directory means for the pods. Pure.

use std::collections::BTreeMap;

use serde_json::Value;

/// A pod that was started from a file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Known {
    pub(super) uid: String,
    pub(super) path: String,
    pub(super) namespace: String,
    pub(super) name: String,
    /// Of the parsed content.
    pub(super) hash: String,
    /// It is on its way out.
    pub(super) leaving: bool,
}

/// A file as it is now.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Seen {
    /// It gives this pod.
    Pod { hash: String, pod: Value },
    /// It is there and gives no pod that can be taken; the problem is told elsewhere.
    Unusable,
}

/// What to do.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Action {
    /// End this pod.
    Retire { uid: String },
    /// Start a pod.
    Start { path: String, hash: String, pod: Value },
    /// Another file has that name already.
    Duplicate { path: String, other: String, namespace: String, name: String },
}

/// Compares. `trusted`: the directory is there and is the one that was scanned before, so that absence means deletion.
pub(super) fn plan(known: &[Known], seen: &BTreeMap<String, Seen>, trusted: bool) -> Vec<Action> {
    let mut actions = Vec::new();
    let mut taken: BTreeMap<(String, String), (String, bool)> = BTreeMap::new();
    let mut has_pod: BTreeMap<&str, ()> = BTreeMap::new();
    for pod in known {
        let stays = match seen.get(&pod.path) {
            None => !trusted,
            Some(Seen::Unusable) => true,
            Some(Seen::Pod { hash, .. }) => *hash == pod.hash,
        };
        let leaving = pod.leaving || !stays;
        if !stays && !pod.leaving {
            actions.push(Action::Retire { uid: pod.uid.clone() });
        }
        if !leaving {
            has_pod.insert(&pod.path, ());
        }
        let name = (pod.namespace.clone(), pod.name.clone());
        let slot = taken.entry(name).or_insert_with(|| (pod.path.clone(), leaving));
        if !leaving {
            *slot = (pod.path.clone(), false);
        }
    }
    for (path, file) in seen {
        let Seen::Pod { hash, pod } = file else { continue };
        if has_pod.contains_key(path.as_str()) {
            continue;
        }
        let word = |key: &str| pod["metadata"][key].as_str().unwrap_or_default().to_owned();
        let (namespace, name) = (word("namespace"), word("name"));
        match taken.get(&(namespace.clone(), name.clone())) {
            // Its predecessor is still ending: the next scan after that starts it.
            Some((_, true)) => {}
            Some((other, false)) => {
                actions.push(Action::Duplicate { path: path.clone(), other: other.clone(), namespace, name });
            }
            None => {
                taken.insert((namespace, name), (path.clone(), false));
                actions.push(Action::Start { path: path.clone(), hash: hash.clone(), pod: pod.clone() });
            }
        }
    }
    actions
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn known(path: &str, name: &str, hash: &str, leaving: bool) -> Known {
        Known {
            uid: format!("{path}-{hash}"),
            path: path.to_owned(),
            namespace: "default".to_owned(),
            name: name.to_owned(),
            hash: hash.to_owned(),
            leaving,
        }
    }

    fn file(name: &str, hash: &str) -> Seen {
        Seen::Pod { hash: hash.to_owned(), pod: json!({"metadata": {"namespace": "default", "name": name}}) }
    }

    fn seen(files: &[(&str, Seen)]) -> BTreeMap<String, Seen> {
        files.iter().map(|(path, seen)| ((*path).to_owned(), seen.clone())).collect()
    }

    #[test]
    fn a_deleted_file_is_a_deletion_but_a_vanished_directory_is_none() {
        let pods = [known("/d/a", "a", "1", false)];
        assert_eq!(plan(&pods, &seen(&[]), true), [Action::Retire { uid: "/d/a-1".to_owned() }]);
        assert_eq!(plan(&pods, &seen(&[]), false), []);
    }

    #[test]
    fn an_unusable_file_changes_nothing() {
        let pods = [known("/d/a", "a", "1", false)];
        assert_eq!(plan(&pods, &seen(&[("/d/a", Seen::Unusable)]), true), []);
    }

    #[test]
    fn a_changed_file_ends_the_old_pod_before_it_starts_the_new_one() {
        let files = seen(&[("/d/a", file("a", "2"))]);
        let actions = plan(&[known("/d/a", "a", "1", false)], &files, true);
        assert_eq!(actions, [Action::Retire { uid: "/d/a-1".to_owned() }]);
        assert_eq!(plan(&[known("/d/a", "a", "1", true)], &files, true), []);
        assert!(matches!(plan(&[], &files, true)[..], [Action::Start { .. }]));
    }

    #[test]
    fn a_file_that_comes_back_while_its_pod_ends_starts_anew_afterwards() {
        let files = seen(&[("/d/a", file("a", "1"))]);
        assert_eq!(plan(&[known("/d/a", "a", "1", true)], &files, true), []);
    }

    #[test]
    fn two_files_of_one_name_start_one_pod() {
        let files = seen(&[("/d/a", file("x", "1")), ("/d/b", file("x", "2"))]);
        let actions = plan(&[], &files, true);
        assert!(matches!(&actions[0], Action::Start { path, .. } if path == "/d/a"));
        assert!(matches!(&actions[1], Action::Duplicate { path, other, .. } if path == "/d/b" && other == "/d/a"));
    }

    #[test]
    fn a_file_that_changes_its_pods_name_does_not_wait() {
        let files = seen(&[("/d/a", file("new", "2"))]);
        let actions = plan(&[known("/d/a", "old", "1", false)], &files, true);
        assert!(matches!(&actions[..], [Action::Retire { .. }, Action::Start { .. }]));
    }
}
