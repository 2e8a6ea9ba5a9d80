#!/bin/bash
# Runs a command on N ranks of this host: rank 0 on the terminal, the others in files that are shown when it failed.
# usage: run-ranks.sh N COMMAND...
set -uo pipefail
ranks=$1
shift
logs="build/test/ranks-$ranks"
rm -rf "$logs"
mkdir -p "$logs"
# Waiting ranks spin; on a shared core they would steal the time of those they wait for.
export OMPI_MCA_mpi_yield_when_idle=1 OMP_NUM_THREADS=1
mpirun=${MPIRUN:-mpirun}
[ -x "$mpirun" ] || mpirun=mpirun
echo "== $ranks rank(s): $*"
# -bind-to none: by default mpirun ties a rank with all its threads to one core.
# A deadlock is a failure too, and soon: nothing here takes minutes.
timeout --kill-after=10 1200 "$mpirun" --oversubscribe --bind-to none -n "$ranks" bash -c '
    rank=${OMPI_COMM_WORLD_RANK:-${PMI_RANK:-0}}
    if [ "$rank" = 0 ]; then exec "$@"; fi
    exec "$@" >"$0/rank-$rank.log" 2>&1' "$logs" "$@"
status=$?
if [ "$status" -ne 0 ]; then
    for log in "$logs"/rank-*.log; do
        [ -s "$log" ] || continue
        echo "== the last of $log"
        tail -n 60 "$log"
    done
    echo "== $ranks rank(s): failed with status $status; all output in $logs"
fi
exit "$status"
