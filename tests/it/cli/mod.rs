//! Command lines, variables and files: what is accepted, what is refused, and how.

mod combinations;
mod words;
