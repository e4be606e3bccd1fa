//! Pods of a cluster, as kubectl's flags name them, and the words of a selection that they become.

use crate::{
    cluster::{Meant, parse_namespace},
    error::Failure,
    server::{Address, Server, ServerArgs},
};

/// Which pods are meant.
#[derive(Clone, Debug, Default, clap::Args)]
pub(crate) struct PodArgs {
    /// With --kube, the namespace of the pods that are named, or that are all meant; by default it is that of the context
    #[arg(short, long, value_name = "NAMESPACE", value_parser = parse_namespace)]
    namespace: Option<String>,
    /// With --kube, only pods with these labels, also those that come later: KEY=VALUE or KEY, separated by commas
    #[arg(short = 'l', long, value_name = "LABELS", value_parser = parse_labels)]
    selector: Option<String>,
}

/// Why these flags mean nothing.
#[derive(Debug, thiserror::Error)]
enum PodsError {
    #[error("-n is for pods of a cluster: say --kube with it. A server has namespaces in names: pod:{0}/*")]
    Namespace(String),
    #[error("-l is for pods of a cluster: say --kube with it. At a server, label:KEY=VALUE chooses targets")]
    Labels,
}

/// Labels as kubectl takes them, as far as nodes compare them.
fn parse_labels(text: &str) -> Result<String, String> {
    let is_one = |label: &str| {
        let is_of_label = |c: char| c.is_ascii_alphanumeric() || "-_./=".contains(c);
        !label.is_empty() && !label.starts_with('=') && label.chars().all(is_of_label)
    };
    match text.split(',').all(is_one) {
        true => Ok(text.to_owned()),
        false => Err("write KEY=VALUE or KEY, separated by commas".to_owned()),
    }
}

/// Whether a word is no more than the name of a pod.
fn is_pod(word: &str) -> bool {
    !word.contains(['/', ':', '*', '?', '!', '&'])
}

impl PodArgs {
    /// Whether they stand with a cluster.
    ///
    /// # Errors
    /// When they do not.
    pub(crate) fn check(&self, server: &ServerArgs) -> Result<(), Failure> {
        match (&self.namespace, &self.selector) {
            _ if server.cluster.kube => Ok(()),
            (Some(namespace), _) => Err(Failure::usage(PodsError::Namespace(namespace.clone()))),
            (None, Some(_)) => Err(Failure::usage(PodsError::Labels)),
            (None, None) => Ok(()),
        }
    }

    /// Which pods of a cluster are meant.
    pub(crate) fn meant(&self, words: &[String]) -> Meant {
        Meant {
            namespace: self.namespace.clone(),
            labels: self.selector.clone(),
            names: words.iter().filter(|word| is_pod(word)).cloned().collect(),
        }
    }

    /// The words of the selection: in a cluster, names and labels are those of pods.
    pub(crate) fn words(&self, words: &[String], server: &Server) -> Vec<String> {
        let Address::Cluster(road) = &server.address else {
            return words.to_vec();
        };
        if words.is_empty() && self.namespace.is_none() && self.selector.is_none() {
            return Vec::new();
        }
        let namespace = self.namespace.as_deref().unwrap_or_else(|| road.namespace());
        let labels = self.selector.as_deref().unwrap_or_default().split(',');
        let labels: String = labels
            .filter(|label| !label.is_empty())
            .map(|label| format!("&label:{}", label.replacen("==", "=", 1)))
            .collect();
        if words.is_empty() {
            return vec![format!("pod:{namespace}/*{labels}")];
        }
        let of_pods = words.iter().map(|word| match is_pod(word) {
            true if labels.is_empty() => format!("{namespace}/{word}"),
            true => format!("pod:{namespace}/{word}{labels}"),
            false => word.clone(),
        });
        of_pods.collect()
    }
}
