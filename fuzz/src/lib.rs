//! The fuzz targets as functions, which the tests of the library and of the tool run over the committed corpus too.

pub mod settings;
pub mod targets;
