#!/usr/bin/env bash
# Pretrains recipes/demo.toml on 2 x 4 ranks; by `matloom launch plan`.
# Run it on any host from which ssh reaches the others without a password. It checks the hosts, starts the
# ranks, passes signals on to them, writes a log a rank into the run's folder, and starts again after failures.
# Secrets: each rank reads run.env, NAME=VALUE lines, mode 600; none stands here or on a command line.
# Exit code: 75 if the run saved and ended when asked to. Started again, it resumes.
set -euo pipefail
cd -- /shared/matloom
out=runs/demo-pretrain
mkdir -p -- "$out"

# a host a line, and how many ranks it gets
cat > "$out/hosts" <<'HOSTS'
node1 slots=4
node2 slots=4
HOSTS

exec python3 -m launch.cli launch run recipes/demo.toml \
    --out runs/demo-pretrain \
    --resume auto \
    --restarts 3 \
    --grace 120 \
    --env-file run.env \
    --hostfile "$out/hosts"
