"""The one form in which a tuned model is asked: a scene of dialogue.

What the system says is narration, the user speaks in quotation marks, and the reply has only the opening one, for the
end-of-text id stands where a novel would have the closing one::

     The sisters sit by the fire.⏎⏎ "Is your sister well?"⏎⏎" Quite well.</s> "Will she dance?"⏎⏎" Not tonight.</s>

It is plain text of the kind that novels are made of, so a small model that has read nothing else knows every piece of
it. Every message stands after a space. No tokenizer here has a piece that reaches from a character over the space
after it, so prompt and reply are the same ids together, as in training, as apart, when the model is asked; and those
tokenizers that add a space of their own to a text, or only to some texts, find one there.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, get_args

from modelcore.errors import InputError
from modelcore.tokenizers.tokenizer import Tokenizer

Role = Literal["system", "user", "assistant"]

_REPLY = '"'
"""What a reply comes after."""


@dataclass(frozen=True)
class Message:
    """What one side of a conversation says, as text."""

    role: Role
    content: str


@dataclass(frozen=True)
class EncodedConversation:
    """A conversation as token ids.

    Attributes:
        ids: The ids, from the beginning's if the tokenizer's models are used to one.
        replied: Of each, whether the assistant says it: the tokens of its messages and the end after each.
    """

    ids: list[int]
    replied: list[bool]


def check_conversation(messages: Sequence[Message]) -> None:
    """Makes sure of the order: perhaps the system, then user and assistant in turns.

    Raises:
        InputError: If it is another, or a role is unknown; the message names the place.
    """
    first = 1 if messages and messages[0].role == "system" else 0
    if len(messages) == first:
        raise InputError("the conversation has no message of a user")
    for i, message in enumerate(messages):
        place = f"message {i + 1} has the role {message.role!r}"
        if message.role not in get_args(Role):
            raise InputError(f"{place}; it must be system, user or assistant")
        if message.role == "system" and i > 0:
            raise InputError(f"{place}, which only the first message may have")
        if i >= first and message.role != ("user", "assistant")[(i - first) % 2]:
            raise InputError(f"{place}; user and assistant must take turns")


def encode_conversation(tokenizer: Tokenizer, messages: Sequence[Message]) -> EncodedConversation:
    """The ids of a conversation, as ``apply_chat_template`` of the exported tokenizer gives them.

    If the user has the last word, they end where the reply begins, as a model is asked.

    Raises:
        InputError: As :func:`check_conversation`.
    """
    check_conversation(messages)
    ids = [tokenizer.bos_id] if tokenizer.adds_bos else []
    replied = [False] * len(ids)
    prompt = ""
    for message in messages:
        if message.role != "assistant":
            prompt += _asked(message)
            continue
        asked = len(tokenizer.encode(prompt + _REPLY))
        turn = tokenizer.encode(f"{prompt}{_REPLY} {message.content}", eos=True)
        ids += turn
        replied += [False] * asked + [True] * (len(turn) - asked)
        prompt = ""
    if prompt:
        asked_ids = tokenizer.encode(prompt + _REPLY)
        ids += asked_ids
        replied += [False] * len(asked_ids)
    return EncodedConversation(ids, replied)


def format_prompt(prompt: str, system: str = "") -> str:
    """The text that a tuned model continues with its reply.

    Args:
        prompt: What the user says.
        system: What the system says before; may be empty.
    """
    said = [Message("system", system)] if system else []
    return "".join(map(_asked, [*said, Message("user", prompt)])) + _REPLY


def reply_text(continuation: str) -> str:
    """The reply, of what a model gave for the text of :func:`format_prompt`: without the space before it."""
    return continuation.removeprefix(" ")


def chat_template(*, adds_bos: bool) -> str:
    """The same form as a Jinja template for ``apply_chat_template``.

    Args:
        adds_bos: Whether the tokenizer's models are used to texts that begin with its id for that.
    """
    return ("{{- bos_token -}}\n" if adds_bos else "") + _TEMPLATE


def _asked(message: Message) -> str:
    return f" {message.content}\n\n" if message.role == "system" else f' "{message.content}"\n\n'


_TEMPLATE = """\
{%- set first = 1 if messages and messages[0]['role'] == 'system' else 0 -%}
{%- if messages | length == first -%}
{{- raise_exception("the conversation has no message of a user") -}}
{%- endif -%}
{%- for message in messages -%}
{%- set place = "message " ~ loop.index ~ " has the role '" ~ message['role'] ~ "'" -%}
{%- if message['role'] not in ['system', 'user', 'assistant'] -%}
{{- raise_exception(place ~ "; it must be system, user or assistant") -}}
{%- elif message['role'] == 'system' and not loop.first -%}
{{- raise_exception(place ~ ", which only the first message may have") -}}
{%- elif loop.index0 >= first and message['role'] != ['user', 'assistant'][(loop.index0 - first) % 2] -%}
{{- raise_exception(place ~ "; user and assistant must take turns") -}}
{%- elif message['role'] == 'system' -%}
{{- ' ' ~ message['content'] ~ '\\n\\n' -}}
{%- elif message['role'] == 'user' -%}
{{- ' "' ~ message['content'] ~ '"\\n\\n' -}}
{%- else -%}
{{- '"' -}}
{%- generation -%}
{{- ' ' ~ message['content'] ~ eos_token -}}
{%- endgeneration -%}
{%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt -%}
{{- '"' -}}
{%- endif -%}
"""
