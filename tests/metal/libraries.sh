#!/usr/bin/env bash
# The kernels of many models for several Apple GPUs, as bundles carry them, through Apple's own compiler: every fixture where
# they are at hand, else examples/tiny and layers of real shapes. Elsewhere than on a Mac it leaves the texts only, which
# tests/metal.rs has clang look at. Written for bash 3.2 and the tools of BSD as well as GNU's.
#
# usage: libraries.sh DIR [MODEL.gguf...]     texts and compiled libraries are left in DIR
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."
[ $# -ge 1 ] || { sed -n 's/^# \(usage: .*\)/\1/p' "$0" >&2; exit 2; }
out=$1
shift
mkdir -p "$out"
targets=${TARGETS:-metal:m1,metal:m4-max,metal:m5}
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cargo build --locked -p coldpress-compiler --bin coldpress --example synth

folder=${CARGO_TARGET_DIR:-target}/debug
texts=0 failed=0 skipped=0
check() {
    local model=$1 name target text status language
    name=$(basename "$model" .gguf)
    for target in ${targets//,/ }; do
        text=$out/$name-${target#metal:}.metal
        status=0
        "$folder/coldpress" compile "$model" --target "$target" --emit "$work/emitted" -o "$work/model.press" \
            >"$work/log" 2>&1 || status=$?
        if [ "$status" -eq 3 ]; then
            echo "skipped: $name for $target: $(tail -n 1 "$work/log")"
            skipped=$((skipped + 1))
            continue
        elif [ "$status" -ne 0 ]; then
            echo "failed: $name for $target: $(tail -n 1 "$work/log")"
            failed=$((failed + 1))
            continue
        fi
        mv "$work/emitted/kernels.metal" "$text"
        texts=$((texts + 1))
        command -v xcrun >/dev/null || continue
        # the language of macOS 13, the oldest that has all that kernels use; products of tensors are macOS 26's
        language=metal3.0
        if grep -q MetalPerformancePrimitives "$text"; then
            language=metal4.0
            if ! printf '' | xcrun metal "-std=$language" -x metal -c - -o "$work/none.air" 2>/dev/null; then
                echo "skipped: $text: this compiler does not know $language"
                skipped=$((skipped + 1))
                continue
            fi
        fi
        if ! xcrun metal "-std=$language" -c "$text" -o "${text%.metal}.air"; then
            echo "failed: $text"
            failed=$((failed + 1))
        fi
    done
    rm -rf "$work/emitted" "$work/model.press"
}

fixtures=${COLDPRESS_FIXTURES:-../shared/fixtures}
if [ $# -gt 0 ]; then
    for model in "$@"; do check "$model"; done
elif [ -f "$fixtures/index.json" ]; then
    sed -n 's/.*"file": "\([^"]*\)".*/\1/p' "$fixtures/index.json" | sort -u >"$work/models"
    while read -r model; do check "$fixtures/$model"; done <"$work/models"
else
    check examples/tiny/tiny.gguf
    for model in qwen3-0.6b:q4_k_m qwen3-0.6b:q8_0 qwen3-0.6b:q4_0 qwen3-0.6b:q6_k qwen3-0.6b:f16 llama-1b:q4_k_m \
        qwen3-30b-a3b:q4_k_m qwen3.5-0.8b:q4_k_m; do
        file=$work/${model%:*}-${model#*:}.gguf
        "$folder/examples/synth" "${model%:*}" "${model#*:}" "$file" --layers 4 2>/dev/null
        check "$file"
        rm -f "$file"
    done
fi
echo "$texts libraries in $out, $failed failures, $skipped skipped"
[ "$texts" -gt 0 ] && [ "$failed" -eq 0 ]
