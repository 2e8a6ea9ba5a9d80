#!/bin/bash
# The whole way on one machine: reviews in, a trained model out, on several ranks. `make demo` runs it.
#   REVIEWS  your own files (patterns, separated by blanks); empty: reviews from the project's generator
#   NP       number of ranks        EPOCHS  number of epochs        TRAIN_OPTIONS  more options for engine.train
set -euo pipefail
cd "$(dirname "$0")/.."
REVIEWS=${REVIEWS:-} NP=${NP:-2} EPOCHS=${EPOCHS:-4} TRAIN_OPTIONS=${TRAIN_OPTIONS:-}

fail() { echo "demo: $1" >&2; exit 2; }
say() { echo; echo "== $*"; }
run() { printf "\$"; printf " %q" "$@"; echo; "$@"; }

[[ $NP =~ ^[1-9][0-9]*$ ]] || fail "NP=$NP is not a number of ranks: give a whole number of at least 1, NP=2"
[[ $EPOCHS =~ ^[1-9][0-9]*$ ]] || fail "EPOCHS=$EPOCHS is not a number of epochs: give a whole number of at least 1, EPOCHS=3"
export PATH="$PWD/.venv/bin:$PATH"
command -v horovodrun >/dev/null || fail "no horovodrun in .venv/bin: run make setup first"
if [ "$(id -u)" = 0 ]; then
    # Open MPI refuses to start as root, and in a container one is nobody else.
    export OMPI_ALLOW_RUN_AS_ROOT=1 OMPI_ALLOW_RUN_AS_ROOT_CONFIRM=1
fi
# Every rank's torch would start a thread a core: shared between the ranks they come to one each or more.
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-$(( $(nproc) / NP > 1 ? $(nproc) / NP : 1 ))}

files=()
if [ -n "$REVIEWS" ]; then
    shopt -s nullglob
    # shellcheck disable=SC2206 -- a pattern, and several of them, is what REVIEWS is for
    files=($REVIEWS)
    shopt -u nullglob
    for file in "${files[@]}"; do
        [ -r "$file" ] || fail "REVIEWS: $file is not a file that can be read: check the path"
    done
    [ "${#files[@]}" -gt 0 ] || fail "REVIEWS='$REVIEWS' matches no file: check the path, in quotes: REVIEWS='path/*.json.gz'"
fi

# The last demo stays until this one's reviews have turned out to be usable.
new=build/demo.new
rm -rf $new
mkdir -p $new
if [ "${#files[@]}" -eq 0 ]; then
    say 'Reviews from the generator (your own: make demo REVIEWS="path/*.json.gz")'
    files=($new/reviews.jsonl.gz)
    run python -m mr.sample --out "${files[0]}"
fi

say "Preprocessing ${#files[@]} file(s)"
run python -m mr "${files[@]}" --out $new/data
rm -rf build/demo
mv $new build/demo
echo "All of it now lies in build/demo."

say "Training on $NP ranks"
# shellcheck disable=SC2086 -- several options are several words
run horovodrun -np "$NP" -H "localhost:$NP" python -m engine.train --data build/demo/data --out build/demo/run \
    --epochs "$EPOCHS" --batch-size 128 $TRAIN_OPTIONS

say 'Evaluating on the test split, which training has not seen'
best=build/demo/run/checkpoints/best
run python -m engine.evaluate --data build/demo/data --checkpoint "$best"
python -m engine.evaluate --data build/demo/data --checkpoint "$best" --json >build/demo/evaluation.txt

say 'Predicting one sentence'
run python -m engine.predict --checkpoint "$best" "This is not good, I want my money back."

echo
tail -n 1 build/demo/evaluation.txt | python -c '
import json, sys

result = json.loads(sys.stdin.readline())
rows, row = result["rows"], "{:<34}{:>10.4f}{:>10.4f}".format
print("{:<34}{:>10}{:>10}".format(f"test split, {rows:,} reviews", "accuracy", "macro-F1"))
print(row("  this model", result["accuracy"], result["macro_f1"]))
print(row("  most frequent class", result["null_accuracy"], result["null_macro_f1"]))
if result["macro_f1"] < result["null_macro_f1"] + 0.05:
    print("This model still answers with the most frequent class nearly always: train longer (make demo EPOCHS=10),")
    print("or on more reviews.")
'
echo
echo "Next: your own words:  .venv/bin/python -m engine.predict --checkpoint $best 'Arrived broken.'"
echo "      your own files:  make demo REVIEWS='path/*.json.gz'    more ranks:  make demo NP=4"
