//! `MTLBinaryArchive`: which kernels a program has compiled before.
//!
//! Compiled kernels themselves are kept by the kernel cache; an archive holds their names with a hash of source, name
//! and constants, so that a pipeline of any other source or constant misses. The file is text and ends with a checksum
//! of all before it, so that one that was cut short or is not ours is refused.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::path::Path;
use std::sync::{Mutex, MutexGuard, PoisonError};

use objc2::rc::{Allocated, Retained};
use objc2::{AnyThread, ClassType, DefinedClass, Message, define_class, msg_send};
use objc2_foundation::{NSError, NSObject, NSString};
use objc2_metal::MTLBinaryArchiveError as Code;

use crate::counters::count;
use crate::device::{SoftDevice, shared};
use crate::foundation::{Label, set_error};
use crate::pipeline::PipelineDescriptor;
use crate::url::Url;

const DOMAIN: &str = "MTLBinaryArchiveDomain";
/// The first line of a file.
const HEAD: &str = "softmetal binary archive 1\n";

/// Kernels by fingerprint.
type Entries = BTreeMap<u64, String>;

/// FNV-1a of 64 bits (Fowler, Noll and Vo).
pub(crate) fn fingerprint(bytes: impl Iterator<Item = u8>) -> u64 {
    bytes.fold(0xcbf2_9ce4_8422_2325, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x100_0000_01b3))
}

define_class!(
    /// Where an archive comes from.
    #[unsafe(super(NSObject))]
    #[name = "MTLBinaryArchiveDescriptor"]
    #[ivars = RefCell<Option<Retained<Url>>>]
    pub(crate) struct ArchiveDescriptor;

    impl ArchiveDescriptor {
        #[unsafe(method_id(init))]
        fn init(this: Allocated<Self>) -> Retained<Self> {
            let this = this.set_ivars(RefCell::default());
            // SAFETY: NSObject's init returns the object.
            unsafe { msg_send![super(this), init] }
        }

        #[unsafe(method_id(url))]
        fn url(&self) -> Option<Retained<Url>> {
            self.ivars().borrow().clone()
        }

        #[unsafe(method(setUrl:))]
        fn set_url(&self, url: Option<&Url>) {
            *self.ivars().borrow_mut() = url.map(Message::retain);
        }
    }
);

#[derive(Default)]
pub(crate) struct ArchiveState {
    entries: Mutex<Entries>,
    label: Label,
}

define_class!(
    /// Compiled kernels.
    #[unsafe(super(NSObject))]
    #[name = "SoftMTLBinaryArchive"]
    #[ivars = ArchiveState]
    pub(crate) struct SoftArchive;

    impl SoftArchive {
        #[unsafe(method(addComputePipelineFunctionsWithDescriptor:error:))]
        fn add(&self, descriptor: &PipelineDescriptor, error: *mut *mut NSError) -> bool {
            self.keep(descriptor).map_err(|message| refuse(error, Code::CompilationFailure, &message)).is_ok()
        }

        #[unsafe(method(serializeToURL:error:))]
        fn serialize(&self, url: &Url, error: *mut *mut NSError) -> bool {
            self.write(url).map_err(|(code, message)| refuse(error, code, &message)).is_ok()
        }

        #[unsafe(method_id(label))]
        fn label(&self) -> Option<Retained<NSString>> {
            self.ivars().label.get()
        }

        #[unsafe(method(setLabel:))]
        fn set_label(&self, label: Option<&NSString>) {
            self.ivars().label.set(label);
        }

        #[unsafe(method_id(device))]
        fn device(&self) -> Retained<SoftDevice> {
            shared()
        }
    }
);

// SAFETY: what changes is behind locks.
unsafe impl Send for SoftArchive {}
// SAFETY: as above.
unsafe impl Sync for SoftArchive {}

impl SoftArchive {
    /// An archive as a descriptor asks for it: empty, or from a file.
    pub(crate) fn create(descriptor: &ArchiveDescriptor, error: *mut *mut NSError) -> Option<Retained<Self>> {
        let url = descriptor.ivars().borrow().clone();
        let entries = match url {
            None => Ok(Entries::default()),
            Some(url) => {
                url.file_path().ok_or("the URL is no file's".to_owned()).and_then(|path| opened(&path))
            }
        };
        let entries = entries.map_err(|message| refuse(error, Code::InvalidFile, &message)).ok()?;
        let state = ArchiveState { entries: Mutex::new(entries), ..ArchiveState::default() };
        let this = Self::alloc().set_ivars(state);
        // SAFETY: NSObject's init returns the object.
        unsafe { msg_send![super(this), init] }
    }

    fn keep(&self, descriptor: &PipelineDescriptor) -> Result<(), String> {
        let function = descriptor.kernel("addComputePipelineFunctionsWithDescriptor:");
        let function = function.ok_or("the descriptor has no compute function; set computeFunction")?;
        function.program()?;
        count(|counters| counters.archived += 1);
        self.entries().insert(function.fingerprint(), function.kernel().escape_debug().to_string());
        Ok(())
    }

    fn write(&self, url: &Url) -> Result<(), (Code, String)> {
        let path = url.file_path();
        let path =
            path.ok_or((Code::InvalidFile, "the URL is no file's; use fileURLWithPath:".to_owned()))?;
        let written = std::fs::write(&path, written(&self.entries()));
        written.map_err(|why| (Code::InternalError, format!("{}: {why}", path.display())))
    }

    fn entries(&self) -> MutexGuard<'_, Entries> {
        self.ivars().entries.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether a function with this fingerprint is here.
    pub(crate) fn has(&self, fingerprint: u64) -> bool {
        self.entries().contains_key(&fingerprint)
    }
}

fn opened(path: &Path) -> Result<Entries, String> {
    let bytes = std::fs::read(path).map_err(|why| format!("{}: {why}", path.display()))?;
    let text = std::str::from_utf8(&bytes).map_err(|_| "not a binary archive".to_owned());
    text.and_then(read).map_err(|why| format!("{}: {why}; serialise the archive again", path.display()))
}

fn written(entries: &Entries) -> String {
    let mut text = HEAD.to_owned();
    entries.iter().for_each(|(hash, name)| text.push_str(&format!("{hash:016x} {name}\n")));
    let sum = fingerprint(text.bytes());
    format!("{text}end {sum:016x}\n")
}

fn read(text: &str) -> Result<Entries, String> {
    let body = text.strip_prefix(HEAD).ok_or("not a binary archive of this device")?;
    // The last line is the sum; names cannot hold a line end.
    let lines = body.strip_suffix('\n').ok_or("the file is cut short")?;
    let (lines, end) = lines.rsplit_once('\n').map_or(("", lines), |(lines, end)| (lines, end));
    let sum = end.strip_prefix("end ").and_then(|sum| u64::from_str_radix(sum, 16).ok());
    let before = &text[..text.len() - end.len() - 1];
    if sum != Some(fingerprint(before.bytes())) {
        return Err("the file is cut short or was changed".to_owned());
    }
    let entry = |line: &str| {
        let (hash, name) = line.split_once(' ')?;
        Some((u64::from_str_radix(hash, 16).ok()?, name.to_owned()))
    };
    lines.lines().map(|line| entry(line).ok_or_else(|| format!("cannot read the line '{line}'"))).collect()
}

/// Says what went wrong.
fn refuse(error: *mut *mut NSError, code: Code, message: &str) {
    // SAFETY: the pointer is the caller's place for an error.
    unsafe { set_error(error, DOMAIN, code.0 as isize, message) };
}

pub(crate) fn load() {
    let _ = (ArchiveDescriptor::class(), SoftArchive::class());
}
