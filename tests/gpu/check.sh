#!/usr/bin/env bash
# Everything that needs a real GPU, NVIDIA's or Apple's, in one command: correctness on small models, then speed on models
# of real shapes that are made on the spot. Needs a driver and what pack.sh made; no toolkit, no Rust, no network. A Mac
# that has Rust makes what is missing itself. Without a GPU it says so and ends with 0. Leaves check.md and check.json.
# Written for bash 3.2 and the tools of BSD as well as GNU's.
set -uo pipefail
export LC_ALL=C

usage() {
    cat <<'TEXT'
usage: check.sh [options]

  --pack PATH     what pack.sh made, folder or archive (default target/gpu-check, then target/gpu-check.tar.xz; where
                  neither is, a Mac makes the folder)
  --target T      what to compile for (default: the preset of the first GPU)
  --out DIR       where check.md and check.json go (default: here)
  --budget SEC    no model is begun that would not end in this time (default 450)
  --models LIST   shape:mix,... to time, most important first
  -npl B,...      sequences decoded together (default 1,2,4,8,16,17,24,32,64)
  --quick         correctness only

Exit status: 0 passed, or no GPU; 1 something failed; 2 usage.
TEXT
}

refuse() {
    echo "error: $*" >&2
    usage >&2
    exit 2
}

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)
pack='' target='' out=. budget=450 quick='' npl=1,2,4,8,16,17,24,32,64
models=qwen3-0.6b:q4_k_m,llama-3.1-8b:q4_k_m,qwen3-8b:q4_k_m,qwen3-0.6b:q8_0,llama-3.1-8b:q8_0,qwen3-8b:q8_0
while [ $# -gt 0 ]; do
    case $1 in
        -h | --help)
            usage
            exit 0
            ;;
        --quick)
            quick=1
            shift
            ;;
        --pack | --target | --out | --budget | --models | -npl)
            [ $# -ge 2 ] || refuse "$1 needs a value"
            case $1 in
                --pack) pack=$2 ;;
                --target) target=$2 ;;
                --out) out=$2 ;;
                --budget) budget=$2 ;;
                --models) models=$2 ;;
                -npl) npl=$2 ;;
            esac
            shift 2
            ;;
        *) refuse "unknown argument $1" ;;
    esac
done
[[ $budget =~ ^[1-9][0-9]{0,5}$ ]] || refuse "--budget '$budget' is no number of seconds"
[[ $npl =~ ^[1-9][0-9]{0,4}(,[1-9][0-9]{0,4})*$ ]] || refuse "-npl '$npl' is no list of numbers from 1"
[[ ,$models =~ ^(,[a-z0-9.-]+:[a-z0-9_]+)+$ ]] || refuse "--models '$models' is no list of shape:mix"

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
mkdir -p "$out" "$work/bench"
: >"$work/checks"
: >"$work/profiles.md"

# what was checked, what came of it (passed, failed, skipped), and why, without this machine's folders
record() {
    local why=${3//"$work/"/}
    why=$(tr -s '\t\n' '  ' <<<"${why//"$pack/"/}" | cut -c 1-400)
    why=${why% }
    printf '%s\t%s\t%s\n' "$1" "$2" "$why" >>"$work/checks"
    echo "$2: $1${why:+: $why}" >&2
}
count() { awk -F'\t' -v want="$1" '$2 == want { n++ } END { print n + 0 }' "$work/checks"; }
last_words() { tail -n 1 "$1" 2>/dev/null; }
# seconds with a fraction, which BSD's date has none of
now() {
    local seconds
    seconds=$(date +%s.%N)
    case $seconds in
        *N) perl -MTime::HiRes=time -e 'printf "%.3f\n", time' ;;
        *) echo "$seconds" ;;
    esac
}
# a command that is ended after some seconds
within() {
    if command -v timeout >/dev/null; then
        timeout "$@"
    else
        perl -e 'alarm shift @ARGV; exec @ARGV or exit 127' "$@"
    fi
}
since() { awk -v a="$1" -v b="$(now)" 'BEGIN { printf "%.2f", b - a }'; }

# --- the report, whatever happened until then

text() { sed 's/\\/\\\\/g; s/"/\\"/g' <<<"$1" | tr -d '\000-\037'; }

report() {
    {
        echo "# GPU check"
        echo
        echo "${gpu:-no GPU}; target ${target:-none}; ${version:-}; $(date -u +%Y-%m-%d)"
        echo
        echo "$(count passed) passed, $(count failed) failed, $(count skipped) skipped"
        echo
        echo "| check | result | why |"
        echo "| --- | --- | --- |"
        awk -F'\t' '{ printf "| %s | %s | %s |\n", $1, $2, $3 }' "$work/checks"
        for file in "$work"/bench/*.md; do
            [ -e "$file" ] && cat "$file"
        done
        cat "$work/profiles.md"
    } >"$out/check.md"
    {
        printf '{"gpu": "%s", "target": "%s", "version": "%s", "checks": [' \
            "$(text "${gpu:-}")" "$(text "$target")" "$(text "${version:-}")"
        local separator='' name result why
        while IFS=$'\t' read -r name result why; do
            printf '%s{"check": "%s", "result": "%s", "why": "%s"}' \
                "$separator" "$(text "$name")" "$result" "$(text "$why")"
            separator=', '
        done <"$work/checks"
        printf '], "bench": ['
        separator=''
        for file in "$work"/bench/*.json; do
            [ -e "$file" ] || continue
            printf '%s' "$separator"
            cat "$file"
            separator=', '
        done
        printf ']}\n'
    } >"$out/check.json"
    cat "$out/check.md"
}

finish() {
    report
    [ "$(count failed)" -eq 0 ]
    exit
}

# --- what is needed

if [ -z "$pack" ]; then
    for pack in "$root/target/gpu-check" "$root/target/gpu-check.tar.xz"; do
        [ -e "$pack" ] && break
    done
fi
if [ ! -e "$pack" ] && [ "$(uname -s)" = Darwin ] && command -v cargo >/dev/null; then
    pack=$root/target/gpu-check
    "$root/tests/gpu/pack.sh" --no-archive >&2 || exit 1
fi
if [ -f "$pack" ]; then
    mkdir "$work/pack"
    tar -xf "$pack" -C "$work/pack" || refuse "$pack cannot be unpacked (is xz installed?)"
    pack=$work/pack
fi
[ -d "$pack" ] || refuse "no pack at $pack; run tests/gpu/pack.sh on a machine with Rust first"
coldpress=$pack/bin/coldpress
runtime=$pack/bin/coldpress-rt
synth=$pack/bin/synth
# not a library path, which would offer this folder's libraries to every program
[ -e "$pack/lib/libnvrtc.so.13" ] && export COLDPRESS_NVRTC=$pack/lib
export XDG_CACHE_HOME=$work/cache

version=$("$coldpress" --version 2>"$work/log") || {
    record "programs" failed "$(last_words "$work/log")"
    finish
}
targets=$("$coldpress" targets 2>&1)
# what can be compiled for first: a Mac also has a line that says why it has no NVIDIA GPU
gpu=$(sed -n 's/^gpu: \(.*; --target .*\)/\1/p' <<<"$targets" | head -n 1)
if [ -z "$gpu" ]; then
    gpu=$(sed -n 's/^gpu: \(.*\)/\1/p' <<<"$targets" | tail -n 1)
    record "everything that needs a GPU" skipped "${gpu:-coldpress targets names no GPU}"
    gpu='' target=''
    finish
fi
[ -n "$target" ] || target=${gpu##*--target }
gpu=${gpu%%; --target*}
echo "$gpu; target $target" >&2
if command -v nvidia-smi >/dev/null; then
    nvidia-smi --query-gpu=name,driver_version,clocks.sm,clocks.mem,power.limit,temperature.gpu --format=csv >&2
fi

# --- correctness

npy_start() { echo $((10 + $(od -An -tu2 -j8 -N2 "$1"))); }
floats() { od -An -v -tf4 -j "$2" "$1" | awk '{ for (i = 1; i <= NF; i++) print $i }'; }

# normalised mean square error of an array against exact logits; nothing if they differ in length
nmse() {
    paste <(floats "$1" 0) <(floats "$2" "$(npy_start "$2")") | awk '
        NF != 2 { bad = 1 }
        $2 !~ /^-?[0-9]/ { bad = 1 }
        { d = $1 - $2; error += d * d; power += $1 * $1 }
        END { if (!bad && power > 0) printf "%.3e", error / power }'
}

# whether the second array begins with the values of the first
begins_with() {
    local a b bytes
    a=$(npy_start "$1") b=$(npy_start "$2")
    bytes=$(($(wc -c <"$1") - a))
    cmp -s <(tail -c +$((a + 1)) "$1") <(tail -c +$((b + 1)) "$2" | head -c "$bytes")
}

logits() { within 120 "$runtime" logits "$@" >/dev/null 2>"$work/log"; }

reversed() { tr ',' '\n' <<<"$1" | awk '{ all = $0 (NR > 1 ? "," all : "") } END { print all }'; }

while IFS=$'\t' read -r name allowed tokens; do
    bundle=$pack/bundles/$target/$name.press
    exact=$pack/exact/${name%%.*}.f32
    if [ ! -e "$bundle" ]; then
        record "$name" skipped "the pack has no bundle of it for $target"
        continue
    fi
    if within 120 "$runtime" verify "$bundle" >"$work/log" 2>&1; then
        record "$name: every bucket, embedded prompts" passed ''
    else
        record "$name: every bucket, embedded prompts" failed "$(last_words "$work/log")"
    fi
    if ! logits "$bundle" --tokens "$tokens" -o "$work/whole.npy"; then
        record "$name: exact logits" failed "$(last_words "$work/log")"
        continue
    fi
    error=
    [ ! -e "$exact" ] || error=$(nmse "$exact" "$work/whole.npy")
    if [ ! -e "$exact" ]; then
        record "$name: exact logits" skipped "the pack has none of it"
    elif awk -v e="${error:-nan}" -v a="$allowed" 'BEGIN { exit !(e != "nan" && e + 0 <= a + 0) }'; then
        record "$name: exact logits" passed "NMSE $error of at most $allowed"
    else
        record "$name: exact logits" failed "NMSE ${error:-of other values}, at most $allowed allowed"
    fi
    same=passed why=''
    for rows in 1 7; do
        if ! logits "$bundle" --tokens "$tokens" --chunk $rows -o "$work/part.npy"; then
            same=failed why=$(last_words "$work/log")
        elif ! begins_with "$work/whole.npy" "$work/part.npy"; then
            same=failed why="$rows rows per step give other bits"
        fi
    done
    if ! logits "$bundle" --tokens "$tokens" --tokens "$(reversed "$tokens")" -o "$work/both.npy"; then
        same=failed why=$(last_words "$work/log")
    elif ! begins_with "$work/whole.npy" "$work/both.npy"; then
        same=failed why="a second sequence changes the bits of the first"
    fi
    record "$name: same bits in any batch and chunk" "$same" "$why"
done <"$pack/fixtures.tsv"

read -r name _ tokens <"$pack/fixtures.tsv"
if [ "${target#metal:}" != "$target" ]; then
    # the framework's own checks of how it is used; they end the program
    if MTL_DEBUG_LAYER=1 logits "$pack/bundles/$target/$name.press" --tokens "$tokens" -o "$work/whole.npy"; then
        record "Metal's validation on $name" passed ''
    else
        record "Metal's validation on $name" failed "$(last_words "$work/log")"
    fi
elif sanitizer=$(command -v compute-sanitizer); then
    if within 120 "$sanitizer" --error-exitcode 9 "$runtime" logits "$pack/bundles/$target/$name.press" \
        --tokens "$tokens" -o "$work/whole.npy" >"$work/log" 2>&1; then
        record "compute-sanitizer on $name" passed ''
    else
        record "compute-sanitizer on $name" failed "$(last_words "$work/log")"
    fi
else
    record "compute-sanitizer" skipped "not installed"
fi
[ -z "$quick" ] || finish

# --- speed

# bench's JSON as a table: what the name says, total tok/s, GB/s, and how much of the wall that is
bench_table() {
    awk '
        function value(line) { sub(/^[^:]*: */, "", line); sub(/,? *$/, "", line); return line }
        /"pl":/ { pl = value($0) }
        /"speed_tg":/ { speed = value($0) }
        /"speed_pp":/ { prompt = value($0) }
        /"bucket":/ { bucket = value($0) }
        /"gb_per_s":/ { rate = value($0) }
        /"bandwidth_share":/ { share = value($0) }
        /^ *}/ && pl != "" {
            printf "| %d | %d | %.1f | %.0f | %.1f | %.1f |\n", pl, bucket, speed, rate, share * 100, prompt
            pl = ""
        }' "$1"
}

# how long the last model took per GB, to know whether the next one still fits
pace=20
for model in ${models//,/ }; do
    shape=${model%:*} mix=${model#*:}
    name=$shape-$mix
    gguf=$work/$name.gguf bundle=$work/$name.press
    begun=$SECONDS
    case $name in
        *0.6b*) size=1 ;;
        *-q8_0) size=9 ;;
        *) size=5 ;;
    esac
    if [ $((SECONDS + pace * size)) -gt "$budget" ] && [ $SECONDS -gt $((budget / 4)) ]; then
        record "$name" skipped "$((budget - SECONDS)) s left of --budget $budget"
        continue
    fi
    if ! "$synth" "$shape" "$mix" "$gguf" 2>"$work/log"; then
        record "$name: synth" failed "$(last_words "$work/log")"
        rm -f "$gguf"
        continue
    fi
    echo "$name: $(sed 's/^[^:]*: //' "$work/log" | tail -n 1)" >&2
    started=$(now)
    if ! within "$budget" "$coldpress" compile "$gguf" --target "$target" --max-batch 64 -c 1024 -o "$bundle" \
        >"$work/log" 2>&1; then
        record "$name: compile" failed "$(last_words "$work/log")"
        rm -f "$gguf" "$bundle"
        continue
    fi
    compiled=$(since "$started")
    rm -f "$gguf"
    # of the bundle that was just written, which the system still has in memory
    started=$(now)
    within 120 "$runtime" run "$bundle" -p Hello -n 1 --temp 0 >"$work/log" 2>&1
    case $? in
        0) ;;
        5)
            record "$name" skipped "$(last_words "$work/log")"
            rm -f "$bundle"
            continue
            ;;
        *)
            record "$name: first token" failed "$(last_words "$work/log")"
            rm -f "$bundle"
            continue
            ;;
    esac
    cold=$(since "$started")
    if within 200 "$runtime" bench "$bundle" -npp 16 -ntg 32 -npl "$npl" -r 3 -o json \
        >"$work/bench.json" 2>"$work/log"; then
        bandwidth=$(sed -n 's/^measured read bandwidth: \([0-9.]*\) GB.*/\1/p' "$work/log" | head -n 1)
        record "$name: bench" passed "compiled in $compiled s, first token after $cold s"
        {
            echo
            echo "## $name"
            echo
            echo "Measured read bandwidth ${bandwidth:-0} GB/s; compiled in $compiled s; first token $cold s after the start."
            echo
            echo "| B | bucket | tok/s | GB/s | % of measured | prompt tok/s |"
            echo "| --- | --- | --- | --- | --- | --- |"
            bench_table "$work/bench.json"
        } >"$work/bench/$name.md"
        {
            printf '{"model": "%s", "mix": "%s", "bandwidth_gb_per_s": %s, "compile_s": %s, "first_token_s": %s, "results": ' \
                "$shape" "$mix" "${bandwidth:-0}" "$compiled" "$cold"
            cat "$work/bench.json"
            printf '}'
        } >"$work/bench/$name.json"
    else
        record "$name: bench" failed "$(last_words "$work/log")"
    fi
    if [ "$mix" = q4_k_m ] && [ $SECONDS -lt $((budget * 3 / 4)) ]; then
        if within 60 "$runtime" verify "$bundle" >"$work/log" 2>&1; then
            record "$name: every bucket, embedded prompts" passed ''
        else
            record "$name: every bucket, embedded prompts" failed "$(last_words "$work/log")"
        fi
        if within 60 "$runtime" bench "$bundle" --profile -npp 16 -ntg 16 -npl 1,8,32 -r 1 -o md \
            >"$work/profile.md" 2>"$work/log"; then
            printf '\n## Where a step of %s goes\n\n' "$name" >>"$work/profiles.md"
            cat "$work/profile.md" >>"$work/profiles.md"
        else
            record "$name: profile" failed "$(last_words "$work/log")"
        fi
    fi
    rm -f "$bundle"
    pace=$(((SECONDS - begun + size - 1) / size))
done
finish
