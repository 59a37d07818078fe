# An image to copy from: `COPY --from=<image> /pglock /usr/local/bin/pglock`. The binary is static, so it runs in any
# Linux image of its architecture. `make dist` builds the directory that is copied here.
FROM scratch
COPY target/dist/pglock/pglock /pglock
ENTRYPOINT ["/pglock"]
