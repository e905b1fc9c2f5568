"""Self-distillation in training: against loops, in pieces, on ranks, and what moves when."""

from __future__ import annotations

import copy
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from gloo import run_ranks
from objective_cases import InBatch, InfoNCE
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.parallel import DistributedDataParallel

from multimodal.core.batch import Batch
from multimodal.core.distributed import all_reduce_sum, world_size
from multimodal.core.errors import InputMismatchError
from multimodal.core.hashing import stable_hash
from multimodal.models.encoders.convolutional import ConvolutionalEncoder
from multimodal.models.encoders.features import FeatureEncoder
from multimodal.models.encoders.transformer import GridTransformer
from multimodal.models.encoders.vision import VideoTransformer, VisionTransformer
from multimodal.models.heads import LinearHead
from multimodal.models.layers.stems import PatchStem
from multimodal.models.layers.transformer import Transformer
from multimodal.models.towers import EmbeddingModel, Tower
from multimodal.objectives.candidates import AllRanks
from multimodal.objectives.objective import make_objective
from multimodal.objectives.self_distillation.prototypes import PrototypeHead
from multimodal.objectives.self_distillation.settings import SelfDistillation
from multimodal.objectives.self_distillation.views import HiddenPatches, LocalCrops
from multimodal.training.modules.contrastive import ContrastiveModule
from multimodal.training.modules.self_distilled import SelfDistiller

ROWS, DIM, SEED, STEP = 6, 8, 1, 3
HEAD = partial(PrototypeHead, prototypes=10, hidden=12, bottleneck=5)
CROPS, HIDDEN = LocalCrops(count=2, scale=(0.2, 0.6), weight=0.7), HiddenPatches(0.4, weight=1.3)
TIGHT = {"rtol": 1e-9, "atol": 1e-11}


def vit(pooling: str = "class", **more: Any) -> VisionTransformer:
    trunk = Transformer(width=DIM, num_layers=2, num_heads=2)
    return VisionTransformer(
        16, 3, partial(PatchStem, patch_size=4), trunk, pooling=pooling, **more
    )


def series() -> GridTransformer:
    trunk = Transformer(width=DIM, num_layers=1, num_heads=2)
    return GridTransformer(6, [16], partial(PatchStem, patch_size=4), trunk)


def settings(**more: Any) -> SelfDistillation:
    given = {"modalities": ["image"], "head": HEAD, "local": CROPS, "hidden": HIDDEN, **more}
    return SelfDistillation(**given)


def module(encoder: nn.Module | None = None, pieces: int | None = None, **more: Any) -> Any:
    torch.manual_seed(0)
    head = partial(LinearHead, embed_dim=4)
    towers = {"image": Tower(encoder or vit(), head), "text": Tower(FeatureEncoder(3, DIM), head)}
    model = EmbeddingModel(towers)
    pairs = {"image_text": {"anchor": "image", "other": "text"}}
    objective = make_objective(pairs, InfoNCE(), InBatch(), AllRanks(), embed_dim=4)
    distiller = SelfDistiller(settings(**more), dict(model.towers.items()))
    made = ContrastiveModule(
        model, objective, torch.optim.AdamW, None, 0.0, SEED,
        micro_batch_size=pieces, self_distiller=distiller,
    ).double()  # fmt: skip
    made.setup("fit")
    with torch.no_grad():  # a teacher that has gone another way, and centres
        for teacher in distiller.teachers.parameters():
            teacher.add_(0.1 * torch.randn_like(teacher))
        for name, buffer in distiller.named_buffers():
            if name.startswith("centre"):
                buffer.copy_(0.2 * torch.randn_like(buffer))
    made.accumulate = lambda metrics: setattr(made, "shown", metrics)
    return made


def batch(rows: slice = slice(None), step: int = STEP) -> Batch:
    generator = torch.Generator().manual_seed(2)
    image = torch.randn(ROWS, 3, 16, 16, dtype=torch.float64, generator=generator)
    text = torch.randn(ROWS, 3, dtype=torch.float64, generator=generator)
    numbers = torch.arange(ROWS)
    return Batch(
        inputs={"image": image[rows], "text": text[rows]},
        masks={},
        presence={},
        sample_ids=numbers[rows],
        positive_keys=numbers[rows],
        repeats=torch.zeros_like(numbers[rows]),
        source="one",
        step=step,
    )


def by_loops(made: ContrastiveModule, data: Batch) -> dict[str, Tensor]:
    """The two losses, sample by sample, crop by crop and patch by patch."""
    distiller, chosen = made.self_distiller, made.self_distiller.settings
    key = stable_hash(stable_hash(SEED, data.step, "self_distillation"), "image")
    student, teacher = made.model.tower("image").encoder, distiller.teachers["image"].module
    losses: dict[str, list[Tensor]] = {"local": [], "hidden": []}
    for row in range(len(data.sample_ids)):
        picture, ids = data.inputs["image"][row : row + 1], data.sample_ids[row : row + 1]
        with torch.no_grad():
            seen = teacher["encoder"](picture)

        def entropy(part: str, theirs: Tensor, ours: Tensor) -> Tensor:
            with torch.no_grad():
                logits = teacher[part].logits(teacher[part].vectors(theirs))
                target = ((logits - distiller.centre("image", part)) / 0.04).softmax(-1)
            head = distiller.heads["image"][part]
            logits = head.logits(head.vectors(ours)) / 0.1
            return -(target * logits.log_softmax(-1)).sum()

        if chosen.local is not None:
            crops = chosen.local.cut(picture, ids, key)[0]
            each = [entropy("local", seen.features[0], student(crop[None]).features[0])
                    for crop in crops]  # fmt: skip
            losses["local"].append(torch.stack(each).mean())
        if chosen.hidden is not None:
            hidden = chosen.hidden.hidden(ids, 16, key)[0].tolist()
            tokens = student.stem(picture).clone()
            for place in hidden:
                tokens[0, place] = distiller.hidden_tokens["image"]
            ours = student.encode_tokens(tokens).tokens[0]
            extra = len(ours) - 16
            wanted = range(16) if chosen.hidden.visible else hidden
            each = [entropy("hidden", seen.tokens[0, extra + place], ours[extra + place])
                    for place in wanted]  # fmt: skip
            losses["hidden"].append(torch.stack(each).mean())
    return {part: torch.stack(each).mean() for part, each in losses.items() if each}


@pytest.mark.parametrize(
    "more",
    [
        {},
        {"hidden": None},
        {"local": None},
        {"hidden": HiddenPatches(0.25, visible=True)},
    ],
    ids=["both", "local", "hidden", "visible"],
)
@pytest.mark.parametrize("pooling", ["class", "mean"])
def test_the_losses_and_gradients_are_those_of_loops(more, pooling):
    made, data = module(vit(pooling), **more), batch()
    expected = by_loops(made, data)
    chosen = made.self_distiller.settings
    weights = {"local": chosen.local, "hidden": chosen.hidden}
    alone = sum(weights[part].weight * value for part, value in expected.items())
    parameters = [p for p in made.parameters() if p.requires_grad]
    with_pairs = made.objective(
        made.embed(data), data.sample_ids, data.positive_keys, STEP, SEED, "one"
    ).loss
    wanted = torch.autograd.grad(
        with_pairs + alone, parameters, allow_unused=True, materialize_grads=True
    )
    loss = made.training_step(data, 0)
    for part, value in expected.items():
        shown = made.shown[f"train/loss/self_distillation/image_{part}"]
        torch.testing.assert_close(shown, value.detach(), **TIGHT)
    torch.testing.assert_close(loss, with_pairs + alone, **TIGHT)
    found = torch.autograd.grad(loss, parameters, allow_unused=True, materialize_grads=True)
    torch.testing.assert_close(found, wanted, **TIGHT)
    learns = [name for name, p in made.named_parameters() if p.requires_grad]
    moved = {name for name, each in zip(learns, found, strict=True) if each.abs().sum() > 0}
    assert {name.split(".")[0] for name in moved} >= {"model", "self_distiller"}
    assert not any("teachers" in name for name in learns)


@pytest.mark.parametrize("pieces", [1, 4])
def test_pieces_of_a_batch_give_the_same(pieces):
    whole, cut = module(), module(pieces=pieces)
    losses = [each.training_step(batch(), 0) for each in (whole, cut)]
    torch.testing.assert_close(losses[0], losses[1], **TIGHT)
    for loss in losses:
        loss.backward()
    for (name, one), two in zip(whole.named_parameters(), cut.parameters(), strict=True):
        if one.requires_grad:
            torch.testing.assert_close(
                one.grad, two.grad, **TIGHT, msg=lambda m, n=name: f"{n}: {m}"
            )
    for each in (whole, cut):
        each.after_step(applied=True)
    torch.testing.assert_close(dict(whole.named_buffers()), dict(cut.named_buffers()), **TIGHT)


def test_teacher_and_centre_move_after_a_step_that_was_applied():
    made, data = module(), batch()
    distiller = made.self_distiller
    before = copy.deepcopy(distiller.state_dict())
    made.training_step(data, 0)
    made.after_step(applied=False)
    assert all(torch.equal(value, distiller.state_dict()[n]) for n, value in before.items())
    made.training_step(data, 0)
    with torch.no_grad():
        teacher = distiller.teachers["image"].module
        seen = teacher["encoder"](data.inputs["image"])
        pooled = teacher["local"].logits(teacher["local"].vectors(seen.features)).mean(0)
        key = stable_hash(stable_hash(SEED, STEP, "self_distillation"), "image")
        hidden = HIDDEN.hidden(data.sample_ids, 16, key)
        tokens = torch.stack([seen.tokens[i, 1 + hidden[i]] for i in range(ROWS)])
        patches = teacher["hidden"].logits(teacher["hidden"].vectors(tokens)).mean((0, 1))
    for part in ("local", "hidden"):
        name = f"centre_image_{part}"
        torch.testing.assert_close(distiller.centre("image", part), before[name])  # not yet
    made.after_step(applied=True)
    for part, mean in (("local", pooled), ("hidden", patches)):
        wanted = 0.9 * before[f"centre_image_{part}"] + 0.1 * mean
        torch.testing.assert_close(distiller.centre("image", part), wanted, **TIGHT)
    student = {f"encoder.{n}": p for n, p in made.model.tower("image").encoder.named_parameters()}
    student |= dict(distiller.heads["image"].named_parameters())
    for name, value in student.items():
        kept = before[f"teachers.image.module.{name}"]
        found = distiller.state_dict()[f"teachers.image.module.{name}"]
        torch.testing.assert_close(found, 0.996 * kept + 0.004 * value.detach(), **TIGHT)


def test_a_sample_without_the_modality_takes_no_part():
    made = module()
    data = batch()
    data.presence["image"] = torch.tensor([True, False, True, True, False, True])
    made.self_distilled(data, SEED)
    made.after_step(applied=True)
    _, parts = made.self_distilled(data, SEED)
    kept = [0, 2, 3, 5]
    few = by_loops(made, Batch(
        inputs={"image": data.inputs["image"][kept]}, masks={}, presence={},
        sample_ids=data.sample_ids[kept], positive_keys=data.positive_keys[kept],
        repeats=data.repeats[kept],
        source="one", step=STEP,
    ))  # fmt: skip
    for part, value in few.items():
        torch.testing.assert_close(
            parts[f"loss/self_distillation/image_{part}"], value.detach(), **TIGHT
        )
    del data.inputs["image"]
    assert made.self_distilled(data, SEED) == (0.0, {})


def test_small_crops_go_through_a_vit_with_resized_positions():
    encoder = vit().double()
    crop = torch.rand(2, 3, 8, 12, dtype=torch.float64)
    found = encoder.encode_resized(crop)
    table = encoder.positions[1:].T.view(1, DIM, 4, 4)
    positions = F.interpolate(table, (2, 3), mode="bilinear")[0].flatten(1).T
    positions = torch.cat([encoder.positions[:1], positions])
    first = encoder.class_token.expand(2, 1, -1)
    tokens = torch.cat([first, encoder.stem(crop)], dim=1) + positions
    torch.testing.assert_close(found.tokens, encoder.trunk(tokens, None), **TIGHT)
    with pytest.raises(ValueError, match="multiple of patch_size"):
        encoder.encode_resized(torch.rand(2, 3, 9, 9, dtype=torch.float64))
    made = module(local=LocalCrops(count=1, size=8), hidden=None)
    assert made.training_step(batch(), 0).isfinite()


def test_any_encoder_of_pictures_learns_from_crops():
    made = module(ConvolutionalEncoder(16, 3, [8, DIM], [1, 1]), hidden=None)
    made.training_step(batch(), 0).backward()
    assert made.shown["train/loss/self_distillation/image_local"].isfinite()


@pytest.mark.parametrize(
    ("tower", "more", "message"),
    [
        ({"frozen": True}, {}, "'image' is frozen"),
        ({"frozen": "encoder"}, {}, "'image' is frozen"),
        ({"encoder": vit(patch_dropout=0.5)}, {}, "patch_dropout"),
        (
            {"encoder": ConvolutionalEncoder(16, 3, [8, DIM], [1, 1])},
            {},
            "has ConvolutionalEncoder",
        ),
        ({}, {"modalities": ["picture"]}, "no tower 'picture'"),
        ({"encoder": series()}, {"hidden": None}, "no pictures"),
        (
            {"encoder": ConvolutionalEncoder(16, 3, [8, DIM], [1, 1])},
            {"hidden": None, "local": LocalCrops(size=8)},
            "local.size=8",
        ),
    ],
)
def test_a_tower_that_cannot_be_a_student_is_refused(tower, more, message):
    given = {"encoder": vit(), "head": partial(LinearHead, embed_dim=4), **tower}
    with pytest.raises(ValueError, match=message):
        SelfDistiller(settings(**more), {"image": Tower(**given)})


def test_pictures_of_a_tower_of_clips():
    trunk = Transformer(width=DIM, num_layers=1, num_heads=2)
    clips = VideoTransformer(2, 16, 3, partial(PatchStem, patch_size=[2, 4, 4]), trunk)
    made, data = module(clips), batch()
    made.training_step(data, 0)
    crops = data.inputs["image"][:, :, None].expand(-1, -1, 2, -1, -1)
    hidden = torch.zeros(ROWS, 1, dtype=torch.int64)
    token = made.self_distiller.hidden_tokens["image"]
    for found, wanted in (
        (clips.encode_resized(data.inputs["image"]), clips(crops)),
        (clips.encode_hidden(data.inputs["image"], hidden, token),
         clips.encode_hidden(crops, hidden, token)),
    ):  # fmt: skip
        torch.testing.assert_close(found.tokens, wanted.tokens)


def test_clips_are_refused():
    trunk = Transformer(width=DIM, num_layers=1, num_heads=2)
    clips = VideoTransformer(2, 16, 3, partial(PatchStem, patch_size=[1, 4, 4]), trunk)
    made = module(clips, hidden=None)
    data = batch()
    data.inputs["image"] = torch.rand(ROWS, 3, 2, 16, 16, dtype=torch.float64)
    with pytest.raises(InputMismatchError, match=r"self_distillation takes pictures.*image"):
        made.self_distilled(data, SEED)


def test_a_source_without_the_modality_leaves_heads_unused():
    made = module()
    assert not made.may_leave_unused({"one": ["image", "text"]})
    assert made.may_leave_unused({"one": ["image", "text"], "two": ["text"]})


def equals_one_process(rank: int, sizes: tuple[int, ...], folder: str) -> None:
    made = module(pieces=2)
    together = DistributedDataParallel(_Step(made))
    start = sum(sizes[:rank])
    loss = together(batch(slice(start, start + sizes[rank])))
    loss.backward()
    made.after_step(applied=True)
    mean = all_reduce_sum(loss.detach()) / world_size()
    gradients = {name: p.grad for name, p in made.named_parameters() if p.requires_grad}
    if rank == 0:
        torch.save((mean, gradients, dict(made.named_buffers())), Path(folder) / "found.pt")


class _Step(nn.Module):
    def __init__(self, inner: Any) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, data: Batch) -> Tensor:
        loss: Tensor = self.inner.training_step(data, 0)
        return loss


@pytest.mark.parametrize("sizes", [(4, 2), pytest.param((6, 0), marks=pytest.mark.heavy)])
def test_ranks_give_what_one_process_gives(tmp_path, sizes):
    run_ranks(equals_one_process, 2, tmp_path, sizes, str(tmp_path))
    loss, gradients, buffers = torch.load(tmp_path / "found.pt", weights_only=True)
    alone = module()
    expected = alone.training_step(batch(), 0)
    expected.backward()
    alone.after_step(applied=True)
    torch.testing.assert_close(loss, expected.detach(), **TIGHT)
    wanted = {name: p.grad for name, p in alone.named_parameters() if p.requires_grad}
    torch.testing.assert_close(gradients, wanted, **TIGHT)
    torch.testing.assert_close(buffers, dict(alone.named_buffers()), **TIGHT)
