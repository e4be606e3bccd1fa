//! What AppArmor's profile for containers lets the service do: `docs/deployment.md` says so.

use std::{fs, path::Path, process::Command};

use anyhow::{Context as _, ensure};
use packetflix_tests::{
    client::{Recorder, refusal},
    folder::Folder,
    namespace::Namespace,
    process::Sleeper,
    server::{Server, program},
};
use serde_json::Value;

/// The rules of `docker-default` that the service could meet (`profiles/apparmor/template.go` of Moby), under a name of
/// our own.
const PROFILE: &str = "#include <tunables/global>
profile packetflix-test flags=(attach_disconnected,mediate_deleted) {
  #include <abstractions/base>
  network,
  capability,
  file,
  umount,
  signal (receive) peer=unconfined,
  signal (send,receive) peer=packetflix-test,
  deny @{PROC}/* w,
  deny @{PROC}/sys/[^k]** w,
  deny @{PROC}/sysrq-trigger rwklx,
  deny @{PROC}/kcore rwklx,
  deny mount,
  deny /sys/[^f]*/** wklx,
  deny /sys/firmware/** rwklx,
  deny /sys/kernel/security/** rwklx,
  ptrace (trace,read,tracedby,readby) peer=packetflix-test,
  PTRACE
}
";

/// Where the kernel shows its profiles.
const PROFILES: &str = "/sys/kernel/security/apparmor/profiles";

/// A profile that is loaded, until this is dropped.
struct Profile {
    folder: Folder,
}

impl Profile {
    /// Loads it with one more rule.
    fn load(rule: &str) -> anyhow::Result<Self> {
        let profile = Self {
            folder: Folder::new()?,
        };
        fs::write(profile.folder.file("profile"), PROFILE.replace("PTRACE", rule))?;
        profile.parser("--replace")?;
        Ok(profile)
    }

    fn parser(&self, verb: &str) -> anyhow::Result<()> {
        let output = Command::new("apparmor_parser")
            .args([verb, "--skip-cache", "--skip-read-cache"])
            .arg(self.folder.file("profile"))
            .output()?;
        ensure!(
            output.status.success(),
            "{}",
            String::from_utf8_lossy(&output.stderr)
        );
        Ok(())
    }

    /// A command that runs the program confined.
    fn confined() -> anyhow::Result<Command> {
        let mut command = Command::new("aa-exec");
        command
            .args(["--profile", "packetflix-test", "--"])
            .arg(program("packetflix")?);
        Ok(command)
    }
}

impl Drop for Profile {
    fn drop(&mut self) {
        let _ = self.parser("--remove");
    }
}

/// Whether the kernel has AppArmor; one that has none takes no profile.
fn has_apparmor() -> anyhow::Result<bool> {
    if Path::new(PROFILES).exists() {
        return Ok(true);
    }
    ensure!(Profile::load("").is_err(), "a profile was loaded");
    eprintln!("this kernel has no AppArmor");
    Ok(false)
}

/// What `check` says of a subject: its state, and all of it.
fn finding(report: &Value, subject: &str) -> anyhow::Result<(String, String)> {
    let mut findings = report["findings"].as_array().into_iter().flatten();
    let finding = findings
        .find(|finding| finding["subject"] == subject)
        .with_context(|| format!("no {subject}: {report}"))?;
    Ok((
        finding["state"].as_str().unwrap_or_default().to_owned(),
        finding.to_string(),
    ))
}

#[tokio::test]
async fn profile_of_containers_hides_other_processes_until_they_may_be_read() -> anyhow::Result<()> {
    if !has_apparmor()? {
        return Ok(());
    }
    let (namespace, sleeper) = (Namespace::new()?, Sleeper::unshared()?);
    for (rule, may_read) in [("", false), ("ptrace (read) peer=unconfined,", true)] {
        let _profile = Profile::load(rule)?;
        let output = Profile::confined()?.args(["check", "--json"]).output()?;
        let report: Value = serde_json::from_slice(&output.stdout)?;
        // Programs are loaded and attached as without a profile.
        assert_eq!(finding(&report, "hook socket")?.0, "works");
        assert_eq!(report["captures"], true);
        let (state, all) = finding(&report, "other processes")?;
        ensure!(state == if may_read { "works" } else { "limited" }, "{all}");
        ensure!(may_read || all.contains("a security module"), "{all}");

        let server = Server::start_by(&mut Profile::confined()?, &[])?;
        let of_process = server.url_of(&sleeper.identity()?, "");
        if may_read {
            Recorder::start(&of_process).await?.finish().await?;
        } else {
            let (status, sentence) = refusal(&server, &of_process, &[]).await?;
            ensure!(
                status == 500 && sentence.contains("a security module"),
                "{status} {sentence}"
            );
        }
        // One that is mounted where the service sees it needs no look at another process.
        let mounted = server.url(&format!("netns={}", namespace.inode()?));
        Recorder::start(&mounted).await?.finish().await?;
    }
    Ok(())
}
