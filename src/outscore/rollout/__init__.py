"""Prompts in, groups of completions out: the built-in engine behind a one-method seam, and a scripted fake."""

from outscore.rollout.engine import GroupEngine
from outscore.rollout.factory import make_sampler
from outscore.rollout.protocol import OnFinished, Sampler
from outscore.rollout.scripted import ScriptedSampler
from outscore.rollout.separate import SeparateEngine

__all__ = ["GroupEngine", "OnFinished", "Sampler", "ScriptedSampler", "SeparateEngine", "make_sampler"]
