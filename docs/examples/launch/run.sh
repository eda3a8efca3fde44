#!/bin/sh
# Pretrain on the hosts of a hostfile, watched over: saves on signals, starts again after failures, names what failed.
#
#   HOSTFILE=hosts RECIPE=recipes/demo.toml OUT=runs/demo docs/examples/launch/run.sh [--restarts 5 --min-hosts 2 ...]
#
# In the project's folder, which all hosts see at the same path, with the data and OUT. Needs ssh without a password to
# the hosts of the file but this one; SSH='ssh -F cluster.conf' says how. A line of the hostfile: node1 slots=8
# Ends with 75 where it was asked to end and has saved: the same command with --resume auto goes on.
set -eu
exec matloom launch run "${RECIPE:-recipes/demo.toml}" --out "${OUT:-runs/demo}" --hostfile "${HOSTFILE:-hosts}" \
    --ssh "${SSH:-ssh}" "$@"
