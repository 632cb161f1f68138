//! A namespace that was there before: what is put on it, and how it gets back what it had. PURE.

use std::collections::BTreeMap;

use kube::ResourceExt as _;

use super::Object;
use crate::kube::labels;

/// On such a namespace: the labels of ours that it had with another value, as JSON. Those that it did not have are not in it.
const BEFORE: &str = "subsea.dev/labels-before";

/// Makes of a namespace of ours what is put on one that was there before: without the labels by which a removal would end it, and
/// with a note of what it had.
pub(super) fn borrow(wanted: &mut Object, before: &Object) {
    let all = wanted.metadata.labels.get_or_insert_default();
    for (key, _) in labels::ours() {
        all.remove(key);
    }
    let note = before.annotations().get(BEFORE).cloned();
    let note = note.unwrap_or_else(|| {
        let had = before.labels().iter();
        let had: BTreeMap<_, _> = had.filter(|(key, _)| all.contains_key(*key)).collect();
        serde_json::json!(had).to_string()
    });
    wanted.annotations_mut().insert(BEFORE.to_owned(), note);
}

/// The labels that a namespace had before, with their values; none: nothing was put on it.
pub(super) fn before(there: &Object) -> Option<BTreeMap<String, String>> {
    let note = there.annotations().get(BEFORE)?;
    // Somebody has changed the note: then at least ours go.
    Some(serde_json::from_str(note).unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn namespace(labels: &Value, annotations: &Value) -> Object {
        let metadata = json!({"name": "x", "labels": labels, "annotations": annotations});
        let object = json!({"apiVersion": "v1", "kind": "Namespace", "metadata": metadata});
        serde_json::from_value(object).unwrap()
    }

    #[test]
    fn what_it_had_is_noted_once() {
        let ours = json!({
            "app.kubernetes.io/managed-by": "subsea", "app.kubernetes.io/part-of": "subsea", "enforce": "privileged", "warn": "privileged",
        });
        let there = namespace(&json!({"enforce": "baseline", "team": "sea"}), &json!({}));
        assert_eq!(before(&there), None);
        let mut wanted = namespace(&ours, &json!({}));
        borrow(&mut wanted, &there);
        let had: BTreeMap<_, _> = [("enforce".to_owned(), "baseline".to_owned())].into();
        assert_eq!(before(&wanted), Some(had.clone()));
        let labels: Vec<&str> = wanted.labels().keys().map(String::as_str).collect();
        assert_eq!(labels, ["enforce", "warn"]);
        // A second time, ours are not taken for what it had.
        let mut again = namespace(&ours, &json!({}));
        borrow(&mut again, &wanted);
        assert_eq!(before(&again), Some(had));
        let broken = namespace(&ours, &json!({"subsea.dev/labels-before": "?"}));
        assert_eq!(before(&broken), Some(BTreeMap::new()));
    }
}
