"""The table of studies. A new one is a module with a function `run`, and a row here."""

import importlib
import inspect
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from outscore.inputs import apply_overrides, checked_options, nearest
from outscore.studies.records import Progress, Study, StudyResult

STUDIES = {
    row.name: row
    for row in (
        Study(
            name="group-robust-bandit",
            summary="preferences of two populations: GR-DPO and GR-IPO against DPO, IPO and importance sampling",
            source="Group Robust Preference Optimization, arXiv 2405.20304, figures 2 and 4 to 12",
            module="outscore.studies.group_robust.study",
            num_seeds=20,
        ),
        Study(
            name="r1-stages",
            summary="DeepSeek-R1's stages in miniature: what each does to reasoning, form, helpfulness and safety",
            source="DeepSeek-R1, arXiv 2501.12948, the table of Dev1 to R1",
            module="outscore.studies.r1_stages",
            num_seeds=3,
        ),
        Study(
            name="paradigm",
            summary="online and offline, with and without negative advantages, PPO's lambda, maj@k and pass@k",
            source="DeepSeekMath, arXiv 2402.03300, figures 5 and 7; DeepSeek-R1, arXiv 2501.12948, A.3",
            module="outscore.studies.paradigm",
            num_seeds=5,
        ),
        Study(
            name="every-row",
            summary="each row that learns from samples, from one SFT checkpoint, with equal numbers of them",
            source="DeepSeekMath, arXiv 2402.03300, section 5",
            module="outscore.studies.every_row",
            num_seeds=3,
        ),
        Study(
            name="distillation",
            summary="a small student: imitating a teacher, advised by it, or by rewards, of equally many samples",
            source="DeepSeek-R1, arXiv 2501.12948, 4.1",
            module="outscore.studies.distillation",
            num_seeds=3,
        ),
        Study(
            name="process-supervision",
            summary="GRPO paid for the answer, and for each step of the solution where it ends",
            source="DeepSeekMath, arXiv 2402.03300, figure 5",
            module="outscore.studies.supervision",
            num_seeds=5,
        ),
        Study(
            name="refreshed-reward",
            summary="iterative GRPO: a reward model trained on with the policy's samples, against one that stays",
            source="DeepSeekMath, arXiv 2402.03300, Algorithm 1 and figure 6",
            module="outscore.studies.refreshed",
            num_seeds=5,
        ),
        Study(
            name="reward-noise",
            summary="accuracy against the rate at which a reward is wrong, with the backward correction and without",
            source="arXiv 2510.00915; DeepSeekMath, arXiv 2402.03300, 5.2.3",
            module="outscore.studies.reward_quality.noise",
            num_seeds=3,
        ),
        Study(
            name="reward-hacking",
            summary="a policy paid by a learned reward, by an ensemble's lower bound, and by a rule",
            source="DeepSeek-R1, arXiv 2501.12948, on rewards; Coste et al., arXiv 2310.02743",
            module="outscore.studies.reward_quality.hacking",
            num_seeds=3,
        ),
        Study(
            name="reward-generalisation",
            summary="what a reward model says of other questions, of later policies, and of what it chooses itself",
            source="DeepSeekMath, arXiv 2402.03300, 5.2.3",
            module="outscore.studies.reward_quality.generalisation",
            num_seeds=3,
        ),
        Study(
            name="group-robust-opinions",
            summary="opinions of five countries, a small language model: GR-IPO against IPO and importance sampling",
            source="Group Robust Preference Optimization, arXiv 2405.20304, section 5.2, on data made here",
            module="outscore.studies.opinions",
            num_seeds=5,
        ),
    )
}
"""The studies by name. Rows import nothing heavy: `--help` lists them."""

MIN_SEEDS = 2
"""A standard error needs two."""


def run_study(
    name: str,
    *,
    num_seeds: int | None = None,
    overrides: Sequence[str] = (),
    runs: Path | None = None,
    progress: Progress = lambda part, done, total: None,
) -> StudyResult:
    """Run a study with its default options but for `overrides`, given as `key=value`.

    Its runs are kept in the directory `runs`, where a later call goes on with them; without one, nothing is kept.

    Raises ValueError naming the nearest right word for an unknown study or option, and for a value of the wrong type or
    fewer than two seeds.
    """
    if name not in STUDIES:
        raise ValueError(f"study {name!r} is not known{nearest(name, STUDIES)}")
    study = STUDIES[name]
    seeds = study.num_seeds if num_seeds is None else num_seeds
    if seeds < MIN_SEEDS:
        raise ValueError(f"--seeds {seeds}: a standard error needs at least {MIN_SEEDS}")
    run: Callable[..., StudyResult] = importlib.import_module(study.module).run
    given: Mapping[str, Any] = apply_overrides({}, overrides)
    for key in ("num_seeds", "progress", "runs"):
        if key in given:
            raise ValueError(f"study {name!r} has no option {key!r}; the number of seeds is --seeds")
    options = checked_options(run, given, where=f"study {name!r}")
    if "runs" not in inspect.signature(run).parameters:
        return run(num_seeds=seeds, progress=progress, **options)
    with TemporaryDirectory() as scratch:
        return run(num_seeds=seeds, progress=progress, runs=runs or Path(scratch), **options)
