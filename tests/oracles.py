"""Independent runners of the same weights: transformers in float64, and llama.cpp.

Used by the tests of whole models; each takes token ids and gives logits of every position.
"""

from __future__ import annotations

import ctypes
from pathlib import Path
from unittest import mock

import numpy as np
import torch


def transformers_logits(folder: Path, sequences: list[list[int]]) -> list[np.ndarray]:
    """Logits float64 `[len(ids), vocab]` of each sequence by transformers, in float64, experts one
    by one.
    """
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(
        folder, dtype=torch.float64, experts_implementation="eager", attn_implementation="eager"
    )
    with torch.inference_mode():
        return [model(torch.tensor([ids])).logits[0].numpy() for ids in sequences]


def llama_cpp_logits(path: Path, sequences: list[list[int]]) -> list[np.ndarray]:
    """Logits float32 `[len(ids), vocab]` of each sequence by llama.cpp, on the CPU.

    Without its repacked weight layouts: its AMX one aborts on the 3-D weights of latent attention.
    """
    import llama_cpp

    context = max(map(len, sequences))
    params = llama_cpp.llama_model_default_params()
    params.use_extra_bufts = False
    with mock.patch.object(llama_cpp.llama_cpp, "llama_model_default_params", lambda: params):
        llama = llama_cpp.Llama(
            str(path), n_ctx=context, n_batch=context, n_ubatch=context, n_gpu_layers=0,
            logits_all=True, n_threads=2, verbose=False,
        )  # fmt: skip
    out = []
    for ids in sequences:
        llama.reset()
        llama.eval(ids)
        out.append(np.array(llama.scores[: len(ids)]))
    llama.close()
    return out


def quantize(source: Path, target: Path, kind: str) -> Path:
    """Make a real quantised file as llama.cpp does; `kind` as in its own list: Q4_K_M, IQ4_XS…"""
    import llama_cpp

    params = llama_cpp.llama_model_quantize_default_params()
    params.ftype = getattr(llama_cpp, f"LLAMA_FTYPE_MOSTLY_{kind}")
    params.nthread = 2
    failed = llama_cpp.llama_model_quantize(
        str(source).encode(), str(target).encode(), ctypes.byref(params)
    )
    assert not failed, f"llama.cpp could not make {kind}"
    return target


def mean_kl(reference: list[np.ndarray], logits: list[np.ndarray]) -> float:
    """Mean over all positions of KL(reference || logits), in nats."""
    total, count = 0.0, 0
    for ref, own in zip(reference, logits, strict=True):
        log_p, log_q = (torch.from_numpy(x).double().log_softmax(-1) for x in (ref, own))
        total += float((log_p.exp() * (log_p - log_q)).sum())
        count += len(ref)
    return total / count
