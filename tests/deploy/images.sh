#!/usr/bin/env bash
# Builds the images without a container engine or a registry, as root: `make images-check`.
#
# Needs buildah and debootstrap. In the place of Docker Hub's python:3.11-slim-bookworm stands a Debian of the same
# release with its own Python 3.11, trimmed as the slim images are. BUILD_ARGS may hold more arguments for buildah,
# e.g. mounts that tell pip where its packages are.
#
#   tests/deploy/images.sh api worker trainer
set -euo pipefail
cd "$(dirname "$0")/../.."
work=${WORK:-/var/tmp/loomweight-images}
base=docker.io/library/python:3.11-slim-bookworm
mkdir -p "$work"
cat > "$work/storage.conf" <<STORAGE
[storage]
driver = "overlay"
runroot = "$work/run"
graphroot = "$work/graph"
STORAGE
export CONTAINERS_STORAGE_CONF="$work/storage.conf"

if ! buildah inspect --type image "$base" > /dev/null 2>&1; then
    root=$(mktemp -d)
    debootstrap --variant=minbase --include=python3,python3-venv,python3-pip,ca-certificates bookworm "$root" > "$work/debootstrap.log"
    cp /etc/apt/sources.list "$root/etc/apt/" 2> /dev/null || true
    cp -r /etc/apt/sources.list.d "$root/etc/apt/" 2> /dev/null || true
    # As in Debian's own slim images: no documentation, no translations, no caches of apt.
    rm -rf "$root"/usr/share/{doc,man,locale,info}/* "$root"/var/cache/apt/* "$root"/var/lib/apt/lists/*
    printf '%s\n' 'Dir::Cache::pkgcache ""; Dir::Cache::srcpkgcache "";' 'APT::Keep-Downloaded-Packages "false";' \
        > "$root/etc/apt/apt.conf.d/docker-clean"
    printf 'path-exclude /usr/share/%s/*\n' doc man locale > "$root/etc/dpkg/dpkg.cfg.d/slim"
    container=$(buildah from scratch)
    buildah copy --quiet "$container" "$root" /
    buildah config --env PATH=/usr/local/bin:/usr/bin:/bin:/usr/sbin:/sbin "$container"
    buildah commit --quiet --format docker --rm "$container" "$base"
    rm -rf "$root"
fi

for target in "$@"; do
    file=Dockerfile
    grep --quiet "AS $target\$" $file || file=tests/deploy/standins.Dockerfile
    # shellcheck disable=SC2086 # BUILD_ARGS is a list
    buildah bud --isolation chroot --pull-never --format docker --layers ${BUILD_ARGS:-} --file $file \
        --target "$target" --tag "loomweight/$target:0.1.0" .
done
buildah images --format '{{.Name}}:{{.Tag}} {{.Size}}'
