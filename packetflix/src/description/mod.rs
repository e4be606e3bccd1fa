//! A target as GhostWire lists it and clients send it back.

mod aliases;

use serde::Deserialize;

pub(crate) use self::aliases::{
    Alias, Aliases, HOST, MountName, as_beginning, known_as, usual, words_of_mount,
};
use crate::json::{null_as_default, zero_as_none};

/// What is known of a target. Zero, an empty text and an empty list count as absent, since clients written in Go
/// send every member; members that we do not know are ignored.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub(crate) struct TargetDescription {
    /// Name of the container, pod or process, or path of a bind mount.
    #[serde(deserialize_with = "null_as_default")]
    pub(crate) name: String,
    /// Kind of target, such as `docker`, `pod` or `proc`.
    #[serde(rename = "type", deserialize_with = "null_as_default")]
    pub(crate) kind: String,
    /// Names of the containers around its engine, joined by slashes.
    #[serde(deserialize_with = "null_as_default")]
    pub(crate) prefix: String,
    /// Inode number of its network namespace.
    #[serde(deserialize_with = "zero_as_none")]
    pub(crate) netns: Option<u64>,
    /// Its first process.
    #[serde(deserialize_with = "zero_as_none")]
    pub(crate) pid: Option<u32>,
    /// When that began, in clock ticks after boot.
    #[serde(deserialize_with = "zero_as_none")]
    pub(crate) starttime: Option<u64>,
    /// Names of its network interfaces.
    #[serde(rename = "network-interfaces", deserialize_with = "null_as_default")]
    pub(crate) interfaces: Vec<String>,
    /// What else it is known by, as the directory knows it.
    #[serde(skip)]
    pub(crate) aliases: Aliases,
    /// Its images, as the directory knows them.
    #[serde(skip)]
    pub(crate) images: Vec<String>,
    /// Name of its host in a cluster.
    #[serde(rename = "node-name", deserialize_with = "null_as_default")]
    pub(crate) node_name: String,
    /// The cluster that its host belongs to.
    #[serde(deserialize_with = "null_as_default")]
    pub(crate) cluster: Cluster,
}

/// A Kubernetes cluster.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub(crate) struct Cluster {
    /// Its identifier.
    #[serde(deserialize_with = "null_as_default")]
    pub(crate) uid: String,
}

impl TargetDescription {
    /// A network namespace of which nothing else is known.
    pub(crate) fn namespace(inode: u64) -> Self {
        Self {
            netns: Some(inode),
            ..Self::default()
        }
    }

    /// The namespace, where that is all that is known.
    pub(crate) fn netns_alone(&self) -> Option<u64> {
        let is_alone = self.name.is_empty() && self.pid.is_none();
        self.netns.filter(|_| is_alone)
    }

    /// The name as people write it, with its prefix.
    pub(crate) fn full_name(&self) -> String {
        full_name(&self.prefix, &self.name)
    }
}

/// A target's name as people write it, with its prefix.
pub(crate) fn full_name(prefix: &str, name: &str) -> String {
    if prefix.is_empty() {
        name.to_owned()
    } else {
        format!("{prefix}:{name}")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn zero_values_are_absent_and_unknown_members_ignored() {
        let absent = r#"{"name":"","type":"","netns":0,"network-interfaces":null,"prefix":"","starttime":0,"pid":0,
                         "node-name":null,"cluster":null,"capture-service":"x","captureport":5001,"new":{"a":[1]}}"#;
        for text in ["{}", absent] {
            let description: TargetDescription = serde_json::from_str(text).unwrap();
            assert_eq!(description, TargetDescription::default());
        }
    }

    #[test]
    fn reads_what_clients_send() {
        let text = r#"{"name":"web","type":"docker","netns":4026532300,"network-interfaces":["eth0","lo"],"prefix":"kind",
                       "starttime":4711,"pid":42,"node-name":"n1","cluster":{"context":"c","uid":"u-1"}}"#;
        let description: TargetDescription = serde_json::from_str(text).unwrap();
        assert_eq!(
            description,
            TargetDescription {
                name: "web".to_owned(),
                kind: "docker".to_owned(),
                prefix: "kind".to_owned(),
                netns: Some(4_026_532_300),
                pid: Some(42),
                starttime: Some(4711),
                interfaces: vec!["eth0".to_owned(), "lo".to_owned()],
                aliases: Aliases::default(),
                images: Vec::new(),
                node_name: "n1".to_owned(),
                cluster: Cluster {
                    uid: "u-1".to_owned()
                },
            }
        );
        assert_eq!(description.full_name(), "kind:web");
    }

    #[test]
    fn tells_the_place_of_what_it_cannot_read() {
        for (text, words) in [
            ("", "line 1 column 0"),
            ("{\"name\":", "line 1 column 8"),
            ("{\n\"netns\":\"4\"}", "line 2 column 11"),
            ("{\"netns\":-1}", "line 1 column 11"),
            ("{\"pid\":4294967296}", "line 1 column 17"),
            (
                "{\"network-interfaces\":\"eth0\"}",
                "expected a sequence at line 1 column 28",
            ),
            ("{} x", "trailing characters at line 1 column 4"),
        ] {
            let error = serde_json::from_str::<TargetDescription>(text).unwrap_err();
            assert!(error.to_string().contains(words), "{text}: {error}");
        }
    }
}
