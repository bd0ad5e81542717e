"""Predicted against measured memory: python benchmarks/memory.py [--models llama-512 llama-768 DIRECTORY].

Each case is a real run of two steps, with an evaluation and a checkpoint, in a process of its own, which first counts
what `outscore plan` would (nothing but shapes is loaded), and then measures the most it holds in each phase: the peak
resident set of Linux, which is set back between phases. Both stand without what the process held before it had a model.
A case's completions never stop before their limit, as the plan assumes.

Two allocators: `mapped` maps every tensor of 64 KiB or more by itself, so that what is resident is what is alive;
`default` is glibc as it comes, which keeps freed memory and has holes in it. Prints a table and writes JSON, to which a
later call adds its cases.
"""

import argparse
import json
import os
import random
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from transformers import LlamaConfig, LlamaForCausalLM

LETTERS = "abcdefghijklmnopqrstuvwxyz "
SIZES = {
    "llama-512": {"hidden_size": 512, "num_layers": 8, "num_heads": 8, "intermediate_size": 1536},
    "llama-768": {"hidden_size": 768, "num_layers": 12, "num_heads": 12, "intermediate_size": 2048},
}
"""Models with random weights and a vocabulary of letters."""
CASES = ("ppo", "grpo-reward-model", "grpo-rules", "grpo-no-kl")
"""{value, reward, reference, policy}, without the value, without the reward model, the policy alone."""
ALLOCATORS: Mapping[str, Mapping[str, str]] = {
    "mapped": {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "65536"},
    "default": {},
}
"""What the environment says to glibc."""
REWARD = "def share_of_e(completions):\n    return [text.count('e') / (len(text) + 1) for text in completions]\n"


def make_model(name: str, folder: Path) -> Path:
    """A model's directory: the one that is named, or a new one."""
    if name not in SIZES:
        return Path(name).resolve()
    from outscore.model.tiny import character_tokenizer

    sizes = SIZES[name]
    tokenizer = character_tokenizer(LETTERS, [])
    torch.manual_seed(0)
    model = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=len(tokenizer),
            hidden_size=sizes["hidden_size"],
            intermediate_size=sizes["intermediate_size"],
            num_hidden_layers=sizes["num_layers"],
            num_attention_heads=sizes["num_heads"],
            num_key_value_heads=sizes["num_heads"] // 2,
            tie_word_embeddings=True,
        )
    )
    model.save_pretrained(folder / "model")
    tokenizer.save_pretrained(folder / "model")
    return folder / "model"


def make_reward_model(model: Path, folder: Path) -> Path:
    """A reward model that begins as the policy, in a directory."""
    from outscore.model.heads import reward_model_from
    from outscore.model.load import load_model
    from outscore.model.policy import Policy

    loaded = load_model(model)
    policy = Policy(loaded.model, loaded.tokenizer, stop_token_ids=frozenset())
    scorer = reward_model_from(policy, seed=0, end_token_id=None)
    scorer.model.save_pretrained(folder / "scorer")
    loaded.tokenizer.save_pretrained(folder / "scorer")
    return folder / "scorer"


def recipe_of(case: str, model: Path, folder: Path, options: argparse.Namespace) -> dict[str, Any]:
    """The recipe of a case; its data are written into the folder."""
    draw = random.Random(0)
    questions = ["".join(draw.choices(LETTERS.strip(), k=options.prompt)) for _ in range(16)]
    rows = [json.dumps({"question": text, "answer": "e"}) for text in questions]
    (folder / "data.jsonl").write_text("\n".join(rows))
    (folder / "reward.py").write_text(REWARD)
    rule = {"name": f"{folder / 'reward.py'}:share_of_e", "isolate": False}
    asks_model = case in ("ppo", "grpo-reward-model")
    stage = {
        "algorithm": "ppo" if case == "ppo" else "grpo",
        "steps": 2,
        "prompts_per_step": options.prompts,
        "group_size": options.group,
        "token_budget": options.token_budget,
        "sampling": {"max_new_tokens": options.new},
    }
    if case == "grpo-no-kl":
        stage["cells"] = {"kl_coef": 0.0}
    if asks_model:
        stage["rewards"] = [{"name": "reward_model", "path": str(folder / "scorer")}]
    return {
        "model": {"source": str(model), "precision": options.precision},
        "task": {"kind": "data", "path": str(folder / "data.jsonl"), "num_eval": 4},
        "prompt": {"template": "none"},
        "rewards": [rule],
        "evaluation": {"problems": 4, "samples": 1},
        "stages": [stage],
    }


class Peaks:
    """The peak resident set of each phase of this process."""

    def __init__(self, baseline: int) -> None:
        self.baseline = baseline
        self.bytes: dict[str, int] = {}

    def mark(self, phase: str) -> None:
        """What was held at most since the last mark was held in this phase."""
        lines = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
        peak = int(lines["VmHWM"].split()[0]) * 1024 - self.baseline
        self.bytes[phase] = max(self.bytes.get(phase, 0), peak)
        Path("/proc/self/clear_refs").write_text("5")

    @contextmanager
    def during(self, phase: str) -> Iterator[None]:
        """What is held inside is the phase's, what was held before is that of other work."""
        self.mark("other")
        try:
            yield
        finally:
            self.mark(phase)

    def watch(self, owner: Any, name: str, phase: str) -> None:
        """Let calls of a function be a phase."""
        function: Callable[..., Any] = getattr(owner, name)

        def watched(*args: Any, **options: Any) -> Any:
            with self.during(phase):
                return function(*args, **options)

        setattr(owner, name, watched)


def measure(case: str, model: Path, folder: Path, options: argparse.Namespace) -> dict[str, Any]:
    """One case, in this process."""
    from outscore.config import parse_recipe
    from outscore.rewards import Rewards
    from outscore.rollout.engine import GroupEngine
    from outscore.train import critic, loop, setup, step
    from outscore.train.memory import resident_bytes
    from outscore.train.plan import plan_recipe
    from outscore.train.run import run_recipe

    setup.stop_token_ids = lambda model, tokenizer: frozenset()
    recipe = parse_recipe(recipe_of(case, model, folder, options))
    [planned] = plan_recipe(recipe).stages
    peaks = Peaks(resident_bytes())
    peaks.mark("planning")
    peaks.bytes.clear()
    peaks.watch(setup, "load_policy", "loading")
    peaks.watch(GroupEngine, "sample", "sampling")
    peaks.watch(Rewards, "begin", "scoring")
    peaks.watch(step, "batch_logprobs", "comparing")
    peaks.watch(critic, "batch_values", "comparing")
    peaks.watch(step, "accumulate", "backward")
    peaks.watch(critic, "update_critic", "critic")
    peaks.watch(loop, "save_checkpoint", "saving")
    run_recipe(recipe, folder / f"run-{case}")
    peaks.mark("other")
    predicted = {phase: sum(parts.values()) for phase, parts in planned.phases.items()}
    return {"case": case, "predicted": predicted, "parts": dict(planned.parts), "measured": peaks.bytes}


def main() -> None:
    """Run the cases, print the table, write the figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", default=list(SIZES), help="llama-512, llama-768, or model directories")
    parser.add_argument("--cases", nargs="+", choices=CASES, default=list(CASES))
    parser.add_argument("--allocators", nargs="+", choices=list(ALLOCATORS), default=list(ALLOCATORS))
    parser.add_argument("--prompts", type=int, default=4, help="prompts of a step (4)")
    parser.add_argument("--group", type=int, default=8, help="completions of a prompt (8)")
    parser.add_argument("--prompt", type=int, default=64, help="letters of a prompt (64)")
    parser.add_argument("--new", type=int, default=64, help="tokens of a completion (64)")
    parser.add_argument("--token-budget", type=int, default=4096)
    parser.add_argument("--precision", choices=("fp32", "bf16"), default="fp32")
    parser.add_argument("--out", type=Path, default=Path(__file__).with_name("results-memory.json"))
    parser.add_argument("--only", nargs=3, metavar=("CASE", "MODEL", "FOLDER"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.only:
        case, model, folder = options.only
        print(json.dumps(measure(case, Path(model), Path(folder), options)))
        return
    there = json.loads(options.out.read_text()) if options.out.is_file() else []
    results = {(found["model"], found["case"]): found for found in there}
    print(
        "| model | case | predicted, MiB | measured, MiB | error | default allocator, MiB |\n|---|---|---|---|---|---|"
    )
    for name in options.models:
        with tempfile.TemporaryDirectory() as temporary:
            folder = Path(temporary)
            model = make_model(name, folder)
            make_reward_model(model, folder)
            for case in options.cases:
                runs = {each: in_own_process(case, model, folder, each) for each in options.allocators}
                measured = {allocator: found.pop("measured") for allocator, found in runs.items()}
                shapes = {key: getattr(options, key) for key in ("prompts", "group", "prompt", "new", "precision")}
                first = runs[options.allocators[0]]
                own = {"model": Path(name).name, **first, "measured": measured, "shapes": shapes}
                own["measured"] = {**results.get((own["model"], case), {}).get("measured", {}), **measured}
                results[own["model"], case] = own
                print(row(own), flush=True)
                options.out.write_text(json.dumps(list(results.values()), indent=1))


def in_own_process(case: str, model: Path, folder: Path, allocator: str) -> dict[str, Any]:
    """The figures of one case."""
    command = [sys.executable, *sys.argv, "--only", case, str(model), str(folder)]
    environment = {**os.environ, **ALLOCATORS[allocator]}
    out = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True, env=environment).stdout
    shutil.rmtree(folder / f"run-{case}")
    found: dict[str, Any] = json.loads(out.splitlines()[-1])
    return found


def row(found: Mapping[str, Any]) -> str:
    """A line of the table."""
    predicted = max(found["predicted"].values())
    held = {allocator: max(phases.values()) for allocator, phases in found["measured"].items()}
    cells = [found["model"], found["case"], f"{predicted / 2**20:,.0f}"]
    cells += (
        [f"{held['mapped'] / 2**20:,.0f}", f"{predicted / held['mapped'] - 1:+.1%}"] if "mapped" in held else ["", ""]
    )
    cells.append(f"{held['default'] / 2**20:,.0f}" if "default" in held else "")
    return f"| {' | '.join(cells)} |"


if __name__ == "__main__":
    main()
