//! What can be seen without trying anything.

use std::{fs, path::Path, process};

use nix::{
    sys::{
        resource::{RLIM_INFINITY, Resource, getrlimit},
        utsname::uname,
    },
    unistd::Uid,
};

use super::{Finding, USER};
use crate::{
    capabilities::{self, Capability},
    cli::{UnknownVariable, unknown_variables},
    config::Config,
    cpus::Cpus,
    memory,
    proc_fs::namespace_link,
};

/// Number of the first PID namespace, which is always the same.
///
/// Source: `linux/nsfs.h`, `PID_NS_INIT_INO`; before that `linux/proc_ns.h`.
const FIRST_PID_NAMESPACE: u64 = 0xEFFF_FFFC;

/// Kernels before this have no ring buffers.
const HAS_RING_BUFFERS: (u32, u32) = (5, 8);

/// The oldest kernel on which all tests are run.
const OLDEST_TESTED: (u32, u32) = (5, 10);

/// Descriptors that a capture of a few interfaces takes beside its rings, and those that connections and all else take.
const DESCRIPTORS_OF_CAPTURE: u64 = 20;
const OTHER_DESCRIPTORS: u64 = 1200;

/// Limits of resources that the service was started with, what they mean, and what they cost it.
const LIMITS: [(Resource, &str, &str); 4] = [
    (
        Resource::RLIMIT_AS,
        "bytes of address space (RLIMIT_AS)",
        "what takes more fails: rings of captures, or the compiler of filters",
    ),
    (
        Resource::RLIMIT_DATA,
        "bytes of data (RLIMIT_DATA)",
        "what takes more fails, which may end the service",
    ),
    (
        Resource::RLIMIT_FSIZE,
        "bytes in a file (RLIMIT_FSIZE)",
        "a file of --audit-log, or of the log, takes no more lines once it is so long",
    ),
    (
        Resource::RLIMIT_CPU,
        "seconds of CPU time (RLIMIT_CPU)",
        "the kernel ends the service after them",
    ),
];

/// Each for itself.
pub(super) fn look(config: &Config) -> Vec<Finding> {
    let mut findings: Vec<Finding> = user().into_iter().collect();
    findings.push(kernel());
    findings.extend(Capability::ALL.map(capability));
    findings.extend(beside_rights(config));
    findings
}

/// Whoever asks without the rights of a service is told of what they themselves could do.
fn user() -> Option<Finding> {
    let user = Uid::effective();
    if user.is_root() || capabilities::missing(&Capability::ALL).is_none() {
        return None;
    }
    let found = format!("this check runs as the user {user}, without the rights of a service");
    Some(
        Finding::limited(USER, found)
            .costs(
                "what follows holds for a service of this user: others' processes, engines and namespaces could not be looked at",
            )
            .remedy("run it as root, as the service: sudo packetflix check"),
    )
}

/// The same at the start of the service, where what is missing for one reason is told once.
pub(super) fn look_at_the_start(config: &Config) -> Vec<Finding> {
    let mut findings = vec![kernel()];
    findings.extend(capabilities());
    findings.extend(beside_rights(config));
    findings
}

fn beside_rights(config: &Config) -> Vec<Finding> {
    let mut findings = vec![pid_namespace(), ring_memory(config), descriptors(config)];
    findings.extend(locked_memory(config));
    findings.extend(LIMITS.into_iter().filter_map(limit));
    findings.extend(unknown_variables(std::env::vars_os()).into_iter().map(variable));
    findings
}

fn variable(UnknownVariable { name, nearest }: UnknownVariable) -> Finding {
    let remedy = match nearest {
        Some(nearest) => format!("{nearest} may be meant"),
        None => "see packetflix --help for those that there are".to_owned(),
    };
    Finding::limited("variables", format!("{name} stands for no flag"))
        .costs("it is ignored")
        .remedy(remedy)
}

/// A limit that cannot be raised, where there is one.
fn limit((resource, what, cost): (Resource, &str, &str)) -> Option<Finding> {
    let (_, most) = getrlimit(resource).ok()?;
    (most != RLIM_INFINITY).then(|| {
        Finding::limited("limits", format!("at most {most} {what}"))
            .costs(cost)
            .remedy("have none: ulimit -H, ulimits in compose, Limit… in systemd")
    })
}

fn kernel() -> Finding {
    const SUBJECT: &str = "kernel";
    let release = match uname() {
        Ok(names) => names.release().to_string_lossy().into_owned(),
        Err(error) => return Finding::limited(SUBJECT, format!("its version could not be read: {error}")),
    };
    kernel_of(&release)
}

fn kernel_of(release: &str) -> Finding {
    const REMEDY: &str = "update the kernel, best to 6.6 or later, which has TCX";
    let found = format!("Linux {release}");
    match version(release) {
        Some(version) if version < HAS_RING_BUFFERS => Finding::fails("kernel", found)
            .costs("there are no captures: ring buffers came with Linux 5.8")
            .remedy(REMEDY),
        Some(version) if version < OLDEST_TESTED => Finding::limited("kernel", found)
            .costs("packetflix is not tested on kernels before Linux 5.10")
            .remedy(REMEDY),
        _ => Finding::works("kernel", found),
    }
}

/// Kernels before this count eBPF maps as locked memory; later ones as memory of the control group.
const MAPS_ARE_NO_LOCKED_MEMORY: (u32, u32) = (5, 11);

/// The bound of locked memory, where rings count as such.
fn locked_memory(config: &Config) -> Option<Finding> {
    let names = uname().ok()?;
    let version = version(&names.release().to_string_lossy())?;
    let (bound, _) = getrlimit(Resource::RLIMIT_MEMLOCK).ok()?;
    locked_memory_of(version, bound, config.tap.rings.memory)
}

fn locked_memory_of(version: (u32, u32), bound: u64, rings: u64) -> Option<Finding> {
    const SUBJECT: &str = "locked memory";
    if version >= MAPS_ARE_NO_LOCKED_MEMORY {
        return None;
    }
    if bound == RLIM_INFINITY {
        return Some(Finding::works(
            SUBJECT,
            "it has no bound; before Linux 5.11 rings count as such",
        ));
    }
    let found = format!(
        "at most {} KiB, and before Linux 5.11 rings count as such",
        bound >> 10
    );
    Some(if bound < rings {
        Finding::limited(SUBJECT, found)
            .costs("captures fail with \"Operation not permitted\" when their rings take more")
            .remedy("have no bound: ulimits: {memlock: -1} in compose, LimitMEMLOCK=infinity in systemd")
    } else {
        Finding::works(SUBJECT, found)
    })
}

fn version(release: &str) -> Option<(u32, u32)> {
    let mut numbers = release.split(|c: char| !c.is_ascii_digit());
    Some((numbers.next()?.parse().ok()?, numbers.next()?.parse().ok()?))
}

/// What a capability is for, and what it costs to lack it.
const fn purpose_and_cost(capability: Capability) -> (&'static str, &'static str) {
    match capability {
        Capability::SysAdmin => (
            "enters network namespaces and loads eBPF programs",
            "there are no captures, and no targets",
        ),
        Capability::NetRaw => ("opens packet sockets", "there are no captures"),
        Capability::SysPtrace => (
            "looks at the namespaces and files of other processes",
            "containers, pods and processes of other users are not found",
        ),
        Capability::DacOverride => (
            "connects to the sockets of container engines, and finds namespaces mounted in private folders",
            "engines whose sockets are not open to this user and its groups are not asked: \
             containers have no names",
        ),
        Capability::NetAdmin => (
            "sets up the interface that filters with `vlan` are compiled for",
            "filters with `vlan` are refused",
        ),
    }
}

/// All that are missing.
fn capabilities() -> Option<Finding> {
    let found = capabilities::missing(&Capability::ALL)?;
    let lacked = Capability::ALL.iter().filter(|one| !one.is_effective());
    let mut costs: Vec<&str> = lacked.map(|one| purpose_and_cost(*one).1).collect();
    costs.dedup();
    let finding = match capabilities::missing(&Capability::NEEDED) {
        Some(_) => Finding::fails("capabilities", found),
        None => Finding::limited("capabilities", found),
    };
    Some(finding.costs(costs.join("; ")).remedy(capabilities::remedy()))
}

fn capability(capability: Capability) -> Finding {
    let (purpose, cost) = purpose_and_cost(capability);
    if capability.is_effective() {
        return Finding::works(capability.name(), purpose);
    }
    let found = format!("the service lacks {capability}");
    let finding = match capability {
        Capability::SysAdmin | Capability::NetRaw => Finding::fails(capability.name(), found),
        _ => Finding::limited(capability.name(), found),
    };
    let or_else = match capability {
        Capability::DacOverride => "; or make the service a member of the groups that the sockets belong to",
        _ => "",
    };
    finding.costs(cost).remedy(capabilities::remedy() + or_else)
}

fn pid_namespace() -> Finding {
    const SUBJECT: &str = "/proc";
    const COST: &str =
        "only targets that have a process in this PID namespace are found, and captured by name";
    const REMEDY: &str = "use the host's: pid: host in compose, hostPID: true in Kubernetes";

    let own = fs::read_link("/proc/self").ok();
    if own.as_deref() != Some(Path::new(&process::id().to_string())) {
        return Finding::fails(
            SUBJECT,
            "it does not show the PID namespace of this process, or nothing",
        )
        .costs("neither namespaces nor targets are found")
        .remedy("mount proc of the PID namespace that the service is in");
    }
    match namespace_link(Path::new("/proc/self/ns/pid")) {
        Ok((_, FIRST_PID_NAMESPACE)) => Finding::works(SUBJECT, "it shows all processes of the host"),
        Ok(_) => Finding::limited(SUBJECT, "it shows a PID namespace that is not the host's")
            .costs(COST)
            .remedy(REMEDY),
        Err(error) => Finding::limited(SUBJECT, format!("which processes it shows is not known: {error}"))
            .costs(COST)
            .remedy(REMEDY),
    }
}

fn ring_memory(config: &Config) -> Finding {
    const SUBJECT: &str = "memory of rings";
    let rings = &config.tap.rings;
    let usable = memory::usable();
    let found = format!(
        "{} MiB for all captures, of {} MiB that this machine or control group has; {} MiB at most for each of {}",
        rings.memory >> 20,
        usable >> 20,
        rings.size >> 20,
        which_rings()
    );
    if rings.memory > usable / 2 {
        return Finding::limited(SUBJECT, found)
            .costs("when many captures run, the kernel may end the service for want of memory")
            .remedy("lower --ring-memory, or raise the bound of memory");
    }
    Finding::works(SUBJECT, found)
}

/// Which rings a capture has.
fn which_rings() -> String {
    match Cpus::look() {
        Ok(cpus) if cpus.may_grow() => format!(
            "{} CPUs that are online, and as much for the other {} that may come",
            cpus.online.len(),
            cpus.possible.len() - cpus.online.len()
        ),
        Ok(cpus) => format!("{} CPUs", cpus.online.len()),
        Err(error) => format!("the CPUs, whose number could not be read: {error}"),
    }
}

fn descriptors(config: &Config) -> Finding {
    const SUBJECT: &str = "open descriptors";
    let Ok((_, most)) = getrlimit(Resource::RLIMIT_NOFILE) else {
        return Finding::limited(SUBJECT, "their bound could not be read");
    };
    let rings = Cpus::look().map_or(0, |cpus| u64::from(cpus.rings()));
    let wanted = config.frontend.quotas.total as u64 * (DESCRIPTORS_OF_CAPTURE + rings) + OTHER_DESCRIPTORS;
    let found = format!("at most {most}");
    if most < wanted {
        return Finding::limited(SUBJECT, found)
            .costs("not all captures that --max-captures allows can run at the same time")
            .remedy(format!(
                "raise it to {wanted}: ulimits in compose, LimitNOFILE in systemd"
            ));
    }
    Finding::works(SUBJECT, found)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::check::State;

    #[test]
    fn locked_memory_matters_to_old_kernels() {
        let state =
            |version, bound, rings| locked_memory_of(version, bound, rings).map(|finding| finding.state);
        assert_eq!(state((5, 11), 1, 2), None);
        assert_eq!(state((6, 1), 1, 2), None);
        assert_eq!(state((5, 10), RLIM_INFINITY, 2), Some(State::Works));
        assert_eq!(state((5, 10), 2, 2), Some(State::Works));
        assert_eq!(state((5, 10), 1, 2), Some(State::Limited));
    }

    #[test]
    fn versions_of_kernels_are_compared_as_numbers() {
        for (release, parsed) in [
            ("6.18.44-fc-v669", Some((6, 18))),
            ("5.8", Some((5, 8))),
            ("5.10.0-32-amd64", Some((5, 10))),
            ("6", None),
            ("", None),
        ] {
            assert_eq!(version(release), parsed, "{release}");
        }
        for (release, state) in [
            ("5.4.0", State::Fails),
            ("5.8.0-63-generic", State::Limited),
            ("5.10.0-32-amd64", State::Works),
            ("6.18.44", State::Works),
            ("of our own", State::Works),
        ] {
            assert_eq!(kernel_of(release).state, state, "{release}");
        }
    }
}
