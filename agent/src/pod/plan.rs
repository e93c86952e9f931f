//! What the pod's author asked for, as far as the state machine needs it.

use k8s_openapi::api::core::v1::{Container, Pod, PodSpec};

use super::ephemeral;
use crate::ports::PullPolicy;

/// When a container is started again.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Restart {
    /// Whatever happened.
    Always,
    /// When it failed.
    OnFailure,
    /// Not at all.
    Never,
}

impl Restart {
    fn parse(text: Option<&str>) -> Option<Self> {
        match text {
            Some("Always") => Some(Self::Always),
            Some("OnFailure") => Some(Self::OnFailure),
            Some("Never") => Some(Self::Never),
            _ => None,
        }
    }

    /// Does an exit with this code lead to a restart?
    pub fn applies(self, exit_code: i32) -> bool {
        match self {
            Self::Always => true,
            Self::OnFailure => exit_code != 0,
            Self::Never => false,
        }
    }
}

/// What part a container plays.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Role {
    /// Runs to its end before the next one.
    Init,
    /// An init container that goes on running (`restartPolicy: Always`).
    Sidecar,
    /// One of `spec.containers`.
    Main,
    /// Added to a running pod, for somebody to look around; run once.
    Ephemeral,
}

/// One container of the pod.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Slot {
    /// Its name.
    pub name: String,
    /// Image reference as written.
    pub image: String,
    /// When to ask the registry.
    pub pull: PullPolicy,
    /// Its part.
    pub role: Role,
    /// When it is started again.
    pub restart: Restart,
}

impl Slot {
    /// As Events name it.
    pub fn field_path(&self) -> String {
        match self.role {
            Role::Main => format!("spec.containers{{{}}}", self.name),
            Role::Init | Role::Sidecar => format!("spec.initContainers{{{}}}", self.name),
            Role::Ephemeral => format!("spec.ephemeralContainers{{{}}}", self.name),
        }
    }
}

/// The pod as the machine sees it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Plan {
    /// `NAME_NAMESPACE(UID)`, as a kubelet's messages name the pod.
    pub display: String,
    /// Init containers and sidecars in order, then the main ones, then ephemeral ones, to which more may be added.
    pub slots: Vec<Slot>,
    /// `terminationGracePeriodSeconds`.
    pub grace_seconds: u64,
    /// `activeDeadlineSeconds`.
    pub active_deadline_seconds: Option<u64>,
}

impl Plan {
    /// Reads a pod. Missing defaults are filled as the API server fills them.
    pub fn of(pod: &Pod) -> Self {
        let meta = &pod.metadata;
        let text = |value: &Option<String>| value.clone().unwrap_or_default();
        let display = format!("{}_{}({})", text(&meta.name), text(&meta.namespace), text(&meta.uid));
        let empty = PodSpec::default();
        let spec = pod.spec.as_ref().unwrap_or(&empty);
        let restart = Restart::parse(spec.restart_policy.as_deref()).unwrap_or(Restart::Always);
        let init = spec.init_containers.iter().flatten().map(|c| init_slot(c, restart));
        let main = spec.containers.iter().map(|c| Slot {
            role: Role::Main,
            restart: Restart::parse(c.restart_policy.as_deref()).unwrap_or(restart),
            ..slot(c)
        });
        let ephemeral = spec.ephemeral_containers.iter().flatten().map(|c| Slot {
            role: Role::Ephemeral,
            restart: Restart::Never,
            ..slot(&ephemeral::as_container(c))
        });
        Self {
            display,
            slots: init.chain(main).chain(ephemeral).collect(),
            grace_seconds: spec.termination_grace_period_seconds.map_or(30, |s| u64::try_from(s).unwrap_or(0)),
            active_deadline_seconds: spec.active_deadline_seconds.and_then(|s| u64::try_from(s).ok()),
        }
    }

    /// Place of a container in [`Plan::slots`].
    pub fn index(&self, name: &str) -> Option<usize> {
        self.slots.iter().position(|slot| slot.name == name)
    }
}

fn init_slot(container: &Container, pod: Restart) -> Slot {
    let own = Restart::parse(container.restart_policy.as_deref());
    let (role, restart) = match own {
        Some(Restart::Always) => (Role::Sidecar, Restart::Always),
        Some(own) => (Role::Init, own),
        // An init container that has succeeded is done, whatever the pod's policy.
        None if pod == Restart::Never => (Role::Init, Restart::Never),
        None => (Role::Init, Restart::OnFailure),
    };
    Slot { role, restart, ..slot(container) }
}

fn slot(container: &Container) -> Slot {
    let image = container.image.clone().unwrap_or_default();
    let pull = pull_policy(container.image_pull_policy.as_deref(), &image);
    Slot { name: container.name.clone(), image, pull, role: Role::Main, restart: Restart::Always }
}

/// The policy as written, or the API server's default.
pub(super) fn pull_policy(written: Option<&str>, image: &str) -> PullPolicy {
    match written {
        Some("Always") => PullPolicy::Always,
        Some("Never") => PullPolicy::Never,
        Some("IfNotPresent") => PullPolicy::IfNotPresent,
        _ if moves(image) => PullPolicy::Always,
        _ => PullPolicy::IfNotPresent,
    }
}

/// The API server's default: `latest`, given or implied, is pulled each time. What is no name is not pulled at all.
fn moves(image: &str) -> bool {
    image.parse::<image_snapshot::Reference>().is_ok_and(|name| name.defaults_to_always())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pod(json: serde_json::Value) -> Plan {
        Plan::of(&serde_json::from_value(json).unwrap())
    }

    #[test]
    fn defaults_are_those_of_the_api_server() {
        let plan = pod(serde_json::json!({
            "metadata": {"name": "p", "namespace": "n", "uid": "u"},
            "spec": {"containers": [
                {"name": "a", "image": "registry:5000/x"},
                {"name": "b", "image": "x:1"},
                {"name": "c", "image": "x:latest"},
                {"name": "d", "image": "x@sha256:00"}]}
        }));
        assert_eq!(plan.display, "p_n(u)");
        assert_eq!(plan.grace_seconds, 30);
        let pulls: Vec<_> = plan.slots.iter().map(|s| s.pull).collect();
        use PullPolicy::*;
        assert_eq!(pulls, [Always, IfNotPresent, Always, IfNotPresent]);
        assert!(plan.slots.iter().all(|s| s.restart == Restart::Always && s.role == Role::Main));
    }

    #[test]
    fn an_image_of_a_host_path_is_not_read_at_each_start_whatever_it_is_packed_in() {
        for image in
            ["oci-layout:/a", "oci-archive:/a.tar", "oci-archive:/a.tar:latest", "docker-archive:/a.tar:x:latest"]
        {
            assert_eq!(pull_policy(None, image), PullPolicy::IfNotPresent, "{image}");
        }
        assert_eq!(pull_policy(None, "oci-archive/a"), PullPolicy::Always, "a repository");
    }

    #[test]
    fn init_containers_come_first_and_a_restarting_one_is_a_sidecar() {
        let plan = pod(serde_json::json!({
            "metadata": {"name": "p", "namespace": "n", "uid": "u"},
            "spec": {"restartPolicy": "Never",
                "initContainers": [{"name": "i", "image": "x:1"}, {"name": "s", "image": "x:1", "restartPolicy": "Always"}],
                "containers": [{"name": "a", "image": "x:1"}]}
        }));
        let roles: Vec<_> = plan.slots.iter().map(|s| (s.role, s.restart)).collect();
        assert_eq!(
            roles,
            [(Role::Init, Restart::Never), (Role::Sidecar, Restart::Always), (Role::Main, Restart::Never)]
        );
        assert_eq!(plan.slots[0].field_path(), "spec.initContainers{i}");
    }

    #[test]
    fn ephemeral_containers_come_last_and_run_once() {
        let plan = pod(serde_json::json!({
            "metadata": {"name": "p", "namespace": "n", "uid": "u"},
            "spec": {"ephemeralContainers": [{"name": "e", "image": "x:1", "targetContainerName": "a"}],
                "containers": [{"name": "a", "image": "x:1"}]}
        }));
        let last = &plan.slots[1];
        assert_eq!((last.role, last.restart, last.pull), (Role::Ephemeral, Restart::Never, PullPolicy::IfNotPresent));
        assert_eq!(last.field_path(), "spec.ephemeralContainers{e}");
    }
}
