"""Captioning: a text decoder that attends to the fused tokens; greedy and beam search.

Sizes in comments: B batch, K beams, T tokens so far, V vocabulary, W the fusion's width.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from multimodal.models.layers.cross import CrossBlock
from multimodal.models.layers.transformer import Block
from multimodal.models.tasks.base import FusedBatch, LossTerm, Task, TaskContext
from multimodal.models.tasks.scores import OverSamples, Scores

Encode = Callable[[Tensor], Tensor]


class Captioning(Task):
    """Predicts the next token from the previous ones and the fused tokens.

    The text tower is the lower, unimodal half of the decoder: its tokens must not see later ones.
    The upper half attends to the fused tokens of the other modalities. Source: Yu et al. 2022,
    "CoCa", section 3.2.

    Args:
        parts: the model's; the text has a tower with a causal trunk, and is not fused.
        vocab_size: V.
        num_heads: heads of the decoder.
        num_layers: layers of causal self-attention and cross-attention.
        mlp_ratio: hidden width of an MLP over W.
        text: name of the text modality; its inputs are token ids that begin with a start token.
        weight: of the task's loss.
        label_smoothing: share of the target that is spread over the vocabulary.

    Raises:
        ValueError: if the text tower is not causal or the fusion reads the text: either would leak
            the target to the decoder; and for a smaller vocabulary than the tower's.
    """

    terms = ("caption",)

    def __init__(
        self,
        parts: TaskContext,
        vocab_size: int,
        num_heads: int,
        num_layers: int = 1,
        mlp_ratio: float = 4.0,
        text: str = "text",
        weight: float = 1.0,
        label_smoothing: float = 0.0,
    ) -> None:
        super().__init__(weight)
        if text in parts.fused:
            raise ValueError(
                f"captioning: the fusion reads {text!r}, the text to predict; leave it out of "
                "model.fused"
            )
        encoder = parts.encoders.get(text)
        if encoder is None or not getattr(getattr(encoder, "trunk", None), "causal", False):
            raise ValueError(
                f"captioning needs a tower for {text!r} whose tokens see no later ones: set "
                f"model.towers.{text}.encoder.trunk.causal=true"
            )
        known = getattr(encoder, "vocab_size", vocab_size)
        if known > vocab_size:
            raise ValueError(
                f"captioning: vocab_size={vocab_size}, but the tower for {text!r} reads {known} ids"
            )
        self.text = text
        self.label_smoothing = label_smoothing
        self.input = nn.Linear(int(encoder.width), parts.width)  # type: ignore[arg-type]
        self.own = nn.ModuleList(
            Block(parts.width, num_heads, mlp_ratio, causal=True) for _ in range(num_layers)
        )
        self.cross = nn.ModuleList(
            CrossBlock(parts.width, num_heads, mlp_ratio, num_layers) for _ in range(num_layers)
        )
        for block in self.own:
            block.init(num_layers)  # type: ignore[operator]
        self.norm = nn.LayerNorm(parts.width)
        self.head = nn.Linear(parts.width, vocab_size)

    def decode(self, tokens: Tensor, context: Tensor, mask: Tensor | None) -> Tensor:
        """Logits ``[B, T, V]`` of the word after each.

        Args:
            tokens: ``[B, T, w]`` of the text tower.
            context: fused tokens ``[B, S, W]``.
            mask: ``[B, S]``, True where a fused token is real.
        """
        x = self.input(tokens)
        for own, cross in zip(self.own, self.cross, strict=True):
            x = cross(own(x), context, mask)
        logits: Tensor = self.head(self.norm(x))
        return logits

    def _log_likelihoods(self, batch: FusedBatch, rows: Tensor, contexts: Tensor) -> Tensor:
        """``[N, T - 1]``: log-likelihood of the texts of ``rows``, conditioned on ``contexts``."""
        tokens = batch.encoded[self.text].tokens[rows]
        fused = batch.fused
        logits = self.decode(tokens, fused.tokens[contexts], fused.mask[contexts])[:, :-1]
        logits = logits.float() if logits.dtype != torch.float64 else logits
        ids = batch.inputs[self.text][rows][:, 1:]
        losses = F.cross_entropy(
            logits.transpose(1, 2), ids, reduction="none", label_smoothing=self._smoothing()
        )
        return -losses

    def _smoothing(self) -> float:
        return self.label_smoothing if self.training else 0.0

    def _real(self, batch: FusedBatch, rows: Tensor) -> Tensor:
        """``[N, T - 1]`` bool: which of the predicted words are real."""
        mask = batch.masks.get(self.text)
        if mask is None:
            return torch.ones_like(batch.inputs[self.text][rows][:, 1:], dtype=torch.bool)
        return mask[rows][:, 1:]

    def _rows(self, batch: FusedBatch) -> Tensor:
        """The samples that have a text and a fused modality."""
        rows = batch.rows(self.text)
        some = batch.fused.mask.any(dim=1)
        return rows[some[rows]] if self.text in batch.encoded else rows[:0]

    def loss(self, batch: FusedBatch) -> dict[str, LossTerm]:
        """``caption``: cross-entropy of the next word, over words."""
        rows = self._rows(batch)
        if not len(rows):
            return {}
        real = self._real(batch, rows)
        total = -(self._log_likelihoods(batch, rows, rows) * real).sum()
        return {"caption": LossTerm(total, real.sum().to(total.dtype))}

    def observe(self, batch: FusedBatch) -> dict[str, Tensor]:
        """Log likelihoods of each text: from its own picture, and from nine others'.

        The others are those that follow in the batch, of another key.
        """
        rows = self._rows(batch)
        if len(rows) < 10:
            return {}
        keys = batch.positive_keys[rows]
        places = torch.arange(len(rows), device=rows.device)
        real = self._real(batch, rows)
        columns, fair = [], torch.ones_like(rows, dtype=torch.bool)
        for step in range(10):
            others = (places + step) % len(rows)
            likelihood = self._log_likelihoods(batch, rows, rows[others])
            columns.append((likelihood * real).sum(dim=1))
            fair = fair & ((keys[others] != keys) if step else fair)
        return {
            "likelihood": torch.stack(columns, dim=1)[fair],
            "words": real.sum(dim=1)[fair],
        }

    def score(self, observed: Mapping[str, Tensor]) -> Scores:
        """How often a text is likeliest from its own picture, and the gain in nats per word."""
        likelihood, words = observed["likelihood"].double(), observed["words"].double()
        own, others = likelihood[:, 0], likelihood[:, 1:]
        best = (own[:, None] > others).all(dim=1).double()
        first = best.mean()
        over = OverSamples.of(best, own, words, others.mean(dim=1))
        gain = (own - others.mean(dim=1)).sum() / words.sum()
        return Scores(
            {
                "first_of_ten": first.item(),
                "perplexity": (-own.sum() / words.sum()).exp().item(),
                "gain_per_word": gain.item(),
            },
            {
                "first_of_ten": 0.1,
                "perplexity": (-others.mean(dim=1).sum() / words.sum()).exp().item(),
                "gain_per_word": 0.0,
            },
            len(own),
            {
                "first_of_ten": over.mean(0),
                "perplexity": over.figure(lambda means: np.exp(-means[:, 1] / means[:, 2])),
                "gain_per_word": over.figure(lambda m: (m[:, 1] - m[:, 3]) / m[:, 2]),
            },
        )

    @torch.no_grad()
    def generate(
        self,
        encode: Encode,
        context: Tensor,
        mask: Tensor | None,
        start: int,
        end: int,
        max_length: int,
        beams: int = 1,
        length_penalty: float = 1.0,
    ) -> list[list[int]]:
        """The likeliest texts of a search, without start and end tokens.

        Args:
            encode: ids ``[n, T]`` to the text tower's tokens ``[n, T, w]``.
            context: fused tokens ``[B, S, W]``.
            mask: ``[B, S]`` or None.
            start: id that every text begins with.
            end: id that ends it.
            max_length: most words, the end included.
            beams: K; 1 is greedy.
            length_penalty: finished texts compete by log likelihood / words ** this.

        Raises:
            ValueError: if ``beams`` or ``max_length`` is below 1.
        """
        if beams < 1 or max_length < 1:
            raise ValueError(f"beams={beams} and max_length={max_length} must be at least 1")
        batch = len(context)
        context = context.repeat_interleave(beams, dim=0)
        mask = None if mask is None else mask.repeat_interleave(beams, dim=0)
        ids = torch.full((batch, beams, 1), start, device=context.device)
        scores = torch.full((batch, beams), -torch.inf, device=context.device)
        scores[:, 0] = 0.0  # all beams are equal at first: only one counts
        done = torch.zeros_like(scores, dtype=torch.bool)
        lengths = torch.zeros_like(scores)
        for _ in range(max_length):
            tokens = encode(ids.flatten(0, 1))
            logits = self.decode(tokens, context, mask)[:, -1].float()
            words = logits.log_softmax(dim=-1).view(batch, beams, -1)  # [B, K, V]
            # A finished text is extended by its end token, at no cost.
            still = torch.full_like(words, -torch.inf)
            still[..., end] = 0.0
            words = torch.where(done[..., None], still, words)
            totals = scores[..., None] + words
            counts = (lengths + (~done).float())[..., None].clamp_min(1)
            ranked = (totals / counts**length_penalty).flatten(1)
            chosen = ranked.topk(beams, dim=1).indices  # [B, K]
            scores = totals.flatten(1).gather(1, chosen)
            parents, new = chosen // words.shape[-1], chosen % words.shape[-1]
            lengths = lengths.gather(1, parents) + (~done.gather(1, parents)).float()
            done = done.gather(1, parents) | (new == end)
            ids = ids.gather(1, parents[..., None].expand_as(ids))
            ids = torch.cat([ids, new[..., None]], dim=2)
            if done.all():
                break
        best = (scores / lengths.clamp_min(1) ** length_penalty).argmax(dim=1)
        texts = ids[torch.arange(batch, device=ids.device), best, 1:].tolist()
        return [text[: text.index(end)] if end in text else text for text in texts]
