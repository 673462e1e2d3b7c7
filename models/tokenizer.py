# SPDX-License-Identifier: Apache-2.0
"""Text to token ids and back, with the light `tokenizers` package: from prompt to embeddings."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import tokenizers
from tokenizers import AddedToken, Regex, decoders, models, normalizers, pre_tokenizers

from nvila_ros.errors import CheckpointError
from nvila_ros.models.prompt import BEGIN_OF_TEXT, IMAGE_TOKEN, MEDIA_TOKENS, VIDEO_TOKEN

# How Qwen2 cuts text into words before byte-pair merging.
QWEN2_WORDS = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
# Llama-3 ends a turn with <|eot_id|>; VILA-1.5 trained the last one to end with <|end_of_text|>.
END_OF_TURN_TOKENS = ("<|im_end|>", "<|eot_id|>", "<|end_of_text|>")

# What a prompt of each chat template cannot do without.
TEMPLATE_TOKENS = {
    "qwen2": ("<|im_start|>", "<|im_end|>"),
    "llama_3": (BEGIN_OF_TEXT, "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"),
}


class Tokenizer:
    """A tokenizer with NVILA's media tokens, which it adds when the checkpoint has none."""

    def __init__(
        self,
        backend: tokenizers.Tokenizer,
        *,
        eos_token: str,
        settings: dict[str, Any] | None = None,
    ) -> None:
        self._backend = backend
        backend.no_padding()  # a tokenizer.json may ask for either; a prompt is never cut
        backend.no_truncation()
        self._settings = dict(settings or {}, eos_token=eos_token)
        missing = [token for token in MEDIA_TOKENS if backend.token_to_id(token) is None]
        backend.add_special_tokens(
            [AddedToken(token, special=True, normalized=False) for token in missing]
        )
        added = backend.get_added_tokens_decoder().values()
        self.special_tokens = frozenset(
            token.content for token in added if token.special
        ) | frozenset(MEDIA_TOKENS)
        self.image_id = self.id(IMAGE_TOKEN)
        self.video_id = self.id(VIDEO_TOKEN)
        self.media_ids = tuple(self.id(token) for token in MEDIA_TOKENS)
        self.newline_ids = tuple(self.encode("\n"))
        ends = [token for token in END_OF_TURN_TOKENS if backend.token_to_id(token) is not None]
        self.eos_id = self.id(eos_token)
        self.stop_ids = frozenset({self.eos_id, *(self.id(token) for token in ends)})
        padding_id = backend.token_to_id(_token_text(self._settings.get("pad_token")) or "")
        self.padding_and_end_ids = frozenset(
            {self.eos_id} if padding_id is None else {self.eos_id, padding_id}
        )

    def __len__(self) -> int:
        return self._backend.get_vocab_size(with_added_tokens=True)

    @property
    def vocab_size(self) -> int:
        """Number of ids, media tokens included; a released decoder may have fewer rows."""
        return len(self)

    def id(self, token: str) -> int:
        """The id of one token by name."""
        found = self._backend.token_to_id(token)
        if found is None:
            raise CheckpointError(
                f"the tokenizer has no token {token!r}; use the tokenizer files of this checkpoint"
            )
        return found

    def check_template(self, template: str, num_rows: int, folder: Path) -> None:
        """Raise CheckpointError unless each token of the chat template is one id with a row.

        `num_rows` are those of the decoder's embedding; media tokens need none.
        """
        for token in TEMPLATE_TOKENS[template]:
            index = self._backend.token_to_id(token)
            if index is None or self.encode(token)[-1:] != [index]:
                raise CheckpointError(
                    f"{folder}: the tokenizer has no token {token!r}, which every {template} "
                    "prompt needs; copy tokenizer.json, tokenizer_config.json and "
                    "added_tokens.json from where the weights came from"
                )
            if index >= num_rows:
                raise CheckpointError(
                    f"{folder}: token {token!r} has id {index}, the decoder has {num_rows} rows "
                    "(vocab_size in config.json); the tokenizer and the weights are not of one "
                    "checkpoint"
                )

    def encode(self, text: str) -> list[int]:
        """Trusted text, special tokens recognised. Check user text first (`prompt.check_text`)."""
        if text.startswith(BEGIN_OF_TEXT):
            return self._encode_vila_1_5(text)
        return self._backend.encode(text, add_special_tokens=False).ids

    def _encode_vila_1_5(self, text: str) -> list[int]:
        """A llama_3 prompt as VILA-1.5 and NaVILA encode it: piece by piece between the images.

        Each piece is encoded as a text of its own, with whatever its tokenizer puts in front, and
        then loses its first token, for which one begin of text stands at the very beginning. So a
        tokenizer that adds a begin of text (Llama-3's does) opens the prompt with two of them, and
        one that adds none loses the newline after each image. Released weights expect either.
        """
        ids = [self.id(BEGIN_OF_TEXT)]
        for index, piece in enumerate(text.split(IMAGE_TOKEN)):
            if index:
                ids.append(self.image_id)
            ids += self._backend.encode(piece, add_special_tokens=True).ids[1:]
        return ids

    def decode(self, ids: Iterable[int], *, skip_special_tokens: bool = True) -> str:
        """Ids back to text."""
        return self._backend.decode(list(ids), skip_special_tokens=skip_special_tokens)

    def add_tokens(self, names: Iterable[str]) -> None:
        """Add ordinary tokens, such as the time tokens of temporal localisation, if absent."""
        self._backend.add_tokens(
            [AddedToken(name, special=False, normalized=False) for name in names]
        )

    @classmethod
    def load(cls, folder: Path | str) -> Tokenizer:
        """Read the tokenizer files of a checkpoint's `llm/` folder."""
        folder = Path(folder)
        settings = _read_settings(folder / "tokenizer_config.json")
        try:
            if (folder / "tokenizer.json").exists():
                backend = tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json"))
            else:
                backend = _read_byte_pairs(folder)
        except CheckpointError:
            raise
        except (
            Exception
        ) as error:  # the package raises bare Exception for whatever is wrong with a file
            raise CheckpointError(
                f"the tokenizer in {folder} cannot be read ({error}); copy its files again"
            ) from None
        _add_saved_tokens(backend, settings, folder)
        eos_token = _token_text(settings.get("eos_token"))
        if not eos_token:
            raise CheckpointError(
                f"{folder / 'tokenizer_config.json'} has no 'eos_token'; answers could not end"
            )
        return cls(backend, eos_token=eos_token, settings=settings)

    def save(self, folder: Path | str) -> None:
        """Write `tokenizer.json` and `tokenizer_config.json`."""
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        self._backend.save(str(folder / "tokenizer.json"))
        settings = {"tokenizer_class": "PreTrainedTokenizerFast", **self._settings}
        settings["added_tokens_decoder"] = {
            str(index): {
                "content": token.content,
                "special": token.special,
                "normalized": token.normalized,
            }
            for index, token in sorted(self._backend.get_added_tokens_decoder().items())
        }
        text = json.dumps(settings, indent=2, ensure_ascii=False)
        (folder / "tokenizer_config.json").write_text(text + "\n", encoding="utf-8")


def _token_text(entry: str | dict[str, Any] | None) -> str | None:
    """A token's text; settings name tokens by their text or by a description."""
    return entry.get("content") if isinstance(entry, dict) else entry


def _read_settings(path: Path) -> dict[str, Any]:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise CheckpointError(
            f"{path} is missing; copy the whole llm folder of the checkpoint"
        ) from None
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise CheckpointError(f"{path} is not valid JSON ({error}); copy the file again") from None


def _read_byte_pairs(folder: Path) -> tokenizers.Tokenizer:
    """Qwen2's byte-pair tokenizer from the released `vocab.json` and `merges.txt`."""
    for name in ("vocab.json", "merges.txt"):
        if not (folder / name).exists():
            raise CheckpointError(
                f"{folder} has neither tokenizer.json nor {name}; copy the tokenizer files"
            )
    backend = tokenizers.Tokenizer(
        models.BPE.from_file(str(folder / "vocab.json"), str(folder / "merges.txt"))
    )
    backend.normalizer = normalizers.NFC()
    backend.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(QWEN2_WORDS), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    backend.decoder = decoders.ByteLevel()
    return backend


def _add_saved_tokens(
    backend: tokenizers.Tokenizer, settings: dict[str, Any], folder: Path
) -> None:
    """Add the tokens that the checkpoint lists beside its vocabulary and hold it to their ids."""
    listed = settings.get("added_tokens_decoder") or {}
    for index, entry in sorted(
        ((int(key), value) for key, value in listed.items()), key=lambda pair: pair[0]
    ):
        content, special = entry["content"], bool(entry.get("special", False))
        token = AddedToken(
            content, special=special, normalized=bool(entry.get("normalized", not special))
        )
        if backend.token_to_id(content) is None:
            (backend.add_special_tokens if special else backend.add_tokens)([token])
        if backend.token_to_id(content) != index:
            raise CheckpointError(
                f"{folder}: token {content!r} has id {backend.token_to_id(content)}, "
                f"its list says {index}; "
                "the tokenizer files are not from one checkpoint"
            )
