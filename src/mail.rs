//! Mail, and how it leaves: by SMTP, into a folder, onto the console, or into a test's hands.

use std::{
    io::Write,
    path::PathBuf,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use chrono::{DateTime, Utc};
use lettre::{
    AsyncSmtpTransport, AsyncTransport, Message, Tokio1Executor,
    message::{Mailbox, header::ContentType},
    transport::smtp::authentication::Credentials,
};
use secrecy::ExposeSecret;
use uuid::Uuid;

use crate::{
    config::{self, MailTransport},
    error::Cause,
};

/// How long a server may take over one step of the conversation.
const SMTP_TIMEOUT: Duration = Duration::from_secs(10);

/// A mail to be sent.
#[derive(Clone)]
pub struct Mail {
    /// Makes the Message-ID: the same at each attempt, so that a second copy can be recognised.
    pub id: Uuid,
    pub to: String,
    pub subject: String,
    pub text: String,
    pub written_at: DateTime<Utc>,
}

pub struct Mailer {
    from: Mailbox,
    transport: Transport,
}

enum Transport {
    Console,
    /// One `.eml` a message, put into place by a rename.
    Folder(PathBuf),
    Smtp(AsyncSmtpTransport<Tokio1Executor>),
    Memory(Outgoing),
}

/// The mails that a test's service has sent.
pub type Outgoing = Arc<Mutex<Vec<Mail>>>;

impl Mailer {
    /// # Errors
    /// If the sender's address or the server can't be used.
    pub fn new(config: &config::Mail) -> Result<Self, Cause> {
        let transport = match &config.transport {
            MailTransport::Console => Transport::Console,
            MailTransport::File(folder) => Transport::Folder(folder.clone()),
            MailTransport::Smtp(server) => Transport::Smtp(smtp(server)?),
        };
        Ok(Self { from: config.from.parse()?, transport })
    }

    /// A mailer that keeps what it is given.
    pub fn memory(config: &config::Mail) -> Result<(Self, Outgoing), Cause> {
        let outgoing = Outgoing::default();
        Ok((Self { from: config.from.parse()?, transport: Transport::Memory(Arc::clone(&outgoing)) }, outgoing))
    }

    /// Sends the mail, or hands it to the server that will.
    ///
    /// # Errors
    /// If it could not be handed over. It may have been all the same, where the answer was lost.
    pub async fn send(&self, mail: &Mail) -> Result<(), Cause> {
        if let Transport::Memory(outgoing) = &self.transport {
            outgoing.lock().unwrap_or_else(PoisonError::into_inner).push(mail.clone());
            return Ok(());
        }
        let message = self.message(mail)?;
        match &self.transport {
            Transport::Console => {
                let mut out = std::io::stdout().lock();
                out.write_all(&message.formatted())?;
                Ok(writeln!(out, "\n")?)
            }
            Transport::Folder(folder) => {
                tokio::fs::create_dir_all(folder).await?;
                let (draft, file) = (folder.join(format!(".{}", mail.id)), folder.join(format!("{}.eml", mail.id)));
                tokio::fs::write(&draft, message.formatted()).await?;
                Ok(tokio::fs::rename(draft, file).await?)
            }
            Transport::Smtp(server) => server.send(message).await.map(drop).map_err(Cause::from),
            Transport::Memory(_) => Ok(()),
        }
    }

    fn message(&self, mail: &Mail) -> Result<Message, Cause> {
        let domain = self.from.email.domain();
        let message = Message::builder()
            .from(self.from.clone())
            .to(mail.to.parse()?)
            .subject(&mail.subject)
            .message_id(Some(format!("<{}@{domain}>", mail.id)))
            .date(mail.written_at.into())
            .header(ContentType::TEXT_PLAIN)
            .body(mail.text.clone())?;
        Ok(message)
    }
}

fn smtp(server: &config::Smtp) -> Result<AsyncSmtpTransport<Tokio1Executor>, Cause> {
    type Smtp = AsyncSmtpTransport<Tokio1Executor>;
    /// The port on which TLS comes first, and not by STARTTLS (RFC 8314 §3.3).
    const SUBMISSIONS: u16 = 465;
    let transport = match (server.starttls, server.port) {
        (true, SUBMISSIONS) => Smtp::relay(&server.host)?,
        (true, _) => Smtp::starttls_relay(&server.host)?,
        (false, _) => Smtp::builder_dangerous(&server.host),
    };
    let mut transport = transport.port(server.port).timeout(Some(SMTP_TIMEOUT));
    if let (Some(user), Some(password)) = (&server.user, &server.password) {
        transport = transport.credentials(Credentials::new(user.clone(), password.expose_secret().to_owned()));
    }
    Ok(transport.build())
}
