//! What may be meant by a name that no node has.

use std::sync::Arc;

use serde_json::Value;

use super::{
    Gateway,
    capture::GatewayStartError,
    lists::{self, Told},
    node::Node,
};
use crate::{description::TargetDescription, resolve::nearest_of, service::Caller};

/// Most nodes whose lists are asked for it: whole ones, for a name that is not there, which somebody may ask for again and again.
const MAX_NODES: usize = 64;

/// Most names of each that are held against it, and most bytes of one.
const MAX_NAMES: usize = 10_000;
const MAX_NAME_LEN: usize = 512;

impl Gateway {
    /// The same error, with names that may be meant, of those that its caller may list.
    pub(super) async fn with_nearest(&self, error: GatewayStartError, caller: &Caller) -> GatewayStartError {
        let GatewayStartError::Nowhere {
            name, asked, failed, ..
        } = error
        else {
            return error;
        };
        let nearest = match caller.may_discover() {
            Ok(()) => self.nearest(&name, asked.clone(), caller).await,
            Err(_) => Vec::new(),
        };
        GatewayStartError::Nowhere {
            name,
            asked,
            failed,
            nearest,
        }
    }

    /// Of each node the nearest are kept, and of these the nearest again.
    async fn nearest(&self, words: &str, nodes: Vec<Arc<Node>>, caller: &Caller) -> Vec<String> {
        let words = || words.split_whitespace();
        if nodes.len() > MAX_NODES {
            return Vec::new();
        }
        let asked = self
            .nodes
            .ask_for_json(nodes, "/targets", caller.bounds(), |_, body| {
                let mut names = Vec::new();
                lists::read(body, lists::TARGETS, |told| {
                    if let Told::Element(target) = told
                        && names.len() < MAX_NAMES
                    {
                        names.extend(Some(name_of(&target)).filter(|name| name.len() <= MAX_NAME_LEN));
                    }
                })?;
                Ok(nearest_of(words(), &names))
            });
        let asked = asked.await.unwrap_or_default();
        let near: Vec<String> = asked
            .into_iter()
            .filter_map(|one| one.answer.ok())
            .flatten()
            .collect();
        nearest_of(words(), &near)
    }
}

fn name_of(target: &Value) -> String {
    let text = |member: &str| target[member].as_str().unwrap_or_default().to_owned();
    let target = TargetDescription {
        name: text("name"),
        prefix: text("prefix"),
        ..TargetDescription::default()
    };
    target.full_name()
}
