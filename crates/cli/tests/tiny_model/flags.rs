//! Arguments of the tool, of which every flag is given once.

/// Arguments with others added, whose flags replace those of the same name: a flag is given once.
pub(crate) fn replaced<'a>(arguments: &[&'a str], more: &[&'a str]) -> Vec<&'a str> {
    let mut all = Vec::new();
    let mut rest = arguments.iter().peekable();
    while let Some(word) = rest.next() {
        if word.starts_with("--") && more.contains(word) {
            rest.next_if(|value| !value.starts_with("--"));
        } else {
            all.push(*word);
        }
    }
    all.extend_from_slice(more);
    all
}
