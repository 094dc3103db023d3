//! An authority of the tests' own, and what it signs.

use std::{fs, path::Path};

use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair};
use tempfile::TempDir;

/// Signs certificates. Its own lies in a file, which goes with this.
pub struct Authority {
    issuer: Issuer<'static, KeyPair>,
    folder: TempDir,
}

impl Authority {
    pub fn new() -> Self {
        let mut params = CertificateParams::new(Vec::new()).unwrap();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.distinguished_name.push(DnType::CommonName, "An authority of the tests");
        let key = KeyPair::generate().unwrap();
        let folder = tempfile::Builder::new().prefix("identity-test-").tempdir().unwrap();
        fs::write(folder.path().join("authority.pem"), params.self_signed(&key).unwrap().pem()).unwrap();
        Self { issuer: Issuer::new(params, key), folder }
    }

    /// The path of its certificate, for whoever is to trust it.
    pub fn file(&self) -> String {
        self.folder.path().join("authority.pem").display().to_string()
    }

    /// A certificate for the loopback by its number, not by name, and its key; both in PEM.
    pub fn certificate(&self) -> (String, String) {
        let key = KeyPair::generate().unwrap();
        let params = CertificateParams::new(vec!["127.0.0.1".into()]).unwrap();
        (params.signed_by(&key, &self.issuer).unwrap().pem(), key.serialize_pem())
    }

    /// A certificate as files in `folder`, `server.crt` and `server.key`.
    pub fn write_certificate(&self, folder: &Path) {
        let (certificate, key) = self.certificate();
        fs::write(folder.join("server.crt"), certificate).unwrap();
        fs::write(folder.join("server.key"), key).unwrap();
    }
}
