"""The one table from Hugging Face's names of weights to GGUF's.

GGUF stacks the experts of a layer in one tensor, so several HF names meet in one GGUF name:
`model.layers.3.mlp.experts.7.up_proj.weight` is part 7 of `blk.3.ffn_up_exps.weight`.
"""

from __future__ import annotations

import re

_WHOLE = {
    "model.embed_tokens.weight": "token_embd.weight",
    "model.norm.weight": "output_norm.weight",
    "lm_head.weight": "output.weight",
}
_IN_LAYER = {
    "input_layernorm.weight": "attn_norm.weight",
    "self_attn.q_proj.weight": "attn_q.weight",
    "self_attn.k_proj.weight": "attn_k.weight",
    "self_attn.v_proj.weight": "attn_v.weight",
    "self_attn.q_proj.bias": "attn_q.bias",
    "self_attn.k_proj.bias": "attn_k.bias",
    "self_attn.v_proj.bias": "attn_v.bias",
    "self_attn.q_norm.weight": "attn_q_norm.weight",
    "self_attn.k_norm.weight": "attn_k_norm.weight",
    "self_attn.q_a_proj.weight": "attn_q_a.weight",
    "self_attn.q_a_layernorm.weight": "attn_q_a_norm.weight",
    "self_attn.q_b_proj.weight": "attn_q_b.weight",
    "self_attn.kv_a_proj_with_mqa.weight": "attn_kv_a_mqa.weight",
    "self_attn.kv_a_layernorm.weight": "attn_kv_a_norm.weight",
    "self_attn.kv_b_proj.weight": "attn_kv_b.weight",
    "self_attn.o_proj.weight": "attn_output.weight",
    "post_attention_layernorm.weight": "ffn_norm.weight",
    "mlp.gate_proj.weight": "ffn_gate.weight",
    "mlp.up_proj.weight": "ffn_up.weight",
    "mlp.down_proj.weight": "ffn_down.weight",
    "mlp.gate.weight": "ffn_gate_inp.weight",
    "mlp.gate.e_score_correction_bias": "exp_probs_b.bias",
    "mlp.shared_experts.gate_proj.weight": "ffn_gate_shexp.weight",
    "mlp.shared_experts.up_proj.weight": "ffn_up_shexp.weight",
    "mlp.shared_experts.down_proj.weight": "ffn_down_shexp.weight",
    # the multi-token-prediction layer, stored behind the last one
    "eh_proj.weight": "nextn.eh_proj.weight",
    "enorm.weight": "nextn.enorm.weight",
    "hnorm.weight": "nextn.hnorm.weight",
    "embed_tokens.weight": "nextn.embed_tokens.weight",
    "shared_head.head.weight": "nextn.shared_head_head.weight",
    "shared_head.norm.weight": "nextn.shared_head_norm.weight",
}
_LAYER = re.compile(r"model\.layers\.(\d+)\.(.+)")
_EXPERT = re.compile(r"mlp\.experts\.(\d+)\.(gate|up|down)_proj\.weight")


def gguf_name(hf_name: str) -> tuple[str, int | None] | None:
    """(GGUF name, number of the expert or None for a whole tensor); None for an unknown name."""
    if hf_name in _WHOLE:
        return _WHOLE[hf_name], None
    layer = _LAYER.fullmatch(hf_name)
    if layer is None:
        return None
    number, rest = int(layer[1]), layer[2]
    expert = _EXPERT.fullmatch(rest)
    if expert is not None:
        return f"blk.{number}.ffn_{expert[2]}_exps.weight", int(expert[1])
    return (f"blk.{number}.{_IN_LAYER[rest]}", None) if rest in _IN_LAYER else None


def hf_names() -> dict[str, str]:
    """GGUF name -> HF name, `{n}` for the layer and `{e}` for the expert: the table backwards."""
    names = {gguf: hf for hf, gguf in _WHOLE.items()}
    for hf, gguf in _IN_LAYER.items():
        names[f"blk.{{n}}.{gguf}"] = f"model.layers.{{n}}.{hf}"
    for part in ("gate", "up", "down"):
        hf = f"model.layers.{{n}}.mlp.experts.{{e}}.{part}_proj.weight"
        names[f"blk.{{n}}.ffn_{part}_exps.weight"] = hf
    return names
