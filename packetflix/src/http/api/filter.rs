//! `/filter`: what becomes of an expression, for people and programs, without a capture.

use packetflix_filter::{classic, native};
use serde::Serialize;
use warp::{
    Reply as _,
    reply::{self, Response},
};

use super::{Api, code::Code, refusal::Refusal};
use crate::{filter::Translated, pcapng::LinkType, service::Caller};

/// The programs of an expression, an instruction per line.
#[derive(Serialize)]
struct Programs<'a> {
    expression: &'a str,
    linktype: &'static str,
    /// Classic BPF, as `tcpdump -d` shows it.
    classic: Vec<String>,
    /// eBPF, as `bpftool prog dump xlated` shows it.
    native: Vec<String>,
}

const PARAMETERS: [&str; 2] = ["expr", "linktype"];

/// Names and numbers of the link types.
const LINK_TYPES: [(&str, &str, LinkType); 2] = [
    ("ethernet", "1", LinkType::Ethernet),
    ("raw", "101", LinkType::Raw),
];

/// Compiles the expression `expr` of the query for the link type `linktype`, Ethernet unless it is given.
pub(crate) async fn show(api: &Api, query: &str, caller: &Caller) -> Result<Response, Refusal> {
    let invalid = |sentence: String| Refusal::new(Code::ParameterInvalid, sentence);
    let pairs: Vec<(String, String)> = serde_urlencoded::from_str(query)
        .map_err(|error| invalid(format!("the query cannot be read: {error}")))?;
    if let Some((name, _)) = pairs.iter().find(|(name, _)| !PARAMETERS.contains(&&name[..])) {
        let known = PARAMETERS.join(" and ");
        return Err(Refusal::new(
            Code::ParameterUnknown,
            format!("there is no parameter {name}; there are {known}"),
        ));
    }
    let find = |name: &str| {
        let mut values = pairs.iter().filter(|(found, _)| found == name);
        values.next().map(|(_, value)| value.trim())
    };
    let expression = find("expr")
        .filter(|expression| !expression.is_empty())
        .ok_or_else(|| {
            let sentence = "no expression is given: /filter?expr=EXPRESSION&linktype=ethernet";
            Refusal::new(Code::ParameterMissing, sentence)
        })?;
    let wanted = find("linktype").unwrap_or("ethernet");
    let (linktype, _, link_type) = LINK_TYPES
        .into_iter()
        .find(|(name, number, _)| *name == wanted || *number == wanted)
        .ok_or_else(|| invalid(format!("linktype={wanted} is neither ethernet (1) nor raw (101)")))?;
    let (compiler, account) = (&api.app.compiler, caller.account());
    let Translated { classic, native } = compiler.translate(expression, link_type, &account).await?;
    let lines = |listing: String| listing.lines().map(str::to_owned).collect();
    let programs = Programs {
        expression,
        linktype,
        classic: lines(classic::Listing(&classic).to_string()),
        native: lines(native::Listing(&native).to_string()),
    };
    Ok(reply::json(&programs).into_response())
}
