//! Changes to objects that were read from a file. PURE.
//!
//! A change that finds nothing to change is an error: it would leave out silently what somebody chose.

use serde_json::{Value, json};

use super::yaml::{ManifestError, name};
use super::{Image, Object};

/// The objects of some files of `manifests/`.
pub(super) struct Draft {
    /// The folder, for errors.
    pub(super) file: &'static str,
    /// What it will be.
    pub(super) objects: Vec<Object>,
}

impl Draft {
    /// Moves everything that is in the namespace `from`, and what refers to it, into `to`.
    pub(super) fn namespace(&mut self, from: &str, to: &str) -> Result<(), ManifestError> {
        if self.rename(from, to) {
            Ok(())
        } else {
            Err(self.lacks(&format!("Namespace {from}")))
        }
    }

    /// The same; whether the namespace itself is among the objects.
    pub(super) fn rename(&mut self, from: &str, to: &str) -> bool {
        let mut found = false;
        for object in &mut self.objects {
            let kind = object.types.as_ref().map_or("", |t| t.kind.as_str());
            let of_its_own = kind == "Namespace" && object.metadata.name.as_deref() == Some(from);
            if of_its_own {
                object.metadata.name = Some(to.to_owned());
                found = true;
            }
            if object.metadata.namespace.as_deref() == Some(from) {
                object.metadata.namespace = Some(to.to_owned());
            }
            let subjects = object
                .data
                .get_mut("subjects")
                .and_then(Value::as_array_mut);
            for subject in subjects.into_iter().flatten() {
                if subject.get("namespace") == Some(&json!(from)) {
                    subject["namespace"] = json!(to);
                }
            }
        }
        found
    }

    /// The object of that kind and name.
    pub(super) fn object(
        &mut self,
        kind: &str,
        called: &str,
    ) -> Result<&mut Object, ManifestError> {
        let file = self.file;
        self.objects
            .iter_mut()
            .find(|o| {
                o.types.as_ref().is_some_and(|t| t.kind == kind)
                    && o.metadata.name.as_deref() == Some(called)
            })
            .ok_or_else(|| ManifestError::Lacks {
                file,
                what: format!("{kind} {called}"),
            })
    }

    /// What is at `pointer` in that object.
    pub(super) fn at(
        &mut self,
        kind: &str,
        called: &str,
        pointer: &str,
    ) -> Result<&mut Value, ManifestError> {
        let file = self.file;
        let object = self.object(kind, called)?;
        let what = format!("`{pointer}` in {}", name(object));
        object
            .data
            .pointer_mut(pointer)
            .ok_or(ManifestError::Lacks { file, what })
    }

    /// Replaces what is at `pointer` in that object.
    pub(super) fn set(
        &mut self,
        kind: &str,
        called: &str,
        pointer: &str,
        value: Value,
    ) -> Result<(), ManifestError> {
        *self.at(kind, called, pointer)? = value;
        Ok(())
    }

    /// Has the pods of that object run `image` in their first container.
    pub(super) fn image(
        &mut self,
        kind: &str,
        called: &str,
        image: &Image,
    ) -> Result<(), ManifestError> {
        let container = self.at(kind, called, "/spec/template/spec/containers/0")?;
        container["image"] = json!(image.name);
        if let Some(policy) = &image.pull_policy {
            container["imagePullPolicy"] = json!(policy);
        }
        if !image.pull_secrets.is_empty() {
            let secrets = image.pull_secrets.iter().map(|name| json!({"name": name}));
            self.at(kind, called, "/spec/template/spec")?["imagePullSecrets"] = secrets.collect();
        }
        Ok(())
    }

    pub(super) fn lacks(&self, what: &str) -> ManifestError {
        ManifestError::Lacks {
            file: self.file,
            what: what.to_owned(),
        }
    }
}
