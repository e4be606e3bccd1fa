//! TLS, and the certificates of clients.

use std::{
    fs,
    path::Path,
    process::Command,
    time::{Duration, Instant},
};

use anyhow::{Context as _, ensure};
use packetflix_tests::{
    certificates::{Authority, Identity, Trust},
    client::{Capture, Recorder, Refused},
    folder::Folder,
    namespace::{Namespace, output_of},
    server::{Server, program},
};

use serde_json::{Value, json};

use crate::{bearer, curl, sentence, server_with};

const ALICE: &str = "alice-0123456789abcdef";

fn text(path: &Path) -> anyhow::Result<&str> {
    path.to_str().context("no text")
}

/// Asks over TLS for a path, with a client certificate and more arguments.
fn get(
    server: &Server,
    path: &str,
    authority: &Authority,
    own: Option<&Identity>,
    more: &[&str],
) -> anyhow::Result<(u16, String)> {
    let url = format!("https://localhost:{}{path}", server.port());
    let mut arguments = vec!["--cacert", text(authority.certificate())?, "--ipv4", &url];
    if let Some(own) = own {
        arguments.extend(["--cert", text(&own.certificate)?, "--key", text(&own.key)?]);
    }
    curl(&[&arguments[..], more].concat())
}

/// Flags for a server with this identity, which lets in by the authority's certificates.
fn tls<'a>(own: &'a Identity, authority: &'a Authority) -> anyhow::Result<[&'a str; 6]> {
    Ok([
        "--tls-cert",
        text(&own.certificate)?,
        "--tls-key",
        text(&own.key)?,
        "--tls-client-ca",
        text(authority.certificate())?,
    ])
}

#[tokio::test]
async fn certificates_let_in() -> anyhow::Result<()> {
    let namespace = Namespace::new()?;
    let folder = Folder::new()?;
    let authority = Authority::new(folder.path(), "authority")?;
    let foreign = Authority::new(folder.path(), "foreign")?;
    let own = authority.issue("server", "/CN=localhost")?;
    let carol = authority.issue("carol", "/O=tests/CN=carol")?;
    let eve = authority.issue("eve", "/CN=eve")?;
    let stranger = foreign.issue("stranger", "/CN=carol")?;
    let tokens = folder.put_secret("tokens", &format!("alice {ALICE}\neve cert discover\n"))?;
    let server = server_with(&tokens, &tls(&own, &authority)?)?;
    ensure!(server.log().contains("tls=true"), "{}", server.log());
    ensure!(!server.log().contains("NOBODY IS ASKED"), "{}", server.log());

    let (status, body) = get(&server, "/targets", &authority, None, &[])?;
    ensure!(
        status == 401 && sentence(&body)?.contains("a token or a client certificate"),
        "{body}"
    );
    assert_eq!(get(&server, "/version", &authority, None, &[])?.0, 200);
    assert_eq!(
        get(&server, "/targets", &authority, None, &["--oauth2-bearer", ALICE])?.0,
        200
    );
    assert_eq!(
        get(&server, "/targets", &authority, None, &["--tls-max", "1.2"])?.0,
        401
    );
    for client in [&carol, &eve] {
        assert_eq!(get(&server, "/targets", &authority, Some(client), &[])?.0, 200);
        // A wrong token is not made good by a certificate.
        assert_eq!(
            get(
                &server,
                "/targets",
                &authority,
                Some(client),
                &["--oauth2-bearer", "x"]
            )?
            .0,
            401
        );
    }
    let error = get(&server, "/version", &authority, Some(&stranger), &[]).unwrap_err();
    ensure!(error.to_string().contains("curl"), "{error}");
    let error = get(&server, "/version", &foreign, None, &[]).unwrap_err();
    ensure!(error.to_string().contains("certificate"), "{error}");
    ensure!(server.get("/version").is_err(), "it speaks without TLS");
    // Whoever looks whether it lives has no certificate.
    let mut live = Command::new(program("packetflix")?);
    live.args([
        "check",
        "--live",
        "--listen",
        &format!("127.0.0.1:{}", server.port()),
    ]);
    output_of(live.args(tls(&own, &authority)?))?;

    let url = format!(
        "wss://127.0.0.1:{}/capture?netns={}",
        server.port(),
        namespace.inode()?
    );
    let trust = |own| Trust::new(authority.certificate(), own);
    for (own, headers, status) in [
        (None, &[][..], 401),
        (None, &[("authorization", &bearer(ALICE)[..])][..], 101),
        (Some(&carol), &[], 101),
        (Some(&eve), &[], 403),
    ] {
        match Capture::open_encrypted(&url, &trust(own)?, headers).await {
            Ok(capture) => {
                assert_eq!(status, 101);
                Recorder::of(capture).await?.finish().await?;
            }
            Err(error) => assert_eq!(error.downcast::<Refused>()?.status, status),
        }
    }
    server.wait_for_log("caller=\"carol\"")
}

#[test]
fn certificates_of_any_name_are_told_apart() -> anyhow::Result<()> {
    let folder = Folder::new()?;
    let authority = Authority::new(folder.path(), "authority")?;
    let own = authority.issue("server", "/CN=localhost")?;
    let lines = "\"Alice Example\" cert discover\n\"#root\" cert admin\n* cert none\n";
    let tokens = folder.put_secret("tokens", lines)?;
    let files = [
        format!("--tls-cert={}", own.certificate.display()),
        format!("--tls-key={}", own.key.display()),
        format!("--tls-client-ca={}", authority.certificate().display()),
    ];
    let server = server_with(&tokens, &files.each_ref().map(String::as_str))?;
    for (file, name, shown, targets, captures) in [
        ("alice", "Alice Example", "Alice Example", 200, 403),
        ("root", "#root", "#root", 403, 200),
        ("bob", "Bob Example", "Bob Example", 403, 403),
        // A mark that reorders the text around it.
        ("eve", "x\u{202e}eve", "unnamed", 403, 403),
    ] {
        let client = authority.issue(file, &format!("/CN={name}"))?;
        for (path, wanted, right) in [
            ("/targets", targets, "discover targets"),
            ("/captures", captures, "administer the service"),
        ] {
            let (status, body) = get(&server, path, &authority, Some(&client), &[])?;
            assert_eq!(status, wanted, "{name} {path} {body}");
            if wanted == 403 {
                assert_eq!(sentence(&body)?, format!("{shown} may not {right}"));
            }
        }
    }
    Ok(())
}

#[test]
fn certificate_and_token_of_one_name_are_told_apart() -> anyhow::Result<()> {
    let folder = Folder::new()?;
    let authority = Authority::new(folder.path(), "authority")?;
    let own = authority.issue("server", "/CN=localhost")?;
    let alice = authority.issue("alice", "/CN=alice")?;
    let tokens = folder.put_secret("tokens", &format!("alice {ALICE}\n"))?;
    let account = folder.file("account");
    let more = ["--audit-log", text(&account)?];
    let server = server_with(&tokens, &[&tls(&own, &authority)?[..], &more].concat())?;
    let token = format!("Authorization: {}", bearer(ALICE));
    for headers in [&[][..], &["--header", &token]] {
        let (status, body) = get(&server, "/captures", &authority, Some(&alice), headers)?;
        ensure!(status == 403, "{status} {body}");
    }
    let lines = fs::read_to_string(&account)?;
    let lines = lines.lines().map(serde_json::from_str::<Value>);
    let refused = lines.filter(|line| {
        line.as_ref()
            .is_ok_and(|line| line["message"] == "request refused")
    });
    let told: Vec<(Value, Value)> = refused
        .map(|line| line.map(|line| (line["client"].clone(), line["client_type"].clone())))
        .collect::<Result<_, _>>()?;
    let of = |kind: &str| (json!("alice"), json!(kind));
    assert_eq!(told, [of("certificate"), of("token")]);
    Ok(())
}

/// Certificates of nobody's CA, which could all have issued one another, would be tried in every order.
#[tokio::test]
async fn chains_that_take_long_to_verify_are_refused_unverified() -> anyhow::Result<()> {
    let folder = Folder::new()?;
    let authority = Authority::new(folder.path(), "authority")?;
    let foreign = Authority::new(folder.path(), "foreign")?;
    let own = authority.issue("server", "/CN=localhost")?;
    let carol = authority.issue("carol", "/CN=carol")?;
    let mallory = foreign.issue("mallory", "/CN=mallory")?;
    let tokens = folder.put_secret("tokens", &format!("alice {ALICE}\n"))?;
    let server = server_with(&tokens, &[&tls(&own, &authority)?[..], &["--debug"]].concat())?;
    let with = |who: &Identity, others: &[&Path]| {
        let mut chain = fs::read(&who.certificate)?;
        for other in others {
            chain.extend(fs::read(other)?);
        }
        let name = format!("chain-of-{}", others.len());
        anyhow::Ok(Identity {
            certificate: folder.put_secret(&name, str::from_utf8(&chain)?)?,
            key: who.key.clone(),
        })
    };
    let same: Vec<Authority> = (0..8)
        .map(|number| {
            let place = folder.path().join(number.to_string());
            fs::create_dir(&place)?;
            Authority::new(&place, "foreign")
        })
        .collect::<anyhow::Result<_>>()?;
    let mut others: Vec<&Path> = same.iter().map(Authority::certificate).collect();
    others.extend([&*own.certificate; 100]);
    for (who, others, words) in [
        (&mallory, &others[..], "this one showed 109"),
        // Who is trusted is no reason to look at them.
        (&carol, &others[..9], "this one showed 10"),
        (&mallory, &others[..7], "are of one subject"),
    ] {
        let chain = with(who, others)?;
        let begun = Instant::now();
        let error = get(&server, "/version", &authority, Some(&chain), &[]).unwrap_err();
        ensure!(error.to_string().contains("curl"), "{error}");
        server.wait_for_log(words)?;
        ensure!(begun.elapsed() < Duration::from_secs(3), "{:?}", begun.elapsed());
    }
    let usual = with(&carol, &[authority.certificate()])?;
    assert_eq!(get(&server, "/targets", &authority, Some(&usual), &[])?.0, 200);
    Ok(())
}
