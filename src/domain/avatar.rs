//! Avatars: pictures as they come, and as they are kept: made small, and without what a camera writes into them.

use std::{collections::HashSet, io::Cursor, time::Duration};

use chrono::TimeDelta;
use image::{
    DynamicImage, ImageDecoder, ImageFormat, ImageReader, Limits, codecs::jpeg::JpegEncoder, imageops::FilterType,
};
use sea_orm::{ActiveValue::Set, ColumnTrait, EntityTrait, QueryFilter, QuerySelect};

use crate::{
    app::App,
    domain::change::Transaction,
    entity::{avatar, profile},
    error::{Chain, Error, Result},
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
/// How long an answer waits for the old picture to go.
const FORGET_PATIENCE: Duration = Duration::from_millis(500);
/// How old a picture that no profile names must be to be an orphan: far older than any change that could still name it.
const ORPHAN_MIN_AGE: TimeDelta = TimeDelta::hours(1);
/// So many orphans, and more of them than others, are no accident: the store belongs to another database.
const TOO_MANY_ORPHANS: usize = 100;

const NOT_AN_IMAGE: &str = "Upload a valid image. The file you uploaded was either not an image or a corrupted image.";

/// A picture as it came, of a kind and size that is taken. Only its head has been read.
pub struct Upload {
    bytes: Vec<u8>,
    format: ImageFormat,
}

impl Upload {
    /// Recognises the picture by its content, whatever its name or type said, and checks its size before any of it is decoded.
    ///
    /// # Errors
    /// What is wrong, in words for whoever sent it.
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
    pub content_type: &'static str,
    pub bytes: Vec<u8>,
}

impl Avatar {
    /// Decodes the picture, which takes up to a second, and makes an avatar of it.
    ///
    /// # Errors
    /// What the decoder says, for the log, if it is no picture after all or takes more memory than it may.
    pub fn make(upload: &Upload) -> image::ImageResult<Self> {
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
        let extension = if picture.color().has_alpha() {
            picture.to_rgba8().write_to(&mut Cursor::new(&mut bytes), ImageFormat::Png)?;
            "png"
        } else {
            picture.to_rgb8().write_with_encoder(JpegEncoder::new_with_quality(&mut bytes, JPEG_QUALITY))?;
            "jpg"
        };
        let name = format!("{:032x}.{extension}", u128::from_ne_bytes(random::bytes()));
        Ok(Self { content_type: content_type_of(&name), name, bytes })
    }
}

/// Such a name as we give: 32 hexadecimal digits and an extension.
fn is_name(name: &str) -> bool {
    let digits = name.strip_suffix(".jpg").or_else(|| name.strip_suffix(".png"));
    digits.is_some_and(|d| d.len() == 32 && d.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f')))
}

/// What a picture of this name is.
fn content_type_of(name: &str) -> &'static str {
    match name.split_once('.') {
        Some((_, "png")) => "image/png",
        _ => "image/jpeg",
    }
}

impl Transaction {
    /// Puts `new` in the place of the user's avatar. The user's row is ours.
    pub async fn replace_avatar(&mut self, user_id: i64, new: Option<&Avatar>) -> Result<()> {
        avatar::Entity::delete_many().filter(avatar::Column::UserId.eq(user_id)).exec(&self.db).await?;
        if self.app.avatar_store.is_some() {
            return self.forget_avatar_of(user_id).await;
        }
        if let Some(new) = new {
            let row = avatar::ActiveModel {
                name: Set(new.name.clone()),
                user_id: Set(user_id),
                content_type: Set(new.content_type.to_owned()),
                bytes: Set(new.bytes.clone()),
                created_at: Set(self.now),
            };
            avatar::Entity::insert(row).exec_without_returning(&self.db).await?;
        }
        Ok(())
    }

    /// Has the picture of the user removed from folder or bucket, once this is committed.
    pub async fn forget_avatar_of(&mut self, user_id: i64) -> Result<()> {
        let name = profile::Entity::find().select_only().column(profile::Column::Avatar);
        let name =
            name.filter(profile::Column::UserId.eq(user_id)).into_tuple::<Option<String>>().one(&self.db).await?;
        self.has_replaced_avatar(name.flatten());
        Ok(())
    }
}

impl App {
    /// The avatar of this name; `None` where there is none.
    ///
    /// # Errors
    /// `Unavailable` if the store is away.
    pub async fn avatar(&self, name: &str) -> Result<Option<Avatar>> {
        if !is_name(name) {
            return Ok(None); // Nothing that a store should be asked.
        }
        if let Some(store) = &self.avatar_store
            && let Some(bytes) = store.get(name).await?
        {
            return Ok(Some(Avatar { name: name.to_owned(), content_type: content_type_of(name), bytes }));
        }
        // Also with another store: of the time before it was.
        let found = avatar::Entity::find_by_id(name).one(self.db.reader()).await?;
        Ok(found.map(|row| Avatar { content_type: content_type_of(&row.name), name: row.name, bytes: row.bytes }))
    }

    /// Decodes a picture of this user and makes an avatar of it, on a thread of its own. Outside of the database it is put into its
    /// place here, before any profile names it: what comes of no profile is left to the sweep.
    ///
    /// # Errors
    /// `Invalid` if it can't be decoded; `Unavailable` if it can't be kept.
    pub(super) async fn make_avatar(&self, user_id: i64, upload: Upload) -> Result<Avatar> {
        let place = self.decoding.enter(user_id).await;
        let made = tokio::task::spawn_blocking(move || {
            let _place = place; // Held as long as the work goes on, also when nobody waits for it any more.
            Avatar::make(&upload)
        });
        let made = made.await.map_err(Error::internal)?;
        let avatar = made.map_err(|error| {
            tracing::debug!(%error, "a picture can't be decoded");
            Error::invalid("avatar", NOT_AN_IMAGE)
        })?;
        if let Some(store) = &self.avatar_store {
            store.put(&avatar.name, avatar.bytes.clone()).await?;
        }
        Ok(avatar)
    }

    /// Removes a picture that no profile names any more, once that is committed. Where it takes long, it goes on by itself;
    /// where it fails, the picture is left to the sweep.
    pub(super) async fn forget_avatar(&self, name: Option<String>) {
        let (Some(store), Some(name)) = (self.avatar_store.clone(), name) else { return };
        let removed = self.follow_up(async move {
            if let Err(error) = store.delete(&name).await {
                tracing::warn!(error = %Chain(&error), "an avatar that was replaced is still there: a sweep will remove it");
            }
        });
        let _ = tokio::time::timeout(FORGET_PATIENCE, removed).await;
    }

    /// Removes the pictures outside of the database that no profile names: those whose change failed, and those that could
    /// not be removed with theirs. The answer is their number; 0 within an hour of the last sweep of this process.
    ///
    /// Any number of replicas may do it at once. A picture is an hour old before it is looked at, so none goes whose change is
    /// still under way.
    ///
    /// # Errors
    /// `Unavailable`; what was removed until then is.
    pub async fn sweep_orphan_avatars(&self) -> Result<u64> {
        let now = self.clock.now();
        let Some(store) = self.avatar_store.as_ref().filter(|store| store.is_sweep_due(now)) else { return Ok(0) };
        let edge = now - ORPHAN_MIN_AGE;
        let mut removed = store.remove_drafts(edge).await?;
        let mut pages = store.older_than(edge);
        while let Some(mut names) = pages.next_page().await? {
            names.retain(|name| is_name(name)); // The others are not ours.
            let looked_at = names.len();
            let named = profile::Entity::find().select_only().column(profile::Column::Avatar);
            let named = named.filter(profile::Column::Avatar.is_in(&names)).into_tuple().all(self.db.reader()).await?;
            let named: HashSet<String> = named.into_iter().collect();
            names.retain(|name| !named.contains(name));
            if names.len() >= TOO_MANY_ORPHANS && names.len() * 2 > looked_at {
                tracing::error!(
                    orphans = names.len(),
                    looked_at,
                    "most avatars belong to no profile, and none is removed: is AVATAR_STORE that of this database?"
                );
                break;
            }
            for name in &names {
                store.delete(name).await?;
                removed += 1;
            }
        }
        Ok(removed)
    }
}
