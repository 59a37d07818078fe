//! What a person reads: messages on standard error, results on standard output, and the terminal itself.

pub(crate) mod message;
pub(crate) mod stdout;
pub(crate) mod table;
pub(crate) mod terminal;
