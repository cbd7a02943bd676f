//! Names of base models with a revision, which PEFT keeps in a field of its own.

/// Returns true for `owner/model`, the only form of a name that has revisions.
fn is_repository(name: &str) -> bool {
    let is_part = |part: &str| {
        let plain = |c: char| c.is_ascii_alphanumeric() || "-_.".contains(c);
        part.starts_with(|c: char| c.is_ascii_alphanumeric()) && part.chars().all(plain)
    };
    name.split_once('/').is_some_and(|(owner, name)| is_part(owner) && is_part(name))
}

/// Adds PEFT's `revision` to the name of a repository; a file of it comes last, as in `owner/model@revision:file`.
pub(super) fn with_revision(base: &str, revision: Option<&str>) -> String {
    let (name, file) = base.split_once(':').map_or((base, None), |(name, file)| (name, Some(file)));
    match revision.filter(|revision| !revision.is_empty() && *revision != "main") {
        Some(revision) if is_repository(name) => {
            format!("{name}@{revision}{}", file.map(|file| format!(":{file}")).unwrap_or_default())
        }
        _ => base.to_owned(),
    }
}

/// The reverse of [`with_revision`].
pub(super) fn without_revision(base: &str) -> (String, Option<String>) {
    match base.split_once('@') {
        Some((name, rest)) if is_repository(name) => {
            let (revision, file) = rest.split_once(':').map_or((rest, None), |(r, file)| (r, Some(file)));
            let file = file.map(|file| format!(":{file}")).unwrap_or_default();
            (format!("{name}{file}"), Some(revision.to_owned()))
        }
        _ => (base.to_owned(), None),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn revisions_are_of_repositories_only() {
        for (base, revision, name) in [
            ("a/b", "v1", "a/b@v1"),
            ("a/b:c.gguf", "v1", "a/b@v1:c.gguf"),
            ("/models/b", "v1", "/models/b"),
            ("./b", "v1", "./b"),
            ("b", "v1", "b"),
        ] {
            assert_eq!(with_revision(base, Some(revision)), name);
            let back = without_revision(name);
            assert_eq!(back, (base.to_owned(), name.contains('@').then(|| revision.to_owned())));
        }
        assert_eq!(without_revision("/models/a@b"), ("/models/a@b".to_owned(), None));
    }
}
