#!/usr/bin/env bash
# The coordinator of a search on SLURM, whose trials are jobs of their own. Options go to `nas search`:
#   sbatch scripts/slurm.sh --space darts --task npz:/data/images.npz --method evolution --trials 500
# Submitted again with the same options, it goes on where it was.
#SBATCH --job-name=nas
#SBATCH --cpus-per-task=4
#SBATCH --time=2-00:00:00
#SBATCH --requeue
set -euo pipefail
exec nas search --executor "${EXECUTOR:-slurm:gpus_per_node=1,cpus_per_task=8,time=480}" --workers "${WORKERS:-16}" "$@"
