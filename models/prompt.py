# SPDX-License-Identifier: Apache-2.0
"""The only place where text for the network is written: prompt, chat template, input checks."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable, Sequence

from nvila_ros.errors import ConfigError, InstructionError

IMAGE_TOKEN = "<image>"
VIDEO_TOKEN = "<vila/video>"
SENTINEL_TOKEN = "<vila/sentinel>"
BEGIN_OF_TEXT = "<|begin_of_text|>"  # opens every llama_3 prompt
MEDIA_TOKENS = (SENTINEL_TOKEN, IMAGE_TOKEN, VIDEO_TOKEN)  # in the order in which they are added

MAX_INSTRUCTION_CHARACTERS = 2000

# NaVILA's navigation prompt in pieces. A released model depends on these exact bytes.
NAVIGATION_OPENING = (
    "Imagine you are a robot programmed for navigation tasks. "
    "You have been given a video of historical observations "
)
NAVIGATION_CURRENT = ", and current observation "
NAVIGATION_TASK = '. Your assigned task is: "'
NAVIGATION_CLOSING = (
    '" Analyze this series of images to decide your next action, which could be turning left '
    "or right by a specific degree, moving forward a certain distance, or stop if the task is "
    "completed."
)
NAVIGATION_PHRASES = (NAVIGATION_OPENING, NAVIGATION_CURRENT, NAVIGATION_TASK, NAVIGATION_CLOSING)

QWEN2_SYSTEM = "You are a helpful assistant"  # no full stop: the released template has none
LLAMA_3_SYSTEM = (
    "You are a helpful language and vision assistant. You are able to understand the visual "
    "content that the user provides, and assist the user with a variety of tasks using natural "
    "language."
)
QWEN2_PHRASES = (f"system\n{QWEN2_SYSTEM}", "user\n", "assistant\n")

# Anything that looks like a control or media token of some tokenizer, whichever one is loaded.
_TOKEN_LOOKALIKE = re.compile(
    r"<\|[^<>]*\|>|<[/\w][\w/.:-]*>|\[/?(?:bos|eos|pad|unk|sep|cls|mask|inst)\]",
    re.IGNORECASE,
)


def check_text(text: str, forbidden_tokens: Iterable[str] = ()) -> None:
    """Raise InstructionError if user text holds control characters or what looks like a token.

    `forbidden_tokens` are the special tokens of the loaded tokenizer. Letter case is ignored, since
    normalising an instruction changes it.
    """
    for character in text:
        if unicodedata.category(character) in ("Cc", "Cs") and character not in "\t\r\n":
            raise InstructionError(
                f"the text holds the control character U+{ord(character):04X}; remove it"
            )
    folded = text.casefold()
    found = next((token for token in forbidden_tokens if token.casefold() in folded), None)
    if found is None and (match := _TOKEN_LOOKALIKE.search(text)):
        found = match.group()
    if found is not None:
        raise InstructionError(
            f"the text holds {found!r}, which a model reads as a control or media token"
        )


def normalise_instruction(text: str) -> str:
    """One line, sentence case and no space before full stops: the form NaVILA was trained on."""
    text = text.replace("\r\n", " ").replace("\n", " ").strip().capitalize()
    text = re.sub(r"(?<=\.\s)[a-z]", lambda match: match.group().upper(), text)
    return re.sub(r"\s+\.", ".", text)


def clean_instruction(text: str, forbidden_tokens: Iterable[str] = ()) -> str:
    """Refuse what is empty, too long or carries tokens; normalise the rest."""
    if not isinstance(text, str):
        raise InstructionError(f"an instruction is text, got {type(text).__name__}")
    if not text.strip():
        raise InstructionError(
            "the instruction is empty; say where to go, for instance 'Go to the red chair.'"
        )
    if len(text) > MAX_INSTRUCTION_CHARACTERS:
        raise InstructionError(
            f"the instruction has {len(text)} characters, at most {MAX_INSTRUCTION_CHARACTERS} "
            "are read; shorten it"
        )
    forbidden_tokens = tuple(forbidden_tokens)
    check_text(text, forbidden_tokens)
    normalised = normalise_instruction(text)
    check_text(normalised, forbidden_tokens)
    return normalised


def navigation_prompt(
    instruction: str, num_history_frames: int = 7, forbidden_tokens: Iterable[str] = ()
) -> str:
    """NaVILA's user message, with one `<image>` per history frame and one for the current frame."""
    instruction = clean_instruction(instruction, forbidden_tokens)
    frame = f"{IMAGE_TOKEN}\n"
    return (
        f"{NAVIGATION_OPENING}{frame * num_history_frames}{NAVIGATION_CURRENT}{frame}"
        f"{NAVIGATION_TASK}{instruction}{NAVIGATION_CLOSING}"
    )


def chat_prompt(
    messages: Sequence[tuple[str, str]],
    template: str = "qwen2",
    *,
    add_generation_prompt: bool = True,
) -> str:
    """(role, content) messages -> the text that the decoder was trained to continue."""
    if template == "qwen2":
        return _qwen2_chat(messages, add_generation_prompt)
    if template == "llama_3":
        return _llama_3_chat(messages, add_generation_prompt)
    raise ConfigError(f"chat template is {template!r}; 'qwen2' or 'llama_3' is expected")


def user_prompt(content: str, template: str = "qwen2") -> str:
    """One user message, ready to be answered."""
    return chat_prompt([("user", content)], template)


def _with_system(messages: Sequence[tuple[str, str]], system: str) -> list[tuple[str, str]]:
    has_system = bool(messages) and messages[0][0] == "system"
    return [*messages] if has_system else [("system", system), *messages]


def _qwen2_chat(messages: Sequence[tuple[str, str]], add_generation_prompt: bool) -> str:
    turns = [
        f"<|im_start|>{role}\n{content}<|im_end|>\n"
        for role, content in _with_system(messages, QWEN2_SYSTEM)
    ]
    return "".join(turns) + ("<|im_start|>assistant\n" if add_generation_prompt else "")


def _llama_3_chat(messages: Sequence[tuple[str, str]], add_generation_prompt: bool) -> str:
    def header(role: str) -> str:
        return f"<|start_header_id|>{role}<|end_header_id|>\n\n"

    turns = [
        f"{header(role)}{content}<|eot_id|>"
        for role, content in _with_system(messages, LLAMA_3_SYSTEM)
    ]
    return BEGIN_OF_TEXT + "".join(turns) + (header("assistant") if add_generation_prompt else "")
