//! Recordings that begin with candle's tensors and end in them.

use candle_core::{CpuStorage, Tensor};

use crate::backend::Device;
use crate::graph::{Graph, LazyTensor};
use crate::tensor::candle::{CandleTensor, filled, room, tensor};
use crate::{Error, Result};

impl Graph {
    /// A tensor of candle's in this recording. One on candle's CPU is read where it lies, with its strides, and has the
    /// value that it has at a run; one on a GPU is copied to the host now. No gradient flows into it: record what is to be
    /// trained as a parameter.
    pub fn candle(&self, tensor: &Tensor) -> Result<LazyTensor> {
        if tensor.track_op() {
            let message =
                "depends on a variable, whose gradient would end here: detach it, or make a parameter of it";
            return Err(Error::invalid("candle tensor", message));
        }
        Ok(self.candle_tensor(CandleTensor::new(tensor)?))
    }
}

impl TryFrom<&Tensor> for LazyTensor {
    type Error = Error;

    /// The tensor as the beginning of a recording of its own; see [`Graph::candle`].
    fn try_from(tensor: &Tensor) -> Result<Self> {
        Graph::new().candle(tensor)
    }
}

impl LazyTensor {
    /// Computes this tensor, whose graph must have no inputs, as a tensor of candle's on its CPU. On the CPU the result is
    /// written into candle's storage directly.
    pub fn to_candle(&self, device: &Device) -> Result<Tensor> {
        let program = device.compile(self.graph(), std::slice::from_ref(self), &[])?;
        let spec = self.spec();
        let mut storage: CpuStorage = room(&spec);
        program.run_into_storage(&mut storage)?;
        // SAFETY: the run that has ended without an error wrote all elements of its output.
        Ok(tensor(unsafe { filled(storage, spec.shape.elements()) }, spec.shape.dims()))
    }
}
