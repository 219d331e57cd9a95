"""The stock openai client, and vLLM's and llama-server's calls, against a running server: BASE_URL [ADAPTER] as arguments.

The adapter is a PEFT directory, by its path inside the server's folder of adapters. Exits with 0 if everything holds.
"""

import json
import sys
import urllib.error
import urllib.request

import openai
from openai import OpenAI

BASE = sys.argv[1]
ADAPTER = sys.argv[2] if len(sys.argv) > 2 else None
KEY = "secret"
client = OpenAI(base_url=f"{BASE}/v1", api_key=KEY, max_retries=0, timeout=300)
MODEL = client.models.list().data[0].id
ASK = [{"role": "user", "content": "What is the capital of France?"}]


def ask(**options):
    settings = dict(model=MODEL, messages=ASK, temperature=0, max_completion_tokens=12)
    return client.chat.completions.create(**{**settings, **options})


def raw(method, path, body=None):
    data = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(f"{BASE}{path}", data, method=method)
    request.add_header("Authorization", f"Bearer {KEY}")
    request.add_header("Content-Type", "application/json")
    try:
        with urllib.request.urlopen(request) as response:
            return response.status, response.read().decode()
    except urllib.error.HTTPError as error:
        return error.code, error.read().decode()


def refused(kind, param=None, **options):
    try:
        ask(**options)
    except kind as error:
        assert error.body["message"], error
        assert param is None or error.param == param, (error.param, param)
        return error
    raise AssertionError(f"{options} was not refused")


def chat():
    answer = ask()
    choice = answer.choices[0]
    assert "Paris" in choice.message.content, choice
    assert choice.message.role == "assistant" and choice.finish_reason in ("stop", "length")
    assert answer.object == "chat.completion" and answer.id.startswith("chatcmpl-")
    assert answer.model == MODEL and answer.skill is None and answer.generation is None
    usage = answer.usage
    assert usage.total_tokens == usage.prompt_tokens + usage.completion_tokens and usage.completion_tokens <= 12


def streaming():
    whole = ask().choices[0].message.content
    chunks = list(ask(stream=True, stream_options={"include_usage": True}))
    assert len({(chunk.id, chunk.created, chunk.object) for chunk in chunks}) == 1
    assert chunks[0].object == "chat.completion.chunk" and chunks[0].choices[0].delta.role == "assistant"
    *body, last = chunks
    assert last.choices == [] and last.usage.completion_tokens > 0
    assert all(chunk.usage is None and "usage" in chunk.model_fields_set for chunk in body)
    assert "".join(chunk.choices[0].delta.content or "" for chunk in body) == whole
    assert [c.choices[0].finish_reason for c in body if c.choices[0].finish_reason] == [ask().choices[0].finish_reason]
    assert all("usage" not in chunk.model_fields_set for chunk in ask(stream=True))


def sampling():
    drawn = dict(temperature=1.0, max_completion_tokens=8)
    same = [ask(seed=7, **drawn).choices[0].message.content for _ in range(2)]
    assert same[0] == same[1]
    three = ask(seed=7, n=3, **drawn)
    assert [choice.index for choice in three.choices] == [0, 1, 2] and three.choices[0].message.content == same[0]
    assert len({choice.message.content for choice in three.choices}) > 1
    text = ask().choices[0].message.content
    stop = text[5:9]
    assert ask(stop=[stop]).choices[0].message.content == text[: text.index(stop)]
    assert ask(extra_body={"ignore_eos": True}, max_completion_tokens=20).usage.completion_tokens == 20
    token = json.loads(raw("POST", "/tokenize", {"content": " Paris"})[1])["tokens"][0]
    assert "Paris" not in ask(logit_bias={str(token): -100}).choices[0].message.content


def logprobs():
    content = ask(logprobs=True, top_logprobs=3).choices[0].logprobs.content
    for entry in content:
        assert len(entry.top_logprobs) == 3 and entry.logprob <= 0
        assert entry.top_logprobs[0].token == entry.token, "greedy takes the most probable"
        assert abs(entry.top_logprobs[0].logprob - entry.logprob) < 1e-4
    assert b"".join(bytes(entry.bytes) for entry in content).decode(errors="ignore")
    assert ask().choices[0].logprobs is None


def structure():
    schema = {
        "type": "object",
        "properties": {"city": {"type": "string", "maxLength": 12}, "n": {"type": "integer", "minimum": 0, "maximum": 99}},
        "required": ["city", "n"],
        "additionalProperties": False,
    }
    form = {"type": "json_schema", "json_schema": {"name": "answer", "schema": schema, "strict": True}}
    for seed in range(3):
        text = ask(response_format=form, temperature=1.0, seed=seed, max_completion_tokens=60).choices[0].message.content
        value = json.loads(text)
        assert set(value) == {"city", "n"} and len(value["city"]) <= 12 and 0 <= value["n"] <= 99, text
    form = {"type": "regex", "regex": "(Paris|London), [0-9]{4}"}
    text = ask(extra_body={"response_format": form}).choices[0].message.content
    assert text[:-4] in ("Paris, ", "London, ") and text[-4:].isdigit(), text
    text = ask(extra_body={"response_format": {"type": "grammar", "grammar": 'start: "yes" | "no"'}})
    assert text.choices[0].message.content in ("yes", "no")


TOOLS = [
    {
        "type": "function",
        "function": {
            "name": "weather",
            "description": "The weather of a city",
            "parameters": {
                "type": "object",
                "properties": {"city": {"type": "string", "maxLength": 16}},
                "required": ["city"],
                "additionalProperties": False,
            },
        },
    }
]


def tools():
    named = {"type": "function", "function": {"name": "weather"}}
    for choice in ("required", named):
        answer = ask(tools=TOOLS, tool_choice=choice, max_completion_tokens=60).choices[0]
        call = answer.message.tool_calls[0]
        assert answer.finish_reason == "tool_calls" and call.function.name == "weather" and call.id
        assert set(json.loads(call.function.arguments)) == {"city"}
    deltas = [c.choices[0].delta for c in ask(tools=TOOLS, tool_choice="required", max_completion_tokens=60, stream=True)]
    streamed = [call for delta in deltas for call in delta.tool_calls or []]
    assert streamed[0].index == 0 and json.loads(streamed[0].function.arguments)
    follow = ASK + [answer.message, {"role": "tool", "tool_call_id": call.id, "content": "sunny"}]
    assert ask(messages=follow, tools=TOOLS, tool_choice="none").choices[0].message.content
    assert ask(tools=TOOLS).choices[0].finish_reason in ("stop", "length", "tool_calls")


def completions():
    answer = client.completions.create(model=MODEL, prompt="The capital of France is", max_tokens=4, temperature=0, logprobs=2)
    assert "Paris" in answer.choices[0].text and len(answer.choices[0].logprobs.tokens) == 4
    parts = client.completions.create(
        model=MODEL, prompt="The capital of France is", max_tokens=4, temperature=0, stream=True
    )
    assert "".join(part.choices[0].text for part in parts) == answer.choices[0].text


def embeddings():
    texts = ["a cat", "a kitten", "the stock market"]
    rows = [row.embedding for row in client.embeddings.create(model=MODEL, input=texts).data]
    numbers = [row.embedding for row in client.embeddings.create(model=MODEL, input=texts, encoding_format="float").data]
    assert all(abs(a - b) < 1e-6 for x, y in zip(rows, numbers) for a, b in zip(x, y))
    assert all(abs(sum(x * x for x in row) - 1) < 1e-4 for row in rows)


def errors():
    refused(openai.NotFoundError, "model", model="no-such-skill")
    refused(openai.BadRequestError, "temperature", temperature=9)
    refused(openai.BadRequestError, "messages", messages=[])
    refused(openai.BadRequestError, "n", n=0)
    refused(openai.BadRequestError, "audio", extra_body={"audio": {"voice": "x"}})
    refused(openai.BadRequestError, "top_logprobs", top_logprobs=2)
    refused(openai.BadRequestError, messages=[{"role": "user", "content": "word " * 9000}])
    refused(openai.BadRequestError, response_format={"type": "json_schema", "json_schema": {"name": "x", "schema": {"type": "nonsense"}}})
    try:
        OpenAI(base_url=f"{BASE}/v1", api_key="wrong", max_retries=0).models.list()
        raise AssertionError("a wrong key was taken")
    except openai.AuthenticationError:
        pass
    assert raw("GET", "/nothing")[0] == 404 and raw("GET", "/v1/completions")[0] == 405
    assert "error" in json.loads(raw("POST", "/v1/completions", ["x"])[1])


def llama_server():
    assert json.loads(raw("GET", "/health")[1]) == {"status": "ok"}
    props = json.loads(raw("GET", "/props")[1])
    assert props["default_generation_settings"]["n_ctx"] > 0 and props["chat_template"]
    ids = json.loads(raw("POST", "/tokenize", {"content": "Hello world"})[1])["tokens"]
    assert json.loads(raw("POST", "/detokenize", {"tokens": ids})[1])["content"] == "Hello world"
    prompt = json.loads(raw("POST", "/apply-template", {"messages": ASK})[1])["prompt"]
    assert ASK[0]["content"] in prompt
    assert "socius_first_token_seconds_count" in raw("GET", "/metrics")[1]
    document = json.loads(raw("GET", "/openapi.json")[1])
    assert document["openapi"].startswith("3.1") and "/v1/chat/completions" in document["paths"]


def adapters():
    load = {"lora_name": "guest", "lora_path": ADAPTER}
    assert raw("POST", "/v1/load_lora_adapter", load) == (200, "Success: LoRA adapter 'guest' added successfully.")
    assert raw("POST", "/v1/load_lora_adapter", load)[0] == 400
    assert raw("POST", "/v1/load_lora_adapter", {"lora_name": "x", "lora_path": "/etc"})[0] == 400
    card = next(card for card in client.models.list().data if card.id == "guest")
    assert card.parent == MODEL
    answer = ask(model="guest")
    assert (answer.model, answer.skill, answer.generation) == ("guest", "guest", card.root)
    assert ask(model=f"{MODEL}:guest").choices[0].message.content == answer.choices[0].message.content
    listed = json.loads(raw("GET", "/lora-adapters")[1])
    entry = next(entry for entry in listed if entry["path"] == "guest")
    assert raw("POST", "/lora-adapters", [{"id": entry["id"], "scale": 0.5}])[0] == 400
    assert raw("POST", "/lora-adapters", [{"id": entry["id"], "scale": 1.0}])[0] == 200
    assert ask().skill == "guest"
    assert raw("POST", "/lora-adapters", [])[0] == 200
    assert ask().skill is None
    assert raw("POST", "/v1/unload_lora_adapter", {"lora_name": "guest"})[0] == 200
    refused(openai.NotFoundError, "model", model="guest")


def experience():
    answer = ask()
    assert raw("POST", "/v1/feedback", {"id": answer.id, "reward": 1.0})[0] == 200
    assert raw("POST", "/v1/feedback", {"id": "nobody", "reward": 1.0})[0] == 404
    assert raw("POST", "/v1/feedback", {"id": answer.id, "reward": 2.0})[0] == 400
    assert raw("POST", "/v1/learn", {"env": "no-such-env"})[0] == 400
    assert json.loads(raw("GET", "/v1/learn")[1]) == {"jobs": []}
    assert json.loads(raw("POST", "/v1/route", {"prompt": "Hello"})[1])["choice"] is None


for check in (chat, streaming, sampling, logprobs, structure, tools, completions, embeddings, errors, llama_server, experience):
    check()
    print(check.__name__, "ok", flush=True)
if ADAPTER:
    adapters()
    print("adapters ok")
