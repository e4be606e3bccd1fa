//! Filters become what tcpdump makes of them on an interface, and nothing that a filter says does harm.

use std::{
    fs,
    io::Write as _,
    net::Ipv4Addr,
    os::unix::fs::PermissionsExt as _,
    path::Path,
    process::{Command, Stdio},
    sync::Arc,
    time::{Duration, Instant},
};

use anyhow::{Context as _, bail, ensure};
use futures_util::future::join_all;
use packetflix::{
    filter::compile::{CompileError, Compiler, LookUpError, MAX_LEN, Options},
    pcapng::LinkType,
};
use packetflix_filter::classic::Instruction;
use packetflix_tests::{namespace::Namespace, process::is_confined, server::program};

/// What tcpdump says that the netmask is.
const NETMASK: Ipv4Addr = Ipv4Addr::UNSPECIFIED;

fn options() -> anyhow::Result<Options> {
    Ok(Options {
        program: program("packetflix")?,
        netmask: Some(NETMASK),
        ..Options::default()
    })
}

/// What a compiler makes of it that has compiled nothing yet.
async fn compile(
    expression: &str,
    link_type: LinkType,
    options: &Options,
) -> Result<Vec<Instruction>, CompileError> {
    let compiler = Compiler::new(options.clone());
    compiler.compile(expression, link_type, &"".into()).await
}

/// What tcpdump makes of it on an interface: the program, or libpcap's sentence.
fn tcpdump(
    namespace: &Namespace,
    interface: &str,
    expression: &str,
) -> anyhow::Result<Result<Vec<Instruction>, String>> {
    let output = namespace
        .command("tcpdump")
        .args(["-ddd", "-i", interface, expression])
        .output()?;
    if !output.status.success() {
        let said = String::from_utf8(output.stderr)?;
        let sentence = said.lines().find_map(|line| line.strip_prefix("tcpdump: "));
        // What tcpdump says before is about warnings.
        return Ok(Err(sentence.context(said.clone())?.to_owned()));
    }
    let text = String::from_utf8(output.stdout)?;
    let mut lines = text.lines();
    let count: usize = lines.next().context("no number of instructions")?.parse()?;
    let program = lines
        .map(|line| {
            let numbers: Vec<u32> = line.split(' ').map(str::parse).collect::<Result<_, _>>()?;
            let [code, jt, jf, k] = numbers[..] else {
                bail!("{line}")
            };
            Ok(Instruction {
                code: code.try_into()?,
                jt: jt.try_into()?,
                jf: jf.try_into()?,
                k,
            })
        })
        .collect::<anyhow::Result<Vec<_>>>()?;
    ensure!(program.len() == count);
    Ok(Ok(program))
}

/// Expressions in which nothing has to be looked up: some are refused for one link type, some for both.
const EXPRESSIONS: &[&str] = &[
    "",
    "ip",
    "ip6",
    "arp or rarp",
    "tcp",
    "udp or sctp",
    "icmp",
    "icmp6",
    "igmp or pim or vrrp or carp or ah or esp or igrp",
    "stp or ipx or netbeui or atalk or aarp or decnet or lat or sca or moprc or mopdl",
    "iso or esis or isis or clnp or l1 or l2 or iih or lsp or snp or csnp or psnp",
    "host 10.0.0.1",
    "not host 10.0.0.1",
    "src host 10.0.0.1 and dst host 10.0.0.2",
    "ip host 10.0.0.1 or arp host 10.0.0.1",
    "host fe80::1",
    "ip6 src 2001:db8::1",
    "host ::ffff:1.2.3.4",
    "net 10",
    "net 10.1 or 10.2",
    "src net 192.168.0.0/16",
    "net 192.168.0.0 mask 255.255.0.0",
    "ip6 net 2001:db8::/32",
    "net 10.0.0.1/8",
    "port 80",
    "port 0x50",
    "tcp port 80 or 443",
    "tcp src port 80 and udp dst port 53",
    "portrange 80-90",
    "udp portrange 1000-2000 or 3000-4000",
    "tcp portrange 90-80",
    "tcp[tcpflags] & (tcp-syn|tcp-fin) != 0",
    "tcp port 80 and (((ip[2:2] - ((ip[0]&0xf)<<2)) - ((tcp[12]&0xf0)>>2)) != 0)",
    "icmp[icmptype] != icmp-echo and icmp[icmptype] != icmp-echoreply",
    "icmp6[icmp6type] = icmp6-neighborsolicit",
    "ip[6:2] & 0x1fff = 0",
    "ip[0] % 3 = 1 and ip[1] ^ 5 > 2 and ip[2] * 2 / 3 < 9",
    "ip[ip[0]] = 5",
    "link[0] = 1",
    "len > 100",
    "less 100 or greater 1000",
    "byte 0 = 5",
    "ip proto 6",
    "ip proto \\tcp",
    "ip proto \\ip or \\icmp or \\igmp or \\udp or \\esp or \\ah or \\pim or \\vrrp or \\sctp",
    "ip6 proto \\udp",
    "proto \\tcp",
    "ip proto (\\tcp)",
    "ip proto not \\tcp",
    "ip6 proto 58 and not (proto \\udp or \\tcp)",
    "udp proto \\tcp",
    "ether proto 0x88cc",
    "ether proto \\ip",
    "ether proto \\arp or \\ip6 or loopback",
    "ether proto \\stp or \\ipx or \\netbeui",
    "iso proto \\clnp",
    "ether host 00:11:22:33:44:55",
    "ether src 0-1-2-3-4-5 or ether dst aabb.ccdd.eeff",
    "ether host aabbccddeeff",
    "ether[0] & 1 = 1",
    "broadcast",
    "ether broadcast",
    "ip broadcast",
    "multicast",
    "ip multicast or ip6 multicast",
    "inbound",
    "outbound",
    "inbound and tcp port 80",
    "ifindex 7",
    "vlan",
    "vlan 5",
    "not vlan",
    "vlan 5 and ip",
    "vlan and vlan 7",
    "vlan 5 and vlan 7 and tcp port 80",
    "ip or vlan or (vlan and host 10.0.0.1)",
    "vlan and inbound",
    "ether host 00:11:22:33:44:55 and vlan 9 and ip6",
    "mpls",
    "mpls 100000 and mpls 1024",
    "mpls and host 10.0.0.1",
    "vlan and mpls 3",
    "pppoed",
    "pppoes 0x27 and ip",
    "vlan and pppoes",
    "geneve",
    "geneve 0xb and ip",
    "vlan and geneve 3 and tcp",
    "llc",
    "llc ui or llc rnr or llc s",
    "llc nonsense",
    "decnet host 10.15",
    "atalk host $AA",
    "wlan type mgt subtype beacon",
    "type data",
    "dir nods",
    "radio[0] = 1",
    "on en0",
    "ruleset x",
    "vpi 5",
    "fisu",
    "gateway 10.0.0.1",
    "host 10.0.0.256",
    "host 1:2:3",
    "ether host 1:2:3",
    "net 10.0.0.1/33",
    "port 65536",
    "port 99999999999",
    "portrange 5",
    "tcp and",
    "tcp tcp",
    "tcp port",
    "(tcp",
    "tcp)",
    "ip[0",
    "ip[0:3] = 1",
    "tcp port 80 port 90",
    "ip proto tcp",
    "host tcp",
    "1 = 2",
    "1/0 = 1",
    "#",
    "\"tcp\"",
    "tcp && § 5",
    "ether proto \\nonsense",
    "vlan 5000",
];

#[tokio::test]
async fn ethernet_is_what_tcpdump_makes_of_it() -> anyhow::Result<()> {
    let (here, _there) = Namespace::pair()?;
    same_as_tcpdump(&here, "va", LinkType::Ethernet, 85).await
}

#[tokio::test]
async fn raw_is_what_tcpdump_makes_of_it() -> anyhow::Result<()> {
    let namespace = Namespace::new()?;
    namespace.ip(&["tuntap", "add", "mode", "tun", "dev", "t0"])?;
    namespace.ip(&["address", "add", "10.9.1.1/24", "dev", "t0"])?;
    namespace.ip(&["link", "set", "t0", "up"])?;
    same_as_tcpdump(&namespace, "t0", LinkType::Raw, 50).await
}

async fn same_as_tcpdump(
    namespace: &Namespace,
    interface: &str,
    link_type: LinkType,
    at_least: usize,
) -> anyhow::Result<()> {
    let options = options()?;
    let mut compiled = 0;
    for expression in EXPRESSIONS {
        let beside = tcpdump(namespace, interface, expression)?;
        match (compile(expression, link_type, &options).await, beside) {
            (Ok(ours), Ok(theirs)) => {
                ensure!(ours == theirs, "{expression}: {ours:?} is not {theirs:?}");
                compiled += 1;
            }
            (Err(CompileError::Syntax { message, .. }), Err(sentence)) => {
                ensure!(message == sentence, "{expression}: {message} is not {sentence}");
            }
            (ours, theirs) => bail!("{expression}: {ours:?} is not {theirs:?}"),
        }
    }
    ensure!(compiled >= at_least, "only {compiled} were compiled");
    Ok(())
}

#[tokio::test]
async fn loopback_is_ethernet() -> anyhow::Result<()> {
    let namespace = Namespace::new()?;
    for expression in ["vlan 5 and tcp", "outbound and ether src 0:0:0:0:0:0"] {
        let beside = tcpdump(&namespace, "lo", expression)?;
        let ours = compile(expression, LinkType::Ethernet, &options()?).await?;
        ensure!(Ok(ours) == beside, "{expression}");
    }
    Ok(())
}

#[tokio::test]
async fn netmask_is_asked_for() -> anyhow::Result<()> {
    let without = Options {
        netmask: None,
        ..options()?
    };
    let error = compile("ip broadcast", LinkType::Ethernet, &without)
        .await
        .unwrap_err();
    ensure!(
        error.to_string() == "filter \"ip broadcast\": netmask not known, so 'ip broadcast' not supported",
        "{error}"
    );
    Ok(())
}

#[tokio::test]
async fn names_are_looked_up_only_when_told() -> anyhow::Result<()> {
    let (here, _there) = Namespace::pair()?;
    let told = Options {
        resolve_names: true,
        ..options()?
    };
    for expression in ["host localhost", "port ssh", "vlan and tcp port domain"] {
        let error = compile(expression, LinkType::Ethernet, &options()?)
            .await
            .unwrap_err();
        ensure!(
            matches!(error, CompileError::Name { .. }),
            "{expression}: {error}"
        );
        ensure!(error.to_string().contains("--resolve-filter-names"), "{error}");
        let ours = compile(expression, LinkType::Ethernet, &told).await?;
        ensure!(Ok(ours) == tcpdump(&here, "va", expression)?, "{expression}");
    }
    let unknown = compile("host does-not-exist.invalid", LinkType::Raw, &told).await;
    ensure!(
        matches!(
            unknown,
            Err(CompileError::Syntax { .. } | CompileError::LookUp(LookUpError::Timeout))
        ),
        "{unknown:?}"
    );
    Ok(())
}

/// A process that is to look names up, and waits for them.
fn resolver() -> anyhow::Result<std::process::Child> {
    Ok(Command::new(program("packetflix")?)
        .arg("look-filter-names-up")
        .env_clear()
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()?)
}

#[test]
fn names_are_looked_up_by_a_process_without_rights() -> anyhow::Result<()> {
    let mut child = resolver()?;
    let folder = Path::new("/proc").join(child.id().to_string());
    is_confined(&folder)?;
    assert_eq!(fs::read_to_string(folder.join("oom_score_adj"))?.trim(), "1000");
    ensure!(fs::read(folder.join("environ"))?.is_empty());
    assert_eq!(fs::read_dir(folder.join("fd"))?.count(), 3);
    let mut input = child.stdin.take().context("no input")?;
    input.write_all(
        br#"[{"kind":"Host","name":"127.0.0.9"},{"kind":"Port","name":"ssh"},{"kind":"Host","name":"."}]"#,
    )?;
    drop(input);
    let answer = String::from_utf8(child.wait_with_output()?.stdout)?;
    let expected = r#"{"Found":[{"Addresses":["127.0.0.9"]},{"Port":{"tcp":22,"udp":null}},"Nothing"]}"#;
    ensure!(answer == expected, "{answer}");
    Ok(())
}

#[tokio::test]
async fn the_compiler_is_confined_whether_names_are_looked_up_or_not() -> anyhow::Result<()> {
    // It stands in for our program, and tells what it was started for.
    let folder = packetflix_tests::folder::Folder::new()?;
    let (script, told) = (folder.file("program"), folder.file("told"));
    let real = program("packetflix")?;
    let text = format!(
        "#!/bin/sh\necho \"$*\" >> {}\nexec {} \"$@\"\n",
        told.display(),
        real.display()
    );
    fs::write(&script, text)?;
    fs::set_permissions(&script, fs::Permissions::from_mode(0o755))?;
    let options = Options {
        resolve_names: true,
        program: script,
        ..options()?
    };
    compile("host localhost and vlan", LinkType::Ethernet, &options).await?;
    let told = fs::read_to_string(told)?;
    let orders: Vec<&str> = told.lines().collect();
    assert_eq!(orders, ["look-filter-names-up", "compile-filter ethernet true 0"]);
    Ok(())
}

#[tokio::test]
async fn one_account_keeps_no_other_waiting() -> anyhow::Result<()> {
    // Each takes its time, and they are different, so that none is known already.
    let slow = |number: usize| {
        let hosts: Vec<String> = (0..150)
            .map(|host| format!("host 10.{number}.{}.{}", host / 250, host % 250))
            .collect();
        hosts.join(" or ")
    };
    let compiler = Arc::new(Compiler::new(options()?));
    let [greedy, other] = ["greedy", "other"].map(Arc::<str>::from);
    let mut many: Vec<_> = (0..40)
        .map(|number| {
            let (compiler, greedy) = (Arc::clone(&compiler), Arc::clone(&greedy));
            tokio::spawn(async move { compiler.compile(&slow(number), LinkType::Ethernet, &greedy).await })
        })
        .collect();
    tokio::time::sleep(Duration::from_millis(300)).await;
    let begun = Instant::now();
    compiler
        .compile("tcp port 80 and host 10.0.0.77", LinkType::Ethernet, &other)
        .await?;
    ensure!(begun.elapsed() < Duration::from_secs(8), "{:?}", begun.elapsed());
    let first = many.remove(0).await?;
    many.into_iter().for_each(|one| one.abort());

    // What is known takes no time.
    ensure!(first.is_ok(), "{first:?}");
    let begun = Instant::now();
    let again = compiler.compile(&slow(0), LinkType::Ethernet, &greedy).await?;
    ensure!(
        begun.elapsed() < Duration::from_millis(200),
        "{:?}",
        begun.elapsed()
    );
    assert_eq!(again, first?);
    Ok(())
}

/// The compiler itself, asked for something that the server would not have it compile.
#[test]
fn compiler_looks_nothing_up() -> anyhow::Result<()> {
    for vlan in ["true", "false"] {
        let mut child = compiler(vlan)?;
        child
            .stdin
            .take()
            .context("no input")?
            .write_all(b"host localhost or port ssh or ip proto \\tcp")?;
        let answer = String::from_utf8(child.wait_with_output()?.stdout)?;
        ensure!(answer == r#"{"Refused":"unknown host 'localhost'"}"#, "{answer}");
    }
    Ok(())
}

#[test]
fn compiler_has_no_rights() -> anyhow::Result<()> {
    for vlan in ["true", "false"] {
        let mut child = compiler(vlan)?;
        let folder = Path::new("/proc").join(child.id().to_string());
        let status = is_confined(&folder)?;
        ensure!(status.lines().any(|line| line == "Threads:\t1"), "{status}");
        let limits = fs::read_to_string(folder.join("limits"))?;
        for (resource, bound) in [
            ("Max cpu time", "5"),
            ("Max open files", "0"),
            ("Max processes", "0"),
            ("Max file size", "0"),
            ("Max core file size", "0"),
        ] {
            let line = limits.lines().find_map(|line| line.strip_prefix(resource));
            let soft = line.and_then(|line| line.split_whitespace().next());
            ensure!(soft == Some(bound), "{resource}: {limits}");
        }
        let space = limits
            .lines()
            .find_map(|line| line.strip_prefix("Max address space"));
        let space: u64 = space
            .context("no bound")?
            .split_whitespace()
            .next()
            .context("none")?
            .parse()?;
        let used = status.lines().find_map(|line| line.strip_prefix("VmSize:"));
        let used: u64 = used.context("no size")?.trim().trim_end_matches(" kB").parse()?;
        ensure!(space <= (used << 10) + (128 << 20), "{space} of {used} KiB");
        assert_eq!(fs::read_to_string(folder.join("oom_score_adj"))?.trim(), "1000");
        ensure!(fs::read(folder.join("environ"))?.is_empty());
        // Input, output and errors; with VLAN tags, what libpcap captures with in a namespace of its own as well.
        let descriptors = fs::read_dir(folder.join("fd"))?.count();
        ensure!(
            descriptors == if vlan == "true" { 5 } else { 3 },
            "{descriptors} descriptors"
        );
        let namespace = |process: &Path| fs::read_link(process.join("ns/net"));
        let own = namespace(&folder)? != namespace(Path::new("/proc/self"))?;
        ensure!(own == (vlan == "true"));
        child.kill()?;
        child.wait()?;
    }
    Ok(())
}

/// A process that compiles for Ethernet, and waits for its expression.
fn compiler(vlan: &str) -> anyhow::Result<std::process::Child> {
    Ok(Command::new(program("packetflix")?)
        .args(["compile-filter", "ethernet", vlan, "4294967295"])
        .env_clear()
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()?)
}

#[test]
fn who_may_make_no_namespace_is_told() -> anyhow::Result<()> {
    // Where everyone may execute it.
    let copy = std::env::temp_dir().join(format!("packetflix-compile-{}", std::process::id()));
    fs::copy(program("packetflix")?, &copy)?;
    let output = Command::new("setpriv")
        .args(["--reuid=65534", "--regid=65534", "--clear-groups"])
        .arg(&copy)
        .args(["compile-filter", "ethernet", "true", "4294967295"])
        .stdin(Stdio::null())
        .output();
    fs::remove_file(copy)?;
    let answer = String::from_utf8(output?.stdout)?;
    ensure!(answer.contains(r#""needs":"SysAdmin""#), "{answer}");
    Ok(())
}

#[tokio::test]
async fn hostile_expressions_end() -> anyhow::Result<()> {
    let before = held();
    let many = |part: &str, between: &str, count| vec![part; count].join(between);
    let sums: Vec<String> = (0..6000).map(|at| format!("ip[{at}]")).collect();
    let hosts: Vec<String> = (0..4000)
        .map(|at| format!("host 1.1.{}.{}", at / 250, at % 250))
        .collect();
    let ports: Vec<String> = (1..5000).map(|port| format!("port {port}")).collect();
    for expression in [
        "(".repeat(MAX_LEN),
        format!("{}tcp{}", "(".repeat(32_000), ")".repeat(32_000)),
        "!".repeat(MAX_LEN - 3) + "tcp",
        "not ".repeat(16_000) + "tcp",
        many("1", " or ", 13_000),
        many("ip", " or ", 10_000),
        many("vlan", " and ", 7000),
        many("tcp", "||", 13_000),
        "port 1 or ".to_owned() + &many("2", " and ", 10_000),
        format!("{}0{}=1", "ip[".repeat(16_000), "]".repeat(16_000)),
        format!("{}1=1", "-".repeat(60_000)),
        format!("len={}", sums.join("+")),
        hosts.join(" or "),
        ports.join(" or "),
        "9".repeat(MAX_LEN),
        ":".repeat(MAX_LEN),
        "tcp\0".to_owned(),
        "\u{10ffff}".repeat(10_000),
    ] {
        let start = Instant::now();
        let result = compile(&expression, LinkType::Ethernet, &options()?).await;
        let took = start.elapsed();
        let beginning: String = expression.chars().take(20).collect();
        if let Err(error) = result {
            let sentence = error.to_string();
            // The expression is in it once, and cut off.
            ensure!(sentence.len() < 2000, "{sentence}");
            ensure!(
                matches!(
                    error,
                    CompileError::Syntax { .. }
                        | CompileError::Timeout
                        | CompileError::TooManyInstructions(_)
                        | CompileError::TooLong(_)
                        | CompileError::Memory(_)
                ),
                "{beginning}: {error:?}"
            );
        }
        ensure!(took < Duration::from_secs(12), "{beginning}: {took:?}");
    }
    let long = compile(&" ".repeat(MAX_LEN + 1), LinkType::Raw, &options()?).await;
    ensure!(matches!(long, Err(CompileError::TooLong(_))));
    nothing_is_left(before)
}

#[tokio::test]
async fn many_at_once() -> anyhow::Result<()> {
    let before = held();
    let compiler = Compiler::new(options()?);
    let account = "".into();
    let all = (0..50).map(|number| {
        let (compiler, account) = (&compiler, &account);
        async move {
            let expression = if number % 2 == 0 {
                "vlan 5 and tcp"
            } else {
                "tcp port 80"
            };
            let program = compiler.compile(expression, LinkType::Ethernet, account).await?;
            anyhow::Ok((expression, program))
        }
    });
    let mut programs = Vec::new();
    for result in join_all(all).await {
        programs.push(result?);
    }
    for (expression, program) in &programs {
        let first = programs.iter().find(|(other, _)| other == expression);
        ensure!(first.is_some_and(|(_, first)| first == program));
    }
    nothing_is_left(before)
}

#[tokio::test]
async fn given_up_ones_end() -> anyhow::Result<()> {
    let before = held();
    let options = options()?;
    // Takes all the time that it may.
    let sums: Vec<String> = (0..6000).map(|at| format!("ip[{at}]")).collect();
    let long = format!("len={}", sums.join("+"));
    for milliseconds in [0, 1, 5, 20, 100] {
        let patience = Duration::from_millis(milliseconds);
        for expression in ["vlan", &long] {
            let _ = tokio::time::timeout(patience, compile(expression, LinkType::Ethernet, &options)).await;
        }
    }
    // The runtime takes notice of ended processes when it runs.
    for _ in 0..500 {
        if held() == before {
            return Ok(());
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    nothing_is_left(before)
}

#[tokio::test]
async fn failing_programs_are_told_of() -> anyhow::Result<()> {
    for (program, what) in [
        ("/does/not/exist", "No such file"),
        ("/bin/false", "exit status: 1"),
        ("/bin/true", "EOF"),
    ] {
        let options = Options {
            program: program.into(),
            ..options()?
        };
        let error = compile("tcp", LinkType::Raw, &options).await.unwrap_err();
        let ensured = format!("{:#}", anyhow::Error::from(error));
        ensure!(ensured.contains(what), "{ensured}");
    }
    Ok(())
}

/// Our children, zombies too, and our descriptors.
fn held() -> (usize, usize) {
    let own = std::process::id();
    let processes = fs::read_dir("/proc").into_iter().flatten().flatten();
    let children = processes.filter(|entry| {
        let stat = fs::read_to_string(entry.path().join("stat")).unwrap_or_default();
        let parent = stat
            .rsplit_once(") ")
            .and_then(|(_, rest)| rest.split(' ').nth(1)?.parse().ok());
        parent == Some(own)
    });
    // That of this list is in it.
    let descriptors = fs::read_dir("/proc/self/fd").map_or(0, Iterator::count);
    (children.count(), descriptors)
}

/// The runtime keeps the descriptors that it once needed to hear of ended processes.
fn nothing_is_left((children, descriptors): (usize, usize)) -> anyhow::Result<()> {
    let now = held();
    ensure!(now.0 == children, "{} processes are left", now.0);
    ensure!(
        now.1 <= descriptors + 4,
        "{descriptors} descriptors became {}",
        now.1
    );
    Ok(())
}
