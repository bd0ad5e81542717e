"""What the studies of rewards share: a hundred facts, a small model that was taught some of them, and short runs of it.

A problem is `7+8=`; its answer is the last digit of the sum, one token. A model from scratch learns the form of an
answer and `NUM_SHOWN` of the facts from demonstrations (SFT), and every run of a seed begins there. Facts are rote, so
what a run learns is measured where it practised: on all hundred.
"""

import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from types import MappingProxyType
from typing import Any, cast

import torch
from torch import Tensor

from outscore.algorithms.rows import Algorithm, algorithm
from outscore.model.load import encode
from outscore.model.policy import Policy
from outscore.model.precision import MasterWeights
from outscore.model.tiny import tiny_model
from outscore.records import (
    Completion,
    DemonstrationGroup,
    Problem,
    Prompt,
    SampledGroup,
    SampleRequest,
    SamplingParams,
)
from outscore.rewards import Rewards
from outscore.rollout import make_sampler
from outscore.stage_parts import OptimizerSettings, SamplingSettings
from outscore.stages import PolicySettings
from outscore.tasks import render
from outscore.train.demonstrations import DemonstrationSource
from outscore.train.optim import make_optimizer
from outscore.train.sources import Collected, RolloutSource
from outscore.train.step import Learner, UpdatePlan, update

CHARACTERS = "0123456789+="
HIDDEN_SIZE, NUM_LAYERS, NUM_HEADS = 64, 1, 4
NUM_SHOWN = 40
"""Facts that are demonstrated; the other sixty are met in practice alone."""
SFT_STEPS, SFT_BATCH, SFT_LR = 30, 20, 5e-3
PROMPTS, GROUP_SIZE, MAX_NEW_TOKENS = 25, 8, 4
RL_LR = 2e-3
TOKEN_BUDGET = 16384

OnStep = Callable[[int, Collected], None]
"""Hears each step of a run and what was sampled in it."""


@dataclass(frozen=True, kw_only=True)
class Student:
    """A taught model, and what it was left with."""

    seed: int
    """What it was drawn and taught by."""
    policy: Policy
    """The model."""
    masters: MasterWeights
    """Its weights."""
    taught: Mapping[str, Tensor]
    """Those it has after SFT: where every run begins."""
    prompts: Sequence[Prompt]
    """The hundred facts, in an order drawn from the seed: the demonstrated ones first."""

    @property
    def end_token_id(self) -> int:
        """What closes an answer."""
        return int(cast(Any, self.policy.tokenizer).eos_token_id)

    def completion(self, text: str) -> Completion:
        """An answer as the model would write it."""
        ids = (*encode(self.policy.tokenizer, text), self.end_token_id)
        return Completion(token_ids=ids, text=text, counts=(True,) * len(ids))

    def begin_again(self) -> None:
        """Back to the weights after SFT."""
        self.masters.load_state_dict(self.taught)

    def answers(self) -> list[SampledGroup]:
        """The greedy answer to every fact."""
        requests = [SampleRequest(prompt=prompt, num_samples=1, slot=slot) for slot, prompt in enumerate(self.prompts)]
        params = SamplingParams(max_new_tokens=MAX_NEW_TOKENS, temperature=0.0)
        return make_sampler(self.policy, 256).sample(requests, params, seed=self.seed, step=0)

    def right(self) -> list[bool]:
        """For every fact whether the greedy answer is right, by comparing texts."""
        return [group.completions[0].completion.text == group.prompt.problem.answer for group in self.answers()]


def student(seed: int) -> Student:
    """A model from scratch, taught by demonstrations; everything is drawn from `seed`."""
    facts = list(product(range(10), range(10)))
    random.Random(f"outscore facts {seed}").shuffle(facts)
    model, tokenizer = tiny_model(
        CHARACTERS, (), seed, hidden_size=HIDDEN_SIZE, num_layers=NUM_LAYERS, num_heads=NUM_HEADS, intermediate_size=64
    )
    policy = Policy(model, tokenizer, stop_token_ids=frozenset({int(cast(Any, tokenizer).eos_token_id)}))
    masters = MasterWeights(model, torch.float32)
    prompts = [render(_fact(place, *fact), tokenizer) for place, fact in enumerate(facts)]
    made = Student(seed=seed, policy=policy, masters=masters, taught={}, prompts=prompts)
    demonstrations = [
        DemonstrationGroup(prompt=prompt, completion=made.completion(str(prompt.problem.answer)))
        for prompt in prompts[:NUM_SHOWN]
    ]
    source = DemonstrationSource(demonstrations=demonstrations, batch_size=SFT_BATCH, seed=seed, stage=0)
    settings = OptimizerSettings(lr=SFT_LR, schedule="cosine", warmup_steps=5)
    learner, plan = _learner(made, algorithm("sft"), settings, SFT_STEPS)
    for step in range(1, SFT_STEPS + 1):
        update(learner, source.collect(step).batch, plan)
    taught = {name: weight.clone() for name, weight in masters.state_dict().items()}
    return Student(seed=seed, policy=policy, masters=masters, taught=taught, prompts=prompts)


def practise(
    pupil: Student,
    rewards: Rewards,
    *,
    steps: int,
    cells: Mapping[str, Any] = MappingProxyType({}),
    on_step: OnStep | None = None,
) -> None:
    """GRPO without a KL penalty, from the weights after SFT; the pupil ends with what it has then. `cells` are other
    choices in its row."""
    pupil.begin_again()
    settings = PolicySettings(
        steps=steps,
        prompts_per_step=PROMPTS,
        group_size=GROUP_SIZE,
        sampling=SamplingSettings(max_new_tokens=MAX_NEW_TOKENS),
    )
    row = algorithm("grpo", kl_coef=0.0, **cells)
    learner, plan = _learner(pupil, row, OptimizerSettings(lr=RL_LR, warmup_steps=5, betas=(0.9, 0.99)), steps)
    source = RolloutSource(
        prompts=pupil.prompts,
        sampler=make_sampler(pupil.policy, PROMPTS * GROUP_SIZE),
        rewards=rewards,
        settings=settings,
        algorithm=row,
        seed=pupil.seed,
        stage=1,
    )
    for step in range(1, steps + 1):
        collected = source.collect(step)
        update(learner, collected.batch, plan)
        if on_step is not None:
            on_step(step, collected)


def _fact(place: int, left: int, right: int) -> Problem:
    question = f"{left}+{right}="
    return Problem(id=question, question=question, answer=str((left + right) % 10), columns={"place": place})


def _learner(pupil: Student, row: Algorithm, optimizer: OptimizerSettings, steps: int) -> tuple[Learner, UpdatePlan]:
    parameters = pupil.masters.parameters.values()
    learner = Learner(
        policy=pupil.policy, masters=pupil.masters, optimizer=make_optimizer(parameters, optimizer), reference=None
    )
    plan = UpdatePlan(algorithm=row, optimizer=optimizer, total_updates=steps, token_budget=TOKEN_BUDGET)
    return learner, plan
