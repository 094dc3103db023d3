//! The letters: what they say, as text and as HTML, and how they travel.

use std::{fs, os::unix::fs::PermissionsExt, path::PathBuf, time::Duration};

use chrono::{DateTime, Utc};
use identity::{domain::letter::Letter, mail::Mail};
use uuid::Uuid;

use crate::harness::{Service, Store, wait_until};

fn written() -> DateTime<Utc> {
    "2026-11-05T08:30:00Z".parse().unwrap()
}

fn mail(letter: Letter) -> Mail {
    letter.mail(Uuid::nil(), written())
}

#[test]
fn a_letter_says_the_same_in_text_and_in_html() {
    let to = || "user@example.com".to_owned();
    let code = mail(Letter::VerificationCode { to: to(), code: "012345".into() });
    assert_eq!(
        code.text,
        "Hello,\n\nyour verification code is 012345. It is valid for 24 hours.\n\n\
         If you did not ask for it, you can ignore this message.\n"
    );
    let named = || Some("John".to_owned());
    for (letter, subject) in [
        (Letter::PasswordChanged { to: to(), name: named() }, "Your password was changed"),
        (Letter::EmailChanged { to: to(), name: named() }, "Your email address was changed"),
    ] {
        let mail = mail(letter);
        assert_eq!((mail.to.as_str(), mail.subject.as_str()), ("user@example.com", subject));
        assert!(mail.text.starts_with("Hello John,\n"), "{}", mail.text);
        assert!(mail.text.contains("was changed on 5 November 2026 at 08:30 UTC"), "{}", mail.text);
        assert!(mail.text.contains("If it was not you, "), "{}", mail.text);
        assert_same(&mail);
    }
    assert_same(&code);
    let nameless = mail(Letter::PasswordChanged { to: to(), name: Some(" ".into()) });
    assert!(nameless.text.starts_with("Hello,\n"), "{}", nameless.text);
}

/// Without its tags, the HTML is the subject and the text.
fn assert_same(mail: &Mail) {
    let body = &mail.html[mail.html.find("<body").unwrap()..];
    let mut words = String::new();
    for part in body.split('<') {
        words += part.split_once('>').map_or("", |(_, words)| words);
    }
    let plain = |text: &str| text.split_whitespace().collect::<Vec<_>>().join(" ");
    assert_eq!(plain(&words), plain(&format!("{} {}", mail.subject, mail.text)));
}

#[test]
fn a_name_is_shown_to_the_letter_and_nothing_is_fetched() {
    let name = r#"<img src="https://evil.example/x.png"> & 'Co'"#;
    let mail = mail(Letter::EmailChanged { to: "user@example.com".into(), name: Some(name.into()) });
    assert!(mail.text.starts_with(&format!("Hello {name},")), "{}", mail.text);
    let escaped = "Hello &lt;img src=&quot;https://evil.example/x.png&quot;&gt; &amp; &#39;Co&#39;,";
    assert!(mail.html.contains(escaped), "{}", mail.html);
    for fetched in ["<img", "<link", "<script", "src=\"", "url(", "href="] {
        assert!(!mail.html.contains(fetched), "{fetched}: {}", mail.html);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_file_holds_the_text_first_and_then_the_html() {
    let folder = tempfile::tempdir().unwrap();
    let mails = folder.path().join("mails");
    let settings = [
        ("EMAIL_BACKEND", "file"),
        ("EMAIL_FILE_PATH", mails.to_str().unwrap()),
        ("DEFAULT_FROM_EMAIL", "Users <users@example.com>"),
    ];
    let service = Service::start_with(Store::Sqlite, &settings).await;
    service.user("user@example.com").await;
    let file = || -> Option<PathBuf> {
        let files = fs::read_dir(&mails).ok()?.map(|file| file.unwrap().path());
        files.into_iter().find(|file| file.extension().is_some_and(|extension| extension == "eml"))
    };
    wait_until(Duration::from_secs(5), "a mail", async || file().is_some()).await;
    let found = file().unwrap();
    let text = fs::read_to_string(&found).unwrap().replace("\r\n", "\n");
    let (head, body) = text.split_once("\n\n").unwrap();
    let id = found.file_stem().unwrap().to_str().unwrap();
    for header in [
        "From: Users <users@example.com>",
        "To: user@example.com",
        "Subject: Verify your email address",
        "Auto-Submitted: auto-generated",
        &format!("Message-ID: <{id}@example.com>"),
    ] {
        assert!(head.lines().any(|line| line == header), "{header}: {head}");
    }
    assert!(head.contains("Content-Type: multipart/alternative;"), "{head}");
    let types: Vec<_> = body.lines().filter(|line| line.starts_with("Content-Type: ")).collect();
    assert_eq!(types, ["Content-Type: text/plain; charset=utf-8", "Content-Type: text/html; charset=utf-8"]);
    assert!(body.find("your verification code is").unwrap() < body.find("<html").unwrap(), "{body}");
    assert_eq!(fs::metadata(&found).unwrap().permissions().mode() & 0o777, 0o600);
    service.stop().await;
}
