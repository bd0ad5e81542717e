"""The models that rewards ask, as far as their memory goes: they are loaded into the training process, in fp32."""

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transformers import AutoConfig

from outscore.config import Recipe
from outscore.model.load import outline_model
from outscore.model.policy import Policy
from outscore.rewards.model_based import TOKEN_BUDGET
from outscore.rewards.reward_model import newest_checkpoint
from outscore.stages import StageSettings
from outscore.train.memory import DecoderShape, decoder_shape, num_scalar_parameters, working_bytes

ASKING = ("reward_model", "process_reward_model", "perplexity", "llm_judge")
"""The rewards that ask a model."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ScoringModel:
    """A model that scores."""

    shape: DecoderShape
    """Its widths."""
    num_parameters: int
    """Its weights."""
    token_budget: int
    """Tokens that it reads at once."""

    @property
    def num_bytes(self) -> int:
        """What its weights take."""
        return 4 * self.num_parameters

    def working_bytes(self, num_completions: int, width: int) -> int:
        """What it needs to read completions of so many tokens with their prompts, a row for each, under a mask."""
        rows = max(min(num_completions, self.token_budget // width), 1)
        return working_bytes(self.shape, rows * width, bytes_per_value=4) + 5 * rows * width * width


def scoring_models(recipe: Recipe, stage: StageSettings, policy: Policy) -> list[ScoringModel]:
    """The models that a stage's rewards ask, once each for how often they are loaded."""
    specs = recipe.rewards if stage.rewards is None else stage.rewards
    named = [spec if isinstance(spec, Mapping) else {"name": spec} for spec in specs]
    return [model for spec in named if spec.get("name") in ASKING for model in _models(spec, policy)]


def _models(spec: Mapping[str, Any], policy: Policy) -> Iterator[ScoringModel]:
    budget = int(spec.get("token_budget", TOKEN_BUDGET))
    own = decoder_shape(policy.config, policy.vocab_size)
    for path in _each(spec.get("path", "")):
        yield _of_path(path, str(spec["name"]), budget, bool(spec.get("trust_remote_code", False)))
    for _ in _each(spec.get("stage", "")):  # what a stage of this run trains is a copy of the policy
        yield ScoringModel(shape=own, num_parameters=num_scalar_parameters(policy), token_budget=budget)
    if spec["name"] == "perplexity" and not spec.get("path"):  # the model that the run began with
        size = sum(weight.numel() for name, weight in policy.model.named_parameters() if "lora_" not in name)
        yield ScoringModel(shape=own, num_parameters=size, token_budget=budget)


def _each(given: Any) -> list[str]:
    return [each for each in ([given] if isinstance(given, str) else list(given)) if each]


def _of_path(path: str, reward: str, budget: int, trust_remote_code: bool) -> ScoringModel:
    folder = Path(path).expanduser()
    if folder.is_dir() and any(folder.glob("**/*.safetensors")):
        folder = newest_checkpoint(folder, reward)
        config: Any = AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=trust_remote_code)
        config = config.get_text_config()
        return ScoringModel(
            shape=decoder_shape(config, config.vocab_size), num_parameters=num_stored(folder), token_budget=budget
        )
    model = outline_model(path, trust_remote_code=trust_remote_code).model
    config = model.config.get_text_config()
    return ScoringModel(
        shape=decoder_shape(config, config.vocab_size), num_parameters=model.num_parameters(), token_budget=budget
    )


def num_stored(directory: Path) -> int:
    """How many weights a directory's .safetensors files hold, from their headers: eight bytes that say how long it is,
    then JSON with the shape of each tensor."""
    total = 0
    for path in sorted(directory.glob("model*.safetensors")):
        with path.open("rb") as file:
            header = json.loads(file.read(int.from_bytes(file.read(8), "little")))
        for name, tensor in header.items():
            size = 1
            for extent in tensor["shape"] if name != "__metadata__" else [0]:
                size *= extent
            total += size
    return total
