//! Tiled attention, forward and backward.
