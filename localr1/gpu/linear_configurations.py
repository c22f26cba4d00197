"""Every configuration of the linear kernels that a model may launch, for warm-up and for CI."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

from localr1.gpu.expansion import expand_kernel
from localr1.gpu.formats import GPU_FORMATS
from localr1.gpu.gemv import gemv_kernel
from localr1.gpu.integer_gemv import integer_gemv_kernel
from localr1.gpu.launch import Configuration
from localr1.gpu.matmul import matmul_kernel
from localr1.gpu.sizes import R1, AnySizes, GroupedSizes, LatentSizes, ffn_widths
from localr1.gpu.tiles import EXPANDED, GemvTile, MatmulTile, gemv_tile, matmul_tile

_COUNTS = ("n_blocks", "n_tokens", "rows", "cols", "x_token", "x_matrix", "out_token", "out_matrix")


def configurations(
    arch: int,
    sizes: AnySizes = R1,
    formats: Iterable[str] = GPU_FORMATS,
    tokens: Iterable[int] = (1, 2, 4, 8),
) -> Iterator[Configuration]:
    """Products with a model's weights outside its routed experts, if they are in `formats`.

    `tokens` are the numbers of tokens that are decoded at once.
    """
    for name in formats:
        for n in tokens:
            for tile, gated, out, add in sorted(set(_gemvs(arch, sizes, name, n)), key=str):
                yield gemv_configuration(name, tile, n, gated, "*fp32", out, add)
        for large in _matmul_tiles(arch, name):
            for add in (None, "*fp32"):
                yield _matmul(name, large, "*fp32", "*fp32", add)
        if not isinstance(sizes, GroupedSizes):
            yield _expansion(name)


def chosen(arch: int, sizes: LatentSizes, formats: Iterable[str]) -> Iterator[Configuration]:
    """Products of decoding with routed experts: the matrices of a stack that `ids` names."""
    inter, hidden = sizes.moe_intermediate_size, sizes.hidden_size
    kinds = "*fp32", "*fp32", None, "*i32"
    for name in formats:
        tiles = {
            (gemv_tile(arch, name, k * rows, cols, n), n)
            for rows, cols in ((inter, hidden), (hidden, inter))
            for k, n in ((1, 1), (1, 2), (1, 4), (1, 8), (sizes.n_experts_per_tok, 1))
            if cols % GPU_FORMATS[name].block_values == 0
        }
        for tile, n in sorted(tiles, key=str):
            yield gemv_configuration(name, tile, n, False, *kinds)


def grouped(arch: int, formats: Iterable[str]) -> Iterator[Configuration]:
    """Products of a prompt with routed experts."""
    for name in formats:
        for tile in _matmul_tiles(arch, name):
            yield _matmul(name, tile, "*fp32", "*fp32", None, "*i32")


def _matmul_tiles(arch: int, name: str) -> list[MatmulTile]:
    return sorted({matmul_tile(arch, name, n) for n in (16, 64, 128)}, key=str)


def representative(arch: int) -> Iterator[Configuration]:
    """What CI compiles of all that: each kernel for each format for sm_86, three formats elsewhere.

    Products of few tokens and `expand_kernel` use little shared memory, those of many the most with
    float32 activations in the largest tile, and as much on sm_86 as on sm_80, 89 and 120.
    """
    for name in GPU_FORMATS if arch == 86 else ("Q4_K", "FP8_E4M3", "F32"):
        kinds = "*bf16", "*fp32", "*fp32"
        rows, cols = R1.hidden_size, R1.n_heads * R1.v_head_dim
        yield gemv_configuration(name, gemv_tile(arch, name, rows, cols, 1), 1, False, *kinds)
        yield _matmul(name, matmul_tile(arch, name, 128), "*fp32", "*fp32", "*fp32")
        yield _matmul(name, matmul_tile(arch, name, 128), "*fp32", "*fp32", None, "*i32")
        yield _expansion(name)
    for name, n in (("Q4_K", 1), ("F16", 8)):
        tile = gemv_tile(arch, name, R1.moe_intermediate_size, R1.hidden_size, n, True)
        yield gemv_configuration(name, tile, n, True, "*fp32", "*fp32", None)
    for n in (16, 64):
        yield _matmul("Q6_K", matmul_tile(arch, "Q6_K", n), "*fp32", "*bf16", None)


def weight_shapes(sizes: AnySizes) -> set[tuple[int, int, bool]]:
    """(rows of a whole stack, cols, whether gated) of weights outside the routed experts."""
    hidden = sizes.hidden_size
    own = _grouped(sizes) if isinstance(sizes, GroupedSizes) else _latent(sizes)
    shapes = {*own, (sizes.vocab_size, hidden, False)}
    for width in ffn_widths(sizes):
        shapes |= {(width, hidden, True), (width, hidden, False), (hidden, width, False)}
    return shapes


def _latent(sizes: LatentSizes) -> Iterator[tuple[int, int, bool]]:
    """Weights of latent attention."""
    hidden, rank, heads = sizes.hidden_size, sizes.kv_lora_rank, sizes.n_heads
    latent = rank + sizes.qk_rope_head_dim
    query = heads * (sizes.qk_nope_head_dim + sizes.qk_rope_head_dim)
    yield latent, hidden, False
    yield query, sizes.q_lora_rank or hidden, False
    yield heads * rank, sizes.qk_nope_head_dim, False
    yield heads * sizes.v_head_dim, rank, False
    yield hidden, heads * sizes.v_head_dim, False
    if sizes.q_lora_rank:
        yield sizes.q_lora_rank, hidden, False
        yield sizes.q_lora_rank + latent, hidden, False


def _grouped(sizes: GroupedSizes) -> Iterator[tuple[int, int, bool]]:
    """Weights of grouped-query attention; queries, keys and values apart and joined."""
    hidden = sizes.hidden_size
    queries, keys = sizes.n_heads * sizes.head_dim, sizes.n_kv_heads * sizes.head_dim
    for rows in (queries, keys, queries + keys, 2 * keys, queries + 2 * keys):
        yield rows, hidden, False
    yield hidden, queries, False


def _gemvs(
    arch: int, sizes: AnySizes, name: str, n: int
) -> Iterator[tuple[GemvTile, bool, str, str | None]]:
    """Tile, whether gated, and the pointers of what is written and added to."""
    for rows, cols, gated in weight_shapes(sizes):
        if cols % GPU_FORMATS[name].block_values == 0:
            tile = gemv_tile(arch, name, rows, cols, n, gated)
            for out, add in _outputs(sizes, rows, cols, gated):
                yield tile, gated, out, add


def _outputs(
    sizes: AnySizes, rows: int, cols: int, gated: bool
) -> Iterator[tuple[str, str | None]]:
    """Float32; the residual stream where that is as wide; bf16 where queries become latents."""
    yield "*fp32", None
    if rows == sizes.hidden_size and not gated:
        yield "*fp32", "*fp32"
    if not isinstance(sizes, GroupedSizes):
        if (rows, cols) == (sizes.n_heads * sizes.kv_lora_rank, sizes.qk_nope_head_dim):
            yield "*bf16", None


def gemv_configuration(
    name: str,
    tile: GemvTile,
    n: int,
    gated: bool,
    x: str,
    out: str,
    add: str | None,
    ids: str | None = None,
) -> Configuration:
    """`gemv` for `n` tokens of kind `x`, with pointers of the kinds `out`, `add`, `ids`."""
    own, pointers = tile.constants(name, n, gated), {"add": add, "ids": ids}
    if not GPU_FORMATS[name].integer:
        return _configuration(gemv_kernel, name, own, x, out, pointers, tile.num_warps, 2)
    signature = {"words": "*i32", "units": "*fp32", "sums": "*i32", "data": "*u8", "out": out}
    signature |= dict.fromkeys((*_COUNTS, "row_blocks"), "i32")
    signature, own = _with_pointers(signature, own | {"EMULATED": False}, pointers)
    return Configuration(integer_gemv_kernel, signature, own, tile.num_warps, 2, tile.max_registers)


def _matmul(
    name: str, tile: MatmulTile, x: str, out: str, add: str | None, groups: str | None = None
) -> Configuration:
    own, pointers = tile.constants(name) | {"FLOAT_DOT": False}, {"add": add, "groups": groups}
    warps = tile.num_warps, tile.num_stages
    return _configuration(matmul_kernel, name, own, x, out, pointers, *warps)


def _expansion(name: str) -> Configuration:
    """Of latent attention's keys and values, for prompts."""
    constants = GPU_FORMATS[name].constants() | {"WIDTH": EXPANDED}
    signature = {
        "data": "*u8",
        "out": "*bf16",
        **dict.fromkeys(("n_blocks", "rows", "cols"), "i32"),
    }
    return Configuration(expand_kernel, *_with_scales(name, signature, constants))


def _configuration(
    fn: Any,
    name: str,
    constants: dict[str, Any],
    x: Any,
    out: Any,
    pointers: dict[str, str | None],
    *options: int,
) -> Configuration:
    signature = {"x": x, "data": "*u8", "out": out, **dict.fromkeys(_COUNTS, "i32")}
    signature, constants = _with_pointers(signature, constants, pointers)
    return Configuration(fn, *_with_scales(name, signature, constants), *options)


def _with_pointers(
    signature: dict[str, str], constants: dict[str, Any], pointers: dict[str, str | None]
) -> tuple[dict[str, str], dict[str, Any]]:
    for pointer, kind in pointers.items():
        if kind:
            signature = signature | {pointer: kind}
        else:
            constants = constants | {pointer: None}
    return signature, constants


def _with_scales(
    name: str, signature: dict[str, str], constants: dict[str, Any]
) -> tuple[dict[str, str], dict[str, Any]]:
    if name == "FP8_E4M3":
        return signature | {"scales": "*fp32"}, constants
    return signature, constants | {"scales": None}
