"""What `localr1 bench --synthetic` says to a person: text only, of bench_synthetic's figures."""

from __future__ import annotations

from typing import Any

_GIB = 1 << 30


def card(result: dict[str, Any]) -> str:
    """The result in lines of at most a terminal's width or so."""
    lines = [*_head(result), ""]
    for row in result["rows"]:
        share = f"   {row['share']:.0%} of the limit" if row["share"] is not None else ""
        lines.append(f"  {row['name']:<28}{row['value']:>10,.2f} {row['unit']}{share}")
    return "\n".join([*lines, *_plan(result), *_projections(result)])


def _head(result: dict[str, Any]) -> list[str]:
    host, run, limits = result["machine"], result["synthetic"], result["limits"]
    gpu = host["gpu"]["name"] if host["gpu"] else "on the CPU"
    distinct, routed = run["distinct_bytes"] / _GIB, run["routed_bytes"] / _GIB
    what = run["in_ram"]
    again = "all distinct" if distinct == routed else "the rest uses the same memory again"
    in_ram = f"{what} {distinct:.1f} of {routed:.1f} GiB in RAM, {again}"
    traffic = f"{limits['ram_bytes_per_token'] / 1e9:.2f} GB of RAM"
    if host["gpu"]:
        traffic += f" and {limits['vram_bytes_per_token'] / 1e9:.2f} GB of VRAM"
    limit = f"limit {limits['decode']:.2f} tokens/s"
    if not limits["applies"]:
        limit = f"no limit: what is read fits the {'CPU' if routed else 'GPU'}'s cache"
    speeds = f"RAM {limits['read_bandwidth']:.1f} GB/s ({limits['read_bandwidth_method']})"
    if host["gpu"]:
        speeds += f", VRAM {limits['vram_bandwidth']:,.0f} GB/s"
    return [
        f"{result['model']}, random weights, {run['layers']} layers; {host['cpu']}, "
        f"{host['cores']} cores, {host['ram_bytes'] / _GIB:.0f} GiB; {gpu}",
        f"  {in_ram if routed else 'all weights on the GPU'}",
        *([f"  {what} answer at once and read nothing"] if run["stub"] else []),
        f"  reads          {speeds}",
        f"  a token reads  {traffic} behind {run['depth']:,} tokens; {limit}",
    ]


def _plan(result: dict[str, Any]) -> list[str]:
    plan, lines = result["plan"], [""]
    if plan["decode"] is not None:
        speed = f"{plan['decode']:.2f} tokens/s behind {plan['decode_depth']:,} tokens"
        short = ", with RAM enough" if plan["ram"] > plan["ram_total"] else ""
        meanwhile = f"{plan['decode_meanwhile']:.2f} for RAM as fast as it was meanwhile"
        lines.append(f"  the plan said  {speed}{short}; {meanwhile}")
    if plan["vram_measured"] is not None:
        lines.append(
            f"  VRAM taken     {_gib(plan['vram_measured'])}, by the driver; planned "
            f"{_gib(plan['vram'])} and {_gib(plan['vram_margin'])} of margin"
        )
    if plan["ram_measured"] is not None:
        lines.append(
            f"  RAM taken      {_gib(plan['ram_measured'])} at most; planned for what is held here "
            f"{_gib(plan['ram_held'])}"
        )
    lines.append(f"  RAM needed     {_gib(plan['ram'])}{_lack(plan['ram'], plan)}")
    return lines


def _lack(nbytes: int, plan: dict[str, Any]) -> str:
    """What is to be said where this machine has less RAM."""
    if nbytes <= plan["ram_total"]:
        return ""
    return f", and this machine has {_gib(plan['ram_total'])}: the model does not fit it"


def _gib(nbytes: float) -> str:
    return f"{nbytes / _GIB:.2f} GiB"


def _projections(result: dict[str, Any]) -> list[str]:
    rows, depth = result["projections"], result["plan"]["decode_depth"]
    if not rows:
        return []
    lines = [
        "",
        "  projected, not measured: other cards, with this RAM's bandwidth and all the RAM needed",
    ]
    for row in rows:
        room = "" if row["fits"] else "; VRAM does not hold this context"
        lines.append(
            f"  {row['card']:<12}limit {row['decode_limit']:.2f} tokens/s; the plan expects "
            f"{row['decode']:.2f} behind {depth:,} tokens; {_gib(row['ram'])} of RAM{room}"
        )
    return lines
