"""From equal weights our CLIP learns as transformers' does: equal losses for a hundred steps."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from multimodal.core.batch import Batch
from multimodal.inference.importing import import_weights
from multimodal.models.towers import EmbeddingModel
from multimodal.objectives.candidates import AllRanks
from multimodal.objectives.losses.softmax import InfoNCE
from multimodal.objectives.negatives.selection import InBatch
from multimodal.objectives.objective import ContrastiveObjective, make_objective

transformers = pytest.importorskip("transformers")

STEPS, BATCH, CONCEPTS = 100, 16, 64
START, END, VOCABULARY, CONTEXT = 48, 49, 50, 12
SIZES = {"hidden_size": 64, "intermediate_size": 256, "num_hidden_layers": 2,
         "num_attention_heads": 4, "projection_dim": 32}  # fmt: skip


def clip() -> nn.Module:
    torch.manual_seed(0)
    config = transformers.CLIPConfig(
        vision_config={**SIZES, "image_size": 32, "patch_size": 8},
        text_config={**SIZES, "vocab_size": VOCABULARY, "max_position_embeddings": CONTEXT,
                     "bos_token_id": START, "eos_token_id": END, "pad_token_id": 0},
        projection_dim=32,
    )  # fmt: skip
    return transformers.CLIPModel(config).train()


def data() -> tuple[Tensor, Tensor]:
    """A picture and a text of every concept."""
    generator = torch.Generator().manual_seed(1)
    texts = torch.zeros(CONCEPTS, CONTEXT, dtype=torch.int64)
    lengths = torch.randint(4, CONTEXT + 1, (CONCEPTS,), generator=generator)
    for row, length in zip(texts, lengths.tolist(), strict=True):
        row[:length] = torch.randint(3, START, (length,), generator=generator)
        row[0], row[length - 1] = START, END
    return torch.randn(CONCEPTS, 3, 32, 32, generator=generator), texts


def batches() -> list[Batch]:
    pictures, texts = data()
    generator = torch.Generator().manual_seed(2)
    made = []
    for step in range(STEPS):
        rows = torch.randperm(CONCEPTS, generator=generator)[:BATCH]
        noise = 0.3 * torch.randn(BATCH, 3, 32, 32, generator=generator)
        inputs = {"image": pictures[rows] + noise, "text": texts[rows]}
        masks = {"text": texts[rows] != 0}
        made.append(Batch(inputs, masks, rows, rows, torch.zeros_like(rows), "made", step))
    return made


def trimmed(batch: Batch) -> Batch:
    """As our loader gives it: padded to the longest text of the batch."""
    longest = int(batch.masks["text"].sum(1).max())
    batch.inputs["text"], batch.masks["text"] = (
        rows["text"][:, :longest] for rows in (batch.inputs, batch.masks)
    )
    return batch


def curve(modules: list[nn.Module], loss_of) -> list[float]:
    parameters = [p for module in modules for p in module.parameters()]
    optimizer = torch.optim.AdamW(parameters, lr=5e-4, weight_decay=0.1)
    losses = []
    for batch in batches():
        optimizer.zero_grad()
        loss = loss_of(batch)
        loss.backward()
        nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        losses.append(loss.item())
    return losses


def ours(model: EmbeddingModel, objective: ContrastiveObjective, batch: Batch) -> Tensor:
    embeddings = {
        name: model.embed(name, batch.inputs[name], batch.masks.get(name))
        for name in ("image", "text")
    }
    keys = batch.sample_ids, batch.positive_keys
    return objective(embeddings, *keys, batch.step, 0, batch.source).loss


def theirs(model: nn.Module, batch: Batch) -> Tensor:
    return model(
        input_ids=batch.inputs["text"],
        attention_mask=batch.masks["text"].long(),
        pixel_values=batch.inputs["image"],
        return_loss=True,
    ).loss


def test_our_losses_are_those_of_transformers_for_a_hundred_steps():
    reference = clip()
    made = import_weights(reference.state_dict(), reference.config.to_dict())
    pairs = {"image_text": {"anchor": "image", "other": "text"}}
    objective = make_objective(pairs, InfoNCE(), InBatch(), AllRanks()).train()
    with torch.no_grad():
        objective.pairs["image_text"].logit_scale.copy_(reference.logit_scale)
    model = made.model.train()
    found = curve([model, objective], lambda batch: ours(model, objective, trimmed(batch)))
    expected = curve([reference], lambda batch: theirs(reference, batch))
    assert expected[-1] < 0.3 * expected[0]  # it learns
    differences = [abs(a - b) for a, b in zip(found, expected, strict=True)]
    assert max(differences) < 1e-4, max(differences)
