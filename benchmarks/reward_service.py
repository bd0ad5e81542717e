"""What it costs to run a reward in a worker process: seconds per completion for a reward that does next to nothing.

    python benchmarks/reward_service.py

Prints a Markdown table: the same completions scored in this process, in a worker as one batch, and one at a time.
Medians of several rounds; the first, in which workers start, is not counted and stands below the table.
"""

import argparse
import statistics
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from outscore.records import Completion, Problem, Prompt, SampledCompletion, SampledGroup
from outscore.rewards import Rewards

REWARD = """
def trivial(completions, answer, **columns):
    return [float(gold in text) for text, gold in zip(completions, answer)]


async def trivial_async(completions, answer, **columns):
    return trivial(completions, answer)


def crash(completions):
    import os
    os._exit(1)
"""

WAYS: Mapping[str, Mapping[str, Any]] = {
    "in process": {"name": "trivial", "isolate": False},
    "worker, whole batch": {"name": "trivial"},
    "one worker, one at a time": {"name": "trivial", "batched": False, "limits": {"workers": 1}},
    "two workers, one at a time": {"name": "trivial", "batched": False, "limits": {"workers": 2}},
    "one worker, asynchronous, one at a time": {"name": "trivial_async", "batched": False, "limits": {"workers": 1}},
}
"""What the row is called -> how the reward runs."""


def groups(num_groups: int, size: int, num_tokens: int) -> list[SampledGroup]:
    """Groups of completions of so many tokens, as a step would have them."""
    text = "word " * num_tokens
    drawn = SampledCompletion(
        completion=Completion(token_ids=tuple(range(num_tokens)), text=text, counts=(True,) * num_tokens),
        sampler_logprobs=(-1.0,) * num_tokens,
        finish="stop",
        policy_version=0,
    )
    made = []
    for slot in range(num_groups):
        problem = Problem(id=f"p/{slot}", question="What is it?", answer="word", columns={"level": slot})
        prompt = Prompt(problem=problem, text="What is it?", token_ids=(1, 2, 3))
        made.append(SampledGroup(prompt=prompt, completions=(drawn,) * size, slot=slot, attempt=0))
    return made


def seconds(rewards: Rewards, sampled: list[SampledGroup]) -> float:
    """Seconds of one scoring."""
    begun = time.perf_counter()
    rewards.score(sampled, step=1)
    return time.perf_counter() - begun


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--groups", type=int, default=32)
    parser.add_argument("--size", type=int, default=8)
    parser.add_argument("--tokens", type=int, default=200)
    parser.add_argument("--rounds", type=int, default=15)
    given = parser.parse_args()
    sampled = groups(given.groups, given.size, given.tokens)
    count = given.groups * given.size
    print(f"{count} completions of {given.tokens} tokens, median and worst of {given.rounds} rounds\n")
    print("| | ms per completion | worst round | completions per second |\n|---|---|---|---|")
    starts = []
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "trivial.py").write_text(REWARD)
        for way, spec in WAYS.items():
            rewards = Rewards([{**spec, "name": f"trivial.py:{spec['name']}"}], folder=Path(folder), scoring={})
            first = seconds(rewards, sampled)
            found = [seconds(rewards, sampled) for _ in range(given.rounds)]
            rewards.close()
            middle = statistics.median(found)
            print(f"| {way} | {1000 * middle / count:.3f} | {1000 * max(found) / count:.3f} | {count / middle:,.0f} |")
            if way.startswith("worker"):
                starts.append(first - middle)
        crash = {"name": "trivial.py:crash", "batched": False, "limits": {"workers": 1}}
        rewards = Rewards([crash], folder=Path(folder), scoring={}, on_failure="exclude")
        seconds(rewards, sampled[:1])
        lost = statistics.median(seconds(rewards, sampled[:1]) / given.size for _ in range(3))
        rewards.close()
    print(f"\nA worker starts in {starts[0]:.2f} s. A completion that ends its worker costs {lost:.2f} s.")


if __name__ == "__main__":
    main()
