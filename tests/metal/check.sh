#!/usr/bin/env bash
# What can be known of Metal on a machine without Apple hardware: the runtime's Rust for macOS, type-checked against the real
# framework bindings, and the emitted kernels, type-checked by clang. On a Mac also the driver's own compiler, and the
# bundle's own prompts.
#
# usage: check.sh [MODEL.gguf]     the model is compiled for this Mac and verified on it; default: examples/tiny/tiny.gguf
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."

echo "runtime for aarch64-apple-darwin:"
if [ "$(uname -s)" != Darwin ] && ! rustup target list --installed | grep -qx aarch64-apple-darwin; then
    rustup target add aarch64-apple-darwin
fi
# A folder of its own: nothing is linked, and other builds keep what they have.
CARGO_TARGET_DIR=${CARGO_TARGET_DIR:-target}/metal-check \
    cargo check --locked -p coldpress-runtime --no-default-features --target aarch64-apple-darwin

echo "kernels:"
cargo test --locked -p coldpress-compiler --test integration -- metal:: --nocapture

if [ "$(uname -s)" = Darwin ]; then
    model=${1:-examples/tiny/tiny.gguf}
    folder=$(mktemp -d)
    trap 'rm -rf "$folder"' EXIT
    cargo build --release --locked -p coldpress-compiler
    target=$(target/release/coldpress targets | sed -n 's/^gpu: .*--target \(metal:.*\)$/\1/p')
    [ -n "$target" ] || { echo "this Mac has no Apple GPU"; exit 1; }
    target/release/coldpress compile "$model" --target "$target" -o "$folder/model.press"
    target/release/coldpress verify "$folder/model.press"
    target/release/coldpress bench "$folder/model.press" -npp 128 -ntg 32 -npl 1,2,4,8
fi
echo ok
