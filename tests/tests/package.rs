//! What people install, made of the program under test: `cargo xtask dist` says what it makes and tries.

use std::process::Command;

use packetflix_tests::{
    folder::Folder,
    namespace::{output_of, run},
    server::program,
};

#[test]
fn the_package_installs_and_a_purge_leaves_nothing() -> anyhow::Result<()> {
    let folder = Folder::new()?;
    let out = folder.path().join("out");
    output_of(
        Command::new(program("xtask")?)
            .args(["dist", "--verify", "--program"])
            .arg(program("packetflix")?)
            .arg("--out")
            .arg(&out),
    )?;
    let version = env!("CARGO_PKG_VERSION");
    let architecture = run("dpkg", &["--print-architecture"])?;
    let architecture = architecture.trim();
    let package = out.join(format!("packetflix_{version}-1_{architecture}.deb"));
    let field = |name: &str| output_of(Command::new("dpkg-deb").arg("--field").arg(&package).arg(name));
    assert_eq!(field("Version")?.trim(), format!("{version}-1"));
    assert_eq!(field("Depends")?.trim(), "libc6 (>= 2.34), libgcc-s1");
    // Nothing runs as root or anybody else that was not asked for: the unit makes its user, and the administrator starts it.
    let scripts = output_of(
        Command::new("dpkg-deb")
            .arg("--info")
            .arg(&package)
            .arg("postinst"),
    )?;
    for word in [
        "useradd",
        "adduser",
        "deb-systemd-invoke start",
        "deb-systemd-invoke restart",
    ] {
        assert!(!scripts.contains(word), "{scripts}");
    }
    let archive = out.join(format!("packetflix-{version}-linux-{architecture}.tar.xz"));
    assert!(archive.exists());
    Ok(())
}
