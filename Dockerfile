# The image: one static binary, without a shell, for any user id.
#
#   docker build -t avouch .
#
# Without a registry, from a root directory that is made on this machine:
#
#   image/build target/image/root
#   buildah build --build-context root=target/image/root -t avouch .
#
# The same source makes the same files, wherever it is built; with `buildah build --timestamp 0` the same
# image as well.
#
# For a release, name the builder by its digest: --build-arg BUILDER=rust:1.95-bookworm@sha256:...
ARG BUILDER=docker.io/library/rust:1.95-bookworm

FROM ${BUILDER} AS builder
WORKDIR /src
COPY . .
RUN image/build /out

FROM scratch AS root
COPY --from=builder /out/ /

FROM scratch
COPY --from=root / /
# As a number, so that Kubernetes can tell that it is not root. Any other one does as well.
USER 65532:65532
EXPOSE 7700 7701 7702
ENTRYPOINT ["/usr/bin/avouch"]
CMD ["serve", "--config", "/etc/avouch/avouch.toml"]
