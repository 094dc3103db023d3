//! The types that text is parsed into: what they take keeps its meaning.
#![no_main]

use identity::{
    domain::{
        directory::{Ordering, Search},
        user::{EMAIL_MAX_CHARS, EmailAddress, NAME_MAX_CHARS, PersonName, fold},
    },
    model::{password::Password, permission::Permission, role::Role},
};
use libfuzzer_sys::{Corpus, fuzz_target};

fuzz_target!(|data: &[u8]| -> Corpus {
    let Ok(text) = std::str::from_utf8(data) else { return Corpus::Reject };
    if let Ok(address) = EmailAddress::parse(text) {
        let shown = address.as_str();
        let again = EmailAddress::parse(shown).expect("what is shown can be typed");
        assert_eq!(address, again, "typed again it is another");
        assert_eq!(fold(address.key()), address.key(), "a key has one spelling");
        assert!(shown.chars().count() <= EMAIL_MAX_CHARS && !shown.contains(char::is_control), "{shown:?}");
        let (local, domain) = shown.rsplit_once('@').expect("an @");
        let first: String = local.chars().take(1).collect();
        assert_eq!(EmailAddress::mask(shown), format!("{first}***@{domain}"));
    }
    if let Ok(name) = PersonName::parse(text) {
        assert_eq!(PersonName::parse(name.as_str()).as_ref(), Ok(&name));
        assert!(name.as_str().chars().count() <= NAME_MAX_CHARS);
    }
    if Search::parse(text).is_ok() {
        assert!(!text.contains(char::is_control));
    }
    let _ = Ordering::parse(text);
    let _ = Role::parse(text);
    let _ = Permission::parse(text);
    let (password, personal) = text.split_once('\n').unwrap_or((text, ""));
    if Password::parse_new(password, &[personal]).is_ok() {
        assert!(Password::given(password).is_ok(), "what may be chosen may be typed");
        assert_ne!(password.to_lowercase(), personal.to_lowercase());
    }
    Corpus::Keep
});
