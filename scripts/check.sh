#!/usr/bin/env bash
# Copyright (c) the Mask-in-Mask bundle contributors. Licensed under the Apache License, Version 2.0.
#
# Everything a change must pass: format, lint, types, tests. Stops at the first that fails.
#
#   bash scripts/check.sh
set -euo pipefail

root="$(cd -- "$(dirname -- "${BASH_SOURCE[0]}")/.." && pwd -P)"
python="$root/.venv/bin/python"

bash "$root/scripts/setup_env.sh" --dev
cd "$root"
"$python" -m ruff format --check
"$python" -m ruff check
"$python" -m mypy
exec bash scripts/test.sh
