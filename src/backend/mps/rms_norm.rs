//! Why there is no RMS norm by Metal Performance Shaders: the fused kernel of `backend/metal/rms_norm.rs` takes its place.
//!
//! The plan wanted `MPSNNReduceFeatureChannelsMean`. It reads and writes images (textures), so that a tensor in a buffer
//! would be copied into one and back, which alone moves twice the bytes of the norm. It gives the mean of x, where the norm
//! needs the mean of x²: a pass to square before it, and root, product and weight in passes after it. It takes 8,192
//! channels at the most and knows no bf16. `MPSCNNInstanceNormalization` and `MPSCNNGroupNormalization` are images too, and
//! subtract a mean that this norm has not. Our kernel reads a row once, with the residual added on the way, and has a
//! gradient. (Sources: Apple's headers of MPSNNReduce and MPSImage; docs/MPS_API_RESEARCH.md.)
