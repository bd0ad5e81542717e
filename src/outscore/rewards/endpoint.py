"""Asking a judge: any OpenAI-compatible endpoint, with retries; and what any judge has, a cache and a budget."""

import contextlib
import email.message
import hashlib
import json
import os
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

from outscore.records import Message

_RETRYABLE = frozenset({408, 409, 425, 429, 500, 502, 503, 504})
_LONGEST_WAIT = 60.0
_sleep = time.sleep


class BudgetError(RuntimeError):
    """The calls or tokens that a recipe allows are used up."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Reply:
    """What the model answered.

    >>> Reply(text='{"correctness": "correct"}', num_tokens=120, cached=False)
    """

    text: str
    """The message."""
    num_tokens: int
    """What the endpoint counted for question and answer; 0 where it does not say."""
    cached: bool
    """Whether it was asked before and nothing was spent."""


class Asker(Protocol):
    """What a judge asks its questions."""

    def ask_all(self, questions: Sequence[Sequence[Message]], *, attempt: int = 0) -> list[Reply | Exception]:
        """The answer to each question, or why there is none; `attempt` counts how often the same is asked."""
        ...


class Budget:
    """What one process may spend on a judge.

    Args:
        max_calls: calls, repeated ones included; 0 for any number.
        max_tokens: tokens of questions and answers; 0 for any number.
    """

    def __init__(self, *, max_calls: int = 0, max_tokens: int = 0) -> None:
        self._max_calls, self._max_tokens = max_calls, max_tokens
        self._lock = threading.Lock()
        self.num_calls = 0
        """Calls made so far."""
        self.num_tokens = 0
        """Tokens used so far."""

    def spend_call(self) -> None:
        """Count a call that is about to be made; BudgetError if it may not be."""
        with self._lock:
            if self._max_calls and self.num_calls >= self._max_calls:
                raise BudgetError(f"the judge's budget is spent: max_calls = {self._max_calls}")
            if self._max_tokens and self.num_tokens >= self._max_tokens:
                raise BudgetError(
                    f"the judge's budget is spent: max_tokens = {self._max_tokens}, used {self.num_tokens}"
                )
            self.num_calls += 1

    def spent(self, num_tokens: int) -> None:
        """Count tokens that were used."""
        with self._lock:
            self.num_tokens += num_tokens


class KeptAnswers:
    """Answers by key: within the process, and in a directory so that a resumed run or another one does not pay again.

    Args:
        directory: where; "" for within the process only.
    """

    def __init__(self, directory: str) -> None:
        self._directory = Path(directory) if directory else None
        self._known: dict[str, str] = {}

    @staticmethod
    def key(asked: Any) -> str:
        """A name for what is asked: plain data, of whom and what."""
        return hashlib.sha256(json.dumps(asked, sort_keys=True).encode()).hexdigest()

    def look_up(self, key: str) -> str | None:
        """The answer; None where it has not been asked."""
        if key in self._known:
            return self._known[key]
        if self._directory is not None:
            with contextlib.suppress(FileNotFoundError):
                kept: str = json.loads((self._directory / f"{key}.json").read_text(encoding="utf-8"))["text"]
                self._known[key] = kept
                return kept
        return None

    def keep(self, key: str, text: str, about: Mapping[str, Any]) -> None:
        """Keep an answer, with what a person who reads the file may want to know."""
        self._known[key] = text
        if self._directory is not None:
            self._directory.mkdir(parents=True, exist_ok=True)
            aside = self._directory / f"{key}.{os.getpid()}.{threading.get_ident()}.tmp"
            aside.write_text(json.dumps({**about, "text": text}), encoding="utf-8")
            aside.replace(self._directory / f"{key}.json")  # complete or absent


class Endpoint:
    """A chat endpoint: `url`/chat/completions.

    Args:
        url: the base, such as http://localhost:8000/v1.
        model: the model's name there.
        budget: what may be spent.
        api_key_env: the environment variable with the key; no key is sent where it is not set.
        seconds: time limit of one call.
        retries: how often a call is repeated that failed for a reason that may pass (no connection, time, 429, 5xx).
        concurrency: how many questions are asked at once.
        cache: a directory for answers; "" for none. Within the process equal questions are asked once anyhow.

    Raises:
        ValueError: if the url is none.
    """

    def __init__(
        self,
        *,
        url: str,
        model: str,
        budget: Budget,
        api_key_env: str = "OPENAI_API_KEY",
        seconds: float = 120.0,
        retries: int = 4,
        concurrency: int = 8,
        cache: str = "",
    ) -> None:
        if not url.startswith(("http://", "https://")):
            raise ValueError(f"reward 'llm_judge': url = {url!r} must begin with http:// or https://")
        self._url = url.rstrip("/") + "/chat/completions"
        self._model = model
        self._budget = budget
        self._api_key_env = api_key_env
        self._seconds = seconds
        self._retries = retries
        self._concurrency = concurrency
        self._kept = KeptAnswers(cache)

    def ask_all(self, questions: Sequence[Sequence[Message]], *, attempt: int = 0) -> list[Reply | Exception]:
        """The answers, several questions at a time; BudgetError or RuntimeError in the place of one that is not to be
        had.

        Once a question has been given up, the next are asked once each until one is answered, and none is asked any
        more after `concurrency` of those: an endpoint that is down is waited for once, and not for every question.
        """
        patience = _Patience(self._retries + 1, self._concurrency)

        def asked(question: Sequence[Message]) -> Reply | Exception:
            try:
                return self.ask(question, attempt=attempt, patience=patience)
            except RuntimeError as error:
                return error

        keys = [KeptAnswers.key([dict(each) for each in question]) for question in questions]
        different = dict(zip(keys, questions, strict=True))
        with ThreadPoolExecutor(self._concurrency, thread_name_prefix="outscore-judge") as threads:
            found = dict(zip(different, threads.map(asked, different.values()), strict=True))
        return told_once(keys, found)

    def ask(self, messages: Sequence[Message], *, attempt: int = 0, patience: "_Patience | None" = None) -> Reply:
        """The model's answer, at temperature 0.

        `attempt` counts how often the same is asked because the answer was of no use: a later one is not looked up
        under the earlier. `patience` is shared by questions asked together.

        Raises:
            BudgetError: if nothing may be spent any more.
            RuntimeError: if the endpoint does not answer, or not with an answer.
        """
        asked = {"model": self._model, "messages": [dict(each) for each in messages], "temperature": 0}
        key = KeptAnswers.key([self._url, asked, attempt])
        known = self._kept.look_up(key)
        if known is not None:
            return Reply(text=known, num_tokens=0, cached=True)
        answer = self._call(asked, patience or _Patience(self._retries + 1, self._concurrency))
        try:
            text = answer["choices"][0]["message"]["content"]
            used = int((answer.get("usage") or {}).get("total_tokens", 0))
        except (KeyError, IndexError, TypeError, AttributeError, ValueError):
            text, used = None, 0
        if not isinstance(text, str):
            raise RuntimeError(f"{self._url} answered what is no chat completion: {json.dumps(answer)[:200]}")
        self._budget.spent(used)
        self._kept.keep(key, text, {"model": self._model})
        return Reply(text=text, num_tokens=used, cached=False)

    def _call(self, asked: dict[str, Any], patience: "_Patience") -> Any:
        headers = {"Content-Type": "application/json"}
        if api_key := os.environ.get(self._api_key_env):
            headers["Authorization"] = f"Bearer {api_key}"
        request = urllib.request.Request(self._url, json.dumps(asked).encode(), headers)
        tries = patience.tries()
        if not tries:
            raise RuntimeError(f"{self._url} was not asked: it did not answer the questions before")
        for attempt in range(tries):
            self._budget.spend_call()
            try:
                with urllib.request.urlopen(request, timeout=self._seconds) as response:
                    answer = json.load(response)
                patience.answered()
                return answer
            except urllib.error.HTTPError as error:
                with error:
                    said = error.read(500).decode("utf-8", errors="replace")
                reason, wait = f"{error.code} {error.reason}: {said}", _asked_to_wait(error.headers)
                if error.code not in _RETRYABLE:
                    patience.answered()
                    raise RuntimeError(f"{self._url} refuses: {reason}") from error
            except (OSError, ValueError) as error:  # no connection, too slow, no JSON
                reason, wait = f"{type(error).__name__}: {error}", None
            if attempt < tries - 1:
                _sleep(min(2.0**attempt if wait is None else wait, _LONGEST_WAIT))
        patience.gave_up()
        often = "once" if tries == 1 else f"{tries} times"
        raise RuntimeError(f"{self._url} did not answer, asked {often}; at last {reason}")


def told_once(keys: Sequence[str], answers: Mapping[str, Reply | Exception]) -> list[Reply | Exception]:
    """The answer to each question, of which equal ones have the same key: one that came before was known."""
    replies: list[Reply | Exception] = []
    seen: set[str] = set()
    for key in keys:
        answer = answers[key]
        if key in seen and isinstance(answer, Reply):
            answer = replace(answer, num_tokens=0, cached=True)
        replies.append(answer)
        seen.add(key)
    return replies


class _Patience:
    """How often each of the questions that are asked together is worth asking.

    Args:
        tries: how often, as long as the endpoint answers.
        concurrency: how many are asked at once.
    """

    def __init__(self, tries: int, concurrency: int) -> None:
        self._tries, self._concurrency = tries, concurrency
        self._given_up = 0
        self._lock = threading.Lock()

    def tries(self) -> int:
        """How often to ask the next; 0 is not at all."""
        with self._lock:
            if not self._given_up:
                return self._tries
            return int(self._given_up < 2 * self._concurrency)

    def answered(self) -> None:
        """The endpoint is there."""
        with self._lock:
            self._given_up = 0

    def gave_up(self) -> None:
        """A question got no answer."""
        with self._lock:
            self._given_up += 1


def _asked_to_wait(headers: email.message.Message) -> float | None:
    """Seconds of a Retry-After header; a date or nothing is None."""
    try:
        return max(0.0, float(headers.get("Retry-After", "")))
    except ValueError:
        return None
