//! The arguments of a kernel.

use std::fmt;
use std::ops::Range;

use crate::error::Error;
use crate::lexer::{Source, TokenKind};

/// Where a pointer or reference points (specification, section 4).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum AddressSpace {
    /// Buffers that kernels may write.
    Device,
    /// Read-only buffers.
    Constant,
    /// Memory that a threadgroup shares.
    Threadgroup,
    /// A thread's own memory.
    Thread,
}

impl AddressSpace {
    /// The address space that keyword `word` names.
    pub fn from_keyword(word: &str) -> Option<Self> {
        Some(match word {
            "device" => AddressSpace::Device,
            "constant" => AddressSpace::Constant,
            "threadgroup" => AddressSpace::Threadgroup,
            "thread" => AddressSpace::Thread,
            _ => return None,
        })
    }
}

/// How an argument is passed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Passing {
    /// By value: only what the GPU supplies, such as positions.
    Value,
    /// `T*`
    Pointer,
    /// `T&`
    Reference,
}

/// What an argument is bound to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Role {
    /// `[[buffer(n)]]`, or the lowest index that no argument names where the attribute is absent.
    Buffer(u32),
    /// `[[threadgroup(n)]]`: memory whose length the host sets.
    Threadgroup(u32),
    /// A value that the GPU supplies.
    Builtin(Builtin),
}

macro_rules! builtins {
    ($($variant:ident $keyword:literal $components:literal $doc:literal;)*) => {
        /// A value that the GPU supplies to each thread (specification, section 5.2.3.6).
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        pub enum Builtin {
            $(#[doc = $doc] $variant,)*
        }

        impl Builtin {
            /// The built-in value that attribute `word` asks for.
            pub fn from_attribute(word: &str) -> Option<Self> {
                Some(match word { $($keyword => Builtin::$variant,)* _ => return None })
            }

            /// The attribute that asks for it.
            pub fn attribute(self) -> &'static str {
                match self { $(Builtin::$variant => $keyword,)* }
            }

            /// 3 for positions and sizes, of which a kernel may take the first one, two or three; else 1.
            pub fn components(self) -> usize {
                match self { $(Builtin::$variant => $components,)* }
            }
        }
    };
}

builtins! {
    ThreadPositionInGrid "thread_position_in_grid" 3 "Position of the thread in the whole grid.";
    ThreadPositionInThreadgroup "thread_position_in_threadgroup" 3 "Position of the thread in its threadgroup.";
    ThreadgroupPositionInGrid "threadgroup_position_in_grid" 3 "Position of the threadgroup among threadgroups.";
    ThreadsPerThreadgroup "threads_per_threadgroup" 3 "Size of this threadgroup; smaller at the edge of a grid.";
    DispatchThreadsPerThreadgroup "dispatch_threads_per_threadgroup" 3 "Size of threadgroups as dispatched.";
    ThreadgroupsPerGrid "threadgroups_per_grid" 3 "Number of threadgroups.";
    ThreadsPerGrid "threads_per_grid" 3 "Size of the grid in threads.";
    ThreadIndexInThreadgroup "thread_index_in_threadgroup" 1 "Index of the thread in its threadgroup.";
    ThreadIndexInSimdgroup "thread_index_in_simdgroup" 1 "Lane of the thread in its SIMD group.";
    SimdgroupIndexInThreadgroup "simdgroup_index_in_threadgroup" 1 "Index of the SIMD group in its threadgroup.";
    SimdgroupsPerThreadgroup "simdgroups_per_threadgroup" 1 "Number of SIMD groups of the threadgroup.";
    DispatchSimdgroupsPerThreadgroup "dispatch_simdgroups_per_threadgroup" 1
        "Number of SIMD groups of a threadgroup as dispatched.";
    ThreadsPerSimdgroup "threads_per_simdgroup" 1 "Lanes of a SIMD group.";
    ThreadExecutionWidth "thread_execution_width" 1 "Lanes of a SIMD group, under its older name.";
}

/// One argument of a kernel.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Argument {
    /// Its name.
    pub name: String,
    /// Type that is passed or pointed to, without address space, `const`, `*` and `&`; template parameters are
    /// not replaced.
    pub ty: String,
    /// Address space of what it points to; `None` for values.
    pub address_space: Option<AddressSpace>,
    /// Whether what it points to cannot be written: `const` or address space `constant`.
    pub is_const: bool,
    /// How it is passed.
    pub passing: Passing,
    /// Number of `*` and `&` of its declaration, an array's brackets included.
    pub indirections: usize,
    /// Its attributes as they are written: the name, and what its parentheses hold.
    pub attributes: Vec<(String, String)>,
    /// What it is bound to.
    pub role: Role,
    /// Function constant of `[[function_constant(name)]]`: the argument exists only where that is true.
    pub condition: Option<String>,
    /// Line, in the file of its kernel.
    pub line: u32,
    /// Bytes of its declaration in the text.
    pub span: Range<usize>,
}

impl fmt::Display for Argument {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.role {
            Role::Buffer(n) => write!(f, "`{}` [[buffer({n})]]", self.name),
            Role::Threadgroup(n) => write!(f, "`{}` [[threadgroup({n})]]", self.name),
            Role::Builtin(b) => write!(f, "`{}` [[{}]]", self.name, b.attribute()),
        }
    }
}

/// Reads the arguments between the parentheses at tokens `open` and `close`.
pub(crate) fn read_arguments(
    source: &Source<'_>,
    open: usize,
    close: usize,
    construct: &str,
) -> Result<Vec<Argument>, Error> {
    let mut read = Vec::new();
    for range in split(source, open + 1..close) {
        if source.join(range.clone()) != "void" {
            read.push(read_argument(source, range, construct)?);
        }
    }
    let named: Vec<u32> = read.iter().filter_map(|(_, index)| *index).collect();
    let mut free = (0..).filter(|n| !named.contains(n));
    let arguments = read.into_iter().map(|(mut argument, index)| {
        if let (Role::Buffer(n), None) = (&mut argument.role, index) {
            *n = free.next().expect("an endless range");
        }
        argument
    });
    Ok(arguments.collect())
}

/// Token ranges between the commas of `range` that no bracket holds.
pub(crate) fn split(source: &Source<'_>, range: Range<usize>) -> Vec<Range<usize>> {
    let (mut parts, mut start, mut index) = (Vec::new(), range.start, range.start);
    while index < range.end {
        match source.at(index) {
            "," => {
                parts.push(start..index);
                start = index + 1;
            }
            "(" | "[" | "{" | "<" => index = source.close(index).filter(|c| *c < range.end).unwrap_or(index),
            _ => {}
        }
        index += 1;
    }
    if start < range.end {
        parts.push(start..range.end);
    }
    parts
}

/// The argument, and the buffer index that it names itself.
fn read_argument(
    source: &Source<'_>,
    range: Range<usize>,
    construct: &str,
) -> Result<(Argument, Option<u32>), Error> {
    let fail = |reason: String| source.error(range.start, construct.to_string(), reason);
    let whole = source.join(range.clone());
    let (mut words, mut role, mut condition, mut explicit) = (Vec::new(), None, None, None);
    let mut attributes = Vec::new();
    let mut index = range.start;
    while index < range.end {
        if source.at(index) != "[" || source.at(index + 1) != "[" {
            words.push(index);
            index += 1;
            continue;
        }
        let end = source
            .close(index)
            .filter(|e| *e < range.end)
            .ok_or_else(|| fail(format!("attribute of argument `{whole}` does not end with `]]`")))?;
        for attribute in split(source, index + 2..end - 1) {
            let name = source.at(attribute.start);
            let value = source.at(attribute.start + 2);
            let end = attribute.end.saturating_sub(1).max(attribute.start + 1);
            attributes.push((name.to_string(), source.join((attribute.start + 2).min(end)..end)));
            let number = || {
                value
                    .parse::<u32>()
                    .map_err(|_| fail(format!("[[{name}]] of `{whole}` needs a number, not `{value}`")))
            };
            match name {
                "buffer" => {
                    explicit = Some(number()?);
                    role = explicit.map(Role::Buffer);
                }
                "threadgroup" => role = Some(Role::Threadgroup(number()?)),
                "function_constant" => condition = Some(value.to_string()),
                _ => match Builtin::from_attribute(name) {
                    Some(builtin) => role = Some(Role::Builtin(builtin)),
                    None => {
                        return Err(fail(format!(
                            "attribute [[{name}]] of argument `{whole}` is not supported"
                        )));
                    }
                },
            }
        }
        index = end + 1;
    }
    let name_at = *words
        .iter()
        .rev()
        .find(|i| source.tokens()[**i].kind == TokenKind::Word)
        .filter(|_| words.len() > 1)
        .ok_or_else(|| fail(format!("argument `{whole}` has no name")))?;
    let (mut passing, mut address_space, mut is_const, mut ty) = (Passing::Value, None, false, Vec::new());
    let (mut indirections, mut index) = (0, 0);
    while index < words.len() && words[index] < name_at {
        let word = source.at(words[index]);
        indirections += usize::from(matches!(word, "*" | "&"));
        match word {
            "*" => passing = Passing::Pointer,
            "&" => passing = Passing::Reference,
            "const" => is_const |= passing == Passing::Value,
            "volatile" | "restrict" | "__restrict" => {}
            _ => match AddressSpace::from_keyword(word) {
                Some(space) => address_space = Some(space),
                None => ty.push(words[index]),
            },
        }
        if word == "<" {
            // Template arguments belong to the type, qualifiers included.
            let end = source.close(words[index]).unwrap_or(words[index]);
            while index + 1 < words.len() && words[index + 1] <= end {
                index += 1;
                ty.push(words[index]);
            }
        }
        index += 1;
    }
    if source.at(name_at + 1) == "[" && source.at(name_at + 2) != "[" {
        passing = Passing::Pointer;
        indirections += 1;
    }
    if ty.is_empty() {
        return Err(fail(format!("argument `{whole}` has no type")));
    }
    is_const |= address_space == Some(AddressSpace::Constant);
    let ty = source.join(ty[0]..ty[ty.len() - 1] + 1);
    let role = match role {
        Some(role) => role,
        None if passing == Passing::Value => {
            return Err(fail(format!("argument `{whole}` is passed by value but has no attribute")));
        }
        None => Role::Buffer(0),
    };
    let argument = Argument {
        name: source.at(name_at).to_string(),
        ty,
        address_space,
        is_const,
        passing,
        indirections,
        attributes,
        role,
        condition,
        line: source.tokens()[range.start].line,
        span: source.span(range.start, range.end - 1),
    };
    Ok((argument, explicit))
}
