//! TLS: root certificates, the client certificate, and the verification of the server's certificate.
//!
//! | file | contents |
//! |---|---|
//! | `config` | everything loaded for TLS, and the rustls configuration for one host |
//! | `provider` | the algorithms: those of ring, and P-521 |
//! | `ecdsa`, `secp521r1` | the signatures and the key exchange that ring lacks |
//! | `trust` | root certificates and revocation lists |
//! | `client_certificate` | the client certificate and its private key |
//! | `verifier` | verification of the server's certificate and its signature |
//! | `certificate` | what a certificate says; name matching |
//! | `channel_binding` | what SCRAM-SHA-256-PLUS binds a login to |
//! | `problem` | TLS errors as text, and whether libpq has them too |
//!
//! The files are read when the first TLS connection is made. As in libpq, an existing root file is used whatever
//! `sslmode` is, and `require` without one verifies no certificate at all.

mod certificate;
mod channel_binding;
mod client_certificate;
mod config;
mod ecdsa;
mod problem;
mod provider;
mod secp521r1;
mod trust;
mod verifier;

pub(super) use channel_binding::server_end_point;
pub(super) use config::TlsConfig;
pub(super) use problem::{describe, fails_in_libpq, is_about_client_certificate};

#[cfg(test)]
mod tests;
