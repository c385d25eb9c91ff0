#!/usr/bin/env bash
# Copyright (c) the Mask-in-Mask bundle contributors. Licensed under the Apache License, Version 2.0.
#
# Sets up .venv, fetches the default CT and MR volumes and pre-trains on them. --preset says how: small (the default), a
# first look, which reconstructs what is hidden; or the recipe for work: few_labels, before few scans are labelled, prod
# for a GPU, dev to see that all works. Other options are passed on to MONAI and override the config:
#
#   bash scripts/train.sh
#   bash scripts/train.sh --epochs 3
#   bash scripts/train.sh --dataset_dir /path/to/volumes      (then nothing is fetched)
#   bash scripts/train.sh --preset few_labels --dataset_dir /path/to/volumes
set -euo pipefail

root="$(cd -- "$(dirname -- "${BASH_SOURCE[0]}")/.." && pwd -P)"
python="$root/.venv/bin/python"

preset=small
options=()
while (($#)); do
    case "$1" in
        --preset) preset="${2:-}" && shift "$(($# > 1 ? 2 : 1))" ;;
        --preset=*) preset="${1#*=}" && shift ;;
        *) options+=("$1") && shift ;;
    esac
done
more=""
case "$preset" in
    small) more=",'$root/configs/objective_reconstruction.yaml'" ;; # whose pictures show what is learned, in minutes
    dev | prod | few_labels) ;;
    *)
        echo "error: --preset '$preset' is not known: give small, dev, prod or few_labels" >&2
        exit 1
        ;;
esac

bash "$root/scripts/setup_env.sh"
case " ${options[*]-}" in
    *" --dataset_dir"*) ;;
    *) "$python" "$root/scripts/fetch_data.py" --data_dir "$root/data" ;;
esac
# the bundle's own paths hang on bundle_root, so that a path given as an option is read from where the user stands
exec "$python" -m monai.bundle run training --workflow_name bundle.runs.CheckedWorkflow \
    --config_file "['$root/configs/train.yaml','$root/configs/preset_$preset.yaml'$more]" \
    --bundle_root "$root" ${options[@]+"${options[@]}"}
