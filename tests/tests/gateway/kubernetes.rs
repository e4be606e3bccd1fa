//! At a gateway, rights of Kubernetes hold where they reach to all nodes.

use anyhow::ensure;
use packetflix_tests::{
    client::{Capture, Refused},
    kubernetes::{ApiServer, OWN_TOKEN, Rule},
    namespace::Namespace,
    server::percent_encoded,
};
use serde_json::json;

use super::Cluster;

#[tokio::test]
async fn who_has_rights_to_all_nodes_is_let_in() -> anyhow::Result<()> {
    let cluster = Cluster::start(&["n1"])?;
    let api = ApiServer::start(None)?;
    let own = cluster.folder.put_secret("own", OWN_TOKEN)?;
    let gateway = cluster.gateway(&[
        "--kubernetes-auth",
        &format!("--kubernetes-api=http://127.0.0.1:{}", api.port()),
        &format!("--kubernetes-token-file={}", own.display()),
    ])?;
    let may = |user, verb, resource, namespace| Rule {
        user,
        verb,
        resource,
        namespace,
        name: "",
    };
    api.set_rules(&[
        may("alice", "get", "nodes", ""),
        may("alice", "create", "nodes", ""),
        // The nodes would tell the gateway of all that there is.
        may("frank", "create", "nodes", ""),
        // What pods there are on nodes is not known here.
        may("bob", "get", "pods", ""),
        may("bob", "create", "pods", ""),
        may("carol", "get", "pods", "shop"),
        // Of one node alone.
        Rule {
            name: "n1",
            ..may("dave", "get", "nodes", "")
        },
    ]);
    for (user, expected) in [
        ("alice", 200),
        ("bob", 403),
        ("carol", 403),
        ("dave", 403),
        ("erin", 403),
    ] {
        let token = format!("token-of-{user}");
        api.let_in(&token, user);
        for path in ["/targets", "/mobyshark", "/metrics"] {
            let (head, body) =
                gateway.ask(&format!("GET {path} HTTP/1.1\r\nAuthorization: Bearer {token}"))?;
            let body = String::from_utf8_lossy(&body);
            ensure!(head.status()? == expected, "{user}, {path}: {} {body}", head.line);
        }
    }
    api.let_in("token-of-frank", "frank");
    let namespace = Namespace::new()?;
    let name = namespace.path().display().to_string();
    let described = percent_encoded(&json!({ "name": name, "node-name": "n1" }).to_string());
    for query in [format!("container={described}"), "target=**".to_owned()] {
        for (user, expected) in [("alice", None), ("frank", Some(403)), ("erin", Some(403))] {
            let bearer = format!("Bearer token-of-{user}");
            let url = gateway.url(&query);
            let refused = match Capture::open(&url, &[("authorization", &bearer)]).await {
                Ok(mut capture) => {
                    capture.close().await?;
                    None
                }
                Err(error) => Some(error.downcast::<Refused>()?.status),
            };
            ensure!(refused == expected, "{user}, {query}: {refused:?}");
        }
    }
    let (head, _) = gateway.ask("GET /targets HTTP/1.1\r\nAuthorization: Bearer token-of-nobody")?;
    ensure!(head.status()? == 401);
    Ok(())
}
