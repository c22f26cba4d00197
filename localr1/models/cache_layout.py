"""How one layer holds a token in the cache: so many values of a type, and the scales of them.

The planner's bytes and the memory that is taken both come from here. Not here: that memory
(kv_cache.py), or how rows are written and read (attention.py, gqa.py, localr1.gpu).
"""

from __future__ import annotations

from dataclasses import dataclass

from localr1.errors import USAGE, LocalR1Error
from localr1.models.architecture import Config
from localr1.models.dense_config import DenseConfig

IN_16_BITS, IN_8_BITS = CACHES = ("16bit", "8bit")  # of a cache on a GPU
_NBYTES = {"float32": 4, "bfloat16": 2, "uint8": 1, "int8": 1}


@dataclass(frozen=True, slots=True)
class CacheLayout:
    """`width` values of `dtype` (as torch calls it), and `n_scales` float32."""

    width: int
    dtype: str
    n_scales: int = 0

    @property
    def nbytes(self) -> int:
        """Of a token in one layer."""
        return self.width * _NBYTES[self.dtype] + 4 * self.n_scales

    def __str__(self) -> str:
        """`576 float32`, `576 uint8 + 2 scales`."""
        return f"{self.width} {self.dtype}" + (
            f" + {self.n_scales} scales" if self.n_scales else ""
        )


def on_cpu(config: Config) -> CacheLayout:
    """Rows of a layer whose attention runs on the CPU."""
    return CacheLayout(config.cache_width, "float32")


def on_gpu(config: Config, cache: str = IN_16_BITS) -> CacheLayout:
    """Rows of a layer whose attention runs on a GPU (localr1.gpu.cache_rows says what they hold):
    bf16; or in 8 bits, e4m3 codes of latents, int8 of keys and values.
    """
    if cache == IN_16_BITS:
        return CacheLayout(config.cache_width, "bfloat16")
    if isinstance(config, DenseConfig):
        return CacheLayout(config.cache_width, "int8", 2 * config.n_kv_heads)
    return CacheLayout(config.cache_width, "uint8", 2)


def checked(cache: str) -> str:
    """`cache`, one of CACHES. Raises LocalR1Error."""
    if cache not in CACHES:
        raise LocalR1Error(f"{cache!r} is no cache", f"--cache takes {' or '.join(CACHES)}", USAGE)
    return cache
