//! Changes expressions by their words, since of those changed by bytes few are expressions.

use std::sync::LazyLock;

use packetflix_tests::{differential::expressions, random::Random};

/// The words of the expressions that are written by hand.
static WORDS: LazyLock<Vec<&str>> = LazyLock::new(|| {
    let written = expressions::written().into_iter();
    let mut words: Vec<&str> = written.flat_map(|written| split(written.text)).collect();
    words.sort_unstable();
    words.dedup();
    words
});

/// Another expression, of so many bytes at most; `None` when it is to be changed otherwise.
pub(crate) fn mutate(data: &[u8], max_size: usize, seed: u32) -> Option<Vec<u8>> {
    let mut random = Random::new(seed.into());
    let text = str::from_utf8(data).ok()?;
    if random.percent(40) {
        return None;
    }
    let mut words = split(text);
    if words.is_empty() {
        return None;
    }
    let (number, made);
    for _ in 0..=random.below(3) {
        let at = random.below(words.len() as u32) as usize;
        let other = random.below(words.len() as u32) as usize;
        match random.below(5) {
            0 if words.len() > 1 => {
                words.remove(at);
            }
            1 => words.insert(other, words[at]),
            2 => words.swap(at, other),
            3 => words[at] = random.pick(&WORDS),
            _ => words.insert(at, random.pick(&WORDS)),
        }
    }
    let at = random.below(words.len() as u32) as usize;
    match random.below(6) {
        0 => {
            number = match random.below(3) {
                0 => random.below(256).to_string(),
                1 => (u32::MAX - random.below(0x20_0040)).to_string(),
                _ => format!("{:#x}", random.number() as u32 >> random.below(32)),
            };
            words[at] = &number;
        }
        1 => {
            made = expressions::expression(&mut random);
            let between = random.pick(&["and", "or", "and not"]);
            if random.percent(50) {
                words.extend([between, "(", &made, ")"]);
            } else {
                words.splice(0..0, ["(", &made, ")", between]);
            }
        }
        _ => {}
    }
    let changed = words.join(" ").into_bytes();
    (changed.len() <= max_size).then_some(changed)
}

/// Numbers, words and addresses, and each sign that is never part of a longer one.
fn split(text: &str) -> Vec<&str> {
    let is_sign = |c: char| "()[]+*/%^".contains(c);
    text.split_whitespace()
        .flat_map(|part| part.split_inclusive(is_sign))
        .flat_map(|part| {
            let last = part
                .char_indices()
                .next_back()
                .filter(|(at, c)| *at > 0 && is_sign(*c));
            let (word, sign) = part.split_at(last.map_or(part.len(), |(at, _)| at));
            [word, sign]
        })
        .filter(|part| !part.is_empty())
        .collect()
}
