// Written by build.rs from proto/. Don't edit.
impl std::fmt::Debug for AddBookRequest {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("AddBookRequest")
            .field("shelf", &self.shelf)
            .field("title", &self.title)
            .field("password", &"[redacted]")
            .finish()
    }
}
