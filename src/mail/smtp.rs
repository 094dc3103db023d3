//! One mail, one conversation with the server (RFC 5321), and what its answers mean for the mail.
//!
//! The stage at which a server says no tells whose fault it is. Up to the sender everything is the same for all mails: a no is
//! about the server or our settings, and all mails wait until somebody has put it right. From the recipient on it is about
//! this mail.

use std::time::Duration;

use lettre::{
    Address,
    address::Envelope,
    transport::smtp::{
        self as lettre_smtp,
        authentication::{Credentials, DEFAULT_MECHANISMS},
        client::{AsyncSmtpConnection, TlsParameters},
        commands::{Data, Mail, Rcpt},
        extension::{ClientId, Extension, MailBodyParameter, MailParameter},
        response::{Category, Code, Severity},
    },
};
use secrecy::ExposeSecret;

use crate::{
    config::{self, SmtpTls},
    error::{Cause, Chain, DeliveryError},
};

/// How long a server may take over one step of the conversation.
const STEP_TIMEOUT: Duration = Duration::from_secs(10);
/// How long it may take over our good-bye, which changes nothing any more.
const QUIT_TIMEOUT: Duration = Duration::from_secs(1);
/// How much of a server's words an operator gets to read.
const MAX_WORDS: usize = 200;

/// A server, and how to speak to it.
pub struct Server {
    host: String,
    port: u16,
    tls: SmtpTls,
    /// Whom to trust, read once; present unless `tls` is off.
    parameters: Option<TlsParameters>,
    credentials: Option<Credentials>,
    us: ClientId,
}

impl Server {
    /// # Errors
    /// If the host is no name that a certificate can bear, or the system's certificates can't be read.
    pub fn new(config: &config::Smtp) -> Result<Self, Cause> {
        let parameters = match config.tls {
            SmtpTls::Off => None,
            SmtpTls::Starttls | SmtpTls::FromTheStart => Some(TlsParameters::new(config.host.clone())?),
        };
        let credentials = match (&config.user, &config.password) {
            (Some(user), Some(password)) => Some(Credentials::new(user.clone(), password.expose_secret().to_owned())),
            _ => None,
        };
        let (host, port, tls) = (config.host.clone(), config.port, config.tls);
        Ok(Self { host, port, tls, parameters, credentials, us: ClientId::default() })
    }

    /// Has the server take the message. A connection of its own for each: none goes stale between two mails, and a server
    /// that hangs holds up one.
    ///
    /// # Errors
    /// If it did not take it, or its answer was lost.
    pub async fn send(&self, envelope: &Envelope, message: &[u8]) -> Result<(), DeliveryError> {
        let mut connection = self.connect().await.map_err(Trouble::with_the_server)?;
        let sent = hand_over(&mut connection, envelope, message).await;
        // What it has taken it has taken, whatever it says to this.
        let _ = tokio::time::timeout(QUIT_TIMEOUT, connection.quit()).await;
        sent
    }

    async fn connect(&self) -> Result<AsyncSmtpConnection, Trouble> {
        let wrapped = self.parameters.clone().filter(|_| self.tls == SmtpTls::FromTheStart);
        let address = (self.host.as_str(), self.port);
        let connecting = AsyncSmtpConnection::connect_tokio1(address, Some(STEP_TIMEOUT), &self.us, wrapped, None);
        let mut connection = step("connecting", connecting).await?;
        if let (SmtpTls::Starttls, Some(parameters)) = (self.tls, &self.parameters) {
            // Refused where the server doesn't offer it: never on in the clear.
            step("STARTTLS", connection.starttls(parameters.clone(), &self.us)).await?;
        }
        if let Some(credentials) = &self.credentials {
            // A server may quote what it was sent.
            step("the login", connection.auth(DEFAULT_MECHANISMS, credentials)).await.map_err(Trouble::wordless)?;
        }
        Ok(connection)
    }
}

/// The mail itself, to a server that is ready for it.
async fn hand_over(
    connection: &mut AsyncSmtpConnection,
    envelope: &Envelope,
    message: &[u8],
) -> Result<(), DeliveryError> {
    let mut parameters = Vec::new();
    let offers = |connection: &AsyncSmtpConnection, extension| connection.server_info().supports_feature(extension);
    if !envelope.to().iter().chain(envelope.from()).all(|address| AsRef::<str>::as_ref(address).is_ascii()) {
        if !offers(connection, Extension::SmtpUtfEight) {
            return Err(DeliveryError::Permanent("the server takes no addresses beyond ASCII (SMTPUTF8)".into()));
        }
        parameters.push(MailParameter::SmtpUtfEight);
    }
    if !message.is_ascii() {
        if !offers(connection, Extension::EightBitMime) {
            return Err(DeliveryError::Permanent("the server takes no text beyond ASCII (8BITMIME)".into()));
        }
        parameters.push(MailParameter::Body(MailBodyParameter::EightBitMime));
    }
    let sender = connection.command(Mail::new(envelope.from().cloned(), parameters));
    step("the sender", sender).await.map_err(Trouble::with_the_server)?;
    for recipient in envelope.to() {
        step("the recipient", connection.command(Rcpt::new(recipient.clone(), Vec::new())))
            .await
            .map_err(|trouble| trouble.without(recipient).with_the_message())?;
    }
    // From here on a server could quote the text, and a code with it.
    step("the text", connection.command(Data)).await.map_err(|trouble| trouble.wordless().with_the_message())?;
    step("the text", connection.message(message)).await.map_err(|trouble| trouble.wordless().with_the_message())?;
    Ok(())
}

/// What went wrong at one step.
struct Trouble {
    step: &'static str,
    /// The server's answer, if it gave one.
    code: Option<Code>,
    words: String,
}

async fn step<T>(step: &'static str, taken: impl Future<Output = Result<T, lettre_smtp::Error>>) -> Result<T, Trouble> {
    match tokio::time::timeout(STEP_TIMEOUT, taken).await {
        Ok(Ok(value)) => Ok(value),
        Ok(Err(error)) => {
            let said = std::error::Error::source(&error);
            let words = said.map_or_else(|| error.to_string(), |said| Chain(said).to_string());
            Err(Trouble { step, code: error.status(), words })
        }
        Err(_) => Err(Trouble { step, code: None, words: format!("no answer within {} s", STEP_TIMEOUT.as_secs()) }),
    }
}

impl Trouble {
    /// Every mail would meet it.
    fn with_the_server(self) -> DeliveryError {
        DeliveryError::ServerAway(self.to_string())
    }

    /// This mail met it; another may fare better.
    fn with_the_message(self) -> DeliveryError {
        let text = self.to_string();
        match self.code {
            // "Service not available, closing transmission channel": RFC 5321 §3.8.
            Some(code) if code.to_string() == "421" => DeliveryError::ServerAway(text),
            Some(code) if self.is_final(code) => DeliveryError::Permanent(text),
            _ => DeliveryError::Transient(text),
        }
    }

    /// The mail is not to be sent again (RFC 5321 §4.2.1), unless the server's policy is what is in the way (5.7.x of RFC
    /// 3463 §3.8), such as that it relays nothing for us: that is put right in settings, and the mail shall wait for it.
    fn is_final(&self, code: Code) -> bool {
        code.severity == Severity::PermanentNegativeCompletion
            && code.category == Category::MailSystem
            && !self.words.starts_with("5.7.")
    }

    /// Without the server's words but for the enhanced code (RFC 3463) at their beginning.
    fn wordless(mut self) -> Self {
        if self.code.is_some() {
            let first = self.words.split_whitespace().next().unwrap_or_default();
            let is_code = !first.is_empty() && first.chars().all(|c| c.is_ascii_digit() || c == '.');
            self.words = if is_code { first.chars().take(11).collect() } else { String::new() };
        }
        self
    }

    /// Without the address, which servers like to repeat: logs are read by more people than the table.
    fn without(mut self, address: &Address) -> Self {
        self.words = self.words.replace(AsRef::<str>::as_ref(address), "…");
        self
    }
}

impl std::fmt::Display for Trouble {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}:", self.step)?;
        if let Some(code) = &self.code {
            write!(f, " {code}")?;
        }
        let words: String = self.words.chars().filter(|c| !c.is_control()).take(MAX_WORDS).collect();
        if words.is_empty() { Ok(()) } else { write!(f, " {words}") }
    }
}
