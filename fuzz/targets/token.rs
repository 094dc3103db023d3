//! Tokens. The first byte says what the rest is: `t` a token, `e` edits of one that is right, `s` a header and, in the next
//! line, claims, which are signed as the service signs.
#![no_main]

use std::sync::LazyLock;

use aws_lc_rs::hmac;
use base64::{Engine, prelude::BASE64_URL_SAFE_NO_PAD};
use identity::model::token::Kind;
use identity_fuzz::{KEY, app, now};
use libfuzzer_sys::{Corpus, fuzz_target};
use serde_json::{Value, json};

static RIGHT: LazyLock<String> = LazyLock::new(|| {
    let iat = now().timestamp();
    let claims = json!({
        "token_type": "access", "exp": iat + 3600, "iat": iat, "jti": "AAAAAAAAAAAAAAAAAAAAAA", "user_id": "1", "sub": "1",
        "sid": "01890a5d-ac96-774b-bcce-b302099a8057", "roles": ["User"], "is_verified": false,
    });
    let right = signed(br#"{"alg":"HS256","typ":"JWT"}"#, claims.to_string().as_bytes());
    app().keys.verify(&right, Kind::Access, now()).expect("a token that is right");
    right
});

fuzz_target!(|data: &[u8]| -> Corpus {
    let Some((mode, rest)) = data.split_first() else { return Corpus::Reject };
    match mode {
        b't' => {
            let Ok(token) = std::str::from_utf8(rest) else { return Corpus::Reject };
            assert!(app().keys.verify_either(token, now()).is_err(), "a token out of nothing: {token:?}");
        }
        b'e' => {
            let token = edited(&RIGHT, rest);
            let Ok(token) = String::from_utf8(token) else { return Corpus::Reject };
            let is_taken = app().keys.verify(&token, Kind::Access, now()).is_ok();
            assert_eq!(is_taken, token == *RIGHT, "an edited token: {token:?}");
        }
        b's' => {
            let Some(line) = rest.iter().position(|byte| *byte == b'\n') else { return Corpus::Reject };
            let (header, claims) = (&rest[..line], &rest[line + 1..]);
            if let Ok(verified) = app().keys.verify_either(&signed(header, claims), now()) {
                // What is no claim of ours is passed over, unread.
                let (Some(header), Some(claims)) = (read(header), read(claims)) else { return Corpus::Keep };
                assert_eq!(header["alg"], "HS256", "another algorithm: {header}");
                assert!(header.get("crit").is_none(), "an extension that must be understood: {header}");
                assert_eq!(claims["exp"], json!(verified.expires_at));
                assert!(verified.expires_at > now().timestamp(), "over: {claims}");
                assert!(claims["iat"].as_i64().is_some_and(|iat| iat <= now().timestamp() + 5), "to come: {claims}");
                assert!(claims["nbf"].as_i64().is_none_or(|nbf| nbf <= now().timestamp() + 5), "to come: {claims}");
                assert_eq!(claims["jti"], json!(verified.jti));
                assert!(claims["user_id"].as_str().is_some_and(|id| id.parse() == Ok(verified.user_id)), "{claims}");
            }
        }
        _ => return Corpus::Reject,
    }
    Corpus::Keep
});

fn read(text: &[u8]) -> Option<Value> {
    serde_json::from_str(&String::from_utf8_lossy(text)).ok()
}

/// Three bytes an edit: what to do, where, and with which byte.
fn edited(token: &str, edits: &[u8]) -> Vec<u8> {
    let mut token = token.as_bytes().to_vec();
    for edit in edits.chunks_exact(3) {
        let at = (usize::from(edit[0] >> 2) * 64 + usize::from(edit[1] >> 2)) % token.len().max(1);
        match edit[0] % 4 {
            0 if at < token.len() => token[at] = edit[2] & 0x7f,
            1 if at < token.len() => drop(token.remove(at)),
            2 => token.insert(at, edit[2] & 0x7f),
            _ => token.truncate(at.max(1)),
        }
    }
    token
}

fn signed(header: &[u8], claims: &[u8]) -> String {
    let [header, claims] = [header, claims].map(|part| BASE64_URL_SAFE_NO_PAD.encode(part));
    let input = format!("{header}.{claims}");
    let signature = hmac::sign(&hmac::Key::new(hmac::HMAC_SHA256, KEY.as_bytes()), input.as_bytes());
    format!("{input}.{}", BASE64_URL_SAFE_NO_PAD.encode(signature))
}
