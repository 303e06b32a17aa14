"""A model that answers prompts, one after the other or many at once."""
from __future__ import annotations

import asyncio
import os
import weakref
from collections.abc import AsyncIterator, Generator, Iterator, Mapping, Sequence
from typing import Any, Union, overload

from nibble import _nibble
from nibble.errors import InvalidArgumentError
from nibble.outputs import RequestOutput, request_output
from nibble.sampling_params import SamplingParams, to_json

# Text; token ids; or {"prompt": ...} or {"prompt_token_ids": [...]}.
Prompt = Union[str, Sequence[int], Mapping[str, Any]]


class _Loop:
    """Wakes what waits in one asyncio loop: one file descriptor for all its requests."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self.waker = _nibble.Waker()
        self._waiting: set[tuple[_nibble.RequestHandle, asyncio.Event]] = set()
        loop.add_reader(self.waker.fileno(), self._wake)

    def _wake(self) -> None:
        self.waker.clear()
        for handle, event in self._waiting:
            if handle.ready():
                event.set()

    async def wait(self, handle: _nibble.RequestHandle) -> None:
        event = asyncio.Event()
        entry = (handle, event)
        self._waiting.add(entry)
        try:
            handle.wake(self.waker)  # writes at once when something is there already
            await event.wait()
        finally:
            self._waiting.discard(entry)


_loops: weakref.WeakKeyDictionary[asyncio.AbstractEventLoop, _Loop] = weakref.WeakKeyDictionary()


def _loop() -> _Loop:
    loop = asyncio.get_running_loop()
    if loop not in _loops:
        _loops[loop] = _Loop(loop)
    return _loops[loop]


class RequestHandle:
    """A request on its way.

    `for output in handle` and `async for output in handle` give the output so far whenever tokens
    came, the last one `finished`; `handle.result()` and `await handle` give the whole.
    """

    def __init__(self, native: _nibble.RequestHandle) -> None:
        self._native = native

    @property
    def request_id(self) -> int:
        return self._native.request_id

    @property
    def finished(self) -> bool:
        return self._native.finished

    def result(self, timeout: float | None = None) -> RequestOutput:
        """Waits for the end. TimeoutError after `timeout` seconds, and the request goes on; what
        else ends the wait, as Ctrl-C does, aborts it."""
        try:
            return request_output(self._native.result(timeout))
        except BaseException as error:
            if timeout is None or not isinstance(error, TimeoutError):
                self.abort()
            raise

    def abort(self) -> None:
        """Ends with finish_reason "abort" within one step."""
        self._native.abort()

    def __iter__(self) -> Iterator[RequestOutput]:
        return self

    def __next__(self) -> RequestOutput:
        try:
            values = self._native.next()
        except BaseException:  # Ctrl-C, or what another signal's handler raised
            self.abort()
            raise
        if values is None:
            raise StopIteration
        return request_output(values)

    def __aiter__(self) -> AsyncIterator[RequestOutput]:
        return self

    async def __anext__(self) -> RequestOutput:
        try:
            while not self._native.ready():
                await _loop().wait(self._native)
        except asyncio.CancelledError:
            self.abort()
            raise
        values = self._native.next()
        if values is None:
            raise StopAsyncIteration
        return request_output(values)

    def __await__(self) -> Generator[Any, None, RequestOutput]:
        return self._wait().__await__()

    async def _wait(self) -> RequestOutput:
        async for _ in self:
            pass
        return self.result()


class LLM:
    """A checkpoint, loaded. May be used by many threads and asyncio loops at once.

    model: a directory, a name in the local model folders, or a DeepseekV3ForCausalLM. Nothing is
    downloaded. The other options are TensorRT-LLM's; those that this build can't honour are refused
    by name (UnsupportedError), unknown ones with the nearest known ones (InvalidArgumentError).
    """

    def __init__(
        self,
        model: str | os.PathLike[str],
        *,
        tokenizer: str | os.PathLike[str] | None = None,
        tensor_parallel_size: int = 1,
        enable_attention_dp: bool = False,
        max_batch_size: int | None = None,
        max_num_tokens: int | None = None,
        max_seq_len: int | None = None,
        kv_cache_config: Mapping[str, Any] | None = None,
        speculative_config: Mapping[str, Any] | None = None,
        **options: Any,
    ) -> None:
        given = {
            "model": os.fspath(model),
            "tokenizer": None if tokenizer is None else os.fspath(tokenizer),
            "tensor_parallel_size": tensor_parallel_size,
            "enable_attention_dp": enable_attention_dp,
            "max_batch_size": max_batch_size,
            "max_num_tokens": max_num_tokens,
            "max_seq_len": max_seq_len,
            "kv_cache_config": kv_cache_config,
            "speculative_config": speculative_config,
        }
        self._native = _nibble.LLM(to_json({**given, **options}))

    @overload  # a text is a sequence of texts, too
    def generate(  # type: ignore[overload-overlap]
        self, inputs: str | Mapping[str, Any], sampling_params: SamplingParams | None = None
    ) -> RequestOutput: ...

    @overload
    def generate(
        self,
        inputs: Sequence[Prompt],
        sampling_params: SamplingParams | Sequence[SamplingParams] | None = None,
    ) -> list[RequestOutput]: ...

    def generate(self, inputs: Any, sampling_params: Any = None) -> Any:
        """Answers, in the order of the prompts; one prompt gives one output.

        `inputs` is a prompt or a list of prompts; a list of ids is one prompt. All are checked
        before any runs. What goes wrong later concerns one request: its `error` is set. Ctrl-C,
        or whatever else ends the wait, aborts them all. `sampling_params` is for all, or a list with
        one for each.
        """
        single = _is_prompt(inputs)
        handles = self._start([inputs] if single else list(inputs), sampling_params)
        try:
            outputs = [handle.result() for handle in handles]
        except BaseException:  # Ctrl-C, or what another signal's handler raised
            for handle in handles:
                handle.abort()
            raise
        return outputs[0] if single else outputs

    def generate_async(
        self, inputs: Prompt, sampling_params: SamplingParams | None = None
    ) -> RequestHandle:
        """Starts a request; see RequestHandle. best_of above n comes as one whole at the end."""
        if not _is_prompt(inputs):
            raise InvalidArgumentError("generate_async takes one prompt; start one request for each")
        return self._start([inputs], sampling_params)[0]

    def chat(
        self,
        messages: Sequence[Mapping[str, Any]],
        sampling_params: SamplingParams | None = None,
        tools: Sequence[Mapping[str, Any]] | None = None,
    ) -> RequestOutput:
        """Answers a conversation, [{"role": "user", "content": "Hi"}]."""
        return self.chat_async(messages, sampling_params, tools).result()

    def chat_async(
        self,
        messages: Sequence[Mapping[str, Any]],
        sampling_params: SamplingParams | None = None,
        tools: Sequence[Mapping[str, Any]] | None = None,
    ) -> RequestHandle:
        params = sampling_params or SamplingParams()
        return RequestHandle(
            self._native.start_chat(to_json(_conversation(messages, tools)), params.to_json())
        )

    def apply_chat_template(
        self,
        messages: Sequence[Mapping[str, Any]],
        tools: Sequence[Mapping[str, Any]] | None = None,
        thinking: str = "auto",
    ) -> list[int]:
        """The ids of a conversation in the model's template."""
        return self._native.apply_chat_template(to_json(_conversation(messages, tools)), thinking)

    def encode(self, text: str, add_special_tokens: bool = True) -> list[int]:
        return self._native.encode(text, add_special_tokens)

    def decode(self, token_ids: Sequence[int], skip_special_tokens: bool = True) -> str:
        return self._native.decode(list(token_ids), skip_special_tokens)

    def get_stats(self) -> dict[str, Any]:
        """Counts since the model was loaded, under the names of the server's metrics."""
        return self._native.get_stats()

    @property
    def max_seq_len(self) -> int:
        """Prompt and output of one request, in tokens."""
        return self._native.max_seq_len

    @property
    def vocab_size(self) -> int:
        return self._native.vocab_size

    @property
    def model(self) -> str:
        """The checkpoint's directory."""
        return self._native.model

    def shutdown(self) -> None:
        """Ends what runs with "abort"; later calls raise UnavailableError."""
        self._native.shutdown()

    def __enter__(self) -> LLM:
        return self

    def __exit__(self, *_: object) -> None:
        self.shutdown()

    def _start(self, prompts: list[Prompt], params: Any) -> list[RequestHandle]:
        if params is None:
            params = SamplingParams()
        if isinstance(params, SamplingParams):
            each = [params.to_json()] * len(prompts)
        else:
            each = [one.to_json() for one in params]
        native = self._native.start([_native_prompt(p) for p in prompts], each)
        return [RequestHandle(handle) for handle in native]


def _is_prompt(inputs: Any) -> bool:
    if isinstance(inputs, (str, Mapping)):
        return True
    return len(inputs) > 0 and all(hasattr(item, "__index__") for item in inputs)


def _native_prompt(prompt: Prompt) -> str | list[int]:
    if isinstance(prompt, Mapping):
        if len(prompt) != 1 or not prompt.keys() <= {"prompt", "prompt_token_ids"}:
            raise InvalidArgumentError(
                f"a prompt has the keys {sorted(prompt)}, expected prompt or prompt_token_ids"
            )
        (prompt,) = prompt.values()
    if isinstance(prompt, str):
        return prompt
    ids = [int(item) for item in prompt]
    if any(not -(2**31) <= item < 2**31 for item in ids):
        raise InvalidArgumentError("a token id of the prompt is no 32-bit number")
    return ids


def _conversation(
    messages: Sequence[Mapping[str, Any]], tools: Sequence[Mapping[str, Any]] | None
) -> dict[str, Any]:
    conversation: dict[str, Any] = {"messages": list(messages)}
    if tools is not None:
        conversation["tools"] = list(tools)
    return conversation
