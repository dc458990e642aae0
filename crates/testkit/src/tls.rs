//! Certificates for a cluster, made afresh for each: an authority, a certificate for its servers and one for its clients.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    KeyUsagePurpose,
};
use tokio_rustls::rustls::crypto::aws_lc_rs;
use tokio_rustls::rustls::pki_types::pem::PemObject;
use tokio_rustls::rustls::pki_types::{CertificateDer, PrivateKeyDer};
use tokio_rustls::rustls::{ClientConfig, RootCertStore};

use crate::error::{Error, Result};

/// Where a cluster's certificates and keys are, as PEM files.
#[derive(Clone, Debug)]
pub struct Certificates {
    folder: PathBuf,
}

impl Certificates {
    /// Makes an authority and what it signs, in that folder.
    pub(crate) fn make(folder: &Path) -> Result<Self> {
        fs::create_dir_all(folder).map_err(Error::io(format!("make {}", folder.display())))?;
        let certificates = Self { folder: folder.to_owned() };
        let authority_key = KeyPair::generate().map_err(tls_error)?;
        let mut authority = named("Slotkeep test authority", Vec::new())?;
        authority.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        authority.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        let authority_pem = authority.self_signed(&authority_key).map_err(tls_error)?.pem();
        write(&certificates.ca(), &authority_pem)?;
        let issuer = Issuer::from_params(&authority, &authority_key);
        let names = ["localhost", "127.0.0.1", "::1"].map(str::to_owned).to_vec();
        certificates.issue("server", named("Slotkeep test server", names)?, &issuer)?;
        certificates.issue("client", named("Slotkeep test client", Vec::new())?, &issuer)?;
        Ok(certificates)
    }

    /// The authority's certificate.
    pub fn ca(&self) -> PathBuf {
        self.folder.join("ca.pem")
    }

    /// The servers' certificate: valid for `localhost`, 127.0.0.1 and `::1`, and for a node that calls another.
    pub fn server_cert(&self) -> PathBuf {
        self.folder.join("server.pem")
    }

    /// The key of [`Self::server_cert`].
    pub fn server_key(&self) -> PathBuf {
        self.folder.join("server.key")
    }

    /// A client's certificate.
    pub fn client_cert(&self) -> PathBuf {
        self.folder.join("client.pem")
    }

    /// The key of [`Self::client_cert`].
    pub fn client_key(&self) -> PathBuf {
        self.folder.join("client.key")
    }

    /// A configuration that trusts the authority, and shows the client's certificate to servers that ask for one.
    pub(crate) fn client_config(&self) -> Result<Arc<ClientConfig>> {
        let mut roots = RootCertStore::empty();
        roots.add(CertificateDer::from_pem_file(self.ca()).map_err(tls_error)?).map_err(tls_error)?;
        let chain = vec![CertificateDer::from_pem_file(self.client_cert()).map_err(tls_error)?];
        let key = PrivateKeyDer::from_pem_file(self.client_key()).map_err(tls_error)?;
        let config = ClientConfig::builder_with_provider(Arc::new(aws_lc_rs::default_provider()))
            .with_safe_default_protocol_versions()
            .map_err(tls_error)?
            .with_root_certificates(roots)
            .with_client_auth_cert(chain, key)
            .map_err(tls_error)?;
        Ok(Arc::new(config))
    }

    fn issue(&self, file: &str, mut params: CertificateParams, issuer: &Issuer<'_, &KeyPair>) -> Result<()> {
        // A node is a server to its clients and a client to its primary.
        params.extended_key_usages =
            vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
        let key = KeyPair::generate().map_err(tls_error)?;
        let certificate = params.signed_by(&key, issuer).map_err(tls_error)?;
        write(&self.folder.join(format!("{file}.pem")), &certificate.pem())?;
        write(&self.folder.join(format!("{file}.key")), &key.serialize_pem())
    }
}

fn named(name: &str, alternatives: Vec<String>) -> Result<CertificateParams> {
    let mut params = CertificateParams::new(alternatives).map_err(tls_error)?;
    params.distinguished_name.push(DnType::CommonName, name);
    Ok(params)
}

fn write(path: &Path, text: &str) -> Result<()> {
    fs::write(path, text).map_err(Error::io(format!("write {}", path.display())))
}

pub(crate) fn tls_error(error: impl std::fmt::Display) -> Error {
    Error::Tls { reason: error.to_string() }
}
