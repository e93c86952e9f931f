# shellcheck shell=bash disable=SC2154 # of hack/bench: scratch
# A real image for the benchmarks of images.
#
#   bench_picture DIR       Debian with Java and Python, of one layer (some 430 MB): DIR/layer.tar{,.gz,.zst} and image layouts
#                           DIR/gzip and DIR/zstd, tag latest. Kept in ${NODELESS_CACHE:-~/.cache/nodeless}/pictures; from Debian's archive
#   bench_images BENCH [ARGUMENT...] -- FIGURE...   runs `nodeless-bench BENCH` on it; prints JSON lines

# picture_layout DIR BLOB DIFF_ID MEDIA_TYPE: an image layout of one layer; the blob is linked to
picture_layout() {
    local dir=$1 blob=$2 diff_id=$3 type=$4 digest config manifest
    mkdir -p "$dir/blobs/sha256" || return
    digest=$(sha256sum "$blob") && digest=${digest%% *} && ln -f "$blob" "$dir/blobs/sha256/$digest" || return
    config=$(jq -cn --arg diff "$diff_id" --arg arch "$(dpkg --print-architecture)" \
        '{architecture: $arch, os: "linux", config: {Env: ["PATH=/usr/sbin:/usr/bin:/sbin:/bin"], Cmd: ["/bin/echo", "x"]}, rootfs: {type: "layers", diff_ids: [$diff]}}')
    config=$(picture_blob "$dir" "$config" application/vnd.oci.image.config.v1+json) || return
    manifest=$(jq -cn --argjson config "$config" --arg digest "sha256:$digest" --arg type "$type" --argjson size "$(stat -c %s "$blob")" \
        '{schemaVersion: 2, mediaType: "application/vnd.oci.image.manifest.v1+json", config: $config, layers: [{mediaType: $type, digest: $digest, size: $size}]}')
    manifest=$(picture_blob "$dir" "$manifest" application/vnd.oci.image.manifest.v1+json) || return
    jq -cn --argjson manifest "$manifest" \
        '{schemaVersion: 2, manifests: [$manifest + {annotations: {"org.opencontainers.image.ref.name": "latest"}}]}' >"$dir/index.json"
    echo '{"imageLayoutVersion": "1.0.0"}' >"$dir/oci-layout"
}

# picture_blob DIR TEXT TYPE: keeps a document, prints its descriptor
picture_blob() {
    local digest
    digest=$(printf %s "$2" | sha256sum) && digest=${digest%% *}
    printf %s "$2" >"$1/blobs/sha256/$digest" || return
    jq -cn --arg type "$3" --arg digest "sha256:$digest" --argjson size "$(printf %s "$2" | wc -c)" '{mediaType: $type, digest: $digest, size: $size}'
}

bench_picture() {
    local dir=$1 kept diff_id suite
    need_programs bench mmdebstrap zstd jq || return
    kept=${NODELESS_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/nodeless}/pictures
    suite=$(. /etc/os-release && echo "${VERSION_CODENAME:-stable}")
    mkdir -p "$kept" "$dir" || return
    if ! [[ -e $kept/$suite.tar ]]; then
        say "bench: making an image with Java and Python from Debian's archive"
        mmdebstrap --quiet --variant=minbase --include=openjdk-17-jre-headless,python3 "$suite" "$scratch/picture.tar" >&2 &&
            mv "$scratch/picture.tar" "$kept/$suite.tar" || return
    fi
    cp "$kept/$suite.tar" "$dir/layer.tar" && gzip -k "$dir/layer.tar" && zstd -qk "$dir/layer.tar" || return
    diff_id=$(sha256sum "$dir/layer.tar") && diff_id=sha256:${diff_id%% *}
    picture_layout "$dir/gzip" "$dir/layer.tar.gz" "$diff_id" application/vnd.oci.image.layer.v1.tar+gzip &&
        picture_layout "$dir/zstd" "$dir/layer.tar.zst" "$diff_id" application/vnd.oci.image.layer.v1.tar+zstd
}

bench_images() {
    local bench=$1
    shift
    local -a arguments=()
    [[ -d $scratch/picture ]] || bench_picture "$scratch/picture" || return
    mkdir -p "$scratch/$bench/own"
    while (($#)) && [[ $1 != -- ]]; do
        arguments+=("$1")
        shift
    done
    shift
    while (($#)); do
        arguments+=(--only "$1")
        shift
    done
    "$NODELESS_BENCH" "$bench" --picture "$scratch/picture" --dir "$scratch/$bench/own" "${arguments[@]}"
}
