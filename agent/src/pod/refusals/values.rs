//! Fields that are honoured for some of their values only.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::{Container, PodSpec, ResourceRequirements};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;

use super::Found;
use crate::pod::spec::{scalars, signal};
use crate::pod::volumes::HUGE_PAGES;
use crate::trust::Trust;

pub(super) fn check(spec: &PodSpec, trust: &Trust, found: &mut Found) {
    let one_of = |found: &mut Found, path: &str, value: Option<&str>, allowed: &[&str]| {
        if let Some(value) = value.filter(|v| !v.is_empty() && !allowed.contains(v)) {
            found.refused.push(format!("{path} ({value})"));
        }
    };
    one_of(found, "spec.runtimeClassName", spec.runtime_class_name.as_deref(), &["nodeless"]);
    one_of(found, "spec.restartPolicy", spec.restart_policy.as_deref(), &["Always", "OnFailure", "Never"]);
    let policies = ["ClusterFirst", "ClusterFirstWithHostNet", "Default", "None"];
    one_of(found, "spec.dnsPolicy", spec.dns_policy.as_deref(), &policies);
    one_of(found, "spec.os.name", spec.os.as_ref().map(|os| os.name.as_str()), &["linux"]);
    for volume in spec.volumes.iter().flatten() {
        let Some(empty) = &volume.empty_dir else { continue };
        let path = format!("spec.volumes[{}].emptyDir", volume.name);
        match empty.medium.as_deref() {
            Some(medium) if medium.starts_with(HUGE_PAGES) => {
                if let Err(words) = scalars::medium(spec, medium) {
                    found.refused.push(format!("{path}.medium ({words})"));
                }
            }
            other => one_of(found, &format!("{path}.medium"), other, &["Memory"]),
        }
    }
    resources("spec", spec.resources.as_ref(), trust, found);
    for (list, containers) in
        [("initContainers", spec.init_containers.as_deref().unwrap_or_default()), ("containers", &spec.containers)]
    {
        for own in containers {
            container(&format!("spec.{list}[{}]", own.name), own, trust, found);
        }
    }
}

fn container(path: &str, container: &Container, trust: &Trust, found: &mut Found) {
    resources(path, container.resources.as_ref(), trust, found);
    let mut refuse = |what: &str, value: &str| found.refused.push(format!("{path}.{what} ({value})"));
    let restart = container.restart_policy.as_deref().unwrap_or_default();
    if !["", "Always", "OnFailure", "Never"].contains(&restart) {
        refuse("restartPolicy", restart);
    }
    if let Some(name) = container.lifecycle.as_ref().and_then(|l| l.stop_signal.as_deref())
        && signal::parse(name).is_none()
    {
        refuse("lifecycle.stopSignal", name);
    }
    for mount in container.volume_mounts.iter().flatten() {
        let propagation = mount.mount_propagation.as_deref().unwrap_or_default();
        if !["", "None"].contains(&propagation) {
            refuse(&format!("volumeMounts[{}].mountPropagation", mount.name), propagation);
        }
        let recursive = mount.recursive_read_only.as_deref().unwrap_or_default();
        if !["", "Disabled", "IfPossible"].contains(&recursive) {
            refuse(&format!("volumeMounts[{}].recursiveReadOnly", mount.name), recursive);
        }
    }
}

fn resources(path: &str, resources: Option<&ResourceRequirements>, trust: &Trust, found: &mut Found) {
    let Some(resources) = resources else { return };
    let is_pod = path == "spec";
    for (field, words) in scalars::problems(resources) {
        let field = if field.is_empty() { field } else { format!(".{field}") };
        found.refused.push(format!("{path}.resources{field} ({words})"));
    }
    let mut one = |kind: &str, map: &BTreeMap<String, Quantity>| {
        for name in map.keys() {
            match name.as_str() {
                "cpu" | "memory" | "ephemeral-storage" => {}
                pages if scalars::page_size(pages).is_some() => {}
                // The API server's words; a manifest did not pass it.
                _ if is_pod => found.refused.push(format!(
                    "{path}.resources.{kind}[{name}] (Unsupported value, supported values: \"cpu\", \"hugepages-*\", \"memory\")"
                )),
                device if trust.devices.offer(device).is_some() => {}
                other => found.refused.push(format!("{path}.resources.{kind}[{other}]")),
            }
        }
    };
    one("limits", resources.limits.as_ref().unwrap_or(&BTreeMap::new()));
    one("requests", resources.requests.as_ref().unwrap_or(&BTreeMap::new()));
}
