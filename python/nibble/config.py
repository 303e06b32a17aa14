"""Configurations under TensorRT-LLM's names: each is a dict, as which it may be given too."""
from __future__ import annotations

import os
from typing import Any


class KvCacheConfig(dict[str, Any]):
    """kv_cache_config: free_gpu_memory_fraction, max_tokens, dtype, tokens_per_block, ..."""

    def __init__(self, **options: Any) -> None:
        super().__init__(options)


class MTPDecodingConfig(dict[str, Any]):
    """speculative_config: num_nextn_predict_layers drafts a step, and how they are judged."""

    def __init__(self, num_nextn_predict_layers: int = 1, **options: Any) -> None:
        super().__init__(
            decoding_type="MTP", num_nextn_predict_layers=num_nextn_predict_layers, **options
        )


class DeepseekV3ForCausalLM(os.PathLike[str]):
    """A handle on a checkpoint, nothing loaded yet: what LLM(model=...) takes, too."""

    def __init__(self, directory: str | os.PathLike[str]) -> None:
        self.directory = os.fspath(directory)

    @classmethod
    def from_pretrained(cls, directory: str | os.PathLike[str]) -> DeepseekV3ForCausalLM:
        return cls(directory)

    def __fspath__(self) -> str:
        return self.directory
