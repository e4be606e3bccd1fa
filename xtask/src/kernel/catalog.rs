//! The kernels that the tests are run on: Debian's own, as people run them.

use std::env::consts;

use anyhow::{Context as _, bail};

/// What a kernel is built for, in Debian's word.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum Architecture {
    /// 64-bit PCs
    Amd64,
    /// 64-bit ARM, on another machine's processor
    Arm64,
}

impl Architecture {
    pub(crate) const ALL: [Self; 2] = [Self::Amd64, Self::Arm64];

    /// This machine's.
    ///
    /// # Errors
    /// When it is none of them.
    pub(crate) fn own() -> anyhow::Result<Self> {
        Self::ALL
            .into_iter()
            .find(|architecture| architecture.is_own())
            .with_context(|| format!("no kernel is booted on {}", consts::ARCH))
    }

    /// Whether this machine runs its programs.
    pub(crate) fn is_own(self) -> bool {
        self.processor() == consts::ARCH
    }

    /// Debian's name.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Amd64 => "amd64",
            Self::Arm64 => "arm64",
        }
    }

    /// The processor, in the word of Rust and the GNU tools.
    pub(crate) fn processor(self) -> &'static str {
        match self {
            Self::Amd64 => "x86_64",
            Self::Arm64 => "aarch64",
        }
    }

    /// What the GNU tools call it, as do Debian's folders of libraries.
    pub(crate) fn gnu(self) -> String {
        format!("{}-linux-gnu", self.processor())
    }

    /// Rust's target.
    pub(crate) fn target(self) -> String {
        format!("{}-unknown-linux-gnu", self.processor())
    }
}

/// A kernel, by the packages that have it.
#[derive(Debug)]
pub(crate) struct Kernel {
    /// What it is called on the command line.
    pub(crate) name: &'static str,
    /// Debian's release.
    pub(crate) suite: &'static str,
    /// Whether the release's security updates count, too.
    pub(crate) security: bool,
    /// What comes between `linux-image-` and the architecture: with a hyphen at its end, or nothing.
    pub(crate) flavour: &'static str,
    /// What has to be there: a test must not find it missing by mistake.
    pub(crate) has_tcx: bool,
}

/// All kernels, from the oldest to the newest.
const KERNELS: [Kernel; 7] = [
    // Without later updates: the oldest that a host with Debian 11 runs.
    Kernel {
        name: "5.10",
        suite: "bullseye",
        security: false,
        flavour: "",
        has_tcx: false,
    },
    Kernel {
        name: "6.1",
        suite: "bookworm",
        security: true,
        flavour: "",
        has_tcx: false,
    },
    Kernel {
        name: "6.1-rt",
        suite: "bookworm",
        security: true,
        flavour: "rt-",
        has_tcx: false,
    },
    Kernel {
        name: "6.12",
        suite: "trixie",
        security: true,
        flavour: "",
        has_tcx: true,
    },
    Kernel {
        name: "6.12-rt",
        suite: "trixie",
        security: true,
        flavour: "rt-",
        has_tcx: true,
    },
    Kernel {
        name: "newest",
        suite: "sid",
        security: false,
        flavour: "",
        has_tcx: true,
    },
    // Without the lock that older kernels with PREEMPT_RT hold while packets pass.
    Kernel {
        name: "newest-rt",
        suite: "sid",
        security: false,
        flavour: "rt-",
        has_tcx: true,
    },
];

/// Which kernels `all` means on 64-bit ARM: one on either side of TCX. Without TCX and with it, an architecture differs in
/// what it is compiled to, not in the version.
const ON_ARM64: [&str; 2] = ["6.1", "6.12"];

/// The kernels of these names on one architecture; `all` means those that the matrix has.
///
/// # Errors
/// When there is none of a name, which is told with those that there are.
pub(crate) fn chosen(names: &[String], architecture: Architecture) -> anyhow::Result<Vec<&'static Kernel>> {
    let all = KERNELS
        .iter()
        .filter(|kernel| architecture == Architecture::Amd64 || ON_ARM64.contains(&kernel.name));
    if names.iter().any(|name| name == "all") {
        return Ok(all.collect());
    }
    if names.is_empty() {
        bail!("no kernel is named");
    }
    let find = |name: &String| {
        let known = || KERNELS.map(|kernel| kernel.name).join(", ");
        let wanted = if name == "rt" { "newest-rt" } else { name };
        KERNELS
            .iter()
            .find(|kernel| kernel.name == wanted)
            .with_context(|| {
                format!(
                    "there is no kernel {name} to boot; there are all, rt, {}",
                    known()
                )
            })
    };
    names.iter().map(find).collect()
}

#[cfg(test)]
mod tests {
    use super::{Architecture, chosen};

    #[test]
    fn kernels_are_found_by_name() -> anyhow::Result<()> {
        let names = |names: &[&str], architecture| {
            let names: Vec<String> = names.iter().map(ToString::to_string).collect();
            chosen(&names, architecture)
                .map(|kernels| kernels.iter().map(|kernel| kernel.name).collect::<Vec<_>>())
        };
        assert_eq!(names(&["6.1", "5.10"], Architecture::Amd64)?, ["6.1", "5.10"]);
        assert_eq!(names(&["rt"], Architecture::Amd64)?, ["newest-rt"]);
        assert_eq!(
            names(&["all"], Architecture::Amd64)?,
            ["5.10", "6.1", "6.1-rt", "6.12", "6.12-rt", "newest", "newest-rt"]
        );
        assert_eq!(names(&["all"], Architecture::Arm64)?, ["6.1", "6.12"]);
        let refused = names(&["2.4"], Architecture::Amd64).map_err(|error| error.to_string());
        assert_eq!(
            refused,
            Err(
                "there is no kernel 2.4 to boot; there are all, rt, 5.10, 6.1, 6.1-rt, 6.12, 6.12-rt, newest, newest-rt"
                    .to_owned()
            )
        );
        Ok(())
    }
}
