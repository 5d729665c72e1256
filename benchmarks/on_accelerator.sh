#!/usr/bin/env bash
# 1,000 seeds of the tutorial, the throughput table and the zoo of models on an accelerator, in under 10 minutes:
#
#     benchmarks/on_accelerator.sh                   # sets up .venv, with JAX for CUDA beside an NVIDIA GPU
#     PYTHON=python3 benchmarks/on_accelerator.sh    # in an environment that has all that is needed
#     DRY_RUN=1 benchmarks/on_accelerator.sh         # small sizes on the CPU, to see that everything runs
#
# DATA may name a folder with the whole MNIST (by default its sample of 5,000); tables are printed, and logs and
# JSON files written to OUT, results/accelerator by default. Setting up is not counted; called again, the script
# goes on with the table.
set -uo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.." || exit 1
out=${OUT:-results/accelerator} python=${PYTHON:-.venv/bin/python} dry=${DRY_RUN:-}
mkdir -p "$out"

if [ -z "${PYTHON:-}" ]; then
    make setup || exit 1
    if [ -z "$dry" ] && command -v nvidia-smi >/dev/null; then
        jax=$("$python" -c 'import jax; print(jax.__version__)')
        "$python" -m pip install --disable-pip-version-check --quiet "jax[cuda13]==$jax" || exit 1
    fi
fi

tutorial=(--data "${DATA:-sample}") throughput=(--quick --seeds 1 512) models=float32
if [ -n "$dry" ]; then
    export JAX_PLATFORMS=cpu JAX_DISABLE_MOST_OPTIMIZATIONS=1
    tutorial+=(--seeds 2 --epochs 1 --hidden 8 --examples 20)
    throughput=(--quick --seeds 1 --systems microlearning --repeats 1 --sizes.hidden 8 --sizes.batch-size 10
        --sizes.updates 2 --sizes.examples 10)
    models="float32 and plain_mlp"
fi
device=$("$python" -c 'import jax; print(jax.default_backend(), *jax.devices())') || exit 1
if [ -z "$dry" ] && [ "${device%% *}" = cpu ]; then
    echo "on_accelerator.sh: expected an accelerator that JAX sees, got $device; DRY_RUN=1 runs on the CPU" >&2
    exit 1
fi

found=
failed=0
part() { # NAME SECONDS COMMAND...: runs it for so long at most
    local name=$1 limit=${dry:+600} began=$SECONDS status
    limit=${limit:-$2}
    shift 2
    printf '\n== %s\n' "$name"
    timeout "$limit" "$python" -m "$@" 2>&1 | tee "$out/$name.log"
    status=${PIPESTATUS[0]}
    [ "$status" = 0 ] || failed=1
    found+="$name: exit code $status after $((SECONDS - began)) of at most $limit s"$'\n'
}

export TQDM_DISABLE=1 XLA_PYTHON_CLIENT_PREALLOCATE=false
part tutorial 240 benchmarks.tutorial "${tutorial[@]}" --out "$out/tutorial"
part throughput 200 benchmarks.throughput "${throughput[@]}" --resume --out "$out/throughput"
# Identities with jax.grad need products of whole float32, which GPUs do not take by default.
JAX_DEFAULT_MATMUL_PRECISION=highest part zoo 150 pytest -p no:cacheprovider tests/test_zoo.py -k "$models"
printf '\n== found on %s\n%s' "$device" "$found"
exit "$failed"
