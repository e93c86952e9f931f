//! Sandboxes as wholes.

use std::os::fd::AsRawFd;

use super::harness::{check, configured, exit_of, spec};
use super::{Failed, Harness, Program};
use crate::contract::{SandboxError, Stdio};
use crate::spec::{ExecSpec, Namespaces, Resources, SandboxId, SandboxSpec};

pub(super) async fn preparing_is_repeatable_and_gives_a_network_namespace(harness: &dyn Harness) -> Result<(), Failed> {
    let id = SandboxId("prepared".to_owned());
    let first = harness.sandboxes().prepare(&id).await?;
    let second = harness.sandboxes().prepare(&id).await?;
    check(first.id == id && second.id == id, "the id is not the one that was asked for")?;
    let inode =
        |fd: i32| std::fs::metadata(format!("/proc/self/fd/{fd}")).map(|m| std::os::unix::fs::MetadataExt::ino(&m));
    let same = match (inode(first.netns.as_raw_fd()), inode(second.netns.as_raw_fd())) {
        (Ok(first), Ok(second)) => first == second,
        _ => false,
    };
    check(same, "preparing twice gives two network namespaces")?;
    harness.sandboxes().destroy(&id).await?;
    Ok(())
}

pub(super) async fn bad_names_are_refused(harness: &dyn Harness) -> Result<(), Failed> {
    let long = "a".repeat(64);
    for name in ["", "..", "a/b", "A", "a b", "ä", long.as_str()] {
        let outcome = harness.sandboxes().prepare(&SandboxId(name.to_owned())).await;
        check(matches!(outcome, Err(SandboxError::Invalid { .. })), format_args!("{name:?} is not refused"))?;
    }
    Ok(())
}

pub(super) async fn a_sandbox_is_configured_once_and_for_one_pod(harness: &dyn Harness) -> Result<(), Failed> {
    let id = configured(harness, "configured").await?;
    let mut wanted = spec(harness, "configured");
    harness.sandboxes().configure(&id, &wanted).await?;
    wanted.labels.insert("pod.uid".to_owned(), "another".to_owned());
    let other = harness.sandboxes().configure(&id, &wanted).await;
    check(matches!(other, Err(SandboxError::Invalid { .. })), "a second pod was given the sandbox")?;
    harness.sandboxes().destroy(&id).await?;

    let bare = SandboxId("bare".to_owned());
    harness.sandboxes().prepare(&bare).await?;
    let early = harness.sandboxes().start(&bare, &harness.container("web", 0, &Program::Sleep)).await;
    check(matches!(early, Err(SandboxError::Invalid { .. })), "a container starts before the sandbox is configured")?;
    harness.sandboxes().destroy(&bare).await?;
    Ok(())
}

pub(super) async fn a_container_may_be_asked_for_before_the_sandbox_has_answered(
    harness: &dyn Harness,
) -> Result<(), Failed> {
    let id = SandboxId("at-once".to_owned());
    harness.sandboxes().prepare(&id).await?;
    let wanted = spec(harness, "at-once");
    let container = harness.container("web", 0, &Program::Sleep);
    let configured = harness.sandboxes().configure(&id, &wanted);
    let (configured, started) = tokio::join!(biased; configured, harness.sandboxes().start(&id, &container));
    configured?;
    started?;
    harness.sandboxes().destroy(&id).await?;

    // Refused is the one as the other.
    let other = SandboxId("at-once-other".to_owned());
    harness.sandboxes().prepare(&other).await?;
    let wrong = SandboxSpec { namespaces: Namespaces { user: false, ..Namespaces::default() }, ..wanted };
    let configured = harness.sandboxes().configure(&other, &wrong);
    let (configured, started) = tokio::join!(biased; configured, harness.sandboxes().start(&other, &container));
    check(matches!(configured, Err(SandboxError::Invalid { .. })), format_args!("other namespaces: {configured:?}"))?;
    check(matches!(started, Err(SandboxError::Invalid { .. })), format_args!("started all the same: {started:?}"))?;
    harness.sandboxes().destroy(&other).await?;
    Ok(())
}

fn is_not_found<T>(outcome: &Result<T, SandboxError>) -> bool {
    matches!(outcome, Err(SandboxError::NotFound { .. }))
}

pub(super) async fn what_does_not_exist_is_said_not_to(harness: &dyn Harness) -> Result<(), Failed> {
    let sandboxes = harness.sandboxes();
    let ghost = SandboxId("ghost".to_owned());
    let limits = Resources::default();
    check(is_not_found(&sandboxes.configure(&ghost, &spec(harness, "ghost")).await), "configure of no sandbox")?;
    let container = harness.container("web", 0, &Program::Sleep);
    check(is_not_found(&sandboxes.start(&ghost, &container).await), "start in no sandbox")?;
    check(is_not_found(&sandboxes.signal(&ghost, "web", 15, false).await), "signal in no sandbox")?;
    check(is_not_found(&sandboxes.update(&ghost, None, &limits).await), "update of no sandbox")?;
    check(is_not_found(&sandboxes.stats(&ghost).await), "stats of no sandbox")?;
    check(is_not_found(&sandboxes.events(&ghost).await), "events of no sandbox")?;
    sandboxes.destroy(&ghost).await?;

    let id = configured(harness, "empty").await?;
    check(is_not_found(&sandboxes.signal(&id, "web", 15, false).await), "signal to no container")?;
    check(is_not_found(&sandboxes.update(&id, Some("web"), &limits).await), "update of no container")?;
    let exec = ExecSpec {
        container: "web".to_owned(),
        args: harness.arguments(&Program::Exit(0)),
        env: vec![],
        cwd: None,
        tty: None,
    };
    check(is_not_found(&sandboxes.exec(&id, &exec, Stdio::default()).await), "exec in no container")?;
    sandboxes.destroy(&id).await?;
    Ok(())
}

pub(super) async fn listed_sandboxes_carry_their_labels(harness: &dyn Harness) -> Result<(), Failed> {
    let id = configured(harness, "listed").await?;
    let bare = SandboxId("unlabelled".to_owned());
    harness.sandboxes().prepare(&bare).await?;
    let list = harness.sandboxes().list().await?;
    let find = |id: &SandboxId| list.iter().find(|listed| listed.id == *id);
    let labelled = find(&id).is_some_and(|l| l.alive && l.labels.get("pod.name").is_some_and(|name| name == "listed"));
    check(labelled, format_args!("the configured sandbox is not listed as it is: {list:?}"))?;
    check(find(&bare).is_some_and(|l| l.labels.is_empty()), "the unconfigured sandbox is not listed without labels")?;
    for id in [&id, &bare] {
        harness.sandboxes().destroy(id).await?;
    }
    let list = harness.sandboxes().list().await?;
    check(list.iter().all(|l| l.id != id && l.id != bare), "destroyed sandboxes are still listed")
}

pub(super) async fn destroying_ends_everything_and_may_be_repeated(harness: &dyn Harness) -> Result<(), Failed> {
    let sandboxes = harness.sandboxes();
    let id = configured(harness, "destroyed").await?;
    sandboxes.start(&id, &harness.container("web", 0, &Program::Stubborn)).await?;
    sandboxes.start(&id, &harness.container("job", 0, &Program::Exit(0))).await?;
    let mut events = sandboxes.events(&id).await?;
    exit_of(&mut events, "job", 0).await?;
    sandboxes.destroy(&id).await?;
    sandboxes.destroy(&id).await?;
    // Whatever is still told, the stream ends.
    while events.recv().await.is_some() {}
    check(is_not_found(&sandboxes.stats(&id).await), "a destroyed sandbox still has figures")?;
    // The name may be used again, for a sandbox that knows nothing of the first.
    let again = configured(harness, "destroyed").await?;
    sandboxes.start(&again, &harness.container("web", 0, &Program::Exit(5))).await?;
    let mut events = sandboxes.events(&again).await?;
    check(exit_of(&mut events, "web", 0).await?.code == 5, "the second sandbox of a name hears of the first")?;
    sandboxes.destroy(&again).await?;
    Ok(())
}
