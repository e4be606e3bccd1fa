//! The configuration file: servers by name, and the one that is meant where none is named.

use std::{
    collections::BTreeMap,
    env, fs, io,
    path::{Path, PathBuf},
    process::{self, Command, Stdio},
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
    /// Others may have it run commands.
    #[error("others may write {}, which names commands: take their rights away (chmod go-w)", .0.display())]
    Writable(PathBuf),
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
        // To open a pipe waits for who writes to it.
        if fs::metadata(file).is_ok_and(|about| !about.is_file()) {
            let error = io::Error::new(io::ErrorKind::InvalidInput, "it is no file");
            return Err(ConfigError::Read(file.to_owned(), error));
        }
        let text = match read_short(file) {
            Ok(text) => text,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Self::default()),
            Err(error) => return Err(ConfigError::Read(file.to_owned(), error)),
        };
        check_written(file)?;
        let failed = |error| ConfigError::Parse(file.to_owned(), error);
        // A list of nothing would pass for members of which none is given.
        let members: serde_json::Map<_, _> = serde_json::from_slice(&text).map_err(failed)?;
        Self::deserialize(serde_json::Value::from(members)).map_err(failed)
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
    let told = |error: io::Error| format!(": {error}");
    let mut child = Command::new(shell)
        .args([flag, command])
        .stdout(Stdio::piped())
        .spawn()
        .map_err(told)?;
    let printed = child.stdout.take().map(short).transpose();
    // One that has more to say ends when nobody reads it.
    let status = child.wait().map_err(told)?;
    let printed = printed.map_err(told)?.unwrap_or_default();
    match status.success() {
        true => Ok(String::from_utf8_lossy(&printed).into_owned()),
        false => Err(format!(" ({status})")),
    }
}

/// A file of ours: none that is a device or pipe, and has no end.
///
/// # Errors
/// When it cannot be read, or is too large.
pub(crate) fn read_short(file: &Path) -> io::Result<Vec<u8>> {
    short(fs::File::open(file)?)
}

/// All that there is to read, which is not much.
fn short(from: impl io::Read) -> io::Result<Vec<u8>> {
    const MAX_LEN: u64 = 1 << 20;
    let mut bytes = Vec::new();
    io::Read::read_to_end(&mut io::Read::take(from, MAX_LEN + 1), &mut bytes)?;
    match bytes.len() as u64 > MAX_LEN {
        true => Err(io::ErrorKind::FileTooLarge.into()),
        false => Ok(bytes),
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

/// Deletes the token that was kept for a server, if one was, and none has it now.
///
/// # Errors
/// When it cannot be deleted.
pub(crate) fn forget_token(name: &str, config: &Config) -> Result<(), ConfigError> {
    let file = token_file(name)?;
    let is_it = |server: &NamedServer| server.token_file.as_ref() == Some(&file);
    if check_name(name).is_err() || config.servers.values().any(is_it) {
        return Ok(());
    }
    match fs::remove_file(&file) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(ConfigError::Write(file, error)),
        _ => Ok(()),
    }
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

/// Writes a file, and its folders, that nobody else may read. Whoever reads it finds the old or the new. A link stays one, and
/// what it leads to is written.
fn write_private(file: &Path, text: &str) -> Result<(), ConfigError> {
    let written = || {
        let file = fs::canonicalize(file).unwrap_or_else(|_| file.to_owned());
        let folder = file.parent().unwrap_or(Path::new("."));
        private_folders(folder)?;
        // No name of a server begins with a dot.
        let new = folder.join(format!(".new-{}", process::id()));
        let mut options = fs::OpenOptions::new();
        options.write(true).create_new(true);
        #[cfg(unix)]
        std::os::unix::fs::OpenOptionsExt::mode(&mut options, 0o600);
        let mut opened = options.open(&new)?;
        let done = io::Write::write_all(&mut opened, text.as_bytes())
            .and_then(|()| opened.sync_all())
            .and_then(|()| fs::rename(&new, &file));
        if done.is_err() {
            // It may hold a token, and is of no use.
            let _ = fs::remove_file(&new);
        }
        done
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

/// Checks that nobody else may write the file, which may name commands that are run.
///
/// # Errors
/// When others may.
#[cfg(unix)]
fn check_written(file: &Path) -> Result<(), ConfigError> {
    use std::os::unix::fs::PermissionsExt as _;

    const BY_OTHERS: u32 = 0o022;
    match file.metadata() {
        Ok(metadata) if metadata.permissions().mode() & BY_OTHERS == 0 => Ok(()),
        Ok(metadata) if !metadata.is_file() => Ok(()),
        Ok(_) => Err(ConfigError::Writable(file.to_owned())),
        Err(error) => Err(ConfigError::Read(file.to_owned(), error)),
    }
}

#[cfg(not(unix))]
fn check_written(_: &Path) -> Result<(), ConfigError> {
    Ok(())
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
        let file = env::temp_dir().join(format!("packetflix-config-{}", process::id()));
        for (text, is_one) in [
            ("{}", true),
            ("[]", false),
            ("[null]", false),
            ("null", false),
            ("", false),
        ] {
            fs::write(&file, text).unwrap();
            assert_eq!(Config::read_from(&file).is_ok(), is_one, "{text}");
        }
        fs::remove_file(&file).unwrap();
        let error = Config::read_from(Path::new("/dev/null")).unwrap_err();
        assert!(matches!(error, ConfigError::Read(..)), "{error}");
    }
}
