//! What a kubeconfig says: where the API server is, and what its user shows there.
//!
//! Source: "Organizing Cluster Access Using kubeconfig Files" of the public documentation.

use std::{
    env,
    error::Error,
    fs, io,
    path::{Path, PathBuf},
};

use base64::{Engine as _, engine::general_purpose::STANDARD};
use kube::config::{AuthInfo, KubeConfigOptions, Kubeconfig, KubeconfigError as Trouble};

use super::{
    is_label,
    plugin::{self, BOUNDS, PluginError},
    proxy,
};
use crate::error::{behind, root};

/// Variable that names the files.
const VARIABLE: &str = "KUBECONFIG";

/// The file that is meant where it names none, in the user's folder.
const FILE: &str = ".kube/config";

/// Most names that a sentence has.
const MAX_NAMED: usize = 8;

/// Why a kubeconfig leads nowhere.
#[derive(Debug, thiserror::Error)]
pub enum KubeconfigError {
    /// There is nowhere to look.
    #[error("there is no kubeconfig: {VARIABLE} is not set, and there is no home to have {FILE}")]
    Nowhere,
    /// There is none.
    #[error(
        "there is no kubeconfig at {0}: have {VARIABLE} name the file by which kubectl reaches the cluster"
    )]
    Missing(String),
    /// It cannot be read.
    #[error("the kubeconfig {} cannot be read", .0.display())]
    Read(PathBuf, #[source] io::Error),
    /// It is none.
    #[error("{} is no kubeconfig: {}", .0.display(), .1)]
    Parse(PathBuf, String),
    /// Several files do not go together.
    #[error("the kubeconfigs {0} do not go together: {1}")]
    Merge(String, String),
    /// None is the current one.
    #[error("the kubeconfig {0} has no current context: name one with --context; {1}")]
    NoCurrent(String, String),
    /// There is no such context.
    #[error("the kubeconfig {0} has no context {1}: {2}")]
    NoContext(String, String, String),
    /// It is of a cluster that does not stand there.
    #[error("the context {1} of the kubeconfig {0} is of the cluster {2}, which does not stand there")]
    NoCluster(String, String, String),
    /// It is of a user who does not stand there.
    #[error("the context {1} of the kubeconfig {0} is of the user {2}, who does not stand there")]
    NoUser(String, String, String),
    /// Its namespace is none.
    #[error(
        "the namespace {2} of the context {1} of the kubeconfig {0} is none: names have letters, digits and dashes"
    )]
    Namespace(String, String, String),
    /// What stands there cannot be used.
    #[error("the kubeconfig {0} cannot be used: {1}")]
    Unusable(String, String),
    /// A way of logging in that is no more.
    #[error(
        "the user {0} of the kubeconfig logs in by the auth-provider {1}, which kubectl has no more either: have your cluster's \
         program write the kubeconfig anew, with a plugin (exec)"
    )]
    Provider(String, String),
    /// The file of the token cannot be read.
    #[error("the token of the kubeconfig's user {} cannot be read from {}", .0, .1.display())]
    TokenFile(String, PathBuf, #[source] io::Error),
    /// What would be shown is no token.
    #[error(
        "the token of the kubeconfig's user {0} ({1}) is empty, or has a character that no token has, such as a line break or a letter \
         with an accent: was it copied whole?"
    )]
    Token(String, String),
    /// The plugin gives nothing.
    #[error(transparent)]
    Plugin(#[from] PluginError),
    /// The plugin gives nothing that can be shown.
    #[error("the plugin of the kubeconfig's user {0} gives neither a token nor a certificate with its key")]
    Nothing(String),
}

/// What a kubeconfig leads to.
pub(super) struct Login {
    /// With what the user shows: a token, a certificate or a password, and no plugin any more.
    pub(super) config: kube::Config,
    /// The token that is shown, or what there is instead.
    pub(super) token: Result<String, String>,
    /// Whom the kubeconfig has log in, for people.
    pub(super) user: String,
}

/// Reads it, and has the user's plugin asked.
pub(super) async fn read(context: Option<&str>) -> Result<Login, KubeconfigError> {
    let (known, place) = merged()?;
    let current = known.current_context.clone().filter(|name| !name.is_empty());
    let names = |names: Vec<&String>| match names.len() {
        0 => "it has none".to_owned(),
        len => {
            let shown: Vec<&str> = names.iter().take(MAX_NAMED).map(|name| &name[..]).collect();
            let more = len.saturating_sub(MAX_NAMED);
            let more = if more > 0 {
                format!(" and {more} more")
            } else {
                String::new()
            };
            format!("it has {}{more}", shown.join(", "))
        }
    };
    let all = names(known.contexts.iter().map(|context| &context.name).collect());
    let Some(name) = context.map(str::to_owned).or(current) else {
        return Err(KubeconfigError::NoCurrent(place, all));
    };
    let context = known.contexts.iter().find(|context| context.name == name);
    let Some(context) = context.and_then(|context| context.context.clone()) else {
        return Err(KubeconfigError::NoContext(place, name, all));
    };
    if !known
        .clusters
        .iter()
        .any(|cluster| cluster.name == context.cluster)
    {
        return Err(KubeconfigError::NoCluster(place, name, context.cluster));
    }
    let user = context.user.filter(|user| !user.is_empty());
    if let Some(user) = &user
        && !known.auth_infos.iter().any(|known| known.name == *user)
    {
        return Err(KubeconfigError::NoUser(place, name, user.clone()));
    }
    if let Some(namespace) = context.namespace.filter(|namespace| !is_label(namespace)) {
        return Err(KubeconfigError::Namespace(place, name, namespace));
    }
    let cluster = known
        .clusters
        .iter()
        .find(|cluster| cluster.name == context.cluster);
    let own_proxy = cluster.and_then(|cluster| cluster.cluster.as_ref()?.proxy_url.clone());
    let options = KubeConfigOptions {
        context: Some(name.clone()),
        ..KubeConfigOptions::default()
    };
    let mut config = kube::Config::from_custom_kubeconfig(known, &options)
        .await
        .map_err(|error| KubeconfigError::Unusable(place.clone(), trouble(&error)))?;
    config.proxy_url = match proxy::of(&config.cluster_url, own_proxy.as_deref()) {
        Some(proxy) => Some(proxy.parse().map_err(|error| {
            let error = Trouble::ParseProxyUrl(error);
            KubeconfigError::Unusable(place, trouble(&error))
        })?),
        None => None,
    };
    if config.default_namespace.is_empty() {
        "default".clone_into(&mut config.default_namespace);
    }
    let token = match &user {
        Some(user) => settle(&mut config.auth_info, user).await?,
        None => Err(format!(": the context {name} names no user")),
    };
    Ok(Login {
        config,
        token,
        user: user.unwrap_or_else(|| "that is not named".to_owned()),
    })
}

/// What all files together say, and their names. As for kubectl, one that is not there says nothing.
fn merged() -> Result<(Kubeconfig, String), KubeconfigError> {
    let files = files()?;
    let shown: Vec<String> = files.iter().map(|file| file.display().to_string()).collect();
    let place = shown.join(", ");
    let mut merged = None;
    for file in &files {
        let next = match Kubeconfig::read_from(file) {
            Ok(next) => next,
            Err(Trouble::ReadConfig(error, _)) if error.kind() == io::ErrorKind::NotFound => continue,
            Err(Trouble::ReadConfig(error, _)) => return Err(KubeconfigError::Read(file.clone(), error)),
            Err(error) => return Err(KubeconfigError::Parse(file.clone(), first_line(&error))),
        };
        let all = match merged {
            Some(all) => Kubeconfig::merge(all, next),
            None => Ok(next),
        };
        merged = Some(all.map_err(|error| KubeconfigError::Merge(place.clone(), first_line(&error)))?);
    }
    match merged {
        Some(merged) => Ok((merged, place)),
        None => Err(KubeconfigError::Missing(place)),
    }
}

fn files() -> Result<Vec<PathBuf>, KubeconfigError> {
    let named = env::var_os(VARIABLE).unwrap_or_default();
    let named: Vec<PathBuf> = env::split_paths(&named)
        .filter(|file| !file.as_os_str().is_empty())
        .collect();
    match (named.is_empty(), env::home_dir()) {
        (false, _) => Ok(named),
        (true, Some(home)) => Ok(vec![home.join(FILE)]),
        (true, None) => Err(KubeconfigError::Nowhere),
    }
}

/// What follows the first line may be what stands in the file, with its secrets.
fn first_line(error: &dyn Error) -> String {
    let told = root(error);
    told.lines().next().unwrap_or_default().to_owned()
}

/// Why no client can be made of it.
pub(super) fn why(error: &kube::Error) -> String {
    match error {
        kube::Error::ProxyProtocolUnsupported { proxy_url }
        | kube::Error::ProxyProtocolDisabled { proxy_url, .. } => {
            format!("the proxy {proxy_url} (proxy-url, or HTTPS_PROXY) is none of http:// or https://")
        }
        error => match behind(error) {
            Some(error) => trouble(error),
            None => first_line(error),
        },
    }
}

/// What is wrong with what a context leads to.
fn trouble(error: &Trouble) -> String {
    let what = match error {
        Trouble::MissingClusterUrl => return "its cluster has no server".to_owned(),
        Trouble::ParseClusterUrl(_) => "the server of its cluster is no URL",
        Trouble::ParseProxyUrl(_) => "its proxy (proxy-url, or HTTPS_PROXY) is no URL",
        Trouble::LoadCertificateAuthority(_) | Trouble::ParseCertificates(_) => {
            "the CA of its cluster (certificate-authority) cannot be read"
        }
        Trouble::LoadClientCertificate(_) => {
            "the certificate of its user (client-certificate) cannot be read"
        }
        Trouble::LoadClientKey(_) => "the key of its user (client-key) cannot be read",
        other => return first_line(other),
    };
    let file = match error {
        Trouble::LoadCertificateAuthority(why)
        | Trouble::LoadClientCertificate(why)
        | Trouble::LoadClientKey(why) => match why {
            kube::config::LoadDataError::ReadFile(_, file) => format!(" from {}", file.display()),
            _ => String::new(),
        },
        _ => String::new(),
    };
    format!("{what}{file}: {}", first_line(error))
}

/// Has what a user shows stand there itself, as kube takes it. Tells the token, or what there is instead of one.
async fn settle(auth: &mut AuthInfo, user: &str) -> Result<Result<String, String>, KubeconfigError> {
    let said = serde_json::to_value(&*auth).unwrap_or_default();
    let text = |name: &str| said[name].as_str().filter(|text| !text.is_empty());
    let taken = |token: &str, origin: &str| match is_token(token) {
        true => Ok(token.to_owned()),
        false => Err(KubeconfigError::Token(user.to_owned(), origin.to_owned())),
    };
    let mut token = None;
    if let Some(provider) = auth.auth_provider.take() {
        match provider.config.get("id-token") {
            Some(id) if provider.name == "oidc" => token = Some(taken(id, "id-token")?),
            _ => return Err(KubeconfigError::Provider(user.to_owned(), provider.name)),
        }
    } else if let Some(file) = auth.token_file.take().filter(|file| !file.is_empty()) {
        let read = fs::read_to_string(&file)
            .map_err(|error| KubeconfigError::TokenFile(user.to_owned(), PathBuf::from(&file), error))?;
        token = Some(taken(read.trim(), &format!("in {}", Path::new(&file).display()))?);
    } else if let Some(written) = text("token") {
        token = Some(taken(written, "token")?);
    } else if text("username").is_none()
        && let Some(exec) = auth.exec.take()
    {
        let given = plugin::run(&exec, user, &BOUNDS).await?;
        if let (Some(certificate), Some(key)) = (given.client_certificate_data, given.client_key_data) {
            auth.client_certificate_data = Some(STANDARD.encode(certificate));
            auth.client_key_data = Some(STANDARD.encode(key).into());
        } else if given.token.is_none() {
            return Err(KubeconfigError::Nothing(user.to_owned()));
        }
        if let Some(given) = given.token {
            token = Some(taken(&given, "what the plugin gives")?);
        }
    }
    auth.exec = None;
    auth.token = token.clone().map(Into::into);
    let instead = match () {
        () if text("username").is_some() => ", but a password, which packetflix never sees",
        () if auth.client_certificate.is_some() || auth.client_certificate_data.is_some() => {
            ", but a certificate, which packetflix never sees"
        }
        () => ": its user has none",
    };
    Ok(token.ok_or_else(|| instead.to_owned()))
}

fn is_token(text: &str) -> bool {
    !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_graphic())
}

#[cfg(all(test, unix))]
mod tests {
    use serde_json::json;

    use super::*;

    #[tokio::test]
    async fn what_a_user_shows_is_a_token_or_said() {
        let file = env::temp_dir().join(format!("packetflix-token-{}", std::process::id()));
        fs::write(&file, "abc\n").unwrap();
        let plugin = |status: &serde_json::Value| {
            let said = json!({ "kind": "ExecCredential", "status": status });
            json!({ "exec": { "command": "echo", "args": [said.to_string()], "interactiveMode": "Never" } })
        };
        let provider = |name: &str| json!({ "auth-provider": { "name": name, "config": { "id-token": "abc", "cmd-path": "/x" } } });
        let wrong = |origin: &str| {
            format!(
                "the token of the kubeconfig's user ann ({origin}) is empty, or has a character that no token has, such as a line break or \
                 a letter with an accent: was it copied whole?"
            )
        };
        let by_file = json!({ "tokenFile": file.display().to_string() });
        for (user, expected) in [
            (json!({ "token": "abc" }), "abc".to_owned()),
            (by_file, "abc".to_owned()),
            (plugin(&json!({ "token": "abc" })), "abc".to_owned()),
            (provider("oidc"), "abc".to_owned()),
            (
                provider("gcp"),
                "the user ann of the kubeconfig logs in by the auth-provider gcp, which kubectl has no more either: have your cluster's \
                 program write the kubeconfig anew, with a plugin (exec)"
                    .to_owned(),
            ),
            (json!({ "token": "a\u{1}c" }), wrong("token")),
            (json!({ "token": "abc\n" }), wrong("token")),
            (json!({ "token": "abcé" }), wrong("token")),
            (plugin(&json!({ "token": "abcé" })), wrong("what the plugin gives")),
            (plugin(&json!({ "token": "a\u{1}c" })), wrong("what the plugin gives")),
            (
                plugin(&json!({})),
                "the plugin of the kubeconfig's user ann gives neither a token nor a certificate with its key".to_owned(),
            ),
            (
                json!({ "tokenFile": "/nowhere/token" }),
                "the token of the kubeconfig's user ann cannot be read from /nowhere/token".to_owned(),
            ),
            (
                json!({ "username": "u", "password": "p" }),
                ", but a password, which packetflix never sees".to_owned(),
            ),
            (
                plugin(&json!({ "clientCertificateData": "c", "clientKeyData": "k" })),
                ", but a certificate, which packetflix never sees".to_owned(),
            ),
            (json!({}), ": its user has none".to_owned()),
        ] {
            let mut auth: AuthInfo = serde_json::from_value(user.clone()).unwrap();
            let told = match settle(&mut auth, "ann").await {
                Ok(Ok(told) | Err(told)) => told,
                Err(error) => error.to_string(),
            };
            assert_eq!(told, expected, "{user}");
        }
        fs::remove_file(&file).unwrap();
    }
}
