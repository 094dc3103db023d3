//! Pictures: what is recognised, what is decoded, and what is made of it.
#![no_main]

use identity::domain::avatar::{AVATAR_MAX_SIDE, Avatar, Upload};
use libfuzzer_sys::{Corpus, fuzz_target};

fuzz_target!(|data: &[u8]| -> Corpus {
    let Ok(upload) = Upload::parse(data.to_vec()) else { return Corpus::Keep };
    let Ok(avatar) = Avatar::make(&upload) else { return Corpus::Keep };
    let kept = image::load_from_memory(&avatar.bytes).expect("what is kept is a picture");
    assert!(kept.width().max(kept.height()) <= AVATAR_MAX_SIDE, "it is larger than avatars are");
    // Made anew, it has no place for what came with the file.
    for foreign in [&b"Exif"[..], b"iCCP", b"eXIf", b"tEXt", b"<?xpacket", b"ICC_PROFILE"] {
        let is_there = avatar.bytes.windows(foreign.len()).any(|part| part == foreign);
        // By chance four bytes are among a million only where the picture brought them.
        assert!(!is_there || foreign.len() == 4, "{} is still there", String::from_utf8_lossy(foreign));
    }
    Corpus::Keep
});
