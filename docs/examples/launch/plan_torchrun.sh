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
rm -f -- "$out/preempted.json"

# a verified copy of the data on this disk; what is there already is not fetched again
python3 -m launch.cli launch stage recipes/demo.toml /scratch/matloom \
    --env-file run.env
export MATLOOM_STAGE=/scratch/matloom

# every signal means the same: save, and end; told to the ranks themselves, since torchrun would give them 30 s
asked='' pid=''
ask() { asked=1; if [ -n "$pid" ]; then pkill -USR1 -P "$pid" || true; fi; }
trap ask TERM USR1 INT HUP

python3 -m torch.distributed.run \
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
    asked='' code=0
    wait "$pid" || code=$?
    # a signal ends the waiting, not the run
    [ -n "$asked" ] || break
done
if [ -e "$out/preempted.json" ]; then exit 75; fi
exit "$code"
