//! `MTLLibrary` and `MTLFunction`.

use std::sync::Arc;

use objc2::rc::Retained;
use objc2::runtime::AnyObject;
use objc2::{AnyThread, ClassType, DefinedClass, define_class, msg_send};
use objc2_foundation::{NSError, NSObject, NSString};
use objc2_metal::MTLFunctionType;

use crate::archive::fingerprint;
use crate::compile_options::{Language, as_language, in_words};
use crate::device::{SoftDevice, shared};
use crate::foundation::{Label, List, list, set_error};
use crate::metal_program::MetalProgram;
use crate::native;
use crate::program::Program;
use crate::residency::{Constants, SoftConstants};
use crate::system::mac;

/// The domain of libraries' errors.
pub(crate) const DOMAIN: &str = "MTLLibraryErrorDomain";
/// MTLLibraryErrorCompileFailure
pub(crate) const COMPILE_FAILURE: isize = 3;
/// MTLLibraryErrorFunctionNotFound
const FUNCTION_NOT_FOUND: isize = 5;
/// MTLLibraryErrorUnsupported
const UNSUPPORTED: isize = 1;

/// Where a library's kernels come from.
pub(crate) enum Source {
    /// Kernels in Rust, see [`native`].
    Native,
    Metal {
        library: Arc<softmetal_kernels::Library>,
        /// Whether the text calls a SIMD-scoped reduction or names a matrix of a SIMD group.
        simd_reductions: bool,
    },
}

impl Source {
    fn has(&self, name: &str) -> bool {
        match self {
            Self::Native => native::find(name).is_some(),
            Self::Metal { library, .. } => library.signature(name).is_some(),
        }
    }

    fn names(&self) -> Vec<String> {
        match self {
            Self::Native => native::names(),
            Self::Metal { library, .. } => library.function_names(),
        }
    }

    /// The index of a function constant.
    fn constant(&self, name: &str) -> Option<u32> {
        let Self::Metal { library, .. } = self else { return None };
        library
            .function_constants()
            .iter()
            .find(|constant| constant.name == name)
            .map(|constant| constant.index)
    }

    /// What tells this source from others.
    fn key(&self) -> &str {
        match self {
            Self::Native => "native",
            Self::Metal { library, .. } => library.key(),
        }
    }

    fn program(&self, name: &str, constants: &Constants) -> Result<Arc<dyn Program>, String> {
        match self {
            Self::Native => native::find(name).ok_or_else(|| format!("there is no native kernel '{name}'")),
            Self::Metal { library, simd_reductions } => {
                if *simd_reductions && !mac().gpu.has_simd_reductions() {
                    return Err(format!("kernel '{name}': the GPU has no SIMD-scoped reductions"));
                }
                let pipeline = library.pipeline(name, constants).map_err(|error| error.to_string())?;
                Ok(Arc::new(MetalProgram::new(pipeline)))
            }
        }
    }
}

pub(crate) struct LibraryState {
    source: Arc<Source>,
    label: Label,
}

define_class!(
    /// Kernels by name.
    #[unsafe(super(NSObject))]
    #[name = "SoftMTLLibrary"]
    #[ivars = LibraryState]
    pub(crate) struct SoftLibrary;

    impl SoftLibrary {
        #[unsafe(method_id(newFunctionWithName:))]
        fn function(&self, name: &NSString) -> Option<Retained<SoftFunction>> {
            SoftFunction::find(&self.ivars().source, &name.to_string(), Constants::default())
        }

        #[unsafe(method_id(newFunctionWithName:constantValues:error:))]
        fn function_with_constants(
            &self,
            name: &NSString,
            constants: &SoftConstants,
            error: *mut *mut NSError,
        ) -> Option<Retained<SoftFunction>> {
            let source = &self.ivars().source;
            let values = constants.values(|name| source.constant(name));
            let found = SoftFunction::find(source, &name.to_string(), values);
            if found.is_none() {
                let message = format!("there is no function '{name}' in the library");
                // SAFETY: the pointer is the caller's place for an error.
                unsafe { set_error(error, DOMAIN, FUNCTION_NOT_FOUND, &message) };
            }
            found
        }

        #[unsafe(method_id(functionNames))]
        fn function_names(&self) -> Retained<List> {
            let name = |name: &String| -> Retained<AnyObject> {
                // SAFETY: a string is an object.
                unsafe { Retained::cast_unchecked(NSString::from_str(name)) }
            };
            list(self.ivars().source.names().iter().map(name).collect())
        }

        #[unsafe(method_id(device))]
        fn device(&self) -> Retained<SoftDevice> {
            shared()
        }

        #[unsafe(method_id(label))]
        fn label(&self) -> Option<Retained<NSString>> {
            self.ivars().label.get()
        }

        #[unsafe(method(setLabel:))]
        fn set_label(&self, label: Option<&NSString>) {
            self.ivars().label.set(label);
        }
    }
);

// SAFETY: the source is Sync and never changes; the label is behind a lock.
unsafe impl Send for SoftLibrary {}
// SAFETY: as above.
unsafe impl Sync for SoftLibrary {}

impl SoftLibrary {
    pub(crate) fn create(source: Source) -> Retained<Self> {
        let this =
            Self::alloc().set_ivars(LibraryState { source: Arc::new(source), label: Label::default() });
        // SAFETY: NSObject's init returns the object.
        unsafe { msg_send![super(this), init] }
    }

    /// A library from Metal source as a language version; an error names line and construct.
    pub(crate) fn compile(
        source: &NSString,
        language: Result<Language, String>,
        error: *mut *mut NSError,
    ) -> Option<Retained<Self>> {
        let refuse = |code, message: &str| {
            // SAFETY: the pointer is the caller's place for an error.
            unsafe { set_error(error, DOMAIN, code, message) };
        };
        let language = language.map_err(|message| refuse(UNSUPPORTED, &message)).ok()?;
        let text = source.to_string();
        let options = softmetal_kernels::CompileOptions::default();
        match softmetal_kernels::Library::from_source(&as_language(&text, language), &options) {
            Ok(library) => {
                let simd_reductions = reduces(&text);
                Some(Self::create(Source::Metal { library, simd_reductions }))
            }
            Err(failure) => {
                let line = failure.location.as_ref().map(|location| location.line);
                refuse(COMPILE_FAILURE, &in_words(&failure.to_string(), line));
                None
            }
        }
    }
}

/// Whether a text calls a SIMD-scoped reduction or names a matrix of a SIMD group, outside its comments.
fn reduces(text: &str) -> bool {
    /// Beginnings of names that family Apple7 introduces (Metal Feature Set Tables).
    const NAMES: [&str; 13] = [
        "simd_sum",
        "simd_product",
        "simd_min",
        "simd_max",
        "simd_and",
        "simd_or",
        "simd_xor",
        "simd_prefix_",
        "simdgroup_matrix",
        "simdgroup_float8",
        "simdgroup_half8",
        "simdgroup_bfloat8",
        "simdgroup_multiply",
    ];
    let code = text.lines().map(|line| line.split("//").next().unwrap_or_default());
    let mut words = code.flat_map(|line| line.split(|c: char| !c.is_alphanumeric() && c != '_'));
    words.any(|word| NAMES.iter().any(|name| word.starts_with(name)))
}

pub(crate) struct FunctionState {
    name: String,
    source: Arc<Source>,
    constants: Constants,
}

define_class!(
    /// A kernel of a library, with values for its function constants.
    #[unsafe(super(NSObject))]
    #[name = "SoftMTLFunction"]
    #[ivars = FunctionState]
    pub(crate) struct SoftFunction;

    impl SoftFunction {
        #[unsafe(method_id(name))]
        fn name(&self) -> Retained<NSString> {
            NSString::from_str(&self.ivars().name)
        }

        #[unsafe(method(functionType))]
        fn function_type(&self) -> MTLFunctionType {
            MTLFunctionType::Kernel
        }

        #[unsafe(method_id(device))]
        fn device(&self) -> Retained<SoftDevice> {
            shared()
        }
    }
);

// SAFETY: name, source and constants never change and are Sync.
unsafe impl Send for SoftFunction {}
// SAFETY: as above.
unsafe impl Sync for SoftFunction {}

impl SoftFunction {
    /// The name.
    pub(crate) fn kernel(&self) -> &str {
        &self.ivars().name
    }

    /// Compiles the kernel.
    pub(crate) fn program(&self) -> Result<Arc<dyn Program>, String> {
        let FunctionState { name, source, constants } = self.ivars();
        source.program(name, constants)
    }

    /// A hash of the source, the name and the constants.
    pub(crate) fn fingerprint(&self) -> u64 {
        let FunctionState { name, source, constants } = self.ivars();
        let constants = constants.iter().flat_map(|(index, value)| {
            index
                .to_le_bytes()
                .into_iter()
                .chain((value.len() as u64).to_le_bytes())
                .chain(value.iter().copied())
        });
        let text = [source.key(), "\0", name, "\0"].into_iter().flat_map(str::bytes);
        fingerprint(text.chain(constants))
    }

    fn find(source: &Arc<Source>, name: &str, constants: Constants) -> Option<Retained<Self>> {
        if !source.has(name) {
            return None;
        }
        let state = FunctionState { name: name.to_owned(), source: Arc::clone(source), constants };
        let this = Self::alloc().set_ivars(state);
        // SAFETY: NSObject's init returns the object.
        unsafe { msg_send![super(this), init] }
    }
}

pub(crate) fn load() {
    let _ = (SoftLibrary::class(), SoftFunction::class());
}
