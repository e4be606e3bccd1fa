//! What Wireshark is told of the interface and its options, in the words of extcap(4).

use std::{collections::BTreeMap, fmt::Write as _};

use crate::list::Target;

/// Name of the interface, for programs.
pub(crate) const INTERFACE: &str = "packetflix";

/// Name of the option that lists targets.
pub(crate) const TARGET: &str = "target";

/// Its number among the options.
const TARGET_NUMBER: usize = 1;

/// The options, in the order of their numbers.
const OPTIONS: [&str; 10] = [
    "{call=--server}{display=Server}{type=string}{placeholder=the default, or that of this host}\
     {tooltip=http://HOST:PORT, https://HOST:PORT, ssh://[USER@]HOST or unix:/PATH; or a name of packetflix server list}",
    "{call=--target}{display=Target}{type=selector}{reload=true}{placeholder=List targets}{required=true}\
     {tooltip=What is captured: press the button to list what the server has}",
    "{call=--interfaces}{display=Interfaces}{type=string}{placeholder=all}\
     {tooltip=Names of interfaces of the target, with commas between them}",
    "{call=--snaplen}{display=Bytes of each packet}{type=unsigned}{default=0}{range=0,262144}\
     {tooltip=Most bytes that are captured of a packet; 0 is all of them}",
    "{call=--no-promiscuous-mode}{display=No promiscuous mode}{type=boolflag}{default=false}",
    "{call=--token-file}{display=Token file}{type=fileselect}{mustexist=true}{group=Access}\
     {tooltip=File that has the token, and nothing else}",
    "{call=--cacert}{display=CA certificates}{type=fileselect}{mustexist=true}{group=Access}\
     {tooltip=Certificates of the CAs that are trusted, in PEM, instead of those of this machine}",
    "{call=--more-targets}{display=More targets}{type=string}{placeholder=none}{group=Several}\
     {tooltip=Words with commas between them: names, shop-*, label:app=web, compose:PROJECT; and ! before what is left out}",
    "{call=--follow}{display=Follow targets that start again or come later}{type=boolflag}{default=false}{group=Several}\
     {tooltip=Where a word is a pattern or a label, that is so in any case}",
    "{call=--wait}{display=Wait for targets that are not there yet}{type=boolflag}{default=false}{group=Several}",
];

/// The value of the target where all are named as more targets.
pub(super) const NO_TARGET: &str = "-";

pub(super) fn interfaces() -> String {
    format!(
        "extcap {{version={}}}{{display=packetflix}}\n\
         interface {{value={INTERFACE}}}{{display=packetflix: containers and namespaces}}\n",
        env!("CARGO_PKG_VERSION")
    )
}

/// Each interface of the stream says itself what its packets begin with; this is what most do.
pub(super) fn link_types() -> String {
    "dlt {number=1}{name=EN10MB}{display=Ethernet}\n".to_owned()
}

pub(super) fn options() -> String {
    let options = OPTIONS.iter().enumerate();
    options
        .map(|(number, option)| format!("arg {{number={number}}}{option}\n"))
        .collect()
}

/// The values that the option for the target may have.
pub(super) fn targets(targets: &[Target]) -> String {
    let mut counts: BTreeMap<String, usize> = BTreeMap::new();
    for target in targets {
        *counts.entry(target.full_name()).or_default() += 1;
    }
    let mut text = String::new();
    for target in targets {
        let name = target.full_name();
        let is_clear = counts.get(&name) == Some(&1) && plain(&name) == name;
        let value = match is_clear {
            true => name.clone(),
            false => format!("netns:{}", target.netns),
        };
        let of = [&target.r#type[..], &target.node_name];
        let of: Vec<&str> = of.into_iter().filter(|word| !word.is_empty()).collect();
        let display = plain(&format!("{name} ({})", of.join(", ")));
        let _ = writeln!(
            text,
            "value {{arg={TARGET_NUMBER}}}{{value={value}}}{{display={display}}}"
        );
    }
    let _ = writeln!(
        text,
        "value {{arg={TARGET_NUMBER}}}{{value={NO_TARGET}}}{{display=those of \"More targets\" alone}}"
    );
    text
}

/// A list of targets that says why there is none: Wireshark shows nothing else of a list that fails.
pub(super) fn no_targets(sentence: &str) -> String {
    let display = plain(sentence);
    format!("value {{arg={TARGET_NUMBER}}}{{value=}}{{display={display}}}\n")
}

/// Text that does not end a word or a line of these sentences.
fn plain(text: &str) -> String {
    let plain = |c: char| match c {
        '{' => '(',
        '}' => ')',
        c if c.is_control() => ' ',
        c => c,
    };
    text.chars().map(plain).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_option_for_the_target_has_its_number() {
        let options = options();
        let option = options.lines().nth(TARGET_NUMBER).unwrap();
        assert!(option.starts_with("arg {number=1}{call=--target}"), "{option}");
    }

    #[test]
    fn targets_are_named_so_that_they_are_found_again() {
        let list: Vec<Target> = serde_json::from_str(
            r#"[{"name": "web", "type": "docker", "netns": 5, "network-interfaces": []},
                {"name": "db", "type": "pod", "prefix": "a", "netns": 6, "network-interfaces": []},
                {"name": "sh", "type": "proc", "netns": 7, "network-interfaces": []},
                {"name": "sh", "type": "proc", "netns": 8, "node-name": "rack-7", "network-interfaces": []},
                {"name": "}{x\n", "type": "proc", "netns": 9, "network-interfaces": []}]"#,
        )
        .unwrap();
        assert_eq!(
            targets(&list),
            "value {arg=1}{value=web}{display=web (docker)}\n\
             value {arg=1}{value=a:db}{display=a:db (pod)}\n\
             value {arg=1}{value=netns:7}{display=sh (proc)}\n\
             value {arg=1}{value=netns:8}{display=sh (proc, rack-7)}\n\
             value {arg=1}{value=netns:9}{display=)(x  (proc)}\n\
             value {arg=1}{value=-}{display=those of \"More targets\" alone}\n"
        );
    }
}
