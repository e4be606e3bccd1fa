//! Who opens `packetflix:` addresses, in the desktop of this user.

use std::{
    fs,
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use super::install::{HOME, InstallError, folder};

const NAME: &str = "packetflix.desktop";
const TYPE: &str = "x-scheme-handler/packetflix";

pub(super) fn file() -> Result<PathBuf, InstallError> {
    let data = folder("XDG_DATA_HOME").or_else(|| Some(folder(HOME)?.join(".local/share")));
    Ok(data.ok_or(InstallError::Nowhere)?.join("applications").join(NAME))
}

/// Makes the file, has the desktop use it, and says so.
pub(super) fn install(program: &Path) -> Result<String, InstallError> {
    let file = file()?;
    let make = || {
        if let Some(folder) = file.parent() {
            fs::create_dir_all(folder)?;
        }
        fs::write(&file, entry(program))
    };
    make().map_err(|error| InstallError::Make(file.clone(), error))?;
    let registered = Command::new("xdg-mime")
        .args(["default", NAME, TYPE])
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .status()
        .is_ok_and(|status| status.success());
    let told = match registered {
        true => "packetflix: addresses are opened by",
        false => {
            "packetflix: addresses are not opened yet, since xdg-mime fails or is missing; who opens them is"
        }
    };
    Ok(format!("{told} {}\n", file.display()))
}

/// An entry of the desktop's menu that is not shown there (Desktop Entry Specification, "The Exec key").
fn entry(program: &Path) -> String {
    format!(
        "[Desktop Entry]\nType=Application\nName=packetflix\nComment=Captures packets of containers with Wireshark\n\
         Exec={} open %u\nTerminal=false\nNoDisplay=true\nMimeType={TYPE};\n",
        quoted(&program.display().to_string())
    )
}

/// A word of a command line there: what is special in quotes is escaped twice, once for the file's strings.
fn quoted(word: &str) -> String {
    let mut quoted = String::from('"');
    for c in word.chars() {
        match c {
            '\\' => quoted += r"\\\\",
            '"' | '`' | '$' => {
                quoted += r"\\";
                quoted.push(c);
            }
            '%' => quoted += "%%",
            c => quoted.push(c),
        }
    }
    quoted + "\""
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn programs_are_found_by_their_path_whatever_is_in_it() {
        assert_eq!(quoted("/usr/bin/packetflix"), r#""/usr/bin/packetflix""#);
        assert_eq!(quoted(r#"/a b/100%/$"\"#), r#""/a b/100%%/\\$\\"\\\\""#);
    }
}
