#!/usr/bin/env bash
# Copyright (c) the Mask-in-Mask bundle contributors. Licensed under the Apache License, Version 2.0.
#
# Makes .venv in the repository, with everything the bundle needs and the bundle itself. Run again, it only looks
# whether anything has changed; interrupted, it continues where it stopped.
#
#   bash scripts/setup_env.sh [--dev]     --dev: with what the tests and the checks need
#
#   PYTHON=python3.11      the Python to build on, 3.10 to 3.12; default: the first such one found on PATH
#   TORCH_INDEX_URL=URL    the index to take torch from, for example https://download.pytorch.org/whl/cu126;
#                          empty: none but pip's own. Default: PyTorch's CPU index where there is no NVIDIA GPU
set -euo pipefail

root="$(cd -- "$(dirname -- "${BASH_SOURCE[0]}")/.." && pwd -P)"
venv="$root/.venv"
python="$venv/bin/python"
cpu_index="https://download.pytorch.org/whl/cpu"

say() { printf '%s\n' "$*" >&2; }
die() { say "error: $*"; exit 1; }

supported() { "$1" -c 'import sys; sys.exit(not (3, 10) <= sys.version_info[:2] <= (3, 12))' >/dev/null 2>&1; }

minor_version() { "$1" -c 'import sys; print("%d.%d" % sys.version_info[:2])'; }

choose_python() {
    local candidate
    for candidate in ${PYTHON:+"$PYTHON"} python3 python3.12 python3.11 python3.10; do
        if supported "$candidate"; then
            printf '%s\n' "$candidate"
            return
        fi
    done
    die "no Python 3.10, 3.11 or 3.12 on PATH: install one (apt-get install python3 python3-venv)," \
        "or name one, as in PYTHON=/path/to/python3.11"
}

# Debian and Ubuntu ship python3 without ensurepip, which `-m venv` gets pip from, unless python3-venv is installed.
make_venv() {
    local base
    base="$(choose_python)"
    say "making $venv with Python $(minor_version "$base")"
    rm -rf "$venv"
    "$base" -m venv "$venv" >/dev/null 2>&1 && return
    rm -rf "$venv"
    if "$base" -m venv --without-pip "$venv" && "$python" "$root/scripts/fetch_pip.py"; then
        return
    fi
    rm -rf "$venv"
    die "$base cannot make a virtual environment with pip: apt-get install python3-venv, then run the same command again"
}

ensure_venv() {
    if [[ -n "${PYTHON:-}" ]] && ! supported "$PYTHON"; then
        die "PYTHON=$PYTHON is not a Python 3.10, 3.11 or 3.12 that starts"
    fi
    if ! "$python" -m pip --version >/dev/null 2>&1; then
        [[ ! -e "$venv" ]] || say "$venv is not a working environment with pip: making it anew"
        make_venv
    fi
    supported "$python" || die "$venv runs a Python that is not 3.10, 3.11 or 3.12: remove it, then run the same command again"
    if [[ -n "${PYTHON:-}" && "$(minor_version "$PYTHON")" != "$(minor_version "$python")" ]]; then
        die "$venv runs Python $(minor_version "$python"), PYTHON=$PYTHON is another one: remove $venv or unset PYTHON"
    fi
}

# An index that cannot be reached makes pip retry for minutes and then fail, so ask first.
reachable() { "$python" -c 'import sys, urllib.request as u; u.urlopen(sys.argv[1], timeout=5)' "$1/torch/" >/dev/null 2>&1; }

torch_index() {
    if [[ -n "${TORCH_INDEX_URL+set}" ]]; then
        printf '%s' "$TORCH_INDEX_URL"
    elif nvidia-smi >/dev/null 2>&1; then
        return # PyPI's build is the CUDA one
    elif reachable "$cpu_index"; then
        printf '%s' "$cpu_index"
    else
        say "no NVIDIA GPU and $cpu_index is out of reach: torch comes from pip's own indexes; PyPI's is a CUDA build of some GB"
    fi
}

# Wheels only: a source archive would run its own code before anything of it is checked.
install() {
    local bytecode=--compile
    # for tests no bytecode ahead of time: it takes a minute, and they import a part of the packages
    [[ "$kind" != dev ]] || bytecode=--no-compile
    "$python" -m pip install --disable-pip-version-check --only-binary :all: "$bytecode" \
        --constraint "$root/constraints.txt" "$@"
}

install_packages() {
    local index locked="$root/scripts/locked/requirements.txt"
    if [[ "$kind" == dev ]]; then
        locked="$root/scripts/locked/requirements-dev.txt"
    fi
    index="$(torch_index)"
    # torch has other hashes on each index, so only its version is pinned; what it needs is mostly there before it
    install --no-deps --require-hashes --requirement "$locked" &&
        install torch ${index:+--extra-index-url "$index"} &&
        install --no-deps --no-build-isolation --editable "$root"
}

# What the installed packages depend on: any change in it means to install again.
fingerprint() {
    {
        "$python" --version
        printf '%s\n' "$root"
        cat "$root/pyproject.toml" "$root/constraints.txt" "$root"/requirements*.txt "$root"/scripts/locked/*.txt
    } | sha256sum | cut -d ' ' -f 1
}

kind=run
case "${1:-}" in
    "") ;;
    --dev) kind=dev ;;
    *) die "unknown option $1: the only one is --dev" ;;
esac

ensure_venv
now="$(fingerprint)"
for stamp in "$venv/.ready-dev" "$venv/.ready-$kind"; do
    if [[ -f "$stamp" && "$(cat "$stamp")" == "$now" ]]; then
        exit 0
    fi
done
say "installing packages into $venv (once; some minutes)"
rm -f "$venv"/.ready-*
install_packages || die "pip could not install the packages (its message is above): put that right, then run the same command again"
printf '%s\n' "$now" >"$venv/.ready-$kind"
