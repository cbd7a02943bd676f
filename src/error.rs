//! The one error type of the library.
//!
//! Every variant carries what is needed to act on it: the operation with its shapes and dtypes, or the file
//! with the place in it. Messages say what was found, what was expected and what to do.

use std::path::{Path, PathBuf};

use crate::tensor::{DType, Shape};

/// Result with the library's [`Error`].
pub type Result<T> = std::result::Result<T, Error>;

/// What went wrong.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// Shapes do not fit an operation.
    #[error("{op}: {message} (shapes: {})", list(shapes))]
    Shape {
        /// The operation's name.
        op: &'static str,
        /// What does not fit.
        message: String,
        /// The shapes involved, in the order of the operation's inputs.
        shapes: Vec<Shape>,
    },
    /// A dtype does not fit an operation.
    #[error("{op}: {message} (dtypes: {})", list(dtypes))]
    DType {
        /// The operation's name.
        op: &'static str,
        /// What does not fit.
        message: String,
        /// The dtypes involved, in the order of the operation's inputs.
        dtypes: Vec<DType>,
    },
    /// An attribute of an operation or a configuration value is out of its range.
    #[error("{what}: {message}")]
    Invalid {
        /// The operation or setting.
        what: String,
        /// What is wrong and what would be right.
        message: String,
    },
    /// An operation without a gradient lies between a trainable leaf and the loss.
    #[error(
        "{op} (node {node}) has no gradient with respect to its input {input}, but lies on the path from the trainable \
         parameter '{parameter}' to the loss; use a differentiable operation there or freeze the parameter"
    )]
    NoGradient {
        /// The operation's name.
        op: &'static str,
        /// The node's number in the graph.
        node: usize,
        /// Which input of the operation.
        input: usize,
        /// The trainable parameter whose gradient would vanish.
        parameter: String,
    },
    /// The device has no kernel for this operation and dtype.
    #[error("{op} with {dtype} inputs is not supported on {device}; {advice}")]
    Unsupported {
        /// The operation's name.
        op: &'static str,
        /// The dtype asked for.
        dtype: DType,
        /// The device's name.
        device: String,
        /// What to do instead.
        advice: String,
    },
    /// Memory that could not be had.
    #[error("{device}: out of memory: {bytes} bytes for {what}; use a smaller batch or sequence length")]
    OutOfMemory {
        /// The device's name.
        device: String,
        /// What was asked for.
        bytes: usize,
        /// What the memory was for.
        what: String,
    },
    /// Work failed on the device. What was on disk is as it was.
    #[error("{device}: {what} failed: {fault}: {message}; {}", fault.advice())]
    Device {
        /// The device's name.
        device: String,
        /// The operations, or the object, that failed.
        what: String,
        /// What happened.
        fault: DeviceFault,
        /// What the system said.
        message: String,
    },
    /// A file's content is not what it must be.
    #[error("{}{}: {message}", path.display(), place.as_ref().map(|p| format!(" ({p})")).unwrap_or_default())]
    File {
        /// The file.
        path: PathBuf,
        /// Where in the file: a line, a tensor's name, a byte offset.
        place: Option<String>,
        /// What was found, what was expected, what to do.
        message: String,
    },
    /// A file whose bytes are used in place is not what it was when it was opened.
    #[error("{}: was changed while it was in use: {what}; what was computed since cannot be trusted", path.display())]
    Changed {
        /// The file.
        path: PathBuf,
        /// What changed.
        what: String,
    },
    /// A checkpoint was made with other settings than those of the run that is to go on from it.
    #[error("{}: cannot be resumed with other settings: {}", checkpoint.display(), joined(differences, "; "))]
    OtherRun {
        /// The checkpoint.
        checkpoint: PathBuf,
        /// What differs.
        differences: Vec<crate::training::checkpoint::Difference>,
    },
    /// The system refused to read or write.
    #[error("{}: cannot {action}: {source}", path.display())]
    Io {
        /// The file or folder.
        path: PathBuf,
        /// What was tried, as a verb: "read", "write", "create".
        action: &'static str,
        /// The system's answer.
        source: std::io::Error,
    },
    /// A value that must be finite is not.
    #[error("step {step}: {what} is {value}; {advice}")]
    NonFinite {
        /// The training step.
        step: usize,
        /// Which quantity.
        what: String,
        /// Its value.
        value: f64,
        /// The likely cause and what to do.
        advice: String,
    },
    /// Training made the model worse than it was before, and no better one was found.
    #[error("step {step}: training made the model worse: {what}; {advice}")]
    Diverged {
        /// The step at which it was recognized.
        step: usize,
        /// What shows it.
        what: String,
        /// The likely cause and what to do.
        advice: String,
    },
    /// The caller asked to stop work that leaves nothing behind.
    #[error("{what} was stopped before it was complete; {advice}")]
    Stopped {
        /// The work.
        what: &'static str,
        /// What there is now, and how to go on.
        advice: String,
    },
    /// The caller asked to stop.
    #[error("interrupted at step {step}; {advice}")]
    Interrupted {
        /// The last step that was finished and saved.
        step: usize,
        /// How to go on.
        advice: String,
    },
}

/// How work on a device can fail.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum DeviceFault {
    /// The device, or an object of it, is not to be had.
    Unavailable,
    /// A kernel does not compile, or its pipeline cannot be made.
    Kernel,
    /// The system stopped work that took too long, for example to keep the display alive.
    Timeout,
    /// The system discarded the work because other work on the GPU failed.
    Discarded,
    /// A kernel touched memory that does not exist.
    PageFault,
    /// Memory ran out while the work was done.
    OutOfMemory,
    /// The work used a resource that is gone.
    InvalidResource,
    /// The system took the right to use the GPU away: too many faults.
    AccessRevoked,
    /// The process may not use the GPU, for example in the background.
    NotPermitted,
    /// The GPU was taken out.
    DeviceRemoved,
    /// The driver failed.
    Internal,
    /// Another error, with its code.
    Unknown(i64),
}

impl DeviceFault {
    /// What to do.
    pub fn advice(self) -> &'static str {
        match self {
            Self::Unavailable => "use the cpu",
            Self::Kernel => "report it with the message and the versions that `metal-candle doctor` prints",
            Self::Timeout => "use a smaller batch or sequence length, or close what else uses the GPU",
            Self::Discarded => "run it again; if it comes back, close what else uses the GPU",
            Self::OutOfMemory => "use a smaller batch or sequence length, or close other programs",
            Self::NotPermitted => "bring the program to the foreground, or use the cpu",
            Self::AccessRevoked | Self::DeviceRemoved => "start the program again",
            Self::PageFault | Self::InvalidResource | Self::Internal | Self::Unknown(_) => {
                "start the program again; if it comes back, use the cpu and report it"
            }
        }
    }
}

impl std::fmt::Display for DeviceFault {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let text = match self {
            Self::Unavailable => "not available",
            Self::Kernel => "the kernel cannot be made",
            Self::Timeout => "it took too long",
            Self::Discarded => "discarded after a fault of other work",
            Self::PageFault => "page fault",
            Self::OutOfMemory => "out of memory",
            Self::InvalidResource => "invalid resource",
            Self::AccessRevoked => "access revoked",
            Self::NotPermitted => "not permitted",
            Self::DeviceRemoved => "device removed",
            Self::Internal => "internal error",
            Self::Unknown(code) => return write!(f, "error {code}"),
        };
        f.write_str(text)
    }
}

impl Error {
    /// A [`Error::Shape`].
    pub fn shape(op: &'static str, message: impl Into<String>, shapes: &[&Shape]) -> Self {
        Self::Shape { op, message: message.into(), shapes: shapes.iter().map(|&s| s.clone()).collect() }
    }

    /// A [`Error::DType`].
    pub fn dtype(op: &'static str, message: impl Into<String>, dtypes: &[DType]) -> Self {
        Self::DType { op, message: message.into(), dtypes: dtypes.to_vec() }
    }

    /// A [`Error::Invalid`].
    pub fn invalid(what: impl Into<String>, message: impl Into<String>) -> Self {
        Self::Invalid { what: what.into(), message: message.into() }
    }

    /// A [`Error::File`] without a place.
    pub fn file(path: impl AsRef<Path>, message: impl Into<String>) -> Self {
        Self::File { path: path.as_ref().to_owned(), place: None, message: message.into() }
    }

    /// A [`Error::File`] that says where in the file.
    pub fn file_at(path: impl AsRef<Path>, place: impl Into<String>, message: impl Into<String>) -> Self {
        Self::File { path: path.as_ref().to_owned(), place: Some(place.into()), message: message.into() }
    }

    /// A [`Error::Io`].
    pub fn io(path: impl AsRef<Path>, action: &'static str, source: std::io::Error) -> Self {
        Self::Io { path: path.as_ref().to_owned(), action, source }
    }
}

fn list<T: std::fmt::Display>(items: &[T]) -> String {
    joined(items, ", ")
}

fn joined<T: std::fmt::Display>(items: &[T], separator: &str) -> String {
    items.iter().map(ToString::to_string).collect::<Vec<_>>().join(separator)
}
