//! Runs that are resumed although they have come to their end.

use super::trainer::Trainer;
use crate::Result;

/// The end of a run that a resume finds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct EndedRun {
    /// Number of steps done.
    pub step: usize,
    /// Validation did not improve for long enough, so that the run ended before its last step.
    pub stopped_early: bool,
}

impl Trainer<'_> {
    /// Returns the end of the run that is to be resumed, if there is nothing left to train. [`Trainer::run`] then only
    /// writes its adapter again where that is missing.
    pub fn ended(&self) -> Result<Option<EndedRun>> {
        let Some((_, _, state)) = self.checkpoint()? else { return Ok(None) };
        let stopped_early = state.has_run_out_of(self.options.patience);
        let has_ended = !state.validation_due && (stopped_early || state.step >= self.options.steps);
        Ok(has_ended.then_some(EndedRun { step: state.step, stopped_early }))
    }
}
