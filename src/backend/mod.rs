//! How operations run: one folder a backend.

pub mod cpu;
