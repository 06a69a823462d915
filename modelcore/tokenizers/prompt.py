"""The one form in which a tuned model is asked: a line of dialogue, and the reply's opening quotation mark.

It is plain text of the kind that novels are made of, so a small model that has read nothing else knows every piece of
it. The reply ends with the end-of-document id, where a novel would have the closing quotation mark.
"""

CHAT_TEMPLATE = """\
{%- for message in messages -%}
{%- if message['role'] == 'user' -%}
{{- '"' + message['content'] + '"\\n\\n' -}}
{%- elif message['role'] == 'assistant' -%}
{{- '"' + message['content'] + eos_token -}}
{%- else -%}
{{- raise_exception("role '" + message['role'] + "' is unknown to this model; use user or assistant") -}}
{%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt -%}
{{- '"' -}}
{%- endif -%}
"""
"""The same form as a Jinja template for ``apply_chat_template``, for any number of turns."""


def format_prompt(prompt: str) -> str:
    """The text that a tuned model continues with its reply."""
    return f'"{prompt}"\n\n"'
