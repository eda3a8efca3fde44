#!/bin/sh
# Pretrain on the hosts of a hostfile: DeepSpeed's launcher starts the ranks on each by pdsh and ssh.
#
#   HOSTFILE=hosts RECIPE=recipes/demo.toml OUT=runs/demo docs/examples/launch/pdsh.sh [--resume auto ...]
#   FILTER='--include node1@node2:0' ... docs/examples/launch/pdsh.sh     some of the hosts, or of their accelerators
#
# In the project's folder, which all hosts see at the same path, with the data and OUT. Needs pdsh on this host, and ssh
# without a password to all hosts of the file, this one included. A line of the hostfile: node1 slots=8
set -eu
# Each host gets the variables MLFLOW*, PYTHON*, NCCL* of this one, and those of this file, a NAME=VALUE a line: others
# do not travel. All of them stand on command lines, which every user of the hosts can read, and are printed: passwords
# go into a file that each rank reads itself, --env_file secrets.env (mode 600), and not into these variables.
export DS_ENV_FILE="${DS_ENV_FILE:-.deepspeed_env}"
exec deepspeed --hostfile "${HOSTFILE:-hostfile}" ${FILTER:-} --master_port "${MASTER_PORT:-29500}" \
    launch/pretrain.py --config "${RECIPE:-recipes/demo.toml}" --out "${OUT:-runs/demo}" "$@"
