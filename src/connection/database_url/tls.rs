//! What the parameters of a `DATABASE_URL` say about TLS.
//!
//! Several may say something, in any order: the strictest counts, so no parameter weakens what another asks for.

use super::super::parameter::{Values, normalized};
use super::super::settings::SslMode;
use super::parameters::{Dialect, TlsParameter};

/// What the parameters read so far say.
#[derive(Default)]
pub(super) struct TlsStatements {
    strictest: Option<SslMode>,
    /// If TLS is required, the certificate has to be verified.
    is_required_tls_verified: bool,
    /// The certificate is verified by the roots of the operating system, unless a file is named.
    uses_system_roots: bool,
    /// The value of `sslcert`, whose meaning depends on other parameters.
    certificate: Option<String>,
}

/// The values of `sslmode`, of libpq, node-postgres and Npgsql, without their punctuation.
const MODES: [(&str, SslMode); 7] = [
    ("disable", SslMode::Disable),
    ("allow", SslMode::Allow),
    ("prefer", SslMode::Prefer),
    ("require", SslMode::Require),
    // node-postgres: encrypted, and anybody's certificate will do.
    ("noverify", SslMode::Require),
    ("verifyca", SslMode::VerifyCa),
    ("verifyfull", SslMode::VerifyFull),
];

/// The values of switches.
const TRUE: [&str; 5] = ["true", "1", "on", "yes", "t"];
const FALSE: [&str; 5] = ["false", "0", "off", "no", "f"];

impl TlsStatements {
    /// Adds what one parameter says.
    ///
    /// # Errors
    /// The value is not one that the parameter has; the error is what it accepts.
    pub(super) fn add(&mut self, parameter: TlsParameter, value: &str, dialect: Dialect) -> Result<(), &'static str> {
        let word = normalized(value);
        let (is_true, is_false) = (TRUE.contains(&word.as_str()), FALSE.contains(&word.as_str()));
        let mode = MODES.iter().find(|(name, _)| *name == word).map(|(_, mode)| *mode);
        match parameter {
            TlsParameter::SslMode => match mode {
                Some(mode) => self.require(mode),
                None => return Err("one of disable, allow, prefer, require, verify-ca, verify-full, no-verify"),
            },
            TlsParameter::RequireSsl => self.require(if value.starts_with('1') {
                SslMode::Require
            } else {
                SslMode::Prefer
            }),
            // pgjdbc verifies with ssl=true, also written without a value, and ssl=false leaves it to sslmode.
            TlsParameter::Ssl if dialect == Dialect::Jdbc && (is_true || value.is_empty()) => {
                self.require(SslMode::VerifyFull);
            }
            TlsParameter::Ssl if dialect == Dialect::Jdbc && is_false => {}
            TlsParameter::Ssl if is_true => self.require(SslMode::Require),
            TlsParameter::Ssl if is_false => self.require(SslMode::Disable),
            TlsParameter::Ssl => match mode {
                Some(mode) => self.require(mode),
                None => return Err("true, false, or a value of sslmode"),
            },
            // Prisma takes everything else for "strict", too.
            TlsParameter::SslAccept if word == "acceptinvalidcerts" => {}
            TlsParameter::SslAccept => {
                self.require(SslMode::VerifyFull);
                self.uses_system_roots = true;
            }
            TlsParameter::SslCert => self.certificate = Some(value.to_owned()),
            TlsParameter::SslFactory => match value.rsplit('.').next().unwrap_or_default() {
                "LibPQFactory" | "NonValidatingFactory" => {}
                "DefaultJavaSSLFactory" => {
                    self.is_required_tls_verified = true;
                    self.uses_system_roots = true;
                }
                _ => return Err("a class of org.postgresql.ssl without an argument (pglock cannot load Java classes)"),
            },
            TlsParameter::TrustServerCertificate if is_true => {}
            TlsParameter::TrustServerCertificate if is_false => self.is_required_tls_verified = true,
            TlsParameter::TrustServerCertificate => return Err("true or false"),
        }
        Ok(())
    }

    fn require(&mut self, mode: SslMode) {
        self.strictest = self.strictest.max(Some(mode));
    }

    /// Sets the parameters of libpq. `sslcert` is the server's root certificate in a URL of Prisma, and the client's
    /// certificate otherwise.
    pub(super) fn apply(self, values: &mut Values, is_prisma: bool) {
        let mut mode = self.strictest;
        if self.is_required_tls_verified && mode >= Some(SslMode::Require) {
            mode = Some(SslMode::VerifyFull);
        }
        // Only a client's certificate has a key.
        let is_root = is_prisma && !values.has("sslkey");
        let has_roots = values.has("sslrootcert");
        let root = self.certificate.as_deref().filter(|_| is_root);
        let system = Some("system").filter(|_| self.uses_system_roots && mode == Some(SslMode::VerifyFull));
        let settings = [
            ("sslmode", mode.map(name_of)),
            ("sslcert", self.certificate.as_deref().filter(|_| !is_root)),
            ("sslrootcert", root.or(system).filter(|_| !has_roots)),
        ];
        for (parameter, value) in settings {
            if let Some(value) = value {
                values.set_known(parameter, value);
            }
        }
    }
}

/// Returns libpq's name of the mode.
fn name_of(mode: SslMode) -> &'static str {
    match mode {
        SslMode::Disable => "disable",
        SslMode::Allow => "allow",
        SslMode::Prefer => "prefer",
        SslMode::Require => "require",
        SslMode::VerifyCa => "verify-ca",
        SslMode::VerifyFull => "verify-full",
    }
}
