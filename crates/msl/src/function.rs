//! Functions with bodies, wherever they are: in namespaces and in classes.

use std::ops::Range;

use crate::item::{Item, ItemKind};
use crate::lexer::{Source, TokenKind};

/// A function with its body, as token indices into its [`Source`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Function {
    /// All of its tokens, `template <...>` lists and attributes included.
    pub tokens: Range<usize>,
    /// Its name; the last token of it for an operator.
    pub name: usize,
    /// Parentheses around its parameters.
    pub parameters: (usize, usize),
    /// Braces around its body.
    pub body: (usize, usize),
    /// Whether it is a kernel.
    pub is_kernel: bool,
    /// Name of the class that it is a member of, as a token; `None` outside of classes.
    pub class: Option<usize>,
}

impl Source<'_> {
    /// Every function with a body, in the order of the text.
    pub fn functions(&self) -> Vec<Function> {
        let mut found = Vec::new();
        self.collect(0..self.tokens().len(), None, &mut found);
        found
    }

    fn collect(&self, range: Range<usize>, class: Option<usize>, found: &mut Vec<Function>) {
        for item in self.items(range) {
            match (item.kind, item.body) {
                (ItemKind::Namespace, Some((open, close))) => self.collect(open + 1..close, class, found),
                (ItemKind::Type, Some((open, close))) => {
                    self.collect(open + 1..close, Some(self.class_name(&item, open)), found);
                }
                (ItemKind::Function, Some(body)) => found.extend(self.function(&item, body, class)),
                _ => {}
            }
        }
    }

    /// The name of a class whose body begins at token `open`: the first word after `struct` that is no attribute.
    fn class_name(&self, item: &Item, open: usize) -> usize {
        let mut index = item.head + 1;
        while index < open {
            match self.at(index) {
                "alignas" | "__attribute__" => index = self.close(index + 1).unwrap_or(index) + 1,
                "[" => index = self.close(index).unwrap_or(index) + 1,
                _ if self.tokens()[index].kind == TokenKind::Word => return index,
                _ => index += 1,
            }
        }
        open
    }

    fn function(&self, item: &Item, body: (usize, usize), class: Option<usize>) -> Option<Function> {
        let mut index = item.head;
        while index < body.0 {
            match self.at(index) {
                "operator" => {
                    index += 1;
                    while index < body.0 && self.at(index) != "(" {
                        index += 1;
                    }
                    if self.at(index + 1) == ")" && self.at(index + 2) == "(" {
                        index += 2;
                    }
                    break;
                }
                "decltype" | "alignas" | "__attribute__" => index = self.close(index + 1)? + 1,
                "<" | "[" => index = self.close(index).filter(|c| *c < body.0).unwrap_or(index) + 1,
                "(" => break,
                _ => index += 1,
            }
        }
        let close = self.close(index).filter(|c| *c < body.0)?;
        Some(Function {
            tokens: item.tokens.clone(),
            name: index.checked_sub(1)?,
            parameters: (index, close),
            body,
            is_kernel: (item.tokens.start..index).any(|i| self.at(i) == "kernel"),
            class,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn members_and_operators() {
        let text =
            "struct alignas(8) S { S(int a) : a_{a} {} bool operator()(int x) const { return x; } int a_; };
                    namespace n { template <class T> [[kernel]] void f(device T* x) { } }
                    decltype(1) g(void) { return 1; }";
        let source = Source::lex(text).unwrap();
        let functions: Vec<_> = source
            .functions()
            .iter()
            .map(|f| {
                let (open, close) = f.parameters;
                (source.join(open..close + 1), f.class.map(|c| source.at(c)), f.is_kernel)
            })
            .collect();
        let expected = [
            ("(int a)", Some("S"), false),
            ("(int x)", Some("S"), false),
            ("(device T* x)", None, true),
            ("(void)", None, false),
        ];
        assert_eq!(functions, expected.map(|(p, c, k)| (p.to_string(), c, k)));
    }
}
