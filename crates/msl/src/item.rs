//! Declarations at the scope of a namespace or a class: where each begins and ends.

use std::ops::Range;

use crate::lexer::Source;

/// What an [`Item`] is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ItemKind {
    /// `namespace n { ... }` or `extern "C" { ... }`.
    Namespace,
    /// A function with its body.
    Function,
    /// `struct`, `class` or `union` with its body.
    Type,
    /// Anything else that `;` ends: a declaration, a variable, an alias, an explicit instantiation.
    Declaration,
}

/// One declaration, as token indices into its [`Source`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Item {
    /// What it is.
    pub kind: ItemKind,
    /// All of its tokens, the closing `;` or `}` included.
    pub tokens: Range<usize>,
    /// Where its name begins: after `template <...>` lists and attributes.
    pub head: usize,
    /// Indices of the braces around the body of a namespace, function or type.
    pub body: Option<(usize, usize)>,
}

impl Source<'_> {
    /// The declarations in tokens `range`, which is a whole file or the inside of a namespace or class body.
    pub fn items(&self, range: Range<usize>) -> Vec<Item> {
        let (mut items, mut index) = (Vec::new(), range.start);
        while index < range.end {
            let label =
                matches!(self.at(index), "public" | "private" | "protected") && self.at(index + 1) == ":";
            if label {
                index += 2;
            } else if self.at(index) == ";" {
                index += 1;
            } else {
                let item = self.item(index, range.end);
                index = item.tokens.end;
                items.push(item);
            }
        }
        items
    }

    /// The first token at or after `index` that is no `template <...>` list and no attribute.
    pub(crate) fn head(&self, mut index: usize) -> usize {
        loop {
            let open = match (self.at(index), self.at(index + 1)) {
                ("template", "<") => index + 1,
                ("[", "[") => index,
                _ => return index,
            };
            match self.close(open) {
                Some(close) => index = close + 1,
                None => return index,
            }
        }
    }

    fn item(&self, start: usize, limit: usize) -> Item {
        let head = self.head(start);
        let named = match (self.at(head), self.at(head + 1)) {
            ("namespace", _) | ("inline", "namespace") => Some(ItemKind::Namespace),
            ("extern", _) if self.at(head + 2) == "{" => Some(ItemKind::Namespace),
            ("struct" | "class" | "union" | "enum", _) => Some(ItemKind::Type),
            ("typedef" | "using" | "static_assert", _) => Some(ItemKind::Declaration),
            _ => None,
        };
        let (mut parenthesis, mut assigned, mut index) = (false, false, head);
        let mut body = None;
        while index < limit {
            match self.at(index) {
                ";" => {
                    index += 1;
                    break;
                }
                "(" | "[" => {
                    parenthesis |= self.at(index) == "(";
                    index = self.close(index).unwrap_or(index) + 1;
                }
                "<" if self.at(index - 1) != "operator" => {
                    index = self.close(index).filter(|c| *c < limit).unwrap_or(index) + 1;
                }
                "=" => {
                    assigned |= self.at(index.saturating_sub(1)) != "operator";
                    index += 1;
                }
                "{" => {
                    let Some(close) = self.close(index) else {
                        index = limit;
                        break;
                    };
                    let function = named.is_none() && parenthesis && !assigned;
                    // `S(int a) : a_{a} {`: the brace of a member, not the body.
                    let member = function && matches!(self.at(close + 1), "," | "{");
                    let namespace = named == Some(ItemKind::Namespace);
                    if body.is_none() && !member && (function || namespace || named == Some(ItemKind::Type)) {
                        body = Some((index, close));
                    }
                    index = close + 1;
                    if (function && !member) || namespace {
                        break;
                    }
                }
                _ => index += 1,
            }
        }
        let kind = match (named, body) {
            (Some(kind), Some(_)) => kind,
            (None, Some(_)) => ItemKind::Function,
            (_, None) => ItemKind::Declaration,
        };
        Item { kind, tokens: start..index.min(limit), head, body }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn declarations_end_where_they_should() {
        let text = "namespace a { int f(int x) { return x; } }\n\
                    template <class T = S<int, (2 > 1)>> struct P { P(int a) : a_{a} { } int a_; } p;\n\
                    constant int t[2] = {1, 2};\n\
                    template <> inline bool operator<(P x, P y) { return x.a_ < y.a_; }\n\
                    enum E { one };";
        let source = Source::lex(text).unwrap();
        let items = source.items(0..source.tokens().len());
        let kinds: Vec<_> = items.iter().map(|i| i.kind).collect();
        use ItemKind::{Declaration, Function, Namespace, Type};
        assert_eq!(kinds, [Namespace, Type, Declaration, Function, Type]);
        let (open, close) = items[1].body.unwrap();
        let inner: Vec<_> = source.items(open + 1..close).iter().map(|i| i.kind).collect();
        assert_eq!(inner, [Function, Declaration]);
    }
}
