//! Pausing, containers that come later, and sandboxes whose shim is lost.

use std::time::Duration;

use super::harness::{check, configured, configured_as, exit_of, spec};
use super::streams::Streams;
use super::{Failed, Harness, Program};
use crate::contract::{ExecProcess, SandboxError, SandboxEvent, Stdio};
use crate::spec::{ContainerSpec, ExecSpec, Resources, SandboxId, SandboxSpec};

async fn exec(
    harness: &dyn Harness,
    id: &SandboxId,
    container: &str,
    program: &Program,
) -> Result<Box<dyn ExecProcess>, SandboxError> {
    let spec = ExecSpec {
        container: container.to_owned(),
        args: harness.arguments(program),
        env: vec![],
        cwd: None,
        tty: None,
    };
    harness.sandboxes().exec(id, &spec, Stdio::default()).await
}

pub(super) async fn a_paused_container_stands_still_until_it_is_resumed(harness: &dyn Harness) -> Result<(), Failed> {
    let sandboxes = harness.sandboxes();
    let id = configured(harness, "paused").await?;
    let container = ContainerSpec { stdin: true, ..harness.container("web", 0, &Program::Echo) };
    sandboxes.start(&id, &container).await?;
    let (stdio, mut streams) = Streams::new(true)?;
    let _attachment = sandboxes.attach(&id, "web", stdio).await?;
    streams.send("before\n").await?;
    streams.until("before\n").await?;
    sandboxes.pause(&id, "web").await?;
    sandboxes.pause(&id, "web").await?;
    streams.send("meanwhile\n").await?;
    streams.stays_silent().await?;
    let inside = exec(harness, &id, "web", &Program::Exit(0)).await.err();
    let said = inside.as_ref().map(ToString::to_string).unwrap_or_default();
    check(
        matches!(inside, Some(SandboxError::Invalid { .. })) && said.contains("paused"),
        format_args!("a process in a paused container: {inside:?}"),
    )?;
    // The rest of the sandbox goes on.
    check(sandboxes.stats(&id).await?.containers.contains_key("web"), "a paused container has no figures")?;
    let limits = Resources { pids_limit: Some(64), ..Resources::default() };
    sandboxes.update(&id, Some("web"), &limits).await?;
    let mut events = sandboxes.events(&id).await?;
    sandboxes.start(&id, &harness.container("job", 0, &Program::Exit(3))).await?;
    check(exit_of(&mut events, "job", 0).await?.code == 3, "another container does not run")?;
    sandboxes.resume(&id, "web").await?;
    sandboxes.resume(&id, "web").await?;
    streams.until("meanwhile\n").await?;
    check(
        exec(harness, &id, "web", &Program::Exit(4)).await?.wait().await?.code == 4,
        "nothing can be executed again",
    )?;
    for outcome in [sandboxes.pause(&id, "job").await, sandboxes.resume(&id, "none").await] {
        check(matches!(outcome, Err(SandboxError::NotFound { .. })), format_args!("of no container: {outcome:?}"))?;
    }
    sandboxes.destroy(&id).await?;
    Ok(())
}

pub(super) async fn a_paused_container_can_be_killed_and_destroyed(harness: &dyn Harness) -> Result<(), Failed> {
    let sandboxes = harness.sandboxes();
    let id = configured(harness, "paused-end").await?;
    let mut events = sandboxes.events(&id).await?;
    for (attempt, all) in [(0, false), (1, true)] {
        sandboxes.start(&id, &harness.container("web", attempt, &Program::Stubborn)).await?;
        sandboxes.pause(&id, "web").await?;
        sandboxes.signal(&id, "web", libc::SIGTERM, false).await?;
        check(sandboxes.stats(&id).await?.containers.contains_key("web"), "SIGTERM ends what is paused")?;
        sandboxes.signal(&id, "web", libc::SIGKILL, all).await?;
        let exit = exit_of(&mut events, "web", attempt).await?;
        check((exit.code, exit.signal) == (137, Some(9)), format_args!("the kill is told as {exit:?}"))?;
    }
    sandboxes.start(&id, &harness.container("web", 2, &Program::Sleep)).await?;
    sandboxes.pause(&id, "web").await?;
    sandboxes.destroy(&id).await?;
    let gone = sandboxes.stats(&id).await;
    check(matches!(gone, Err(SandboxError::NotFound { .. })), "the sandbox is not destroyed")
}

pub(super) async fn a_container_added_to_another_ends_with_it(harness: &dyn Harness) -> Result<(), Failed> {
    let sandboxes = harness.sandboxes();
    let id = configured(harness, "added").await?;
    let debug = |attempt| ContainerSpec {
        target: Some("web".to_owned()),
        ..harness.container("debug", attempt, &Program::Sleep)
    };
    let early = sandboxes.start(&id, &debug(0)).await;
    check(matches!(early, Err(SandboxError::NotFound { .. })), format_args!("without its target: {early:?}"))?;
    let mut events = sandboxes.events(&id).await?;
    sandboxes.start(&id, &harness.container("web", 0, &Program::Sleep)).await?;
    sandboxes.start(&id, &harness.container("other", 0, &Program::Sleep)).await?;
    sandboxes.start(&id, &debug(0)).await?;
    sandboxes.signal(&id, "debug", libc::SIGKILL, false).await?;
    exit_of(&mut events, "debug", 0).await?;
    check(sandboxes.stats(&id).await?.containers.len() == 2, "its end is not its own")?;
    sandboxes.start(&id, &debug(1)).await?;
    check(exec(harness, &id, "debug", &Program::Exit(6)).await?.wait().await?.code == 6, "nothing runs in it")?;
    sandboxes.signal(&id, "web", libc::SIGKILL, true).await?;
    let mut events = sandboxes.events(&id).await?;
    let exit = exit_of(&mut events, "debug", 1).await?;
    check(exit.signal == Some(9) && !exit.oom_killed, format_args!("its end with its target is told as {exit:?}"))?;
    check(sandboxes.stats(&id).await?.containers.keys().eq(["other"]), "others are not as they were")?;
    sandboxes.destroy(&id).await?;
    Ok(())
}

pub(super) async fn containers_that_share_processes_live_and_die_alone(harness: &dyn Harness) -> Result<(), Failed> {
    let sandboxes = harness.sandboxes();
    let shared = SandboxSpec { share_process_namespace: true, ..spec(harness, "shared") };
    let id = configured_as(harness, &shared).await?;
    let mut events = sandboxes.events(&id).await?;
    for name in ["web", "db"] {
        sandboxes.start(&id, &harness.container(name, 0, &Program::Sleep)).await?;
        check(exec(harness, &id, name, &Program::Exit(7)).await?.wait().await?.code == 7, "nothing runs in it")?;
    }
    let late = ContainerSpec { target: Some("db".to_owned()), ..harness.container("late", 0, &Program::Sleep) };
    sandboxes.start(&id, &late).await?;
    sandboxes.signal(&id, "db", libc::SIGKILL, false).await?;
    let exit = exit_of(&mut events, "db", 0).await?;
    check((exit.code, exit.signal) == (137, Some(9)), format_args!("the kill is told as {exit:?}"))?;
    check(sandboxes.stats(&id).await?.containers.keys().eq(["late", "web"]), "others are not as they were")?;
    check(exec(harness, &id, "web", &Program::Exit(8)).await?.wait().await?.code == 8, "nothing runs any more")?;
    sandboxes.destroy(&id).await?;
    Ok(())
}

pub(super) async fn waits_may_be_given_up_and_taken_up_again(harness: &dyn Harness) -> Result<(), Failed> {
    let sandboxes = harness.sandboxes();
    let id = configured(harness, "waits").await?;
    sandboxes.start(&id, &harness.container("web", 0, &Program::Sleep)).await?;
    let mut process = exec(harness, &id, "web", &Program::Sleep).await?;
    let early = tokio::time::timeout(Duration::from_millis(20), process.wait()).await;
    check(early.is_err(), format_args!("what runs is told to have ended: {early:?}"))?;
    process.signal(libc::SIGKILL).await?;
    for _ in 0..2 {
        let exit = process.wait().await?;
        check((exit.code, exit.signal) == (137, Some(9)), format_args!("the kill is told as {exit:?}"))?;
    }
    process.signal(libc::SIGKILL).await?;
    sandboxes.destroy(&id).await?;
    Ok(())
}

pub(super) async fn a_further_process_ends_with_its_container(harness: &dyn Harness) -> Result<(), Failed> {
    let sandboxes = harness.sandboxes();
    let id = configured(harness, "guests").await?;
    for name in ["web", "other"] {
        sandboxes.start(&id, &harness.container(name, 0, &Program::Sleep)).await?;
    }
    let mut guest = exec(harness, &id, "web", &Program::Stubborn).await?;
    let mut elsewhere = exec(harness, &id, "other", &Program::Sleep).await?;
    sandboxes.signal(&id, "web", libc::SIGKILL, false).await?;
    let exit = guest.wait().await?;
    check(exit.signal == Some(9) && !exit.oom_killed, format_args!("its end is told as {exit:?}"))?;
    let early = tokio::time::timeout(Duration::from_millis(20), elsewhere.wait()).await;
    check(early.is_err(), format_args!("a process of another container ended too: {early:?}"))?;
    sandboxes.destroy(&id).await?;
    Ok(())
}

pub(super) async fn a_lost_shim_takes_all_along_and_is_told(harness: &dyn Harness) -> Result<(), Failed> {
    let sandboxes = harness.sandboxes();
    let id = configured(harness, "lost").await?;
    let mut events = sandboxes.events(&id).await?;
    sandboxes.start(&id, &harness.container("job", 0, &Program::Exit(5))).await?;
    exit_of(&mut events, "job", 0).await?;
    sandboxes.start(&id, &harness.container("web", 0, &Program::Sleep)).await?;
    let (stdio, _streams) = Streams::new(false)?;
    let mut attachment = sandboxes.attach(&id, "web", stdio).await?;
    sandboxes.start(&id, &harness.container("still", 0, &Program::Sleep)).await?;
    sandboxes.pause(&id, "still").await?;
    if !harness.lose(&id) {
        sandboxes.destroy(&id).await?;
        return Ok(());
    }
    let mut last = None;
    while let Some(event) = events.recv().await {
        last = Some(event);
        if matches!(last, Some(SandboxEvent::Lost { .. })) {
            break;
        }
    }
    check(matches!(last, Some(SandboxEvent::Lost { .. })), format_args!("it is told as {last:?}"))?;
    let waited = attachment.wait().await;
    check(matches!(waited, Err(SandboxError::Unavailable { .. })), format_args!("who is attached is told {waited:?}"))?;
    let listed = sandboxes.list().await?;
    check(listed.iter().any(|l| l.id == id && !l.alive), format_args!("it is listed as {listed:?}"))?;
    for outcome in [sandboxes.signal(&id, "web", 15, false).await, sandboxes.pause(&id, "web").await] {
        check(matches!(outcome, Err(SandboxError::Unavailable { .. })), format_args!("it answers {outcome:?}"))?;
    }
    // What was before is still told, to those who ask now.
    let mut again = sandboxes.events(&id).await?;
    check(exit_of(&mut again, "job", 0).await?.code == 5, "an earlier end is forgotten")?;
    sandboxes.destroy(&id).await?;
    Ok(())
}

pub(super) async fn a_further_process_that_eats_too_much_is_told_so(harness: &dyn Harness) -> Result<(), Failed> {
    if !harness.enforces_limits() {
        return Ok(());
    }
    let sandboxes = harness.sandboxes();
    let id = configured(harness, "guest-eater").await?;
    let mut container = harness.container("web", 0, &Program::Sleep);
    container.resources = Resources { memory_limit: Some(24 << 20), ..Resources::default() };
    sandboxes.start(&id, &container).await?;
    sandboxes.start(&id, &harness.container("neighbour", 0, &Program::Sleep)).await?;
    let mut plain = exec(harness, &id, "web", &Program::Sleep).await?;
    plain.signal(libc::SIGKILL).await?;
    check(!plain.wait().await?.oom_killed, "a kill is told as an OOM kill")?;
    let exit = exec(harness, &id, "web", &Program::Eat).await?.wait().await?;
    check(exit.oom_killed && exit.code == 137, format_args!("the over-eater's end is told as {exit:?}"))?;
    check(sandboxes.stats(&id).await?.containers.contains_key("neighbour"), "its neighbour died with it")?;
    sandboxes.destroy(&id).await?;
    Ok(())
}
