"""Several modalities of a sample as one embedding, by the towers' outputs and by a backbone."""

from __future__ import annotations

from functools import partial

import pytest
import torch
import vlm_cases
from connected_cases import FEATURES, WIDTH, Letters, connected, head, ids, text_encoder
from torch import Tensor
from torch.nn import functional as F

from multimodal.core.errors import InputMismatchError
from multimodal.models.encoders.features import FeatureEncoder
from multimodal.models.fusion.latent import MergedFusion
from multimodal.models.fusion.pooled import ConcatFusion, GatedFusion
from multimodal.models.heads import IdentityHead, LinearHead
from multimodal.models.joint.base import JointInputs
from multimodal.models.joint.fused import FusedJoint
from multimodal.models.joint.template import TemplateJoint
from multimodal.models.towers import EmbeddingModel, Tower

ROWS, DIM = 5, 4


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


def model(**choices: object) -> EmbeddingModel:
    towers = {
        name: Tower(FeatureEncoder(6, width=width), partial(LinearHead, embed_dim=DIM))
        for name, width in (("image", 8), ("text", 5))
    }
    joint = partial(FusedJoint, **{"modalities": ["text", "image"], **choices})
    return EmbeddingModel(towers, joint={"both": joint}).eval()


def given(**changes: dict[str, Tensor]) -> JointInputs:
    inputs = {"image": torch.randn(ROWS, 6), "text": torch.randn(ROWS, 3, 6)}
    masks = {"text": torch.tensor([[True, True, i % 2 == 0] for i in range(ROWS)])}
    return JointInputs(
        **{"inputs": inputs, "masks": masks, "cached": {}, "presence": {}, **changes}
    )


def together(made: EmbeddingModel, batch: JointInputs, raw: bool = False) -> Tensor:
    return made.joint.embed("image&text", made.towers, batch, raw)


def alone(made: EmbeddingModel, batch: JointInputs) -> dict[str, Tensor]:
    return {
        name: made.embed(name, batch.inputs[name], batch.masks.get(name))
        for name in ("image", "text")
    }


def test_a_weighted_sum_of_what_a_sample_has():
    made, batch = model(), given()
    joint, parts = made.joint.of("image&text"), alone(made, batch)
    joint.weights.data = torch.tensor([0.5, -1.0])
    share = torch.tensor([0.5, -1.0]).softmax(0)
    expected = F.normalize(share[0] * parts["image"] + share[1] * parts["text"], dim=-1)
    torch.testing.assert_close(together(made, batch), expected)
    without = torch.tensor([True, False, True, True, False])
    some = given(inputs=batch.inputs, masks=batch.masks, presence={"image": without})
    kept = torch.where(without[:, None], expected, parts["text"])
    torch.testing.assert_close(together(made, some), kept)


@pytest.mark.parametrize("fusion", [ConcatFusion, GatedFusion])
def test_a_fusion_adds_to_the_sum_and_begins_with_nothing(fusion):
    made, batch = model(fusion=partial(fusion, width=6)), given()
    joint, parts = made.joint.of("image&text"), alone(made, batch)
    mean = (parts["image"] + parts["text"]) / 2
    torch.testing.assert_close(together(made, batch, raw=True), mean)
    torch.nn.init.normal_(joint.project.weight)
    scaled = {n: e * DIM**0.5 for n, e in parts.items()}
    if fusion is ConcatFusion:
        projected = [joint.fusion.inputs[n](scaled[n]) for n in ("image", "text")]
        added = joint.fusion.mlp(torch.cat(projected, dim=1))
    else:
        x = {n: joint.fusion.inputs[n](scaled[n]) for n in ("image", "text")}
        both = torch.cat([x["image"], x["text"]], dim=1)
        added = sum(joint.fusion.gates[n](both).sigmoid() * x[n].tanh() for n in x)
    expected = mean + joint.project(added)
    torch.testing.assert_close(together(made, batch, raw=True), expected)
    torch.testing.assert_close(together(made, batch), F.normalize(expected, dim=-1))


@pytest.mark.parametrize("reads", ["features", "tokens"])
def test_what_is_before_the_embeddings_can_be_read(reads):
    fusion = partial(MergedFusion, width=8, num_heads=2, num_layers=1)
    made, batch = model(fusion=fusion, reads=reads), given()
    joint = made.joint.of("image&text")
    torch.nn.init.normal_(joint.project.weight)
    outputs = {
        n: made.tower(n).encode(batch.inputs[n], batch.masks.get(n)) for n in ("image", "text")
    }
    if reads == "features":
        for each in outputs.values():
            each.tokens, each.mask = each.features[:, None], None
    mean = torch.stack(list(alone(made, batch).values())).mean(0)
    expected = mean + joint.project(joint.fusion(outputs).features)
    torch.testing.assert_close(together(made, batch, raw=True), expected)
    # a masked token is never read, and a modality that is left out neither
    batch.inputs["text"][1, 2] = 100.0
    torch.testing.assert_close(together(made, batch, raw=True), expected)
    presence = {"text": torch.zeros(ROWS, dtype=torch.bool)}
    before = together(made, given(inputs=batch.inputs, presence=presence))
    batch.inputs["text"].normal_()
    after = together(made, given(inputs=batch.inputs, presence=presence))
    torch.testing.assert_close(before, after)


def test_what_a_cache_keeps_gives_the_same_embedding():
    towers = {
        name: Tower(FeatureEncoder(6, width=8), partial(LinearHead, embed_dim=DIM), frozen=frozen)
        for name, frozen in (("image", "encoder"), ("text", True))
    }
    joint = partial(FusedJoint, modalities=["image", "text"], fusion=partial(GatedFusion, width=6))
    made, batch = EmbeddingModel(towers, joint={"both": joint}).eval(), given()
    cached = {n: made.tower(n).frozen_part(batch.inputs[n], batch.masks.get(n)) for n in towers}
    kept = JointInputs({}, {}, cached, {})
    torch.testing.assert_close(together(made, kept), together(made, batch))
    assert not made.joint.need_inputs("text", made.tower("text"))
    tokens = partial(joint, reads="tokens")
    made = EmbeddingModel(towers, joint={"both": tokens})
    assert made.joint.need_inputs("image", made.tower("image"))
    features = partial(joint, reads="features")
    made = EmbeddingModel(towers, joint={"both": features})
    assert not made.joint.need_inputs("image", made.tower("image"))
    assert made.joint.need_inputs("text", made.tower("text"))


def connected_model(template: str = "{image} seen {text}", **choices: object) -> EmbeddingModel:
    towers: dict[str, Tower] = {
        "text": Tower(text_encoder(str(choices.pop("kind", "bert"))), head(), frozen=True),
        "image": Tower(connected(), head()),
    }
    joint = partial(
        TemplateJoint, modalities=["image", "text"], tokenizer=Letters(), template=template,
        head=head(), **choices,
    )  # fmt: skip
    return EmbeddingModel(towers, joint={"both": joint}).eval()


@pytest.mark.parametrize("kind", ["bert", "qwen"])
def test_one_template_holds_the_tokens_of_all(kind):
    made = connected_model(kind=kind)
    texts, mask = ids(7, 4, 5)
    images = torch.randn(3, FEATURES)
    batch = JointInputs({"image": images, "text": texts}, {"text": mask}, {}, {})
    table, letters = made.tower("text").encoder.token_table(), Letters()
    encoder = made.tower("image").encoder
    rows = []
    for image, text, real in zip(images, texts, mask, strict=True):
        tokens = encoder.connect(encoder.encode_input(image[None]))[0][0]
        content = text[real][1:-1]  # without its own start and end
        between = torch.tensor(letters.encode(" seen "))
        sequence = [table(torch.tensor([1])), tokens, table(between), table(content)]
        sequence.append(table(torch.tensor([2])))
        output = made.tower("text").encoder.encode_embedded(torch.cat(sequence)[None])
        rows.append(output.features[0])
    expected = F.normalize(torch.stack(rows), dim=-1)
    torch.testing.assert_close(together(made, batch), expected)
    cached = {"image": encoder.encode_input(images).features}
    if encoder.reads == "features":
        kept = JointInputs({"text": texts}, {"text": mask}, cached, {})
        torch.testing.assert_close(together(made, kept), expected)


def test_a_modality_that_is_left_out_leaves_no_token():
    made = connected_model("{image}{text}")
    texts, mask = ids(7, 4, 5)
    batch = {"image": torch.randn(3, FEATURES), "text": texts}
    presence = {"image": torch.zeros(3, dtype=torch.bool)}
    joint = together(made, JointInputs(batch, {"text": mask}, {}, presence))
    torch.testing.assert_close(joint, made.embed("text", texts, mask))


def test_the_backbone_stays_and_the_connector_gets_its_gradient():
    made = connected_model().train()
    texts, mask = ids(7, 4, 5)
    batch = {"image": torch.randn(3, FEATURES), "text": texts}
    together(made, JointInputs(batch, {"text": mask}, {}, {})).sum().backward()
    assert all(p.grad is None for p in made.tower("text").parameters())
    gradients = [p.grad for p in made.tower("image").encoder.connector.parameters()]
    assert all(g is not None and g.abs().sum() > 0 for g in gradients)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"modalities": ["image"]}, r"joint\.both: modalities=\['image'\]: expected a list of two"),
        ({"modalities": ["image", "sound"]}, "no tower for 'sound': the model has image, text"),
        ({"modality_dropout": 1.0}, r"modality_dropout=1\.0 must be in \[0, 1\)"),
        ({"reads": "pixels"}, "reads='pixels': expected one of embeddings, features, tokens"),
    ],
)
def test_what_makes_no_joint_embedding_is_refused(change, message):
    with pytest.raises(ValueError, match=message):
        model(**{"modalities": ["image", "text"], **change})


def test_a_template_names_each_of_its_modalities_and_needs_the_backbone():
    with pytest.raises(ValueError, match=r"expected the places \{image\} \{text\}, once each"):
        connected_model("{image} alone")
    towers = {
        "text": Tower(text_encoder(), head(), frozen=True),
        "image": Tower(FeatureEncoder(6, width=8), partial(LinearHead, embed_dim=WIDTH)),
    }
    joint = partial(
        TemplateJoint, modalities=["image", "text"], tokenizer=Letters(),
        template="{image} {text}", head=head(),
    )  # fmt: skip
    with pytest.raises(ValueError, match="the tower image is not connected to the backbone text"):
        EmbeddingModel(towers, joint={"both": joint})


def test_names_are_one_for_any_order_and_unknown_ones_are_told():
    made = model()
    assert made.joint.joined(["text", "depth", "image"])[-1] == "image&text"
    assert made.joint.joined(["text", "depth"]) == ["text", "depth"]
    with pytest.raises(
        ValueError, match="no joint embedding 'depth&text': the model has image&text"
    ):
        made.joint.embed("depth&text", made.towers, given())
    joint = partial(FusedJoint, modalities=["image", "text"])
    towers = {n: made.tower(n) for n in ("image", "text")}
    with pytest.raises(ValueError, match="there is one of image&text already"):
        EmbeddingModel(towers, joint={"a": joint, "b": joint})


def vision_language_model(**choices: object) -> EmbeddingModel:
    joint = partial(
        TemplateJoint, modalities=["image", "text"], tokenizer=Letters(),
        template="see {image} and {text}", **choices, head=partial(IdentityHead, embed_dim=16),
    )  # fmt: skip
    tower = Tower(vlm_cases.encoder(), partial(IdentityHead, embed_dim=16))
    return EmbeddingModel({"text": tower, "image": "text"}, joint={"both": joint}).eval()


@torch.no_grad()
def test_a_picture_and_a_text_of_a_sample_are_one_sequence_of_a_vision_language_model():
    made = vision_language_model()
    grids = [(2, 3), (1, 1), (3, 2)]
    images, real = vlm_cases.pictures(*grids)
    texts, mask = ids(7, 4, 5)
    presence = {"image": torch.tensor([True, True, False])}
    batch = JointInputs(
        {"image": images, "text": texts}, {"text": mask, "image": real}, {}, presence
    )
    joint = together(made, batch)
    encoder, letters = made.tower("text").encoder, Letters()
    for row, (rows, columns) in enumerate(grids):
        count = rows * columns if presence["image"][row] else 0
        content = texts[row][mask[row]][1:-1].tolist()  # without its own start and end
        before, between = letters.encode("see "), letters.encode(" and ")
        tokens = [1, *before, *[vlm_cases.IMAGE_TOKEN] * count, *between, *content, 2]
        sequence = torch.tensor([tokens])
        picture = {
            "pixel_values": encoder.patches.of_picture(images[row, :count, 2:]),
            "image_grid_thw": torch.tensor([[1, 2 * rows, 2 * columns]]),
            "mm_token_type_ids": (sequence == vlm_cases.IMAGE_TOKEN).int(),
        }
        hidden = encoder.model(input_ids=sequence, **(picture if count else {})).last_hidden_state
        torch.testing.assert_close(joint[row], F.normalize(hidden[0, -1], dim=0))
    presence["image"][:] = False
    torch.testing.assert_close(together(made, batch)[2], joint[2])


def test_what_a_vision_language_model_cannot_put_in_one_sequence_is_rejected():
    joint = partial(
        TemplateJoint, modalities=["sound", "text"], tokenizer=Letters(),
        template="{sound} {text}", head=partial(IdentityHead, embed_dim=16),
    )  # fmt: skip
    head = partial(IdentityHead, embed_dim=16)
    towers = {"text": Tower(vlm_cases.encoder(), head), "sound": Tower(connected(width=16), head)}
    with pytest.raises(ValueError, match="and sound is connected to it: choose joint=gated"):
        EmbeddingModel(towers, joint={"both": joint})
    made = vision_language_model()
    images, real = vlm_cases.pictures((1, 2))
    both = JointInputs({"image": images[:, :1], "text": images}, {"text": real}, {}, {})
    with pytest.raises(InputMismatchError, match="whole pictures, row by row"):
        together(made, both)
