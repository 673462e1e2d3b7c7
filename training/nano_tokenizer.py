# SPDX-License-Identifier: Apache-2.0
"""Builds the small network's tokenizer: each instruction word and fixed phrase is one token."""

from __future__ import annotations

from collections.abc import Iterable

import tokenizers
from tokenizers import AddedToken, decoders, models, normalizers, pre_tokenizers

from nvila_ros.actions import ANSWER_PHRASES
from nvila_ros.models.prompt import MEDIA_TOKENS, NAVIGATION_PHRASES, QWEN2_PHRASES
from nvila_ros.models.tokenizer import Tokenizer

CONTROL_TOKENS = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
FIXED_PHRASES = ("\n", *QWEN2_PHRASES, *NAVIGATION_PHRASES, *ANSWER_PHRASES)
# A whole word always beats the bytes it could be spelt with.
WORD_SCORE, BYTE_SCORE = -1.0, -10.0


def build_nano_tokenizer(words: Iterable[str], phrases: Iterable[str] = FIXED_PHRASES) -> Tokenizer:
    """A closed vocabulary of words over a byte alphabet, so any other text still encodes.

    Letter case is dropped and a word is the same token wherever it stands, since a small network
    sees too few rare forms to learn them. Phrases are kept byte for byte.
    """
    word_splitter = pre_tokenizers.ByteLevel(add_prefix_space=True)
    pieces = {
        piece: WORD_SCORE
        for word in words
        for piece, _ in word_splitter.pre_tokenize_str(f" {word.lower()}")
    }
    alphabet = dict.fromkeys(sorted(pre_tokenizers.ByteLevel.alphabet()), BYTE_SCORE)
    vocabulary = {
        **alphabet,
        **{piece: score for piece, score in sorted(pieces.items()) if piece not in alphabet},
    }
    backend = tokenizers.Tokenizer(models.Unigram(list(vocabulary.items())))
    backend.normalizer = normalizers.Lowercase()
    backend.pre_tokenizer = word_splitter
    backend.decoder = decoders.ByteLevel()
    backend.add_special_tokens(
        [
            AddedToken(token, special=True, normalized=False)
            for token in (*CONTROL_TOKENS, *MEDIA_TOKENS)
        ]
    )
    backend.add_tokens([AddedToken(phrase, special=False, normalized=False) for phrase in phrases])
    return Tokenizer(backend, eos_token="<|im_end|>")
