//! Objects as YAML documents. PURE.

use kube::ResourceExt as _;

use super::Object;

/// The objects cannot be made.
#[derive(Debug, thiserror::Error)]
pub enum ManifestError {
    /// A file is no list of objects.
    #[error("`manifests/{file}` cannot be read: {why}")]
    Read {
        /// Which.
        file: &'static str,
        /// Why.
        why: String,
    },
    /// A file does not have what is to be put in.
    #[error("`manifests/{file}` has no {what}")]
    Lacks {
        /// Which.
        file: &'static str,
        /// What.
        what: String,
    },
    /// An object cannot be written.
    #[error("{object} cannot be written as YAML: {why}")]
    Write {
        /// Kind and name.
        object: String,
        /// Why.
        why: String,
    },
}

/// Reads the documents of a file of `manifests/`.
///
/// # Errors
/// [`ManifestError::Read`] when one of them is no object.
pub fn parse(file: &'static str, text: &str) -> Result<Vec<Object>, ManifestError> {
    let failed = |why: String| ManifestError::Read { file, why };
    let objects: Vec<Object> =
        serde_saphyr::from_multiple(text).map_err(|e| failed(e.to_string()))?;
    match objects.iter().find(|o| o.types.is_none()) {
        Some(object) => Err(failed(format!(
            "`{}` has no apiVersion and kind",
            object.name_any()
        ))),
        None => Ok(objects),
    }
}

/// A typed object as one of these.
///
/// # Errors
/// [`ManifestError::Write`] when it cannot be written.
pub fn object(typed: &impl serde::Serialize) -> Result<Object, ManifestError> {
    let object = serde_json::to_value(typed).and_then(serde_json::from_value);
    object.map_err(|error| ManifestError::Write {
        object: "the object".to_owned(),
        why: error.to_string(),
    })
}

/// Writes objects as documents, in their order. Nothing that is not there is written as `null`.
///
/// # Errors
/// [`ManifestError::Write`] when one of them cannot be.
pub fn print(objects: &[Object]) -> Result<String, ManifestError> {
    let mut text = String::new();
    for object in objects {
        let failed = |why: String| ManifestError::Write {
            object: name(object),
            why,
        };
        // By way of JSON, whose maps are in order.
        let mut value = serde_json::to_value(object).map_err(|e| failed(e.to_string()))?;
        drop_nulls(&mut value);
        if !text.is_empty() {
            text.push_str("---\n");
        }
        text.push_str(&serde_saphyr::to_string(&value).map_err(|e| failed(e.to_string()))?);
    }
    Ok(text)
}

/// `DaemonSet subsea/subsea-agent`, or without the namespace where there is none.
pub(in crate::kube) fn name(object: &Object) -> String {
    let kind = object.types.as_ref().map_or("object", |t| t.kind.as_str());
    match object.namespace() {
        Some(namespace) => format!("{kind} {namespace}/{}", object.name_any()),
        None => format!("{kind} {}", object.name_any()),
    }
}

fn drop_nulls(value: &mut serde_json::Value) {
    use serde_json::Value;
    match value {
        Value::Object(fields) => {
            fields.retain(|_, v| !v.is_null());
            fields.values_mut().for_each(drop_nulls);
        }
        Value::Array(items) => items.iter_mut().for_each(drop_nulls),
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => {}
    }
}
