"""What the engine draws on the GPU against `Sampler`, token after token."""

from __future__ import annotations

import pytest
import torch

from localr1.engine.gpu_draw import GpuDraw, _settings
from localr1.engine.sampler import Sampler, SamplingParams
from localr1.errors import BadFile
from localr1.gpu.sampling import SETTINGS

VOCAB = 3000


@pytest.mark.parametrize(
    "params",
    [
        SamplingParams(temperature=0),
        SamplingParams(seed=1),
        SamplingParams(seed=2, temperature=1.0, repetition_penalty=1.3),
        SamplingParams(seed=3, temperature=100.0),  # flat: the GPU leaves it to the sampler
        SamplingParams(seed=4, temperature=100.0, repetition_penalty=1.3),
    ],
)
def test_a_text_is_the_samplers(device: str, params: SamplingParams) -> None:
    draw = GpuDraw(VOCAB, torch.device(device))
    for seen in ([5, 9], [7]):  # a second text marks other tokens
        on_gpu, on_cpu = Sampler(params, seen), Sampler(params, seen)
        for _ in range(4):
            logits = torch.randn(1, VOCAB) * 5
            logits[0, [5, 7, 9]] = 30.0  # likely, unless the penalty counts
            assert draw(on_gpu, logits.to(device)) == on_cpu(logits.numpy()[0])
        assert on_gpu.seen == on_cpu.seen


def test_every_setting_of_the_kernels_has_a_value_of_its_own() -> None:
    params = SamplingParams(0.5, top_p=0.9, top_k=7, min_p=0.25, repetition_penalty=1.5)
    found = dict(zip(SETTINGS, _settings(params, 0.75).tolist(), strict=True))
    assert found == {
        "temperature": 0.5, "top_p": 0.9, "min_p": 0.25, "top_k": 7, "repetition_penalty": 1.5,
        "uniform": 0.75,
    }  # fmt: skip


def test_what_is_no_number_is_refused(device: str) -> None:
    logits = torch.zeros(1, VOCAB, device=device)
    logits[0, 17] = float("nan")
    with pytest.raises(BadFile, match="not finite"):
        GpuDraw(VOCAB, torch.device(device))(Sampler(SamplingParams()), logits)
