#!/bin/sh
# Pretrain under SLURM, without a launcher in between: srun starts the ranks, which know from it who they are.
#
#   RECIPE=recipes/demo.toml OUT=runs/demo docs/examples/launch/srun.sh --nodes=2 --ntasks-per-node=8 --gpus-per-node=8
#
# On a login node (srun waits for the nodes then), or within salloc or a batch script. All arguments are srun's. In the
# project's folder; all nodes see the data and OUT at the same path. It resumes where there is something to resume.
# The exit code is the highest of the ranks'; 75: asked to end, and saved. `matloom launch plan --slurm` writes a batch
# script that does this, and queues itself again.
set -eu
# the ranks get two minutes to save once one has ended, whatever the site's WaitTime and KillOnBadExit say
exec srun --kill-on-bad-exit=0 --wait=120 "$@" \
    python -u launch/pretrain.py --config "${RECIPE:-recipes/demo.toml}" --out "${OUT:-runs/demo}" --resume auto
