#!/bin/bash
# The campaign on native modules with AddressSanitizer, UBSan and bounds checks, built beside the others; its options
# are those of python -m tests.fuzz.
set -euo pipefail
cd "$(dirname "$0")/../.."
built=build/sanitized
mkdir -p "$built/native"

NATIVE_SANITIZE=1 .venv/bin/python setup.py --quiet build_ext --build-lib "$built" --build-temp "$built/objects" \
    > "$built/log" 2>&1 || { tail -20 "$built/log"; echo "sanitized.sh: the build failed, see $built/log" >&2; exit 1; }
# The package's Python files beside the modules: always those that are edited.
ln -sf "$PWD"/native/*.py "$built/native/"

# The interpreter has no sanitizer of its own, so one is loaded first, and libstdc++ with it, whose exceptions it watches.
# Python's own allocator would hide what lies behind small objects. A leak at exit is Python's, not ours.
export LD_PRELOAD="$(gcc -print-file-name=libasan.so) $(gcc -print-file-name=libstdc++.so)"
export ASAN_OPTIONS=detect_leaks=0:allocator_may_return_null=1 UBSAN_OPTIONS=print_stacktrace=1
export PYTHONMALLOC=malloc PYTHONSAFEPATH=1 PYTHONPATH="$PWD/$built:$PWD"
exec .venv/bin/python -m tests.fuzz "$@"
