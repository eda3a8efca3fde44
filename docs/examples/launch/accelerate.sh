#!/bin/sh
# Fine-tune by accelerate: on one host, or run this on each of several.
#
#   RANKS=2 RECIPE=recipes/demo-finetune.toml OUT=runs/tuned docs/examples/launch/accelerate.sh
#   RANKS=4 MACHINES=2 MACHINE_RANK=0 MASTER_ADDR=node1 ...                  RANKS is that of all hosts together
#   RANKS=4 MACHINES=2 MACHINE_RANK=1 MASTER_ADDR=node1 ...                  on the second host
#
# In the project's folder; all hosts see the data, the registry and OUT at the same path. --multi_gpu is what makes
# accelerate start more than one process, without a GPU too; with --cpu it starts one, whatever --num_processes says.
set -eu
exec accelerate launch --multi_gpu --num_processes "${RANKS:-2}" --num_machines "${MACHINES:-1}" \
    --machine_rank "${MACHINE_RANK:-0}" --main_process_ip "${MASTER_ADDR:-127.0.0.1}" \
    --main_process_port "${MASTER_PORT:-29500}" --mixed_precision no --dynamo_backend no \
    launch/finetune.py --config "${RECIPE:-recipes/demo-finetune.toml}" --out "${OUT:-runs/tuned}" "$@"
