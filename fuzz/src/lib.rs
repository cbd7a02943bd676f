//! The fuzz targets as functions, which the library's tests run over the committed corpus too.

pub mod targets;
