#!/bin/sh
# Pretrain on this host by DeepSpeed's launcher: as many ranks as it has GPUs, or RANKS.
#
#   RANKS=2 RECIPE=recipes/demo.toml OUT=runs/demo docs/examples/launch/one_host.sh [--resume auto ...]
#
# In the project's folder. A hostfile is left out: one that is not there would be an error.
set -eu
exec deepspeed ${RANKS:+--num_accelerators "$RANKS"} --master_port "${MASTER_PORT:-29500}" \
    launch/pretrain.py --config "${RECIPE:-recipes/demo.toml}" --out "${OUT:-runs/demo}" "$@"
