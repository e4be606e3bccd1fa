//! What somebody may have meant who wrote something that there is not.

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
    let sorted = |mut letters: Vec<char>| {
        letters.sort_unstable();
        letters
    };
    let same = sorted(wrong.clone());
    let mut near: Vec<(usize, bool, &str)> = words
        .into_iter()
        .filter_map(|word| {
            let letters = letters(word);
            let distance = distance_of(&wrong, &letters)?;
            Some((distance, sorted(letters) != same, word))
        })
        .collect();
    near.sort_unstable();
    near.dedup();
    near.into_iter().take(most).map(|(.., word)| word).collect()
}

/// Whether it took one slip to write the one for the other: a letter more, less, or another, or two exchanged.
pub(crate) fn is_one_slip(wrong: &str, word: &str) -> bool {
    distance(&letters(wrong), &letters(word)) <= 1
}

fn letters(word: &str) -> Vec<char> {
    word.chars().take(MAX_LEN).flat_map(char::to_lowercase).collect()
}

/// How far a word is from the wrong one; nothing if nobody would take one for the other.
fn distance_of(wrong: &[char], word: &[char]) -> Option<usize> {
    let bound = (wrong.len() / 3).clamp(1, 3);
    let is_part = wrong.len() >= 3 && word.windows(wrong.len()).any(|part| part == wrong);
    let distance = distance(wrong, word);
    (distance <= bound || is_part).then_some(if is_part { distance.min(bound) } else { distance })
}

/// How many letters have to be added, removed, replaced, or exchanged with their neighbour (the distance of Damerau and
/// Levenshtein, of strings that are aligned at best).
fn distance(a: &[char], b: &[char]) -> usize {
    let mut rows = [
        vec![0; b.len() + 1],
        vec![0; b.len() + 1],
        (0..=b.len()).collect::<Vec<usize>>(),
    ];
    for (i, left) in a.iter().enumerate() {
        rows.rotate_left(1);
        let [before_last, last, row] = &mut rows;
        row[0] = i + 1;
        for (j, right) in b.iter().enumerate() {
            let replaced = last[j] + usize::from(left != right);
            let mut least = replaced.min(last[j + 1] + 1).min(row[j] + 1);
            if i > 0 && j > 0 && *left == b[j - 1] && a[i - 1] == *right {
                least = least.min(before_last[j - 1] + 1);
            }
            row[j + 1] = least;
        }
    }
    rows[2][b.len()]
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

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

    proptest! {
        #[test]
        fn distance_is_one(a in "[ab]{0,8}", b in "[ab]{0,8}") {
            let (a, b) = (letters(&a), letters(&b));
            prop_assert_eq!(distance(&a, &b), distance(&b, &a));
            prop_assert_eq!(distance(&a, &b) == 0, a == b);
            prop_assert!(distance(&a, &b) <= a.len().max(b.len()));
        }
    }
}
