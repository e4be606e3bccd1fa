//! Objects of the scripted API server: listed by pages, watched from a version on, and forgotten when a test says so.
//!
//! Source: "Kubernetes API Concepts" of its documentation, with "Efficient detection of changes" and "Retrieving large results
//! sets in chunks".

use std::collections::BTreeMap;

use serde_json::{Value, json};

/// All objects, and what has become of them.
#[derive(Default)]
pub(super) struct Objects {
    /// Of the last change.
    version: u64,
    /// Changes up to this one are forgotten.
    forgotten: u64,
    /// By resource, namespace and name.
    all: BTreeMap<(String, String, String), Value>,
    changes: Vec<Change>,
}

/// A change.
struct Change {
    version: u64,
    kind: &'static str,
    resource: String,
    object: Value,
}

/// Which objects a request is about.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Which {
    /// `pods`.
    pub(super) resource: String,
    /// Empty is any.
    pub(super) namespace: String,
    /// What the labels have to be.
    pub(super) labels: Vec<(String, String)>,
}

impl Which {
    fn has(&self, resource: &str, object: &Value) -> bool {
        let metadata = &object["metadata"];
        self.resource == resource
            && (self.namespace.is_empty() || metadata["namespace"] == self.namespace)
            && self
                .labels
                .iter()
                .all(|(name, value)| metadata["labels"][name] == *value)
    }
}

impl Objects {
    /// Puts an object there, or in the place of that of its name.
    pub(super) fn put(&mut self, resource: &str, mut object: Value) {
        self.version += 1;
        object["metadata"]["resourceVersion"] = json!(self.version.to_string());
        let key = key(resource, &object);
        let before = self.all.insert(key, object.clone());
        let kind = if before.is_some() { "MODIFIED" } else { "ADDED" };
        self.note(kind, resource, object);
    }

    /// Takes an object away.
    pub(super) fn remove(&mut self, resource: &str, namespace: &str, name: &str) {
        let key = (resource.to_owned(), namespace.to_owned(), name.to_owned());
        if let Some(mut object) = self.all.remove(&key) {
            self.version += 1;
            object["metadata"]["resourceVersion"] = json!(self.version.to_string());
            self.note("DELETED", resource, object);
        }
    }

    fn note(&mut self, kind: &'static str, resource: &str, object: Value) {
        self.changes.push(Change {
            version: self.version,
            kind,
            resource: resource.to_owned(),
            object,
        });
    }

    /// Forgets what was, so that watches from there are gone.
    pub(super) fn forget(&mut self) {
        self.version += 1;
        self.forgotten = self.version;
        self.changes.clear();
    }

    pub(super) fn get(&self, resource: &str, namespace: &str, name: &str) -> Option<&Value> {
        let key = (resource.to_owned(), namespace.to_owned(), name.to_owned());
        self.all.get(&key)
    }

    /// A page of the list, up to `limit`, behind what `from` says.
    pub(super) fn list(&self, which: &Which, limit: usize, from: Option<&str>) -> Value {
        let (version, skip) = match from.and_then(|from| from.split_once('-')) {
            Some((version, skip)) => (version.to_owned(), skip.parse().unwrap_or(0)),
            None => (self.version.to_string(), 0),
        };
        let matching = self
            .all
            .iter()
            .filter(|((resource, ..), object)| which.has(resource, object));
        let matching: Vec<&Value> = matching.map(|(_, object)| object).skip(skip).collect();
        let mut metadata = json!({ "resourceVersion": version });
        if let Some(rest) = matching.len().checked_sub(limit).filter(|rest| *rest > 0) {
            metadata["continue"] = json!(format!("{version}-{}", skip + limit));
            metadata["remainingItemCount"] = json!(rest);
        }
        let items = &matching[..matching.len().min(limit)];
        json!({ "metadata": metadata, "items": items })
    }

    /// What is to be told to whoever has seen all up to a version, and up to which that is then; `None` where that is forgotten.
    pub(super) fn since(&self, which: &Which, version: u64) -> Option<(Vec<Value>, u64)> {
        if version < self.forgotten {
            return None;
        }
        let new = self.changes.iter().filter(|change| change.version > version);
        let told = new.filter(|change| which.has(&change.resource, &change.object));
        let told = told.map(|change| json!({ "type": change.kind, "object": change.object }));
        Some((told.collect(), self.version))
    }

    pub(super) fn version(&self) -> u64 {
        self.version
    }
}

fn key(resource: &str, object: &Value) -> (String, String, String) {
    let of = |name: &str| object["metadata"][name].as_str().unwrap_or_default().to_owned();
    (resource.to_owned(), of("namespace"), of("name"))
}
