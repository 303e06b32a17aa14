"""How the next token is chosen and when generation ends."""
from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from nibble import _nibble


def to_json(values: Mapping[str, Any]) -> str:
    """With numpy's scalars and arrays as numbers and lists; NaN is refused."""

    def other(value: Any) -> Any:
        if hasattr(value, "tolist"):
            return value.tolist()
        if hasattr(value, "__fspath__"):
            return value.__fspath__()
        raise TypeError(f"{type(value).__name__} is no option's value: {value!r}")

    return json.dumps(values, default=other, allow_nan=False)


class SamplingParams:
    """Checked when made: InvalidArgumentError (a ValueError) names field, value and range.

    None takes the model's own default (generation_config.json), or that of LLM.
    """

    def __init__(
        self,
        *,
        max_tokens: int | None = None,  # >= 1; None: the rest of the context
        min_tokens: int = 0,
        temperature: float | None = None,  # 0..2; 0 is greedy
        top_p: float | None = None,  # above 0, at most 1
        top_k: int | None = None,  # 0 and -1: off
        min_p: float = 0.0,  # 0..1
        repetition_penalty: float = 1.0,  # above 0, at most 10
        presence_penalty: float = 0.0,  # -2..2
        frequency_penalty: float = 0.0,  # -2..2
        logit_bias: Mapping[int, float] | None = None,  # id -> -100..100; -100 bans
        seed: int | None = None,  # None: from the seed of LLM and a counter
        n: int = 1,  # 1..128
        best_of: int | None = None,  # n..128: made, of which the n best are kept
        stop: str | Sequence[str] | None = None,
        stop_token_ids: Sequence[int] | None = None,
        include_stop_str_in_output: bool = False,
        ignore_eos: bool = False,
        bad: str | Sequence[str] | None = None,  # texts that must not appear
        logprobs: int | None = None,  # 0..20 top entries for each token
        prompt_logprobs: int | None = None,
        skip_special_tokens: bool = True,
        truncate_prompt_tokens: int | None = None,  # keep the last of them
        guided: Mapping[str, Any] | None = None,  # {"json": SCHEMA} or regex, choice, grammar
        thinking: str = "auto",  # of chats: auto, on, off
        thinking_budget: int | None = None,  # tokens, then </think> is forced
        relaxed_acceptance: bool | Mapping[str, Any] | None = None,  # False, {"topk", "delta"}
        cache_salt: str = "",
        priority: int = 0,  # -100..100, higher first
        timeout_seconds: float | None = None,
        **others: Any,  # aliases: max_new_tokens, max_completion_tokens; else an error
    ) -> None:
        given = {key: value for key, value in locals().items() if key not in ("self", "others")}
        self.max_tokens = max_tokens
        self.min_tokens = min_tokens
        self.temperature = temperature
        self.top_p = top_p
        self.top_k = top_k
        self.min_p = min_p
        self.repetition_penalty = repetition_penalty
        self.presence_penalty = presence_penalty
        self.frequency_penalty = frequency_penalty
        self.logit_bias = logit_bias
        self.seed = seed
        self.n = n
        self.best_of = best_of
        self.stop = stop
        self.stop_token_ids = stop_token_ids
        self.include_stop_str_in_output = include_stop_str_in_output
        self.ignore_eos = ignore_eos
        self.bad = bad
        self.logprobs = logprobs
        self.prompt_logprobs = prompt_logprobs
        self.skip_special_tokens = skip_special_tokens
        self.truncate_prompt_tokens = truncate_prompt_tokens
        self.guided = guided
        self.thinking = thinking
        self.thinking_budget = thinking_budget
        self.relaxed_acceptance = relaxed_acceptance
        self.cache_salt = cache_salt
        self.priority = priority
        self.timeout_seconds = timeout_seconds
        for alias in ("max_new_tokens", "max_completion_tokens"):
            if alias in others:
                self.max_tokens = given["max_tokens"] = others.pop(alias)
        _nibble.check_sampling_params(to_json({**given, **others}))

    def to_json(self) -> str:
        """As the C++ and C interfaces read it. Without what is silent."""
        return to_json({key: value for key, value in vars(self).items() if value is not None})

    def __repr__(self) -> str:
        default = vars(SamplingParams())
        shown = (f"{key}={value!r}" for key, value in vars(self).items() if value != default[key])
        return f"SamplingParams({', '.join(shown)})"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, SamplingParams) and vars(self) == vars(other)

    __hash__ = None  # type: ignore[assignment]  # mutable
