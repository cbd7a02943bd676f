//! The parser: turns tokens into statements.

use std::sync::Arc;

use super::ast::{Expr, For, MacroNode, Stmt, StmtKind, Target};
use super::lexer::{Token, tokens};
use super::{Result, TemplateError, limits};

/// Expressions and blocks nested deeper than this are refused, as parser and renderer are recursive.
const MAX_DEPTH: usize = 100;

/// A parsed template.
pub(super) struct Parsed {
    pub(super) body: Vec<Stmt>,
    pub(super) has_generation_blocks: bool,
    /// Whether it has macros, recursive loops or long chains of operators.
    pub(super) may_recurse: bool,
}

/// Parses a template.
pub(super) fn parse(source: &str) -> Result<Parsed> {
    let tokens = tokens(source)?;
    let mut parser = Parser {
        tokens,
        position: 0,
        depth: 0,
        links: 0,
        loops: 0,
        has_generation_blocks: false,
        may_recurse: false,
    };
    let (body, _) = parser.statements(&[])?;
    let Parser { has_generation_blocks, may_recurse, .. } = parser;
    Ok(Parsed { body, has_generation_blocks, may_recurse })
}

pub(super) struct Parser {
    tokens: Vec<(Token, usize)>,
    position: usize,
    depth: usize,
    /// Number of operators, filters and attributes of the tag so far.
    links: usize,
    /// Number of loops around the position.
    loops: usize,
    has_generation_blocks: bool,
    may_recurse: bool,
}

impl Parser {
    pub(super) fn token(&self) -> &Token {
        &self.tokens[self.position].0
    }

    pub(super) fn ahead(&self) -> &Token {
        self.tokens.get(self.position + 1).map_or(&Token::End, |(token, _)| token)
    }

    pub(super) fn line(&self) -> usize {
        self.tokens[self.position].1
    }

    pub(super) fn next(&mut self) -> Token {
        let token = self.token().clone();
        if self.position + 1 < self.tokens.len() {
            self.position += 1;
        }
        token
    }

    pub(super) fn fail<T>(&self, message: impl Into<String>) -> Result<T> {
        Err(TemplateError::at(message, self.line()))
    }

    pub(super) fn unexpected<T>(&self, wanted: &str) -> Result<T> {
        self.fail(format!("expected {wanted}, found {}", describe(self.token())))
    }

    pub(super) fn is_operator(&self, operator: &str) -> bool {
        matches!(self.token(), Token::Operator(found) if *found == operator)
    }

    pub(super) fn skip_operator(&mut self, operator: &str) -> bool {
        let found = self.is_operator(operator);
        if found {
            self.next();
        }
        found
    }

    pub(super) fn expect_operator(&mut self, operator: &str) -> Result<()> {
        if self.skip_operator(operator) { Ok(()) } else { self.unexpected(&format!("{operator:?}")) }
    }

    pub(super) fn is_name(&self, name: &str) -> bool {
        matches!(self.token(), Token::Name(found) if found == name)
    }

    pub(super) fn skip_name(&mut self, name: &str) -> bool {
        let found = self.is_name(name);
        if found {
            self.next();
        }
        found
    }

    pub(super) fn expect_name(&mut self) -> Result<String> {
        match self.token().clone() {
            Token::Name(name) => {
                self.next();
                Ok(name)
            }
            _ => self.unexpected("a name"),
        }
    }

    /// Runs a rule one level deeper.
    pub(super) fn nested<T>(&mut self, rule: impl FnOnce(&mut Self) -> Result<T>) -> Result<T> {
        self.depth += 1;
        let result = if self.depth > MAX_DEPTH {
            self.fail(format!("expressions or blocks are nested too deeply; the limit is {MAX_DEPTH}"))
        } else {
            rule(self)
        };
        self.depth -= 1;
        result
    }

    /// Counts an operator, filter or attribute of a chain, each of which makes the tree of the tag deeper.
    pub(super) fn link(&mut self) -> Result<()> {
        self.links += 1;
        self.may_recurse |= self.links > limits::LONG_CHAIN;
        if self.links > limits::MAX_CHAIN {
            let limit = limits::MAX_CHAIN;
            return self.fail(format!("a tag has more than {limit} operators, filters and attributes"));
        }
        Ok(())
    }

    /// Fails for more arguments or parameters than a call may have.
    pub(super) fn few_arguments(&self, count: usize) -> Result<()> {
        let limit = limits::MAX_ARGUMENTS;
        if count > limit {
            return self.fail(format!("a call or a macro has more than {limit} arguments"));
        }
        Ok(())
    }

    /// Statements up to one of the tags, whose name is returned and skipped. Its end is not skipped.
    fn statements(&mut self, ends: &[&str]) -> Result<(Vec<Stmt>, String)> {
        self.nested(|parser| parser.statement_list(ends))
    }

    fn statement_list(&mut self, ends: &[&str]) -> Result<(Vec<Stmt>, String)> {
        let mut body = Vec::new();
        loop {
            let line = self.line();
            self.links = 0;
            match self.next() {
                Token::Text(text) => body.push(Stmt { line, kind: StmtKind::Text(text) }),
                Token::VariableBegin => {
                    let value = self.tuple(true, false, &[])?;
                    if *self.token() != Token::VariableEnd {
                        return self.unexpected("}}");
                    }
                    self.next();
                    body.push(Stmt { line, kind: StmtKind::Print(value) });
                }
                Token::BlockBegin => {
                    let line = self.line();
                    let name = self.expect_name()?;
                    if ends.contains(&name.as_str()) {
                        return Ok((body, name));
                    }
                    self.statement(&name, line, &mut body)?;
                    self.block_end()?;
                }
                Token::End if ends.is_empty() => return Ok((body, String::new())),
                _ => {
                    return self
                        .fail(format!("the template ends before {{% {} %}}", ends.last().unwrap_or(&"")));
                }
            }
        }
    }

    fn block_end(&mut self) -> Result<()> {
        if *self.token() != Token::BlockEnd {
            return self.unexpected("%}");
        }
        self.next();
        Ok(())
    }

    /// The body of a block up to its end tag.
    fn body(&mut self, end: &str) -> Result<Vec<Stmt>> {
        self.block_end()?;
        Ok(self.statements(&[end])?.0)
    }

    fn statement(&mut self, name: &str, line: usize, body: &mut Vec<Stmt>) -> Result<()> {
        let kind = match name {
            "for" => self.for_loop()?,
            "if" => self.conditional()?,
            "set" => self.assignment()?,
            "with" => self.with()?,
            "macro" => {
                let name = self.expect_name()?;
                let parameters = self.signature()?;
                StmtKind::Macro(Arc::new(self.macro_node(name, line, parameters, "endmacro")?))
            }
            "call" => {
                let parameters = if self.is_operator("(") { self.signature()? } else { Vec::new() };
                let call = self.expression(true)?;
                if !matches!(call, Expr::Call(..)) {
                    return self.fail("expected a call after {% call");
                }
                StmtKind::Call(call, Arc::new(self.macro_node("caller".into(), line, parameters, "endcall")?))
            }
            "filter" => {
                let filter = self.filters(None, true)?;
                StmtKind::Filter(filter, self.body("endfilter")?)
            }
            "generation" => {
                self.has_generation_blocks = true;
                StmtKind::Generation(self.body_outside_loops("endgeneration")?)
            }
            "block" => {
                let name = self.expect_name()?;
                let scoped = self.skip_name("scoped");
                if self.is_name("required") {
                    return self
                        .fail("required blocks need a second template, which chat templates have not");
                }
                let body = self.body("endblock")?;
                self.skip_name(&name);
                StmtKind::Block(body, scoped)
            }
            "print" => {
                while *self.token() != Token::BlockEnd {
                    let value = self.expression(true)?;
                    body.push(Stmt { line, kind: StmtKind::Print(value) });
                    if *self.token() != Token::BlockEnd {
                        self.expect_operator(",")?;
                    }
                }
                return Ok(());
            }
            "break" | "continue" if self.loops == 0 => {
                return self.fail(format!("{{% {name} %}} outside of a loop"));
            }
            "break" => StmtKind::Break,
            "continue" => StmtKind::Continue,
            "include" | "import" | "from" | "extends" => {
                return self
                    .fail(format!("{{% {name} %}} needs a second template, which chat templates have not"));
            }
            "autoescape" => return self.fail("{% autoescape %} is not supported: chats are not HTML"),
            _ => return self.fail(format!("unknown tag {{% {name} %}}")),
        };
        body.push(Stmt { line, kind });
        Ok(())
    }

    /// Parses a body whose `break` and `continue` reach no loop around it. The number of loops is restored after an error
    /// too, because the loops around count themselves out on the way.
    fn body_outside_loops(&mut self, end: &str) -> Result<Vec<Stmt>> {
        let loops = std::mem::take(&mut self.loops);
        let body = self.body(end);
        self.loops = loops;
        body
    }

    fn for_loop(&mut self) -> Result<StmtKind> {
        let target = self.target(false, &["in"])?;
        if !self.skip_name("in") {
            return self.unexpected("`in`");
        }
        let iterable = self.tuple(false, false, &["recursive"])?;
        let filter = if self.skip_name("if") { Some(self.expression(true)?) } else { None };
        let recursive = self.skip_name("recursive");
        self.may_recurse |= recursive;
        self.block_end()?;
        self.loops += 1;
        let result = self.statements(&["endfor", "else"]);
        self.loops -= 1;
        let (body, end) = result?;
        let otherwise = if end == "else" { self.body("endfor")? } else { Vec::new() };
        Ok(StmtKind::For(Arc::new(For { target, iterable, filter, recursive, body, otherwise })))
    }

    fn conditional(&mut self) -> Result<StmtKind> {
        let mut branches = Vec::new();
        loop {
            let condition = self.tuple(false, false, &[])?;
            self.block_end()?;
            let (body, end) = self.statements(&["elif", "else", "endif"])?;
            branches.push((condition, body));
            match end.as_str() {
                "elif" => {}
                "else" => return Ok(StmtKind::If(branches, self.body("endif")?)),
                _ => return Ok(StmtKind::If(branches, Vec::new())),
            }
        }
    }

    fn assignment(&mut self) -> Result<StmtKind> {
        let target = self.target(true, &[])?;
        if self.skip_operator("=") {
            return Ok(StmtKind::Set(target, self.tuple(true, false, &[])?));
        }
        let filter = if self.is_operator("|") { Some(self.filters(None, false)?) } else { None };
        Ok(StmtKind::SetBlock(target, filter, self.body("endset")?))
    }

    fn with(&mut self) -> Result<StmtKind> {
        let mut values = Vec::new();
        while *self.token() != Token::BlockEnd {
            if !values.is_empty() {
                self.expect_operator(",")?;
            }
            let target = self.single_target()?;
            self.expect_operator("=")?;
            values.push((target, self.expression(true)?));
        }
        Ok(StmtKind::With(values, self.body("endwith")?))
    }

    fn single_target(&mut self) -> Result<Target> {
        self.target(false, &[])
    }

    fn signature(&mut self) -> Result<Vec<(String, Option<Expr>)>> {
        let mut parameters: Vec<(String, Option<Expr>)> = Vec::new();
        self.expect_operator("(")?;
        while !self.is_operator(")") {
            if !parameters.is_empty() {
                self.expect_operator(",")?;
            }
            self.few_arguments(parameters.len() + 1)?;
            let name = self.expect_name()?;
            let default = if self.skip_operator("=") { Some(self.expression(true)?) } else { None };
            if default.is_none() && parameters.iter().any(|(_, default)| default.is_some()) {
                return self.fail("a parameter without a default follows one with a default");
            }
            parameters.push((name, default));
        }
        self.expect_operator(")")?;
        Ok(parameters)
    }

    fn macro_node(
        &mut self,
        name: String,
        line: usize,
        parameters: Vec<(String, Option<Expr>)>,
        end: &str,
    ) -> Result<MacroNode> {
        self.may_recurse = true;
        let start = self.position;
        let body = self.body_outside_loops(end)?;
        let reads = |name: &str| {
            self.tokens[start..self.position]
                .iter()
                .any(|(token, _)| matches!(token, Token::Name(n) if n == name))
        };
        let is_special =
            |name: &str| reads(name) && !parameters.iter().any(|(parameter, _)| parameter == name);
        let (reads_varargs, reads_kwargs) = (is_special("varargs"), is_special("kwargs"));
        let reads_caller = reads("caller");
        Ok(MacroNode { name, line, parameters, body, reads_varargs, reads_kwargs, reads_caller })
    }

    /// What is assigned to: names, tuples of names and, where `namespaces` is set, their attributes.
    fn target(&mut self, namespaces: bool, ends: &[&str]) -> Result<Target> {
        let mut targets = Vec::new();
        let mut is_tuple = false;
        loop {
            if self.skip_operator("(") {
                targets.push(self.nested(|parser| parser.target(namespaces, &[]))?);
                self.expect_operator(")")?;
            } else {
                let name = self.expect_name()?;
                if matches!(name.as_str(), "true" | "false" | "none" | "True" | "False" | "None") {
                    return self.fail(format!("{name} cannot be assigned to"));
                }
                if namespaces && self.skip_operator(".") {
                    targets.push(Target::Attribute(name, self.expect_name()?));
                } else {
                    targets.push(Target::Name(name));
                }
            }
            if !self.skip_operator(",") {
                break;
            }
            is_tuple = true;
            let ended = matches!(self.token(), Token::Name(name) if ends.contains(&name.as_str()));
            if ended || self.is_operator("=") || self.is_operator(")") {
                break;
            }
        }
        match targets.pop() {
            Some(target) if !is_tuple => Ok(target),
            last => {
                targets.extend(last);
                Ok(Target::Tuple(targets))
            }
        }
    }
}

/// A token as messages name it.
fn describe(token: &Token) -> String {
    match token {
        Token::Text(_) => "text".into(),
        Token::BlockBegin => "{%".into(),
        Token::BlockEnd => "%}".into(),
        Token::VariableBegin => "{{".into(),
        Token::VariableEnd => "}}".into(),
        Token::Name(name) => name.clone(),
        Token::Str(text) => format!("{text:?}"),
        Token::Int(value) => value.to_string(),
        Token::Float(value) => value.to_string(),
        Token::Operator(operator) => format!("{operator:?}"),
        Token::End => "the end of the template".into(),
    }
}
