"""Answers that grow step by step under a guide: beam search, and best-first search of the tree of steps."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Literal, Protocol

from outscore.model.steps import Decode
from outscore.records import Prompt, SampledCompletion, SampleRequest, SamplingParams
from outscore.rollout import Sampler
from outscore.train.activity import Tell, counting, tell_nobody


class Guide(Protocol):
    """Gives solutions, and beginnings of solutions, a score."""

    @property
    def separators(self) -> tuple[str, ...]:
        """What ends a step; () for a guide that judges whole solutions alone."""
        ...

    def scores(self, given: Sequence[tuple[Prompt, tuple[int, ...]]]) -> list[float]:
        """A score of at least 0 for each (prompt, tokens)."""
        ...


@dataclass(frozen=True, kw_only=True, slots=True)
class Beginning:
    """A beginning of an answer, or all of it."""

    token_ids: tuple[int, ...] = ()
    """Its tokens."""
    finish: Literal["stop", "length"] | None = None
    """How it ended; None where it goes on."""
    score: float = 0.0
    """What the guide says of it."""

    def grown(self, drawn: SampledCompletion) -> "Beginning":
        """With what was sampled after it, not scored yet."""
        return Beginning(
            token_ids=(*self.token_ids, *drawn.completion.token_ids),
            finish=None if drawn.finish == "pause" else drawn.finish,
        )


Asked = tuple[int, Beginning, int]
"""A problem by its place, a beginning of its answer, and how many samples are to continue it."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Grower:
    """Samples steps of answers, and has a guide score what comes of it."""

    prompts: Sequence[Prompt]
    """The problems."""
    sampler: Sampler
    """Samples the policy."""
    guide: Guide
    """What scores beginnings."""
    decode: Decode
    """Tokens to text."""
    params: SamplingParams
    """How samples are drawn; all samples of an answer share its limit of tokens."""
    seed: int
    """Decides the draws, with the round, a beginning's place in it and the attempt."""
    width: int = 4
    """Samples that continue a beginning."""

    def continued(
        self, asked: Sequence[Asked], *, round_: int, whole: bool = False, tell: Tell = tell_nobody
    ) -> tuple[list[list[Beginning]], int]:
        """For each problem what its beginnings became, scored, equal ones once; and how many tokens were sampled.

        Samples end with a step, or with the answer where `whole`; these are other draws than those of the round's
        steps.
        """
        if not asked:
            return [[] for _ in self.prompts], 0
        requests = [
            SampleRequest(
                prompt=self._begun(problem, beginning),
                num_samples=num_samples,
                slot=slot,
                attempt=int(whole),
                max_new_tokens=self.params.max_new_tokens - len(beginning.token_ids),
            )
            for slot, (problem, beginning, num_samples) in enumerate(asked)
        ]
        drawn = self.sampler.sample(
            requests,
            self.params if whole else replace(self.params, until=self.guide.separators),
            seed=self.seed,
            step=round_,
            on_finished=counting(f"sampling step {round_}", sum(each.num_samples for each in requests), tell),
        )
        grown: list[dict[tuple[int, ...], Beginning]] = [{} for _ in self.prompts]
        for (problem, beginning, _), group in zip(asked, drawn, strict=True):
            for sample in group.completions:
                longer = beginning.grown(sample)
                grown[problem].setdefault(longer.token_ids, longer)
        given = [(self.prompts[problem], ids) for problem, own in enumerate(grown) for ids in own]
        scores = iter(self.guide.scores(given))
        scored = [[replace(each, score=next(scores)) for each in own.values()] for own in grown]
        return scored, sum(len(each.completion.token_ids) for group in drawn for each in group.completions)

    def beams(self, budget: int, tell: Tell = tell_nobody) -> tuple[list[list[Beginning]], int]:
        """Beam search: for each problem the answers that are left when all have ended, best first, and the tokens
        sampled.

        `budget` first steps are sampled; after each step the `budget // width` beginnings of the highest score are
        kept, ended ones among them, and each that has not ended is continued by `width` samples of a step (Snell et
        al., arXiv 2408.03314, 5.2).
        """
        kept = max(budget // self.width, 1)
        beams: list[list[Beginning]] = [[Beginning()] for _ in self.prompts]
        tokens = depth = 0
        while live := [(problem, beam) for problem, own in enumerate(beams) for beam in own if beam.finish is None]:
            depth += 1
            num_samples = budget if depth == 1 else min(self.width, budget)
            grown, sampled = self.continued([(*each, num_samples) for each in live], round_=depth, tell=tell)
            tokens += sampled
            for problem, new in enumerate(grown):
                candidates = [beam for beam in beams[problem] if beam.finish is not None] + new
                beams[problem] = sorted(candidates, key=lambda beam: -beam.score)[:kept]
        return beams, tokens

    def trees(
        self, budgets: Sequence[int], tell: Tell = tell_nobody
    ) -> Iterator[tuple[int, list[list[Beginning]], int]]:
        """Best-first search (Koh et al., arXiv 2407.01476): for each budget, from the smallest, that budget, each
        problem's answers, best first, and the tokens sampled for it.

        A budget is how many beginnings of a problem may be continued, each once and by `width` samples of a step. It is
        always the best leaf of the tree that is continued, the longer one of equals; where the best has ended, the
        search of its problem is over. If the best leaf has not ended when the budget is spent, a sample takes it to its
        end. A larger budget continues the tree of a smaller one.
        """
        leaves: list[list[Beginning]] = [[Beginning()] for _ in self.prompts]
        tokens = num_continued = 0
        for budget in sorted(set(budgets)):
            while num_continued < budget and (live := self._best(leaves)):
                num_continued += 1
                grown, sampled = self.continued(
                    [(problem, best, self.width) for problem, best in live], round_=num_continued, tell=tell
                )
                tokens += sampled
                for problem, best in live:
                    leaves[problem].remove(best)
                    leaves[problem] += grown[problem]
            last = [(*each, 1) for each in self._best(leaves)]
            ends, sampled = self.continued(last, round_=num_continued, whole=True, tell=tell)
            ended = [[leaf for leaf in own if leaf.finish is not None] for own in leaves]
            answers = [sorted(had + new, key=_rank, reverse=True) for had, new in zip(ended, ends, strict=True)]
            yield budget, answers, tokens + sampled

    def _best(self, leaves: Sequence[Sequence[Beginning]]) -> list[tuple[int, Beginning]]:
        """The best leaf of each problem where that goes on."""
        best = [(problem, max(own, key=_rank)) for problem, own in enumerate(leaves)]
        return [(problem, leaf) for problem, leaf in best if leaf.finish is None]

    def _begun(self, problem: int, beginning: Beginning) -> Prompt:
        prompt, ids = self.prompts[problem], beginning.token_ids
        return replace(prompt, text=prompt.text + self.decode(ids), token_ids=(*prompt.token_ids, *ids))


def _rank(leaf: Beginning) -> tuple[float, bool, int]:
    """By score; of equals one that has ended, then the longer one."""
    return leaf.score, leaf.finish is not None, len(leaf.token_ids)
