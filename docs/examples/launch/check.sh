#!/bin/sh
# Are the hosts of a hostfile ready for a run? Nothing is trained; run.sh asks the same before it starts.
#
#   HOSTFILE=hosts RECIPE=recipes/demo.toml OUT=runs/demo docs/examples/launch/check.sh [--master-port 29500 --json ...]
#
# In the project's folder. Ends with 0, or with 8 where something failed on some host; each line says what to do there.
set -eu
exec matloom launch check "${RECIPE:-recipes/demo.toml}" --out "${OUT:-runs/demo}" --hostfile "${HOSTFILE:-hosts}" \
    --ssh "${SSH:-ssh}" "$@"
