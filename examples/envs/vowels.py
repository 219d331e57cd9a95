"""How many vowels has a word? socius learn --env-command 'python3 examples/envs/vowels.py'   (docs/environments.md)"""
import json, random, re, sys

WORDINGS = ["How many vowels has {}?", "Count the vowels of {}.", "Vowels in {}:", "Give the number of vowels in {}.",
            "{} has how many vowels?"]  # the last one is held out for the test split

def hello(ask):
    return {"socius": 1, "name": "vowels", "version": "1", "description": "Counts the vowels of an invented word.",
            "levels": [{"description": f"{n} letters", "reply_tokens_max": 6} for n in (4, 6, 8)],
            "wordings": 4, "held_out_wordings": 1}

def item(ask):
    draw = random.Random(ask["seed"])
    letters = (draw.choice(draw.choice(["aeiou", "bdfgklmnprst"])) for _ in range(2 + 2 * ask["level"]))
    return {"content": {"word": "".join(letters)}}

def play(ask):
    word = ask["content"]["word"]
    right = str(sum(letter in "aeiou" for letter in word))
    if not ask["replies"]:
        return {"messages": [{"role": "user", "content": WORDINGS[ask["wording"]].format(word)}], "teacher": right}
    reply = ask["replies"][-1].strip()
    first = re.search(r"\d+", reply)
    return {"reward": float(reply == right), "strict": reply == right, "feedback": right,
            "lenient": first is not None and first.group() == right}

for line in sys.stdin:
    ask = json.loads(line)
    print(json.dumps({"id": ask["id"], **globals()[ask["type"]](ask)}), flush=True)
