"""`outscore init`: a working project to start from, small enough to read in a minute."""

import json
import random
from collections.abc import Sequence
from pathlib import Path

RECIPE = """\
# outscore train recipe.yaml
#
# Trains a model on your data with your reward. Try `outscore check recipe.yaml` first. As it stands it builds a small
# model from scratch, learns from the responses in data.jsonl, and goes on by GRPO with my_reward.py, all in about a
# minute. For a real model: model.source=<directory or hub id>, and take the sft stage out or keep it.
name: my-run
seed: 0
model:
  source: tiny
task:
  kind: data
  path: data.jsonl
  question: question
  answer: answer
  demonstration: response
rewards:
  - my_reward.py:right
stages:
  - algorithm: sft
    steps: 60
    batch_size: 16
    optimizer: {lr: 2.0e-3, warmup_steps: 5}
  - algorithm: grpo
    steps: 20
    prompts_per_step: 16
    group_size: 8
    sampling: {max_new_tokens: 8, max_rows: 128}
    optimizer: {lr: 2.0e-4}
    cells: {kl_coef: 0.0}
evaluation:
  problems: 40
  samples: 4
"""

REWARD = '''\
"""A reward is a plain function: completions in, one number for each out. Every column of the data comes by its name."""


def right(completions, answer, **columns):
    """1 where the completion is the gold answer, a little for being a number at all."""
    scores = []
    for text, gold in zip(completions, answer):
        if text.strip() == gold:
            scores.append(1.0)
        else:
            scores.append(0.1 if text.strip().isdigit() else 0.0)
    return scores
'''


def scaffold(directory: str | Path) -> Sequence[str]:
    """Write recipe.yaml, data.jsonl and my_reward.py; returns lines that say what to do next.

    Raises:
        ValueError: if the directory exists and holds something.
    """
    path = Path(directory)
    if path.exists() and (not path.is_dir() or any(path.iterdir())):
        raise ValueError(f"{path} already exists and is not overwritten: name a new directory")
    path.mkdir(parents=True, exist_ok=True)
    (path / "recipe.yaml").write_text(RECIPE, encoding="utf-8")
    (path / "my_reward.py").write_text(REWARD, encoding="utf-8")
    rows = (json.dumps(row) for row in _sums())
    (path / "data.jsonl").write_text("\n".join(rows) + "\n", encoding="utf-8")
    return (
        f"{path}/recipe.yaml    what to do",
        f"{path}/data.jsonl     400 small sums; put your own questions and answers there",
        f"{path}/my_reward.py   what a good completion is",
        f"next: cd {path} && outscore check recipe.yaml && outscore train recipe.yaml",
    )


def _sums() -> list[dict[str, str]]:
    pairs = [(a, b) for a in range(20) for b in range(20)]
    random.Random(0).shuffle(pairs)
    return [{"question": f"{a}+{b}=", "answer": str(a + b), "response": str(a + b)} for a, b in pairs]
