"""What registered adapters cost: the same load on a server that knows 5 and on one that knows 1,000, in turn; then spread evenly over
more and more of the 1,000 with memory for 64. Standard library only.

    python3 benches/adapters.py --binary target/release/socius --models ~/.local/share/socius/models
    python3 benches/adapters.py --many 200 --rounds 1 --requests 32         a quick look

Prints a line a measurement and then one JSON object. The folder of the many adapters (some 10 MB each) is kept with --home.
"""

import argparse
import json
import random
import statistics
import sys

import local
import serve

ACTIVE = 5
RESIDENT = 64


def arguments():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--binary", default="target/release/socius")
    parser.add_argument("--models", help="a home's folder of models, so that none is fetched")
    parser.add_argument("--home", help="where the many adapters are kept from one run to the next")
    parser.add_argument("--many", type=int, default=1000)
    parser.add_argument("--rank", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--streams", type=int, default=32)
    parser.add_argument("--requests", type=int, default=96, help="of a measurement")
    parser.add_argument("--tokens", type=int, default=64)
    parser.add_argument("--fill", action="store_true", help="only load the many adapters")
    return parser.parse_args()


def name(index):
    return f"a{index:04}"


def start(args, home=None):
    # In memory an adapter is f32, and bf16 once it has run.
    adapter_mib = -(-RESIDENT * local.parameters(args.rank) * 6 // (1 << 20))
    options = ["--parallel", args.streams, "--adapter-memory", adapter_mib]
    return local.Server(args.binary, options, args.models, home)


def fill(args, server, count):
    known = {skill["name"] for skill in server.ask("GET", "/v1/skills")["skills"]}
    for index in range(count):
        if name(index) not in known:
            server.load(name(index), args.rank, index)
        if (index + 1) % 100 == 0:
            print(f"{index + 1} adapters", file=sys.stderr, flush=True)


def measure(args, server, models, seed):
    load = serve.Load(server.url, args.streams, args.requests, 12, args.tokens, models=models, seed=seed)
    report = load.run()
    if report["errors"]:
        sys.exit(f"errors: {report['examples_of_errors']}")
    return report


def registered(args, few, many):
    """Tokens a second of the same few adapters, by how many are registered, round by round."""
    active = [name(index) for index in range(ACTIVE)]
    servers = {ACTIVE: few, args.many: many}
    for server in servers.values():
        measure(args, server, active, 1000)
    rates = {count: [] for count in servers}
    for round in range(args.rounds):
        # Whoever comes second must not have an advantage: the order turns.
        for count, server in sorted(servers.items(), reverse=round % 2 == 1):
            report = measure(args, server, active, round)
            rates[count].append(report["tokens_per_s"])
            print(f"{count} registered, {ACTIVE} active: {report['tokens_per_s']} tokens/s", flush=True)
    return rates


def spreads(args, many):
    """The same load spread evenly over more and more of the adapters."""
    for spread in [n for n in (ACTIVE, 16, 64, 96, 128, 256, 1000) if n <= args.many]:
        rng = random.Random(spread)
        models = [name(rng.randrange(spread)) for _ in range(args.requests)]
        report = measure(args, many, models, 3000 + spread)
        print(f"spread over {spread}: {report['tokens_per_s']} tokens/s, first token p95 {report['first_token_p95_s']} s", flush=True)
        yield {"spread": spread, **report}


def main():
    args = arguments()
    with start(args, args.home) as many:
        fill(args, many, args.many)
        if args.fill:
            sys.exit(many.end())
        with start(args) as few:
            fill(args, few, ACTIVE)
            rates = registered(args, few, many)
        curve = list(spreads(args, many))
        code = many.end()
    ratios = [after / before for before, after in zip(rates[ACTIVE], rates[args.many])]
    print(json.dumps({"rank": args.rank, "rates": rates, "median_ratio": statistics.median(ratios), "curve": curve, "exit": code}))


main()
