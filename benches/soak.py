"""Everything at once for a while: streams that each ask for an adapter of their own, adapters that get new generations meanwhile, and
learners that train and publish over some of the same names. Standard library only.

    python3 benches/soak.py --binary target/release/socius --models ~/.local/share/socius/models
    python3 benches/soak.py --seconds 60 --streams 8                         a quick look

What must hold: no request fails; each answer's generation was current when it began; the server's memory is flat after the warm-up; it
ends cleanly. Prints a line every ten seconds and then one JSON object; exits with 1 if something did not hold.
"""

import argparse
import json
import random
import sys
import threading
import time

import local
import serve

GROWTH_MAX = 0.05
COLOURS = ["blue", "green", "red", "yellow", "white", "black", "grey", "brown"]


def arguments():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--binary", default="target/release/socius")
    parser.add_argument("--models", help="a home's folder of models, so that none is fetched")
    parser.add_argument("--seconds", type=float, default=600)
    parser.add_argument("--warmup", type=float, default=0.25, help="fraction of the time after which memory must be flat")
    parser.add_argument("--streams", type=int, default=64, help="streams, and adapters")
    parser.add_argument("--learners", type=int, default=4)
    parser.add_argument("--rank", type=int, default=8)
    parser.add_argument("--tokens", type=int, default=32)
    parser.add_argument("--reload", type=float, default=5.0, help="seconds between new generations of some adapter")
    return parser.parse_args()


class Soak:
    def __init__(self, args):
        self.args, self.over = args, threading.Event()
        # Room for what is current and some more: replaced generations stay until room is needed, so memory is flat only once it is full.
        adapters_mib = -(-(args.streams + 16) * local.parameters(args.rank) * 6 // (1 << 20))
        options = ["--parallel", args.streams, "--learners", args.learners, "--adapter-memory", adapters_mib]
        self.server = local.Server(args.binary, options, args.models)
        self.lock, self.problems, self.memory, self.first = threading.Lock(), [], [], []
        self.answers = self.tokens = self.reloads = self.moved = 0
        self.jobs = {}
        self.names = [f"a{index:02}" for index in range(args.streams)]
        for index, name in enumerate(self.names):
            self.server.load(name, args.rank, index)

    def problem(self, what):
        with self.lock:
            self.problems.append(what)
        print(f"PROBLEM: {what}", flush=True)

    def current(self, name):
        return self.server.ask("GET", f"/v1/models/{name}")["root"]

    def stream(self, index):
        """Asks under one adapter, over and over."""
        name, turn = self.names[index], 0
        while not self.over.is_set():
            turn += 1
            try:
                self.ask(name, 1000 * index + turn)
            except Exception as error:
                self.problem(f"{name}: {error!r}")
                time.sleep(1)

    def ask(self, name, salt):
        before, start = self.current(name), time.perf_counter()
        body = {
            "model": name,
            "messages": [{"role": "user", "content": serve.words(salt, 12)}],
            "max_tokens": self.args.tokens,
            "seed": salt,
            "stream": True,
            "stream_options": {"include_usage": True},
        }
        connection = self.server.connect()
        connection.request("POST", "/v1/chat/completions", json.dumps(body), {"Content-Type": "application/json"})
        response = connection.getresponse()
        if response.status != 200:
            raise RuntimeError(f"{response.status}: {response.read(500)!r}")
        generations, after, first, done, usage = set(), None, None, False, None
        for line in response:
            if line.startswith(b"data: {"):
                chunk = json.loads(line[6:])
                if "error" in chunk:
                    raise RuntimeError(chunk["error"]["message"])
                if after is None:
                    after = self.current(name)
                if first is None and any(choice["delta"].get("content") for choice in chunk["choices"]):
                    first = time.perf_counter() - start
                generations.add(chunk["generation"])
                usage = chunk["usage"] or usage
            done = done or line.startswith(b"data: [DONE]")
        connection.close()
        if not done or usage is None:
            raise RuntimeError("the stream broke off")
        # It began somewhere between the two looks, and ended under what it began with.
        if len(generations) != 1 or not generations <= {before, after}:
            self.problem(f"{name}: answered under {generations}, current were {before} and {after}")
        with self.lock:
            self.answers += 1
            self.tokens += usage["completion_tokens"]
            self.first += [first] if first is not None else []
            self.moved += before != after

    def reload(self):
        """Gives one adapter after another a new generation."""
        rng, seed = random.Random(0), 10_000
        while not self.over.wait(self.args.reload):
            seed += 1
            try:
                self.server.load(rng.choice(self.names), self.args.rank, seed, inplace=True)
                self.reloads += 1
            except Exception as error:
                self.problem(f"reload: {error!r}")

    def learn(self, index):
        """Learns constant answers, again and again, over the name of one of the streams: each success is served from then on."""
        name, turn = self.names[index], 0
        while not self.over.is_set():
            turn += 1
            colour = COLOURS[(index + turn) % len(COLOURS)]
            examples = [{"prompt": f"Which colour has door {door} of house {turn}?", "completion": colour} for door in range(12)]
            body = {"name": name, "examples": examples, "learner": "sft", "steps": 12, "rank": self.args.rank, "seed": turn}
            try:
                job = self.server.ask("POST", "/v1/learn", body)
                while not job["status"] in ("admitted", "refused", "failed", "cancelled"):
                    if self.over.wait(1):
                        return
                    job = self.server.ask("GET", f"/v1/learn/{job['id']}")
                with self.lock:
                    self.jobs[job["status"]] = self.jobs.get(job["status"], 0) + 1
                if job["status"] == "failed":
                    self.problem(f"learner {name}: {job['error']}")
            except Exception as error:
                self.problem(f"learner {name}: {error!r}")
                time.sleep(1)

    def run(self):
        threads = [threading.Thread(target=self.stream, args=[index]) for index in range(self.args.streams)]
        threads += [threading.Thread(target=self.learn, args=[index]) for index in range(self.args.learners)]
        threads.append(threading.Thread(target=self.reload))
        start = time.perf_counter()
        [thread.start() for thread in threads]
        while (elapsed := time.perf_counter() - start) < self.args.seconds:
            time.sleep(min(10, self.args.seconds - elapsed))
            elapsed = time.perf_counter() - start
            self.memory.append((round(elapsed), round(self.server.resident_mb())))
            with self.lock:
                print(
                    f"{elapsed:4.0f} s: {self.answers} answers, {self.tokens / elapsed:.0f} tokens/s, {self.memory[-1][1]} MB, "
                    f"{self.reloads} reloads, jobs {self.jobs}, problems {len(self.problems)}",
                    flush=True,
                )
        learning = sum(job["status"] == "running" for job in self.server.ask("GET", "/v1/learn")["jobs"])
        self.over.set()
        [thread.join() for thread in threads]
        return elapsed, learning

    def report(self):
        seconds, learning = self.run()
        code = self.server.end()
        if code != 0:
            self.problem(f"the server ended with {code}")
        warm = [mb for at, mb in self.memory if at >= self.args.warmup * seconds]
        # Halves, so that no single look decides.
        middle = len(warm) // 2
        early, late = max(warm[:middle], default=0), max(warm[middle:], default=0)
        if early and late > early * (1 + GROWTH_MAX):
            self.problem(f"memory grew from {early} to {late} MB")
        first = sorted(self.first)
        print(
            json.dumps(
                {
                    "seconds": round(seconds),
                    "streams": self.args.streams,
                    "answers": self.answers,
                    "tokens_per_s": round(self.tokens / seconds, 1),
                    "first_token_p50_s": round(first[len(first) // 2], 2) if first else None,
                    "first_token_p95_s": round(first[int(len(first) * 0.95)], 2) if first else None,
                    "reloads": self.reloads,
                    "answers_across_a_change": self.moved,
                    "jobs": self.jobs,
                    "learners_at_the_end": learning,
                    "memory_mb": self.memory,
                    "memory_early_late_mb": [early, late],
                    "exit": code,
                    "problems": self.problems[:20],
                }
            )
        )
        return 1 if self.problems else 0


sys.exit(Soak(arguments()).report())
