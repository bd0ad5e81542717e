"""Steps of TRL's GRPOTrainer, a JSON line each: python benchmarks/trl_side.py MODEL WORKLOAD STEPS DTYPE [batching].

What TRL's defaults add to the work is switched off: checkpoints, shuffling, logging of completions, gradient
checkpointing, a reference model. Sampling alone is a call of `generate` with the same lengths. `batching` samples by
transformers' continuous batching instead, which draws no end token, so that all completions are as long as they may be;
its cache takes half of the memory that is free, whatever it needs, so no peak is told of it.
"""

import json
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from typing import Any

import torch
from datasets import Dataset
from device import now, peak_bytes
from gpu_workloads import workload_of
from torch.optim.optimizer import register_optimizer_step_post_hook, register_optimizer_step_pre_hook
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    ContinuousBatchingConfig,
    GenerationConfig,
    LogitsProcessor,
    LogitsProcessorList,
    TrainerCallback,
)
from trl import GRPOConfig, GRPOTrainer
from workloads import Workload

Say = Callable[[dict[str, Any]], None]
"""Hears a line about a step."""


BATCHING = {"max_memory_percent": 0.5}
"""Of continuous batching: TRL's own default, said once for both ways to call it."""


class ForcedLengths(LogitsProcessor):
    """Every row ends with the end token at its own length, and nowhere else."""

    def __init__(self, lengths: Sequence[int], prompt_tokens: int, end: int) -> None:
        self.lengths, self.prompt_tokens, self.end = torch.tensor(lengths), prompt_tokens, end

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        self.lengths = self.lengths.to(scores.device)
        last = self.lengths == input_ids.shape[1] - self.prompt_tokens + 1
        scores[:, self.end] = -torch.inf
        scores[last] = -torch.inf
        scores[last, self.end] = 0.0
        return scores


def sample_alone(model: str, work: Workload, steps: int, dtype: str, say: Say, *, batching: bool) -> None:
    """`generate`, or `generate_batch`, as TRL calls it: every prompt repeated for its group."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    tokenizer = AutoTokenizer.from_pretrained(model)
    loaded = AutoModelForCausalLM.from_pretrained(model, dtype=_weights(dtype)).eval().to(device)
    ids = torch.tensor(tokenizer(work.prompts(tokenizer))["input_ids"]).repeat_interleave(work.group_size, 0).to(device)
    pad = tokenizer.pad_token_id or tokenizer.eos_token_id
    endless = GenerationConfig(do_sample=True, top_k=0, max_new_tokens=work.longest, pad_token_id=pad, eos_token_id=-1)
    for _ in range(steps):
        forced = ForcedLengths(work.lengths(), work.prompt_tokens, tokenizer.eos_token_id)
        started, computed = now(), time.process_time()
        with torch.no_grad(), torch.autocast(device, torch.bfloat16, enabled=dtype == "bf16-autocast"):
            if batching:
                loaded.generate_batch(ids.tolist(), endless, ContinuousBatchingConfig(**BATCHING), progress_bar=False)
            else:
                loaded.generate(
                    input_ids=ids,
                    attention_mask=torch.ones_like(ids),
                    do_sample=True,
                    top_k=0,
                    max_new_tokens=work.longest,
                    logits_processor=LogitsProcessorList([forced]),
                    pad_token_id=pad,
                    eos_token_id=tokenizer.eos_token_id,
                )
        taken, cpu = now() - started, time.process_time() - computed
        say(step_line(work, dtype, batching, seconds=taken, sample=taken, cpu_seconds=cpu))


def _weights(dtype: str) -> str:
    return "bfloat16" if dtype == "bf16" else "float32"


def step_line(work: Workload, dtype: str, batching: bool, **seconds: float) -> dict[str, Any]:
    """What is printed of a step."""
    nothing = dict.fromkeys(("seconds", "cpu_seconds", "sample", "score", "backward", "optimizer"), 0.0)
    return {
        **nothing,
        **seconds,
        "tokens": sum(work.lengths()),
        "peak_bytes": None if batching else peak_bytes(),
        "threads": torch.get_num_threads(),
        "precision": dtype,
    }


class Clock(TrainerCallback):
    """What a step spends where; `say` hears a line of each when it is done."""

    def __init__(self, say: Callable[..., None]) -> None:
        self.say = say
        self.spent = {"sample": 0.0, "collect": 0.0, "optimizer": 0.0}
        self.started = self.computed = self.stepped = 0.0
        register_optimizer_step_pre_hook(self._before)
        register_optimizer_step_post_hook(self._after)

    def on_step_begin(self, *args: Any, **options: Any) -> None:
        self.spent = dict.fromkeys(self.spent, 0.0)
        self.started, self.computed = now(), time.process_time()

    def on_step_end(self, *args: Any, **options: Any) -> None:
        total, spent = now() - self.started, self.spent
        self.say(
            seconds=total,
            cpu_seconds=time.process_time() - self.computed,
            sample=spent["sample"],
            score=spent["collect"] - spent["sample"],
            backward=total - spent["collect"] - spent["optimizer"],
            optimizer=spent["optimizer"],
        )

    def timed(self, what: str, work: Callable[..., Any], **more: Any) -> Callable[..., Any]:
        """The same function, which is given more and whose time is counted."""

        def called(*args: Any, **options: Any) -> Any:
            started = now()
            made = work(*args, **more, **options)
            self.spent[what] += now() - started
            return made

        return called

    def _before(self, *args: Any) -> None:
        self.stepped = now()

    def _after(self, *args: Any) -> None:
        self.spent["optimizer"] += now() - self.stepped


def configuration(work: Workload, steps: int, dtype: str, directory: str, *, batching: bool) -> GRPOConfig:
    """TRL's settings for the work, without what would add to it."""
    together = work.trl_batch or work.num_completions
    return GRPOConfig(
        output_dir=directory,
        per_device_train_batch_size=together,
        gradient_accumulation_steps=work.num_completions // together,
        use_transformers_continuous_batching=batching,
        transformers_continuous_batching_config=BATCHING if batching else None,
        num_generations=work.group_size,
        max_completion_length=work.longest,
        max_steps=steps,
        learning_rate=1e-6,
        lr_scheduler_type="constant",
        beta=0.0,
        loss_type="grpo",
        scale_rewards="group",
        bf16=dtype == "bf16-autocast",
        use_cpu=not torch.cuda.is_available(),
        gradient_checkpointing=False,
        shuffle_dataset=False,
        save_strategy="no",
        report_to=[],
        logging_steps=1,
        disable_tqdm=True,
        model_init_kwargs={"dtype": _weights(dtype)},
    )


def take_steps(model: str, work: Workload, steps: int, dtype: str, say: Say, *, batching: bool = False) -> None:
    """Take the steps; `say` hears what each took when it is done."""
    if work.kind == "sampling":
        sample_alone(model, work, steps, dtype, say, batching=batching)
        return
    tokenizer = AutoTokenizer.from_pretrained(model)
    clock = Clock(lambda **seconds: say(step_line(work, dtype, batching, **seconds)))

    def table(completions: Sequence[Any], **columns: Any) -> list[float]:
        return work.rewards()

    with tempfile.TemporaryDirectory() as directory:
        trainer = GRPOTrainer(
            model=model,
            reward_funcs=table,
            processing_class=tokenizer,
            train_dataset=Dataset.from_list([{"prompt": text} for text in work.prompts(tokenizer)]),
            callbacks=[clock],
            args=configuration(work, steps, dtype, directory, batching=batching),
        )
        if batching:
            trainer.generation_config.eos_token_id = -1
            trainer.model.generate_batch = clock.timed("sample", trainer.model.generate_batch)
        else:
            forced = LogitsProcessorList([ForcedLengths(work.lengths(), work.prompt_tokens, tokenizer.eos_token_id)])
            trainer.model.generate = clock.timed("sample", trainer.model.generate, logits_processor=forced)
        trainer._generate_and_score_completions = clock.timed("collect", trainer._generate_and_score_completions)
        trainer.train()


if __name__ == "__main__":
    directory, name, number, given, *more = sys.argv[1:]
    take_steps(
        directory,
        workload_of(name),
        int(number),
        given,
        lambda line: print(json.dumps(line), flush=True),
        batching=more == ["batching"],
    )
