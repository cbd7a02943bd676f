//! One file a command.

pub(crate) mod bench;
pub(crate) mod chat;
pub(crate) mod data;
pub(crate) mod doctor;
pub(crate) mod eval;
pub(crate) mod generate;
pub(crate) mod list;
pub(crate) mod merge;
pub(crate) mod pull;
pub(crate) mod run;
pub(crate) mod template;
pub(crate) mod train;
pub(crate) mod tune;
