//! Everything that is loaded for TLS, and the rustls configuration for one host.

use super::client_certificate::ClientCertificate;
use super::provider::provider;
use super::trust::Trust;
use super::verifier::Verifier;
use crate::connection::settings::{ClientCertificateMode, Host, SslMode, TlsSettings, TlsVersion};
use crate::connection::settings_error::SettingsError;
use rustls::ClientConfig;
use rustls::client::{ResolvesClientCert, Resumption};
use rustls::crypto::CryptoProvider;
use std::sync::Arc;

/// The loaded files, for all hosts.
pub(crate) struct TlsConfig {
    settings: TlsSettings,
    provider: Arc<CryptoProvider>,
    /// `None` if any certificate is acceptable.
    trust: Option<Arc<Trust>>,
    client_certificate: Arc<ClientCertificate>,
}

impl TlsConfig {
    /// Loads the files that the settings name.
    ///
    /// # Errors
    /// A file is missing, unreadable, or unusable.
    pub(crate) fn load(settings: &TlsSettings) -> Result<TlsConfig, SettingsError> {
        let provider = Arc::new(provider());
        Ok(TlsConfig {
            trust: Trust::load(settings, &provider)?.map(Arc::new),
            client_certificate: Arc::new(ClientCertificate::load(settings)?),
            settings: settings.clone(),
            provider,
        })
    }

    /// Returns the rustls configuration for this host.
    ///
    /// # Errors
    /// `sslmode=verify-full` without a host name, or versions that rustls does not accept.
    pub(crate) fn client_config(&self, host: &Host) -> Result<ClientConfig, SettingsError> {
        let verifies_name = self.settings.mode == SslMode::VerifyFull;
        if verifies_name && !host.is_named {
            return Err(SettingsError::inconsistent(
                "sslmode=verify-full needs a host name, but only hostaddr is given; set host",
            ));
        }
        let range = self.settings.min_version..=self.settings.max_version;
        let versions: Vec<_> = [
            (TlsVersion::V12, &rustls::version::TLS12),
            (TlsVersion::V13, &rustls::version::TLS13),
        ]
        .into_iter()
        .filter(|(version, _)| range.contains(version))
        .map(|(_, version)| version)
        .collect();
        let verifier = Verifier {
            trust: self.trust.clone(),
            name: verifies_name.then(|| host.name.clone()),
            provider: Arc::clone(&self.provider),
        };
        let mut config = ClientConfig::builder_with_provider(Arc::clone(&self.provider))
            .with_protocol_versions(&versions)
            .map_err(|error| SettingsError::inconsistent(format!("cannot configure TLS: {error}")))?
            .dangerous()
            .with_custom_certificate_verifier(Arc::new(verifier))
            .with_client_cert_resolver(Arc::clone(&self.client_certificate) as Arc<dyn ResolvesClientCert>);
        config.enable_sni = self.settings.has_sni;
        // A lock needs a single connection, so there is no session to resume.
        config.resumption = Resumption::disabled();
        if self.settings.is_direct {
            config.alpn_protocols = vec![b"postgresql".to_vec()];
        }
        Ok(config)
    }

    /// Returns whether the server must request the client certificate and has not done so.
    pub(crate) fn lacks_certificate_request(&self) -> bool {
        self.settings.client_certificate_mode == ClientCertificateMode::Require
            && !self.client_certificate.was_requested()
    }
}
