#!/bin/sh
# Pretrain on hosts that cannot reach each other by ssh: run this on each of them, as pods and job scripts do.
#
#   NODE_RANK=0 MASTER_ADDR=node1 HOSTFILE=hosts RECIPE=recipes/demo.toml OUT=runs/demo docs/examples/launch/no_ssh.sh
#   NODE_RANK=1 MASTER_ADDR=node1 ...                                                  on the second host of the file
#
# In the project's folder; all hosts see the data and OUT at the same path. NODE_RANK is the line of the hostfile, from
# 0; MASTER_ADDR is the first host.
set -eu
exec deepspeed --hostfile "${HOSTFILE:-hostfile}" --no_ssh --node_rank "$NODE_RANK" --master_addr "$MASTER_ADDR" \
    --master_port "${MASTER_PORT:-29500}" \
    launch/pretrain.py --config "${RECIPE:-recipes/demo.toml}" --out "${OUT:-runs/demo}" "$@"
