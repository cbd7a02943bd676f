//! `MTLCompileOptions`: the language version that a library is compiled as.

use std::cell::Cell;

use objc2::rc::{Allocated, Retained};
use objc2::{AnyThread, ClassType, DefinedClass, define_class, msg_send};
use objc2_foundation::NSObject;
use objc2_metal::{MTLLanguageVersion, MTLMathFloatingPointFunctions, MTLMathMode};

use crate::counters::count;
use crate::system::mac;

/// A version of the Metal Shading Language: major, minor.
pub(crate) type Language = (usize, usize);

/// The first version with the type `bfloat`.
const BFLOAT: Language = (3, 1);
/// What `bfloat` becomes in a library of an older version, so that nothing knows it.
const UNKNOWN: &str = "softmetal_unknown_bfloat";

define_class!(
    /// How a library is compiled. Fast math is not modelled: the CPU's arithmetic is exact to its last bit either way.
    #[unsafe(super(NSObject))]
    #[name = "MTLCompileOptions"]
    #[ivars = Cell<Option<MTLLanguageVersion>>]
    pub(crate) struct CompileOptions;

    impl CompileOptions {
        #[unsafe(method_id(init))]
        fn init(this: Allocated<Self>) -> Retained<Self> {
            Self::with(this, None)
        }

        #[unsafe(method_id(copy))]
        fn copy(&self) -> Retained<Self> {
            Self::with(Self::alloc(), self.ivars().get())
        }

        #[unsafe(method(languageVersion))]
        fn language_version(&self) -> MTLLanguageVersion {
            self.ivars().get().unwrap_or_else(|| {
                let (major, minor) = mac().default_language();
                MTLLanguageVersion((major << 16) + minor)
            })
        }

        #[unsafe(method(setLanguageVersion:))]
        fn set_language_version(&self, version: MTLLanguageVersion) {
            self.ivars().set(Some(version));
        }

        #[unsafe(method(setFastMathEnabled:))]
        fn set_fast_math(&self, _enabled: bool) {}

        #[unsafe(method(setMathMode:))]
        fn set_math_mode(&self, _mode: MTLMathMode) {}

        #[unsafe(method(setMathFloatingPointFunctions:))]
        fn set_functions(&self, _functions: MTLMathFloatingPointFunctions) {}
    }
);

impl CompileOptions {
    fn with(this: Allocated<Self>, language: Option<MTLLanguageVersion>) -> Retained<Self> {
        let this = this.set_ivars(Cell::new(language));
        // SAFETY: NSObject's init returns the object.
        unsafe { msg_send![super(this), init] }
    }
}

/// The language version that a library is compiled as; counted. An error is the compiler's.
pub(crate) fn language(options: Option<&CompileOptions>) -> Result<Language, String> {
    let mac = mac();
    let asked = options
        .and_then(|options| options.ivars().get())
        .map(|version| (version.0 >> 16, version.0 & 0xffff));
    let name = asked.map_or_else(|| "default".to_owned(), |(major, minor)| format!("{major}.{minor}"));
    count(|counters| *counters.languages.entry(name).or_default() += 1);
    let version = asked.unwrap_or_else(|| mac.default_language());
    if version > mac.newest_language() {
        let ((major, minor), (most, least)) = (version, mac.newest_language());
        return Err(format!(
            "language version {major}.{minor} is not supported on this OS, which compiles up to {most}.{least}"
        ));
    }
    Ok(version)
}

/// The source as a compiler of this language version reads it: an older one has no `bfloat`, and says so by a macro.
pub(crate) fn as_language(source: &str, (major, minor): Language) -> String {
    if (major, minor) >= BFLOAT {
        return source.to_owned();
    }
    format!(
        "#undef __HAVE_BFLOAT__\n#undef __METAL_VERSION__\n#define __METAL_VERSION__ {major}{minor}0\n\
         #define bfloat {UNKNOWN}\n#line 1 \"program_source\"\n{source}"
    )
}

/// An error of the compiler, in the words of Apple's where it is about `bfloat`.
pub(crate) fn in_words(message: &str, place: Option<u32>) -> String {
    match place {
        Some(line) if message.contains(UNKNOWN) => {
            format!("program_source:{line}:1: error: unknown type name 'bfloat'")
        }
        _ => message.replace(UNKNOWN, "bfloat"),
    }
}

pub(crate) fn load() {
    let _ = CompileOptions::class();
}
