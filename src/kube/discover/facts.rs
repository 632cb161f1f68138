//! What was read from an API server, each answer by itself. PURE.

use std::collections::BTreeMap;

use serde::de::DeserializeOwned;
use serde_json::Value;

use super::query::Query;

/// Longer texts inside an object are not looked into. An object is at most 1.5 MiB, a ConfigMap 1 MiB.
const MAX_TEXT: usize = 1 << 20;

/// What came of one [`Query`].
#[derive(Debug, Clone, PartialEq)]
pub enum Reading {
    /// The objects that there are.
    Objects(Vec<Value>),
    /// Neither the object nor, perhaps, its kind exists.
    Absent,
    /// It may exist, but could not be read; why.
    Failed(String),
}

/// Everything that was read.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Facts {
    readings: BTreeMap<Query, Reading>,
}

impl Facts {
    /// Adds what came of a query.
    pub fn insert(&mut self, query: Query, reading: Reading) {
        self.readings.insert(query, reading);
    }

    /// Adds what came of one of several places that answer a query. What failed in one of them has failed.
    pub fn add(&mut self, query: Query, reading: Reading) {
        let merged = match (self.readings.remove(&query), reading) {
            (Some(Reading::Failed(why)), _) => Reading::Failed(why),
            (Some(Reading::Objects(mut objects)), Reading::Objects(more)) => {
                objects.extend(more);
                Reading::Objects(objects)
            }
            (Some(objects @ Reading::Objects(_)), Reading::Absent) => objects,
            (Some(Reading::Objects(_) | Reading::Absent) | None, new) => new,
        };
        self.readings.insert(query, merged);
    }

    /// The objects of a query; none when it failed.
    pub fn objects(&self, query: Query) -> &[Value] {
        match self.readings.get(&query) {
            Some(Reading::Objects(objects)) => objects,
            Some(Reading::Absent | Reading::Failed(_)) | None => &[],
        }
    }

    /// The first of them.
    pub fn object(&self, query: Query) -> Option<&Value> {
        self.objects(query).first()
    }

    /// An entry of a ConfigMap.
    pub fn entry(&self, query: Query, key: &str) -> Option<&str> {
        let text = self.object(query)?.get("data")?.get(key)?.as_str()?;
        (text.len() <= MAX_TEXT).then_some(text)
    }

    /// Why a query has no answer, if it failed.
    pub fn failure(&self, query: Query) -> Option<&str> {
        match self.readings.get(&query) {
            Some(Reading::Failed(why)) => Some(why),
            Some(Reading::Absent | Reading::Objects(_)) | None => None,
        }
    }

    /// Everything that could not be read.
    pub fn failures(&self) -> impl Iterator<Item = (Query, &str)> {
        self.readings
            .keys()
            .filter_map(|q| self.failure(*q).map(|why| (*q, why)))
    }

    /// Whether a DaemonSet of one of these names exists; unknown when they could not be read.
    pub fn runs(&self, names: &[&str]) -> Option<bool> {
        if self.failure(Query::DaemonSets).is_some() {
            return None;
        }
        Some(self.daemon_set(names).is_some())
    }

    /// The first DaemonSet of one of these names.
    pub fn daemon_set(&self, names: &[&str]) -> Option<&Value> {
        let named = |o: &&Value| text(o, "/metadata/name").is_some_and(|n| names.contains(&n));
        self.objects(Query::DaemonSets).iter().find(named)
    }

    /// A variable of a container of that DaemonSet.
    pub fn variable(&self, daemon_sets: &[&str], name: &str) -> Option<&str> {
        let containers = self
            .daemon_set(daemon_sets)?
            .pointer("/spec/template/spec/containers")?
            .as_array()?;
        containers
            .iter()
            .filter_map(|c| c.get("env")?.as_array())
            .flatten()
            .find(|v| v.get("name").and_then(Value::as_str) == Some(name))
            .and_then(|v| v.get("value")?.as_str())
    }
}

/// The text at a path.
pub(crate) fn text<'a>(object: &'a Value, path: &str) -> Option<&'a str> {
    object.pointer(path)?.as_str()
}

/// The texts of the list at a path.
pub(crate) fn texts<'a>(object: &'a Value, path: &str) -> Vec<&'a str> {
    let list = object.pointer(path).and_then(Value::as_array);
    list.into_iter()
        .flatten()
        .filter_map(Value::as_str)
        .collect()
}

/// Whether a switch is on, however it is written.
pub(crate) fn is_on(object: &Value, path: &str) -> Option<bool> {
    match object.pointer(path)? {
        Value::Bool(on) => Some(*on),
        Value::String(text) => switch(text),
        Value::Null | Value::Number(_) | Value::Array(_) | Value::Object(_) => None,
    }
}

/// Whether a switch in a ConfigMap is on.
pub(crate) fn switch(text: &str) -> Option<bool> {
    ["true", "enabled", "1"]
        .iter()
        .any(|on| text.eq_ignore_ascii_case(on))
        .then_some(true)
        .or_else(|| {
            ["false", "disabled", "0"]
                .iter()
                .any(|off| text.eq_ignore_ascii_case(off))
                .then_some(false)
        })
}

/// YAML, or JSON, inside a ConfigMap. The parser bounds depth, aliases and nodes.
pub(crate) fn yaml<T: DeserializeOwned>(text: &str) -> Result<T, String> {
    serde_saphyr::from_str(text).map_err(|error| {
        let line = error.to_string();
        line.lines()
            .next()
            .unwrap_or_default()
            .chars()
            .take(160)
            .collect()
    })
}

/// The first line of what was said, cut to a length that fits in a message.
pub(crate) fn short(text: &str) -> String {
    text.lines()
        .next()
        .unwrap_or_default()
        .chars()
        .take(200)
        .collect()
}

#[cfg(test)]
pub(crate) mod fixture {
    //! Facts from YAML as `kubectl get -o yaml` prints it.

    use super::*;

    /// Facts with these answers; everything else is absent.
    pub(crate) fn facts(answers: &[(Query, &str)]) -> Facts {
        let mut facts = Facts::default();
        for query in Query::ALL {
            facts.insert(query, Reading::Absent);
        }
        for (query, text) in answers {
            let objects: Vec<Value> = serde_saphyr::from_multiple(text).expect("a fixture is YAML");
            let objects = objects.iter().map(|o| query.trim(o)).collect();
            facts.insert(*query, Reading::Objects(objects));
        }
        facts
    }

    /// A ConfigMap with one entry.
    pub(crate) fn config_map(key: &str, text: &str) -> String {
        let value = serde_json::json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "x"}, "data": {key: text}});
        value.to_string()
    }
}
