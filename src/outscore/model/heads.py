"""A scalar head on a causal language model: a reward model, saved as Hugging Face's sequence classifiers are.

The score of a completion is read at its last token (its stop token, where it has one), after the whole prompt and
completion: gain * w·h + bias. The gain is folded into w; the bias, which no comparison sees, stands in the
configuration, because Hugging Face's heads have none.
"""

import copy
import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

import safetensors.torch
import torch
from jaxtyping import Float
from torch import Tensor, nn
from transformers import AutoModelForSequenceClassification, PreTrainedModel, PreTrainedTokenizerBase

from outscore.model.adapters import has_adapters, merge
from outscore.model.load import disable_dropout, load_tokenizer, quiet_transformers
from outscore.model.logprobs import row_hidden
from outscore.model.policy import Layout, Policy
from outscore.model.rows import GroupRows

SETTINGS = "outscore_reward"
"""The key of the configuration under which a reward model keeps its bias, the token that ends what it scores, and the
separators of the steps that a process reward model scores."""

VALUE_HEAD = "value_head.safetensors"
"""The file of a value head."""


class RewardModel(Policy):
    """A model that gives a completion one number; as a critic, one to every state on the way there.

    Args:
        model: a Hugging Face causal model for sequence classification with one label.
        tokenizer: its tokenizer.
        stop_token_ids: the tokens that end a completion.
        layout: `group_rows` if the backbone can take them.
    """

    def __init__(
        self,
        model: nn.Module,
        tokenizer: PreTrainedTokenizerBase,
        *,
        stop_token_ids: frozenset[int],
        layout: Layout = "group_rows",
    ) -> None:
        super().__init__(model, tokenizer, stop_token_ids=stop_token_ids, layout=layout)
        if self.base.config.num_labels != 1 or not isinstance(getattr(self.base, "score", None), nn.Linear):
            raise ValueError(
                f"{type(self.base).__name__} with {self.base.config.num_labels} labels is no reward model: it needs a "
                "linear head `score` with one label"
            )

    @property
    def head(self) -> nn.Linear:
        """The last layer, from hidden states to scores."""
        return cast(nn.Linear, self.base.score)

    @property
    def vocab_size(self) -> int:
        """Number of input embeddings."""
        return int(cast(Tensor, self.base.get_input_embeddings().weight).shape[0])

    @property
    def bias(self) -> float:
        """What is added to every score."""
        return float(_settings(self.base)["bias"])

    @property
    def end_token_id(self) -> int | None:
        """The token that closes a text before it is scored."""
        found = _settings(self.base)["end_token_id"]
        return None if found is None else int(found)

    @property
    def separators(self) -> tuple[str, ...] | None:
        """What ends the steps that it scores; None for a model of whole completions."""
        found = _settings(self.base).get("separators")
        return None if found is None else tuple(found)

    def took_update(self) -> None:
        """An update of this model is none of the policy: its version stays."""

    def scores(self, hidden: Float[Tensor, "*axes hidden"]) -> Float[Tensor, "*axes"]:
        """Scores in fp32 (or fp64) of last hidden states."""
        return _scores(self.head, hidden) + self.bias

    @torch.no_grad()
    def rescale(self, gain: float, bias: float) -> None:
        """Scores become gain * score + bias."""
        self.head.weight.mul_(gain)
        setattr(self.base.config, SETTINGS, {**_settings(self.base), "bias": gain * self.bias + bias})


class ValueHead(Policy):
    """A critic that is a scalar head on a policy's last hidden states, and has no other weights of its own.

    Asked by itself it leaves the trunk out of the gradient; `scores` of states that are not does not.

    Args:
        trunk: the policy. The head begins at 0, in fp32 at least.
    """

    def __init__(self, trunk: Policy) -> None:
        super().__init__(trunk.model, trunk.tokenizer, stop_token_ids=trunk.stop_token_ids, layout=trunk.layout)
        wide = torch.promote_types(trunk.compute_dtype, torch.float32)
        self.head = nn.Linear(int(trunk.config.hidden_size), 1, bias=False, device=trunk.device, dtype=wide)
        """From hidden states to values."""
        nn.init.zeros_(self.head.weight)

    def scores(self, hidden: Float[Tensor, "*axes hidden"]) -> Float[Tensor, "*axes"]:
        """Values in fp32 (or fp64) of last hidden states."""
        return _scores(self.head, hidden)

    def hidden(self, *given: Any, **named: Any) -> Float[Tensor, "row slot hidden"]:
        """The policy's, without gradient."""
        with torch.no_grad():
            return super().hidden(*given, **named)

    def padded_hidden(self, *given: Any, **named: Any) -> Float[Tensor, "row slot hidden"]:
        """The policy's, without gradient."""
        with torch.no_grad():
            return super().padded_hidden(*given, **named)

    def took_update(self) -> None:
        """An update of the head is none of the policy: its version stays."""

    def save(self, directory: Path) -> None:
        """Write the head; the trunk is where the policy is."""
        directory.mkdir(parents=True, exist_ok=True)
        safetensors.torch.save_file(self.head.state_dict(), directory / VALUE_HEAD)

    def load(self, directory: Path) -> None:
        """Take the head that was written there."""
        self.head.load_state_dict(safetensors.torch.load_file(directory / VALUE_HEAD))


def _scores(head: nn.Linear, hidden: Float[Tensor, "*axes hidden"]) -> Float[Tensor, "*axes"]:
    wide = torch.promote_types(head.weight.dtype, torch.float32)
    return hidden.to(wide) @ head.weight.to(wide)[0]


def completion_scores(model: RewardModel, rows: GroupRows) -> Float[Tensor, " completion"]:
    """The score of each completion of the rows, in the order of `rows.ended`; differentiable. One forward of each."""
    return model.scores(row_hidden(model, rows).index_select(0, rows.ends))


def token_values(model: RewardModel | ValueHead, rows: GroupRows) -> Float[Tensor, " token"]:
    """The score of the state in which each loss-carrying token is chosen, in the order of `rows.order`: read at the
    token before it, which is where a critic says what it expects. Differentiable; tokens that share a state share a
    number."""
    return model.scores(row_hidden(model, rows).index_select(0, rows.sources)).index_select(0, rows.predictions)


def reward_model_from(
    policy: Policy, *, seed: int, end_token_id: int | None, separators: Sequence[str] | None = None
) -> RewardModel:
    """A reward model with the policy's weights, which stay as they are, and a fresh head; with `separators` one of the
    steps that these end.

    Head weights are normal with standard deviation 1/sqrt(hidden size + 1), and the bias 0 (Stiennon et al., arXiv
    2009.01325). Adapters are merged into the copy. fp32; torch's random state is left as it was.
    """
    source = copy.deepcopy(policy.model)
    if has_adapters(source):
        merge(cast(PreTrainedModel, source))
    base = Policy(source, policy.tokenizer, stop_token_ids=policy.stop_token_ids, layout="separate_rows").base
    config = copy.deepcopy(base.config)
    config.num_labels = 1
    config.pad_token_id = _pad_token_id(policy.tokenizer, config)
    own: dict[str, Any] = {"bias": 0.0, "end_token_id": end_token_id}
    setattr(config, SETTINGS, own if separators is None else {**own, "separators": list(separators)})
    with quiet_transformers(), torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = AutoModelForSequenceClassification.from_config(config, attn_implementation="sdpa")
        model = model.float()
        model.base_model.load_state_dict(base.base_model.float().state_dict())
        hidden_size = model.score.weight.shape[1]
        torch.nn.init.normal_(model.score.weight, std=1.0 / math.sqrt(hidden_size + 1))
    torch.nn.Module.to(model, policy.device)
    return RewardModel(model.eval(), policy.tokenizer, stop_token_ids=policy.stop_token_ids, layout=policy.layout)


def load_reward_model(
    directory: str | Path, *, layout: Layout = "separate_rows", trust_remote_code: bool = False
) -> RewardModel:
    """A reward model from a directory: one that was trained here, or any causal sequence classifier with one label.

    Weights become fp32, dropout 0. ValueError for what is no such directory, or lacks weights.
    """
    path = Path(directory).expanduser()
    if not (path / "config.json").is_file():
        raise ValueError(f"{path} has no config.json, so it is no reward model's directory")
    arguments: dict[str, Any] = {"local_files_only": True, "trust_remote_code": trust_remote_code}
    with quiet_transformers():
        try:
            model, info = AutoModelForSequenceClassification.from_pretrained(
                path, dtype=torch.float32, use_safetensors=True, output_loading_info=True, **arguments
            )
        except (OSError, ValueError, KeyError) as error:
            raise ValueError(f"{path} cannot be loaded as a reward model: {str(error).splitlines()[0]}") from error
        tokenizer = load_tokenizer(str(path), {"pretrained_model_name_or_path": str(path), **arguments})
    if info["missing_keys"]:
        missing = sorted(info["missing_keys"])
        raise ValueError(f"{path} lacks the weights {', '.join(missing[:3])}: it is no reward model (or it is damaged)")
    disable_dropout(model.config)
    if getattr(model.config, SETTINGS, None) is None:
        setattr(model.config, SETTINGS, {"bias": 0.0, "end_token_id": tokenizer.eos_token_id})
    stops = frozenset({tokenizer.eos_token_id} - {None})
    return RewardModel(model.eval(), tokenizer, stop_token_ids=stops, layout=layout)


def is_reward_model(directory: Path) -> bool:
    """Whether a directory holds a reward model that was trained here."""
    file = directory / "config.json"
    return file.is_file() and SETTINGS in json.loads(file.read_text(encoding="utf-8"))


def _pad_token_id(tokenizer: PreTrainedTokenizerBase, config: Any) -> int | None:
    """What fills a batch for Hugging Face's own forward, which looks for the last token that is no padding."""
    for candidate in (getattr(config, "pad_token_id", None), tokenizer.pad_token_id):
        if candidate is not None:
            return int(candidate)
    return None


def _settings(model: PreTrainedModel) -> dict[str, Any]:
    return cast(dict[str, Any], getattr(model.config, SETTINGS))
