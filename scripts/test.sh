#!/usr/bin/env bash
# Copyright (c) the Mask-in-Mask bundle contributors. Licensed under the Apache License, Version 2.0.
#
# Sets up .venv, fetches the volumes, the browser and the nnU-Net that the tests need, and runs the tests. Options go to pytest:
#
#   bash scripts/test.sh
#   bash scripts/test.sh tests/sparse -k convolution
set -euo pipefail

root="$(cd -- "$(dirname -- "${BASH_SOURCE[0]}")/.." && pwd -P)"
python="$root/.venv/bin/python"

# where Python is told to keep no bytecode, each of a hundred processes would compile what it imports once more
unset PYTHONDONTWRITEBYTECODE

bash "$root/scripts/setup_env.sh" --dev
# MinkowskiEngine compiles for minutes, so the rest is fetched meanwhile; a group of processes can be ended with its
# compilers, where a fetch fails or Ctrl-C is pressed
set -m
"$python" "$root/scripts/minkowski/build.py" &
building=$!
set +m
trap 'kill -- "-$building" 2>/dev/null || :' EXIT
"$python" "$root/scripts/fetch_data.py" --data_dir "$root/data" --all
"$python" "$root/scripts/fetch_browser.py"
"$python" "$root/scripts/fetch_nnunet.py"
wait "$building"
trap - EXIT
cd "$root"
# most tests compute little: threads would cost more than they gain, above all where several processes train at once
export OMP_NUM_THREADS="${OMP_NUM_THREADS:-1}"
# a file's tests stay in one process, as they share what is slow to make, and tests/conftest.py says which files begin;
# -n 0 runs all in this one
# where a test ends its process, such as one that hangs, the run ends; it would be begun again, for hours
exec "$python" -m pytest -n auto --maxprocesses 4 --max-worker-restart 0 --dist loadfile --no-loadscope-reorder "$@"
