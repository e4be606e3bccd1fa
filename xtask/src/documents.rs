//! `cargo xtask docs`, and what `cargo xtask lint` asks of documents: that each of their links leads somewhere.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::{Component, Path, PathBuf},
};

use anyhow::{Context as _, bail};

use crate::{
    build_ebpf::build_ebpf,
    setup,
    shell::{cargo, execute, root},
};

/// Folders whose files may name a page as `docs/PAGE.md`, beside the pages themselves.
const SOURCES: [&str; 2] = ["deploy", "packetflix"];

/// Writes the tables in `docs/` anew that are made from the program. The tests that compare them do it.
///
/// # Errors
/// When something does not build, or a page lacks the marks between which its table stands.
pub(crate) fn docs() -> anyhow::Result<()> {
    setup::libraries()?;
    build_ebpf()?;
    execute(
        cargo()
            .args(["test", "--package=packetflix", "--lib", "documents_"])
            .env("UPDATE_DOCS", "1"),
    )
}

/// Checks that each relative link of the documents leads to a file, and each `#anchor` to a heading.
///
/// # Errors
/// When one does not: all that do not are named.
pub(crate) fn check_links() -> anyhow::Result<()> {
    let root = root();
    let broken = broken_links(root)?;
    if broken.is_empty() {
        return Ok(());
    }
    bail!("links that lead nowhere:\n  {}", broken.join("\n  "))
}

fn broken_links(root: &Path) -> anyhow::Result<Vec<String>> {
    let mut pages = BTreeMap::new();
    for path in files(root, false)?
        .into_iter()
        .chain(files(&root.join("docs"), true)?)
    {
        if path.extension().is_some_and(|end| end == "md") {
            let text = fs::read_to_string(&path)?;
            pages.insert(path, text);
        }
    }
    let anchors: BTreeMap<&Path, BTreeSet<String>> = pages
        .iter()
        .map(|(path, text)| (&**path, anchors_of(text)))
        .collect();
    let leads_somewhere = |from: &Path, link: &str| {
        let (file, anchor) = link.split_once('#').unwrap_or((link, ""));
        let to = match file {
            "" => from.to_owned(),
            _ => plain(&from.with_file_name("").join(file)),
        };
        let known = anchors.get(&*to);
        to.exists() && (anchor.is_empty() || known.is_some_and(|known| known.contains(anchor)))
    };

    let mut broken = Vec::new();
    let mut look = |from: &Path, base: &Path, link: &str| {
        if !leads_somewhere(base, link) {
            let from = from.strip_prefix(root).unwrap_or(from);
            broken.push(format!("{}: {link}", from.display()));
        }
    };
    for (path, text) in &pages {
        for link in links_of(text) {
            look(path, path, &link);
        }
    }
    for folder in SOURCES {
        for path in files(&root.join(folder), true)? {
            let text = fs::read(&path)?;
            for link in mentions_in(&String::from_utf8_lossy(&text)) {
                look(&path, &root.join("README.md"), &link);
            }
        }
    }
    Ok(broken)
}

/// The files of a folder, and of those in it.
fn files(folder: &Path, all: bool) -> anyhow::Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    for entry in fs::read_dir(folder).with_context(|| folder.display().to_string())? {
        let path = entry?.path();
        if path.is_file() {
            found.push(path);
        } else if all && path.is_dir() {
            found.extend(files(&path, all)?);
        }
    }
    Ok(found)
}

/// A path without `.` and `..`.
fn plain(path: &Path) -> PathBuf {
    let mut plain = PathBuf::new();
    for part in path.components() {
        match part {
            Component::ParentDir => {
                plain.pop();
            }
            Component::CurDir => {}
            part => plain.push(part),
        }
    }
    plain
}

/// The lines of a page outside of blocks of code.
fn prose(text: &str) -> impl Iterator<Item = &str> {
    let mut is_code = false;
    text.lines().filter(move |line| {
        let is_fence = line.trim_start().starts_with("```");
        is_code ^= is_fence;
        !is_code && !is_fence
    })
}

/// Where the relative links of a page lead.
fn links_of(text: &str) -> Vec<String> {
    let mut links = Vec::new();
    for line in prose(text) {
        // Each second part is code.
        let words: String = line.split('`').step_by(2).collect::<Vec<_>>().join("`");
        let defined = words.strip_prefix('[').and_then(|rest| rest.split_once("]: "));
        let inline = words.split("](").skip(1);
        for part in inline.chain(defined.map(|(_, link)| link)) {
            let link = part.split([')', ' ']).next().unwrap_or_default();
            if !link.contains("://") && !link.starts_with("mailto:") {
                links.push(link.to_owned());
            }
        }
    }
    links
}

/// The pages that a source names as `docs/PAGE.md` or `docs/PAGE.md#ANCHOR`.
fn mentions_in(text: &str) -> Vec<String> {
    let is_of_path = |one: char| one.is_ascii_alphanumeric() || "-_/.#".contains(one);
    text.split(|one| !is_of_path(one))
        .map(|word| word.trim_start_matches("../").trim_end_matches('.'))
        .filter(|word| word.starts_with("docs/") && word.contains(".md"))
        .map(str::to_owned)
        .collect()
}

/// What forges make of the headings of a page.
fn anchors_of(text: &str) -> BTreeSet<String> {
    let mut anchors = BTreeSet::new();
    for line in prose(text) {
        let heading = line.trim_start_matches('#');
        if heading.len() == line.len() || !heading.starts_with(' ') {
            continue;
        }
        let anchor = slug(heading.trim());
        let more = (1..).map(|number| format!("{anchor}-{number}"));
        let free = std::iter::once(anchor.clone()).chain(more);
        let first = free.into_iter().find(|name| !anchors.contains(name));
        anchors.extend(first);
    }
    anchors
}

/// Letters, digits, `-` and `_` in lower case, with `-` for each blank; of a link its text.
fn slug(heading: &str) -> String {
    let mut text = String::new();
    let mut rest = heading;
    while let Some((before, link)) = rest.split_once("](") {
        text.push_str(before);
        rest = link.split_once(')').map_or("", |(_, after)| after);
    }
    text.push_str(rest);
    text.to_lowercase()
        .chars()
        .filter(|&one| one.is_alphanumeric() || "-_ ".contains(one))
        .map(|one| if one == ' ' { '-' } else { one })
        .collect()
}

#[cfg(test)]
mod tests {
    use clap::Parser as _;

    use super::*;

    #[test]
    fn headings_have_the_anchors_of_forges() {
        let text = "# A page\n## `/capture`, and [what it is](x.md)\n## A page\n```sh\n# no heading\n```\n#no heading\n### Losses";
        let anchors: Vec<String> = anchors_of(text).into_iter().collect();
        assert_eq!(
            anchors,
            ["a-page", "a-page-1", "capture-and-what-it-is", "losses"]
        );
    }

    #[test]
    fn links_are_found_outside_of_code() {
        let text = "See [a](a.md), ![b](b.svg) and [c](../c.md#d).\n[e](https://e.example/) `[f](f.md)` [g](#g)\n```\n[h](h.md)\n```\n[i]: i.md";
        assert_eq!(links_of(text), ["a.md", "b.svg", "../c.md#d", "#g", "i.md"]);
        let source = "//! See `docs/stream.md#losses`, and docs/hooks.md.\n# docs/README and mydocs/x.md";
        assert_eq!(mentions_in(source), ["docs/stream.md#losses", "docs/hooks.md"]);
    }

    #[test]
    fn links_that_lead_nowhere_are_named() {
        let root = std::env::temp_dir().join(format!("packetflix-links-{}", std::process::id()));
        for folder in ["docs", "deploy", "packetflix"] {
            fs::create_dir_all(root.join(folder)).unwrap();
        }
        let write = |name: &str, text: &str| fs::write(root.join(name), text).unwrap();
        write(
            "README.md",
            "[1](docs/a.md#one) [2](docs/a.md#two) [3](docs/b.md) [4](deploy)",
        );
        write(
            "docs/a.md",
            "# One\n[5](../README.md) [6](#one) [7](#three) [8](a.md#)",
        );
        write("deploy/unit", "# docs/a.md, docs/c.md and docs/a.md#four say why");
        let broken = broken_links(&root);
        fs::remove_dir_all(&root).unwrap();
        assert_eq!(
            broken.unwrap(),
            [
                "README.md: docs/a.md#two",
                "README.md: docs/b.md",
                "docs/a.md: #three",
                "deploy/unit: docs/c.md",
                "deploy/unit: docs/a.md#four",
            ]
        );
    }

    #[test]
    fn forges_run_what_a_change_has_to_pass() {
        let read = |name: &str| fs::read_to_string(root().join(name)).unwrap();
        // Whatever stands around them, and in whichever order they are run.
        let commands = |text: &str| -> BTreeSet<String> {
            let calls = text.split("cargo xtask ").skip(1);
            let words = calls.map(|call| call.split(['\n', '>', '&', '|']).next().unwrap_or_default());
            words.map(|words| words.trim().to_owned()).collect()
        };
        let mut needed = commands(&read(".ci/run"));
        // It passes nothing, and builds what the next one runs.
        needed.remove("test --no-run");
        assert_eq!(needed.len(), 4, "{needed:?}");
        assert_eq!(commands(&read(".github/workflows/ci.yml")), needed);
    }

    #[test]
    fn forges_release_by_verbs_that_there_are() {
        let text = fs::read_to_string(root().join(".github/workflows/release.yml")).unwrap();
        let commands = text.lines().filter_map(|line| line.split_once("cargo xtask "));
        let verbs: Vec<&str> = commands.map(|(_, verb)| verb).collect();
        for verb in &verbs {
            let words = ["xtask"].into_iter().chain(verb.split_whitespace());
            crate::Verb::try_parse_from(words).unwrap_or_else(|error| panic!("{verb}: {error}"));
        }
        for verb in ["dist --verify", "dist --for macos-arm64", "image "] {
            assert!(verbs.iter().any(|command| command.starts_with(verb)), "{verbs:?}");
        }
    }

    #[test]
    fn our_links_lead_somewhere() {
        check_links().unwrap();
    }
}
