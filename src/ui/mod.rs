//! What a person reads: standard error, standard output, the terminal.

pub mod message;
pub mod stdout;
pub mod terminal;
