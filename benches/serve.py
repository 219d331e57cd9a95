"""Load on an OpenAI-compatible server: streams at a time, tokens a second, time to the first token. Standard library only.

    python3 benches/serve.py http://127.0.0.1:8080 --streams 32 --requests 128 --tokens 64
    python3 benches/serve.py http://127.0.0.1:8080 --streams 32 --requests 32 --tokens 256    one wave: decoding by itself
    python3 benches/serve.py http://127.0.0.1:8080 --models reverse,cipher,json               spread over skills
    python3 benches/serve.py http://127.0.0.1:8081                                            llama-server, the same load

Prints one JSON object. Tokens are those that the server's usage counts; every answer has all of them (`ignore_eos`). Where each stream
asks once, `decode_tokens_per_s` is the rate between the last first token and the first end, while nothing else runs. One thread
reads all streams: a thread for each took a fortieth of two processors from the server, and its locks more.
"""

import argparse
import http.client
import itertools
import json
import selectors
import socket
import statistics
import time
import urllib.parse


def arguments():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("url")
    parser.add_argument("--streams", type=int, default=32, help="requests at a time")
    parser.add_argument("--requests", type=int, default=128, help="requests in all")
    parser.add_argument("--seconds", type=float, help="for so long instead")
    parser.add_argument("--prompt", type=int, default=24, help="words of a prompt, some four tokens each")
    parser.add_argument("--tokens", type=int, default=64, help="tokens of an answer")
    parser.add_argument("--temperature", type=float, default=1.0)
    parser.add_argument("--models", default="", help="names by commas, taken in turn; the server's first without")
    parser.add_argument("--seed", type=int, default=0, help="another one asks other prompts")
    parser.add_argument("--key", default="")
    return parser.parse_args()


class Answer:
    """An answer that is on its way: when it was asked for, when each piece came, and the usage."""

    def __init__(self, start):
        self.start, self.end, self.pieces, self.usage, self.rest, self.accepted = start, None, [], None, b"", False

    def hears(self, data):
        """Takes what came; whether there is more to come. Events are looked at, not parsed: the load must not take the processors
        from what it measures."""
        now = time.perf_counter()
        if not data:
            self.end = now
            if self.usage is None:
                raise RuntimeError(f"the stream ended without its usage: {self.rest[-500:]!r}")
            return False
        *lines, self.rest = (self.rest + data).split(b"\n")
        for line in lines:
            if not self.accepted:
                if b" 200 " not in line:
                    raise RuntimeError(f"{line!r} {data[-500:]!r}")
                self.accepted = True
            if b'"content":"' in line and b'"content":""' not in line:
                self.pieces.append(now)
            elif b'"error":' in line:
                raise RuntimeError(repr(line))
            if b'"usage":{' in line:
                self.usage = json.loads(line[line.index(b"{") :])["usage"]
        return True


class Load:
    """Streamed answers, as many at a time as there are streams."""

    def __init__(self, url, streams, requests, prompt, tokens, temperature=1.0, models=(), seed=0, key="", seconds=None):
        self.place, self.streams, self.requests, self.seconds = urllib.parse.urlparse(url), streams, requests, seconds
        self.prompt, self.tokens, self.temperature, self.seed = prompt, tokens, temperature, seed
        self.headers = {"Content-Type": "application/json", "Authorization": f"Bearer {key}"}
        self.models = list(models) or [self.default_model()]
        self.answers, self.errors = [], []

    def connect(self):
        return http.client.HTTPConnection(self.place.hostname, self.place.port, timeout=600)

    def default_model(self):
        connection = self.connect()
        connection.request("GET", "/v1/models", headers=self.headers)
        return json.load(connection.getresponse())["data"][0]["id"]

    def body(self, number):
        salt = number + 100_003 * self.seed
        return {
            "model": self.models[number % len(self.models)],
            "messages": [{"role": "user", "content": words(salt, self.prompt)}],
            "max_tokens": self.tokens,
            "temperature": self.temperature,
            "seed": salt,
            "stream": True,
            "stream_options": {"include_usage": True},
            "ignore_eos": True,
        }

    def ask(self, number, watched):
        """Sends a request on a connection of its own."""
        body = json.dumps(self.body(number))
        fields = {**self.headers, "Host": self.place.netloc, "Content-Length": len(body), "Connection": "close"}
        head = "".join(f"{name}: {value}\r\n" for name, value in fields.items())
        start = time.perf_counter()
        connection = socket.create_connection((self.place.hostname, self.place.port), timeout=60)
        connection.sendall(f"POST /v1/chat/completions HTTP/1.1\r\n{head}\r\n{body}".encode())
        connection.setblocking(False)
        watched.register(connection, selectors.EVENT_READ, Answer(start))

    def run(self):
        start = time.perf_counter()
        numbers = iter(range(self.requests)) if self.seconds is None else itertools.count()
        until = start + (self.seconds or 1e9)
        with selectors.DefaultSelector() as watched:

            def begin():
                if time.perf_counter() >= until or (number := next(numbers, None)) is None:
                    return
                try:
                    self.ask(number, watched)
                except OSError as error:  # any failure of the server counts
                    self.errors.append(str(error))

            for _ in range(self.streams):
                begin()
            while watched.get_map():
                ready = watched.select(timeout=600)
                if not ready:
                    raise SystemExit("no stream has said anything for ten minutes")
                for key, _ in ready:
                    answer = key.data
                    try:
                        if answer.hears(key.fileobj.recv(1 << 16)):
                            continue
                        self.answers.append((answer.start, answer.pieces or [answer.end], answer.end, answer.usage))
                    except (RuntimeError, OSError) as error:
                        self.errors.append(str(error))
                    watched.unregister(key.fileobj)
                    key.fileobj.close()
                    begin()
        return self.report(time.perf_counter() - start)

    def report(self, seconds):
        first = sorted(pieces[0] - start for start, pieces, _, _ in self.answers)
        drawn = sum(usage["completion_tokens"] for *_, usage in self.answers)
        read = sum(usage["prompt_tokens"] for *_, usage in self.answers)
        quantile = lambda q: round(first[min(len(first) - 1, int(q * len(first)))], 3) if first else None
        report = {
            "streams": self.streams,
            "requests": len(self.answers),
            "errors": len(self.errors),
            "examples_of_errors": self.errors[:3],
            "seconds": round(seconds, 3),
            "prompt_tokens": read,
            "tokens_per_s": round(drawn / seconds, 1),
            "total_tokens_per_s": round((drawn + read) / seconds, 1),
            "first_token_p50_s": quantile(0.5),
            "first_token_p95_s": quantile(0.95),
            "request_mean_s": round(statistics.fmean(end - start for start, _, end, _ in self.answers), 3)
            if self.answers
            else None,
        }
        if len(self.answers) == self.streams:
            report["decode_tokens_per_s"] = self.decode_rate()
        return report

    def decode_rate(self):
        """Tokens a second while every stream decodes: a piece may hold several tokens, so each counts for its answer's mean."""
        begin = max(pieces[0] for _, pieces, _, _ in self.answers)
        end = min(pieces[-1] for _, pieces, _, _ in self.answers)
        if end <= begin:
            return None
        inside = lambda pieces: sum(begin < at <= end for at in pieces)
        drawn = sum(inside(pieces) * usage["completion_tokens"] / len(pieces) for _, pieces, _, usage in self.answers)
        return round(drawn / (end - begin), 1)


def words(salt, count):
    return " ".join(f"w{(salt * 7919 + i * 104729) % 1000}" for i in range(count))


def main():
    options = vars(arguments())
    options["models"] = [name for name in options["models"].split(",") if name]
    print(json.dumps(Load(**options).run()))


if __name__ == "__main__":
    main()
