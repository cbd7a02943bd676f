//! Compiled kernels on disk (`MTLBinaryArchive`), so that the next process need not compile them for the GPU again.
//!
//! A convenience that may fail: whatever is wrong with the file, kernels are compiled as without one, and the file is
//! written anew. It takes its name when it is whole, so that a run which ends early leaves the old one.

use std::path::{Path, PathBuf};

use objc2::rc::Retained;
use objc2::runtime::ProtocolObject;
use objc2_foundation::{NSArray, NSString, NSURL};
use objc2_metal::{
    MTLBinaryArchive, MTLBinaryArchiveDescriptor, MTLComputePipelineDescriptor, MTLComputePipelineState,
    MTLDevice, MTLFunction, MTLPipelineOption,
};

/// The archive of one GPU under one version of its system.
pub(super) struct Archive {
    raw: Retained<ProtocolObject<dyn MTLBinaryArchive>>,
    path: PathBuf,
    /// Functions that the file does not hold yet.
    added: usize,
}

fn url(path: &Path) -> Retained<NSURL> {
    NSURL::fileURLWithPath(&NSString::from_str(&path.to_string_lossy()))
}

impl Archive {
    /// Opens the folder's file for this GPU, or begins an empty one. `None` if the system gives none.
    pub(super) fn open(device: &ProtocolObject<dyn MTLDevice>, folder: &Path, system: &str) -> Option<Self> {
        let plain = |text: &str| text.replace(|c: char| !c.is_ascii_alphanumeric() && c != '.', "-");
        let name = plain(&format!("{}-{system}-{}", device.name(), env!("CARGO_PKG_VERSION")));
        let path = folder.join(format!("{name}.metal-archive"));
        let make = |from: Option<&Path>| {
            let descriptor = MTLBinaryArchiveDescriptor::new();
            descriptor.setUrl(from.map(url).as_deref());
            device.newBinaryArchiveWithDescriptor_error(&descriptor)
        };
        let stored = path.exists().then(|| make(Some(&path)));
        let raw = match stored {
            Some(Ok(raw)) => raw,
            other => {
                if let Some(Err(error)) = other {
                    let why = error.localizedDescription().to_string();
                    tracing::warn!(path = %path.display(), why, "the stored kernels are compiled again");
                }
                make(None).ok()?
            }
        };
        Some(Self { raw, path, added: 0 })
    }

    /// The pipeline of a function as the file has it. If it has none the function is compiled, and kept for the file.
    pub(super) fn pipeline(
        &mut self,
        device: &ProtocolObject<dyn MTLDevice>,
        function: &ProtocolObject<dyn MTLFunction>,
    ) -> Option<Retained<ProtocolObject<dyn MTLComputePipelineState>>> {
        let descriptor = MTLComputePipelineDescriptor::new();
        descriptor.setComputeFunction(Some(function));
        descriptor.setBinaryArchives(Some(&NSArray::from_slice(&[&*self.raw])));
        let stored = device.newComputePipelineStateWithDescriptor_options_reflection_error(
            &descriptor,
            MTLPipelineOption::FailOnBinaryArchiveMiss,
            None,
        );
        if let Ok(pipeline) = stored {
            return Some(pipeline);
        }
        match self.raw.addComputePipelineFunctionsWithDescriptor_error(&descriptor) {
            Ok(()) => self.added += 1,
            Err(error) => {
                let why = error.localizedDescription().to_string();
                tracing::debug!(why, "a kernel cannot be stored");
            }
        }
        None
    }

    /// Writes the file, if it lacks something.
    pub(super) fn store(&mut self) {
        if std::mem::take(&mut self.added) == 0 {
            return;
        }
        if let Err(error) = self.write() {
            tracing::warn!(path = %self.path.display(), %error, "compiled kernels are not kept");
        }
    }

    fn write(&self) -> std::io::Result<()> {
        let folder = self.path.parent().unwrap_or(Path::new("."));
        std::fs::create_dir_all(folder)?;
        let part = tempfile::Builder::new().prefix(".writing-").tempdir_in(folder)?;
        let file = part.path().join("kernels");
        self.raw
            .serializeToURL_error(&url(&file))
            .map_err(|error| std::io::Error::other(error.localizedDescription().to_string()))?;
        crate::atomic::rename(&file, &self.path)
    }
}
