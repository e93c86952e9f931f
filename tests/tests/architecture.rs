//! The rules that the tree keeps: who may know whom, where `unsafe` may stand, how long a file may be, and that what the
//! documents name exists.

#![allow(clippy::unwrap_used, reason = "a rule that cannot be checked is a failed test")]

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use cargo_metadata::{DependencyKind, MetadataCommand};

/// Which of our crates each of our crates may depend on. `tests` may depend on all and is not here.
const EDGES: [(&str, &[&str]); 8] = [
    ("agent-api", &[]),
    ("billing", &["agent-api"]),
    ("vkubelet", &["agent-api", "billing"]),
    ("agent", &["agent-api", "sandbox", "image-snapshot"]),
    ("sandbox", &[]),
    ("image-snapshot", &[]),
    ("xtask", &[]),
    ("attacker", &[]),
];

/// The files that may say `allow(unsafe_code)`: system calls that no crate makes safe, and the tests' attacker's.
const UNSAFE_FILES: [&str; 25] = [
    "sandbox/src/sys/clone.rs",
    "sandbox/src/sys/device_filter.rs",
    "sandbox/src/sys/failpoint/armed.rs",
    "sandbox/src/sys/filter.rs",
    "sandbox/src/sys/image.rs",
    "sandbox/src/sys/keyring.rs",
    "sandbox/src/sys/hold.rs",
    "sandbox/src/sys/lend.rs",
    "sandbox/src/sys/link.rs",
    "sandbox/src/sys/loop_device.rs",
    "sandbox/src/sys/mount.rs",
    "sandbox/src/sys/process.rs",
    "sandbox/src/sys/quota.rs",
    "sandbox/src/sys/title.rs",
    "sandbox/src/sys/watch.rs",
    "tests/attacker/src/raw.rs",
    "tests/attacker/src/surface/calls.rs",
    "tests/attacker/src/surface/isolate.rs",
    "tests/attacker/src/surface/neighbour.rs",
    "tests/attacker/src/surface/numbers.rs",
    "tests/attacker/src/surface/process.rs",
    "tests/attacker/src/surface/spaces.rs",
    "tests/attacker/src/surface/walk.rs",
    "tests/src/bench/floor/raw.rs",
    "tests/src/bench/released/handle.rs",
];

/// Names that mean "the rest".
const NAMES_OF_NOTHING: [&str; 8] =
    ["utils.rs", "util.rs", "helpers.rs", "helper.rs", "common.rs", "manager.rs", "misc.rs", "shared.rs"];

/// Production lines that a file may have.
const LONGEST_FILE: usize = 800;

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("the package lies in the repository").to_owned()
}

/// Every Rust source file of the repository, by its path below the root.
fn sources() -> BTreeMap<String, String> {
    fn walk(root: &Path, dir: &Path, found: &mut BTreeMap<String, String>) {
        for entry in fs::read_dir(dir).unwrap() {
            let path = entry.unwrap().path();
            let name = path.file_name().unwrap().to_string_lossy().into_owned();
            if path.is_dir() {
                if !name.starts_with('.') && !name.starts_with("target") && name != "node_modules" {
                    walk(root, &path, found);
                }
            } else if name.ends_with(".rs") {
                // A file may be renamed by its author while we look.
                if let Ok(text) = fs::read_to_string(&path) {
                    found.insert(path.strip_prefix(root).unwrap().to_string_lossy().into_owned(), text);
                }
            }
        }
    }
    let mut found = BTreeMap::new();
    walk(&root(), &root(), &mut found);
    assert!(found.len() > 50, "only {} sources found: the walk is wrong", found.len());
    found
}

fn read(name: &str) -> String {
    fs::read_to_string(root().join(name)).unwrap_or_else(|error| panic!("cannot read {name}: {error}"))
}

/// What stands between backticks, outside of fenced blocks.
fn code_spans(text: &str) -> Vec<String> {
    let mut spans = Vec::new();
    let mut fenced = false;
    for line in text.lines() {
        if line.trim_start().starts_with("```") {
            fenced = !fenced;
        } else if !fenced {
            spans.extend(line.split('`').skip(1).step_by(2).map(str::to_owned));
        }
    }
    spans
}

#[test]
fn crates_know_only_whom_they_may() {
    let metadata = MetadataCommand::new()
        .manifest_path(root().join("Cargo.toml"))
        .no_deps()
        .exec()
        .expect("cargo metadata answers");
    let ours: BTreeSet<String> = metadata.packages.iter().map(|package| package.name.to_string()).collect();
    let allowed: BTreeMap<&str, &[&str]> = EDGES.into_iter().collect();
    let known: BTreeSet<&str> = allowed.keys().copied().chain(["tests"]).collect();
    assert_eq!(ours.iter().map(String::as_str).collect::<BTreeSet<_>>(), known, "crates of the workspace");
    for package in metadata.packages.iter().filter(|package| package.name != "tests") {
        let edges: BTreeSet<&str> = package
            .dependencies
            .iter()
            .filter(|dependency| dependency.kind != DependencyKind::Development || dependency.name != *package.name)
            .map(|dependency| dependency.name.as_str())
            .filter(|name| ours.contains(*name))
            .collect();
        let may = allowed[package.name.as_str()];
        let wrong: Vec<&&str> = edges.iter().filter(|edge| !may.contains(edge)).collect();
        assert!(wrong.is_empty(), "{} may not depend on {wrong:?}", package.name);
    }
}

#[test]
fn unsafe_code_stands_only_where_it_may() {
    let allowed: BTreeSet<&str> = UNSAFE_FILES.into_iter().collect();
    let this = "tests/tests/architecture.rs";
    let sources = sources();
    let found: BTreeSet<&str> = sources
        .iter()
        .filter(|(path, text)| *path != this && text.contains("allow(unsafe_code)"))
        .map(|(path, _)| path.as_str())
        .collect();
    assert_eq!(found, allowed, "files with allow(unsafe_code), against the list of this test");
}

#[test]
fn every_unsafe_block_says_why_it_is_safe() {
    for path in UNSAFE_FILES {
        let text = read(path);
        let blocks = text.matches("unsafe {").count() + text.matches("unsafe impl").count();
        let reasons = text.matches("SAFETY:").count();
        assert!(reasons >= blocks, "{path}: {blocks} unsafe blocks, {reasons} reasons");
    }
}

/// Lines before the file's own `mod tests {`, which unit tests may fill as they like.
fn production_lines(text: &str) -> usize {
    text.lines().take_while(|line| !line.starts_with("mod tests {")).count()
}

#[test]
fn no_file_is_too_long_and_none_is_named_after_nothing() {
    for (path, text) in sources() {
        let name = path.rsplit('/').next().unwrap();
        assert!(!NAMES_OF_NOTHING.contains(&name), "{path}: name it after what it does");
        let lines = production_lines(&text);
        assert!(lines <= LONGEST_FILE, "{path} has {lines} lines: split it (at most {LONGEST_FILE})");
    }
}

#[test]
fn files_are_short_at_the_median_and_at_the_ninetieth_percentile() {
    let mut lines: Vec<usize> = sources().values().map(|text| production_lines(text)).collect();
    lines.sort_unstable();
    let at = |percent: usize| lines[(lines.len() - 1) * percent / 100];
    assert!(at(50) <= 150, "median {} lines", at(50));
    assert!(at(90) <= 400, "ninetieth percentile {} lines", at(90));
}

#[test]
fn documents_name_only_paths_that_exist() {
    let root = root();
    for document in ["README.md", "CONTRIBUTING.md", "SPECIFICATION.md"] {
        let text = read(document);
        for span in code_spans(&text) {
            let path = span.split_whitespace().next().unwrap_or_default().trim_end_matches('/');
            let first = path.split('/').next().unwrap_or_default();
            // A path of ours begins with a name that stands at the top of the repository.
            if path.contains('/') && !path.contains(['<', '{', '*']) && root.join(first).exists() && first != "target" {
                assert!(root.join(path).exists(), "{document} names {path}, which does not exist");
            }
        }
        for link in text.split("](").skip(1).filter_map(|rest| rest.split(')').next()) {
            let file = link.split('#').next().unwrap_or_default();
            if !file.is_empty() && !file.contains("://") {
                assert!(root.join(file).exists(), "{document} links to {file}, which does not exist");
            }
        }
    }
}

#[test]
fn documents_name_only_commands_that_exist() {
    let root = root();
    let phases = read("hack/test");
    for document in ["README.md", "CONTRIBUTING.md"] {
        for line in read(document).lines() {
            for command in line.split('`').map(str::trim) {
                let words: Vec<&str> = command.split_whitespace().collect();
                match words[..] {
                    [program, ..] if program.starts_with("hack/") => {
                        assert!(root.join(program).exists(), "{document} names {program}, which does not exist");
                        if let ("hack/test", Some(phase)) = (program, words.get(1)) {
                            let known = phases.contains(&format!("phase_{phase}()")) || phase.starts_with('[');
                            assert!(known || phase.starts_with('#'), "{document}: hack/test has no phase {phase}");
                        }
                    }
                    _ => {}
                }
            }
        }
    }
}

/// What `hack/bench --list` names.
fn figures() -> BTreeSet<String> {
    let list = Command::new(root().join("hack/bench")).arg("--list").output().unwrap();
    assert!(list.status.success(), "hack/bench --list: {}", String::from_utf8_lossy(&list.stderr));
    String::from_utf8(list.stdout).unwrap().lines().map(str::to_owned).collect()
}

#[test]
fn hack_bench_lists_what_the_benchmarks_measure() {
    let measured: BTreeSet<String> = tests::bench::figures().map(|figure| figure.name.to_owned()).collect();
    assert_eq!(figures(), measured, "hack/bench.d, against the benchmarks' FIGURES");
}

/// SPECIFICATION.md's tables: `| promise | number | check |`, where check is `test:NAME`, `bench:FIGURE`, or pending.
#[test]
fn every_promise_has_its_check_or_says_pending() {
    let sources: String = sources().into_values().collect::<Vec<_>>().join("\n");
    let figures = figures();
    let mut promises = 0;
    for line in read("SPECIFICATION.md").lines().filter(|line| line.starts_with("| ")) {
        let cells: Vec<&str> = line.trim_matches('|').split('|').map(str::trim).collect();
        let Some(check) = cells.last() else { continue };
        if check.starts_with("---") || *check == "check" {
            continue;
        }
        promises += 1;
        let links: Vec<String> = code_spans(check)
            .into_iter()
            .filter(|span| span.starts_with("test:") || span.starts_with("bench:"))
            .collect();
        assert!(!links.is_empty() || check.starts_with("pending"), "no check and not pending: {line}");
        for link in links {
            let exists = match link.split_once(':') {
                Some(("test", name)) => sources.contains(&format!("fn {name}(")),
                Some((_, figure)) => figures.contains(figure),
                None => false,
            };
            assert!(exists, "{link} does not exist: {line}");
        }
    }
    assert!(promises >= 20, "only {promises} promises found");
}

/// The tables of sandbox/src/attacks.md: `| attack | defence | tests |`.
#[test]
fn every_attack_has_its_defence_and_its_test_and_every_attacking_test_its_attack() {
    let sources: String = sources().into_values().collect::<Vec<_>>().join("\n");
    let table = read("sandbox/src/attacks.md");
    let mut named = BTreeSet::new();
    for line in table.lines().filter(|line| line.starts_with("| ") && !line.starts_with("| ---")) {
        let cells: Vec<&str> = line.trim_matches('|').split('|').map(str::trim).collect();
        assert!(cells.len() == 3 && cells.iter().all(|cell| !cell.is_empty()), "attack, defence, test: {line}");
        if cells[2] == "test" {
            continue;
        }
        let tests: Vec<String> =
            code_spans(cells[2]).iter().filter_map(|span| span.strip_prefix("test:").map(str::to_owned)).collect();
        assert!(!tests.is_empty(), "no test: {line}");
        for test in tests {
            assert!(sources.contains(&format!("fn {test}(")), "{test} does not exist: {line}");
            named.insert(test);
        }
    }
    for kind in ["escape", "surface", "evaluate", "neighbours"] {
        let start = format!("fn privileged_{kind}_");
        for found in sources.split(&start).skip(1).filter_map(|rest| rest.split_once('(')).map(|(name, _)| name) {
            // A name, not this test's own words.
            let test = format!("privileged_{kind}_{found}");
            if found.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'_') {
                assert!(named.contains(&test), "{test} is in no table of sandbox/src/attacks.md");
            }
        }
    }
    assert!(named.len() >= 40, "only {} tests named", named.len());
}
