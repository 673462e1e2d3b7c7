# SPDX-License-Identifier: Apache-2.0
"""The assembled network: frames become features, features and text one sequence of embeddings."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence

import torch
from torch import Tensor, nn

from nvila_ros.models.config import NvilaConfig
from nvila_ros.models.language import Attend, KeyValueCache, LanguageModel
from nvila_ros.models.multiscale import project_scales
from nvila_ros.models.projector import Projector
from nvila_ros.models.vision import VisionTower


class Nvila(nn.Module):
    """Vision tower, projector and decoder, with the released parameter names under three roots.

    Weights come from `weights.load` or `from_scratch`; a bare `Nvila(config)` is not initialised.

    `media_token_ids` stand for a block of features in a sequence, `newline_token_ids` are the
    tokenised "\\n" whose embedding ends each block, `skipped_token_ids` are left out right after
    one. All come from the tokenizer (`connect`).
    """

    def __init__(self, config: NvilaConfig) -> None:
        super().__init__()
        self.config = config
        self.vision_tower = VisionTower(config.vision, config.num_vision_layers)
        self.mm_projector = Projector(config)
        self.llm = LanguageModel(config.language)
        self.media_token_ids: frozenset[int] = frozenset()
        self.newline_token_ids: tuple[int, ...] = ()
        self.skipped_token_ids: frozenset[int] = frozenset()

    @classmethod
    def from_scratch(cls, config: NvilaConfig, seed: int = 0, std: float = 0.02) -> Nvila:
        """A network for training: normal weights of deviation `std`, zero biases, unit norms."""
        with torch.random.fork_rng(devices=()):
            torch.manual_seed(seed)
            model = cls(config)
            for module in model.modules():
                if isinstance(module, (nn.Linear, nn.Conv2d, nn.Embedding)):
                    nn.init.normal_(module.weight, std=std)
                if isinstance(module, (nn.Linear, nn.Conv2d)) and module.bias is not None:
                    nn.init.zeros_(module.bias)
        return model

    @property
    def device(self) -> torch.device:
        """Where the network is."""
        return self.llm.model.embed_tokens.weight.device

    @property
    def dtype(self) -> torch.dtype:
        """What its weights are."""
        return self.llm.model.embed_tokens.weight.dtype

    def connect(
        self,
        media_token_ids: Iterable[int],
        newline_token_ids: Iterable[int],
        skipped_token_ids: Iterable[int] = (),
    ) -> None:
        """Take from the tokenizer which ids stand for media, end a block or vanish after one."""
        self.media_token_ids = frozenset(media_token_ids)
        self.newline_token_ids = tuple(newline_token_ids)
        self.skipped_token_ids = frozenset(skipped_token_ids)

    def encode_frames(self, pixels: Tensor) -> Tensor:
        """(F, 3, S, S) in [-1, 1] -> (F, T, D) features of frames that are one tile each."""
        patches = self.vision_tower(pixels)  # (F, P, C)
        if self.config.num_scales > 1:
            patches = patches.repeat(1, 1, self.config.num_scales)
        return self.mm_projector(patches)

    def encode_tiles(self, pixels: Tensor, block: tuple[int, int]) -> Tensor:
        """All tiles of one picture at all scales (N, 3, S, S) -> (T, D), for dynamic_s2 only.

        `block` is (rows, columns) of the largest scale.
        """
        return project_scales(
            self.vision_tower(pixels),
            self.mm_projector,
            self.config.s2_scales,
            block,
            self.config.s2_output_scale,
        )

    def embed_text(self, ids: Sequence[int]) -> Tensor:
        """(N,) ids of text -> (N, D)."""
        return self.llm.model.embed_tokens(torch.tensor(ids, dtype=torch.long, device=self.device))

    def embed(
        self, input_ids: Sequence[int] | Tensor, media: Sequence[Tensor] | Tensor = ()
    ) -> Tensor:
        """Token ids (N,) and one (T, D) block per media id, in order -> fused embeddings (L, D).

        Each media id is replaced by its block and what ends a block. Checkpoints of model_type
        'vila' lose padding and end tokens that directly follow (`skipped_token_ids`), so a message
        that ends in a picture has no `<|im_end|>`. For one sequence at inference: it looks at the
        ids on the host.
        """
        ids = input_ids.tolist() if isinstance(input_ids, Tensor) else list(input_ids)
        num_expected = sum(token in self.media_token_ids for token in ids)
        if num_expected != len(media):
            raise ValueError(
                f"the prompt has places for {num_expected} images or frames, got {len(media)}"
            )
        # Media ids may lie beyond the embedding's rows: only text and newlines are looked up.
        text: list[int] = []
        cuts: list[int] = []  # how much text stands before each block
        for token in without_skipped(ids, self.media_token_ids, self.skipped_token_ids):
            if token in self.media_token_ids:
                cuts.append(len(text))
                text.extend(self.newline_token_ids)
            else:
                text.append(token)
        table = self.embed_text(text)  # (N, D)
        pieces: list[Tensor] = []
        for start, end, block in zip([0, *cuts], cuts, media, strict=False):
            pieces += [table[start:end], block.to(table.dtype)]
        return torch.cat([*pieces, table[cuts[-1] if cuts else 0 :]])

    def forward(
        self,
        embeds: Tensor,
        positions: Tensor | None = None,
        cache: KeyValueCache | None = None,
        mask: Tensor | Attend | None = None,
    ) -> Tensor:
        """(B, L, D) fused embeddings -> (B, L, D) hidden states; see `LanguageModel.forward`."""
        return self.llm(embeds, positions, cache, mask)

    def logits(self, hidden: Tensor) -> Tensor:
        """(..., D) hidden states -> (..., V) next-token scores."""
        return self.llm.logits(hidden)

    def new_cache(self, max_length: int, batch_size: int = 1) -> KeyValueCache:
        """An empty cache for sequences of up to `max_length` tokens on this network's device."""
        return KeyValueCache(
            self.config.language,
            max_length,
            batch_size=batch_size,
            device=self.device,
            dtype=self.dtype,
        )


def without_skipped(
    ids: Sequence[int], media_ids: Collection[int], skipped_ids: Collection[int]
) -> list[int]:
    """Ids without those of `skipped_ids` that directly follow a media id."""
    kept: list[int] = []
    for token in ids:
        if not (kept and kept[-1] in media_ids and token in skipped_ids):
            kept.append(token)
    return kept
