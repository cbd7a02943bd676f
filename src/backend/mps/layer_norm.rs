//! Why there is no layer norm by Metal Performance Shaders: the fused kernel of `backend/metal/layer_norm.rs` takes its
//! place.
//!
//! What the framework has are means over the channels of images (see `rms_norm.rs` for what is wrong with those), and
//! `MPSCNNInstanceNormalization` and `MPSCNNGroupNormalization`, which take images and whose weights come from an object
//! of the host's. `MPSMatrixBatchNormalization` normalises columns over the batch, the wrong axis. Mean and variance in two
//! calls over images, with copies in and out, would move the tensor six times; our kernel reads a row once and has a
//! gradient.
