#!/usr/bin/env bash
# One supernet over all GPUs of this machine. Options go to `nas search`:
#   scripts/torchrun.sh --space darts --task cifar10 --method darts --preset standard
set -euo pipefail
gpus=$(nvidia-smi --list-gpus 2>/dev/null | wc -l)
exec torchrun --nproc-per-node "$((gpus > 0 ? gpus : 2))" -m nas search "$@"
