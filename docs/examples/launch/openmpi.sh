#!/bin/sh
# Pretrain on the hosts of a hostfile: DeepSpeed's launcher hands over to mpirun. No MPI for Python is needed.
#
#   HOSTFILE=hosts RECIPE=recipes/demo.toml OUT=runs/demo docs/examples/launch/openmpi.sh [--resume auto ...]
#
# In the project's folder, which all hosts see at the same path, with the data and OUT: rank 0 writes there where the
# others meet it. Needs Open MPI on all hosts, and ssh without a password from this one to the others. DeepSpeed takes
# no --include or --exclude here: shorten the hostfile. As root, mpirun wants OMPI_ALLOW_RUN_AS_ROOT=1 and
# OMPI_ALLOW_RUN_AS_ROOT_CONFIRM=1.
set -eu
# as for pdsh.sh: what the hosts get beside MLFLOW*, PYTHON*, NCCL*, UCX*
export DS_ENV_FILE="${DS_ENV_FILE:-.deepspeed_env}"
# ranks are not bound to single cores: data workers and threads would have to share one
exec deepspeed --hostfile "${HOSTFILE:-hostfile}" --launcher openmpi --launcher_args "--bind-to none ${MPIRUN_ARGS:-}" \
    launch/pretrain.py --config "${RECIPE:-recipes/demo.toml}" --out "${OUT:-runs/demo}" "$@"
