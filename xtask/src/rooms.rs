//! Which rooms of the server know which others: what ARCHITECTURE.md says, against what the sources say.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::Path,
};

use anyhow::{Context as _, bail, ensure};

use crate::shell::root;

const PICTURE: &str = "ARCHITECTURE.md";
const SOURCES: &str = "packetflix/src";

/// Begins and ends the list in the picture.
const BEGINNING: &str = "```rooms\n";
const END: &str = "```";

/// Files that name rooms and are none: the program, and the crate itself.
const NO_ROOMS: [&str; 2] = ["main", "lib"];

/// Rooms by their names, and those that each knows.
type Edges = BTreeMap<String, BTreeSet<String>>;

/// Checks that the list of rooms in the picture is what the sources say, and has no circle.
///
/// # Errors
/// With all that differs.
pub(crate) fn check() -> anyhow::Result<()> {
    let picture = fs::read_to_string(root().join(PICTURE))?;
    let (drawn, found) = (drawn(&picture)?, found(&root().join(SOURCES))?);
    let differences = differences(&drawn, &found);
    ensure!(
        differences.is_empty(),
        "{PICTURE} draws the rooms otherwise than they are:\n{}",
        differences.join("\n")
    );
    match circle(&drawn) {
        Some(circle) => bail!("rooms know each other in a circle: {}", circle.join(" → ")),
        None => Ok(()),
    }
}

fn differences(drawn: &Edges, found: &Edges) -> Vec<String> {
    let none = BTreeSet::new();
    let rooms: BTreeSet<&String> = drawn.keys().chain(found.keys()).collect();
    let mut differences = Vec::new();
    for room in rooms {
        if !found.contains_key(room) {
            differences.push(format!("there is no {room}"));
        } else if !drawn.contains_key(room) {
            differences.push(format!("{room} is not drawn"));
        }
        let [drawn, found] = [drawn, found].map(|edges| edges.get(room).unwrap_or(&none));
        let new = found
            .difference(drawn)
            .map(|other| format!("{room} knows {other}, and is not to"));
        let old = drawn
            .difference(found)
            .map(|other| format!("{room} does not know {other} any more"));
        differences.extend(new.chain(old));
    }
    differences
}

/// A line for each room: its name, an arrow, and the names of those that it knows.
fn drawn(picture: &str) -> anyhow::Result<Edges> {
    let (_, list) = picture
        .split_once(BEGINNING)
        .with_context(|| format!("{PICTURE} has no list of rooms"))?;
    let (list, _) = list.split_once(END).context("the list of rooms has no end")?;
    let lines = list.lines().map(|line| {
        let (room, known) = line
            .split_once('→')
            .with_context(|| format!("{PICTURE}: no arrow in {line:?}"))?;
        let known = known.split_whitespace().map(str::to_owned).collect();
        Ok((room.trim().to_owned(), known))
    });
    lines.collect()
}

fn found(sources: &Path) -> anyhow::Result<Edges> {
    let mut edges = Edges::new();
    for entry in fs::read_dir(sources)? {
        let path = entry?.path();
        let name = path
            .file_stem()
            .unwrap_or_default()
            .to_string_lossy()
            .into_owned();
        if NO_ROOMS.contains(&name.as_str()) {
            continue;
        }
        let known = edges.entry(name).or_default();
        for file in files(&path)? {
            let text = fs::read_to_string(&file)?;
            // Tests may know what they like.
            let text = text.split("#[cfg(test)]\nmod ").next().unwrap_or_default();
            known.extend(known_in(text));
        }
    }
    let rooms: BTreeSet<String> = edges.keys().cloned().collect();
    for (room, known) in &mut edges {
        known.retain(|other| other != room && rooms.contains(other));
    }
    Ok(edges)
}

fn files(path: &Path) -> anyhow::Result<Vec<std::path::PathBuf>> {
    if !path.is_dir() {
        let is_source = path.extension().is_some_and(|end| end == "rs");
        return Ok(is_source.then(|| path.to_owned()).into_iter().collect());
    }
    let mut all = Vec::new();
    for entry in fs::read_dir(path)? {
        all.extend(files(&entry?.path())?);
    }
    Ok(all)
}

/// The first words of all paths that begin at the crate: `crate::a::b` and `crate::{a::b, c}`.
fn known_in(text: &str) -> Vec<String> {
    let code: String = text
        .lines()
        .map(|line| line.split("//").next().unwrap_or_default())
        .fold(String::new(), |code, line| code + line + "\n");
    let mut known = Vec::new();
    for (at, path) in code.match_indices("crate::") {
        let rest = &code[at + path.len()..];
        match rest.strip_prefix('{') {
            Some(group) => known.extend(members(group).map(first_word)),
            None => known.push(first_word(rest)),
        }
    }
    // A group may end with a comma.
    known.retain(|word| !word.is_empty());
    known
}

/// What stands between commas up to the brace that ends the group.
fn members(group: &str) -> impl Iterator<Item = &str> {
    let mut depth = 1;
    let mut end = group.len();
    let mut cuts = vec![0];
    for (at, sign) in group.char_indices() {
        match sign {
            '{' => depth += 1,
            '}' => depth -= 1,
            ',' if depth == 1 => cuts.push(at + 1),
            _ => {}
        }
        if depth == 0 {
            end = at;
            break;
        }
    }
    let ends: Vec<usize> = cuts.iter().skip(1).map(|cut| cut - 1).chain([end]).collect();
    cuts.into_iter().zip(ends).map(|(from, to)| &group[from..to])
}

fn first_word(path: &str) -> String {
    let is_of_word = |sign: &char| sign.is_alphanumeric() || *sign == '_';
    path.trim_start().chars().take_while(is_of_word).collect()
}

/// A circle of rooms, if there is one.
fn circle(edges: &Edges) -> Option<Vec<&str>> {
    // Whoever knows nobody that is left cannot be part of one.
    let mut left: BTreeMap<&str, BTreeSet<&str>> = edges
        .iter()
        .map(|(room, known)| (room.as_str(), known.iter().map(String::as_str).collect()))
        .collect();
    loop {
        let names: BTreeSet<&str> = left.keys().copied().collect();
        left.values_mut()
            .for_each(|known| known.retain(|other| names.contains(other)));
        let before = left.len();
        left.retain(|_, known| !known.is_empty());
        if left.len() == before {
            break;
        }
    }
    let mut road = vec![*left.keys().next()?];
    loop {
        let next = *left[road.last()?].first()?;
        if let Some(at) = road.iter().position(|room| *room == next) {
            road.push(next);
            return Some(road.split_off(at));
        }
        road.push(next);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rooms_are_found_wherever_they_are_named() {
        let text = "use crate::{\n    a::{B, c},\n    d,\n    e::f::G,\n};\nuse crate::h::I; // crate::no\nfn x() { crate::j::k() }\n";
        assert_eq!(known_in(text), ["a", "d", "e", "h", "j"].map(str::to_owned));
    }

    #[test]
    fn the_picture_is_held_against_the_sources() -> anyhow::Result<()> {
        let picture = drawn("x\n```rooms\na → b c\nb →\nc →\n```\n")?;
        let with = |room: &str, known: &[&str]| {
            let mut found = picture.clone();
            found.insert(
                room.to_owned(),
                known.iter().map(|name| (*name).to_owned()).collect(),
            );
            differences(&picture, &found)
        };
        assert_eq!(with("a", &["b", "c"]), [""; 0]);
        assert_eq!(with("b", &["c"]), ["b knows c, and is not to"]);
        assert_eq!(with("a", &["b"]), ["a does not know c any more"]);
        assert_eq!(with("d", &[]), ["d is not drawn"]);
        assert!(drawn("no list").is_err());
        Ok(())
    }

    #[test]
    fn circles_are_told() -> anyhow::Result<()> {
        let of = |list: &str| drawn(&format!("{BEGINNING}{list}{END}"));
        assert_eq!(circle(&of("a → b c\nb → c\nc →\n")?), None);
        let edges = of("a → b\nb → c\nc → d\nd → b\n")?;
        assert_eq!(circle(&edges), Some(vec!["b", "c", "d", "b"]));
        Ok(())
    }
}
