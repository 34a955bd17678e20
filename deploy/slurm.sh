#!/usr/bin/env bash
# A batch over many nodes: each array task does its share of the jobs with a ledger of its own.
#   sbatch --array=1-8 deploy/slurm.sh night.yaml
#   sbatch --dependency=afterany:JOBID --ntasks=1 deploy/slurm.sh night.yaml --collect     one leaderboard over all
# Killed or out of time? Submit the same again: finished jobs are not repeated.
#SBATCH --job-name=steval
#SBATCH --cpus-per-task=8
#SBATCH --mem=64G
#SBATCH --time=08:00:00
#SBATCH --signal=B:TERM@60
#SBATCH --output=steval-%A_%a.log
set -euo pipefail
manifest="${1:?name the manifest: sbatch deploy/slurm.sh MANIFEST.yaml}"
shift
shard=()
if [ -n "${SLURM_ARRAY_TASK_ID:-}" ]; then
    shard=(--shard "$SLURM_ARRAY_TASK_ID/$SLURM_ARRAY_TASK_COUNT")
fi
image="${STEVAL_IMAGE:-}"
run=(steval)
if [ -n "$image" ]; then
    run=(apptainer run --bind "${STEVAL_BIND:-$PWD}" "$image")
fi
exec "${run[@]}" batch "$manifest" "${shard[@]}" --workers "${SLURM_CPUS_PER_TASK:-1}" \
    --set "run.memory_gb=$((${SLURM_MEM_PER_NODE:-65536} / 1024 * 9 / 10))" "$@"
