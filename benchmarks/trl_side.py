"""Steps of TRL's GRPOTrainer, a JSON line each: python benchmarks/trl_side.py MODEL WORKLOAD STEPS DTYPE [batching].

What TRL's defaults add to the work is switched off: checkpoints, shuffling, logging of completions, gradient
checkpointing, a reference model. Sampling alone is a call of `generate` with the same lengths. `batching` samples by
transformers' continuous batching instead, which draws no end token, so that all completions are as long as they may be.
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
from gpu_workloads import GPU_WORKLOADS
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
from workloads import WORKLOADS, Workload

Say = Callable[[dict[str, Any]], None]
"""Hears a line about a step."""


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
    loaded = AutoModelForCausalLM.from_pretrained(model, dtype="bfloat16" if dtype == "bf16" else "float32").eval()
    loaded.to(device)
    ids = torch.tensor(tokenizer(work.prompts(tokenizer))["input_ids"]).repeat_interleave(work.group_size, 0).to(device)
    pad = tokenizer.pad_token_id or tokenizer.eos_token_id
    endless = GenerationConfig(do_sample=True, top_k=0, max_new_tokens=work.longest, pad_token_id=pad, eos_token_id=-1)
    for _ in range(steps):
        forced = ForcedLengths(work.lengths(), work.prompt_tokens, tokenizer.eos_token_id)
        started, computed = now(), time.process_time()
        with torch.no_grad(), torch.autocast(device, torch.bfloat16, enabled=dtype == "bf16-autocast"):
            if batching:
                loaded.generate_batch(
                    ids.tolist(), endless, ContinuousBatchingConfig(max_memory_percent=0.5), progress_bar=False
                )
                say(_sampled(work, now() - started, computed))
                continue
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
        say(_sampled(work, now() - started, computed))


def _sampled(work: Workload, taken: float, computed: float) -> dict[str, Any]:
    return step_line(work, seconds=taken, sample=taken, cpu=time.process_time() - computed)


def step_line(work: Workload, **seconds: float) -> dict[str, Any]:
    """What is printed of a step."""
    return {
        "seconds": seconds["seconds"],
        "cpu_seconds": seconds.get("cpu", 0.0),
        "sample": seconds["sample"],
        "score": seconds.get("score", 0.0),
        "backward": seconds.get("backward", 0.0),
        "optimizer": seconds.get("optimizer", 0.0),
        "tokens": sum(work.lengths()),
        "peak_bytes": peak_bytes(),
        "threads": torch.get_num_threads(),
    }


def take_steps(model: str, work: Workload, steps: int, dtype: str, say: Say, *, batching: bool = False) -> None:
    """Take the steps; `say` hears what each took when it is done."""
    if work.kind == "sampling":
        sample_alone(model, work, steps, dtype, say, batching=batching)
        return
    tokenizer = AutoTokenizer.from_pretrained(model)
    seconds = {"sample": 0.0, "collect": 0.0, "optimizer": 0.0, "started": 0.0, "stepped": 0.0, "cpu": 0.0}

    def table(completions: Sequence[Any], **columns: Any) -> list[float]:
        return work.rewards()

    class Clock(TrainerCallback):
        def on_step_begin(self, *args: Any, **options: Any) -> None:
            seconds.update(sample=0.0, collect=0.0, optimizer=0.0, started=now(), cpu=time.process_time())

        def on_step_end(self, *args: Any, **options: Any) -> None:
            total = now() - seconds["started"]
            line = step_line(
                work,
                seconds=total,
                sample=seconds["sample"],
                score=seconds["collect"] - seconds["sample"],
                backward=total - seconds["collect"] - seconds["optimizer"],
                optimizer=seconds["optimizer"],
                cpu=time.process_time() - seconds["cpu"],
            )
            say(line)

    def stepped(*args: Any) -> None:
        seconds["optimizer"] += now() - seconds["stepped"]

    register_optimizer_step_pre_hook(lambda *args: seconds.update(stepped=now()))
    register_optimizer_step_post_hook(stepped)
    with tempfile.TemporaryDirectory() as directory:
        trainer = GRPOTrainer(
            model=model,
            reward_funcs=table,
            processing_class=tokenizer,
            train_dataset=Dataset.from_list([{"prompt": text} for text in work.prompts(tokenizer)]),
            callbacks=[Clock()],
            args=GRPOConfig(
                output_dir=directory,
                per_device_train_batch_size=work.trl_batch or work.num_completions,
                gradient_accumulation_steps=work.num_completions // (work.trl_batch or work.num_completions),
                use_transformers_continuous_batching=batching,
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
                model_init_kwargs={"dtype": "bfloat16" if dtype == "bf16" else "float32"},
            ),
        )
        forced = ForcedLengths(work.lengths(), work.prompt_tokens, tokenizer.eos_token_id)
        options_of = {} if batching else {"logits_processor": LogitsProcessorList([forced])}
        name = "generate_batch" if batching else "generate"
        generate = getattr(trainer.model, name)
        if batching:
            trainer.generation_config.eos_token_id = -1

        def timed(*args: Any, **options: Any) -> Any:
            started = now()
            made = generate(*args, **options_of, **options)
            seconds["sample"] += now() - started
            return made

        collect = trainer._generate_and_score_completions

        def collected(*args: Any, **options: Any) -> Any:
            started = now()
            made = collect(*args, **options)
            seconds["collect"] += now() - started
            return made

        setattr(trainer.model, name, timed)
        trainer._generate_and_score_completions = collected
        trainer.train()


if __name__ == "__main__":
    directory, name, number, given, *more = sys.argv[1:]
    take_steps(
        directory,
        (WORKLOADS | GPU_WORKLOADS)[name],
        int(number),
        given,
        lambda line: print(json.dumps(line), flush=True),
        batching=more == ["batching"],
    )
