//! What people call a target that is listed under another name.

use std::{borrow::Cow, iter};

use super::TargetDescription;

/// What a target is known by beside its name.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Aliases {
    /// Where its namespace is mounted.
    pub(crate) mounts: Vec<MountName>,
    /// Its identifier, if it is a container.
    pub(crate) id: Option<String>,
    /// Whether its namespace is the host's.
    pub(crate) is_host: bool,
}

/// A path at which a namespace is mounted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct MountName {
    pub(crate) path: String,
    /// Whether the host has it there, where only root mounts.
    pub(crate) is_hosts: bool,
}

/// What a word says of a target that has another name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Alias {
    /// It is the host.
    Host,
    /// Its identifier begins so.
    Id,
    /// Its namespace is mounted there.
    Mount {
        /// By the host.
        is_hosts: bool,
    },
}

/// The word for the host's namespace.
pub(crate) const HOST: &str = "host";

/// The least that is taken for the beginning of an identifier: less may be a name that is misspelt.
const MIN_ID_LEN: usize = 4;

/// Kind of a target that is known by its mount.
const BIND_MOUNT: &str = "bindmount";

/// What `wanted` means of `target`, where it means it by another name than its own: the host, a container by its identifier or
/// the beginning of it, and a namespace by its mount, even while processes are in it. Each comes with what the word says: they
/// are not all to be trusted alike.
pub(crate) fn known_as(
    wanted: &TargetDescription,
    target: &TargetDescription,
) -> impl Iterator<Item = (TargetDescription, Alias)> {
    let is_meant = target.prefix == wanted.prefix && target.netns.is_some();
    let is_of_kind = |kind: &str| is_meant && (wanted.kind.is_empty() || wanted.kind == kind);
    let Aliases { mounts, id, is_host } = &target.aliases;
    let mounted = mounts.iter().filter(|mount| is_mount(&mount.path, &wanted.name));
    let mount = mounted.max_by_key(|mount| mount.is_hosts);
    let mount = mount.filter(|_| is_of_kind(BIND_MOUNT)).map(|mount| {
        // It is meant whoever is in it.
        let description = TargetDescription {
            name: mount.path.clone(),
            kind: BIND_MOUNT.to_owned(),
            pid: None,
            starttime: None,
            ..target.clone()
        };
        let is_hosts = mount.is_hosts;
        (description, Alias::Mount { is_hosts })
    });
    let is_host = *is_host && wanted.name == HOST;
    let is_its = id.as_ref().is_some_and(|id| is_beginning(&wanted.name, id));
    let itself = [(is_host, Alias::Host), (is_its, Alias::Id)].map(|(is_known, alias)| {
        let is_known = is_known && is_of_kind(&target.kind);
        is_known.then(|| (target.clone(), alias))
    });
    mount.into_iter().chain(itself.into_iter().flatten())
}

/// What a namespace that is mounted there may be called: by the path, and by its file where `ip netns` and engines have theirs.
pub(crate) fn words_of_mount(mount: &str) -> impl Iterator<Item = Cow<'_, str>> {
    let file = mount
        .rsplit_once('/')
        .filter(|(folder, _)| folder.ends_with("/netns"));
    let file = file.map(|(_, file)| Cow::Borrowed(file));
    iter::once(usual(mount)).chain(file)
}

fn is_mount(mount: &str, name: &str) -> bool {
    let name = usual(name);
    words_of_mount(mount).any(|word| word == name)
}

/// A path in the words of today.
pub(crate) fn usual(path: &str) -> Cow<'_, str> {
    path.strip_prefix("/var/run/")
        .map_or(Cow::Borrowed(path), |rest| format!("/run/{rest}").into())
}

/// Whether a word may stand for the identifiers that begin with it, and how these begin then.
pub(crate) fn as_beginning(word: &str) -> Option<String> {
    let is_hex = word.bytes().all(|byte| byte.is_ascii_hexdigit());
    (word.len() >= MIN_ID_LEN && is_hex).then(|| word.to_ascii_lowercase())
}

fn is_beginning(name: &str, id: &str) -> bool {
    as_beginning(name).is_some_and(|beginning| id.starts_with(&beginning))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn target(name: &str, kind: &str, netns: u64, aliases: Aliases) -> TargetDescription {
        TargetDescription {
            name: name.to_owned(),
            kind: kind.to_owned(),
            netns: Some(netns),
            pid: Some(7),
            starttime: Some(8),
            aliases,
            ..TargetDescription::default()
        }
    }

    fn found(name: &str, kind: &str) -> Vec<(String, Option<u32>)> {
        let of = |mount: &str, id: Option<&str>, is_host| Aliases {
            mounts: vec![MountName {
                path: mount.to_owned(),
                is_hosts: true,
            }],
            id: id.map(str::to_owned),
            is_host,
        };
        let all = [
            target(
                "systemd(1)",
                "proc",
                1,
                of("/run/docker/netns/default", None, true),
            ),
            target(
                "web",
                "docker",
                2,
                of("/run/docker/netns/1a2b", Some("9f2d7c0e41aa"), false),
            ),
            target("ping(7)", "proc", 3, of("/run/netns/demo", None, false)),
        ];
        let wanted = target(name, kind, 0, Aliases::default());
        let matches = all.iter().flat_map(|target| known_as(&wanted, target));
        matches.map(|(target, _)| (target.name, target.pid)).collect()
    }

    #[test]
    fn targets_have_other_names() {
        let one = |name: &str, pid| vec![(name.to_owned(), pid)];
        for (name, kind, expected) in [
            ("host", "", one("systemd(1)", Some(7))),
            ("host", "docker", vec![]),
            ("9f2d7c0e41aa", "", one("web", Some(7))),
            ("9F2D", "docker", one("web", Some(7))),
            ("9f2", "", vec![]),
            ("9f2dx", "", vec![]),
            ("9f2d7c0e41aa", "pod", vec![]),
            ("/run/netns/demo", "", one("/run/netns/demo", None)),
            ("/var/run/netns/demo", "bindmount", one("/run/netns/demo", None)),
            ("demo", "", one("/run/netns/demo", None)),
            ("demo", "docker", vec![]),
            ("1a2b", "", one("/run/docker/netns/1a2b", None)),
            ("emo", "", vec![]),
        ] {
            assert_eq!(found(name, kind), expected, "{name} {kind}");
        }
    }
}
