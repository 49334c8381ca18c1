//! Patterns of paths as shells have them: `*` and `?` within a name, `[a-z]` and `[!a-z]` for a character, `**` for any folders.

use std::path::{Component, Path};

/// A pattern without its literal beginning, part by part.
#[derive(Clone, Debug)]
pub(super) struct Pattern {
    parts: Vec<Part>,
}

#[derive(Clone, Debug)]
enum Part {
    /// `**`.
    AnyFolders,
    Name(Vec<Piece>),
}

#[derive(Clone, Debug)]
enum Piece {
    Is(char),
    AnyOne,
    Any,
    /// Ranges, and whether the character must be outside all of them.
    Of(Vec<(char, char)>, bool),
}

/// Whether a name has a character that only patterns have.
pub(super) fn is_pattern(text: &str) -> bool {
    text.contains(['*', '?', '['])
}

impl Pattern {
    /// Reads the names of a pattern, or says what is wrong.
    pub(super) fn read<'a>(names: impl Iterator<Item = Component<'a>>) -> Result<Pattern, String> {
        let part = |name: Component<'a>| match name.as_os_str().to_string_lossy().as_ref() {
            "**" => Ok(Part::AnyFolders),
            name if name.contains("**") => Err(format!("`**` stands alone between slashes, not in `{name}`")),
            name => pieces(name).map(Part::Name),
        };
        Ok(Pattern { parts: names.map(part).collect::<Result<_, _>>()? })
    }

    /// Folders below the first one in which a fitting file can lie, and itself: how deep to look.
    pub(super) fn depth(&self) -> usize {
        let any = self.parts.iter().any(|part| matches!(part, Part::AnyFolders));
        if any { usize::MAX } else { self.parts.len() }
    }

    /// Whether a path fits that begins where the pattern does.
    pub(super) fn fits(&self, path: &Path) -> bool {
        let names: Vec<Vec<char>> =
            path.components().map(|name| name.as_os_str().to_string_lossy().chars().collect()).collect();
        path_fits(&self.parts, &names)
    }
}

fn path_fits(parts: &[Part], names: &[Vec<char>]) -> bool {
    match (parts, names) {
        ([], []) => true,
        ([Part::AnyFolders], names) => !names.is_empty(),
        ([Part::AnyFolders, rest @ ..], _) => (0..=names.len()).any(|skip| path_fits(rest, &names[skip..])),
        ([Part::Name(pieces), parts @ ..], [name, names @ ..]) => {
            name_fits(pieces, name) && path_fits(parts, names)
        }
        _ => false,
    }
}

fn name_fits(pieces: &[Piece], name: &[char]) -> bool {
    let Some((piece, rest)) = pieces.split_first() else { return name.is_empty() };
    if let Piece::Any = piece {
        return (0..=name.len()).any(|skip| name_fits(rest, &name[skip..]));
    }
    let Some((&first, after)) = name.split_first() else { return false };
    let fits = match piece {
        Piece::Is(character) => *character == first,
        Piece::Of(ranges, outside) => {
            ranges.iter().any(|&(from, to)| (from..=to).contains(&first)) != *outside
        }
        Piece::AnyOne | Piece::Any => true,
    };
    fits && name_fits(rest, after)
}

fn pieces(name: &str) -> Result<Vec<Piece>, String> {
    let mut rest = name.chars().peekable();
    let mut all = vec![];
    while let Some(character) = rest.next() {
        all.push(match character {
            '*' => Piece::Any,
            '?' => Piece::AnyOne,
            '[' => {
                let outside = rest.next_if(|&c| c == '!' || c == '^').is_some();
                let mut inner = vec![];
                // A bracket that comes first is one of the characters.
                while let Some(c) = rest.next_if(|&c| c != ']' || inner.is_empty()) {
                    inner.push(c);
                }
                rest.next().ok_or_else(|| format!("a `[` in `{name}` has no `]`"))?;
                Piece::Of(ranges(&inner), outside)
            }
            other => Piece::Is(other),
        });
    }
    Ok(all)
}

fn ranges(inner: &[char]) -> Vec<(char, char)> {
    match inner {
        [from, '-', to, rest @ ..] => [vec![(*from, *to)], ranges(rest)].concat(),
        [one, rest @ ..] => [vec![(*one, *one)], ranges(rest)].concat(),
        [] => vec![],
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pattern(text: &str) -> Result<Pattern, String> {
        Pattern::read(Path::new(text).components())
    }

    #[test]
    fn names_and_folders_fit_as_in_a_shell() {
        for (text, fit, unfit) in [
            ("*.txt", &["a.txt", ".txt"][..], &["a.md", "a/b.txt", "a.txt.gz"][..]),
            ("a?c", &["abc"], &["ac", "abbc"]),
            ("[a-c]x[!0-9]", &["axy", "cxx"], &["dxy", "ax1"]),
            ("[]]-[a-]", &["]-a", "]--"], &["]-b"]),
            ("**/*.txt", &["a.txt", "a/b/c.txt"], &["a/b.md"]),
            ("a/**/b", &["a/b", "a/x/y/b"], &["b", "a/x"]),
            ("a/**", &["a/b", "a/b/c"], &["a", "b/c"]),
            ("*a*b*", &["xaybz", "ab"], &["ba"]),
        ] {
            let pattern = pattern(text).unwrap();
            fit.iter().for_each(|path| assert!(pattern.fits(Path::new(path)), "{text} {path}"));
            unfit.iter().for_each(|path| assert!(!pattern.fits(Path::new(path)), "{text} {path}"));
        }
    }

    #[test]
    fn what_is_no_pattern_says_why() {
        assert!(pattern("a[b").unwrap_err().contains("no `]`"));
        assert!(pattern("a**/b").unwrap_err().contains("stands alone"));
        assert_eq!((pattern("a/*").unwrap().depth(), pattern("**").unwrap().depth()), (2, usize::MAX));
    }
}
