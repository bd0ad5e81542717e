"""DeepSeekMath's unified paradigm (arXiv 2402.03300, eq. 5 and A.1): one function gives six gradient
coefficients, and sum of coefficient * grad log pi is autograd of six native losses, here written out in float64 as the
papers print them, from data, rewards and values on. Nothing of the library is in a native loss, but its tensors."""

import math
from collections.abc import Callable
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor

from outscore.algorithms.rows import algorithm
from outscore.objectives.batch import GroupRewards, batch_advantages
from outscore.objectives.kl import kl_estimate
from outscore.objectives.loss import policy_loss
from outscore.objectives.preferences import ranked_pairs
from outscore.records import Completion, Problem, Prompt, SampledCompletion, SampledGroup, Score, ScoredGroup
from outscore.report import completion_rows
from outscore.stages import RejectionSettings
from outscore.train.rejection import kept

QUESTIONS = [(1, 2), (3,)]
ANSWERS = [[(4, 0), (1, 3, 2, 0), (2, 0), (0,)], [(3, 3, 0), (1, 0), (4, 2, 1, 4, 0), (2, 2, 0)]]
"""Four answers to each question, tokens of a vocabulary of five; lengths differ."""
RIGHT = [[True, False, True, False], [False, True, True, False]]
REWARDS = [[1.0, 0.0, 1.5, -0.5], [0.25, 2.0, 1.0, 0.5]]
LIKED = [(0, 2), (5, 7)]
"""Pairs (better, worse), by the numbers of the answers through both groups."""

FLAT = [(q, answer) for q, own in zip(QUESTIONS, ANSWERS, strict=True) for answer in own]
LENGTHS = [len(answer) for _, answer in FLAT]
GOOD = [right for own in RIGHT for right in own]


class Recurrent:
    """A language model of its own: h = tanh(W h + E[token]), logits U h. All tokens share its weights."""

    def __init__(self, seed: int) -> None:
        generator = torch.Generator().manual_seed(seed)

        def weights(*shape: int) -> Tensor:
            return torch.randn(*shape, generator=generator, dtype=torch.float64).requires_grad_(True)

        self.weights = [weights(6, 6), weights(5, 6), weights(5, 6)]

    def logprobs(self, question: tuple[int, ...], answer: tuple[int, ...]) -> list[Tensor]:
        """log pi(o_t | q, o_<t) of each token."""
        turn, embed, unembed = self.weights
        state, found = torch.zeros(6, dtype=torch.float64), []
        for t, token in enumerate((*question, *answer)):
            if t >= len(question):
                found.append(torch.log_softmax(unembed @ state, -1)[token])
            state = torch.tanh(turn @ state + embed[token])
        return found


PI, REF = Recurrent(0), Recurrent(1)
LOG_PI = [PI.logprobs(*each) for each in FLAT]
LOG_REF = [[float(value.detach()) for value in REF.logprobs(*each)] for each in FLAT]
VALUES = [[math.sin(3.0 * i + t) for t in range(length)] for i, length in enumerate(LENGTHS)]
"""What a critic would say at each token."""

Table = list[list[float]]
"""A number for each token of each answer."""


@dataclass(frozen=True, kw_only=True)
class Case:
    """A method as it is printed."""

    native: Callable[[], Tensor]
    """What is maximised."""
    gc: Callable[[], Table]
    """The printed gradient coefficient of each token."""
    weight: Callable[[int], float]
    """What each token of an answer counts."""
    ours: Callable[[], Table]
    """The library's coefficients, the token's weight in them."""


# -- the native losses -------------------------------------------------------------------------------------------------


def _sft() -> Tensor:
    """1/sum|o| sum_i sum_t log pi(o_t)"""
    return torch.stack([value for own in LOG_PI for value in own]).sum() / sum(LENGTHS)


def _sft_by_answer() -> Tensor:
    """1/N sum_i 1/|o| sum_t log pi(o_t), as DeepSeekMath weighs it"""
    return torch.stack([torch.stack(own).sum() / len(own) for own in LOG_PI]).sum() / 8


def _rft() -> Tensor:
    """sum_i I(o_i) sum_t log pi(o_t) / sum_i I(o_i) |o_i|"""
    total = torch.stack([float(good) * torch.stack(own).sum() for good, own in zip(GOOD, LOG_PI, strict=True)]).sum()
    return total / sum(length for good, length in zip(GOOD, LENGTHS, strict=True) if good)


def _online_rft() -> Tensor:
    """1/N sum_i 1/|o_i| sum_t I(o_i) log pi(o_t)"""
    return torch.stack([good * torch.stack(own).mean() for good, own in zip(GOOD, LOG_PI, strict=True)]).sum() / 8


def _h(better: int, worse: int, *, per_token: bool) -> Tensor:
    """log pi(w)/ref(w) - log pi(l)/ref(l), each over its length where `per_token`."""
    ratios = []
    for i in (better, worse):
        gaps = [now - ref for now, ref in zip(LOG_PI[i], LOG_REF[i], strict=True)]
        ratios.append(torch.stack(gaps).sum() / (LENGTHS[i] if per_token else 1))
    return ratios[0] - ratios[1]


def _dpo() -> Tensor:
    """1/N sum log sigma(beta h): DPO (arXiv 2305.18290, eq. 7), beta 0.1"""
    return torch.stack([torch.sigmoid(0.1 * _h(*pair, per_token=False)).log() for pair in LIKED]).sum() / 2


def _dpo_mean() -> Tensor:
    """The same with log-ratios over |o|: DeepSeekMath A.1.4; beta 2"""
    return torch.stack([torch.sigmoid(2.0 * _h(*pair, per_token=True)).log() for pair in LIKED]).sum() / 2


def _clipped(i: int, t: int, advantage: float) -> Tensor:
    """min(rho A, clip(rho, 0.8, 1.2) A), rho = pi / pi_old with pi_old = pi: one update for each exploration."""
    rho = (LOG_PI[i][t] - LOG_PI[i][t].detach()).exp()
    return torch.minimum(rho * advantage, rho.clamp(0.8, 1.2) * advantage)


def _ppo() -> Tensor:
    """1/N sum_i 1/|o| sum_t min(rho_t A_t, clip(rho_t) A_t): DeepSeekMath eq. 1"""
    worth = _gae()
    each = [_clipped(i, t, worth[i][t]) / length for i, length in enumerate(LENGTHS) for t in range(length)]
    return torch.stack(each).sum() / 8


def _gae() -> Table:
    """A_t = sum_l 0.95^l delta_(t+l) over r_t = -0.05 log(pi/ref) + [t last] r (eq. 2), whitened over all tokens."""
    scores, table = [reward for own in REWARDS for reward in own], []
    for i, length in enumerate(LENGTHS):
        paid = [-0.05 * (float(LOG_PI[i][t].detach()) - LOG_REF[i][t]) for t in range(length)]
        paid[-1] += scores[i]
        after = [*VALUES[i][1:], 0.0]
        delta = [paid[t] + after[t] - VALUES[i][t] for t in range(length)]
        table.append([sum(0.95 ** (s - t) * delta[s] for s in range(t, length)) for t in range(length)])
    tokens = [value for own in table for value in own]
    mean = sum(tokens) / len(tokens)
    variance = sum((value - mean) ** 2 for value in tokens) / len(tokens)
    return [[(value - mean) / math.sqrt(variance + 1e-8) for value in own] for own in table]


def _grpo() -> Tensor:
    """1/N sum_i 1/|o| sum_t { min(rho_t A, clip(rho_t) A) - 0.04 (ref/pi - log(ref/pi) - 1) }: eq. 3 and 4"""
    worth, each = _group_relative(), []
    for i, length in enumerate(LENGTHS):
        for t in range(length):
            x = LOG_REF[i][t] - LOG_PI[i][t]
            each.append((_clipped(i, t, worth[i]) - 0.04 * (x.exp() - x - 1)) / length)
    return torch.stack(each).sum() / 8


def _group_relative() -> list[float]:
    """(r - mean) / std of the group, with 1e-6 beside the deviation"""
    found = []
    for own in REWARDS:
        mean = sum(own) / len(own)
        std = math.sqrt(sum((reward - mean) ** 2 for reward in own) / len(own))
        found += [(reward - mean) / (std + 1e-6) for reward in own]
    return found


# -- the printed coefficients ------------------------------------------------------------------------------------------


def _each(value: Callable[[int, int], float]) -> Table:
    return [[value(i, t) for t in range(length)] for i, length in enumerate(LENGTHS)]


def _pulls(beta: float, *, per_token: bool) -> Table:
    """beta sigma(-beta h), + on the better and - on the worse answer of a pair, 0 on what is in none"""
    table = _each(lambda i, t: 0.0)
    for better, worse in LIKED:
        size = beta / (1 + math.exp(beta * float(_h(better, worse, per_token=per_token).detach())))
        for i, sign in ((better, 1.0), (worse, -1.0)):
            table[i] = [sign * size] * LENGTHS[i]
    return table


def _against_reference(i: int, t: int) -> float:
    """A + beta (ref/pi - 1): eq. 21"""
    return _group_relative()[i] + 0.04 * (math.exp(LOG_REF[i][t] - float(LOG_PI[i][t].detach())) - 1)


# -- the library -------------------------------------------------------------------------------------------------------


def _coefficients(name: str, numbers: list[int] | None = None, **cells: object) -> Table:
    """What a run stores, for the answers of these numbers, all if None; 0 for those that are not trained on."""
    row, numbers = algorithm(name, **cells), list(range(8)) if numbers is None else numbers
    lengths = [LENGTHS[i] for i in numbers]
    now = torch.stack([value.detach() for i in numbers for value in LOG_PI[i]])
    ref = torch.tensor([value for i in numbers for value in LOG_REF[i]], dtype=torch.float64)
    known: dict[str, object] = {}
    if row.source == "preferences":
        known["pairs"] = ranked_pairs([(0, 1)] * (len(numbers) // 2), ties="drop")
    elif row.source == "policy":
        known["advantages"] = batch_advantages(_groups(now, ref, name), row)
    terms = policy_loss(
        now,
        algorithm=row,
        completion_index=torch.arange(len(numbers)).repeat_interleave(torch.tensor(lengths)),
        completion_lengths=torch.tensor(lengths),
        num_completions=len(numbers),
        num_tokens=sum(lengths),
        ref_logprobs=ref if row.needs_reference else None,
        **known,  # type: ignore[arg-type]  # pairs or advantages
    )
    table = _each(lambda i, t: 0.0)
    for i, own in zip(numbers, terms.coefficients.split(lengths), strict=True):
        table[i] = own.tolist()
    return table


def _groups(now: Tensor, ref: Tensor, name: str) -> list[GroupRewards]:
    row, groups = algorithm(name), []
    costs = row.kl_coef * kl_estimate(now - ref, estimator=row.kl_estimator)
    for g in range(2):
        tokens = slice(sum(LENGTHS[: 4 * g]), sum(LENGTHS[: 4 * g + 4]))
        compared = RIGHT[g] if row.reward == "correct" else REWARDS[g]
        groups.append(
            GroupRewards(
                rewards=torch.tensor(compared, dtype=torch.float64),
                valid=torch.ones(4, dtype=torch.bool),
                num_tokens=torch.tensor(LENGTHS[4 * g : 4 * g + 4]),
                token_costs=costs[tokens],
                values=torch.tensor([v for own in VALUES for v in own], dtype=torch.float64)[tokens],
            )
        )
    return groups


def _kept() -> list[int]:
    """The answers that rejection sampling keeps, all that are right, by their numbers."""
    settings, numbers = RejectionSettings(steps=1, keep=0), []
    for g, (question, answers) in enumerate(zip(QUESTIONS, ANSWERS, strict=True)):
        prompt = Prompt(problem=Problem(id=str(g), question="", answer=None, columns={}), text="", token_ids=question)
        drawn = [
            SampledCompletion(
                completion=Completion(token_ids=answer, text="", counts=(True,) * len(answer)),
                sampler_logprobs=(-1.0,) * len(answer),
                finish="stop",
                policy_version=0,
            )
            for answer in answers
        ]
        sampled = SampledGroup(prompt=prompt, completions=tuple(drawn), slot=g, attempt=0)
        group = ScoredGroup(sampled=sampled, scores=tuple(Score(reward=reward, parts={}) for reward in REWARDS[g]))
        rows = completion_rows(stage="rft", step=0, groups=[group], advantages=[[None] * 4], correct=RIGHT[g])
        numbers += [4 * g + row.sample for row in kept(rows, settings) if row.advantage]
    return numbers


def _of_pairs(name: str) -> Table:
    return _coefficients(name, [i for pair in LIKED for i in pair])


CASES = {
    "SFT": Case(
        native=_sft,
        gc=lambda: _each(lambda i, t: 1.0),
        weight=lambda i: 1 / sum(LENGTHS),
        ours=lambda: _coefficients("sft"),
    ),
    "SFT, DeepSeekMath's weights": Case(
        native=_sft_by_answer,
        gc=lambda: _each(lambda i, t: 1.0),
        weight=lambda i: 1 / (8 * LENGTHS[i]),
        ours=lambda: _coefficients("sft", aggregation="completion_mean"),
    ),
    "RFT": Case(
        native=_rft,
        gc=lambda: _each(lambda i, t: float(GOOD[i])),
        weight=lambda i: 1 / sum(length for good, length in zip(GOOD, LENGTHS, strict=True) if good),
        ours=lambda: _coefficients("rft", _kept()),
    ),
    "online RFT": Case(
        native=_online_rft,
        gc=lambda: _each(lambda i, t: float(GOOD[i])),
        weight=lambda i: 1 / (8 * LENGTHS[i]),
        ours=lambda: _coefficients("online-rft"),
    ),
    "DPO": Case(
        native=_dpo, gc=lambda: _pulls(0.1, per_token=False), weight=lambda i: 1 / 2, ours=lambda: _of_pairs("dpo")
    ),
    "DPO, DeepSeekMath's weights": Case(
        native=_dpo_mean,
        gc=lambda: _pulls(2.0, per_token=True),
        weight=lambda i: 1 / (2 * LENGTHS[i]),
        ours=lambda: _of_pairs("dpo-mean"),
    ),
    "PPO": Case(native=_ppo, gc=_gae, weight=lambda i: 1 / (8 * LENGTHS[i]), ours=lambda: _coefficients("ppo")),
    "GRPO": Case(
        native=_grpo,
        gc=lambda: _each(_against_reference),
        weight=lambda i: 1 / (8 * LENGTHS[i]),
        ours=lambda: _coefficients("grpo"),
    ),
}
"""The six methods, two of them with either weight that a token may have. What these divide by is the paper's or, where
it differs, that of `outscore algorithms NAME`."""


@pytest.mark.parametrize("name", CASES)
def test_sum_of_coefficients_times_grad_log_pi_is_autograd_of_the_native_loss(name: str) -> None:
    case = CASES[name]
    native = torch.autograd.grad(case.native(), PI.weights, retain_graph=True)
    terms = [c * value for own, row in zip(case.ours(), LOG_PI, strict=True) for c, value in zip(own, row, strict=True)]
    unified = torch.autograd.grad(torch.stack(terms).sum(), PI.weights, retain_graph=True)
    for expected, found in zip(native, unified, strict=True):
        torch.testing.assert_close(found, expected, rtol=0.0, atol=1e-10)
    assert max(float(each.abs().max()) for each in native) > 1e-3


@pytest.mark.parametrize("name", CASES)
def test_each_coefficient_over_its_tokens_weight_is_the_printed_one(name: str) -> None:
    case = CASES[name]
    for i, (ours, printed) in enumerate(zip(case.ours(), case.gc(), strict=True)):
        assert [c / case.weight(i) for c in ours] == pytest.approx(printed, rel=1e-10, abs=1e-12)


def test_no_two_methods_have_the_same_coefficients() -> None:
    """Else the law would hold for one in the other's place."""
    flat = {name: [c for own in case.ours() for c in own] for name, case in CASES.items()}
    for one in CASES:
        for other in CASES:
            assert one == other or flat[one] != pytest.approx(flat[other], rel=1e-3)
