#!/usr/bin/env bash
# Measures llama.cpp and coldpress in turn on one GGUF file and prints what README's table shows: medians, the median of
# the pairwise ratios, and what coldpress streams of the memory bandwidth. Needs bash, awk and llama-batched-bench.
set -euo pipefail

usage() {
    cat <<'TEXT'
usage: compare.sh MODEL.gguf [options]

  --llama DIR    folder of llama-batched-bench (default: the one on PATH)
  -npl B,...     sequences decoded together (default 1,2,4,8,16,32)
  -npp N         prompt tokens per sequence (default 16)
  -ntg N         generated tokens per sequence (default 24)
  -d, --depth N  decode N tokens deep: a prompt of N tokens, for both
  -t N           threads (default: all processors)
  --pairs N      how often each program runs, in turn (default 5)

COLDPRESS names the coldpress to measure (default: the one on PATH, else this repository's, built in release mode).
TEXT
}

fail() {
    echo "error: $*" >&2
    exit 1
}

# usage errors end with 2, as coldpress's own
refuse() {
    echo "error: $*" >&2
    usage >&2
    exit 2
}

model='' llama_dir='' npl=1,2,4,8,16,32 npp=16 ntg=24 pairs=5
threads=$(getconf _NPROCESSORS_ONLN 2>/dev/null || echo 1)
while [ $# -gt 0 ]; do
    case $1 in
        -h | --help)
            usage
            exit 0
            ;;
        --llama | -npl | -npp | -ntg | -d | --depth | -t | --pairs)
            [ $# -ge 2 ] || refuse "$1 needs a value"
            case $1 in
                --llama) llama_dir=$2 ;;
                -npl) npl=$2 ;;
                -npp | -d | --depth) npp=$2 ;;
                -ntg) ntg=$2 ;;
                -t) threads=$2 ;;
                --pairs) pairs=$2 ;;
            esac
            shift 2
            ;;
        -*) refuse "unknown option $1" ;;
        *)
            [ -z "$model" ] || refuse "more than one model: $model and $1"
            model=$1
            shift
            ;;
    esac
done

[ -n "$model" ] || refuse "no model given"
[ -f "$model" ] || fail "$model: no such file"
for number in "$npp" "$ntg" "$threads" "$pairs"; do
    [[ $number =~ ^[1-9][0-9]{0,6}$ ]] || refuse "'$number' is no number from 1"
done
[[ $npl =~ ^[1-9][0-9]{0,4}(,[1-9][0-9]{0,4})*$ ]] || refuse "-npl '$npl' is no list of numbers from 1"
command -v awk >/dev/null || fail "awk is not installed"

if [ -n "$llama_dir" ]; then
    llama=$llama_dir/llama-batched-bench
    [ -x "$llama" ] || fail "$llama: no such program; build llama.cpp's target llama-batched-bench"
else
    llama=$(command -v llama-batched-bench) ||
        fail "llama-batched-bench is not on PATH; build llama.cpp and give its folder with --llama DIR"
fi

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
if [ -n "${COLDPRESS:-}" ]; then
    coldpress=$COLDPRESS
    command -v "$coldpress" >/dev/null || fail "COLDPRESS=$coldpress: no such program"
elif ! coldpress=$(command -v coldpress); then
    command -v cargo >/dev/null ||
        fail "neither coldpress nor cargo is on PATH; install Rust, or name a coldpress in COLDPRESS"
    cargo build --release --locked --manifest-path "$root/Cargo.toml" -p coldpress-compiler >&2
    coldpress=${CARGO_TARGET_DIR:-$root/target}/release/coldpress
fi

IFS=, read -r -a batches <<<"$npl"
most=0
for batch in "${batches[@]}"; do
    if [ "$batch" -gt "$most" ]; then most=$batch; fi
done
context=$((npp + ntg))
# llama.cpp counts the context of all sequences together and skips what does not fit.
all=$((most * context))
if [ "$all" -lt 4096 ]; then all=4096; fi

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
bundle=$work/model.press

compile=("$coldpress" compile "$model" --max-batch "$most" -c "$context" -t "$threads" -o "$bundle")
theirs=("$llama" -m "$model" -c "$all" -npp "$npp" -ntg "$ntg" -npl "$npl" -t "$threads")
ours=("$coldpress" bench "$bundle" -npp "$npp" -ntg "$ntg" -npl "$npl" -r 1)

# run LOG COMMAND...: keeps stdout in LOG; shows everything if the command fails
run() {
    local log=$1
    shift
    if ! "$@" >"$log" 2>"$work/stderr"; then
        cat "$log" "$work/stderr" >&2
        fail "failed: $*"
    fi
}

# rows PAIR PROGRAM LOG: the table's rows as "pair program B prompt-tok/s decode-tok/s GB/s %"
rows() {
    awk -F'|' -v pair="$1" -v program="$2" '
        $2 ~ /^ *[0-9]+ *$/ { print pair, program, $4 + 0, $7 + 0, $9 + 0, $13 + 0, $14 + 0 }
    ' "$3" >>"$work/rows"
}

run "$work/log" "${compile[@]}"
: >"$work/rows"
for ((pair = 1; pair <= pairs; pair++)); do
    echo "pair $pair of $pairs" >&2
    run "$work/log" "${theirs[@]}"
    rows "$pair" llama "$work/log"
    run "$work/log" "${ours[@]}"
    rows "$pair" coldpress "$work/log"
done

cpu=$(lscpu 2>/dev/null | awk -F': *' '/^Model name/ { print $2; exit }' || true)
echo "$(basename "$model"), ${cpu:-$(uname -m)}, $threads threads, $(date -u +%Y-%m-%d);" \
    "$npp prompt and $ntg generated tokens per sequence; medians of $pairs, ratios are medians of the pairs'"
echo
awk -v pairs="$pairs" -v npl="$npl" '
    function sort(v, n,    i, j, x) {
        for (i = 2; i <= n; i++) {
            x = v[i]
            for (j = i - 1; j >= 1 && v[j] > x; j--) v[j + 1] = v[j]
            v[j + 1] = x
        }
    }
    # of column c of a program, or of the ratios of both
    function median(program, batch, c,    i, v, below) {
        for (i = 1; i <= pairs; i++) {
            if (program == "ratio") {
                below = seen[i, "llama", batch, c]
                v[i] = below > 0 ? seen[i, "coldpress", batch, c] / below : 0
            } else v[i] = seen[i, program, batch, c]
        }
        sort(v, pairs)
        i = int((pairs + 1) / 2)
        return pairs % 2 ? v[i] : (v[i] + v[i + 1]) / 2
    }
    { found[$1, $2, $3] = 1; for (c = 4; c <= 7; c++) seen[$1, $2, $3, c] = $c }
    END {
        n = split(npl, batches, ",")
        for (b = 1; b <= n; b++) for (i = 1; i <= pairs; i++) {
            if (!((i, "llama", batches[b]) in found)) missing = "llama-batched-bench"
            else if (!((i, "coldpress", batches[b]) in found)) missing = "coldpress bench"
            if (missing != "") {
                print "error: " missing " printed no row for B=" batches[b] > "/dev/stderr"
                exit 1
            }
        }
        print "| B | llama.cpp tok/s | coldpress tok/s | ratio | GB/s (% of measured) | llama.cpp prompt tok/s | coldpress prompt tok/s | ratio |"
        print "| --- | --- | --- | --- | --- | --- | --- | --- |"
        for (b = 1; b <= n; b++) {
            B = batches[b]
            printf "| %d | %.1f | %.1f | %.2f | %.1f (%.0f) | %.1f | %.1f | %.2f |\n", B,
                median("llama", B, 5), median("coldpress", B, 5), median("ratio", B, 5),
                median("coldpress", B, 6), median("coldpress", B, 7),
                median("llama", B, 4), median("coldpress", B, 4), median("ratio", B, 4)
        }
    }
' "$work/rows"

# quoted as a shell reads them, with names instead of this machine's folders
show() {
    local word line=()
    for word in "$@"; do
        case $word in
            "$bundle") word=model.press ;;
            "$model" | "$coldpress" | "$llama") word=$(basename "$word") ;;
        esac
        [[ $word =~ ^[A-Za-z0-9_./,=-]+$ ]] || word=$(printf '%q' "$word")
        line+=("$word")
    done
    echo "${line[*]}"
}
printf '\n```sh\n'
show "${theirs[@]}"
show "${compile[@]}"
show "${ours[@]}"
printf '```\n'
