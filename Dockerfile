# syntax=docker/dockerfile:1
#
# docker build -t identity .
# docker build -t identity --build-arg TARGET_CPU=x86-64-v4 .   for machines with AVX-512: passwords are hashed in two thirds of the time

FROM rust:1.95-slim-trixie AS build
WORKDIR /src
# Of the levels of x86-64; none is for all of them, and for other architectures. The program is marked with its level, so that the loader
# says what is wrong on a machine below it; that mark takes the system's linker. Without the second flag a v4 makes no use of the
# whole width of its vectors. What runs while it is built stays for any machine, as for another target.
ARG TARGET_CPU=""
ENV RUSTFLAGS="${TARGET_CPU:+-C target-cpu=$TARGET_CPU -C target-feature=-prefer-256-bit -C linker-features=-lld -C link-arg=-Wl,-z,$TARGET_CPU}" \
    CARGO_BUILD_TARGET=host-tuple

# The dependencies, in a layer of their own: it lasts until Cargo.lock changes. They are built for sources with nothing in them.
COPY Cargo.toml Cargo.lock ./
COPY migrations/Cargo.toml migrations/
RUN mkdir -p src benches tests/it migrations/src \
    && touch src/lib.rs migrations/src/lib.rs \
    && echo 'fn main() {}' | tee build.rs src/main.rs benches/flame.rs benches/hot.rs benches/instructions.rs benches/transcode.rs \
        > tests/it/main.rs \
    && cargo build --locked --release

COPY build.rs ./
COPY build build
COPY proto proto
COPY migrations migrations
COPY src src
# Cargo goes by the time of a file, which may be older than what was built for the empty one.
RUN touch build.rs src/lib.rs src/main.rs migrations/src/lib.rs \
    && cargo build --locked --release \
    && install -D target/*/release/identity /image/usr/local/bin/identity \
    && mkdir -p /volume/data

# What glibc needs, the certificates of authorities, and no shell. Not static: musl's resolver is no match for glibc's
# under load.
FROM gcr.io/distroless/cc-debian13:nonroot
COPY --from=build /image/ /
# A volume that is made here belongs to the user.
COPY --from=build --chown=65532:65532 /volume/ /
USER 65532:65532
WORKDIR /
# On a read-only root there is no /tmp: SQLite sorts what is large beside its file.
ENV DATA_DIR=/data SQLITE_TMPDIR=/data
VOLUME /data
EXPOSE 8000
HEALTHCHECK --interval=10s --timeout=6s --start-period=30s --start-interval=1s --retries=3 CMD ["identity", "healthcheck"]
ENTRYPOINT ["identity"]
CMD ["serve"]
