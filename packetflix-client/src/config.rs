//! The configuration file: servers by name, and the one that is meant where none is named.

use std::{
    collections::BTreeMap,
    env, fs, io,
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use serde::{Deserialize, Serialize};

use crate::server::{ServerError, Token};

/// Folder of our own in the user's folder of configuration files.
const FOLDER: &str = "packetflix";

/// The file in it.
const FILE: &str = "config.json";

/// Variable that names another file.
const VARIABLE: &str = "PACKETFLIX_CONFIG";

/// Servers by their names.
#[derive(Clone, Debug, Default, Deserialize, PartialEq, Eq, Serialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// The one that is meant where none is named.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub default: Option<String>,
    /// By their names.
    #[serde(default)]
    pub servers: BTreeMap<String, NamedServer>,
}

/// A server that has a name.
#[derive(Clone, Debug, Deserialize, PartialEq, Eq, Serialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct NamedServer {
    /// Where it is, as `--server` takes it.
    pub url: String,
    /// File of its token, which others may not read.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub token_file: Option<PathBuf>,
    /// Command of the system's shell that prints its token.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub token_command: Option<String>,
    /// As `--cacert`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cacert: Option<PathBuf>,
    /// As `--cert`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cert: Option<PathBuf>,
    /// As `--key`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub key: Option<PathBuf>,
}

/// Why there is no configuration, or it cannot be kept.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// There is nowhere to look.
    #[error("there is no folder for configuration files: set HOME, or {VARIABLE}")]
    Nowhere,
    /// The file cannot be read.
    #[error("the configuration {} cannot be read", .0.display())]
    Read(PathBuf, #[source] io::Error),
    /// The file is none.
    #[error("the configuration {} cannot be understood", .0.display())]
    Parse(PathBuf, #[source] serde_json::Error),
    /// The file cannot be written.
    #[error("the configuration cannot be written to {}", .0.display())]
    Write(PathBuf, #[source] io::Error),
    /// There is no such server in it.
    #[error(
        "no server is called {0}: `packetflix server list` shows those that there are, and a URL has a scheme, as http://HOST:PORT"
    )]
    Unknown(String),
    /// It cannot be a name.
    #[error("{0} is no name for a server: write letters, digits, dots, dashes and underscores")]
    Name(String),
    /// Others may read a token.
    #[error("others may read {}: take their rights away (chmod 600)", .0.display())]
    Exposed(PathBuf),
    /// The command for the token fails.
    #[error("the command for the token of {0} fails{1}")]
    TokenCommand(String, String),
}

impl Config {
    /// Reads the user's file; there need not be one.
    ///
    /// # Errors
    /// When it cannot be read or understood.
    pub fn read() -> Result<Self, ConfigError> {
        match file() {
            Ok(file) => Self::read_from(&file),
            // Whoever has no home has no servers.
            Err(_) => Ok(Self::default()),
        }
    }

    fn read_from(file: &Path) -> Result<Self, ConfigError> {
        let text = match fs::read(file) {
            Ok(text) => text,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Self::default()),
            Err(error) => return Err(ConfigError::Read(file.to_owned(), error)),
        };
        serde_json::from_slice(&text).map_err(|error| ConfigError::Parse(file.to_owned(), error))
    }

    /// Writes the user's file, in one step.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn write(&self) -> Result<(), ConfigError> {
        let file = file()?;
        let text =
            serde_json::to_string_pretty(self).map_err(|error| ConfigError::Parse(file.clone(), error))?;
        write_private(&file, &(text + "\n"))
    }

    /// The server of this name.
    ///
    /// # Errors
    /// When there is none.
    pub fn named(&self, name: &str) -> Result<&NamedServer, ConfigError> {
        self.servers
            .get(name)
            .ok_or_else(|| ConfigError::Unknown(name.to_owned()))
    }
}

impl NamedServer {
    /// Its token, if it has one.
    ///
    /// # Errors
    /// When it cannot be had, or others may read it.
    pub(crate) fn token(&self, name: &str) -> Result<Option<Token>, ServerError> {
        if let Some(file) = &self.token_file {
            return Token::read(file).map(Some);
        }
        let Some(command) = &self.token_command else {
            return Ok(None);
        };
        let printed = output_of(command).map_err(|told| ConfigError::TokenCommand(name.to_owned(), told))?;
        Token::parse(&printed, "what the token's command prints").map(Some)
    }
}

/// What a command of the system's shell prints.
fn output_of(command: &str) -> Result<String, String> {
    let (shell, flag) = if cfg!(windows) {
        ("cmd", "/C")
    } else {
        ("sh", "-c")
    };
    let output = Command::new(shell)
        .args([flag, command])
        .stderr(Stdio::inherit())
        .output()
        .map_err(|error| format!(": {error}"))?;
    match output.status.success() {
        true => Ok(String::from_utf8_lossy(&output.stdout).into_owned()),
        false => Err(format!(" ({})", output.status)),
    }
}

/// Keeps the token of a server in a file that only this user may read.
///
/// # Errors
/// When it cannot be written.
pub(crate) fn keep_token(name: &str, token: &Token) -> Result<PathBuf, ConfigError> {
    let file = token_file(name)?;
    write_private(&file, &token.line())?;
    Ok(file)
}

/// Deletes the token that was kept for a server, if one was.
///
/// # Errors
/// When there is no folder for it.
pub(crate) fn forget_token(name: &str) -> Result<(), ConfigError> {
    // There may be none.
    let _ = fs::remove_file(token_file(name)?);
    Ok(())
}

fn token_file(name: &str) -> Result<PathBuf, ConfigError> {
    Ok(file()?.with_file_name("tokens").join(name))
}

/// Checks what is to be the name of a server, and of its token's file.
///
/// # Errors
/// When it could be no name of a file.
pub(crate) fn check_name(name: &str) -> Result<(), ConfigError> {
    let is_usual = |c: char| c.is_ascii_alphanumeric() || "-_.".contains(c);
    match !name.is_empty() && !name.starts_with(['.', '-']) && name.chars().all(is_usual) {
        true => Ok(()),
        false => Err(ConfigError::Name(name.to_owned())),
    }
}

/// Where the user's file is, or is to be.
fn file() -> Result<PathBuf, ConfigError> {
    let path = |name| {
        env::var_os(name)
            .filter(|value| !value.is_empty())
            .map(PathBuf::from)
    };
    if let Some(file) = path(VARIABLE) {
        return Ok(file);
    }
    let folder = if cfg!(windows) {
        path("APPDATA")
    } else {
        path("XDG_CONFIG_HOME").or_else(|| Some(path("HOME")?.join(".config")))
    };
    Ok(folder.ok_or(ConfigError::Nowhere)?.join(FOLDER).join(FILE))
}

/// Writes a file, and its folders, that nobody else may read. Whoever reads it finds the old or the new.
fn write_private(file: &Path, text: &str) -> Result<(), ConfigError> {
    let written = || {
        if let Some(folder) = file.parent() {
            private_folders(folder)?;
        }
        let new = file.with_extension("new");
        let mut options = fs::OpenOptions::new();
        options.write(true).create(true).truncate(true);
        #[cfg(unix)]
        std::os::unix::fs::OpenOptionsExt::mode(&mut options, 0o600);
        io::Write::write_all(&mut options.open(&new)?, text.as_bytes())?;
        fs::rename(&new, file)
    };
    written().map_err(|error| ConfigError::Write(file.to_owned(), error))
}

fn private_folders(folder: &Path) -> io::Result<()> {
    let mut builder = fs::DirBuilder::new();
    builder.recursive(true);
    #[cfg(unix)]
    std::os::unix::fs::DirBuilderExt::mode(&mut builder, 0o700);
    builder.create(folder)
}

/// Checks that nobody else may read the file of a token.
///
/// # Errors
/// When others may.
#[cfg(unix)]
pub(crate) fn check_private(file: &Path) -> Result<(), ConfigError> {
    use std::os::unix::fs::PermissionsExt as _;

    const OF_OTHERS: u32 = 0o077;
    // What cannot be looked at cannot be read, which is told then.
    match file.metadata() {
        Ok(metadata) if metadata.permissions().mode() & OF_OTHERS != 0 => {
            Err(ConfigError::Exposed(file.to_owned()))
        }
        _ => Ok(()),
    }
}

/// The folder of a user's configuration is the user's alone on this system.
#[cfg(not(unix))]
pub(crate) fn check_private(_: &Path) -> Result<(), ConfigError> {
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_names_of_files() {
        for name in ["prod", "eu-1.example_2"] {
            assert!(check_name(name).is_ok(), "{name}");
        }
        for wrong in ["", "../x", "a/b", "-x", ".x", "a b", "http://x"] {
            assert!(check_name(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn mistakes_in_the_file_are_told() {
        let text = r#"{"servers": {"prod": {"url": "http://x", "tokenfile": "/x"}}}"#;
        let error = serde_json::from_str::<Config>(text).unwrap_err();
        assert!(error.to_string().contains("tokenfile"), "{error}");
    }
}
