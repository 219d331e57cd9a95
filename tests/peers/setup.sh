#!/bin/sh
# A virtual environment with the peers at their recorded versions: tests/peers/.venv
set -e
cd "$(dirname "$0")"
python3 -m venv .venv
.venv/bin/python -m pip install --quiet --requirement requirements.txt
echo "ready: $(pwd)/.venv"
