//! What a pod asks for beyond what holds pods apart: within what its operator trusts pods with, or refused with the flag that would allow it.

use k8s_openapi::api::core::v1::{AppArmorProfile, Container, Pod, PodSpec, SeccompProfile};
use sandbox::spec::Namespaces;

use super::Found;
use crate::pod::spec::{apparmor, security, sysctls};
use crate::trust::{Allow, Trust};

/// What the checks share.
struct Checks<'a> {
    trust: &'a Trust,
    namespaces: &'a Namespaces,
    found: &'a mut Found,
}

impl Checks<'_> {
    fn refuse(&mut self, path: &str, why: &str) {
        self.found.refused.push(format!("{path} ({why})"));
    }

    fn needs(&mut self, allow: Allow, path: &str, value: &str) {
        if !self.trust.allows(allow) {
            let value = if value.is_empty() { String::new() } else { format!("{value}; ") };
            self.found.refused.push(format!("{path} ({value}host policy: --allow {})", allow.name()));
        }
    }

    fn seccomp(&mut self, path: &str, profile: Option<&SeccompProfile>) {
        let Some(profile) = profile else { return };
        let (path, local) = (format!("{path}.seccompProfile"), profile.localhost_profile.as_deref());
        match profile.type_.as_str() {
            "RuntimeDefault" if local.is_none() => {}
            "Unconfined" if local.is_none() => {
                self.needs(Allow::SeccompUnconfined, &format!("{path}.type"), "Unconfined")
            }
            "Localhost" => match local {
                Some(name) if is_below(name) => {}
                Some(name) => self.refuse(
                    &format!("{path}.localhostProfile"),
                    &format!("{name}: not a path below the profiles' directory"),
                ),
                None => self.refuse(&path, "localhostProfile must be set if seccompProfile type is Localhost"),
            },
            "RuntimeDefault" | "Unconfined" => {
                self.refuse(&format!("{path}.localhostProfile"), "only with type Localhost");
            }
            other => self.refuse(&format!("{path}.type"), other),
        }
    }

    fn apparmor(&mut self, path: &str, profile: Option<&AppArmorProfile>) {
        let Some(profile) = profile else { return };
        let path = format!("{path}.appArmorProfile");
        match (profile.type_.as_str(), profile.localhost_profile.as_deref()) {
            ("RuntimeDefault" | "Localhost", _) => {}
            // Where nothing is enforced, nothing is given up.
            ("Unconfined", _) if !self.trust.apparmor => {}
            ("Unconfined", _) => self.needs(Allow::ApparmorUnconfined, &format!("{path}.type"), "Unconfined"),
            (other, _) => self.refuse(&format!("{path}.type"), other),
        }
    }

    fn container(&mut self, path: &str, container: &Container) {
        for port in container.ports.iter().flatten() {
            if port.host_port.is_some_and(|number| number != 0) && !self.namespaces.host_network {
                let name = port.name.clone().unwrap_or_else(|| port.container_port.to_string());
                self.found.refused.push(format!("{path}.ports[{name}].hostPort"));
            }
        }
        let Some(context) = &container.security_context else { return };
        let path = format!("{path}.securityContext");
        self.seccomp(&path, context.seccomp_profile.as_ref());
        self.apparmor(&path, context.app_armor_profile.as_ref());
        if context.se_linux_options.is_some() {
            self.found.unenforced.push(format!("{path}.seLinuxOptions"));
        }
        let privileged = context.privileged == Some(true);
        if privileged {
            self.needs(Allow::Privileged, &format!("{path}.privileged"), "");
        }
        let escalates = context.allow_privilege_escalation;
        let added = || context.capabilities.iter().flat_map(|c| c.add.iter().flatten());
        let admin = added().any(|name| ["SYS_ADMIN", "CAP_SYS_ADMIN"].contains(&name.as_str()));
        // As the API server words it, which a manifest did not pass.
        if escalates == Some(false) && (privileged || admin) {
            let with = if privileged { "`privileged` to true" } else { "`capabilities.Add` CAP_SYS_ADMIN" };
            self.refuse(
                &format!("{path}.allowPrivilegeEscalation"),
                &format!("cannot set `allowPrivilegeEscalation` to false and {with}"),
            );
        }
        match context.proc_mount.as_deref().unwrap_or_default() {
            "" | "Default" => {}
            "Unmasked" if self.namespaces.user || privileged => {}
            "Unmasked" => self.refuse(&format!("{path}.procMount"), "Unmasked; only in a user namespace"),
            other => self.refuse(&format!("{path}.procMount"), other),
        }
        for name in added() {
            let path = format!("{path}.capabilities.add");
            if !security::is_capability(name) {
                self.refuse(&path, &format!("{name}; there is no such capability"));
            } else if !privileged && !security::may_add(name, self.namespaces) {
                self.needs(Allow::Capabilities, &path, name);
                if security::gives_the_host_away(name, self.namespaces) {
                    self.needs(Allow::Privileged, &path, name);
                }
            }
        }
        for name in context.capabilities.iter().flat_map(|c| c.drop.iter().flatten()) {
            if !security::is_capability(name) {
                self.refuse(&format!("{path}.capabilities.drop"), &format!("{name}; there is no such capability"));
            }
        }
    }
}

pub(super) fn check(pod: &Pod, spec: &PodSpec, trust: &Trust, found: &mut Found) {
    let namespaces = security::namespaces(spec);
    let mut checks = Checks { trust, namespaces: &namespaces, found };
    let hosts = [
        (spec.host_network, "spec.hostNetwork", Allow::HostNetwork),
        (spec.host_pid, "spec.hostPID", Allow::HostPid),
        (spec.host_ipc, "spec.hostIPC", Allow::HostIpc),
    ];
    for (_, path, allow) in hosts.into_iter().filter(|(asked, _, _)| *asked == Some(true)) {
        checks.needs(allow, path, "");
        if spec.host_users == Some(false) {
            checks.refuse(path, "not with hostUsers: false");
        }
    }
    if spec.host_users == Some(true) && !hosts.iter().any(|(asked, _, _)| *asked == Some(true)) {
        checks.needs(Allow::HostUsers, "spec.hostUsers", "true");
    }
    if spec.share_process_namespace == Some(true) && spec.host_pid == Some(true) {
        checks.refuse("spec.shareProcessNamespace", "not with hostPID");
    }
    if let Err(message) = namespaces.check() {
        checks.refuse("spec.securityContext", &message);
    }
    if let Some(context) = &spec.security_context {
        checks.seccomp("spec.securityContext", context.seccomp_profile.as_ref());
        checks.apparmor("spec.securityContext", context.app_armor_profile.as_ref());
        if context.se_linux_options.is_some() {
            checks.found.unenforced.push("spec.securityContext.seLinuxOptions".to_owned());
        }
    }
    for (list, containers) in
        [("initContainers", spec.init_containers.as_deref().unwrap_or_default()), ("containers", &spec.containers)]
    {
        for own in containers {
            checks.container(&format!("spec.{list}[{}]", own.name), own);
        }
    }
    let forbidden = sysctls::forbidden(spec, trust).map(|message| ("SysctlForbidden", message));
    let unenforceable = apparmor::refusal(pod, trust).map(|message| ("AppArmor", message));
    found.verdict = forbidden.or(unenforceable);
}

/// A relative path that leads nowhere else.
fn is_below(name: &str) -> bool {
    let mut parts = std::path::Path::new(name).components();
    !name.is_empty() && parts.all(|part| matches!(part, std::path::Component::Normal(_)))
}
