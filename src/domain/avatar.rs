//! Avatars: pictures as they come, and as they are kept. Contract §6.

use std::{io::Cursor, sync::Arc};

use chrono::{DateTime, Utc};
use image::{
    DynamicImage, ImageDecoder, ImageFormat, ImageReader, Limits, codecs::jpeg::JpegEncoder, imageops::FilterType,
};
use sea_orm::{ActiveValue::Set, ColumnTrait, EntityTrait, QueryFilter};

use crate::{
    app::App,
    db::Tx,
    entity::avatar,
    error::{Error, FieldErrors, Result},
    random,
};

/// The largest file, in bytes.
pub const UPLOAD_MAX_BYTES: usize = 5 << 20;
/// The largest picture, in pixels each way.
pub const UPLOAD_MAX_SIDE: u32 = 4096;
/// As large as it is kept, in pixels each way.
pub const AVATAR_MAX_SIDE: u32 = 512;
/// What decoding may allocate: a picture of the largest size with 16 bits a channel, and some air.
const DECODE_MAX_BYTES: u64 = 160 << 20;
/// What reading the head of a picture may allocate: more than the largest file has of other things.
const HEAD_MAX_BYTES: u64 = 8 << 20;
const JPEG_QUALITY: u8 = 85;

const NOT_AN_IMAGE: &str = "Upload a valid image. The file you uploaded was either not an image or a corrupted image.";

/// A picture as it came, of a kind and size that is taken. Only its head has been read.
pub struct Upload {
    bytes: Vec<u8>,
    format: ImageFormat,
}

impl Upload {
    /// Recognises the picture by its content, whatever its name or type said, and checks its size before any of it is decoded.
    pub fn parse(bytes: Vec<u8>) -> Result<Self, &'static str> {
        if bytes.is_empty() {
            return Err("The submitted file is empty.");
        }
        if bytes.len() > UPLOAD_MAX_BYTES {
            return Err("Ensure this file is no larger than 5 MiB.");
        }
        let format = image::guess_format(&bytes).map_err(|_| NOT_AN_IMAGE)?;
        if !matches!(format, ImageFormat::Jpeg | ImageFormat::Png | ImageFormat::WebP | ImageFormat::Gif) {
            return Err("Upload a JPEG, PNG, WebP or GIF image.");
        }
        // Even the head may hold something to inflate: a colour profile of a few bytes, or of half a gigabyte.
        let mut head = ImageReader::with_format(Cursor::new(&bytes), format);
        let mut limits = Limits::default();
        limits.max_alloc = Some(HEAD_MAX_BYTES);
        head.limits(limits);
        let (width, height) = head.into_dimensions().map_err(|_| NOT_AN_IMAGE)?;
        if width > UPLOAD_MAX_SIDE || height > UPLOAD_MAX_SIDE {
            return Err("Ensure this image is no larger than 4096 × 4096 pixels.");
        }
        Ok(Self { bytes, format })
    }
}

/// A picture as it is kept: small, and made anew, so that nothing of the file that came is left, metadata least of all.
pub struct Avatar {
    /// Unguessable.
    pub name: String,
    pub content_type: String,
    pub bytes: Vec<u8>,
}

impl Avatar {
    fn make(upload: &Upload) -> image::ImageResult<Self> {
        let mut reader = ImageReader::with_format(Cursor::new(&upload.bytes), upload.format);
        let mut limits = Limits::default();
        limits.max_image_width = Some(UPLOAD_MAX_SIDE);
        limits.max_image_height = Some(UPLOAD_MAX_SIDE);
        limits.max_alloc = Some(DECODE_MAX_BYTES);
        reader.limits(limits);
        let mut decoder = reader.into_decoder()?;
        let orientation = decoder.orientation()?;
        let mut picture = DynamicImage::from_decoder(decoder)?;
        if picture.width() > AVATAR_MAX_SIDE || picture.height() > AVATAR_MAX_SIDE {
            picture = picture.resize(AVATAR_MAX_SIDE, AVATAR_MAX_SIDE, FilterType::CatmullRom);
        }
        picture.apply_orientation(orientation);

        let mut bytes = Vec::new();
        let (extension, content_type) = if picture.color().has_alpha() {
            picture.to_rgba8().write_to(&mut Cursor::new(&mut bytes), ImageFormat::Png)?;
            ("png", "image/png")
        } else {
            picture.to_rgb8().write_with_encoder(JpegEncoder::new_with_quality(&mut bytes, JPEG_QUALITY))?;
            ("jpg", "image/jpeg")
        };
        let name = format!("{:032x}.{extension}", u128::from_ne_bytes(random::bytes()));
        Ok(Self { name, content_type: content_type.to_owned(), bytes })
    }
}

/// Such a name as we give: 32 hexadecimal digits and an extension.
fn is_name(name: &str) -> bool {
    let digits = name.strip_suffix(".jpg").or_else(|| name.strip_suffix(".png"));
    digits.is_some_and(|d| d.len() == 32 && d.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f')))
}

impl App {
    /// The avatar of this name; `None` where there is none.
    pub async fn avatar(&self, name: &str) -> Result<Option<Avatar>> {
        if !is_name(name) {
            return Ok(None); // Nothing that the database should be asked.
        }
        let found = avatar::Entity::find_by_id(name).one(self.db.reader()).await?;
        Ok(found.map(|row| Avatar { name: row.name, content_type: row.content_type, bytes: row.bytes }))
    }

    /// Decodes a picture and makes an avatar of it, on a thread of its own.
    ///
    /// # Errors
    /// `Invalid` if it can't be decoded.
    pub(super) async fn make_avatar(&self, upload: Upload) -> Result<Avatar> {
        let place = Arc::clone(&self.decoding).acquire_owned().await.map_err(Error::internal)?;
        let made = tokio::task::spawn_blocking(move || {
            let _place = place; // Held as long as the work goes on, also when nobody waits for it any more.
            Avatar::make(&upload)
        });
        let made = made.await.map_err(Error::internal)?;
        made.map_err(|error| {
            tracing::debug!(%error, "a picture can't be decoded");
            let mut errors = FieldErrors::default();
            errors.wrong("avatar", NOT_AN_IMAGE);
            Error::Invalid(errors)
        })
    }
}

/// Puts `new` in the place of the user's avatar, within `tx`. The one before goes.
pub(super) async fn replace_avatar(tx: &Tx, user_id: i64, new: Option<&Avatar>, now: DateTime<Utc>) -> Result<()> {
    avatar::Entity::delete_many().filter(avatar::Column::UserId.eq(user_id)).exec(tx).await?;
    if let Some(new) = new {
        let row = avatar::ActiveModel {
            name: Set(new.name.clone()),
            user_id: Set(user_id),
            content_type: Set(new.content_type.clone()),
            bytes: Set(new.bytes.clone()),
            created_at: Set(now),
        };
        avatar::Entity::insert(row).exec_without_returning(tx).await?;
    }
    Ok(())
}
