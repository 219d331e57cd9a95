#!/usr/bin/env python3
"""Measures socius beside what one would pick instead, and prints the ratios as a Markdown table.

    benches/compare/setup.sh DIR                            makes the peers, once
    cargo build --release
    benches/compare/compare.py --peers DIR                  everything; about half an hour on two cores
    benches/compare/compare.py --peers DIR train decode1    some of it
    benches/compare/compare.py --peers DIR --json           one JSON object instead of the table

Each round runs ours, then the peer's, so that both meet the same machine; a ratio is the median of the rounds' ratios, a figure
the median of the rounds'. Every program starts anew, warms up, and has the same number of threads. Without a peer ours alone is
measured and the row says what is missing. Quote ratios: figures are the machine's."""
import argparse
import json
import os
import pathlib
import statistics
import subprocess
import sys
import tempfile

HERE = pathlib.Path(__file__).resolve().parent
GGUF = "models/SmolLM2-135M-Instruct.Q4_1.gguf"
# Weights as quantised as llama.cpp's own, and activations in int8 as its are.
AS_THE_PEER = ("--weights", "quantised")
WORKS = {}


class Missing(Exception):
    """A program or file that a measurement needs is not there."""


class Machine:
    """Where programs and weights are, and how each is asked for a figure."""

    def __init__(self, options):
        self.peers, self.socius, self.threads = options.peers.resolve(), options.socius.resolve(), options.threads
        self.rounds = options.rounds

    def run(self, program, *arguments, **environment):
        if not program.exists():
            raise Missing(program)
        command = [str(part) for part in (program, *arguments)]
        print("$", *command, file=sys.stderr, flush=True)
        environment = {**os.environ, "OMP_NUM_THREADS": str(self.threads), **environment}
        done = subprocess.run(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        if done.returncode:
            sys.exit(f"{' '.join(command)}: exit code {done.returncode}\n{done.stderr[-2000:]}")
        return done.stdout

    def weights(self):
        """The same file for everybody; the name of a known model, which socius fetches, where there is none."""
        return self.peers / GGUF if (self.peers / GGUF).exists() else "smollm2-135m-instruct"

    def ours(self, *arguments, home=None):
        common = ("--threads", self.threads, "--model", self.weights(), "--json")
        environment = {"SOCIUS_HOME": str(home)} if home else {}
        return json.loads(self.run(self.socius, *arguments, *common, **environment).splitlines()[-1])

    def bench(self, *arguments, runs=3):
        return self.ours("bench", *arguments, "--runs", runs)

    def peft(self, batch, length, dtype):
        python, folder = self.peers / "venv/bin/python", self.peers / "models/smollm2-hf"
        if not folder.exists():
            raise Missing(folder)
        return json.loads(self.run(python, HERE / "peft_train.py", folder, batch, length, 16, 3, self.threads, dtype))

    def llama_bench(self, prompt, tokens):
        arguments = ("-m", self.peers / GGUF, "-t", self.threads, "-p", prompt, "-n", tokens, "-r", 3, "-o", "json")
        return {"tokens_per_s": json.loads(self.run(self.peers / "llama-bench", *arguments))[0]["avg_ts"]}

    def llama_batched(self, batch, prompt, tokens):
        shape = ("-npp", prompt, "-ntg", tokens, "-npl", batch, "-c", batch * (prompt + tokens))
        arguments = ("-m", self.peers / GGUF, "-t", self.threads, *shape, "--output-format", "jsonl")
        lines = self.run(self.peers / "llama-batched-bench", *arguments).splitlines()
        return {"tokens_per_s": json.loads([line for line in lines if line.startswith("{")][-1])["speed_tg"]}

    def read_bandwidth(self):
        """Bytes a second; the operations beside it are as small as they can be."""
        tiny = ("--batch", 1, "--length", 1, "--rank", 1, "--prompt", 1)
        return 1e9 * self.ours("bench", "roofline", *tiny)["peaks"]["read_gb_per_s"]

    def interleaved(self, ours, peer):
        """Rounds of both: `(ours, peer)` each; peer is None where it is missing, and said why."""
        rounds, missing = [], None
        for _ in range(self.rounds):
            mine, theirs = ours(), None
            try:
                theirs = peer()
            except Missing as what:
                missing = f"{what} is missing: benches/compare/setup.sh makes it"
            rounds.append((mine, theirs))
        return rounds, missing


def work(name):
    """Registers a measurement: a function from the machine to rows of the table."""
    return lambda function: WORKS.setdefault(name, function)


def row(what, rounds, missing, goal, key="tokens_per_s"):
    """Ours against the peer's by `key`; goals are `(at least, aim)`, upside down (at most) for memory."""
    ours = statistics.median(mine[key] for mine, _ in rounds)
    both = [(mine[key], theirs[key]) for mine, theirs in rounds if theirs]
    peer = statistics.median(theirs for _, theirs in both) if both else None
    ratio = statistics.median(mine / theirs for mine, theirs in both) if both else None
    unit = {"tokens_per_s": "tokens/s", "peak_mb": "MiB"}[key]
    sign = "≤" if key == "peak_mb" else "≥"
    return dict(work=what, unit=unit, ours=ours, peer=peer, ratio=ratio, sign=sign, required=goal[0], aim=goal[1], note=missing)


def training(machine, batch, length, memory, dtype="bfloat16"):
    ours = lambda: machine.bench("train", "--batch", batch, "--length", length, "--rank", 16)
    rounds, missing = machine.interleaved(ours, lambda: machine.peft(batch, length, dtype))
    what = f"LoRA r16 training step, {batch} × {length}, against peft {dtype}"
    rows = [row(what, rounds, missing, (3.0, 4.0))]
    return rows + [row("its peak memory", rounds, missing, (0.5, 0.4), key="peak_mb")] if memory else rows


@work("train")
def train(machine):
    return training(machine, 4, 512, memory=True)


@work("train-short")
def train_short(machine):
    return training(machine, 8, 128, memory=False)


@work("train-short-f32")
def train_short_f32(machine):
    """What peft is fastest in on a CPU without bf16 instructions."""
    return training(machine, 8, 128, memory=False, dtype="float32")


@work("learners")
def learners(machine):
    many = lambda: machine.bench("train", "--learners", 8, "--batch", 1, "--length", 256)
    one = lambda: machine.bench("train", "--learners", 1, "--batch", 8, "--length", 256)
    rounds, missing = machine.interleaved(many, one)
    return [row("8 learners × (1 × 256) in one step, against 1 × (8 × 256)", rounds, missing, (0.85, 0.95))]


@work("prefill")
def prefill(machine):
    ours = lambda: machine.bench("prefill", "--length", 512, *AS_THE_PEER)
    rounds, missing = machine.interleaved(ours, lambda: machine.llama_bench(512, 0))
    return [row("prefill 512, against llama-bench pp512", rounds, missing, (4.0, 7.0))]


@work("decode32")
def decode32(machine):
    shape = ("--batch", 32, "--prompt", 128, "--tokens", 64)
    ours = lambda: machine.bench("decode", *shape, *AS_THE_PEER, runs=1)
    rounds, missing = machine.interleaved(ours, lambda: machine.llama_batched(32, 128, 64))
    return [row("decode 32 rows (prompt 128, 64 new), against llama-batched-bench S_TG", rounds, missing, (4.0, 6.0))]


@work("decode1")
def decode1(machine):
    ours = lambda: machine.bench("decode", "--batch", 1, "--prompt", 1, "--tokens", 128, *AS_THE_PEER)
    rounds, missing = machine.interleaved(ours, lambda: machine.llama_bench(0, 128))
    return [row("decode 1 row (128 new), against llama-bench tg128", rounds, missing, (1.1, 1.8))]


@work("adapters")
def adapters(machine):
    shape = ("--batch", 32, "--prompt", 128, "--tokens", 64)
    mixed = lambda: machine.bench("mixed", *shape, "--adapters", 32, "--rank", 16, runs=1)
    plain = lambda: machine.bench("decode", *shape, runs=1)
    read = machine.read_bandwidth()
    rounds, _ = machine.interleaved(mixed, plain)
    added = statistics.median(with_["ms_per_step"] - without["ms_per_step"] for with_, without in rounds)
    megabytes = rounds[0][0]["adapter_bytes"] / 1e6
    least = megabytes / read * 1e9
    what = f"32 rows under 32 adapters against none: added time a step, against reading {megabytes:.0f} MB at {read / 1e9:.1f} GB/s"
    return [dict(work=what, unit="ms", ours=added, peer=least, ratio=added / least, sign="≤", required=1.5, aim=1.0, note=None)]


@work("learn")
def learn(machine):
    seconds, strict = [], []
    for seed in range(machine.rounds):
        with tempfile.TemporaryDirectory() as home:
            found = machine.ours("learn", "reverse", "--learner", "sft", "--seed", seed, home=home)
        seconds.append(found["seconds"])
        strict.append(found["after"]["strict"])
    what = f"`learn reverse --learner sft`, evaluation included (strict {100 * min(strict):.1f} % at least; 80 % is asked for)"
    middle = statistics.median(seconds)
    return [dict(work=what, unit="s", ours=middle, peer=None, ratio=middle, sign="≤", required=60, aim=30, note=None)]


def number(value):
    return "–" if value is None else f"{value:.0f}" if value >= 100 else f"{value:.1f}" if value >= 10 else f"{value:.2f}"


def table(rows):
    print("| work | unit | ours | peer | ratio | at least | aim |\n|---|---|---|---|---|---|---|")
    for r in rows:
        goals = " | ".join(f"{r['sign']} {goal:g}" for goal in (r["required"], r["aim"]))
        ratio = f"**{number(r['ratio'])}**" if r["ratio"] is not None else r["note"]
        print(f"| {r['work']} | {r['unit']} | {number(r['ours'])} | {number(r['peer'])} | {ratio} | {goals} |")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("works", nargs="*", metavar="WORK", help=f"what to measure, all without: {', '.join(WORKS)}")
    parser.add_argument("--peers", type=pathlib.Path, default="peers", help="where setup.sh made them (default: peers)")
    parser.add_argument("--socius", type=pathlib.Path, default=HERE.parent.parent / "target/release/socius")
    parser.add_argument("--rounds", type=int, default=3, help="interleaved rounds (default: 3)")
    parser.add_argument("--threads", type=int, default=2, help="of every program (default: 2)")
    parser.add_argument("--json", action="store_true", help="print one JSON object instead of the table")
    options = parser.parse_args()
    unknown = [name for name in options.works if name not in WORKS]
    if unknown or options.rounds < 1:
        parser.error(f"no such work: {', '.join(unknown)}; known: {', '.join(WORKS)}" if unknown else "--rounds is at least 1")
    machine, rows = Machine(options), []
    try:
        for name in options.works or WORKS:
            rows += [{"name": name, **found} for found in WORKS[name](machine)]
    except Missing as what:
        sys.exit(f"{what} is missing: cargo build --release makes it, or --socius names it")
    print(json.dumps({"threads": options.threads, "rounds": options.rounds, "rows": rows})) if options.json else table(rows)


if __name__ == "__main__":
    main()
