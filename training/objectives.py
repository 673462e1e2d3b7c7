# SPDX-License-Identifier: Apache-2.0
"""What the small model must get right: the answer's tokens and, in training, where things are.

The ten actions' costs-to-go become a soft target, because the oracle often chooses between nearly
equal actions; it is spread over the tokens at which their sentences part.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nvila_ros.models.nvila import Nvila
from nvila_ros.training.view_labels import CATEGORY_NAMES, COLOUR_NAMES

MAX_CLAUSES = 8


class AnswerTable(nn.Module):
    """The ten answers as tokens, and which of them still agree with which after each token."""

    def __init__(self, answers: list[list[int]], pad_id: int) -> None:
        """`answers` are token ids, the end token included, in the canonical action order."""
        super().__init__()
        self.ids: Tensor
        self.valid: Tensor
        self.agree: Tensor
        length = max(len(answer) for answer in answers)
        ids = torch.full((len(answers), length), pad_id)
        valid = torch.zeros((len(answers), length), dtype=torch.bool)
        for row, answer in enumerate(answers):
            ids[row, : len(answer)] = torch.tensor(answer)
            valid[row, : len(answer)] = True
        # agree[a, k, b]: answers a and b share their first k tokens, and b has a token k.
        same = (ids[:, None, :] == ids[None, :, :]) & valid[:, None, :] & valid[None, :, :]
        prefix = torch.ones((len(answers), len(answers), length), dtype=torch.bool)
        for k in range(1, length):
            prefix[:, :, k] = prefix[:, :, k - 1] & same[:, :, k - 1]
        agree = (prefix & valid[None, :, :]).transpose(1, 2)
        self.register_buffer("ids", ids)
        self.register_buffer("valid", valid)
        self.register_buffer("agree", agree)

    @property
    def length(self) -> int:
        """Tokens of the longest answer."""
        return self.ids.shape[1]

    def token_targets(self, taught: Tensor, target: Tensor) -> Tensor:
        """(B,) taught answer, (B, 10) distribution -> (B, K, 10) weights of k-th tokens."""
        weights = target[:, None, :] * self.agree[taught]
        return weights / weights.sum(-1, keepdim=True).clamp_min(1e-6)

    def loss(self, logits: Tensor, taught: Tensor, target: Tensor) -> Tensor:
        """(B, K, V) scores at the answer's positions -> (B,) cross entropy over its tokens."""
        log_probabilities = F.log_softmax(logits.float(), -1)
        tokens = self.ids.T.expand(len(taught), -1, -1)  # (B, K, 10)
        picked = log_probabilities.gather(-1, tokens)
        weights = self.token_targets(taught, target)
        return -(weights * picked * self.valid[taught][..., None]).sum((1, 2))


class TrainingHeads(nn.Module):
    """Linear heads that exist only while training: dense view labels and the route's geometry."""

    def __init__(self, model: Nvila) -> None:
        super().__init__()
        vision, language = model.config.vision.hidden_size, model.config.language.hidden_size
        self.norm = nn.LayerNorm(vision)
        self.category = nn.Linear(vision, len(CATEGORY_NAMES))
        self.colour = nn.Linear(vision, len(COLOUR_NAMES))
        # Sine and cosine of the aim's bearing, log1p of the distance to the goal.
        self.geometry = nn.Linear(language, 3)
        # Whether the next door or the goal is in view; sine and cosine of its bearing if it is.
        self.sighting = nn.Linear(language, 3)
        self.clause = nn.Linear(language, MAX_CLAUSES)

    def view_loss(self, patches: Tensor, category: Tensor, colour: Tensor) -> tuple[Tensor, Tensor]:
        """(V, P, C) tower output, (V, P) labels -> mean losses; structure's colour is not asked."""
        hidden = self.norm(patches)
        category_loss = F.cross_entropy(
            self.category(hidden).flatten(0, 1).float(), category.flatten()
        )
        weight = (colour > 0).float()
        each = F.cross_entropy(
            self.colour(hidden).flatten(0, 1).float(), colour.flatten(), reduction="none"
        )
        return category_loss, (each * weight.flatten()).sum() / weight.sum().clamp_min(1.0)

    def route_loss(
        self, hidden: Tensor, targets: Tensor, clause: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """(B, D) states where the answer begins, (B, 6) targets, (B,) clause -> (B,) losses."""
        way, in_view, bearing = targets[:, :3], targets[:, 3], targets[:, 4:]
        geometry = F.smooth_l1_loss(self.geometry(hidden).float(), way, reduction="none").sum(-1)
        seen = self.sighting(hidden).float()
        sighting = F.binary_cross_entropy_with_logits(seen[:, 0], in_view, reduction="none")
        miss = F.smooth_l1_loss(seen[:, 1:], bearing, reduction="none").sum(-1)
        clause_loss = F.cross_entropy(self.clause(hidden).float(), clause, reduction="none")
        return geometry, sighting + 2.0 * in_view * miss, clause_loss


class Objective:
    """The losses of one micro-batch; compiled as functions on a GPU."""

    def __init__(self, model, heads, answers, sequences, recipe, ring) -> None:
        self.model, self.heads, self.answers = model, heads, answers
        self.recipe, self.ring = recipe, ring
        device = model.device
        self.navigation_places = torch.tensor(sequences.navigation_image_places, device=device)
        self.view_places = torch.tensor(sequences.view_image_places, device=device)
        self.autocast = torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda")
        wanted = recipe.compile and device.type == "cuda"
        self._drive = torch.compile(self._drive_losses) if wanted else self._drive_losses
        self._see = torch.compile(self._see_losses) if wanted else self._see_losses
        self._encode = torch.compile(self._encode_pixels) if wanted else self._encode_pixels

    def losses(self, batch, shares: Tensor) -> dict[str, Tensor]:
        """Mean losses by name, and their sum weighted by the stage's (2,) drive and see weights."""
        recipe = self.recipe
        with self.autocast:
            pixels = self.ring.pixels[batch.slots]
            patches, features = self._encode(pixels, batch.mirrored, batch.light)
            num_views = len(batch.view_ids)
            seen = self._see(patches[-num_views:], features[-num_views:], batch)
            drive = self._drive(features[: len(features) - num_views], batch)
        losses = drive | seen
        route = losses["geometry"] + losses["sighting"] + losses["clause"]
        drives = losses["answer"] + recipe.route_weight * route
        sees = losses["question"] + 0.5 * (losses["category"] + losses["colour"])
        losses["total"] = shares[0] * drives + shares[1] * sees
        return losses

    def _encode_pixels(
        self, pixels: Tensor, mirrored: Tensor, light: Tensor
    ) -> tuple[Tensor, Tensor]:
        pixels = torch.where(mirrored[:, None, None, None], pixels.flip(2), pixels)
        patches = self.model.vision_tower(relight(normalise(pixels), light))
        return patches, self.model.mm_projector(patches)

    def _drive_losses(self, features: Tensor, batch) -> dict[str, Tensor]:
        taught, target = batch.taught, batch.target
        places = batch.lengths[:, None] + torch.arange(self.answers.length, device=taught.device)
        ids = batch.ids.scatter(1, places, self.answers.ids[taught])
        embeds = fuse(self.model, ids, features[batch.shown].flatten(1, 2), self.navigation_places)
        hidden = self.model(embeds)
        width = hidden.shape[-1]
        picked = hidden.gather(1, (places - 1)[..., None].expand(-1, -1, width))  # (B, K, D)
        logits = self.model.logits(picked)
        answer = self.answers.loss(logits, taught, target)
        geometry, sighting, clause = self.heads.route_loss(
            picked[:, 0], batch.geometry, batch.clause
        )
        weight = batch.weight
        return {
            "answer": (answer * weight).sum(),
            "geometry": (geometry * weight).sum(),
            "sighting": (sighting * weight).sum(),
            "clause": (clause * weight).sum(),
            "agreement": (self._agreement(logits, taught, target) * weight).sum(),
        }

    def _agreement(self, logits: Tensor, taught: Tensor, target: Tensor) -> Tensor:
        """(B,) target mass of the model's choice at each place where the taught answer branches."""
        tokens = self.answers.ids.T.expand(len(taught), -1, -1)
        weights = self.answers.token_targets(taught, target)
        choice = logits.float().gather(-1, tokens).masked_fill(~self.answers.agree[taught], -1e9)
        chosen = tokens.gather(-1, choice.argmax(-1, keepdim=True))
        mass = (weights * (tokens == chosen)).sum(-1)
        return torch.where(self.answers.valid[taught], mass, 1.0).prod(-1)

    def _see_losses(self, patches: Tensor, features: Tensor, batch) -> dict[str, Tensor]:
        embeds = fuse(self.model, batch.view_ids, features, self.view_places)
        hidden = self.model(embeds)
        width = hidden.shape[-1]
        picked = hidden.gather(1, batch.view_places[..., None].expand(-1, -1, width))
        wanted = batch.view_ids.gather(1, batch.view_places + 1)
        scores = self.model.logits(picked).float()
        each = F.cross_entropy(scores.flatten(0, 1), wanted.flatten(), reduction="none")
        weight = batch.view_weight.flatten()
        right = (scores.argmax(-1).flatten() == wanted.flatten()).float()
        category, colour = self.heads.view_loss(patches, batch.patch_category, batch.patch_colour)
        return {
            "question": (each * weight).sum(),
            "right_words": (right * weight).sum(),
            "category": category,
            "colour": colour,
        }


def fuse(model: Nvila, ids: Tensor, features: Tensor, places: Tensor) -> Tensor:
    """(B, L) ids, (B, I, D) features, (I,) their places -> (B, L, D) embeddings."""
    embeds = model.llm.model.embed_tokens(ids)
    return embeds.index_copy(1, places, features.to(embeds.dtype))


def normalise(pixels: Tensor) -> Tensor:
    """(F, S, S, 3) uint8 -> (F, 3, S, S) float in [-1, 1], as the image processor does."""
    return pixels.permute(0, 3, 1, 2).float() / 127.5 - 1.0


def relight(pixels: Tensor, light: Tensor) -> Tensor:
    """(F, 3, S, S) in [-1, 1] times (F, 4) light's colour factors, plus its shift; clipped."""
    scaled = pixels * light[:, :3, None, None] + light[:, 3:, None, None]
    return scaled.clamp(-1.0, 1.0)
