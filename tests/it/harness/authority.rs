//! An authority of the tests' own, and what it signs.

use std::{fs, path::Path};

use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair, date_time_ymd};
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
        self.certificate_for(&["127.0.0.1"])
    }

    /// A certificate for these names, and its key; both in PEM.
    pub fn certificate_for(&self, names: &[&str]) -> (String, String) {
        self.signed(&CertificateParams::new(names.iter().map(|&name| name.to_owned()).collect::<Vec<_>>()).unwrap())
    }

    /// A certificate for nobody but a common name, and its key; both in PEM.
    pub fn certificate_by_common_name(&self, name: &str) -> (String, String) {
        let mut params = CertificateParams::new(Vec::new()).unwrap();
        params.distinguished_name.push(DnType::CommonName, name);
        self.signed(&params)
    }

    /// A certificate for the loopback that is good in these years alone, and its key; both in PEM.
    pub fn certificate_of(&self, years: std::ops::Range<i32>) -> (String, String) {
        let mut params = CertificateParams::new(vec!["127.0.0.1".into()]).unwrap();
        (params.not_before, params.not_after) = (date_time_ymd(years.start, 1, 1), date_time_ymd(years.end, 1, 1));
        self.signed(&params)
    }

    fn signed(&self, params: &CertificateParams) -> (String, String) {
        let key = KeyPair::generate().unwrap();
        (params.signed_by(&key, &self.issuer).unwrap().pem(), key.serialize_pem())
    }

    /// A certificate as files in `folder`, `server.crt` and `server.key`.
    pub fn write_certificate(&self, folder: &Path) {
        let (certificate, key) = self.certificate();
        fs::write(folder.join("server.crt"), certificate).unwrap();
        fs::write(folder.join("server.key"), key).unwrap();
    }
}
