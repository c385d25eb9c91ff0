#!/usr/bin/env bash
# Copyright (c) the Mask-in-Mask bundle contributors. Licensed under the Apache License, Version 2.0.
#
# Sets up .venv, fetches the default CT and MR volumes and pre-trains an encoder on them. Options are passed on to
# MONAI and override the config:
#
#   bash scripts/train.sh
#   bash scripts/train.sh --epochs 3
#   bash scripts/train.sh --dataset_dir /path/to/volumes      (then nothing is fetched)
set -euo pipefail

root="$(cd -- "$(dirname -- "${BASH_SOURCE[0]}")/.." && pwd -P)"
python="$root/.venv/bin/python"

bash "$root/scripts/setup_env.sh"
case " $*" in
    *" --dataset_dir"*) ;;
    *) "$python" "$root/scripts/fetch_data.py" --data_dir "$root/data" ;;
esac
# the bundle's own paths hang on bundle_root, so that a path given as an option is read from where the user stands
exec "$python" -m monai.bundle run training --workflow_name bundle.runs.CheckedWorkflow \
    --config_file "['$root/configs/train.yaml','$root/configs/preset_small.yaml']" \
    --bundle_root "$root" "$@"
