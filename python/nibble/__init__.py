"""nibble: DeepSeek-R1-class models in NVFP4, on this machine.

    from nibble import LLM, SamplingParams

    llm = LLM(model="DIR")
    for output in llm.generate(["Hello, my name is"], SamplingParams(max_tokens=32)):
        print(output.prompt, output.outputs[0].text)
"""
from nibble._nibble import __version__
from nibble.config import DeepseekV3ForCausalLM, KvCacheConfig, MTPDecodingConfig
from nibble.errors import (
    CancelledError,
    CorruptError,
    InvalidArgumentError,
    NibbleError,
    NotFoundError,
    OutOfMemoryError,
    UnavailableError,
    UnsupportedError,
)
from nibble.llm import LLM, RequestHandle
from nibble.outputs import CompletionOutput, Logprobs, RequestMetrics, RequestOutput
from nibble.sampling_params import SamplingParams

__all__ = [
    "LLM",
    "CancelledError",
    "CompletionOutput",
    "CorruptError",
    "DeepseekV3ForCausalLM",
    "InvalidArgumentError",
    "KvCacheConfig",
    "Logprobs",
    "MTPDecodingConfig",
    "NibbleError",
    "NotFoundError",
    "OutOfMemoryError",
    "RequestHandle",
    "RequestMetrics",
    "RequestOutput",
    "SamplingParams",
    "UnavailableError",
    "UnsupportedError",
    "__version__",
]
