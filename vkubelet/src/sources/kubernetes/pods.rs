//! Creation and deletion of pods for people who use the client instead of kubectl.

use async_trait::async_trait;
use k8s_openapi::api::core::v1::Pod;
use kube::api::{DeleteParams, PostParams, Preconditions};
use kube::{Api, Client, ResourceExt};

use super::port_error;
use crate::desired::{PodRef, SourceKind};
use crate::ports::{PodSource, PortError};

/// Pods through the API server, with this program's own rights.
pub(super) struct KubernetesPods {
    client: Client,
    node_name: String,
}

impl KubernetesPods {
    pub(super) fn new(client: Client, node_name: String) -> Self {
        Self { client, node_name }
    }
}

#[async_trait]
impl PodSource for KubernetesPods {
    fn kind(&self) -> SourceKind {
        SourceKind::Kubernetes
    }

    async fn create(&self, pod: serde_json::Value) -> Result<PodRef, PortError> {
        let mut pod: Pod = serde_json::from_value(pod)
            .map_err(|e| PortError::Invalid { message: format!("not a core/v1 Pod: {e}") })?;
        let namespace = pod.namespace().unwrap_or_else(|| "default".to_owned());
        if let Some(spec) = &mut pod.spec {
            spec.node_name = Some(self.node_name.clone());
        }
        let what = format!("pod {namespace}/{}", pod.name_any());
        let api: Api<Pod> = Api::namespaced(self.client.clone(), &namespace);
        let made = api.create(&PostParams::default(), &pod).await.map_err(|e| port_error(what, e))?;
        Ok(PodRef { uid: made.uid().unwrap_or_default(), name: made.name_any(), namespace })
    }

    async fn delete(&self, pod: &PodRef, grace_seconds: Option<i64>) -> Result<bool, PortError> {
        let api: Api<Pod> = Api::namespaced(self.client.clone(), &pod.namespace);
        let params = DeleteParams {
            grace_period_seconds: grace_seconds.and_then(|s| u32::try_from(s).ok()),
            preconditions: Some(Preconditions { uid: Some(pod.uid.clone()), resource_version: None }),
            ..DeleteParams::default()
        };
        match api.delete(&pod.name, &params).await {
            Ok(_) => Ok(true),
            // 409: a pod of that name with another UID; ours is gone.
            Err(kube::Error::Api(status)) if status.is_not_found() || status.is_conflict() => Ok(false),
            Err(error) => Err(port_error(format!("pod {pod}"), error)),
        }
    }
}
