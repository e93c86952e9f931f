//! Containers of a sandbox.

use std::io::Read;

use super::harness::{check, configured, exit_of, logged};
use super::{Failed, Harness, Program};
use crate::contract::{Exit, SandboxError, SandboxEvent, Stdio};
use crate::spec::{ExecSpec, Resources, SandboxId};
use crate::sys::clock;

/// Starts a container and waits for its end.
async fn run(
    harness: &dyn Harness,
    id: &SandboxId,
    name: &str,
    attempt: u32,
    program: &Program,
) -> Result<Exit, Failed> {
    let mut events = harness.sandboxes().events(id).await?;
    harness.sandboxes().start(id, &harness.container(name, attempt, program)).await?;
    exit_of(&mut events, name, attempt).await
}

pub(super) async fn an_end_is_told_with_code_and_true_times(harness: &dyn Harness) -> Result<(), Failed> {
    let id = configured(harness, "ends").await?;
    for (attempt, code) in [0, 1, 7, 255].into_iter().enumerate() {
        let attempt = u32::try_from(attempt).unwrap_or(u32::MAX);
        let before = (clock::boottime_ns(), clock::wall_ns());
        let mut events = harness.sandboxes().events(&id).await?;
        let container = harness.container("web", attempt, &Program::Exit(code));
        let started = harness.sandboxes().start(&id, &container).await?;
        let exit = exit_of(&mut events, "web", attempt).await?;
        let after = (clock::boottime_ns(), clock::wall_ns());
        check(exit.code == code, format_args!("code {code} is told as {}", exit.code))?;
        check(exit.signal.is_none() && !exit.oom_killed, "an ordinary end is told as a kill")?;
        let ordered = before.0 <= started.boottime_ns
            && started.boottime_ns <= exit.boottime_ns
            && exit.boottime_ns <= after.0
            && before.1 <= started.wall_ns
            && exit.wall_ns <= after.1;
        check(ordered, format_args!("times are not in order: {before:?} {started:?} {exit:?} {after:?}"))?;
    }
    harness.sandboxes().destroy(&id).await?;
    Ok(())
}

pub(super) async fn starting_is_repeatable_and_attempts_are_told_apart(harness: &dyn Harness) -> Result<(), Failed> {
    let sandboxes = harness.sandboxes();
    let id = configured(harness, "attempts").await?;
    let first = harness.container("web", 0, &Program::Sleep);
    let started = sandboxes.start(&id, &first).await?;
    check(sandboxes.start(&id, &first).await? == started, "a repeated start starts again")?;
    let second = harness.container("web", 1, &Program::Sleep);
    let overlap = sandboxes.start(&id, &second).await;
    check(matches!(overlap, Err(SandboxError::Invalid { .. })), "two attempts run at a time")?;
    let mut events = sandboxes.events(&id).await?;
    sandboxes.signal(&id, "web", 9, false).await?;
    exit_of(&mut events, "web", 0).await?;
    check(sandboxes.start(&id, &first).await? == started, "an ended attempt runs again")?;
    let again = sandboxes.start(&id, &second).await?;
    check(again.boottime_ns > started.boottime_ns, "the second attempt has the first one's time")?;
    sandboxes.destroy(&id).await?;
    Ok(())
}

pub(super) async fn a_missing_program_is_told_as_such_and_leaves_nothing(harness: &dyn Harness) -> Result<(), Failed> {
    let sandboxes = harness.sandboxes();
    let id = configured(harness, "missing").await?;
    let outcome = sandboxes.start(&id, &harness.container("web", 0, &Program::Missing)).await;
    if outcome.is_ok() {
        let exit = exit_of(&mut sandboxes.events(&id).await?, "web", 0).await?;
        return Err(Failed(format!("it is told as {outcome:?}, then as {exit:?}")));
    }
    check(matches!(outcome, Err(SandboxError::Exec { code: 127, .. })), format_args!("it is told as {outcome:?}"))?;
    check(sandboxes.stats(&id).await?.containers.is_empty(), "something of it runs")?;
    // The same attempt may be tried again, and the sandbox is none the worse.
    check(run(harness, &id, "web", 0, &Program::Exit(3)).await?.code == 3, "the attempt cannot be made again")?;
    let mut events = sandboxes.events(&id).await?;
    let mut starts = 0;
    while let Some(event) = events.recv().await {
        starts += u32::from(matches!(event, SandboxEvent::Started { .. }));
        if matches!(event, SandboxEvent::Exited { .. }) {
            break;
        }
    }
    check(starts == 1, "the failed start is told as a start")?;
    sandboxes.destroy(&id).await?;
    Ok(())
}

pub(super) async fn output_is_logged_byte_for_byte(harness: &dyn Harness) -> Result<(), Failed> {
    let id = configured(harness, "logs").await?;
    let text = format!("first\n\n{}\nwithout an end", "long ".repeat(9_000));
    run(harness, &id, "web", 2, &Program::Print(text.clone())).await?;
    let logged = logged(harness, "logs", "web", 2)?;
    check(logged == text.as_bytes(), format_args!("{} bytes were written, {} logged", text.len(), logged.len()))?;
    let mut events = harness.sandboxes().events(&id).await?;
    let mut first_byte = false;
    while let Some(event) = events.recv().await {
        first_byte |= matches!(&event, SandboxEvent::FirstByte { container, attempt: 2, .. } if container == "web");
        if matches!(event, SandboxEvent::Exited { .. }) {
            break;
        }
    }
    check(first_byte, "the first byte is not told before the end")?;
    harness.sandboxes().destroy(&id).await?;
    Ok(())
}

pub(super) async fn signals_end_what_does_not_ignore_them(harness: &dyn Harness) -> Result<(), Failed> {
    let sandboxes = harness.sandboxes();
    let id = configured(harness, "signals").await?;
    let mut events = sandboxes.events(&id).await?;
    sandboxes.start(&id, &harness.container("polite", 0, &Program::Sleep)).await?;
    sandboxes.start(&id, &harness.container("stubborn", 0, &Program::Stubborn)).await?;
    let bad = sandboxes.signal(&id, "polite", 4_000, false).await;
    check(matches!(bad, Err(SandboxError::Invalid { .. })), "signal 4000 is not refused")?;
    // All of its processes: a shell as first process of a PID namespace may not die of SIGTERM by itself.
    sandboxes.signal(&id, "polite", libc::SIGKILL, true).await?;
    let exit = exit_of(&mut events, "polite", 0).await?;
    check((exit.code, exit.signal) == (137, Some(9)), format_args!("SIGKILL is told as {exit:?}"))?;
    check(!exit.oom_killed, "a kill is told as an OOM kill")?;
    sandboxes.signal(&id, "stubborn", libc::SIGTERM, false).await?;
    check(sandboxes.stats(&id).await?.containers.contains_key("stubborn"), "SIGTERM ended what ignores it")?;
    sandboxes.signal(&id, "stubborn", libc::SIGKILL, false).await?;
    exit_of(&mut events, "stubborn", 0).await?;
    let late = sandboxes.signal(&id, "stubborn", libc::SIGTERM, false).await;
    check(matches!(late, Err(SandboxError::NotFound { .. })), "what has ended takes a signal")?;
    sandboxes.destroy(&id).await?;
    Ok(())
}

pub(super) async fn late_and_early_subscribers_hear_the_same(harness: &dyn Harness) -> Result<(), Failed> {
    let id = configured(harness, "subscribers").await?;
    let mut early = harness.sandboxes().events(&id).await?;
    for attempt in 0..3 {
        run(harness, &id, "web", attempt, &Program::Exit(0)).await?;
    }
    let mut late = harness.sandboxes().events(&id).await?;
    loop {
        let (a, b) = (early.recv().await, late.recv().await);
        check(a == b && a.is_some(), format_args!("one heard {a:?}, the other {b:?}"))?;
        if matches!(a, Some(SandboxEvent::Exited { attempt: 2, .. })) {
            break;
        }
    }
    harness.sandboxes().destroy(&id).await?;
    Ok(())
}

pub(super) async fn a_further_process_has_an_end_of_its_own(harness: &dyn Harness) -> Result<(), Failed> {
    let sandboxes = harness.sandboxes();
    let id = configured(harness, "exec").await?;
    sandboxes.start(&id, &harness.container("web", 0, &Program::Sleep)).await?;
    let exec = |program: &Program| ExecSpec {
        container: "web".to_owned(),
        args: harness.arguments(program),
        env: vec![],
        cwd: None,
        tty: None,
    };
    let mut process = sandboxes.exec(&id, &exec(&Program::Exit(9)), Stdio::default()).await?;
    check(process.wait().await?.code == 9, "its code is not its own")?;
    check(process.wait().await?.code == 9, "its end is told once only")?;

    let (read, write) = rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC)
        .map_err(|errno| Failed(format!("no pipe: {errno}")))?;
    let stdio = Stdio { stdout: Some(write), ..Stdio::default() };
    let mut process = sandboxes.exec(&id, &exec(&Program::Print("said".to_owned())), stdio).await?;
    let reading = tokio::task::spawn_blocking(move || {
        let mut said = String::new();
        std::fs::File::from(read).read_to_string(&mut said).map(|_| said)
    });
    check(process.wait().await?.code == 0, "a printing process fails")?;
    drop(process);
    check(matches!(reading.await, Ok(Ok(said)) if said == "said"), "its output does not arrive")?;

    let mut process = sandboxes.exec(&id, &exec(&Program::Sleep), Stdio::default()).await?;
    process.signal(libc::SIGKILL).await?;
    check(process.wait().await?.signal == Some(9), "its kill is not told")?;
    let missing = sandboxes.exec(&id, &exec(&Program::Missing), Stdio::default()).await;
    check(matches!(missing, Err(SandboxError::Exec { code: 127, .. })), "a missing program is executed")?;
    check(sandboxes.stats(&id).await?.containers.contains_key("web"), "the container ended with its guests")?;
    sandboxes.destroy(&id).await?;
    Ok(())
}

pub(super) async fn use_is_told_for_the_pod_and_each_container(harness: &dyn Harness) -> Result<(), Failed> {
    let sandboxes = harness.sandboxes();
    let id = configured(harness, "stats").await?;
    for name in ["web", "db"] {
        sandboxes.start(&id, &harness.container(name, 0, &Program::Sleep)).await?;
    }
    let stats = sandboxes.stats(&id).await?;
    check(stats.containers.keys().eq(["db", "web"]), format_args!("containers: {:?}", stats.containers.keys()))?;
    for usage in stats.containers.values() {
        check(usage.pids >= 1 && usage.pids <= stats.pod.pids, "a running container has no process")?;
        check(usage.memory_working_set_bytes <= usage.memory_bytes, "the working set exceeds the use")?;
    }
    sandboxes.destroy(&id).await?;
    Ok(())
}

pub(super) async fn limits_can_be_changed_while_it_runs(harness: &dyn Harness) -> Result<(), Failed> {
    let sandboxes = harness.sandboxes();
    let id = configured(harness, "limits").await?;
    let mut container = harness.container("web", 0, &Program::Sleep);
    container.resources = Resources { memory_limit: Some(64 << 20), pids_limit: Some(64), ..Resources::default() };
    sandboxes.start(&id, &container).await?;
    for memory in [128u64 << 20, 48 << 20] {
        let limits = Resources {
            cpu_shares: Some(512),
            cpu_quota_us: Some(50_000),
            memory_limit: Some(memory),
            pids_limit: Some(32),
            ..Resources::default()
        };
        sandboxes.update(&id, Some("web"), &limits).await?;
        sandboxes.update(&id, None, &Resources { memory_limit: Some(memory * 2), ..Resources::default() }).await?;
    }
    check(sandboxes.stats(&id).await?.containers.contains_key("web"), "the change ended it")?;
    sandboxes.destroy(&id).await?;
    Ok(())
}

pub(super) async fn an_over_eater_dies_alone_and_it_is_said_why(harness: &dyn Harness) -> Result<(), Failed> {
    if !harness.enforces_limits() {
        return Ok(());
    }
    let sandboxes = harness.sandboxes();
    let id = configured(harness, "eater").await?;
    let limited = |memory: u64| Resources { memory_limit: Some(memory), ..Resources::default() };
    let mut neighbour = harness.container("neighbour", 0, &Program::Sleep);
    neighbour.resources = limited(64 << 20);
    sandboxes.start(&id, &neighbour).await?;
    let mut eater = harness.container("eater", 0, &Program::Eat);
    eater.resources = limited(24 << 20);
    let mut events = sandboxes.events(&id).await?;
    sandboxes.start(&id, &eater).await?;
    let exit = exit_of(&mut events, "eater", 0).await?;
    check(exit.oom_killed && exit.code == 137, format_args!("the over-eater's end is told as {exit:?}"))?;
    check(sandboxes.stats(&id).await?.containers.contains_key("neighbour"), "its neighbour died with it")?;
    check(run(harness, &id, "after", 0, &Program::Exit(4)).await?.code == 4, "the sandbox is the worse for it")?;
    sandboxes.destroy(&id).await?;
    Ok(())
}
