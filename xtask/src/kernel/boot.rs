//! Boots a kernel under emulation, which needs no rights and no hardware of its own, and follows what its guest tells.

use std::{
    fs::{self, File},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, bail, ensure};

use super::{
    catalog::Architecture,
    fetch::Unpacked,
    initramfs::{self, MODULES_SHARE, RESULTS_SHARE, ROOT_SHARE, WORKSPACE_SHARE},
    qmp,
    results::{LOGS, Line, Outcome, PLAN, RESULTS_FILE, Test},
};
use crate::shell::root;

/// Longest time until the guest has its root and begins.
const TIME_TO_BOOT: Duration = Duration::from_secs(180);

/// Longest time that a guest may be silent: a test has less.
const TIME_OF_SILENCE: Duration = Duration::from_secs(500);

/// The file by which a guest asks for another CPU; it is gone when it was plugged in.
const ADD_CPU: &str = "add-cpu";

/// Lines of the console that are shown when a guest fails.
const LINES_SHOWN: usize = 40;

/// What is booted, and with what.
pub(crate) struct Machine<'a> {
    pub(crate) architecture: Architecture,
    pub(crate) kernel: &'a Unpacked,
    /// What the guest has for its root.
    pub(crate) root: &'a Path,
    /// The program that runs in the guest.
    pub(crate) runner: &'a Path,
    /// Holds the plan, and then the results.
    pub(crate) results: &'a Path,
}

/// What a guest told.
#[derive(Default)]
pub(crate) struct Report {
    /// Release and version of the kernel, in its own words.
    pub(crate) release: String,
    pub(crate) version: String,
    pub(crate) tests: Vec<Test>,
}

impl Report {
    /// Of what a guest told to its end; `None` when it did not come to that, or a test failed.
    fn passed(told: &str) -> Option<Self> {
        let mut report = Self::default();
        for line in told.lines() {
            match Line::parse(line)? {
                Line::Kernel { release, version } => (report.release, report.version) = (release, version),
                Line::Start(_) => {}
                Line::Test(test) if test.outcome == Outcome::Passed => report.tests.push(test),
                Line::Test(_) => return None,
                Line::End => return Some(report),
            }
        }
        None
    }
}

impl Machine<'_> {
    /// What came of the last run, if its plan was the same and all tests passed.
    pub(crate) fn kept(&self, plan: &str) -> Option<Report> {
        let read = |file| fs::read_to_string(self.results.join(file)).ok();
        let is_same = read(PLAN)? == plan;
        is_same.then(|| Report::passed(&read(RESULTS_FILE)?)).flatten()
    }

    /// Boots the kernel, lets it do what the plan says, and tells on standard error how each test ended.
    ///
    /// # Errors
    /// When the guest does not get to its end: the last lines of its console are shown.
    pub(crate) fn run(&self, plan: &str) -> anyhow::Result<Report> {
        if self.results.exists() {
            fs::remove_dir_all(self.results)?;
        }
        fs::create_dir_all(self.results.join(LOGS))?;
        fs::write(self.results.join(PLAN), plan)?;
        let initramfs = self.results.join("initramfs");
        let command = format!("{} guest", self.runner.display());
        let busybox = self.root.join("bin/busybox");
        initramfs::write(&initramfs, self.kernel, &busybox, root(), &command)?;
        let mut emulator = Emulator(
            self.emulator(&initramfs)?
                .spawn()
                .context("the emulator cannot be started")?,
        );
        self.follow(&mut emulator.0)
            .map_err(|error| error.context(self.console()))
    }

    fn emulator(&self, initramfs: &Path) -> anyhow::Result<Command> {
        let (program, machine, console) = match self.architecture {
            Architecture::Amd64 => ("qemu-system-x86_64", "pc", "ttyS0"),
            Architecture::Arm64 => ("qemu-system-aarch64", "virt", "ttyAMA0"),
        };
        let output = File::create(self.results.join("emulator"))?;
        let mut command = Command::new(program);
        command
            .args(["-machine", machine, "-cpu", "max", "-accel", "tcg,thread=multi"])
            .args(["-m", "4000", "-smp"])
            .arg(match self.architecture {
                // Two more can be plugged in.
                Architecture::Amd64 => "2,maxcpus=4",
                Architecture::Arm64 => "2",
            })
            .args([
                "-display",
                "none",
                "-monitor",
                "none",
                "-nic",
                "none",
                "-no-reboot",
            ])
            .arg("-serial")
            .arg(format!("file:{}", self.console_file().display()))
            .arg("-qmp")
            .arg(format!("unix:{},server=on,wait=off", self.control().display()))
            .arg("-kernel")
            .arg(&self.kernel.image)
            .arg("-initrd")
            .arg(initramfs)
            // A kernel that stumbles ends the machine, which is seen. That the emulated timer is late is no reason to stumble.
            .args([
                "-append",
                &format!("console={console} quiet panic=-1 oops=panic no_timer_check"),
            ])
            .stdin(Stdio::null())
            .stdout(output.try_clone()?)
            .stderr(output);
        for (tag, folder, access) in [
            (ROOT_SHARE, self.root, ",readonly=on"),
            (WORKSPACE_SHARE, root(), ",readonly=on"),
            (MODULES_SHARE, &self.kernel.modules, ",readonly=on"),
            (RESULTS_SHARE, self.results, ""),
        ] {
            let folder = folder.display().to_string().replace(',', ",,");
            command.arg("-virtfs").arg(format!(
                "local,path={folder},mount_tag={tag},security_model=none,multidevs=remap{access}"
            ));
        }
        Ok(command)
    }

    fn follow(&self, emulator: &mut Child) -> anyhow::Result<Report> {
        let mut report = Report::default();
        let mut read = 0;
        let mut deadline = Instant::now() + TIME_TO_BOOT;
        loop {
            // First, so that nothing is missed that was written before the end.
            let ended = emulator.try_wait()?;
            let told = fs::read_to_string(self.results.join(RESULTS_FILE)).unwrap_or_default();
            let complete = told.rfind('\n').map_or(0, |at| at + 1);
            for line in told[read..complete].lines() {
                deadline = Instant::now() + TIME_OF_SILENCE;
                match Line::parse(line).with_context(|| format!("the guest says: {line}"))? {
                    Line::Kernel { release, version } => {
                        eprintln!("xtask: booted {release}, {version}");
                        (report.release, report.version) = (release, version);
                    }
                    Line::Start(_) => {}
                    Line::Test(test) => {
                        self.show(&test);
                        report.tests.push(test);
                    }
                    Line::End => return Ok(report),
                }
            }
            read = complete;
            if let Some(status) = ended {
                bail!("the guest ended before its tests did ({status})");
            }
            ensure!(
                Instant::now() < deadline,
                "the guest has said nothing for too long; its last words: {}",
                told.lines().last().unwrap_or("none")
            );
            self.add_cpu_if_asked()?;
            thread::sleep(Duration::from_millis(100));
        }
    }

    fn show(&self, test: &Test) {
        let Test { area, name, took, .. } = test;
        let missing: String = test.missing.iter().map(|what| format!(", no {what}")).collect();
        eprintln!(
            "{area}: {name} ... {} ({:.1} s{missing})",
            test.outcome,
            took.as_secs_f64()
        );
        if test.outcome != Outcome::Passed {
            let log = format!("{area}-{}.log", name.replace("::", "-"));
            eprintln!("{}", last_lines(&self.results.join(LOGS).join(log)));
        }
    }

    fn add_cpu_if_asked(&self) -> anyhow::Result<()> {
        let asked = self.results.join(ADD_CPU);
        if asked.exists() {
            qmp::add_cpu(&self.control())?;
            fs::remove_file(asked)?;
        }
        Ok(())
    }

    fn console(&self) -> String {
        let (console, emulator) = (self.console_file(), self.results.join("emulator"));
        format!(
            "the console ends with\n{}\n{}",
            last_lines(&console),
            last_lines(&emulator)
        )
    }

    fn console_file(&self) -> PathBuf {
        self.results.join("console")
    }

    fn control(&self) -> PathBuf {
        self.results.join("control")
    }
}

/// Ends with us, whatever happens.
struct Emulator(Child);

impl Drop for Emulator {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn last_lines(file: &Path) -> String {
    let bytes = fs::read(file).unwrap_or_default();
    let text = String::from_utf8_lossy(&bytes);
    let lines: Vec<&str> = text.lines().collect();
    lines[lines.len().saturating_sub(LINES_SHOWN)..].join("\n")
}

#[cfg(test)]
mod tests {
    use super::Report;

    #[test]
    fn what_passed_to_its_end_is_kept() {
        let begin = "kernel\t6.1.0-1-amd64\t#1 SMP Debian 6.1.1-1\nstart\ta\n";
        let test = |outcome: &str| format!("test\tframes\ta\t{outcome}\t12\tsocket\t\n");
        let kept = |told: &str| Report::passed(told).map(|report| (report.release, report.tests.len()));
        let told = format!("{begin}{}end\n", test("ok"));
        assert_eq!(kept(&told), Some(("6.1.0-1-amd64".to_owned(), 1)));
        assert_eq!(kept(&format!("{begin}{}", test("ok"))), None);
        assert_eq!(kept(&format!("{begin}{}end\n", test("FAILED"))), None);
    }
}
