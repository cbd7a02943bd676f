//! Source to pipelines.

use std::collections::{BTreeMap, HashMap};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

use crate::cache;
use crate::compiler::Compiler;
use crate::error::CompileError;
use crate::instrument::instrument;
use crate::object::Object;
use crate::pipeline::Pipeline;
use crate::translate::{PRELUDE, translate};

/// How a library is compiled.
#[derive(Clone, Debug, Default)]
pub struct CompileOptions {
    /// Name of the source in messages; `library.metal` where it is empty.
    pub name: String,
    /// Macros that are defined before the first line, with their values.
    pub macros: BTreeMap<String, String>,
    /// Folder for compiled kernels; `None`: `SOFTMETAL_CACHE`, or `softmetal` in the user's cache folder.
    pub cache: Option<PathBuf>,
}

/// A library of kernels: translated and checked as a whole. Each kernel is compiled when it is first asked for.
pub struct Library {
    compiler: &'static Compiler,
    library: msl::Library,
    text: String,
    callers: Vec<String>,
    folder: PathBuf,
    key: String,
    names: HashMap<String, usize>,
    objects: Mutex<HashMap<usize, Arc<Object>>>,
}

impl std::fmt::Debug for Library {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Library")
            .field("key", &self.key)
            .field("kernels", &self.names.len())
            .finish_non_exhaustive()
    }
}

/// What this crate does to a source, as text: a change of it makes other kernels.
const OWN: [&str; 5] = [
    PRELUDE,
    include_str!("translate.rs"),
    include_str!("instrument.rs"),
    include_str!("compiler.rs"),
    include_str!("engine/mod.rs"),
];

impl Library {
    /// Preprocesses, reads, translates and checks `source`.
    ///
    /// Includes of Metal's own headers (`<metal_...>`, `<simd/...>`) are met by this crate; there are no others.
    ///
    /// # Errors
    /// The first error of the source, with its line and the construct it is in; or that there is no clang.
    pub fn from_source(source: &str, options: &CompileOptions) -> Result<Arc<Library>, CompileError> {
        let compiler = Compiler::find()?;
        let folder = options.cache.clone().unwrap_or_else(cache::folder);
        let definitions: Vec<String> = options.macros.iter().map(|(n, v)| format!("-D{n}={v}")).collect();
        let name = if options.name.is_empty() { "library.metal" } else { &options.name };
        let parts = [source, name, &definitions.join("\n"), &Compiler::flags(), &compiler.version];
        let key = cache::key(&[&parts[..], &OWN[..]].concat());

        let expanded = folder.join(format!("{key}.i"));
        let lock = cache::lock(&expanded);
        let _guard = lock.lock().unwrap_or_else(|e| e.into_inner());
        let checked = std::fs::read_to_string(&expanded);
        let new = checked.is_err();
        let preprocessed = checked.or_else(|_| {
            let text = format!("#line 1 \"{}\"\n{}", name.replace('"', "'"), without_includes(source));
            let fail = |e| CompileError::from_clang("preprocessor", "", e);
            compiler.preprocess(&text, &definitions).map_err(fail)
        })?;
        let tokens = msl::Source::lex(&preprocessed)?;
        let library = msl::Library::from_tokens(&tokens)?;
        let translation = translate(&tokens, &library);
        if new {
            let mut text = translation.text.clone();
            for (index, caller) in translation.callers.iter().enumerate() {
                let mut renamed = caller.clone();
                for name in ["softmetal_kernel", "softmetal_enabled", "softmetal_limit"] {
                    renamed = renamed.replace(&format!("{name}("), &format!("{name}_{index}("));
                }
                text.push_str(&renamed);
            }
            compiler.check(&text).map_err(|e| CompileError::from_clang("library", &preprocessed, e))?;
            // Only what has passed the check is kept.
            cache::place(&expanded, |path| std::fs::write(path, &preprocessed))?;
        }
        let names = library.kernels.iter().enumerate().map(|(i, k)| (k.name.clone(), i)).collect();
        let (text, callers) = (translation.text, translation.callers);
        Ok(Arc::new(Library {
            compiler,
            library,
            text,
            callers,
            folder,
            key,
            names,
            objects: Mutex::default(),
        }))
    }

    /// A hash of the source and of everything else that its kernels are made from.
    pub fn key(&self) -> &str {
        &self.key
    }

    /// Names of all kernels, in the order of the source.
    pub fn function_names(&self) -> Vec<String> {
        self.library.kernels.iter().map(|k| k.name.clone()).collect()
    }

    /// What the kernel `name` takes.
    pub fn signature(&self, name: &str) -> Option<&msl::Kernel> {
        self.names.get(name).map(|i| &self.library.kernels[*i])
    }

    /// Constants that a host can set.
    pub fn function_constants(&self) -> &[msl::FunctionConstant] {
        &self.library.function_constants
    }

    /// Compiles kernel `name`, or finds it in the cache, for the values of function constants by index.
    ///
    /// A constant without a value is zero, and `is_function_constant_defined` says so.
    ///
    /// # Errors
    /// There is no such kernel, a constant has the wrong size, or the kernel does not compile.
    pub fn pipeline(
        &self,
        name: &str,
        constants: &BTreeMap<u32, Vec<u8>>,
    ) -> Result<Arc<Pipeline>, CompileError> {
        let construct = format!("kernel `{name}`");
        let index =
            *self.names.get(name).ok_or_else(|| CompileError::new(&construct, "is not in this library"))?;
        let known = self.objects.lock().unwrap_or_else(|e| e.into_inner()).get(&index).cloned();
        let object = match known {
            Some(object) => object,
            None => {
                let path = self.folder.join(format!("{}-{index}.so", self.key));
                let lock = cache::lock(&path);
                let _guard = lock.lock().unwrap_or_else(|e| e.into_inner());
                if !path.exists() {
                    self.compile(index, &path).map_err(|e| CompileError::from_clang(&construct, "", e))?;
                }
                let object = Object::load(&path)?;
                self.objects.lock().unwrap_or_else(|e| e.into_inner()).insert(index, object.clone());
                object
            }
        };
        object.check_constants(constants).map_err(|e| CompileError::new(&construct, e))?;
        Ok(Arc::new(Pipeline::new(self.library.kernels[index].clone(), object, constants.clone())))
    }

    fn compile(&self, index: usize, path: &Path) -> Result<(), String> {
        let text = format!("{}{}", self.text, self.callers[index]);
        let assembly = instrument(&self.compiler.assembly(&text)?)?;
        struct Failed(String);
        impl From<std::io::Error> for Failed {
            fn from(e: std::io::Error) -> Self {
                Failed(e.to_string())
            }
        }
        cache::place(path, |part| self.compiler.link(&assembly, part).map_err(Failed)).map_err(|Failed(e)| e)
    }
}

/// `source` with the includes of Metal's own headers blanked: the prelude stands for them.
pub(crate) fn without_includes(source: &str) -> String {
    let lines = source.lines().map(|line| {
        let directive = line.trim_start().strip_prefix('#').map(str::trim_start);
        let header = directive.and_then(|d| d.strip_prefix("include")).map(str::trim_start);
        let own = header
            .is_some_and(|h| h.starts_with("<metal_") || h.starts_with("<simd/") || h.starts_with("<metal>"));
        if own { "" } else { line }
    });
    lines.collect::<Vec<_>>().join("\n") + "\n"
}
