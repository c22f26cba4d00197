"""Commands that show something: the last thought, figures, the context, the plan."""

from __future__ import annotations

from typing import TYPE_CHECKING, cast

from localr1.chat.commands.chat import Chat
from localr1.chat.terminal import clean, count, short
from localr1.chat.transcript import Message
from localr1.chat.views import ThinkMode
from localr1.progress import duration

if TYPE_CHECKING:
    from offload.placement import Placement

_THINK_MODES = {
    "show": "thoughts are shown in full as they come",
    "fold": "thoughts are folded to one line; /think prints the last one",
    "hide": "thoughts are hidden; /think prints the last one",
}


def think(chat: Chat, words: str) -> None:
    """Print the last thought, or set how thoughts are shown."""
    if words in _THINK_MODES:
        chat.think = cast(ThinkMode, words)
        chat.say(_THINK_MODES[words])
    elif words:
        chat.say(f"/think takes show, fold or hide, not {clean(words)}")
    else:
        messages = chat.session.transcript.messages
        thought = messages[-1].reasoning if messages else ""
        chat.say(clean(thought).rstrip("\n") or "there is no thought yet")


def stats(chat: Chat, words: str) -> None:
    """Figures of the last answer."""
    stats = chat.session.stats
    if not stats.prompt_tokens:
        chat.say("there is no answer to count yet")
        return
    read = stats.prompt_tokens - stats.cached_tokens
    used = stats.prompt_tokens + stats.completion_tokens
    tokens = {
        "prompt": f"{stats.prompt_tokens:,}, {stats.cached_tokens:,} from the cache",
        "reading": f"{read:,}, {stats.prefill_tps:.1f} tok/s",
        "thinking": f"{stats.reasoning_tokens:,}, {duration(stats.reasoning_seconds)}",
        "writing": f"{stats.completion_tokens:,}, {stats.decode_tps:.1f} tok/s",
        "context": f"{short(used)} of {short(chat.session.llm.engine.max_context)}",
    }
    for name, value in tokens.items():
        chat.say(f"  {name:10}{value}")


def context(chat: Chat, words: str) -> None:
    """How much of the context is used, and by what."""
    session = chat.session
    limit = session.llm.engine.max_context
    encode = session.llm.tokenizer.encode

    def size(messages: list[Message]) -> int:
        return sum(len(encode(message.content)) for message in messages)

    said = session.transcript.messages
    thoughts = sum(len(encode(message.reasoning)) for message in said)
    used = len(session.settled_ids())
    rows = {
        "system": len(encode(session.transcript.system or "")),
        "questions": size(said[::2]),
        "answers": size(said[1::2]),
        "attached": sum(len(encode(text)) for text in chat.attached),
    }
    for name, tokens in rows.items():
        chat.say(f"  {name:10}{tokens:>9,}")
    chat.say(f"  {'used':10}{used:>9,} of {limit:,} tokens, {100 * used // limit} %")
    chat.say(f"  thoughts, {count(thoughts, 'token')}, are not read again")


def plan(chat: Chat, words: str) -> None:
    """Where the model's weights lie, and what else takes memory."""
    placement: Placement | None = getattr(chat.session.llm.engine, "placement", None)
    if placement is None:
        chat.say("this model was loaded without a plan")
        return
    from localr1.plan import size
    from offload.placement import Kind, layers_named

    for tier, items in (("GPU", placement.gpu), ("RAM", placement.ram), ("disk", placement.disk)):
        for item in items:
            if item.name != Kind.UNUSED:
                chat.say(f"  {tier:6}{item.name:18}{size(item.nbytes):>12}")
    if placement.cpu_layers:
        chat.say(f"  the CPU runs {layers_named(0, placement.cpu_layers)}, the GPU the others")
    chat.say(f"  context for {count(placement.context, 'token')}")
