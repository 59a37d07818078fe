//! What a person reads: messages on standard error, results on standard output, and the terminal itself.

pub mod message;
pub mod stdout;
pub mod table;
pub mod terminal;
