//! Command lines, variables and files: what is accepted and what is refused.

mod combinations;
mod words;
