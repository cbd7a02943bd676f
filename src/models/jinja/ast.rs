//! The syntax tree of a template.

use std::sync::Arc;

use num_bigint::BigInt;

/// An expression.
#[derive(Debug)]
pub(super) enum Expr {
    None,
    Bool(bool),
    Int(BigInt),
    Float(f64),
    Str(String),
    Name(String),
    List(Vec<Expr>),
    Tuple(Vec<Expr>),
    Dict(Vec<(Expr, Expr)>),
    Attribute(Box<Expr>, String),
    Item(Box<Expr>, Box<Expr>),
    Slice(Box<Expr>, [Option<Box<Expr>>; 3]),
    Call(Box<Expr>, Box<Arguments>),
    /// A filter on a value, or on the text of a `{% filter %}` block if there is no value.
    Filter(Option<Box<Expr>>, String, Box<Arguments>),
    Test(Box<Expr>, String, Box<Arguments>),
    Not(Box<Expr>),
    Negative(Box<Expr>),
    Positive(Box<Expr>),
    Binary(BinaryOp, Box<Expr>, Box<Expr>),
    Concat(Vec<Expr>),
    And(Box<Expr>, Box<Expr>),
    Or(Box<Expr>, Box<Expr>),
    Compare(Box<Expr>, Vec<(CompareOp, Expr)>),
    /// Value, condition and value of the other case.
    Conditional(Box<Expr>, Box<Expr>, Option<Box<Expr>>),
}

/// Arguments of a call, a filter or a test.
#[derive(Debug, Default)]
pub(super) struct Arguments {
    pub(super) positional: Vec<Expr>,
    pub(super) named: Vec<(String, Expr)>,
    /// The argument after `*`.
    pub(super) sequence: Option<Expr>,
    /// The argument after `**`.
    pub(super) mapping: Option<Expr>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum BinaryOp {
    Add,
    Sub,
    Mul,
    Div,
    FloorDiv,
    Mod,
    Pow,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum CompareOp {
    Eq,
    Ne,
    Lt,
    Le,
    Gt,
    Ge,
    In,
    NotIn,
}

/// What an assignment assigns to.
#[derive(Debug)]
pub(super) enum Target {
    Name(String),
    /// An attribute of a namespace.
    Attribute(String, String),
    Tuple(Vec<Target>),
}

/// A statement with its line.
#[derive(Debug)]
pub(super) struct Stmt {
    pub(super) line: usize,
    pub(super) kind: StmtKind,
}

#[derive(Debug)]
pub(super) enum StmtKind {
    Text(String),
    Print(Expr),
    For(Arc<For>),
    /// Conditions with their bodies, and the body of the other case.
    If(Vec<(Expr, Vec<Stmt>)>, Vec<Stmt>),
    Set(Target, Expr),
    /// A name, filters of the text, and the block whose text is assigned.
    SetBlock(Target, Option<Expr>, Vec<Stmt>),
    With(Vec<(Target, Expr)>, Vec<Stmt>),
    Macro(Arc<MacroNode>),
    /// A call and the body that it receives as `caller`.
    Call(Expr, Arc<MacroNode>),
    Filter(Expr, Vec<Stmt>),
    Generation(Vec<Stmt>),
    /// A block, and whether it sees the variables around it.
    Block(Vec<Stmt>, bool),
    Break,
    Continue,
}

#[derive(Debug)]
pub(super) struct For {
    pub(super) target: Target,
    pub(super) iterable: Expr,
    pub(super) filter: Option<Expr>,
    pub(super) recursive: bool,
    pub(super) body: Vec<Stmt>,
    pub(super) otherwise: Vec<Stmt>,
}

#[derive(Debug)]
pub(super) struct MacroNode {
    pub(super) name: String,
    pub(super) line: usize,
    /// Names of the parameters with their defaults.
    pub(super) parameters: Vec<(String, Option<Expr>)>,
    pub(super) body: Vec<Stmt>,
    /// True if the body reads `varargs`, `kwargs` or `caller`.
    pub(super) reads_varargs: bool,
    pub(super) reads_kwargs: bool,
    pub(super) reads_caller: bool,
}
