//! What people call a target that is listed under another name.

use super::TargetDescription;

/// What a target is known by beside its name.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Aliases {
    /// Where its namespace is mounted.
    pub(crate) mounts: Vec<String>,
    /// Its identifier, if it is a container.
    pub(crate) id: Option<String>,
    /// Whether its namespace is the host's.
    pub(crate) is_host: bool,
}

/// The least that is taken for the beginning of an identifier: less may be a name that is misspelt.
const MIN_ID_LEN: usize = 4;

/// Kind of a target that is known by its mount.
const BIND_MOUNT: &str = "bindmount";

/// What `wanted` means of `target`, if it means it by another name than its own: the host, a container by its identifier or
/// the beginning of it, and a namespace by its mount, even while processes are in it.
pub(crate) fn known_as(wanted: &TargetDescription, target: &TargetDescription) -> Option<TargetDescription> {
    if target.prefix != wanted.prefix || target.netns.is_none() {
        return None;
    }
    let is_of_kind = |kind: &str| wanted.kind.is_empty() || wanted.kind == kind;
    let Aliases { mounts, id, is_host } = &target.aliases;
    let mount = mounts.iter().find(|mount| is_mount(mount, &wanted.name));
    if let Some(mount) = mount.filter(|_| is_of_kind(BIND_MOUNT)) {
        // It is meant whoever is in it.
        return Some(TargetDescription {
            name: mount.clone(),
            kind: BIND_MOUNT.to_owned(),
            pid: None,
            starttime: None,
            ..target.clone()
        });
    }
    let is_host = *is_host && wanted.name == "host";
    let is_its = id.as_ref().is_some_and(|id| is_beginning(&wanted.name, id));
    ((is_host || is_its) && is_of_kind(&target.kind)).then(|| target.clone())
}

/// Whether a namespace that is mounted there may be called so: by the path, or by its file where `ip netns` and engines
/// have theirs.
fn is_mount(mount: &str, name: &str) -> bool {
    let path = |path: &str| path.replacen("/var/run/", "/run/", 1);
    match mount.rsplit_once('/') {
        _ if path(mount) == path(name) => true,
        Some((folder, file)) => file == name && folder.ends_with("/netns"),
        None => false,
    }
}

fn is_beginning(name: &str, id: &str) -> bool {
    let is_hex = name.bytes().all(|byte| byte.is_ascii_hexdigit());
    name.len() >= MIN_ID_LEN && is_hex && id.starts_with(&name.to_ascii_lowercase())
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
            mounts: vec![mount.to_owned()],
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
        let matches = all.iter().filter_map(|target| known_as(&wanted, target));
        matches.map(|target| (target.name, target.pid)).collect()
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
