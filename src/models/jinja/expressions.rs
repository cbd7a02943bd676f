//! The parser's rules for expressions, in the order of their precedence.

use super::Result;
use super::ast::{Arguments, BinaryOp, CompareOp, Expr};
use super::lexer::Token;
use super::parser::Parser;

impl Parser {
    /// Expressions with commas between them, which make a tuple.
    pub(super) fn tuple(&mut self, conditional: bool, parenthesized: bool, ends: &[&str]) -> Result<Expr> {
        let mut items = Vec::new();
        let mut is_tuple = false;
        loop {
            let ended = match self.token() {
                Token::VariableEnd | Token::BlockEnd => true,
                Token::Operator(operator) => *operator == ")",
                Token::Name(name) => ends.contains(&name.as_str()),
                _ => false,
            };
            if ended {
                break;
            }
            items.push(self.expression(conditional)?);
            if !self.skip_operator(",") {
                break;
            }
            is_tuple = true;
        }
        if is_tuple {
            return Ok(Expr::Tuple(items));
        }
        match items.pop() {
            Some(item) => Ok(item),
            None if parenthesized => Ok(Expr::Tuple(items)),
            None => self.unexpected("an expression"),
        }
    }

    pub(super) fn expression(&mut self, conditional: bool) -> Result<Expr> {
        self.nested(|parser| if conditional { parser.conditional_expression() } else { parser.or() })
    }

    fn conditional_expression(&mut self) -> Result<Expr> {
        let mut value = self.or()?;
        while self.skip_name("if") {
            self.link()?;
            let condition = self.or()?;
            let otherwise = if self.skip_name("else") {
                Some(Box::new(self.nested(Self::conditional_expression)?))
            } else {
                None
            };
            value = Expr::Conditional(Box::new(value), Box::new(condition), otherwise);
        }
        Ok(value)
    }

    fn or(&mut self) -> Result<Expr> {
        let mut left = self.and()?;
        while self.skip_name("or") {
            self.link()?;
            left = Expr::Or(Box::new(left), Box::new(self.and()?));
        }
        Ok(left)
    }

    fn and(&mut self) -> Result<Expr> {
        let mut left = self.not()?;
        while self.skip_name("and") {
            self.link()?;
            left = Expr::And(Box::new(left), Box::new(self.not()?));
        }
        Ok(left)
    }

    fn not(&mut self) -> Result<Expr> {
        if self.skip_name("not") {
            return Ok(Expr::Not(Box::new(self.nested(Self::not)?)));
        }
        self.compare()
    }

    fn compare(&mut self) -> Result<Expr> {
        let first = self.sum()?;
        let mut operands = Vec::new();
        loop {
            let operator = match self.token() {
                Token::Operator("==") => CompareOp::Eq,
                Token::Operator("!=") => CompareOp::Ne,
                Token::Operator("<") => CompareOp::Lt,
                Token::Operator("<=") => CompareOp::Le,
                Token::Operator(">") => CompareOp::Gt,
                Token::Operator(">=") => CompareOp::Ge,
                Token::Name(name) if name == "in" => CompareOp::In,
                Token::Name(name) if name == "not" && matches!(self.ahead(), Token::Name(n) if n == "in") => {
                    self.next();
                    CompareOp::NotIn
                }
                _ => break,
            };
            self.next();
            operands.push((operator, self.sum()?));
        }
        Ok(if operands.is_empty() { first } else { Expr::Compare(Box::new(first), operands) })
    }

    fn sum(&mut self) -> Result<Expr> {
        let mut left = self.concat()?;
        loop {
            let operator = match self.token() {
                Token::Operator("+") => BinaryOp::Add,
                Token::Operator("-") => BinaryOp::Sub,
                _ => return Ok(left),
            };
            self.next();
            self.link()?;
            left = Expr::Binary(operator, Box::new(left), Box::new(self.concat()?));
        }
    }

    fn concat(&mut self) -> Result<Expr> {
        let first = self.product()?;
        if !self.is_operator("~") {
            return Ok(first);
        }
        let mut items = vec![first];
        while self.skip_operator("~") {
            items.push(self.product()?);
        }
        Ok(Expr::Concat(items))
    }

    fn product(&mut self) -> Result<Expr> {
        let mut left = self.power()?;
        loop {
            let operator = match self.token() {
                Token::Operator("*") => BinaryOp::Mul,
                Token::Operator("/") => BinaryOp::Div,
                Token::Operator("//") => BinaryOp::FloorDiv,
                Token::Operator("%") => BinaryOp::Mod,
                _ => return Ok(left),
            };
            self.next();
            self.link()?;
            left = Expr::Binary(operator, Box::new(left), Box::new(self.power()?));
        }
    }

    /// Powers associate to the left, as in Jinja2 and unlike in Python.
    fn power(&mut self) -> Result<Expr> {
        let mut left = self.unary(true)?;
        while self.skip_operator("**") {
            self.link()?;
            left = Expr::Binary(BinaryOp::Pow, Box::new(left), Box::new(self.unary(true)?));
        }
        Ok(left)
    }

    fn unary(&mut self, with_filters: bool) -> Result<Expr> {
        let value = if self.skip_operator("-") {
            Expr::Negative(Box::new(self.nested(|parser| parser.unary(false))?))
        } else if self.skip_operator("+") {
            Expr::Positive(Box::new(self.nested(|parser| parser.unary(false))?))
        } else {
            self.primary()?
        };
        let value = self.postfix(value)?;
        if with_filters { self.filters_and_tests(value) } else { Ok(value) }
    }

    fn primary(&mut self) -> Result<Expr> {
        match self.token().clone() {
            Token::Name(name) => {
                self.next();
                Ok(match name.as_str() {
                    "true" | "True" => Expr::Bool(true),
                    "false" | "False" => Expr::Bool(false),
                    "none" | "None" => Expr::None,
                    _ => Expr::Name(name),
                })
            }
            Token::Str(mut text) => {
                self.next();
                while let Token::Str(more) = self.token() {
                    text.push_str(more);
                    self.next();
                }
                Ok(Expr::Str(text))
            }
            Token::Int(value) => {
                self.next();
                Ok(Expr::Int(value))
            }
            Token::Float(value) => {
                self.next();
                Ok(Expr::Float(value))
            }
            Token::Operator("(") => {
                self.next();
                let value = self.tuple(true, true, &[])?;
                self.expect_operator(")")?;
                Ok(value)
            }
            Token::Operator("[") => {
                self.next();
                let mut items = Vec::new();
                while !self.is_operator("]") {
                    items.push(self.expression(true)?);
                    if !self.is_operator("]") {
                        self.expect_operator(",")?;
                    }
                }
                self.next();
                Ok(Expr::List(items))
            }
            Token::Operator("{") => {
                self.next();
                let mut items = Vec::new();
                while !self.is_operator("}") {
                    let key = self.expression(true)?;
                    self.expect_operator(":")?;
                    items.push((key, self.expression(true)?));
                    if !self.is_operator("}") {
                        self.expect_operator(",")?;
                    }
                }
                self.next();
                Ok(Expr::Dict(items))
            }
            _ => self.unexpected("an expression"),
        }
    }

    fn postfix(&mut self, mut value: Expr) -> Result<Expr> {
        loop {
            if let Token::Operator("." | "[" | "(") = self.token() {
                self.link()?;
            }
            value = match self.token() {
                Token::Operator(".") => {
                    self.next();
                    match self.next() {
                        Token::Name(name) => Expr::Attribute(Box::new(value), name),
                        Token::Int(index) => Expr::Item(Box::new(value), Box::new(Expr::Int(index))),
                        _ => return self.fail("expected a name or number after the dot"),
                    }
                }
                Token::Operator("[") => {
                    self.next();
                    self.subscript(value)?
                }
                Token::Operator("(") => Expr::Call(Box::new(value), Box::new(self.arguments()?)),
                _ => return Ok(value),
            };
        }
    }

    fn subscript(&mut self, value: Expr) -> Result<Expr> {
        let mut indices = Vec::new();
        let mut comma = false;
        while !self.is_operator("]") {
            let first = if self.is_operator(":") { None } else { Some(Box::new(self.expression(true)?)) };
            if self.skip_operator(":") {
                let bound = |parser: &mut Self| -> Result<Option<Box<Expr>>> {
                    let absent = [":", "]", ","].iter().any(|operator| parser.is_operator(operator));
                    Ok(if absent { None } else { Some(Box::new(parser.expression(true)?)) })
                };
                let stop = bound(self)?;
                let step = if self.skip_operator(":") { bound(self)? } else { None };
                if comma || self.is_operator(",") {
                    return self.fail("a slice among several indices is not supported");
                }
                self.expect_operator("]")?;
                return Ok(Expr::Slice(Box::new(value), [first, stop, step]));
            }
            indices.extend(first.map(|first| *first));
            if self.is_operator("]") {
                break;
            }
            self.expect_operator(",")?;
            comma = true;
        }
        self.next();
        let index = match indices.pop() {
            Some(index) if indices.is_empty() => index,
            last => {
                indices.extend(last);
                Expr::Tuple(indices)
            }
        };
        Ok(Expr::Item(Box::new(value), Box::new(index)))
    }

    fn arguments(&mut self) -> Result<Arguments> {
        let mut arguments = Arguments::default();
        self.expect_operator("(")?;
        while !self.is_operator(")") {
            let keyword = match (self.token(), self.ahead()) {
                (Token::Name(name), Token::Operator("=")) => Some(name.clone()),
                _ => None,
            };
            let is_misplaced = if self.skip_operator("*") {
                let misplaced = arguments.sequence.is_some() || arguments.mapping.is_some();
                arguments.sequence = Some(self.expression(true)?);
                misplaced
            } else if self.skip_operator("**") {
                let misplaced = arguments.mapping.is_some();
                arguments.mapping = Some(self.expression(true)?);
                misplaced
            } else if let Some(name) = keyword {
                self.next();
                self.next();
                let misplaced = arguments.mapping.is_some();
                if arguments.named.iter().any(|(other, _)| *other == name) {
                    return self.fail(format!("the keyword argument {name} is repeated"));
                }
                arguments.named.push((name, self.expression(true)?));
                misplaced
            } else {
                let misplaced = arguments.sequence.is_some()
                    || arguments.mapping.is_some()
                    || !arguments.named.is_empty();
                arguments.positional.push(self.expression(true)?);
                misplaced
            };
            if is_misplaced {
                return self.fail("arguments are in the wrong order");
            }
            if !self.is_operator(")") {
                self.expect_operator(",")?;
            }
        }
        self.next();
        Ok(arguments)
    }

    fn filters_and_tests(&mut self, mut value: Expr) -> Result<Expr> {
        loop {
            value = if self.is_operator("|") {
                self.filters(Some(value), false)?
            } else if self.skip_name("is") {
                self.link()?;
                self.test(value)?
            } else if self.is_operator("(") {
                self.link()?;
                Expr::Call(Box::new(value), Box::new(self.arguments()?))
            } else {
                return Ok(value);
            };
        }
    }

    /// Filters after a value. `inline` starts with the filter's name, as in `{% filter upper %}`.
    pub(super) fn filters(&mut self, value: Option<Expr>, inline: bool) -> Result<Expr> {
        let mut value = value;
        let mut inline = inline;
        loop {
            if !inline && !self.skip_operator("|") {
                return match value {
                    Some(value) => Ok(value),
                    None => self.unexpected("a filter"),
                };
            }
            inline = false;
            self.link()?;
            let name = self.dotted_name()?;
            let arguments = if self.is_operator("(") { self.arguments()? } else { Arguments::default() };
            value = Some(Expr::Filter(value.map(Box::new), name, Box::new(arguments)));
        }
    }

    fn dotted_name(&mut self) -> Result<String> {
        let mut name = self.expect_name()?;
        while self.skip_operator(".") {
            name = format!("{name}.{}", self.expect_name()?);
        }
        Ok(name)
    }

    fn test(&mut self, value: Expr) -> Result<Expr> {
        let negated = self.skip_name("not");
        let name = self.dotted_name()?;
        let starts_argument = match self.token() {
            Token::Operator(operator) => matches!(*operator, "[" | "{"),
            Token::Name(name) => !matches!(name.as_str(), "else" | "or" | "and"),
            token => matches!(token, Token::Str(_) | Token::Int(_) | Token::Float(_)),
        };
        let arguments = if self.is_operator("(") {
            self.arguments()?
        } else if starts_argument {
            if self.is_name("is") {
                return self.fail("tests cannot be chained with `is`");
            }
            let argument = self.primary()?;
            Arguments { positional: vec![self.postfix(argument)?], ..Arguments::default() }
        } else {
            Arguments::default()
        };
        let test = Expr::Test(Box::new(value), name, Box::new(arguments));
        Ok(if negated { Expr::Not(Box::new(test)) } else { test })
    }
}
