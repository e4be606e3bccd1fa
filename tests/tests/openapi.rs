//! What `/openapi.json` describes is what the server answers.

use std::process::Command;

use anyhow::{Context as _, ensure};
use jsonschema::{Validator, draft202012};
use packetflix_tests::{
    folder::Folder,
    http::Head,
    namespace::Namespace,
    process::{Sleeper, script_in},
    server::{Server, program},
};
use serde_json::{Value, json};

/// What an operation of a path may be called (OpenAPI 3.1, section 4.8.9.1).
const METHODS: [&str; 8] = [
    "get", "put", "post", "delete", "options", "head", "patch", "trace",
];

/// Turns a request for a capture into the handshake of a WebSocket.
const HANDSHAKE: &str = "\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\n\
                         Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==";

/// The description, as a server serves it.
struct Description(Value);

impl Description {
    fn of(server: &Server) -> anyhow::Result<Self> {
        let (status, description) = server.get("/openapi.json")?;
        ensure!(status == 200, "{status}");
        Ok(Self(description))
    }

    /// What is described here, at the end of the reference if it is one.
    fn resolve<'a>(&'a self, described: &'a Value) -> anyhow::Result<&'a Value> {
        let Some(reference) = described.get("$ref") else {
            return Ok(described);
        };
        let pointer = reference
            .as_str()
            .and_then(|reference| reference.strip_prefix('#'));
        let found = pointer.and_then(|pointer| self.0.pointer(pointer));
        found.with_context(|| format!("nothing is at {reference}"))
    }

    /// Validates by a schema of the description, whose references lead into it.
    fn validator(&self, schema: &Value) -> anyhow::Result<Validator> {
        let schema = json!({ "allOf": [schema], "components": self.0["components"] });
        Ok(draft202012::new(&schema)?)
    }

    /// What is described for a GET of this path that is answered with this status.
    fn response(&self, path: &str, status: u16) -> anyhow::Result<&Value> {
        let paths = &self.0["paths"];
        let item = paths.get(path).unwrap_or(&paths["/{path}"]);
        let described = item["get"]["responses"].get(status.to_string());
        self.resolve(described.with_context(|| format!("{path}: {status} is not described"))?)
    }

    /// Checks an answer against what is described for a GET of this path, and exactly this status.
    fn check(&self, path: &str, head: &Head, body: &[u8]) -> anyhow::Result<()> {
        let described = self.response(path, head.status()?)?;
        if let Some(headers) = described.get("headers") {
            for (name, header) in headers.as_object().context("no headers")? {
                let values = head.values(&name.to_lowercase());
                if values.is_empty() && header["required"] != true {
                    continue;
                }
                let [value] = values[..] else {
                    anyhow::bail!("{name} is {values:?}");
                };
                self.check_schema(&header["schema"], &json!(value))?;
            }
        }
        let Some(content) = described.get("content") else {
            ensure!(body.is_empty(), "a body where none is described");
            return Ok(());
        };
        let content_type = head.values("content-type").join(" and ");
        let described = content.get(&content_type);
        let described = described.with_context(|| format!("the type {content_type} is not described"))?;
        self.check_schema(&described["schema"], &serde_json::from_slice(body)?)
    }

    fn check_schema(&self, schema: &Value, value: &Value) -> anyhow::Result<()> {
        let validator = self.validator(schema)?;
        let errors: Vec<String> = validator
            .iter_errors(value)
            .map(|error| format!("{}: {error}", error.instance_path()))
            .collect();
        ensure!(errors.is_empty(), "{value:#}\n{}", errors.join("\n"));
        Ok(())
    }
}

/// The head and body of what is answered to a GET of the path and query with more header lines.
fn answered(server: &Server, request: &str, headers: &str, status: u16) -> anyhow::Result<(Head, Vec<u8>)> {
    let (head, body) = server.ask(&format!("GET {request} HTTP/1.1{headers}"))?;
    let text = String::from_utf8_lossy(&body);
    ensure!(head.status()? == status, "{request}: {} {text}", head.line);
    Ok((head, body))
}

/// Calls `visit` with every value in `value`, each with its place.
fn visit_all(
    place: &str,
    value: &Value,
    visit: &mut impl FnMut(&str, &Value) -> anyhow::Result<()>,
) -> anyhow::Result<()> {
    visit(place, value)?;
    match value {
        Value::Object(members) => members
            .iter()
            .try_for_each(|(name, member)| visit_all(&format!("{place}/{name}"), member, visit)),
        Value::Array(elements) => elements
            .iter()
            .enumerate()
            .try_for_each(|(index, element)| visit_all(&format!("{place}/{index}"), element, visit)),
        _ => Ok(()),
    }
}

#[test]
fn description_is_whole() -> anyhow::Result<()> {
    let server = Server::start(&[])?;
    let description = Description::of(&server)?;
    let document = &description.0;
    assert_eq!(document["openapi"], "3.1.0");
    let (_, version) = server.get("/version")?;
    assert_eq!(document["info"]["version"], version["version"]);

    let (mut references, mut operations) = (Vec::new(), Vec::new());
    visit_all("", document, &mut |place, value| {
        if let Some(reference) = value.get("$ref").and_then(Value::as_str) {
            description.resolve(value).with_context(|| place.to_owned())?;
            references.push(reference.to_owned());
        }
        // Examples are what they are examples of.
        if let (Some(example), Some(schema)) = (value.get("example"), value.get("schema")) {
            description
                .check_schema(schema, example)
                .with_context(|| place.to_owned())?;
        }
        if let Some(Value::Array(examples)) = value.get("examples") {
            for example in examples {
                description
                    .check_schema(value, example)
                    .with_context(|| place.to_owned())?;
            }
        }
        Ok(())
    })?;
    for (kind, components) in document["components"].as_object().context("no components")? {
        for (name, component) in components.as_object().context("no object")? {
            let reference = format!("#/components/{kind}/{name}");
            // Ways to be known are referred to by their names.
            let is_used = match &**kind {
                "securitySchemes" => document["security"]
                    .as_array()
                    .is_some_and(|ways| ways.iter().any(|way| way.get(name).is_some())),
                _ => references.contains(&reference),
            };
            ensure!(is_used, "{reference} is used nowhere");
            ensure!(
                component["description"].is_string(),
                "{reference} is not described"
            );
            if kind == "schemas" {
                ensure!(draft202012::meta::is_valid(component), "{reference} is no schema");
            }
        }
    }
    let stream = document["paths"]["/capture"]["get"]["description"].as_str();
    ensure!(
        stream.is_some_and(|told| told.contains("send the text message `stop`, upon which it gets")),
        "{stream:?}"
    );
    for (path, item) in document["paths"].as_object().context("no paths")? {
        ensure!(path.starts_with('/'), "{path}");
        let mut parameters = item["parameters"].as_array().cloned().unwrap_or_default();
        for (method, operation) in item.as_object().context("no item")? {
            if method == "parameters" {
                continue;
            }
            ensure!(METHODS.contains(&&**method), "{path}: {method}");
            operations.push(operation["operationId"].as_str().context("no name")?.to_owned());
            parameters.extend(operation["parameters"].as_array().cloned().unwrap_or_default());
            let responses = operation["responses"].as_object().context("no responses")?;
            ensure!(!responses.is_empty(), "{path} has no responses");
            for (status, response) in responses {
                ensure!(
                    status == "default" || status.parse::<u16>().is_ok_and(|status| status >= 100),
                    "{path}: {status}"
                );
                check_response(&description, description.resolve(response)?)
                    .with_context(|| format!("{path}: {status}"))?;
            }
        }
        for parameter in &parameters {
            check_parameter(&description, path, parameter)
                .with_context(|| format!("{path}: {}", parameter["name"]))?;
        }
    }
    let count = operations.len();
    operations.sort();
    operations.dedup();
    assert_eq!(operations.len(), count, "operations have one name");
    Ok(())
}

/// What OpenAPI 3.1 demands of a response (section 4.8.17).
fn check_response(description: &Description, response: &Value) -> anyhow::Result<()> {
    ensure!(response["description"].is_string(), "it is not described");
    for part in ["headers", "content"] {
        let Some(described) = response.get(part) else {
            continue;
        };
        for (name, described) in described.as_object().context("no object")? {
            ensure!(draft202012::meta::is_valid(&described["schema"]), "{name}");
            description.validator(&described["schema"])?;
        }
    }
    Ok(())
}

/// What OpenAPI 3.1 demands of a parameter (section 4.8.12).
fn check_parameter(description: &Description, path: &str, parameter: &Value) -> anyhow::Result<()> {
    ensure!(parameter["description"].is_string(), "it is not described");
    let name = parameter["name"].as_str().context("no name")?;
    match parameter["in"].as_str() {
        Some("path") => {
            ensure!(path.contains(&format!("{{{name}}}")) && parameter["required"] == true);
        }
        Some("query" | "header") => {}
        other => anyhow::bail!("it is in {other:?}"),
    }
    let schema = match (parameter.get("schema"), parameter.get("content")) {
        (Some(schema), None) => schema,
        (None, Some(content)) => &content["application/json"]["schema"],
        _ => anyhow::bail!("it has not one schema"),
    };
    ensure!(draft202012::meta::is_valid(schema), "no schema: {schema}");
    description.validator(schema)?;
    Ok(())
}

#[test]
fn plain_answers_are_described() -> anyhow::Result<()> {
    let server = Server::start(&[])?;
    let description = Description::of(&server)?;
    for path in [
        "/version",
        "/targets",
        "/mobyshark",
        "/discover/mobyshark",
        "/captures",
        "/healthz",
        "/readyz",
        "/openapi.json",
    ] {
        let (head, body) = answered(&server, path, "", 200)?;
        description.check(path, &head, &body).context(path)?;
    }
    for (query, status) in [
        ("expr=tcp", 200),
        ("expr=tcp&linktype=raw", 200),
        ("expr=tcp+tcp", 400),
        ("", 400),
    ] {
        let (head, body) = answered(&server, &format!("/filter?{query}"), "", status)?;
        description.check("/filter", &head, &body).context(query)?;
    }
    for path in ["/nothing", "/discover/nothing"] {
        let (head, body) = answered(&server, path, "", 404)?;
        description.check(path, &head, &body).context(path)?;
    }
    let paths = description.0["paths"].as_object().context("no paths")?;
    for path in paths.keys() {
        let (head, body) = server.ask(&format!("POST {} HTTP/1.1", path.replace(['{', '}'], "")))?;
        ensure!(head.status()? == 405, "{path}: {}", head.line);
        description.check(path, &head, &body).context(path.clone())?;
        // What decides comes once, and a page of another site asks for what everyone may know at most.
        let asked = path.replace(['{', '}'], "");
        let (head, body) = answered(&server, &asked, "\r\nOrigin: x\r\nOrigin: y", 400)?;
        description.check(path, &head, &body).context(path.clone())?;
        if !["/version", "/healthz", "/readyz", "/"].contains(&&path[..]) {
            let (head, body) = answered(&server, &asked, "\r\nSec-Fetch-Site: cross-site", 403)?;
            description.check(path, &head, &body).context(path.clone())?;
        }
    }

    let long = format!("/targets?x={}", "x".repeat(61_500));
    let (head, body) = answered(&server, &long, "", 414)?;
    description.check("/targets", &head, &body)?;
    let (head, body) = answered(&server, "/version", "\r\nContent-Length: 70000", 413)?;
    description.check("/version", &head, &body)?;
    let many: String = (0..200).map(|n| format!("\r\nx{n}: 1")).collect();
    let (head, body) = answered(&server, "/version", &many, 431)?;
    description.check("/version", &head, &body)?;
    check_refusals_of_callers(&description)?;

    // A service that is not there.
    for (flags, status) in [
        (&["--gw-port", "1"][..], 404),
        (&["--gw-port", "1", "--proxy-discovery"], 502),
    ] {
        let server = Server::start(flags)?;
        for path in ["/mobyshark", "/discover/mobyshark", "/nothing"] {
            let (head, body) = answered(&server, path, "", status)?;
            description.check(path, &head, &body).context(path)?;
        }
        let (head, body) = answered(&server, "/targets", "", 200)?;
        description.check("/targets", &head, &body)?;
    }
    let foreign = "\r\nOrigin: http://evil.example\r\nConnection: Upgrade\r\nUpgrade: websocket";
    let server = Server::start(&["--proxy-discovery", "--gw-port", "1"])?;
    let (head, body) = answered(&server, "/mobyshark", foreign, 403)?;
    description.check("/mobyshark", &head, &body)
}

/// Those who are not known, or may not do what they ask for.
fn check_refusals_of_callers(description: &Description) -> anyhow::Result<()> {
    let folder = Folder::new()?;
    let token = "0123456789abcdef";
    let tokens = folder.put_secret("tokens", &format!("admin {token} admin\n"))?;
    let server = Server::start(&["--token-file", tokens.to_str().context("no text")?])?;
    let bearer = format!("\r\nAuthorization: Bearer {token}");
    for path in ["/targets", "/mobyshark", "/capture"] {
        for (headers, status) in [("", 401), (&bearer[..], 403)] {
            let (head, body) = answered(&server, path, headers, status)?;
            description.check(path, &head, &body).context(path)?;
        }
    }
    for path in ["/filter", "/openapi.json", "/nothing"] {
        let (head, body) = answered(&server, path, "", 401)?;
        description.check(path, &head, &body).context(path)?;
    }
    let (head, body) = answered(&server, "/version", "", 200)?;
    description.check("/version", &head, &body)
}

#[test]
fn answers_to_requests_for_captures_are_described() -> anyhow::Result<()> {
    let namespace = Namespace::new()?;
    let netns = namespace.inode()?;
    let query = format!("netns={netns}");
    let no_key = HANDSHAKE
        .split("\r\nSec-WebSocket-Key")
        .next()
        .context("nothing")?;
    let old = HANDSHAKE.replace("13", "8");
    let foreign = format!("{HANDSHAKE}\r\nOrigin: http://evil.example");
    let stale = r#"{"netns":1,"pid":1,"starttime":1}"#;
    let sleeper = Sleeper::unshared()?;
    let mut identity = sleeper.identity()?;
    identity["starttime"] = json!(1);
    let by_header = |target: &str| format!("{HANDSHAKE}\r\nClustershark-Container: {target}");
    let server = Server::start(&[])?;
    let description = Description::of(&server)?;
    let check = |server: &Server, query: &str, headers: &str, status| {
        let (head, body) = answered(server, &format!("/capture?{query}"), headers, status)?;
        description
            .check("/capture", &head, &body)
            .with_context(|| format!("{query}{headers}"))
    };
    check(&server, &query, HANDSHAKE, 101)?;
    check(&server, "", HANDSHAKE, 400)?;
    check(&server, &format!("{query}&filter=tcp+tcp"), HANDSHAKE, 400)?;
    check(&server, "container=web", HANDSHAKE, 400)?;
    check(&server, &query, no_key, 400)?;
    check(&server, &query, &foreign, 403)?;
    check(&server, "netns=1", HANDSHAKE, 404)?;
    check(&server, &format!("{query}&nif=eth7"), HANDSHAKE, 404)?;
    check(&server, "", &by_header(r#"{"name":"nobody"}"#), 404)?;
    check(&server, "", &by_header(stale), 409)?;
    check(&server, "", &by_header(&identity.to_string()), 409)?;
    check(&server, &query, "", 426)?;
    check(&server, &query, &old, 426)?;

    let none = Server::start(&["--max-captures", "0"])?;
    check(&none, &query, HANDSHAKE, 429)?;
    let mut setpriv = Command::new("setpriv");
    setpriv
        .arg("--bounding-set=-sys_admin")
        .arg(program("packetflix")?);
    let weak = Server::start_by(&mut setpriv, &[])?;
    check(&weak, &query, HANDSHAKE, 500)?;
    let lonely = Server::start(&["--discovery-service", "127.0.0.1", "--gw-port", "1"])?;
    check(&lonely, "", &by_header(r#"{"name":"web"}"#), 502)
}

#[test]
fn container_is_described_as_it_is_read() -> anyhow::Result<()> {
    let server = Server::start(&["--max-captures", "0"])?;
    let description = Description::of(&server)?;
    let schema = description.validator(&json!({ "$ref": "#/components/schemas/Container" }))?;
    let mut containers = vec![
        json!({}),
        json!([[]]),
        json!(null),
        json!("web"),
        json!({ "new": [1] }),
    ];
    let described = description.0["components"]["schemas"]["Container"]["properties"]
        .as_object()
        .context("no properties")?;
    for name in described.keys() {
        for value in [
            json!(null),
            json!(""),
            json!("x"),
            json!(0),
            json!(-1),
            json!(4_294_967_295_u32),
            json!(4_294_967_296_u64),
            json!(0.5),
            json!(true),
            json!([]),
            json!(["lo"]),
            json!([null]),
            json!([1]),
            json!({}),
            json!({ "uid": "u", "context": 1 }),
            json!({ "uid": null }),
            json!({ "uid": 1 }),
        ] {
            // That a list is taken for the members of a cluster in their order is promised to nobody.
            if name != "cluster" || !value.is_array() {
                containers.push(json!({ name: value }));
            }
        }
    }
    for container in containers {
        let headers = format!("{HANDSHAKE}\r\nClustershark-Container: {container}");
        let (head, body) = server.ask(&format!("GET /capture HTTP/1.1{headers}"))?;
        let body = String::from_utf8(body)?;
        // What can be read gets as far as the captures that may not run.
        let is_read = head.status()? == 429;
        ensure!(
            is_read || body.contains("no JSON object that describes a target"),
            "{container}: {body}"
        );
        ensure!(is_read == schema.is_valid(&container), "{container}: {body}");
    }
    Ok(())
}

#[test]
fn targets_are_described_strictly() -> anyhow::Result<()> {
    let (namespace, other) = Namespace::pair()?;
    let sleeper = Sleeper::unshared()?;
    let server = Server::start(&["--engine-socket", "/nowhere.sock"])?;
    let description = Description::of(&server)?;
    for (path, list) in [("/targets", "targets"), ("/mobyshark", "containers")] {
        let (head, body) = answered(&server, path, "", 200)?;
        description.check(path, &head, &body)?;
        let answer: Value = serde_json::from_slice(&body)?;
        let place_of = |netns| {
            let targets = answer[list].as_array().context("no targets")?;
            let place = targets.iter().position(|target| target["netns"] == netns);
            place.with_context(|| format!("{netns} is not among them: {answer:#}"))
        };
        let (mounted, process) = (place_of(namespace.inode()?)?, place_of(sleeper.netns()?)?);
        place_of(other.inode()?)?;
        assert_eq!(answer[list][mounted]["type"], "bindmount");
        assert_eq!(answer[list][process]["pid"], sleeper.pid());

        let schema = description.response(path, 200)?["content"]["application/json"]["schema"].clone();
        let schema = description.validator(&schema)?;
        ensure!(schema.is_valid(&answer));
        let is_taken = |change: &dyn Fn(&mut Value)| {
            let mut changed = answer.clone();
            change(&mut changed);
            (changed != answer).then(|| schema.is_valid(&changed))
        };
        for place in [mounted, process] {
            let members = answer[list][place].as_object().context("no target")?.clone();
            for (name, value) in &members {
                let required = !matches!(&**name, "mounts" | "pod" | "container");
                let missing = is_taken(&|answer| {
                    if let Value::Object(target) = &mut answer[list][place] {
                        target.remove(name);
                    }
                });
                assert_eq!(missing, Some(!required), "without {name}");
                let other_type = if value.is_string() { json!(1) } else { json!("1") };
                let wrong = is_taken(&|answer| answer[list][place][name] = other_type.clone());
                assert_eq!(wrong, Some(false), "{name} of another type");
            }
            let extra = is_taken(&|answer| answer[list][place]["extra"] = json!(1));
            assert_eq!(extra, Some(false));
        }
        assert_eq!(is_taken(&|answer| answer["extra"] = json!(1)), Some(false));
        assert_eq!(is_taken(&|answer| answer[list] = json!({})), Some(false));
        if path == "/targets" {
            ensure!(
                answer["engines"].to_string().contains("it cannot be opened"),
                "{answer:#}"
            );
            let interfaces = |answer: &Value| answer["targets"][mounted]["network-interfaces"].clone();
            let names: Vec<Value> = interfaces(&answer)
                .as_array()
                .context("no interfaces")?
                .iter()
                .map(|interface| interface["name"].clone())
                .collect();
            ensure!(names.contains(&json!("va")), "{names:?}");
            for (member, value) in [("mac", "00-11"), ("state", "maybe"), ("extra", "")] {
                let changed = is_taken(&|answer| {
                    answer["targets"][mounted]["network-interfaces"][0][member] = json!(value);
                });
                assert_eq!(changed, Some(false), "{member}");
            }
        }
    }
    Ok(())
}

#[test]
fn path_that_is_not_utf8_is_listed_all_the_same() -> anyhow::Result<()> {
    let script = "mount -t tmpfs none /mnt && file=$(printf '/mnt/a\\377b') && touch \"$file\" && \
                  unshare --net=\"$file\" true && stat -Lc %i \"$file\" && exec sleep 60";
    let (mut process, line) = script_in(&["--mount"], script)?;
    let netns: u64 = line.parse()?;
    let server = Server::start(&[])?;
    let description = Description::of(&server)?;
    let listed = answered(&server, "/targets", "", 200);
    process.kill()?;
    process.wait()?;
    let (head, body) = listed?;
    description.check("/targets", &head, &body)?;
    let answer: Value = serde_json::from_slice(&body)?;
    let mut targets = answer["targets"].as_array().context("no targets")?.iter();
    let target = targets
        .find(|target| target["netns"] == netns)
        .context("not listed")?;
    assert_eq!(target["mounts"], json!(["/mnt/a\u{fffd}b"]));
    assert_eq!(target["name"], "/mnt/a\u{fffd}b");
    Ok(())
}
