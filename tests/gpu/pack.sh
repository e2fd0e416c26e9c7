#!/usr/bin/env bash
# Collects what check.sh needs on a machine without Rust: release programs, bundles of the fixtures with their exact
# logits, and NVRTC, so that bundles can be compiled there too. Leaves target/gpu-check and target/gpu-check.tar.xz. On a
# Mac, for a Mac of its kind. Written for bash 3.2 and the tools of BSD as well as GNU's.
set -euo pipefail

usage() {
    cat <<'TEXT'
usage: pack.sh [options]

  --fixtures DIR  models with exact logits (default: $COLDPRESS_FIXTURES, else ../shared/fixtures, else examples/tiny alone)
  --nvrtc DIR     folder of libnvrtc.so.13 and libnvrtc-builtins.so.13.0 (default: $COLDPRESS_NVRTC, else a wheel's); not
                  needed if all targets are Apple's
  --target T,...  what the fixtures are compiled for (default h200; on a Mac its own GPU)
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
fixtures=${COLDPRESS_FIXTURES:-} nvrtc=${COLDPRESS_NVRTC:-} targets='' build=1 archive=1
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
if [ -z "$fixtures" ] && [ -f "$root/../shared/fixtures/index.json" ]; then
    fixtures=$root/../shared/fixtures
fi
[ -z "$fixtures" ] || [ -f "$fixtures/index.json" ] ||
    fail "$fixtures/index.json: no such file; name the folder with --fixtures DIR"
mac=
[ "$(uname -s)" != Darwin ] || mac=1
[ -n "$targets$mac" ] || targets=h200
# Apple's kernels are compiled by the machine that runs them
needs_nvrtc=
for target in ${targets//,/ }; do
    [ "${target#metal:}" != "$target" ] || needs_nvrtc=1
done
if [ -n "$needs_nvrtc" ] && [ -z "$nvrtc" ]; then
    nvrtc=$(python3 -c 'import nvidia, pathlib
for folder in nvidia.__path__:
    for file in pathlib.Path(folder).glob("**/libnvrtc.so.13"):
        print(file.parent)' 2>/dev/null | head -n 1 || true)
fi
[ -z "$needs_nvrtc" ] || [ -e "$nvrtc/libnvrtc.so.13" ] || fail "libnvrtc.so.13 was not found; name its folder with --nvrtc DIR"

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
if [ -n "$needs_nvrtc" ]; then
    cp -L "$nvrtc/libnvrtc.so.13" "$nvrtc"/libnvrtc-builtins.so.13.* "$pack/lib/"
    export COLDPRESS_NVRTC=$pack/lib
fi
if [ -z "$targets" ]; then
    targets=$("$pack/bin/coldpress" targets | sed -n 's/^gpu: .*--target \(metal:.*\)$/\1/p')
    [ -n "$targets" ] || fail "coldpress targets names no Apple GPU; name a target with --target T"
fi

# the field of one line of the index
field() { sed -n -E "s/.*\"$2\": (\[[^]]*\]|\"[^\"]*\"|[^,}]*).*/\1/p" <<<"$1" | tr -d '[]" '; }

# one bundle per target of model $1 with a cache of type $2, as $3
compile() {
    local target
    for target in ${targets//,/ }; do
        mkdir -p "$pack/bundles/$target"
        echo "$3 for $target" >&2
        "$pack/bin/coldpress" compile "$1" --target "$target" --kv-type "$2" --max-batch 8 -c 256 \
            -o "$pack/bundles/$target/$3.press" >/dev/null || {
            # refused by name: check.sh says that it has none
            [ $? -eq 3 ] || exit 1
        }
    done
}

# fixture $1 with a cache of type $2, as $3; what logits may differ by goes to the list
take() {
    local fixture=$1 kv=$2 name=$3 line allowed
    line=$(grep "\"name\": \"$fixture\"" "$fixtures/index.json") || fail "the fixtures have no $fixture"
    # llama.cpp's own error on the file is the yardstick, as in the integration tests
    allowed=$(awk -v native="$(field "$line" native_nmse)" -v quant="$(field "$line" quant)" -v kv="$kv" '
        function max(a, b) { return a > b ? a : b }
        BEGIN {
            bar = quant ~ /^(F32|F16|BF16)$/ ? max(native, 1e-6) : max(1.1 * native, 1e-5)
            printf "%.3e", bar + (kv == "f16" ? 1e-5 : kv == "q8_0" ? 1e-3 : 0)
        }')
    compile "$fixtures/$(field "$line" file)" "$kv" "$name"
    cp "$fixtures/$(field "$line" logits)" "$pack/exact/$fixture.f32"
    printf '%s\t%s\t%s\n' "$name" "$allowed" "$(field "$line" tokens)" >>"$pack/fixtures.tsv"
}

: >"$pack/fixtures.tsv"
if [ -n "$fixtures" ]; then
    first=${only%%,*}
    for fixture in ${only//,/ }; do
        take "$fixture" f32 "$fixture"
    done
    take "$first" f16 "$first.kv-f16"
    take "$first" q8_0 "$first.kv-q8_0"
else
    # its embedded prompts have the interpreter's logits, which verify compares
    tokens=$("$pack/bin/coldpress" tokenize examples/tiny/tiny.gguf "One windy day Lily went to the park." | tr -d '[] ')
    for kv in f32 f16 q8_0; do
        compile examples/tiny/tiny.gguf "$kv" "tiny.kv-$kv"
        printf '%s\t-\t%s\n' "tiny.kv-$kv" "$tokens" >>"$pack/fixtures.tsv"
    done
fi

if [ -n "$archive" ]; then
    if command -v xz >/dev/null; then
        tar -C "$pack" -cf - bin lib exact bundles fixtures.tsv | xz -T0 -6 >"$pack.tar.xz"
    else
        tar -C "$pack" -cJf "$pack.tar.xz" bin lib exact bundles fixtures.tsv
    fi
    wc -c <"$pack.tar.xz" | awk '{ printf "%.1f MiB: target/gpu-check.tar.xz\n", $1 / 1048576 }'
fi
du -sm "$pack" | awk '{ print $1 " MiB: target/gpu-check" }'
