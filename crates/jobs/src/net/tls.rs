//! The TLS side of a connection.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use slotkeep_model::NodeAddr;
use tokio_rustls::TlsConnector;
use tokio_rustls::rustls::{ClientConfig, RootCertStore};

use crate::{Error, ErrorKind, Result};

/// How to speak TLS.
#[derive(Clone, Debug, Default)]
pub struct TlsOptions {
    /// Certificates of the authorities to trust, PEM; the system's if there is none.
    pub ca: Option<PathBuf>,
    /// The client's certificate and its key, PEM, for servers that ask for one.
    pub client: Option<(PathBuf, PathBuf)>,
    /// The name to expect in the servers' certificates, in place of each node's own host: for clusters that announce addresses
    /// and have certificates with a name.
    pub server_name: Option<String>,
}

/// TLS, ready to use.
#[derive(Clone)]
pub(super) struct Tls {
    connector: TlsConnector,
    server_name: Option<ServerName<'static>>,
}

impl Tls {
    pub(super) fn new(options: &TlsOptions) -> Result<Self> {
        let mut roots = RootCertStore::empty();
        match &options.ca {
            Some(path) => {
                for certificate in certificates(path)? {
                    roots.add(certificate).map_err(|error| unusable(path, &error))?;
                }
            }
            None => {
                let found = rustls_native_certs::load_native_certs();
                roots.add_parsable_certificates(found.certs);
            }
        }
        let builder = ClientConfig::builder().with_root_certificates(roots);
        let config = match &options.client {
            None => builder.with_no_client_auth(),
            Some((certificate, key)) => {
                let parsed = PrivateKeyDer::from_pem_file(key).map_err(|error| unusable(key, &error))?;
                builder
                    .with_client_auth_cert(certificates(certificate)?, parsed)
                    .map_err(|error| unusable(certificate, &error))?
            }
        };
        let server_name = options.server_name.clone().map(|name| {
            let text = name.clone();
            ServerName::try_from(name)
                .map_err(|error| Error::new(ErrorKind::Usage, format!("--tls-server-name `{text}`: {error}")))
        });
        Ok(Self { connector: TlsConnector::from(Arc::new(config)), server_name: server_name.transpose()? })
    }

    pub(super) fn connector(&self) -> &TlsConnector {
        &self.connector
    }

    /// The name to expect in the certificate of the node at that address.
    pub(super) fn server_name(&self, addr: &NodeAddr) -> std::result::Result<ServerName<'static>, String> {
        match &self.server_name {
            Some(name) => Ok(name.clone()),
            None => ServerName::try_from(addr.host().to_owned()).map_err(|error| error.to_string()),
        }
    }
}

fn certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>> {
    let read =
        CertificateDer::pem_file_iter(path).and_then(Iterator::collect::<std::result::Result<Vec<_>, _>>);
    let certificates = read.map_err(|error| unusable(path, &error))?;
    if certificates.is_empty() { Err(unusable(path, &"it holds no certificate")) } else { Ok(certificates) }
}

fn unusable(path: &Path, why: &dyn std::fmt::Display) -> Error {
    Error::new(ErrorKind::Tls, format!("can't use {}: {why}", path.display()))
        .hint("give files in PEM form that this user can read")
}
