//! The certificate of the listeners, and whether callers need one.

use std::path::{Path, PathBuf};

use super::{
    parse,
    read::{ConfigErrors, Mistake, Reader},
    variables::{self, Variable},
};

#[derive(Debug, Clone)]
pub struct Tls {
    pub certificate: PathBuf,
    pub key: PathBuf,
    /// The authority of callers' certificates, if those are asked for, and whether they must show one.
    pub clients: Option<(PathBuf, ClientAuth)>,
}

/// Whether callers need a certificate.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ClientAuth {
    Optional,
    Required,
}

/// Each of the files.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TlsFile {
    Certificate,
    Key,
    ClientCa,
}

impl TlsFile {
    /// The name of the variable that has its path.
    pub fn variable(self) -> &'static str {
        self.described().name
    }

    /// What is wrong with it, as a mistake of the configuration.
    pub fn mistake(self, wrong: String) -> ConfigErrors {
        let variable = self.described();
        ConfigErrors(vec![Mistake { name: variable.name.into(), wrong, right: variable.form.into() }])
    }

    fn described(self) -> &'static Variable {
        match self {
            Self::Certificate => &variables::TLS_CERT_FILE,
            Self::Key => &variables::TLS_KEY_FILE,
            Self::ClientCa => &variables::TLS_CLIENT_CA_FILE,
        }
    }
}

impl Tls {
    pub fn client_ca(&self) -> Option<&Path> {
        self.clients.as_ref().map(|(path, _)| path.as_path())
    }
}

pub(super) fn tls(r: &mut Reader<impl Fn(&str) -> Option<String>>) -> Option<Tls> {
    let path = |text: &str| parse::text(text).map(PathBuf::from);
    let certificate = r.optional(&variables::TLS_CERT_FILE, path);
    let key = r.optional(&variables::TLS_KEY_FILE, path);
    let client_ca = r.optional(&variables::TLS_CLIENT_CA_FILE, path);
    let kinds = [("optional", ClientAuth::Optional), ("required", ClientAuth::Required)];
    let auth = r.value(&variables::TLS_CLIENT_AUTH, |text| parse::one_of(&kinds, text));
    if auth == ClientAuth::Required && client_ca.is_none() {
        r.mistake(&variables::TLS_CLIENT_CA_FILE, "it is not set, and TLS_CLIENT_AUTH requires certificates of it");
    }
    match (certificate, key) {
        (Some(certificate), Some(key)) => Some(Tls { certificate, key, clients: client_ca.map(|path| (path, auth)) }),
        (None, None) => {
            // What was asked for must not silently be missing.
            if client_ca.is_some() {
                r.mistake(&variables::TLS_CERT_FILE, "it is not set, and TLS_CLIENT_CA_FILE needs it");
            }
            None
        }
        (Some(_), None) => {
            r.mistake(&variables::TLS_KEY_FILE, "it is not set, and TLS_CERT_FILE is");
            None
        }
        (None, Some(_)) => {
            r.mistake(&variables::TLS_CERT_FILE, "it is not set, and TLS_KEY_FILE is");
            None
        }
    }
}
