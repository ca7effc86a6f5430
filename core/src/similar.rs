//! Suggests the known word that somebody may have meant who wrote another one.

use alloc::vec::Vec;

/// Longer words have no suggestion: nobody mistypes that much.
const MAX_CHARS: usize = 64;

/// Returns the known word closest to `word`, if it is close enough. A word may have one slip (a letter too many, too few,
/// wrong, or two swapped) for each three letters, and at least one. Case and the difference between `-` and `_` do not count.
#[must_use]
pub fn closest<'a>(word: &str, known: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    let word = letters(word);
    let allowed = (word.len() / 3).max(1);
    let distances = known.into_iter().map(|known| (slips(&word, &letters(known)), known));
    distances.filter(|(slips, _)| *slips <= allowed).min_by_key(|(slips, _)| *slips).map(|(_, known)| known)
}

fn letters(word: &str) -> Vec<char> {
    let plain = |c: char| if c == '-' { '_' } else { c.to_ascii_lowercase() };
    word.chars().take(MAX_CHARS + 1).map(plain).collect()
}

/// Number of slips between two words (optimal string alignment), computed by rows of the usual table.
fn slips(a: &[char], b: &[char]) -> usize {
    if a.len().max(b.len()) > MAX_CHARS {
        return usize::MAX;
    }
    let mut before: Vec<usize> = Vec::new();
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, from) in a.iter().enumerate() {
        let mut next = Vec::with_capacity(row.len());
        let mut left = i + 1;
        next.push(left);
        for (j, to) in b.iter().enumerate() {
            let at = |row: &[usize], j: usize| row.get(j).copied().unwrap_or(usize::MAX - 1);
            let mut best = (at(&row, j + 1) + 1).min(left + 1).min(at(&row, j) + usize::from(from != to));
            let is_swapped = i > 0 && j > 0 && a.get(i - 1) == Some(to) && b.get(j - 1) == Some(from);
            if is_swapped {
                best = best.min(at(&before, j - 1) + 1);
            }
            next.push(best);
            left = best;
        }
        before = core::mem::replace(&mut row, next);
    }
    row.last().copied().unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use alloc::format;

    use proptest::prelude::*;

    use super::*;

    #[test]
    fn slips_are_forgiven_and_other_words_are_other_words() {
        let keys = ["discovery", "private", "public", "reconnect_spread_s", "arena_kib", "cpu_percent"];
        for (word, meant) in [
            ("privat", Some("private")),
            ("pirvate", Some("private")),
            ("Private", Some("private")),
            ("reconnect-spread-s", Some("reconnect_spread_s")),
            ("reconect_spread", Some("reconnect_spread_s")),
            ("arenakb", Some("arena_kib")),
            ("pubic", Some("public")),
            ("servers", None),
            ("x", None),
            ("", None),
        ] {
            assert_eq!(closest(word, keys), meant, "{word}");
        }
        assert_eq!(closest("abcx", ["abcd", "abc"]), Some("abcd"), "the first of those that are as close");
        assert_eq!(closest(&"x".repeat(1000), ["x"]), None);
    }

    proptest! {
        #[test]
        fn a_word_is_closest_to_itself_and_distances_are_symmetric(a in "\\PC{0,70}", b in "\\PC{0,70}") {
            let (x, y) = (letters(&a), letters(&b));
            prop_assert_eq!(slips(&x, &y), slips(&y, &x));
            if x.len() <= MAX_CHARS {
                prop_assert_eq!(slips(&x, &x), 0);
            }
            if x.len().max(y.len()) <= MAX_CHARS {
                prop_assert!(slips(&x, &y) >= x.len().abs_diff(y.len()) && slips(&x, &y) <= x.len().max(y.len()));
            }
        }
    }

    #[test]
    fn slips_are_counted_one_by_one() {
        let slips = |a: &str, b: &str| slips(&letters(a), &letters(b));
        for (a, b, expected) in [
            ("", "", 0),
            ("", "abc", 3),
            ("abc", "abc", 0),
            ("abc", "abd", 1),
            ("abc", "ac", 1),
            ("abc", "abxc", 1),
            ("abc", "acb", 1),
            ("abcd", "badc", 2),
            ("kitten", "sitting", 3),
            ("ca", "abc", 3),
            ("aab", "aba", 1),
            ("abc", "xyz", 3),
            ("A-b", "a_B", 0),
        ] {
            assert_eq!((slips(a, b), slips(b, a)), (expected, expected), "{a} {b}");
        }
        let longest = "x".repeat(MAX_CHARS);
        assert_eq!(slips(&longest, ""), MAX_CHARS);
        assert_eq!(slips(&format!("{longest}x"), &longest), usize::MAX, "nobody mistypes that much");
    }

    #[test]
    fn a_slip_is_forgiven_for_each_three_letters_and_one_at_least() {
        for (word, known, is_meant) in [
            ("ab", "a", true),
            ("ab", "c", false),
            ("abcde", "abcxx", false),
            ("abcdef", "abcdxx", true),
            ("abcdef", "abcxxx", false),
        ] {
            assert_eq!(closest(word, [known]).is_some(), is_meant, "{word} {known}");
        }
    }
}
