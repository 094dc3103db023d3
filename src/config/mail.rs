//! How mail leaves.

use std::path::PathBuf;

use secrecy::SecretString;

use super::{parse, read::Reader, variables};

#[derive(Debug, Clone)]
pub struct Mail {
    pub transport: MailTransport,
    /// An address, bare or as `Name <address>`.
    pub from: String,
}

#[derive(Debug, Clone)]
pub enum MailTransport {
    Console,
    /// One `.eml` a message in this folder.
    File(PathBuf),
    Smtp(Smtp),
}

#[derive(Debug, Clone)]
pub struct Smtp {
    pub host: String,
    pub port: u16,
    pub tls: SmtpTls,
    pub user: Option<String>,
    pub password: Option<SecretString>,
}

/// When the conversation with a mail server becomes private.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SmtpTls {
    Off,
    Starttls,
    FromTheStart,
}

/// The port on which TLS comes first, and not by STARTTLS (RFC 8314 §3.3). Nobody speaks there in the clear.
const SUBMISSIONS: u16 = 465;

pub(super) fn mail(r: &mut Reader<impl Fn(&str) -> Option<String>>) -> Mail {
    #[derive(Clone, Copy)]
    enum Backend {
        Smtp,
        Console,
        File,
    }
    let backends = [
        ("smtp", Backend::Smtp),
        ("console", Backend::Console),
        ("file", Backend::File),
        ("django.core.mail.backends.smtp.EmailBackend", Backend::Smtp),
        ("django.core.mail.backends.console.EmailBackend", Backend::Console),
        ("django.core.mail.backends.filebased.EmailBackend", Backend::File),
    ];
    let backend = r.optional(&variables::EMAIL_BACKEND, |text| parse::one_of(&backends, text));
    let host = r.optional(&variables::EMAIL_HOST, parse::host);
    let starttls = r.value(&variables::EMAIL_USE_TLS, parse::boolean);
    let port = r.value_or(&variables::EMAIL_PORT, if starttls { 587 } else { 25 }, parse::port);
    let user = r.optional(&variables::EMAIL_HOST_USER, parse::text);
    let password = r.secret(&variables::EMAIL_HOST_PASSWORD);
    let folder = r.optional(&variables::EMAIL_FILE_PATH, parse::text);
    let from = r.value(&variables::DEFAULT_FROM_EMAIL, parse::sender);

    let transport = match (backend, folder, host) {
        (Some(Backend::Console), _, _) | (None, _, None) => MailTransport::Console,
        (Some(Backend::File), Some(folder), _) => MailTransport::File(folder.into()),
        (Some(Backend::File), None, _) => {
            r.mistake(&variables::EMAIL_FILE_PATH, "it is not set, though EMAIL_BACKEND is file");
            MailTransport::Console
        }
        (Some(Backend::Smtp), _, host) | (None, _, host @ Some(_)) => {
            let host = host.unwrap_or_else(|| "localhost".into());
            let tls = match (port, starttls) {
                (SUBMISSIONS, _) => SmtpTls::FromTheStart,
                (_, true) => SmtpTls::Starttls,
                (_, false) => SmtpTls::Off,
            };
            if tls == SmtpTls::FromTheStart && !starttls {
                r.warn("EMAIL_PORT is 465, where TLS comes first: it does, though EMAIL_USE_TLS is false");
            }
            MailTransport::Smtp(Smtp { host, port, tls, user, password })
        }
    };
    warn_of_idle(r, &transport);
    if let MailTransport::Smtp(server) = &transport {
        warn_of_login(r, server);
    }
    Mail { transport, from }
}

/// What is set for another way than the one that mail takes.
fn warn_of_idle(r: &mut Reader<impl Fn(&str) -> Option<String>>, transport: &MailTransport) {
    let server = [
        &variables::EMAIL_HOST,
        &variables::EMAIL_PORT,
        &variables::EMAIL_USE_TLS,
        &variables::EMAIL_HOST_USER,
        &variables::EMAIL_HOST_PASSWORD,
    ];
    let folder = [&variables::EMAIL_FILE_PATH];
    let (way, idle) = match transport {
        MailTransport::Console => ("onto the console", r.set_among(server.iter().chain(&folder))),
        MailTransport::File(_) => ("into a folder", r.set_among(&server)),
        MailTransport::Smtp(_) => ("by SMTP", r.set_among(&folder)),
    };
    if let Some(idle) = idle {
        r.warn(format!("mail goes {way}: nothing comes of {idle}"));
    }
}

fn warn_of_login(r: &mut Reader<impl Fn(&str) -> Option<String>>, server: &Smtp) {
    let half = |set, unset| format!("{set} is set without {unset}: there is no login at the mail server");
    match (&server.user, &server.password) {
        (Some(_), None) => r.warn(half("EMAIL_HOST_USER", "EMAIL_HOST_PASSWORD")),
        (None, Some(_)) => r.warn(half("EMAIL_HOST_PASSWORD", "EMAIL_HOST_USER")),
        (Some(_), Some(_)) if server.tls == SmtpTls::Off => {
            r.warn("EMAIL_HOST_PASSWORD is sent in the clear, as EMAIL_USE_TLS is false");
        }
        _ => {}
    }
}
