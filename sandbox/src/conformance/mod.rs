//! What every sandbox kind must do, as tests that any of them can be put to.
//!
//! A kind gives a [`Harness`] (itself, and how to make containers that do certain things); [`run_all`] puts it to every
//! [`CASES`] entry and returns what failed. The same suite runs on the fake, on namespace sandboxes, and in guests.

mod containers;
mod harness;
mod lifecycle;
mod streams;
mod together;

use std::future::Future;
use std::pin::Pin;
use std::time::Duration;

pub use harness::{Case, Failed, Harness, Program, configured, exit_of};

/// Longest time that a case may take.
const TIME: Duration = Duration::from_secs(60);

type Running<'a> = Pin<Box<dyn Future<Output = Result<(), Failed>> + Send + 'a>>;

macro_rules! cases {
    ($($module:ident::$case:ident),* $(,)?) => {
        /// Every case: its name and the function.
        pub const CASES: &[Case] = &[$(Case {
            name: stringify!($case),
            run: |harness| -> Running<'_> { Box::pin($module::$case(harness)) },
        }),*];
    };
}

cases![
    lifecycle::preparing_is_repeatable_and_gives_a_network_namespace,
    lifecycle::bad_names_are_refused,
    lifecycle::a_sandbox_is_configured_once_and_for_one_pod,
    lifecycle::a_container_may_be_asked_for_before_the_sandbox_has_answered,
    lifecycle::what_does_not_exist_is_said_not_to,
    lifecycle::listed_sandboxes_carry_their_labels,
    lifecycle::destroying_ends_everything_and_may_be_repeated,
    containers::an_end_is_told_with_code_and_true_times,
    containers::starting_is_repeatable_and_attempts_are_told_apart,
    containers::a_missing_program_is_told_as_such_and_leaves_nothing,
    containers::output_is_logged_byte_for_byte,
    containers::signals_end_what_does_not_ignore_them,
    containers::late_and_early_subscribers_hear_the_same,
    containers::a_further_process_has_an_end_of_its_own,
    containers::use_is_told_for_the_pod_and_each_container,
    containers::limits_can_be_changed_while_it_runs,
    containers::an_over_eater_dies_alone_and_it_is_said_why,
    streams::attachers_hear_from_now_on_and_the_log_hears_all,
    streams::input_for_one_ends_with_that_one,
    streams::input_that_is_not_read_waits_and_none_is_lost,
    streams::what_cannot_be_attached_to_is_said_not_to,
    streams::a_slow_attacher_is_cut_off_and_nobody_waits,
    streams::a_terminal_is_shared_and_resized,
    streams::a_further_process_has_a_terminal_of_its_own,
    together::a_paused_container_stands_still_until_it_is_resumed,
    together::a_paused_container_can_be_killed_and_destroyed,
    together::a_container_added_to_another_ends_with_it,
    together::containers_that_share_processes_live_and_die_alone,
    together::waits_may_be_given_up_and_taken_up_again,
    together::a_further_process_ends_with_its_container,
    together::a_lost_shim_takes_all_along_and_is_told,
    together::a_further_process_that_eats_too_much_is_told_so,
];

/// Puts a kind to every case; the names and reasons of those that failed.
pub async fn run_all(harness: &dyn Harness) -> Vec<(&'static str, Failed)> {
    let mut failed = Vec::new();
    for case in CASES {
        let started = std::time::Instant::now();
        let outcome = tokio::time::timeout(TIME, (case.run)(harness)).await;
        tracing::debug!(case = case.name, elapsed = ?started.elapsed(), "conformance case is done");
        let outcome = outcome.unwrap_or_else(|_| Err(Failed(format!("takes longer than {TIME:?}"))));
        if let Err(reason) = outcome {
            failed.push((case.name, reason));
        }
    }
    failed
}
