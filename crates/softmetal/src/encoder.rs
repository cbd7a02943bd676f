//! What every encoder has: whether it is open, and what was encoded.

use objc2::rc::Retained;
use objc2_foundation::NSString;

use crate::buffer::SoftBuffer;
use crate::check::report;
use crate::command_buffer::SoftCommandBuffer;
use crate::ordering::EncoderKind;
use crate::pass::Sampling;
use crate::rules;
use crate::work::{EncoderWork, Entry, Use};

/// The state of an encoder.
pub(crate) struct Encoder {
    /// None once the encoder has ended.
    commands: Option<Retained<SoftCommandBuffer>>,
    kind: EncoderKind,
    label: String,
    /// Whether the program gave the label.
    labelled: bool,
    entries: Vec<Entry>,
    groups: usize,
    sampling: Sampling,
}

impl Encoder {
    pub(crate) fn new(commands: Retained<SoftCommandBuffer>, kind: EncoderKind, label: &str) -> Self {
        Self {
            commands: Some(commands),
            kind,
            label: label.to_owned(),
            labelled: false,
            entries: Vec::new(),
            groups: 0,
            sampling: Sampling::default(),
        }
    }

    /// The encoder takes samples where it begins and ends.
    pub(crate) fn sampled(mut self, sampling: Sampling) -> Self {
        self.sampling = sampling;
        self
    }

    /// Samples between commands are not to be had on an Apple GPU.
    pub(crate) fn sample(&self, index: usize) {
        if self.is_open("sampleCountersInBuffer:") {
            report(&rules::COUNTER_BOUNDARY, format!("sample {index} within {}", self.label));
        }
    }

    /// Whether the encoder is open; a use of an ended one is reported.
    pub(crate) fn is_open(&self, what: &str) -> bool {
        let open = self.commands.is_some();
        if !open {
            report(&rules::ENCODER_ENDED, format!("{what} on {}", self.label));
        }
        open
    }

    pub(crate) fn set_label(&mut self, label: Option<&NSString>) {
        if let Some(label) = label {
            (self.label, self.labelled) = (label.to_string(), true);
        }
    }

    /// The label that the program gave.
    pub(crate) fn given_label(&self) -> Option<Retained<NSString>> {
        self.labelled.then(|| NSString::from_str(&self.label))
    }

    pub(crate) fn label(&self) -> &str {
        &self.label
    }

    /// The use of a buffer by a command of this encoder.
    pub(crate) fn uses(&self, buffer: &Retained<SoftBuffer>) -> Use {
        Use::of(buffer, self.commands.as_ref().is_none_or(|commands| commands.retains()))
    }

    pub(crate) fn push(&mut self, entry: Entry) {
        self.entries.push(entry);
    }

    /// Encodes a wait for, or an update of, a fence.
    pub(crate) fn fence(&mut self, entry: Entry) {
        let what = if matches!(entry, Entry::UpdateFence(_)) { "updateFence:" } else { "waitForFence:" };
        if !self.is_open(what) {
            return;
        }
        if let Entry::WaitForFence(wait) = &entry {
            let updated = |entry: &Entry| matches!(entry, Entry::UpdateFence(u) if u.fence() == wait.fence());
            if self.entries.iter().any(updated) {
                report(&rules::FENCE_ORDER, format!("waitForFence: after updateFence: on {}", self.label));
            }
        }
        self.entries.push(entry);
    }

    pub(crate) fn push_group(&mut self) {
        self.groups += 1;
    }

    pub(crate) fn pop_group(&mut self) {
        if self.groups == 0 {
            return report(&rules::DEBUG_GROUP, format!("popDebugGroup on {} without a push", self.label));
        }
        self.groups -= 1;
    }

    /// Hands everything to the command buffer.
    pub(crate) fn end(&mut self) {
        if !self.is_open("endEncoding") {
            return;
        }
        if self.groups > 0 {
            report(&rules::DEBUG_GROUP, format!("{} ends with {} open groups", self.label, self.groups));
        }
        if let Some(commands) = self.commands.take() {
            let entries = std::mem::take(&mut self.entries);
            let sampling = std::mem::take(&mut self.sampling);
            commands.close(EncoderWork { kind: self.kind, label: self.label.clone(), entries, sampling });
        }
    }
}

impl Drop for Encoder {
    fn drop(&mut self) {
        if let Some(commands) = self.commands.take() {
            report(&rules::ENCODER_LEFT_OPEN, format!("{} was released without endEncoding", self.label));
            // The command buffer can be used again, so that one fault is reported once.
            let (label, sampling) = (self.label.clone(), Sampling::default());
            commands.close(EncoderWork { kind: self.kind, label, entries: Vec::new(), sampling });
        }
    }
}
