#!/usr/bin/env bash
# Pretrains recipes/demo.toml on 2 x 4 ranks; by `matloom launch plan`.
# Run it on one host; mpirun reaches the others by ssh, or by the scheduler in whose allocation it stands.
# Elsewhere name the hosts: export OMPI_MCA_orte_default_hostfile=FILE, lines of 'NAME slots=RANKS'.
# Secrets: each rank reads run.env, NAME=VALUE lines, mode 600; none stands here or on a command line.
# Exit code: 75 if the run saved and ended when asked to. Started again, it resumes.
set -euo pipefail
cd -- /shared/matloom
out=runs/demo-pretrain
mkdir -p -- "$out"
rm -f -- "$out/preempted.json" "$out/.preempting"
export OMP_NUM_THREADS="${OMP_NUM_THREADS:-1}"
# only names stand on the command line; the values go through mpirun's own connections
exported=()
wanted='AWS_.*|AZURE_.*|CCL_.*|CUDA_.*|DS_.*|FI_.*|FSSPEC_.*|GLOO_.*|GOMP_.*|GOOGLE_.*|HF_.*|HIP_.*|HSA_.*|HUGGING_FACE_.*|KMP_.*|MATLOOM_.*|MKL_.*|MLFLOW_.*|NCCL_.*|OMP_.*|OPENBLAS_.*|PYTHON.*|PYTORCH_.*|TORCHINDUCTOR_.*|TORCH_.*|TRITON_.*|UCX_.*|CC|CURL_CA_BUNDLE|CXX|HTTPS_PROXY|HTTP_PROXY|LANG|LC_ALL|LD_LIBRARY_PATH|LD_PRELOAD|MAX_JOBS|NO_PROXY|PATH|REQUESTS_CA_BUNDLE|SSL_CERT_FILE|http_proxy|https_proxy|no_proxy'
own='CUDA_VISIBLE_DEVICES|HIP_VISIBLE_DEVICES|MATLOOM_ENV_FILE'
while read -r name; do
    if [[ $name =~ ^($wanted)$ && ! $name =~ ^($own)$ ]]; then exported+=(-x "$name"); fi
done < <(compgen -e)

# every signal means the same: save, and end; mpirun passes USR1 on to the ranks; by TERM or INT it would end them.
# USR1 ends who does not catch it yet, so it is sent to those that do, and again until a rank has heard it
asked='' cut='' pid=''
catches() {
    local mask
    mask=$(sed -n 's/^SigCgt:[[:space:]]*//p' "/proc/$1/status" 2> /dev/null) || return 1
    (( (16#${mask:-0} >> ($(kill -l USR1) - 1)) & 1 ))
}
tell() {
    if catches "$pid"; then kill -s USR1 "$pid" 2> /dev/null || true; fi
    [ -e "$out/.preempting" ]
}
ask() {
    asked=1 cut=1
    if [ -z "$pid" ] || ! kill -0 "$pid" 2> /dev/null || tell; then return 0; fi
    { sleep 1; kill -s USR1 "$$"; } 2> /dev/null &
}
trap ask TERM USR1 INT HUP

setsid mpirun \
    --bind-to none -np 8 \
    --map-by ppr:4:node \
    "${exported[@]}" \
    python3 -u -m launch.pretrain \
    --config recipes/demo.toml \
    --out runs/demo-pretrain \
    --resume auto \
    --env_file run.env &
pid=$!
# it may have come meanwhile
if [ -n "$asked" ]; then ask; fi

while true; do
    cut='' code=0
    wait "$pid" || code=$?
    # a signal ends the waiting, not the run
    [ -n "$cut" ] || break
done
if [ -e "$out/preempted.json" ]; then exit 75; fi
# 128 + USR1: it came to a rank that had just begun, did not catch it yet, and had nothing to save
if [ -n "$asked" ] && [ "$code" -eq 138 ]; then exit 75; fi
exit "$code"
