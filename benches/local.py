"""What benches of the server share: a `socius serve` of their own on a home of its own, requests to it, and made-up adapters over the
default model. Standard library only; knows no measurement."""

import http.client
import json
import os
import pathlib
import random
import shutil
import signal
import struct
import subprocess
import tempfile
import urllib.parse

# SmolLM2-135M, as Hugging Face names its linears: (module, outputs, inputs).
LAYERS = 30
LINEARS = [
    ("self_attn.q_proj", 576, 576),
    ("self_attn.k_proj", 192, 576),
    ("self_attn.v_proj", 192, 576),
    ("self_attn.o_proj", 576, 576),
    ("mlp.gate_proj", 1536, 576),
    ("mlp.up_proj", 1536, 576),
    ("mlp.down_proj", 576, 1536),
]
BASE = "HuggingFaceTB/SmolLM2-135M-Instruct"


def small(rng, count):
    """`count` bf16 numbers of either sign between 2^-7 and 2^-6."""
    drawn = int.from_bytes(rng.randbytes(2 * count), "little")
    keep, exponent = (int.from_bytes(pattern * count, "little") for pattern in (b"\x7f\x80", b"\x00\x3c"))
    return (drawn & keep | exponent).to_bytes(2 * count, "little")


def parameters(rank):
    return LAYERS * sum(rank * (outputs + inputs) for _, outputs, inputs in LINEARS)


def write_adapter(folder, rank, seed):
    """A PEFT directory: random factors on every linear, small enough that answers stay text."""
    folder.mkdir(parents=True, exist_ok=True)
    names = [name.rsplit(".", 1)[1] for name, _, _ in LINEARS]
    config = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "r": rank,
        "lora_alpha": rank,
        "target_modules": names,
        "bias": "none",
        "base_model_name_or_path": BASE,
    }
    (folder / "adapter_config.json").write_text(json.dumps(config))
    header, offset = {}, 0
    for layer in range(LAYERS):
        for name, outputs, inputs in LINEARS:
            for side, shape in (("A", [rank, inputs]), ("B", [outputs, rank])):
                end = offset + 2 * shape[0] * shape[1]
                key = f"base_model.model.model.layers.{layer}.{name}.lora_{side}.weight"
                header[key] = {"dtype": "BF16", "shape": shape, "data_offsets": [offset, end]}
                offset = end
    head = json.dumps(header).encode()
    head += b" " * (-len(head) % 8)
    data = small(random.Random(seed), parameters(rank))
    (folder / "adapter_model.safetensors").write_bytes(struct.pack("<Q", len(head)) + head + data)


class Refused(Exception):
    """A response that is no 2xx."""


class Server:
    """A server that is started, asked and ended; a `with` ends it whatever happens."""

    def __init__(self, binary, arguments, models=None, home=None):
        self.owned = home is None
        self.home = pathlib.Path(home or tempfile.mkdtemp(prefix="socius-bench-"))
        self.home.mkdir(parents=True, exist_ok=True)
        if models and not (self.home / "models").exists():
            (self.home / "models").symlink_to(pathlib.Path(models).resolve())
        self.log = open(self.home / "server.log", "w+")
        command = [str(binary), "serve", "--bind", "127.0.0.1:0", *map(str, arguments)]
        environment = {**os.environ, "SOCIUS_HOME": str(self.home)}
        self.process = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
        self.url = None
        for line in self.process.stderr:
            self.log.write(line.decode(errors="replace"))
            if b"listening on " in line:
                self.url = line.decode().split("listening on ")[1].strip()
                break
        if self.url is None:
            raise SystemExit(f"the server did not start: {self.home / 'server.log'}")
        # The log goes on into the file by itself.
        self.drain = subprocess.Popen(["cat"], stdin=self.process.stderr, stdout=self.log)
        self.place = urllib.parse.urlparse(self.url)

    def connect(self, timeout=600):
        return http.client.HTTPConnection(self.place.hostname, self.place.port, timeout=timeout)

    def ask(self, method, path, body=None, timeout=600):
        connection = self.connect(timeout)
        try:
            headers = {"Content-Type": "application/json"}
            connection.request(method, path, None if body is None else json.dumps(body), headers)
            response = connection.getresponse()
            text = response.read().decode()
        finally:
            connection.close()
        if response.status >= 300:
            raise Refused(f"{method} {path}: {response.status}: {text[:500]}")
        return json.loads(text) if text[:1] in "{[" else text

    def load(self, name, rank, seed, inplace=False):
        """Makes and loads an adapter; its file is then the library's."""
        folder = self.home / "adapters" / name
        write_adapter(folder, rank, seed)
        try:
            self.ask("POST", "/v1/load_lora_adapter", {"lora_name": name, "lora_path": name, "load_inplace": inplace})
        finally:
            shutil.rmtree(folder)

    def resident_mb(self):
        text = pathlib.Path(f"/proc/{self.process.pid}/status").read_text()
        return int(next(line for line in text.splitlines() if line.startswith("VmRSS:")).split()[1]) / 1024

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.end()

    def end(self):
        """Ends it, as SIGTERM does, unless it has ended; its exit code."""
        if self.process.returncode is not None:
            return self.process.returncode
        self.process.send_signal(signal.SIGTERM)
        try:
            code = self.process.wait(timeout=120)
        except subprocess.TimeoutExpired:
            self.process.kill()
            code = self.process.wait()
        self.drain.wait()
        self.log.close()
        if self.owned and code == 0:
            shutil.rmtree(self.home, ignore_errors=True)
        return code
