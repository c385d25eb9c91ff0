# Copyright (c) the Mask-in-Mask bundle contributors. Licensed under the Apache License, Version 2.0.
# Short names for the scripts, which need no make.
.PHONY: setup train test check format release

setup:
	bash scripts/setup_env.sh --dev

train:
	bash scripts/train.sh

test:
	bash scripts/test.sh

check:
	bash scripts/check.sh

format: setup
	.venv/bin/python -m ruff format
	.venv/bin/python -m ruff check --fix

release: setup
	.venv/bin/python scripts/zoo/release.py
