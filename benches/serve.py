"""Load on an OpenAI-compatible server: streams at a time, tokens a second, time to the first token. Standard library only.

    python3 benches/serve.py http://127.0.0.1:8080 --streams 32 --requests 128 --tokens 64
    python3 benches/serve.py http://127.0.0.1:8080 --models reverse,cipher,json    spread over skills
    python3 benches/serve.py http://127.0.0.1:8081                                 llama-server, the same load

Prints one JSON object. Tokens are those that the server's usage counts.
"""

import argparse
import http.client
import json
import queue
import statistics
import threading
import time
import urllib.parse


def arguments():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("url")
    parser.add_argument("--streams", type=int, default=32, help="requests at a time")
    parser.add_argument("--requests", type=int, default=128, help="requests in all")
    parser.add_argument("--seconds", type=float, help="for so long instead")
    parser.add_argument("--prompt", type=int, default=128, help="words of a prompt")
    parser.add_argument("--tokens", type=int, default=64, help="tokens of an answer")
    parser.add_argument("--models", default="", help="names by commas, taken in turn; the server's first without")
    parser.add_argument("--key", default="")
    return parser.parse_args()


class Load:
    def __init__(self, args):
        self.args, self.place = args, urllib.parse.urlparse(args.url)
        self.lock, self.first, self.whole = threading.Lock(), [], []
        self.prompt_tokens = self.tokens = self.errors = 0
        self.headers = {"Content-Type": "application/json", "Authorization": f"Bearer {args.key}"}
        self.models = [name for name in args.models.split(",") if name] or [self.default_model()]

    def connect(self):
        return http.client.HTTPConnection(self.place.hostname, self.place.port, timeout=600)

    def default_model(self):
        connection = self.connect()
        connection.request("GET", "/v1/models", headers=self.headers)
        return json.load(connection.getresponse())["data"][0]["id"]

    def ask(self, number):
        """One streamed answer."""
        words = " ".join(f"w{(number * 7919 + i * 104729) % 1000}" for i in range(self.args.prompt))
        model = self.models[number % len(self.models)]
        body = {
            "model": model,
            "messages": [{"role": "user", "content": words}],
            "max_tokens": self.args.tokens,
            "temperature": 1.0,
            "seed": number,
            "stream": True,
            "stream_options": {"include_usage": True},
        }
        start, first, usage = time.perf_counter(), None, None
        connection = self.connect()
        connection.request("POST", "/v1/chat/completions", json.dumps(body), self.headers)
        response = connection.getresponse()
        if response.status != 200:
            raise RuntimeError(f"{response.status}: {response.read(500)!r}")
        for line in response:
            if not line.startswith(b"data: {"):
                continue
            chunk = json.loads(line[6:])
            if "error" in chunk:
                raise RuntimeError(chunk["error"]["message"])
            if first is None and any(choice["delta"].get("content") for choice in chunk["choices"]):
                first = time.perf_counter() - start
            usage = chunk.get("usage") or usage
        connection.close()
        with self.lock:
            self.first.append(first if first is not None else time.perf_counter() - start)
            self.whole.append(time.perf_counter() - start)
            self.prompt_tokens += usage["prompt_tokens"]
            self.tokens += usage["completion_tokens"]

    def run(self):
        numbers, start = queue.Queue(), time.perf_counter()
        count = self.args.requests if self.args.seconds is None else 10**9
        until = start + (self.args.seconds or 10**9)
        counter = iter(range(count))

        def work():
            while time.perf_counter() < until:
                with self.lock:
                    number = next(counter, None)
                if number is None:
                    return
                try:
                    self.ask(number)
                except Exception as error:  # any failure of the server counts
                    with self.lock:
                        self.errors += 1
                        numbers.put(str(error))

        threads = [threading.Thread(target=work) for _ in range(self.args.streams)]
        [thread.start() for thread in threads]
        [thread.join() for thread in threads]
        return time.perf_counter() - start, list(numbers.queue)[:3]


def main():
    load = Load(arguments())
    seconds, errors = load.run()
    quantile = lambda values, q: sorted(values)[min(len(values) - 1, int(q * len(values)))] if values else None
    print(
        json.dumps(
            {
                "streams": load.args.streams,
                "requests": len(load.whole),
                "errors": load.errors,
                "examples_of_errors": errors,
                "seconds": round(seconds, 3),
                "tokens_per_s": round(load.tokens / seconds, 1),
                "total_tokens_per_s": round((load.tokens + load.prompt_tokens) / seconds, 1),
                "first_token_p50_s": quantile(load.first, 0.5),
                "first_token_p95_s": quantile(load.first, 0.95),
                "request_mean_s": statistics.fmean(load.whole) if load.whole else None,
            }
        )
    )


main()
