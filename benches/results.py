#!/usr/bin/env python3
"""Runs the learning experiments of docs/results.md and prints their tables.

    python3 benches/results.py run [NAME …]     runs what results.jsonl lacks (one line a finished run; resumable)
    python3 benches/results.py table            the tables, as Markdown

Uses target/release/socius and an own SOCIUS_HOME (default target/results-home)."""
import json, os, statistics, subprocess, sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
RECORD = ROOT / "docs" / "results.jsonl"
HOME = Path(os.environ.get("SOCIUS_HOME", ROOT / "target" / "results-home"))
SEEDS = range(5)
EXPERIMENTS = {  # name: (arguments of `socius learn`, what the row must show)
    "reverse": ("reverse --learner sft", "≤ 5 % → ≥ 80 %, every seed"),
    "json": ("json --learner rloo", "+60 points on held-out wordings"),
    "compare": ("compare --learner rloo", "median ≥ 70 %"),
    "cipher": ("cipher", "≥ 90 % on the held-out wording"),
    "secret-rule": ("secret-rule", "≥ 90 % on held-out wordings"),
    "phonebook": ("phonebook", "≥ 85 % on the held-out wording"),
}


def command(arguments, seed):
    return f"socius learn {arguments} --seed {seed} --json"


def finished():
    return [json.loads(line) for line in RECORD.read_text().splitlines()] if RECORD.exists() else []


def run(names):
    done = {row["command"] for row in finished()}
    for name in names or EXPERIMENTS:
        for seed in SEEDS:
            line = command(EXPERIMENTS[name][0], seed)
            if line in done:
                continue
            words = line.split()[1:] + ["--name", f"{name}-{seed}"]
            print("$", line, file=sys.stderr, flush=True)
            environment = {**os.environ, "SOCIUS_HOME": str(HOME)}
            output = subprocess.run([ROOT / "target/release/socius", *words], env=environment, stdout=subprocess.PIPE, text=True)
            if output.returncode:
                sys.exit(f"{line}: exit code {output.returncode}")
            result = json.loads(output.stdout.splitlines()[-1])
            with RECORD.open("a") as file:
                file.write(json.dumps({"experiment": name, "command": line, **result}) + "\n")


def percent(x):
    return f"{100 * x:.1f}"


def table():
    rows = finished()
    for name, (arguments, goal) in EXPERIMENTS.items():
        mine = sorted((row for row in rows if row["experiment"] == name), key=lambda row: row["seed"])
        if not mine:
            continue
        print(f"### {name}\n\n`{command(arguments, 'S')}`{' · to show: ' + goal if goal else ''}\n")
        print("| seed | learner | strict before | strict after (95 %) | held-out wordings | lenient after | steps | tokens sampled / trained | seconds | admitted |")
        print("|---|---|---|---|---|---|---|---|---|---|")
        for row in mine:
            before, after = row["before"], row["after"]
            low, high = after["ci95"]
            held = "–"
            if row["held_out"]:
                before_held, after_held = row["held_out"]["before"], row["held_out"]["after"]
                held = f"{percent(before_held['strict'])} → {percent(after_held['strict'])} ({'–'.join(map(percent, after_held['ci95']))}, n = {after_held['items']})"
            print(f"| {row['seed']} | {row['learner']} | {percent(before['strict'])} | {percent(after['strict'])} ({percent(low)}–{percent(high)}, n = {after['items']}) "
                  f"| {held} | {percent(after['lenient'])} | {row['steps']} | {row['sampled_tokens']} / {row['trained_tokens']} | {row['seconds']:.0f} | {'yes' if row['admitted'] else 'no'} |")
        median = statistics.median(row["after"]["strict"] for row in mine)
        print(f"\nMedian after: {percent(median)} %.\n")
        forms = sorted({form for row in mine for form in row["apart"]})
        if forms:
            print("By question form, strict after (median of seeds): " + ", ".join(
                f"{form} {percent(statistics.median(row['apart'][form]['after']['strict'] for row in mine))} %" for form in forms) + ".\n")


if __name__ == "__main__":
    if sys.argv[1:2] == ["run"]:
        run(sys.argv[2:])
    elif sys.argv[1:] == ["table"]:
        table()
    else:
        sys.exit(__doc__)
