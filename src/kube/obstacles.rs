//! What stands in the way of a pod, in words. PURE.

use k8s_openapi::api::core::v1::{ContainerStatus, Event, PersistentVolumeClaim, Pod};
use kube::ResourceExt as _;

/// How many events are told.
const EVENTS: usize = 5;

/// What stands in the way of the pods, one line for each thing.
pub fn obstacles(pods: &[Pod], claims: &[PersistentVolumeClaim], events: &[Event]) -> Vec<String> {
    let mut lines = Vec::new();
    if pods.is_empty() {
        lines.push("there is no pod yet".to_owned());
    }
    for pod in pods {
        of_pod(pod, &mut lines);
    }
    for claim in claims {
        let phase = claim.status.as_ref().and_then(|s| s.phase.as_deref());
        if phase != Some("Bound") {
            let class = claim
                .spec
                .as_ref()
                .and_then(|s| s.storage_class_name.as_deref())
                .unwrap_or("none, for the cluster has no default");
            lines.push(format!(
                "volume claim {}: {}, storage class: {class}",
                claim.name_any(),
                phase.unwrap_or("Pending")
            ));
        }
    }
    lines.extend(warnings(events));
    lines
}

fn of_pod(pod: &Pod, lines: &mut Vec<String>) {
    let before = lines.len();
    let name = pod.name_any();
    let status = pod.status.clone().unwrap_or_default();
    let conditions = status.conditions.unwrap_or_default();
    let unmet = conditions
        .iter()
        .filter(|c| c.status == "False" && c.type_ == "PodScheduled");
    for condition in unmet {
        let why = condition
            .message
            .as_deref()
            .or(condition.reason.as_deref())
            .unwrap_or("no node takes it");
        lines.push(format!("pod {name}: not scheduled: {why}"));
    }
    for container in status.container_statuses.unwrap_or_default() {
        if let Some(state) = of_container(&container) {
            lines.push(format!("pod {name}: {state}"));
        }
    }
    let ready = conditions
        .iter()
        .any(|c| c.type_ == "Ready" && c.status == "True");
    if !ready && lines.len() == before {
        let phase = status.phase.unwrap_or_else(|| "Pending".to_owned());
        lines.push(format!("pod {name}: {phase}, not ready"));
    }
}

/// Why a container does not serve; none when it does.
fn of_container(container: &ContainerStatus) -> Option<String> {
    let state = container.state.clone().unwrap_or_default();
    let mut text = if let Some(waiting) = state.waiting {
        let reason = waiting.reason.unwrap_or_else(|| "waiting".to_owned());
        match waiting.message {
            Some(message) => format!("{reason}: {message}"),
            None => reason,
        }
    } else if let Some(ended) = state.terminated {
        format!("ended with exit code {}", ended.exit_code)
    } else if container.ready {
        return None;
    } else {
        "runs, and is not ready".to_owned()
    };
    let last = container.last_state.clone().unwrap_or_default();
    if let Some(ended) = last.terminated {
        text = format!("{text}; last ended with exit code {}", ended.exit_code);
        if let Some(message) = ended.message {
            text = format!("{text}: {}", message.trim());
        }
    }
    Some(text)
}

/// The newest warnings, each said once.
fn warnings(events: &[Event]) -> Vec<String> {
    let mut warnings: Vec<&Event> = events
        .iter()
        .filter(|e| e.type_.as_deref() == Some("Warning"))
        .collect();
    warnings.sort_by_key(|e| {
        let seen = e.last_timestamp.as_ref().map(|t| t.0);
        std::cmp::Reverse(seen.or_else(|| e.event_time.as_ref().map(|t| t.0)))
    });
    let mut lines = Vec::new();
    for event in warnings {
        let object = &event.involved_object;
        let line = format!(
            "event: {} {}: {}: {}",
            object.kind.as_deref().unwrap_or("object").to_lowercase(),
            object.name.as_deref().unwrap_or("?"),
            event.reason.as_deref().unwrap_or("Warning"),
            event.message.as_deref().unwrap_or_default().trim()
        );
        if !lines.contains(&line) {
            lines.push(line);
        }
        if lines.len() == EVENTS {
            break;
        }
    }
    lines
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn read<T: serde::de::DeserializeOwned>(value: serde_json::Value) -> T {
        serde_json::from_value(value).unwrap()
    }

    #[test]
    fn an_image_that_is_not_there_is_told() {
        let pod = read(json!({
            "metadata": {"name": "subsea-broker-0"},
            "status": {"phase": "Pending", "containerStatuses": [{
                "name": "broker", "image": "", "imageID": "", "ready": false, "restartCount": 0,
                "state": {"waiting": {"reason": "ImagePullBackOff", "message": "not found"}}
            }]}
        }));
        assert_eq!(
            obstacles(&[pod], &[], &[]),
            ["pod subsea-broker-0: ImagePullBackOff: not found"]
        );
    }

    #[test]
    fn a_process_that_ends_is_told_with_its_last_words() {
        let pod = read(json!({
            "metadata": {"name": "b"},
            "status": {"containerStatuses": [{
                "name": "broker", "image": "", "imageID": "", "ready": false, "restartCount": 3,
                "state": {"waiting": {"reason": "CrashLoopBackOff"}},
                "lastState": {"terminated": {"exitCode": 1, "message": "no store\n"}}
            }]}
        }));
        assert_eq!(
            obstacles(&[pod], &[], &[]),
            ["pod b: CrashLoopBackOff; last ended with exit code 1: no store"]
        );
    }

    #[test]
    fn a_claim_without_a_class_and_a_pod_without_a_node_are_told() {
        let pod = read(json!({
            "metadata": {"name": "b"},
            "status": {"phase": "Pending", "conditions": [
                {"type": "PodScheduled", "status": "False", "message": "0/2 nodes are available"}
            ]}
        }));
        let claim = read(json!({"metadata": {"name": "data-b"}, "status": {"phase": "Pending"}}));
        let event: Event = read(json!({
            "metadata": {}, "type": "Warning", "reason": "FailedScheduling", "message": "unbound",
            "involvedObject": {"kind": "Pod", "name": "b"}
        }));
        let normal = read(json!({"metadata": {}, "type": "Normal", "involvedObject": {}}));
        assert_eq!(
            obstacles(&[pod], &[claim], &[event.clone(), event, normal]),
            [
                "pod b: not scheduled: 0/2 nodes are available",
                "volume claim data-b: Pending, storage class: none, for the cluster has no default",
                "event: pod b: FailedScheduling: unbound",
            ]
        );
    }

    #[test]
    fn a_pod_that_serves_has_nothing_in_its_way() {
        let pod = read(json!({
            "metadata": {"name": "b"},
            "status": {"phase": "Running", "conditions": [{"type": "Ready", "status": "True"}],
                "containerStatuses": [{
                    "name": "broker", "image": "", "imageID": "", "ready": true, "restartCount": 0,
                    "state": {"running": {}}
                }]}
        }));
        assert!(obstacles(&[pod], &[], &[]).is_empty());
        assert_eq!(obstacles(&[], &[], &[]), ["there is no pod yet"]);
    }
}
