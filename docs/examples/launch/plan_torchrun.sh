#!/usr/bin/env bash
# Pretrains recipes/demo.toml on 2 x 4 ranks; by `matloom launch plan`.
# Run it on every host at the same time, by your scheduler or by parallel ssh. They meet at node1,
# port MASTER_PORT or 29500. A rank that fails ends them all; started again on all hosts, they go on from the
# newest checkpoint.
# Secrets: each rank reads run.env, NAME=VALUE lines, mode 600; none stands here or on a command line.
# Exit code: 75 if the run saved and ended when asked to. Started again, it resumes.
set -euo pipefail
cd -- /shared/matloom
out=runs/demo-pretrain
: "${MASTER_ADDR:=node1}"
mkdir -p -- "$out"
rm -f -- "$out/preempted.json" "$out/.preempting"

# a verified copy of the data on this disk; what is there already is not fetched again
python3 -m launch.cli launch stage recipes/demo.toml /scratch/matloom \
    --env-file run.env
export MATLOOM_STAGE=/scratch/matloom

# every signal means the same: save, and end; told to the ranks themselves, since torchrun would give them 30 s.
# USR1 ends who does not catch it yet, so it is sent to those that do, and again until a rank has heard it
asked='' cut='' pid=''
catches() {
    local mask
    mask=$(sed -n 's/^SigCgt:[[:space:]]*//p' "/proc/$1/status" 2> /dev/null) || return 1
    (( (16#${mask:-0} >> ($(kill -l USR1) - 1)) & 1 ))
}
tell() {
    local ranks rank heard=1
    ranks=$(cat /proc/"$pid"/task/*/children 2> /dev/null || true)
    for rank in $ranks; do
        if catches "$rank" && kill -s USR1 "$rank" 2> /dev/null; then heard=0; fi
    done
    return "$heard"
}
ask() {
    asked=1 cut=1
    if [ -z "$pid" ] || ! kill -0 "$pid" 2> /dev/null || tell; then return 0; fi
    { sleep 1; kill -s USR1 "$$"; } 2> /dev/null &
}
trap ask TERM USR1 INT HUP

setsid python3 -m torch.distributed.run \
    --nnodes 2 \
    --nproc-per-node 4 \
    --max-restarts 0 \
    --rdzv-backend c10d \
    --rdzv-id demo-pretrain \
    --rdzv-endpoint "$MASTER_ADDR:${MASTER_PORT:-29500}" \
    -m launch.pretrain \
    --config recipes/demo.toml \
    --out runs/demo-pretrain \
    --resume auto \
    --env_file run.env &
pid=$!
# it may have come meanwhile
if [ -n "$asked" ]; then ask; fi

while true; do
    cut='' code=0
    wait "$pid" || code=$?
    # a signal ends the waiting, not the run
    [ -n "$cut" ] || break
done
if [ -e "$out/preempted.json" ]; then exit 75; fi
# 128 + USR1: it came to a rank that had just begun, did not catch it yet, and had nothing to save
if [ -n "$asked" ] && [ "$code" -eq 138 ]; then exit 75; fi
exit "$code"
