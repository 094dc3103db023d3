//! Mail, and how it leaves: by SMTP, into a folder, onto the console, or into a test's hands.

mod smtp;

use std::{
    os::unix::fs::DirBuilderExt,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError},
};

use chrono::{DateTime, Utc};
use lettre::{
    Message,
    message::{
        Mailbox, MultiPart, SinglePart,
        header::{HeaderName, HeaderValue},
    },
};
use tokio::io::AsyncWriteExt;
use uuid::Uuid;

use crate::{
    config::{self, MailTransport},
    error::{Cause, DeliveryError},
};

/// A mail to be sent.
#[derive(Clone)]
pub struct Mail {
    /// Makes the Message-ID: the same at each attempt, so that a second copy can be recognised.
    pub id: Uuid,
    pub to: String,
    pub subject: String,
    pub text: String,
    /// The same in HTML, for programs that prefer it.
    pub html: String,
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
    Smtp(smtp::Server),
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
            MailTransport::Smtp(server) => Transport::Smtp(smtp::Server::new(server)?),
        };
        Ok(Self { from: config.from.parse()?, transport })
    }

    /// A mailer that keeps what it is given.
    ///
    /// # Errors
    /// If the sender's address is none.
    pub fn memory(config: &config::Mail) -> Result<(Self, Outgoing), Cause> {
        let outgoing = Outgoing::default();
        Ok((Self { from: config.from.parse()?, transport: Transport::Memory(Arc::clone(&outgoing)) }, outgoing))
    }

    /// Sends the mail, or hands it to the server that will.
    ///
    /// # Errors
    /// If it could not be handed over. It may have been all the same, where the answer was lost.
    pub async fn send(&self, mail: &Mail) -> Result<(), DeliveryError> {
        let message = self
            .message(mail)
            .map_err(|error| DeliveryError::Permanent(format!("no mail can be made of the message: {error}")))?;
        match &self.transport {
            Transport::Console => {
                let text = [&message.formatted()[..], b"\n\n"].concat();
                let mut out = tokio::io::stdout();
                let printed = async { out.write_all(&text).await.and(out.flush().await) };
                printed.await.map_err(|error| DeliveryError::ServerAway(format!("standard output: {error}")))
            }
            Transport::Folder(folder) => write_into(folder, mail.id, &message.formatted())
                .await
                .map_err(|error| DeliveryError::ServerAway(format!("{}: {error}", folder.display()))),
            Transport::Smtp(server) => server.send(message.envelope(), &message.formatted()).await,
            Transport::Memory(outgoing) => {
                outgoing.lock().unwrap_or_else(PoisonError::into_inner).push(mail.clone());
                Ok(())
            }
        }
    }

    fn message(&self, mail: &Mail) -> Result<Message, Cause> {
        let message = Message::builder()
            .from(self.from.clone())
            .to(with_ascii_domain(&mail.to).parse()?)
            .subject(&mail.subject)
            .message_id(Some(format!("<{}@{}>", mail.id, ascii_domain(self.from.email.domain()))))
            .date(mail.written_at.into())
            // Nobody's holiday note is to come back (RFC 3834 §5).
            .raw_header(HeaderValue::new(HeaderName::new_from_ascii_str("Auto-Submitted"), "auto-generated".to_owned()))
            // A boundary that is the same at each attempt: then a second copy is one to the letter.
            .multipart(
                MultiPart::alternative()
                    .boundary(mail.id.simple().to_string())
                    .singlepart(SinglePart::plain(mail.text.clone()))
                    .singlepart(SinglePart::html(mail.html.clone())),
            )?;
        Ok(message)
    }
}

/// The address with its domain in the spelling that every server takes; what stands before the `@` has no other.
fn with_ascii_domain(address: &str) -> String {
    match address.rsplit_once('@') {
        Some((local, domain)) => format!("{local}@{}", ascii_domain(domain)),
        None => address.to_owned(),
    }
}

fn ascii_domain(domain: &str) -> String {
    idna::domain_to_ascii(domain).unwrap_or_else(|_| domain.to_owned())
}

/// Whole, and on the disk, before it has its name: it counts as sent from then on. For our eyes only: it may hold a code.
async fn write_into(folder: &Path, id: Uuid, message: &[u8]) -> std::io::Result<()> {
    let (draft, file) = (folder.join(format!(".{id}")), folder.join(format!("{id}.eml")));
    let folder = folder.to_owned();
    tokio::task::spawn_blocking({
        let folder = folder.clone();
        move || std::fs::DirBuilder::new().recursive(true).mode(0o700).create(folder)
    })
    .await??;
    let mut out =
        tokio::fs::OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&draft).await?;
    out.write_all(message).await?;
    out.sync_all().await?;
    tokio::fs::rename(draft, file).await?;
    tokio::fs::File::open(folder).await?.sync_all().await
}
