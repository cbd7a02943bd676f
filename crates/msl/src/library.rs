//! A whole library.

use std::ops::Range;

use crate::constant::{Constant, DerivedConstant, FunctionConstant, read_constant};
use crate::error::Error;
use crate::instantiation::read_instantiation;
use crate::item::{Item, ItemKind};
use crate::kernel::{Kernel, read_kernel};
use crate::lexer::Source;

/// What a host can use of a library.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Library {
    /// Kernels by the names that the host uses: plain functions first, then instantiations.
    pub kernels: Vec<Kernel>,
    /// Constants that the host sets.
    pub function_constants: Vec<FunctionConstant>,
    /// Constants that follow from them, in order.
    pub derived_constants: Vec<DerivedConstant>,
    /// Kernel templates that no instantiation makes a kernel of.
    pub uninstantiated: Vec<Kernel>,
    /// Bytes of the explicit instantiations, which have no meaning in plain C++.
    pub instantiations: Vec<Range<usize>>,
}

impl Library {
    /// Reads preprocessed text.
    ///
    /// # Errors
    /// The first kernel, instantiation or constant that cannot be read, with its line.
    pub fn read(text: &str) -> Result<Self, Error> {
        Self::from_tokens(&Source::lex(text)?)
    }

    /// Reads text that is split into tokens already.
    ///
    /// # Errors
    /// As [`Library::read`].
    pub fn from_tokens(source: &Source<'_>) -> Result<Self, Error> {
        let mut reader =
            Reader { source, library: Library::default(), templates: Vec::new(), pending: Vec::new() };
        reader.scope(0..source.tokens().len())?;
        let Reader { mut library, templates, pending, .. } = reader;
        for instantiation in pending {
            library.kernels.push(instantiation.resolve(source, &templates)?);
        }
        let unused = |t: &Kernel| library.kernels.iter().all(|k| k.function != t.function);
        library.uninstantiated = templates.iter().filter(|t| unused(t)).cloned().collect();
        for (index, kernel) in library.kernels.iter().enumerate() {
            if library.kernels[..index].iter().any(|k| k.name == kernel.name) {
                return Err(Error {
                    location: kernel.location.clone(),
                    construct: format!("kernel `{}`", kernel.name),
                    reason: "another kernel has this name".into(),
                });
            }
        }
        Ok(library)
    }

    /// The kernel that the host calls `name`.
    pub fn kernel(&self, name: &str) -> Option<&Kernel> {
        self.kernels.iter().find(|k| k.name == name)
    }
}

struct Reader<'a, 's> {
    source: &'a Source<'s>,
    library: Library,
    templates: Vec<Kernel>,
    pending: Vec<crate::instantiation::Instantiation>,
}

impl Reader<'_, '_> {
    fn scope(&mut self, range: Range<usize>) -> Result<(), Error> {
        for item in self.source.items(range) {
            match (item.kind, item.body) {
                (ItemKind::Namespace, Some((open, close))) => self.scope(open + 1..close)?,
                (ItemKind::Function, _) => self.function(&item)?,
                (ItemKind::Declaration, _) => self.declaration(&item)?,
                _ => {}
            }
        }
        Ok(())
    }

    fn function(&mut self, item: &Item) -> Result<(), Error> {
        if let Some(kernel) = read_kernel(self.source, item)? {
            let list = if kernel.template_parameters.is_empty() {
                &mut self.library.kernels
            } else {
                &mut self.templates
            };
            list.push(kernel);
        }
        Ok(())
    }

    fn declaration(&mut self, item: &Item) -> Result<(), Error> {
        let tokens = item.tokens.clone();
        if let Some(instantiation) = read_instantiation(self.source, item)? {
            self.library.instantiations.push(self.source.span(tokens.start, tokens.end - 1));
            self.pending.push(instantiation);
            return Ok(());
        }
        if !tokens.clone().take(3).any(|i| self.source.at(i) == "constant") {
            return Ok(());
        }
        let library = &mut self.library;
        let known = |word: &str| {
            library.function_constants.iter().any(|c| c.name == word)
                || library.derived_constants.iter().any(|c| c.name == word)
        };
        match read_constant(self.source, tokens, &known)? {
            Constant::Function(constant) => library.function_constants.push(constant),
            Constant::Derived(constant) => library.derived_constants.push(constant),
            Constant::Plain => {}
        }
        Ok(())
    }
}
