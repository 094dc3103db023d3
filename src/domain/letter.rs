//! The letters that users get: what each says, as text and as HTML.

use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use crate::mail::Mail;

/// A letter to be sent. The names and fields are stored.
#[derive(Debug, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum Letter {
    VerificationCode {
        to: String,
        code: String,
    },
    /// To the owner of the account, who may not be the one who did it (OWASP ASVS 5.0, 6.3.7).
    PasswordChanged {
        to: String,
        name: Option<String>,
    },
    /// To the address that the account had before.
    EmailChanged {
        to: String,
        name: Option<String>,
    },
}

/// A part of a sentence.
enum Span {
    Words(String),
    /// To be copied by the reader.
    Code(String),
}

impl Letter {
    /// What the rows of letters are called in the outbox.
    pub const KINDS: [&str; 3] = [Self::KIND_OF_CODES, "password_changed", "email_changed"];
    pub const KIND_OF_CODES: &str = "verification_code";

    pub fn kind(&self) -> &'static str {
        match self {
            Self::VerificationCode { .. } => Self::KIND_OF_CODES,
            Self::PasswordChanged { .. } => "password_changed",
            Self::EmailChanged { .. } => "email_changed",
        }
    }

    pub fn mail(self, id: Uuid, written_at: DateTime<Utc>) -> Mail {
        let at = written_at.format("%-d %B %Y at %H:%M UTC");
        let words = |text: String| vec![Span::Words(text)];
        let (to, name, subject, paragraphs) = match self {
            Self::VerificationCode { to, code } => (
                to,
                // Whoever registers a stranger's address would choose words to be mailed there.
                None,
                "Verify your email address",
                vec![
                    vec![
                        Span::Words("your verification code is ".into()),
                        Span::Code(code),
                        Span::Words(". It is valid for 24 hours.".into()),
                    ],
                    words("If you did not ask for it, you can ignore this message.".into()),
                ],
            ),
            Self::PasswordChanged { to, name } => (
                to,
                name,
                "Your password was changed",
                vec![
                    words(format!(
                        "the password of your account was changed on {at}, and your other sessions were ended."
                    )),
                    words("If it was you, there is nothing to do.".into()),
                    words(
                        "If it was not you, somebody else can use your account: tell those who run this service at once."
                            .into(),
                    ),
                ],
            ),
            Self::EmailChanged { to, name } => (
                to,
                name,
                "Your email address was changed",
                vec![
                    words(format!(
                        "the email address of your account was changed on {at}. This address no longer belongs to it."
                    )),
                    words("If it was you, there is nothing to do.".into()),
                    words(
                        "If it was not you, somebody else can use your account: tell those who run this service at once."
                            .into(),
                    ),
                ],
            ),
        };
        let greeting = match name.as_deref().map(str::trim) {
            Some(name) if !name.is_empty() => format!("Hello {name},"),
            _ => "Hello,".into(),
        };
        Mail {
            id,
            to,
            subject: subject.into(),
            text: as_text(&greeting, &paragraphs),
            html: as_html(subject, &greeting, &paragraphs),
            written_at,
        }
    }
}

fn as_text(greeting: &str, paragraphs: &[Vec<Span>]) -> String {
    let mut text = format!("{greeting}\n");
    for paragraph in paragraphs {
        text.push('\n');
        text.extend(paragraph.iter().map(|span| match span {
            Span::Words(words) => words.as_str(),
            Span::Code(code) => code.as_str(),
        }));
        text.push('\n');
    }
    text
}

/// A page of its own: styles stand in the elements, since many programs drop all others, and nothing is fetched.
fn as_html(subject: &str, greeting: &str, paragraphs: &[Vec<Span>]) -> String {
    let (subject, greeting) = (escaped(subject), escaped(greeting));
    let mut html = format!(
        "<!DOCTYPE html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\">\n\
         <meta name=\"viewport\" content=\"width=device-width\">\n<title>{subject}</title>\n</head>\n\
         <body style=\"margin:0;padding:24px;background:#f3f4f6\">\n\
         <div style=\"max-width:480px;margin:0 auto;padding:32px;border-radius:8px;background:#ffffff;\n\
         color:#1f2937;font:16px/1.5 'Segoe UI',Roboto,Helvetica,Arial,sans-serif\">\n\
         <h1 style=\"margin:0 0 24px;font-size:20px\">{subject}</h1>\n<p>{greeting}</p>\n"
    );
    for paragraph in paragraphs {
        html.push_str("<p>");
        for span in paragraph {
            match span {
                Span::Words(words) => html.push_str(&escaped(words)),
                Span::Code(code) => {
                    html.push_str("<strong style=\"font-size:20px;letter-spacing:2px\">");
                    html.push_str(&escaped(code));
                    html.push_str("</strong>");
                }
            }
        }
        html.push_str("</p>\n");
    }
    html.push_str("</div>\n</body>\n</html>\n");
    html
}

/// Text as HTML shows it to the letter, within an element or an attribute.
fn escaped(text: &str) -> String {
    text.chars().fold(String::with_capacity(text.len()), |mut html, c| {
        match c {
            '&' => html.push_str("&amp;"),
            '<' => html.push_str("&lt;"),
            '>' => html.push_str("&gt;"),
            '"' => html.push_str("&quot;"),
            '\'' => html.push_str("&#39;"),
            c => html.push(c),
        }
        html
    })
}
