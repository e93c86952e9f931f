//! Which attempt of a container a reader means. Pure; a kubelet's rules and words (`validateContainerLogStatus`).

use k8s_openapi::api::core::v1::{ContainerState, ContainerStatus, PodStatus};

/// The attempt whose log is shown, by the status that is told, or why there is none.
pub fn choose(status: &PodStatus, pod: &str, container: &str, previous: bool) -> Result<u32, String> {
    let lists = [&status.container_statuses, &status.init_container_statuses, &status.ephemeral_container_statuses];
    let found = lists.into_iter().flatten().flatten().find(|c| c.name == container);
    let Some(found) = found else { return Err(format!("container \"{container}\" in pod \"{pod}\" is not available")) };
    let last = found.last_state.as_ref().and_then(ended);
    if previous {
        return last.ok_or_else(|| format!("previous terminated container \"{container}\" in pod \"{pod}\" not found"));
    }
    let state = found.state.as_ref();
    if state.is_some_and(|s| s.running.is_some())
        && let Some(attempt) = number(found.container_id.as_deref())
    {
        return Ok(attempt);
    }
    if let Some(attempt) = state.and_then(ended).or(last) {
        return Ok(attempt);
    }
    let why = match waiting(found) {
        Some("ErrImagePull") => "image can't be pulled",
        Some("ImagePullBackOff") => "trying and failing to pull image",
        Some(reason) => reason,
        None => return Err(format!("container \"{container}\" in pod \"{pod}\" is waiting to start - no logs yet")),
    };
    Err(format!("container \"{container}\" in pod \"{pod}\" is waiting to start: {why}"))
}

fn ended(state: &ContainerState) -> Option<u32> {
    number(state.terminated.as_ref()?.container_id.as_deref())
}

fn waiting(status: &ContainerStatus) -> Option<&str> {
    status.state.as_ref()?.waiting.as_ref()?.reason.as_deref()
}

/// The attempt in `nodeless://SANDBOX/NAME/ATTEMPT`.
fn number(id: Option<&str>) -> Option<u32> {
    id?.rsplit_once('/')?.1.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    fn chosen(state: &Value, last: &Value, previous: bool) -> Result<u32, String> {
        let status = json!({"containerStatuses": [{
            "name": "c", "containerID": "nodeless://s-0/c/3", "state": state, "lastState": last,
            "image": "", "imageID": "", "ready": false, "restartCount": 0,
        }]});
        choose(&serde_json::from_value(status).unwrap(), "p", "c", previous)
    }

    fn ended_as(attempt: u32) -> Value {
        json!({"terminated": {"exitCode": 1, "containerID": format!("nodeless://s-0/c/{attempt}")}})
    }

    #[test]
    fn the_kubelets_rules_hold() {
        let nothing = json!({});
        let running = json!({"running": {}});
        let waiting = |reason: &str| json!({"waiting": {"reason": reason}});
        assert_eq!(chosen(&running, &ended_as(2), false), Ok(3));
        assert_eq!(chosen(&running, &ended_as(2), true), Ok(2));
        assert_eq!(chosen(&ended_as(3), &ended_as(2), false), Ok(3));
        // While a container waits for its restart, its last attempt is both the present and the previous one.
        assert_eq!(chosen(&waiting("CrashLoopBackOff"), &ended_as(3), false), Ok(3));
        assert_eq!(chosen(&waiting("CrashLoopBackOff"), &ended_as(3), true), Ok(3));
        let words = |state: &Value, previous| chosen(state, &nothing, previous).unwrap_err();
        assert_eq!(words(&running, true), "previous terminated container \"c\" in pod \"p\" not found");
        for (reason, why) in [
            ("ErrImagePull", "image can't be pulled"),
            ("ImagePullBackOff", "trying and failing to pull image"),
            ("ContainerCreating", "ContainerCreating"),
        ] {
            assert_eq!(
                words(&waiting(reason), false),
                format!("container \"c\" in pod \"p\" is waiting to start: {why}")
            );
        }
    }

    #[test]
    fn a_container_without_a_status_is_not_available() {
        let error = choose(&PodStatus::default(), "p", "x", false).unwrap_err();
        assert_eq!(error, "container \"x\" in pod \"p\" is not available");
    }
}
