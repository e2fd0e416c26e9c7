#!/usr/bin/env bash
# Collects what check.sh needs on a machine without Rust: release programs, bundles of the fixtures with their exact
# logits, and NVRTC, so that bundles can be compiled there too. Leaves target/gpu-check and target/gpu-check.tar.xz.
set -euo pipefail

usage() {
    cat <<'TEXT'
usage: pack.sh [options]

  --fixtures DIR  models with exact logits (default: $COLDPRESS_FIXTURES, else ../shared/fixtures)
  --nvrtc DIR     folder of libnvrtc.so.13 and libnvrtc-builtins.so.13.0 (default: $COLDPRESS_NVRTC, else a wheel's)
  --target T,...  what the fixtures are compiled for (default h200)
  --only NAME,... fixtures to take (default: one of every format and architecture)
  --no-build      take the release programs that are there
  --no-archive    the folder only

NVRTC is in the wheel nvidia-cuda-nvrtc==13.0.88 (pip install).
TEXT
}

fail() {
    echo "error: $*" >&2
    exit 1
}

refuse() {
    echo "error: $*" >&2
    usage >&2
    exit 2
}

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)
fixtures=${COLDPRESS_FIXTURES:-$root/../shared/fixtures} nvrtc=${COLDPRESS_NVRTC:-} targets=h200 build=1 archive=1
only=llama-Q4_K_M,qwen3-Q4_K_M,qwen3-Q8_0,llama-Q6_K,llama-Q4_0,llama-Q4_1,llama-Q5_0,llama-Q5_1,llama-Q5_K_M,llama-Q3_K_M
only=$only,llama-Q2_K,llama-IQ4_NL,llama-IQ4_XS,llama3-F16,qwen2-F16,llama-BF16,qwen3moe-Q4_K_M
while [ $# -gt 0 ]; do
    case $1 in
        -h | --help)
            usage
            exit 0
            ;;
        --no-build)
            build=
            shift
            ;;
        --no-archive)
            archive=
            shift
            ;;
        --fixtures | --nvrtc | --target | --only)
            [ $# -ge 2 ] || refuse "$1 needs a value"
            case $1 in
                --fixtures) fixtures=$2 ;;
                --nvrtc) nvrtc=$2 ;;
                --target) targets=$2 ;;
                --only) only=$2 ;;
            esac
            shift 2
            ;;
        *) refuse "unknown argument $1" ;;
    esac
done
[ -f "$fixtures/index.json" ] || fail "$fixtures/index.json: no such file; name the folder with --fixtures DIR"
if [ -z "$nvrtc" ]; then
    nvrtc=$(python3 -c 'import nvidia, pathlib
for folder in nvidia.__path__:
    for file in pathlib.Path(folder).glob("**/libnvrtc.so.13"):
        print(file.parent)' 2>/dev/null | head -n 1 || true)
fi
[ -e "$nvrtc/libnvrtc.so.13" ] || fail "libnvrtc.so.13 was not found; name its folder with --nvrtc DIR"

cd "$root"
if [ -n "$build" ]; then
    cargo build --release --locked -p coldpress-compiler --bin coldpress --example synth
    cargo build --release --locked -p coldpress-runtime --bin coldpress-rt
fi
pack=$root/target/gpu-check
rm -rf "$pack" "$pack.tar.xz"
mkdir -p "$pack/bin" "$pack/lib" "$pack/exact"
for program in coldpress coldpress-rt examples/synth; do
    [ -x "target/release/$program" ] || fail "target/release/$program: no such program; run without --no-build"
    cp "target/release/$program" "$pack/bin/"
    strip "$pack/bin/$(basename "$program")"
done
cp -L "$nvrtc/libnvrtc.so.13" "$nvrtc"/libnvrtc-builtins.so.13.* "$pack/lib/"
export COLDPRESS_NVRTC=$pack/lib

# the field of one line of the index
field() { sed -n "s/.*\"$2\": \(\[[^]]*\]\|\"[^\"]*\"\|[^,}]*\).*/\1/p" <<<"$1" | tr -d '[]" '; }

# one bundle per target of fixture $1 with a cache of type $2, as $3; what logits may differ by goes to the list
take() {
    local fixture=$1 kv=$2 name=$3 line allowed target
    line=$(grep "\"name\": \"$fixture\"" "$fixtures/index.json") || fail "the fixtures have no $fixture"
    # llama.cpp's own error on the file is the yardstick, as in the integration tests
    allowed=$(awk -v native="$(field "$line" native_nmse)" -v quant="$(field "$line" quant)" -v kv="$kv" '
        function max(a, b) { return a > b ? a : b }
        BEGIN {
            bar = quant ~ /^(F32|F16|BF16)$/ ? max(native, 1e-6) : max(1.1 * native, 1e-5)
            printf "%.3e", bar + (kv == "f16" ? 1e-5 : kv == "q8_0" ? 1e-3 : 0)
        }')
    for target in ${targets//,/ }; do
        mkdir -p "$pack/bundles/$target"
        echo "$name for $target" >&2
        "$pack/bin/coldpress" compile "$fixtures/$(field "$line" file)" --target "$target" --kv-type "$kv" \
            --max-batch 8 -c 256 -o "$pack/bundles/$target/$name.press" >/dev/null
    done
    cp "$fixtures/$(field "$line" logits)" "$pack/exact/$fixture.f32"
    printf '%s\t%s\t%s\n' "$name" "$allowed" "$(field "$line" tokens)" >>"$pack/fixtures.tsv"
}

: >"$pack/fixtures.tsv"
first=${only%%,*}
for fixture in ${only//,/ }; do
    take "$fixture" f32 "$fixture"
done
take "$first" f16 "$first.kv-f16"
take "$first" q8_0 "$first.kv-q8_0"

if [ -n "$archive" ]; then
    tar -C "$pack" -cf - bin lib exact bundles fixtures.tsv | xz -T0 -6 >"$pack.tar.xz"
    wc -c <"$pack.tar.xz" | awk '{ printf "%.1f MiB: target/gpu-check.tar.xz\n", $1 / 1048576 }'
fi
du -sm "$pack" | awk '{ print $1 " MiB: target/gpu-check" }'
