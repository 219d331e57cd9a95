"""What HTTP costs: 32 streams that decode through a server against as many rows of `socius bench decode`, in turn. Standard library only.

    python3 benches/overhead.py --binary target/release/socius --models ~/.local/share/socius/models

Prints a line a round and then one JSON object. The load generator has its part of the same processors.
"""

import argparse
import json
import os
import statistics
import subprocess

import local
import serve

# Words of a question, and what it comes to with its template.
WORDS, PROMPT = 24, 123


def arguments():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--binary", default="target/release/socius")
    parser.add_argument("--models", help="a home's folder of models, so that none is fetched")
    parser.add_argument("--weights", default="quantised")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--streams", type=int, default=32)
    parser.add_argument("--tokens", type=int, default=128, help="of an answer")
    return parser.parse_args()


def engine(args, home):
    """Tokens a second of the engine alone."""
    work = {"batch": args.streams, "prompt": PROMPT, "tokens": args.tokens, "weights": args.weights}
    options = [part for name, value in work.items() for part in (f"--{name}", str(value))]
    command = [args.binary, "bench", "decode", *options, "--json"]
    environment = {**os.environ, "SOCIUS_HOME": str(home)}
    done = subprocess.run(command, env=environment, check=True, capture_output=True, text=True)
    return json.loads(done.stdout.splitlines()[-1])["tokens_per_s"]


def main():
    args = arguments()
    with local.Server(args.binary, ["--parallel", args.streams, "--weights", args.weights], args.models) as server:
        rounds = measure(args, server)
        code = server.end()
    ratio = statistics.median(one["http"] / one["engine"] for one in rounds)
    print(json.dumps({"rounds": rounds, "median_ratio": round(ratio, 3), "exit": code}))


def measure(args, server):
    rounds = []
    for seed in range(args.rounds + 1):
        load = serve.Load(server.url, args.streams, args.streams, WORDS, args.tokens, seed=seed)
        report = load.run()
        if report["errors"]:
            raise SystemExit(f"errors: {report['examples_of_errors']}")
        alone = engine(args, server.home)
        # The first round warms up.
        if seed > 0:
            rounds.append({"http": report["decode_tokens_per_s"], "engine": alone})
            print(f"HTTP {rounds[-1]['http']}, engine {alone:.1f} tokens/s", flush=True)
    return rounds


main()
