#!/bin/sh
# Pretrain by torchrun: run this on each host.
#
#   NODES=2 NODE_RANK=0 MASTER_ADDR=node1 RANKS=8 RECIPE=recipes/demo.toml OUT=runs/demo docs/examples/launch/torchrun.sh
#   NODES=2 NODE_RANK=1 MASTER_ADDR=node1 ...                                                      on the second host
#   RENDEZVOUS=c10d NODES=2 MASTER_ADDR=node1 ...      the same on all hosts, which find out by themselves who is which
#
# RANKS is the number of ranks on this host. In the project's folder; all hosts see the data and OUT at the same path.
# torchrun ends with 1 whatever the ranks end with: OUT/preempted.json says whether a run was asked to end, and saved.
set -eu
if [ "${RENDEZVOUS:-static}" = c10d ]; then
    set -- --rdzv-backend c10d --rdzv-endpoint "$MASTER_ADDR:${MASTER_PORT:-29500}" --rdzv-id "${RUN_ID:-matloom}" \
        launch/pretrain.py --config "${RECIPE:-recipes/demo.toml}" --out "${OUT:-runs/demo}" "$@"
else
    set -- --node-rank "$NODE_RANK" --master-addr "$MASTER_ADDR" --master-port "${MASTER_PORT:-29500}" \
        launch/pretrain.py --config "${RECIPE:-recipes/demo.toml}" --out "${OUT:-runs/demo}" "$@"
fi
exec torchrun --nnodes "${NODES:-1}" --nproc-per-node "${RANKS:-1}" "$@"
