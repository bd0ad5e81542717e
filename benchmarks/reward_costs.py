"""What each built-in rule costs: CPU time of a completion of 200 words, scored in this process.

    python benchmarks/reward_costs.py

Prints a Markdown table. The completion is prose with two sums, a tagged answer, and for the rewards that look for it a
block of JSON. Rewards that ask a model cost what that does, and benchmarks/sandbox.py measures what programs cost.
"""

import time
from collections.abc import Mapping, Sequence
from typing import Any

from outscore.records import Completion, Problem, Prompt, SampledCompletion, SampledGroup
from outscore.rewards import Rewards

SENTENCES = (
    "The hens lay twelve eggs on every day of the week. ",
    "We eat two of those eggs, so that ten eggs are left for the market. ",
    "At the market each egg is sold for three coins, and 10*3=30 coins come home. ",
    "Half of the coins buy corn for the hens, which is 30/2=15 coins. ",
    "Nobody has asked the hens what they think about the corn. ",
)
COUNT = 64

RULES: Sequence[str | Mapping[str, Any]] = (
    *("format_tags", "answer_exact", "answer_numeric", "last_number", "tag_answer", "multiple_choice", "answer_set"),
    *("answer_list", "json_format", "answer_follows", "equations_hold", "language_consistency", "coherence"),
    *("completeness", "fluency", "repetition", "degeneration", "reflection"),
    {"name": "soft_overlong", "max_length": 400, "cache": 100},
    {"name": "target_length", "target": 200, "within": 100},
    {"name": "math_verify", "isolate": False},  # its work; in its worker a call has the overhead of one, besides
)
"""What is measured; `gym` is not, because it is another scorer for each data set."""


def completion(words: int) -> str:
    """Different prose of so many words, then tags with an answer."""
    text = ""
    while len(text.split()) < words:
        text += SENTENCES[len(text.split()) % len(SENTENCES)].replace("hens", f"hens of farm {len(text.split())}")
    return f"<reasoning>\n{text}\n</reasoning>\n<answer>\n15\n</answer>\n"


def batch() -> SampledGroup:
    """Completions that all differ."""
    texts = [completion(200 + n % 3) + " " * n for n in range(COUNT)]
    drawn = tuple(
        SampledCompletion(
            completion=Completion(token_ids=tuple(range(300)), text=text, counts=(True,) * 300),
            sampler_logprobs=(-1.0,) * 300,
            finish="stop",
            policy_version=0,
        )
        for text in texts
    )

    problem = Problem(id="p/1", question="How many coins are left?", answer="15", columns={})
    return SampledGroup(
        prompt=Prompt(problem=problem, text="How many coins are left?", token_ids=(1,)),
        completions=drawn,
        slot=0,
        attempt=0,
    )


def main() -> None:
    """Measure and print."""
    group = batch()
    print("| reward | ms a completion | first call, s |\n|---|---|---|")
    for rule in RULES:
        rewards = Rewards([rule], on_failure="exclude")
        begun = time.process_time()
        rewards.score([group], step=1)
        first = time.process_time() - begun
        rounds = []
        for _ in range(5):
            begun = time.process_time()
            rewards.score([group], step=1)
            rounds.append(time.process_time() - begun)
        print(f"| `{rewards.names[0]}` | {1000 * min(rounds) / COUNT:.3f} | {first:.2f} |", flush=True)


if __name__ == "__main__":
    main()
