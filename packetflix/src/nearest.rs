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
    let wrong = letters(wrong);
    // Of those that are as near, one with the same letters: they were exchanged.
    let sorted = |letters: &str| {
        let mut letters: Vec<char> = letters.chars().collect();
        letters.sort_unstable();
        letters
    };
    let same = sorted(&wrong);
    let mut near: Vec<(usize, bool, &str)> = words
        .into_iter()
        .filter_map(|word| {
            let letters = letters(word);
            let distance = distance_of(&wrong, &letters)?;
            Some((distance, sorted(&letters) != same, word))
        })
        .collect();
    near.sort_unstable();
    near.dedup();
    near.into_iter().take(most).map(|(.., word)| word).collect()
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
}
