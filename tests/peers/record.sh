#!/bin/sh
# Records every trace in models/golden and tests/golden anew. Takes some minutes; needs setup.sh once, and 3 GB of memory.
set -e
cd "$(dirname "$0")"
python=${PYTHON:-.venv/bin/python}
export PYTHONHASHSEED=0 HF_HUB_OFFLINE=1 # peft writes a set of names; nothing is looked up
$python random_weights.py
for script in blocks llama checkpoints adapters training text smollm2; do
    echo "== record_$script.py"
    $python "record_$script.py"
done
git -C ../.. status --short models/golden tests/golden
