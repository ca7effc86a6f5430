//! The keys of the settings' file, read from the example.

/// The example, which `elklet init` writes as well. A test of the agent holds it to have every key with its default.
pub(crate) const EXAMPLE: &str = include_str!("../../../agent-bin/elklet.example.toml");

/// A section of the file; the first one is what stands before any.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Section {
    /// Its name in brackets, or nothing.
    pub(crate) name: String,
    /// What stands above its name or, for the first one, at the head of the file.
    pub(crate) about: String,
    /// Its keys.
    pub(crate) keys: Vec<Key>,
}

/// A key.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Key {
    /// Its name.
    pub(crate) name: String,
    /// Its default, as the file has it.
    pub(crate) default: String,
    /// What stands above it.
    pub(crate) about: String,
}

/// Reads an example: comments begin with `# `, keys and sections that are not set with `#`, and each comment belongs to what follows it.
/// A comment before an empty line belongs to the section.
pub(crate) fn sections(example: &str) -> Vec<Section> {
    let mut sections = vec![Section { name: String::new(), about: String::new(), keys: Vec::new() }];
    let mut about: Vec<&str> = Vec::new();
    for line in example.lines() {
        if let Some(text) = line.strip_prefix("# ") {
            about.push(text);
            continue;
        }
        let line = line.strip_prefix('#').unwrap_or(line);
        let section = sections.last_mut().expect("the first one was put there");
        if line.is_empty() {
            add(&mut section.about, &std::mem::take(&mut about).join(" "));
        } else if line.starts_with('[') {
            let about = std::mem::take(&mut about).join(" ");
            sections.push(Section { name: line.to_owned(), about, keys: Vec::new() });
        } else if let Some((name, default)) = line.split_once(" = ") {
            let about = std::mem::take(&mut about).join(" ");
            section.keys.push(Key { name: name.to_owned(), default: default.to_owned(), about });
        }
    }
    sections
}

fn add(text: &mut String, more: &str) {
    if !text.is_empty() && !more.is_empty() {
        text.push(' ');
    }
    text.push_str(more);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_stands_above_a_key_belongs_to_it() {
        let found = sections(
            "# The file.\n\n# One\n# more.\n#one = 1\n\n# All\n# of it.\n#[part]\n# Two.\ntwo = \"2 = 2\"\n#bare = 0\n",
        );
        let key = |name: &str, default: &str, about: &str| Key {
            name: name.into(),
            default: default.into(),
            about: about.into(),
        };
        let expected = [
            Section { name: String::new(), about: "The file.".into(), keys: vec![key("one", "1", "One more.")] },
            Section {
                name: "[part]".into(),
                about: "All of it.".into(),
                keys: vec![key("two", "\"2 = 2\"", "Two."), key("bare", "0", "")],
            },
        ];
        assert_eq!(found, expected);
    }

    #[test]
    fn no_line_of_the_example_is_passed_over() {
        let found = sections(EXAMPLE);
        let keys: usize = found.iter().map(|section| section.keys.len()).sum();
        assert_eq!(keys, EXAMPLE.lines().filter(|line| !line.starts_with("# ") && line.contains(" = ")).count());
        let text: String = found
            .iter()
            .flat_map(|section| {
                [section.about.clone()].into_iter().chain(section.keys.iter().map(|key| key.about.clone()))
            })
            .collect::<Vec<_>>()
            .join(" ");
        for line in EXAMPLE.lines().filter_map(|line| line.strip_prefix("# ")) {
            assert!(text.contains(line), "{line}");
        }
    }
}
