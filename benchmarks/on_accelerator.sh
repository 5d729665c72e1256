#!/usr/bin/env bash
# Runs the tutorial with 1,000 seeds, the throughput table and the zoo of models on an accelerator, in under 10 minutes:
#
#     benchmarks/on_accelerator.sh                   # creates .venv, with JAX for CUDA if there is an NVIDIA GPU
#     PYTHON=python3 benchmarks/on_accelerator.sh    # uses an existing environment
#     DRY_RUN=1 benchmarks/on_accelerator.sh         # runs everything on the CPU at small sizes
#
# Set DATA to a folder with all of MNIST (default: a sample of 5,000 images), and OUT to the folder for logs and JSON files
# (default: results/accelerator). Tables are also printed. The 10 minutes exclude the setup. Run the script again to
# resume the throughput table.
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

tutorial=(--data "${DATA:-sample}") throughput=(--quick --seeds 1 512) models=rules_on_models
if [ -n "$dry" ]; then
    export JAX_PLATFORMS=cpu JAX_DISABLE_MOST_OPTIMIZATIONS=1
    tutorial+=(--seeds 2 --epochs 1 --hidden 8 --examples 20)
    throughput=(--quick --seeds 1 --systems microlearning --repeats 1 --sizes.hidden 8 --sizes.batch-size 10
        --sizes.updates 2 --sizes.examples 10)
    models="rules_on_models and separable"
fi
device=$("$python" -c 'import jax; print(jax.default_backend(), *jax.devices())') || exit 1
if [ -z "$dry" ] && [ "${device%% *}" = cpu ]; then
    echo "on_accelerator.sh: expected an accelerator that JAX sees, got $device; DRY_RUN=1 runs on the CPU" >&2
    exit 1
fi

found=
failed=0
part() { # NAME SECONDS MODULE ARGUMENTS...: runs a Python module with a time limit
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
# Identities with jax.grad need full float32 products; GPUs use less precision by default.
JAX_DEFAULT_MATMUL_PRECISION=highest part zoo 150 pytest -p no:cacheprovider tests/test_zoo.py -k "$models"
printf '\n== results on %s\n%s' "$device" "$found"
exit "$failed"
