//! How mail leaves, and from whom.

use std::path::Path;

use identity::config::{MailTransport, SmtpTls};

use super::{loaded, refused};

#[test]
fn mail_goes_where_django_would_send_it() {
    let transport = |variables: &[(&str, &str)]| loaded(variables).mail.transport;
    let django = |name: &str| format!("django.core.mail.backends.{name}.EmailBackend");

    let smtp = |variables: &[(&str, &str)]| match transport(variables) {
        MailTransport::Smtp(smtp) => (smtp.host, smtp.port, smtp.tls),
        other => panic!("{other:?}"),
    };
    assert_eq!(smtp(&[("EMAIL_HOST", "mail")]), ("mail".into(), 25, SmtpTls::Off));
    let by_backend = smtp(&[("EMAIL_BACKEND", &django("smtp")), ("EMAIL_USE_TLS", "True")]);
    assert_eq!(by_backend, ("localhost".into(), 587, SmtpTls::Starttls));
    let console = transport(&[("EMAIL_BACKEND", &django("console")), ("EMAIL_HOST", "mail")]);
    assert!(matches!(console, MailTransport::Console));
    for backend in ["file", &django("filebased")] {
        let file = transport(&[("EMAIL_BACKEND", backend), ("EMAIL_FILE_PATH", "/var/mail")]);
        assert!(matches!(file, MailTransport::File(path) if path == Path::new("/var/mail")));
        refused(&[("EMAIL_BACKEND", backend)], "EMAIL_FILE_PATH", "not set");
    }
}

#[test]
fn senders_are_taken_as_mail_writes_them() {
    for sender in [
        "users@example.com",
        "webmaster@localhost",
        "Users <users@example.com>",
        "\"Users, Inc.\" <users@example.com>",
        "Служба <users@example.com>",
        "<users@пример.рф>",
    ] {
        assert_eq!(loaded(&[("DEFAULT_FROM_EMAIL", sender)]).mail.from, sender);
    }
}
