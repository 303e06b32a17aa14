"""What comes back for a prompt."""
from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt


@dataclass
class Logprobs:
    """Natural logarithms, for each of a row of tokens; -inf for what can't be drawn."""

    token_ids: npt.NDArray[np.int32]  # [tokens] that stand there
    logprobs: npt.NDArray[np.float64]  # [tokens]
    ranks: npt.NDArray[np.int64]  # [tokens] 1: the likeliest
    top_token_ids: npt.NDArray[np.int32]  # [tokens, k] best first, with the one that stands there;
    top_logprobs: npt.NDArray[np.float64]  # [tokens, k] places without an entry are -1, -inf, -1
    top_ranks: npt.NDArray[np.int64]  # [tokens, k]

    def __len__(self) -> int:
        return len(self.token_ids)


@dataclass
class CompletionOutput:
    """One of the n answers to a prompt."""

    index: int
    text: str  # of a chat: the answer behind the thinking
    token_ids: list[int]  # all, with the one that ended it
    reasoning_content: str  # of a chat: what is between <think> and </think>
    finish_reason: str | None  # stop, length, abort, error; None while it goes on
    stop_reason: str | int | None  # the stop text or id that ended it
    logprobs: Logprobs | None  # of token_ids, when asked for
    cumulative_logprob: float | None  # their sum, when asked for or ranked by best_of
    text_diff: str  # new since the handle gave the output before
    reasoning_content_diff: str
    token_ids_diff: list[int]


@dataclass
class RequestMetrics:
    arrival_time: float  # seconds since 1970
    time_to_first_token: float  # seconds since arrival; 0 without a token
    end_to_end: float  # seconds from arrival to the end; 0 while it goes on


@dataclass
class RequestOutput:
    request_id: int
    prompt: str  # as given; of token ids and chats the decoded text
    prompt_token_ids: list[int]
    outputs: list[CompletionOutput]  # n; by best_of the best first
    prompt_logprobs: Logprobs | None  # from the second token on, when asked for
    finished: bool
    num_cached_tokens: int  # of the prompt, found instead of computed
    seed: int  # that was used
    metrics: RequestMetrics = field(repr=False)
    error: str | None  # with finish_reason "error"; it concerns this request alone

    @property
    def text(self) -> str:
        """Of the first output."""
        return self.outputs[0].text


def _logprobs(values: dict[str, Any] | None) -> Logprobs | None:
    return None if values is None else Logprobs(**values)


def request_output(values: dict[str, Any]) -> RequestOutput:
    """From the extension module's dictionary."""
    outputs = []
    for output in values["outputs"]:
        output["logprobs"] = _logprobs(output["logprobs"])
        outputs.append(CompletionOutput(**output))
    values["outputs"] = outputs
    values["prompt_logprobs"] = _logprobs(values["prompt_logprobs"])
    values["metrics"] = RequestMetrics(**values["metrics"])
    return RequestOutput(**values)
