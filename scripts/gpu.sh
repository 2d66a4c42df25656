#!/usr/bin/env bash
# A search by gradients on one GPU, as published. Options go to `nas search`:
#   scripts/gpu.sh --task cifar10 --seed 1
set -euo pipefail
exec nas search --space darts --method is-darts --preset standard --device cuda "$@"
