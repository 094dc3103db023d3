//! TLS on the listeners: the certificate, who else has one, and new ones without a restart.

use std::{
    fs, io,
    path::Path,
    sync::{Arc, Mutex, PoisonError, RwLock},
    time::Duration,
};

use rustls::{
    ClientConfig, DigitallySignedStruct, DistinguishedName, RootCertStore, ServerConfig, SignatureScheme,
    client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier},
    crypto::{CryptoProvider, aws_lc_rs, verify_tls12_signature, verify_tls13_signature},
    pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime, pem::PemObject},
    server::{
        WebPkiClientVerifier,
        danger::{ClientCertVerified, ClientCertVerifier},
    },
    version::{TLS12, TLS13},
};
use tokio::{
    net::TcpStream,
    signal::unix::{SignalKind, signal},
};
use tokio_rustls::{TlsAcceptor, TlsConnector, client, server::TlsStream};
use tokio_util::sync::CancellationToken;
use x509_parser::{
    certificate::X509Certificate,
    extensions::GeneralName,
    prelude::{ASN1Time, FromDer},
};

use crate::{
    clock::Clock,
    config::{ClientAuth, ConfigErrors, Tls as Settings, TlsFile},
    error::Cause,
    metrics::Connections,
};

/// How often the files are read, to see whether they changed. Their times say nothing where they are links that are turned to
/// another folder, as Kubernetes does it.
const READ_EVERY: Duration = Duration::from_secs(5);

/// The certificate in force, and where it comes from.
pub struct Tls {
    settings: Settings,
    clock: Clock,
    metrics: Connections,
    current: RwLock<Arc<ServerConfig>>,
    /// What was read last, whether it could be used or not.
    read: Mutex<Result<Files, Wrong>>,
}

/// What the files hold.
#[derive(PartialEq, Eq)]
struct Files {
    certificate: Vec<u8>,
    key: Vec<u8>,
    client_ca: Option<Vec<u8>>,
}

/// Which file is wrong, and how.
#[derive(PartialEq, Eq)]
struct Wrong(TlsFile, String);

impl Tls {
    /// Reads the files.
    ///
    /// # Errors
    /// What is wrong with them, by the variable that names the file.
    pub fn load(settings: &Settings, clock: &Clock, metrics: &Connections) -> Result<Self, ConfigErrors> {
        let wrong = |Wrong(file, wrong): Wrong| file.mistake(wrong);
        let files = Files::read(settings).map_err(wrong)?;
        let loaded = files.load(settings, clock).map_err(wrong)?;
        metrics.set_certificate_end(loaded.ends.timestamp());
        Ok(Self {
            settings: settings.clone(),
            clock: clock.clone(),
            metrics: metrics.clone(),
            current: RwLock::new(Arc::new(loaded.config)),
            read: Mutex::new(Ok(files)),
        })
    }

    /// Shakes hands. With the stream comes the name in the certificate that the client showed, if it did.
    ///
    /// # Errors
    /// If the client can't, or shows nothing that it has to show.
    pub async fn accept(&self, stream: TcpStream) -> io::Result<(TlsStream<TcpStream>, Option<Arc<str>>)> {
        let current = Arc::clone(&self.current.read().unwrap_or_else(PoisonError::into_inner));
        let stream = TlsAcceptor::from(current).accept(stream).await?;
        let shown = stream.get_ref().1.peer_certificates().and_then(<[_]>::first);
        let client = shown.map(name_of);
        Ok((stream, client))
    }

    /// Takes what the files hold as soon as it changes, and on SIGHUP, until `stop`. What can't be used is refused, and what
    /// was in force stays.
    pub async fn follow_files(self: Arc<Self>, stop: CancellationToken) {
        let mut hangup = signal(SignalKind::hangup()).inspect_err(|error| {
            tracing::warn!(%error, "SIGHUP can't be heard: new certificates are seen within seconds all the same");
        });
        loop {
            let asked = async {
                match &mut hangup {
                    Ok(hangup) => hangup.recv().await,
                    Err(_) => std::future::pending().await,
                }
            };
            let was_asked = tokio::select! {
                () = stop.cancelled() => return,
                () = tokio::time::sleep(READ_EVERY) => false,
                _ = asked => true,
            };
            // The files may be far away, and slow.
            let tls = Arc::clone(&self);
            let reloaded = tokio::task::spawn_blocking(move || tls.reload(was_asked));
            if let Some(Err(error)) = stop.run_until_cancelled(reloaded).await {
                tracing::error!(%error, "the certificate can't be read anew");
            }
        }
    }

    fn reload(&self, was_asked: bool) {
        let read = Files::read(&self.settings);
        let mut last = self.read.lock().unwrap_or_else(PoisonError::into_inner);
        if read == *last && !was_asked {
            return;
        }
        *last = read;
        let loaded = match &*last {
            Ok(files) => files.load(&self.settings, &self.clock),
            Err(Wrong(file, wrong)) => Err(Wrong(*file, wrong.clone())),
        };
        match loaded {
            Ok(Loaded { config, ends }) => {
                *self.current.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(config);
                self.metrics.set_certificate_end(ends.timestamp());
                tracing::info!(%ends, "the certificate was read anew");
            }
            Err(Wrong(file, wrong)) => {
                tracing::error!(
                    variable = file.variable(),
                    wrong,
                    "the certificate can't be used: the one in force stays"
                );
            }
        }
    }
}

/// What comes of the files.
struct Loaded {
    config: ServerConfig,
    ends: ASN1Time,
}

impl Files {
    fn read(settings: &Settings) -> Result<Self, Wrong> {
        let read = |file, path: &Path| {
            fs::read(path).map_err(|error| Wrong(file, format!("{} can't be read ({error})", path.display())))
        };
        Ok(Self {
            certificate: read(TlsFile::Certificate, &settings.certificate)?,
            key: read(TlsFile::Key, &settings.key)?,
            client_ca: settings.client_ca().map(|path| read(TlsFile::ClientCa, path)).transpose()?,
        })
    }

    fn load(&self, settings: &Settings, clock: &Clock) -> Result<Loaded, Wrong> {
        let provider = Arc::new(aws_lc_rs::default_provider());
        let chain = certificates(&self.certificate, &settings.certificate)
            .map_err(|wrong| Wrong(TlsFile::Certificate, wrong))?;
        let ends = check_times(&chain[0], clock).map_err(|wrong| Wrong(TlsFile::Certificate, wrong))?;
        let key = private_key(&self.key, &settings.key).map_err(|wrong| Wrong(TlsFile::Key, wrong))?;
        let verifier = match (&settings.clients, &self.client_ca) {
            (Some((path, required)), Some(pem)) => Some(
                verifier(pem, path, *required, &chain[0], &provider)
                    .map_err(|wrong| Wrong(TlsFile::ClientCa, wrong))?,
            ),
            _ => None,
        };
        let unusable = |error: rustls::Error| {
            Wrong(
                TlsFile::Key,
                match error {
                    rustls::Error::InconsistentKeys(_) => {
                        format!(
                            "{} is not the key of the certificate in {}",
                            settings.key.display(),
                            settings.certificate.display()
                        )
                    }
                    error => format!("{} can't be used ({error})", settings.key.display()),
                },
            )
        };
        let builder = ServerConfig::builder_with_provider(provider)
            .with_protocol_versions(&[&TLS13, &TLS12])
            .map_err(unusable)?;
        let builder = match verifier {
            Some(verifier) => builder.with_client_cert_verifier(verifier),
            None => builder.with_no_client_auth(),
        };
        let mut config = builder.with_single_cert(chain, key).map_err(unusable)?;
        config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
        Ok(Loaded { config, ends })
    }
}

/// The certificates of a file; at least one.
fn certificates(pem: &[u8], path: &Path) -> Result<Vec<CertificateDer<'static>>, String> {
    let found: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(pem).collect();
    match found {
        Ok(found) if !found.is_empty() => Ok(found),
        Ok(_) => Err(format!("{} has no certificate in it", path.display())),
        Err(error) => Err(format!("{} is no PEM ({error})", path.display())),
    }
}

fn private_key(pem: &[u8], path: &Path) -> Result<PrivateKeyDer<'static>, String> {
    PrivateKeyDer::from_pem_slice(pem)
        .map_err(|_| format!("{} has no private key in it, or an encrypted one", path.display()))
}

/// When the certificate ends, if it is in force now.
fn check_times(certificate: &CertificateDer<'_>, clock: &Clock) -> Result<ASN1Time, String> {
    let (_, certificate) =
        X509Certificate::from_der(certificate).map_err(|_| "what is in it is no certificate".to_owned())?;
    let validity = certificate.validity();
    let now = clock.now().timestamp();
    if now >= validity.not_after.timestamp() {
        return Err(format!("the certificate ended at {}", validity.not_after));
    }
    if now < validity.not_before.timestamp() {
        return Err(format!("the certificate is valid from {} on, which is yet to come", validity.not_before));
    }
    Ok(validity.not_after)
}

/// Who a certificate is for, to be read by people: its first URI or DNS name, or its common name. None of them can be made up:
/// the authority signed it.
fn name_of(certificate: &CertificateDer<'_>) -> Arc<str> {
    let Ok((_, certificate)) = X509Certificate::from_der(certificate) else { return "unreadable".into() };
    let alternatives = certificate.subject_alternative_name().ok().flatten();
    let mut alternatives = alternatives.iter().flat_map(|names| &names.value.general_names);
    let alternative = alternatives.find_map(|name| match name {
        GeneralName::URI(name) | GeneralName::DNSName(name) => Some(*name),
        _ => None,
    });
    let common = certificate.subject().iter_common_name().find_map(|name| name.as_str().ok());
    alternative.or(common).unwrap_or("unnamed").into()
}

/// Takes certificates that the authority signed, and the service's own: by that `identity healthcheck` shows who it is.
fn verifier(
    pem: &[u8],
    path: &Path,
    auth: ClientAuth,
    own: &CertificateDer<'static>,
    provider: &Arc<CryptoProvider>,
) -> Result<Arc<dyn ClientCertVerifier>, String> {
    let mut roots = RootCertStore::empty();
    for certificate in certificates(pem, path)? {
        roots
            .add(certificate)
            .map_err(|error| format!("{} has something else than authorities ({error})", path.display()))?;
    }
    let builder = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), Arc::clone(provider));
    let builder = match auth {
        ClientAuth::Optional => builder.allow_unauthenticated(),
        ClientAuth::Required => builder,
    };
    let signed = builder.build().map_err(|error| format!("{} can't be used ({error})", path.display()))?;
    Ok(Arc::new(SignedOrOwn { signed, own: own.clone() }))
}

#[derive(Debug)]
struct SignedOrOwn {
    signed: Arc<dyn ClientCertVerifier>,
    own: CertificateDer<'static>,
}

impl ClientCertVerifier for SignedOrOwn {
    fn client_auth_mandatory(&self) -> bool {
        self.signed.client_auth_mandatory()
    }

    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        self.signed.root_hint_subjects()
    }

    fn verify_client_cert(
        &self,
        certificate: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<ClientCertVerified, rustls::Error> {
        // That the key is there as well, the signatures below prove.
        if *certificate == self.own {
            return Ok(ClientCertVerified::assertion());
        }
        self.signed.verify_client_cert(certificate, intermediates, now)
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.signed.verify_tls12_signature(message, certificate, signature)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.signed.verify_tls13_signature(message, certificate, signature)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.signed.supported_verify_schemes()
    }
}

/// A connection to the listener of this very machine, for `identity healthcheck`. It shows the service's own certificate where
/// one is required, and takes whatever it is shown: nothing secret is said, and the files may be newer than what is in force.
///
/// # Errors
/// If there is no handshake.
pub async fn connect(settings: &Settings, stream: TcpStream) -> Result<client::TlsStream<TcpStream>, Cause> {
    let provider = Arc::new(aws_lc_rs::default_provider());
    let builder = ClientConfig::builder_with_provider(Arc::clone(&provider))
        .with_protocol_versions(&[&TLS13, &TLS12])?
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(Anyone(provider)));
    // Where none is required, files that are half renewed must not matter: the service runs on what is in force.
    let is_required = matches!(settings.clients, Some((_, ClientAuth::Required)));
    let own = is_required.then(|| Files::read(settings).ok()).flatten().and_then(|files| {
        let chain = certificates(&files.certificate, &settings.certificate).ok()?;
        let key = private_key(&files.key, &settings.key).ok()?;
        builder.clone().with_client_auth_cert(chain, key).ok()
    });
    let config = own.unwrap_or_else(|| builder.with_no_client_auth());
    let name = ServerName::try_from("localhost")?;
    Ok(TlsConnector::from(Arc::new(config)).connect(name, stream).await?)
}

#[derive(Debug)]
struct Anyone(Arc<CryptoProvider>);

impl ServerCertVerifier for Anyone {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls12_signature(message, certificate, signature, &self.0.signature_verification_algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls13_signature(message, certificate, signature, &self.0.signature_verification_algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.signature_verification_algorithms.supported_schemes()
    }
}
