"""Turn a Hugging Face folder of a DeepSeek-V2/V3/R1 model into one GGUF file (arch deepseek2).

    python -m tools.convert FOLDER OUT.gguf [--type Q8_0] [--layout k_b+v_b|kv_b] [--no-mtp]

What it is: the maker of localr1/tiny/tiny-r1.gguf and of the tests' toy models. Names come from
localr1/models/hf_names.py and numbers from `ModelConfig`, so a file reads back as what was written.
What it is not: a k-quantiser (llama.cpp's tools make those from an F32 or Q8_0 file of ours).

Norms, the router and its bias stay float32. Tensors are written one at a time, so memory holds one
(a layer's stacked experts are the largest).
"""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import gguf
import numpy as np

from localr1.errors import LocalR1Error, Unsupported
from localr1.models.config import ModelConfig
from localr1.models.safetensors import HFFolder
from tools.vocabulary import add_vocabulary

TYPES = ("F32", "F16", "BF16", "Q8_0")
LAYOUTS = ("k_b+v_b", "kv_b")
_ALWAYS_FLOAT = ("ffn_gate_inp.weight", "exp_probs_b.bias")


@dataclass(frozen=True, slots=True)
class _Output:
    """One tensor to write: `make()` gives its float32 matrices one by one, in order."""

    name: str
    shape: tuple[int, ...]
    make: Callable[[], Iterator[np.ndarray]]


def convert(
    folder: str | Path,
    out: str | Path,
    kind: str = "Q8_0",
    layout: str = LAYOUTS[0],
    mtp: bool = True,
    pre: str = "deepseek-v3",
) -> Path:
    """Write `folder` to the GGUF file `out` and return its path.

    `layout`: "k_b+v_b" stores the two matrices apart, "kv_b" the older undivided one. `mtp` keeps
    the multi-token-prediction layer. `pre` names the pre-tokeniser. Raises LocalR1Error
    where the folder cannot be read or expressed in a GGUF.
    """
    weights = HFFolder.open(folder)
    config = ModelConfig.from_hf(weights.config)
    out = Path(out)
    writer = gguf.GGUFWriter(out, "deepseek2")
    writer.add_name(Path(folder).resolve().name)
    writer.add_quantization_version(gguf.GGML_QUANT_VERSION)
    writer.add_file_type(gguf.LlamaFileType[f"{'ALL' if kind == 'F32' else 'MOSTLY'}_{kind}"])
    n_mtp = config.n_mtp_layers if mtp else 0
    _add_sizes(writer, config, layout, n_mtp)
    _add_experts(writer, config)
    _add_rope(writer, config)
    add_vocabulary(writer, Path(folder), config.vocab_size, pre)
    outputs = list(_outputs(weights, config, layout, config.n_layers + n_mtp))
    for output in outputs:
        qtype = _type_of(output, kind)
        nbytes = int(np.prod(gguf.quant_shape_to_byte_shape(output.shape, qtype)))
        writer.add_tensor_info(output.name, output.shape, np.dtype(np.float32), nbytes, qtype)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    for output in outputs:
        writer.write_tensor_data(_encode(output, _type_of(output, kind)))
    writer.close()
    return out


def _add_sizes(writer: gguf.GGUFWriter, config: ModelConfig, layout: str, n_mtp: int) -> None:
    qk_head_dim = config.qk_nope_head_dim + config.qk_rope_head_dim
    writer.add_block_count(config.n_layers + n_mtp)  # llama.cpp counts the MTP layers in
    if n_mtp:
        writer.add_nextn_predict_layers(n_mtp)
    writer.add_context_length(config.max_context)
    writer.add_embedding_length(config.hidden_size)
    writer.add_vocab_size(config.vocab_size)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_leading_dense_block_count(config.n_dense_layers)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_head_count(config.n_heads)
    if config.q_lora_rank:
        writer.add_q_lora_rank(config.q_lora_rank)
    writer.add_kv_lora_rank(config.kv_lora_rank)
    if layout == "kv_b":
        writer.add_head_count_kv(config.n_heads)
        writer.add_key_length(qk_head_dim)
        writer.add_value_length(config.v_head_dim)
    else:  # the cache holds one latent vector, as if there were one key and value head
        writer.add_head_count_kv(1)
        writer.add_key_length(config.kv_lora_rank + config.qk_rope_head_dim)
        writer.add_value_length(config.kv_lora_rank)
        writer.add_key_length_mla(qk_head_dim)
        writer.add_value_length_mla(config.v_head_dim)


def _add_experts(writer: gguf.GGUFWriter, config: ModelConfig) -> None:
    writer.add_expert_count(config.n_routed_experts)
    writer.add_expert_used_count(config.n_experts_per_tok)
    writer.add_expert_shared_count(config.n_shared_experts)
    writer.add_expert_feed_forward_length(config.moe_intermediate_size)
    writer.add_expert_weights_scale(config.routed_scaling_factor)
    writer.add_expert_weights_norm(config.norm_topk_prob)
    writer.add_expert_gating_func(gguf.ExpertGatingFuncType[config.scoring_func.upper()])
    writer.add_expert_group_count(config.n_group)
    writer.add_expert_group_used_count(config.topk_group)


def _add_rope(writer: gguf.GGUFWriter, config: ModelConfig) -> None:
    rope = config.rope
    writer.add_rope_dimension_count(rope.dim)
    writer.add_rope_freq_base(rope.theta)
    if rope.factor == 1:
        return
    if rope.mscale != rope.mscale_all_dim:
        raise Unsupported("GGUF cannot express a YaRN mscale that differs from mscale_all_dim")
    writer.add_rope_scaling_type(gguf.RopeScalingType.YARN)
    writer.add_rope_scaling_factor(rope.factor)
    writer.add_rope_scaling_orig_ctx_len(rope.original_context)
    writer.add_rope_scaling_yarn_beta_fast(rope.beta_fast)
    writer.add_rope_scaling_yarn_beta_slow(rope.beta_slow)
    # by llama.cpp's convention deepseek2 stores a tenth of the value
    writer.add_rope_scaling_yarn_log_mul(0.1 * rope.mscale_all_dim)


def _outputs(
    weights: HFFolder, config: ModelConfig, layout: str, n_blocks: int
) -> Iterator[_Output]:
    """The tensors of the GGUF in llama.cpp's order: embedding, blocks, output."""
    for name in sorted(weights.names(), key=_place):
        block = re.match(r"blk\.(\d+)\.", name)
        if block and int(block[1]) >= n_blocks:
            continue
        if _is_copy(weights, name):
            continue
        if name.endswith("attn_kv_b.weight") and layout != "kv_b":
            yield from _split_kv_b(weights, config, name)
        else:
            shape = weights[name].shape
            shape = shape[1:] if shape[0] == 1 and len(shape) == 2 else shape  # a vector
            yield _Output(name, shape, lambda name=name: _matrices(weights, name))


def _place(name: str) -> tuple[int, int]:
    block = re.match(r"blk\.(\d+)\.", name)
    if block:
        return 1, int(block[1])
    return (0, 0) if name.startswith("token_embd") else (2, 0)


def _is_copy(weights: HFFolder, name: str) -> bool:
    """Whether this is the MTP layer's own copy of the embedding or the head."""
    main = {"embed_tokens": "token_embd.weight", "shared_head_head": "output.weight"}
    original = main.get(name.removesuffix(".weight").rpartition(".nextn.")[2], "")
    if ".nextn." not in name or original not in weights:
        return False
    return np.array_equal(weights[name].parts[0], weights[original].parts[0])


def _matrices(weights: HFFolder, name: str) -> Iterator[np.ndarray]:
    weight = weights[name]
    if len(weight.shape) < 3:
        yield weight.dequantize()
        return
    for i in range(weight.shape[0]):
        yield weight.dequantize(i)


def _split_kv_b(weights: HFFolder, config: ModelConfig, name: str) -> Iterator[_Output]:
    """attn_kv_b [heads * (nope + v), rank] as k_b [heads, rank, nope] and v_b [heads, v, rank]."""
    nope, rank = config.qk_nope_head_dim, config.kv_lora_rank
    heads = (config.n_heads, nope + config.v_head_dim, rank)

    def k_b() -> Iterator[np.ndarray]:
        yield weights[name].dequantize().reshape(heads)[:, :nope].transpose(0, 2, 1)

    def v_b() -> Iterator[np.ndarray]:
        yield weights[name].dequantize().reshape(heads)[:, nope:]

    stem = name.removesuffix("kv_b.weight")
    yield _Output(f"{stem}k_b.weight", (config.n_heads, rank, nope), k_b)
    yield _Output(f"{stem}v_b.weight", (config.n_heads, config.v_head_dim, rank), v_b)


def _type_of(output: _Output, kind: str) -> gguf.GGMLQuantizationType:
    plain = len(output.shape) == 1 or output.name.endswith(_ALWAYS_FLOAT)
    return gguf.GGMLQuantizationType["F32" if plain else kind]


def _encode(output: _Output, qtype: gguf.GGMLQuantizationType) -> np.ndarray:
    """The tensor's bytes in the file."""
    parts = [gguf.quantize(np.ascontiguousarray(m), qtype) for m in output.make()]
    return np.concatenate([part.reshape(-1).view(np.uint8) for part in parts])


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description="DeepSeek folder -> GGUF")
    parser.add_argument("folder", help="folder with config.json and safetensors files")
    parser.add_argument("out", help="the .gguf file to write")
    parser.add_argument("--type", choices=TYPES, default="Q8_0", help="type of the matrices")
    parser.add_argument("--layout", choices=LAYOUTS, default=LAYOUTS[0], help="attention layout")
    parser.add_argument("--no-mtp", action="store_true", help="leave the MTP layer out")
    parser.add_argument("--pre", default="deepseek-v3", help="name of the pre-tokeniser")
    args = parser.parse_args()
    try:
        out = convert(
            args.folder,
            args.out,
            args.type,
            args.layout,
            not args.no_mtp,
            args.pre,
        )
    except LocalR1Error as error:
        sys.exit(f"error: {error}\nhint: {error.hint}" if error.hint else f"error: {error}")
    print(f"{out}: {out.stat().st_size / 2**20:.2f} MiB")


if __name__ == "__main__":
    main()
