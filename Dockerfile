# An image to copy from: `COPY --from=<image> /pglock /usr/local/bin/pglock`. The binary is built from source and is
# static, so it runs in any Linux image of its architecture.
FROM rust:1-slim-bookworm AS build
WORKDIR /src
COPY . .
RUN scripts/dist

FROM scratch
COPY --from=build /src/target/dist/pglock/pglock /pglock
COPY --from=build /src/target/dist/pglock/LICENSE-* /src/target/dist/pglock/THIRD-PARTY /licenses/
ENTRYPOINT ["/pglock"]
