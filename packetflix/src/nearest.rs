//! What somebody may have meant who wrote something that there is not.

use strsim::osa_distance;

/// Most characters of a word that are looked at.
const MAX_LEN: usize = 64;

/// Those of `words` that are as good as `wrong`, best first, `most` at most: such as have few letters more, less, or others,
/// or have it in them.
pub(crate) fn nearest<'a>(
    wrong: &str,
    words: impl IntoIterator<Item = &'a str>,
    most: usize,
) -> Vec<&'a str> {
    nearest_by(wrong, words.into_iter().map(|word| (word, word)), most)
}

/// The same of names of targets, of which people write a part: `web-0` for `shop/web-0`, `s1` for `/run/netns/s1`, `nginx` for
/// `nginx(1234)`.
pub(crate) fn nearest_names<'a>(
    wrong: &str,
    names: impl IntoIterator<Item = &'a str>,
    most: usize,
) -> Vec<&'a str> {
    let parts = |name: &'a str| {
        let last = name.rsplit(['/', ':']).next().unwrap_or(name);
        let command = last.split('(').next().unwrap_or(last);
        [name, last, command].map(|part| (part, name))
    };
    nearest_by(wrong, names.into_iter().flat_map(parts), most)
}

/// Those that stand second, where what stands first is near.
fn nearest_by<'a>(
    wrong: &str,
    pairs: impl IntoIterator<Item = (&'a str, &'a str)>,
    most: usize,
) -> Vec<&'a str> {
    let wrong = letters(wrong);
    // Of those that are as near, one with the same letters: they were exchanged.
    let sorted = |letters: &str| {
        let mut letters: Vec<char> = letters.chars().collect();
        letters.sort_unstable();
        letters
    };
    let same = sorted(&wrong);
    let mut near: Vec<(usize, bool, &str)> = pairs
        .into_iter()
        .filter_map(|(word, name)| {
            let letters = letters(word);
            let distance = distance_of(&wrong, &letters)?;
            Some((distance, sorted(&letters) != same, name))
        })
        .collect();
    near.sort_unstable();
    let mut names = Vec::new();
    for (.., name) in near {
        if names.len() < most && !names.contains(&name) {
            names.push(name);
        }
    }
    names
}

fn letters(word: &str) -> String {
    word.chars().take(MAX_LEN).flat_map(char::to_lowercase).collect()
}

/// How far a word is from the wrong one; nothing if nobody would take one for the other.
fn distance_of(wrong: &str, word: &str) -> Option<usize> {
    let len = wrong.chars().count();
    let bound = (len / 3).clamp(1, 3);
    let is_part = len >= 3 && word.contains(wrong);
    let distance = osa_distance(wrong, word);
    (distance <= bound || is_part).then_some(if is_part { distance.min(bound) } else { distance })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn slips_of_the_hand_are_near() {
        let names = ["filter", "netns", "nif", "snaplen", "statistics", "names"];
        for (wrong, meant) in [
            ("fliter", vec!["filter"]),
            ("Filter", vec!["filter"]),
            ("snaplength", vec!["snaplen"]),
            ("netsn", vec!["netns"]),
            ("ni", vec!["nif"]),
            ("stat", vec!["statistics"]),
            ("zzz", vec![]),
        ] {
            assert_eq!(nearest(wrong, names, 1), meant, "{wrong}");
        }
        assert_eq!(
            nearest("web", ["shop/web-0", "wed", "db"], 3),
            ["shop/web-0", "wed"]
        );
    }

    #[test]
    fn names_are_near_by_their_parts() {
        let names = ["shop/web-0", "/run/netns/server", "nginx(1234)", "kind:api", "db"];
        for (wrong, meant) in [
            ("wbe-0", vec!["shop/web-0"]),
            ("shop/wbe-0", vec!["shop/web-0"]),
            ("sevrer", vec!["/run/netns/server"]),
            ("ngnix", vec!["nginx(1234)"]),
            ("apy", vec!["kind:api"]),
            ("queue", vec![]),
        ] {
            assert_eq!(nearest_names(wrong, names, 3), meant, "{wrong}");
        }
    }
}
