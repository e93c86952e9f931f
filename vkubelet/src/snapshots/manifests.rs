//! What a cluster needs before a virtual node can serve it: the custom resource and the rights to it.

use kube::CustomResourceExt;
use serde_json::{Value, json};

use super::resource::ImageSnapshot;
use super::secrets::NAMESPACE;

/// As YAML documents for `kubectl apply`, for the virtual node of this name.
pub fn manifests(node_name: &str) -> Result<String, serde_yaml_ng::Error> {
    let mut text = String::new();
    for document in documents(node_name) {
        text.push_str("---\n");
        text.push_str(&serde_yaml_ng::to_string(&document)?);
    }
    Ok(text)
}

fn documents(node_name: &str) -> Vec<Value> {
    let name = format!("nodeless:{node_name}");
    let subjects =
        json!([{"kind": "User", "name": format!("system:node:{node_name}"), "apiGroup": "rbac.authorization.k8s.io"}]);
    let reference =
        |kind: &str, name: &str| json!({"apiGroup": "rbac.authorization.k8s.io", "kind": kind, "name": name});
    let rbac = "rbac.authorization.k8s.io/v1";
    vec![
        json!(ImageSnapshot::crd()),
        json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": NAMESPACE}}),
        json!({
            "apiVersion": rbac, "kind": "ClusterRole", "metadata": {"name": "nodeless:node"},
            "rules": [
                {"apiGroups": ["nodeless.dev"], "resources": ["imagesnapshots"], "verbs": ["get", "list", "watch"]},
                {"apiGroups": ["nodeless.dev"], "resources": ["imagesnapshots/status"], "verbs": ["update", "patch"]},
                {"apiGroups": [""], "resources": ["events"], "verbs": ["create", "patch"]},
            ],
        }),
        json!({
            "apiVersion": rbac, "kind": "ClusterRoleBinding", "metadata": {"name": name},
            "subjects": subjects, "roleRef": reference("ClusterRole", "nodeless:node"),
        }),
        json!({
            "apiVersion": rbac, "kind": "Role", "metadata": {"name": "nodeless:pull-secrets", "namespace": NAMESPACE},
            "rules": [{"apiGroups": [""], "resources": ["secrets"], "verbs": ["get"]}],
        }),
        json!({
            "apiVersion": rbac, "kind": "RoleBinding", "metadata": {"name": name, "namespace": NAMESPACE},
            "subjects": subjects, "roleRef": reference("Role", "nodeless:pull-secrets"),
        }),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_definition_is_what_a_cluster_is_given() {
        insta::assert_snapshot!(manifests("nodeless").unwrap());
    }

    #[test]
    fn secrets_are_shown_of_one_namespace_only_and_to_this_node_only() {
        let all = documents("n");
        let with_secrets = |rule: &&Value| rule["resources"].as_array().unwrap().contains(&json!("secrets"));
        let rules = |document: &Value| document["rules"].as_array().cloned().unwrap_or_default();
        let giving: Vec<&Value> = all.iter().filter(|d| rules(d).iter().any(|rule| with_secrets(&rule))).collect();
        assert_eq!(giving.len(), 1);
        assert_eq!((&giving[0]["kind"], &giving[0]["metadata"]["namespace"]), (&json!("Role"), &json!(NAMESPACE)));
        for binding in all.iter().filter(|d| d["kind"].as_str().is_some_and(|kind| kind.ends_with("Binding"))) {
            assert_eq!(binding["subjects"].as_array().unwrap().len(), 1);
            assert_eq!(binding["subjects"][0]["name"], "system:node:n");
        }
    }
}
