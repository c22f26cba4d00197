"""How fast a placement will be: limits from bandwidths, and overheads that were measured.

A decoded token takes as long as its bytes take to be read from where they lie, one memory after the
other, plus what layers and tokens cost by themselves. A prompt takes its arithmetic, or the reading
of the weights that it meets if that is longer. Pure functions: more bandwidth or arithmetic never
predicts slower. Not here: which bytes lie where (offload.planner).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from offload.hardware import AMX, ZEN, Gpu, Hardware
from offload.placement import Kind, Prediction, Weight

DEPTH = 1024  # tokens in the cache when decoding is predicted
PROMPT = 512  # tokens of the prompt whose reading is predicted

# Measured on two cores of a Xeon with VNNI; docs/placement.md says how, tools/check_plan.py checks.
CPU_TOKEN_SECONDS = 0.03e-3  # of a token: embedding, sampling
CPU_LAYER_SECONDS = 0.01e-3  # of a layer on the CPU: small steps, joins of the workers
CHANGE_SECONDS = 0.05e-3  # of a token that goes on to the GPU: the workers change to its questions
HALF_TOKENS = 6.0  # tokens an expert meets at half of that share: unpacking is shared by them
LINEAR_TERMS = 2  # int8 rows that attention and head are multiplied by, for 15 bits
AMX_SHARE = 1.0  # of the int8 peak, for what all tokens of a prompt meet, on AMX's bf16 tiles
PREFILL_LAYER_SECONDS = 12.5e-3  # of a layer and prompt on the CPU

# Measured on an H100 in the shapes of R1 and a 7B, Q4_K_M (docs/log.md); of slower memory it should
# be more.
GPU_SHARE = 0.84
GPU_LAYER_SECONDS = 14e-6  # norms, attention over a short cache
GPU_ROUTED_SECONDS = 45e-6  # the same where experts are routed, and attention is over latents
HANDOFF_SECONDS = 10e-6  # question and answer through the mailbox
GPU_OPERATIONS_PER_BYTE = 40.0  # arithmetic that a card does while it reads a byte of VRAM

# In huge pages: bytes/second that a core's arithmetic costs beside the reading.
OWNED_CORE = 100e9
STAGED_SHARE = 0.4  # of RAM's bandwidth: what is read, written to a buffer and read again by a GPU
DISK_SHARE = 0.5  # of sequential reading, for the scattered reads of page faults


@dataclass(frozen=True, slots=True)
class Shares:
    """What a CPU reaches of its read bandwidth, and of its int8 peak's operations/second."""

    experts: float  # of the bandwidth, mapped
    linear: float  # the same of attention and head: two int8 terms, short rows, small matrices
    int8: float  # of the peak, for an expert that meets many tokens of a prompt
    decode_attention: float  # of the peak, in float32
    prompt_attention: float  # the same for prompts, whose masks and softmax take most of it


_XEON = Shares(0.8, 0.5, int8=0.48, decode_attention=0.03, prompt_attention=0.018)
_ZEN4 = Shares(0.9, 0.9, int8=0.7, decode_attention=0.06, prompt_attention=0.032)


def shares_of(isa: str) -> Shares:
    """What was measured on two cores of such a CPU, with the same models."""
    return _ZEN4 if isa == ZEN else _XEON


@dataclass(frozen=True, slots=True)
class Traffic:
    """What a token and a prompt move and compute under one placement. Bytes and operations."""

    gpu_bytes: float  # read by one token, what cannot hide behind the CPU's experts
    gpu_hidden_bytes: float  # shared experts, while the CPU computes the routed ones
    ram_bytes: float
    linear_bytes: float  # the part of ram_bytes that is attention and head
    disk_bytes: float
    gpu_layers: int  # layers whose attention runs there
    routed: bool  # whether the model has routed experts
    cpu_layers: int
    handoffs: int  # layers that begin on the GPU and end on the CPU
    decode_operations: int  # of one query with one key in one layer
    prompt_operations: int  # the same in the form that prompts take
    prompt_ram_bytes: float  # read once for the whole prompt
    prompt_gpu_bytes: float
    prompt_disk_bytes: float
    cpu_operations: float  # of the prompt, weighed by what they cost: see prompt_cost
    gpu_operations: float
    streamed_bytes: float  # of experts, that cross to the GPU for the prompt
    stored_bytes: int  # weights to load
    uploaded_bytes: int  # those of a GPU


def prompt_cost(weight: Weight, isa: str) -> tuple[float, float, float]:
    """(bytes read, operations, operations weighed by what they cost on the CPU) of a prompt."""
    fraction, tokens = weight.read_fraction, 1 if weight.kind == Kind.HEAD else PROMPT
    met = 1 - (1 - fraction) ** tokens if fraction < 1 else 1.0  # share that some token reads
    operations = 2.0 * weight.values * fraction * tokens
    full = tokens * fraction / met if met else 1.0  # tokens that a matrix meets
    if isa == AMX and weight.kind not in (Kind.HEAD, Kind.ROUTED):
        return weight.nbytes * met, operations, operations * shares_of(isa).int8 / AMX_SHARE
    terms = LINEAR_TERMS if weight.kind in (Kind.ATTENTION, Kind.HEAD) else 1
    weighed = terms * operations * (1 + HALF_TOKENS / max(full, 1.0))
    return weight.nbytes * met, operations, weighed


def streams_from(routed: Sequence[Weight], hardware: Hardware, gpu: Gpu) -> int:
    """From how many tokens of a prompt on these experts in RAM cross to the GPU in less time than
    the CPU computes.
    """
    (fraction,) = {weight.read_fraction for weight in routed}
    operations = sum(2.0 * weight.values * fraction for weight in routed)  # of a token
    crossing = _stream_seconds(sum(weight.nbytes for weight in routed), hardware, gpu)
    computed = crossing * hardware.int8_ops * shares_of(hardware.isa).int8
    return max(1, math.ceil(computed / max(operations, 1.0) - HALF_TOKENS / fraction))


def predict(
    traffic: Traffic, hardware: Hardware, gpu: Gpu | None, owned: bool = False
) -> Prediction:
    """Speeds of a placement that moves `traffic`; `owned`: weights lie in huge pages."""
    limits = _read_seconds(traffic, hardware, gpu)
    least = max(sum(limits.values()), 1e-9)
    reading = hardware.ram_bandwidth * _experts_share(hardware, owned)
    seconds = _decode_seconds(traffic, hardware, gpu, reading)
    prompt, bound = _prompt_seconds(traffic, hardware, gpu, reading)
    return Prediction(
        decode_tps=1 / max(seconds, least),
        decode_limit_tps=1 / least,
        decode_limit=max(limits, key=lambda name: limits[name]),
        prefill_tps=PROMPT / prompt,
        prefill_limit=bound,
        load_seconds=_seconds(traffic.stored_bytes, hardware.disk_bandwidth)
        + (_seconds(traffic.uploaded_bytes, gpu.pcie) if gpu else 0.0),
    )


def _seconds(amount: float, speed: float) -> float:
    """Time for `amount`; very long where the speed is unknown or nothing."""
    return amount / max(speed, 1.0)


def _stream_seconds(nbytes: float, hardware: Hardware, gpu: Gpu) -> float:
    """Time for so much to cross from RAM to the GPU."""
    return _seconds(nbytes, min(gpu.pcie, hardware.ram_bandwidth * STAGED_SHARE))


def _experts_share(hardware: Hardware, owned: bool) -> float:
    """Of the read bandwidth."""
    share = shares_of(hardware.isa).experts
    of_a_core = hardware.ram_bandwidth / max(hardware.threads, 1)
    return max(share, 1 / (1 + of_a_core / OWNED_CORE)) if owned else share


def _read_seconds(t: Traffic, hardware: Hardware, gpu: Gpu | None) -> dict[str, float]:
    """Seconds of a token by the memory that they are spent on, at full bandwidth."""
    return {
        "RAM bandwidth": _seconds(t.ram_bytes, hardware.ram_bandwidth),
        "VRAM bandwidth": _seconds(t.gpu_bytes, gpu.bandwidth) if gpu else 0.0,
        "disk bandwidth": _seconds(t.disk_bytes, hardware.disk_bandwidth),
    }


def _decode_seconds(t: Traffic, hardware: Hardware, gpu: Gpu | None, reading: float) -> float:
    """Seconds of a token with DEPTH tokens behind it; `reading` is what experts are read at."""
    attention, shares = t.cpu_layers * t.decode_operations * DEPTH, shares_of(hardware.isa)
    experts = _seconds(t.ram_bytes - t.linear_bytes + t.disk_bytes, reading)
    hidden = _seconds(t.gpu_hidden_bytes, gpu.bandwidth * GPU_SHARE) if gpu else 0.0
    return (
        max(experts, hidden)
        + _seconds(t.linear_bytes, hardware.ram_bandwidth * shares.linear)
        + (_seconds(t.gpu_bytes, gpu.bandwidth * GPU_SHARE) if gpu else 0.0)
        + _seconds(t.disk_bytes, hardware.disk_bandwidth * DISK_SHARE)
        + _seconds(attention, hardware.int8_ops * shares.decode_attention)
        + t.cpu_layers * CPU_LAYER_SECONDS
        + t.gpu_layers * _gpu_layer_seconds(t)
        + t.handoffs * HANDOFF_SECONDS
        + (CHANGE_SECONDS if t.cpu_layers and t.gpu_layers else 0.0)
        + CPU_TOKEN_SECONDS
    )


def _gpu_layer_seconds(t: Traffic) -> float:
    return GPU_ROUTED_SECONDS if t.routed else GPU_LAYER_SECONDS


def _prompt_seconds(
    t: Traffic, hardware: Hardware, gpu: Gpu | None, reading: float
) -> tuple[float, str]:
    """Seconds of a prompt of PROMPT tokens, and what most of them go to."""
    attention = t.cpu_layers * t.prompt_operations * PROMPT * PROMPT / 2
    shares = shares_of(hardware.isa)
    compute = _seconds(t.cpu_operations, hardware.int8_ops * shares.int8)
    compute += _seconds(attention, hardware.int8_ops * shares.prompt_attention)
    read = _seconds(t.prompt_ram_bytes + t.prompt_disk_bytes, reading)
    on_gpu = 0.0
    if gpu:
        on_gpu = max(
            _seconds(t.prompt_gpu_bytes, gpu.bandwidth * GPU_SHARE),
            _seconds(t.gpu_operations, gpu.bandwidth * GPU_OPERATIONS_PER_BYTE),
        )
    parts = {
        "CPU arithmetic": compute if compute >= read else 0.0,
        "RAM bandwidth": read if read > compute else 0.0,
        "GPU arithmetic": on_gpu,
        "PCIe bandwidth": _stream_seconds(t.streamed_bytes, hardware, gpu) if gpu else 0.0,
        "disk bandwidth": _seconds(t.prompt_disk_bytes, hardware.disk_bandwidth),
    }
    fixed = t.cpu_layers * PREFILL_LAYER_SECONDS + t.gpu_layers * _gpu_layer_seconds(t)
    return sum(parts.values()) + fixed + CPU_TOKEN_SECONDS, max(parts, key=lambda n: parts[n])
