"""What holds for every test: no network, one thread, a seed, and tiny models to share."""

import os

# Before transformers is imported: it reads this once. Subprocesses of the tests inherit it.
os.environ["HF_HUB_OFFLINE"] = "1"

import random
from collections.abc import Callable, Iterator

import numpy as np
import pytest
import torch
from families import build_family
from hypothesis import HealthCheck, settings
from transformers import PreTrainedModel

torch.set_num_threads(1)  # tiny tensors: a second thread costs more than it gives
# The machine may be shared and slow: how long an example takes says nothing about the code.
settings.register_profile("untimed", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("untimed")


@pytest.fixture(autouse=True)
def _seed() -> None:
    """Seed the global generators; the library itself draws from none of them."""
    random.seed(0)
    np.random.seed(0)
    torch.manual_seed(0)


@pytest.fixture(scope="session")
def family_model() -> Iterator[Callable[[str], PreTrainedModel]]:
    """`family_model("qwen3")` is that family's tiny model, built once a session. To train one, take `build_family`."""
    models: dict[str, PreTrainedModel] = {}
    before: dict[str, float] = {}

    def get(family: str) -> PreTrainedModel:
        if family not in models:
            models[family] = build_family(family)
            before[family] = _checksum(models[family])
        return models[family]

    yield get
    for family, model in models.items():
        assert _checksum(model) == before[family], f"a test changed the shared {family} model"


def _checksum(model: PreTrainedModel) -> float:
    with torch.no_grad():
        return float(sum(parameter.double().abs().sum() for parameter in model.parameters()))
