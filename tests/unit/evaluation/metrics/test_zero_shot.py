"""Zero-shot scores against scikit-learn, and ties against their expectation."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from pretrained_helpers import case, clip_inputs, foreign_state
from sklearn.metrics import (
    average_precision_score,
    balanced_accuracy_score,
    confusion_matrix,
    top_k_accuracy_score,
)
from torch.nn.functional import normalize

from multimodal.evaluation.metrics.retrieval import nearest
from multimodal.evaluation.metrics.zero_shot import class_embeddings, zero_shot
from multimodal.inference.importing import import_weights


def test_equals_scikit_learn():
    generator = torch.Generator().manual_seed(0)
    classes = normalize(torch.randn(9, 6, generator=generator), dim=1)
    labels = torch.randint(0, 8, (300,), generator=generator)  # class 8 never occurs
    embeddings = normalize(classes[labels] + torch.randn(300, 6, generator=generator), dim=1)
    scores = zero_shot(embeddings, classes, labels)
    logits = (embeddings.double() @ classes.double().T).numpy()
    predicted = logits.argmax(axis=1)
    truth = labels.numpy()
    every = list(range(9))
    assert scores.top1 == pytest.approx(top_k_accuracy_score(truth, logits, k=1, labels=every))
    assert scores.top5 == pytest.approx(top_k_accuracy_score(truth, logits, k=5, labels=every))
    with pytest.warns(UserWarning, match="not in y_true"):
        expected = balanced_accuracy_score(truth, predicted)
    assert scores.mean_per_class == pytest.approx(expected)
    assert scores.confusion.tolist() == confusion_matrix(truth, predicted, labels=every).tolist()
    assert scores.majority == labels.bincount().max().item() / 300
    assert (scores.chance_top1, scores.chance_top5) == pytest.approx((1 / 9, 5 / 9), abs=1e-12)
    relevant = np.eye(9)[truth][:, :8]
    expected = average_precision_score(relevant, logits[:, :8], average="macro")
    assert scores.mean_average_precision == pytest.approx(expected, abs=1e-9)
    assert (scores.samples, scores.classes) == (300, 9)


def test_a_collapsed_model_scores_chance():
    labels = torch.tensor([0, 1, 1, 3, 6])
    scores = zero_shot(torch.ones(5, 4), torch.ones(7, 4), labels)
    assert scores.top1 == pytest.approx(scores.chance_top1)
    assert scores.top5 == pytest.approx(scores.chance_top5)
    assert scores.mean_per_class == pytest.approx(1 / 7)
    assert scores.confusion.sum(dim=1).tolist() == pytest.approx([1, 2, 0, 1, 0, 0, 1])


def test_top_five_of_fewer_classes_is_certain():
    scores = zero_shot(torch.eye(3), torch.eye(3), torch.tensor([1, 2, 0]))
    assert (scores.top1, scores.top5, scores.chance_top5) == (0.0, 1.0, 1.0)


def test_several_labels_equal_scikit_learn_and_torchmetrics():
    from torchmetrics.functional.classification import multilabel_average_precision

    generator = torch.Generator().manual_seed(1)
    classes = normalize(torch.randn(7, 5, generator=generator), dim=1)
    embeddings = normalize(torch.randn(80, 5, generator=generator), dim=1)
    labels = torch.rand(80, 7, generator=generator) < 0.3
    labels[torch.arange(80), torch.arange(80) % 7] = True
    scores = zero_shot(embeddings, classes, labels)
    logits = embeddings.double() @ classes.double().T
    expected = average_precision_score(labels.numpy(), logits.numpy(), average="macro")
    assert scores.mean_average_precision == pytest.approx(expected, abs=1e-9)
    other = multilabel_average_precision(torch.sigmoid(logits), labels.long(), 7, "macro")
    assert scores.mean_average_precision == pytest.approx(float(other), abs=1e-6)
    best = logits.argmax(dim=1)
    assert scores.top1 == pytest.approx(labels[torch.arange(80), best].double().mean().item())
    assert scores.chance_top1 == pytest.approx(labels.double().mean().item())
    five = logits.topk(5).indices
    assert scores.top5 == pytest.approx(labels.gather(1, five).any(dim=1).double().mean().item())
    assert scores.confusion is None


def test_one_label_is_the_same_as_a_table_of_one():
    generator = torch.Generator().manual_seed(2)
    classes, embeddings = torch.randn(6, 4, generator=generator), torch.randn(40, 4)
    labels = torch.arange(40) % 6
    one = zero_shot(embeddings, classes, labels)
    table = zero_shot(embeddings, classes, torch.nn.functional.one_hot(labels).bool())
    for name in ("top1", "top5", "mean_per_class", "mean_average_precision", "majority"):
        assert getattr(one, name) == getattr(table, name)


def test_class_embeddings_weigh_every_prompt_alike():
    prompts = [torch.tensor([[10.0, 0.0], [0.0, 0.1]]), torch.tensor([[3.0, 4.0]])]
    half = 2**-0.5
    expected = torch.tensor([[half, half], [0.6, 0.8]])
    torch.testing.assert_close(class_embeddings(prompts), expected)


def test_rejects_mismatched_inputs():
    with pytest.raises(ValueError, match=r"labels must lie in \[0, 2\).*got 0 to 2"):
        zero_shot(torch.eye(3), torch.eye(3)[:2], torch.tensor([0, 1, 2]))
    with pytest.raises(ValueError, match="one label for each"):
        zero_shot(torch.eye(3), torch.eye(3), torch.tensor([0, 1]))
    with pytest.raises(ValueError, match="1 samples have no label"):
        zero_shot(torch.eye(2), torch.eye(2), torch.tensor([[True, True], [False, False]]))
    with pytest.raises(ValueError, match="bool table"):
        zero_shot(torch.eye(2), torch.eye(2), torch.ones(2, 2))
    with pytest.raises(ValueError, match="holds NaN"):
        zero_shot(torch.full((1, 2), float("nan")), torch.eye(2), torch.tensor([0]))
    with pytest.raises(ValueError, match=r"\[P, D\] per class; got \[\[0, 2\]\]"):
        class_embeddings([torch.ones(3, 2), torch.ones(0, 2)])
    with pytest.raises(ValueError, match="no class"):
        class_embeddings([])


@pytest.mark.parametrize("name", ["openclip_a", "openai_quickgelu_a", "siglip_a"])
def test_prompts_and_images_of_a_reference_model_rank_as_it_ranks_them(name):
    """Our towers, filled by our importer, as zero-shot classifiers: four prompts are the classes.

    The reference's ranking is by the products of the embeddings that OpenCLIP's code gave.
    """
    described, reference = case(name)
    state = foreign_state(described["shapes"], described["seed"], described["std"])
    model = import_weights(state, described["cfg"]).model.eval()
    inputs = clip_inputs(described, cut="logit_bias" not in described["shapes"])
    with torch.no_grad():
        images = model.embed("image", inputs["image"])
        classes = class_embeddings([model.embed("text", ids[None]) for ids in inputs["text"]])
    products = normalize(reference["image"].double()) @ normalize(reference["text"].double()).T
    expected = products.argsort(dim=1, descending=True)
    torch.testing.assert_close(images.double() @ classes.double().T, products, atol=1e-5, rtol=0)
    # Far enough apart for a rank to mean something.
    gaps = products.sort(dim=1).values.diff(dim=1)
    assert gaps.min() > 3e-5
    assert nearest(images, classes, 4)[1].tolist() == expected.tolist()
    scores = zero_shot(images, classes, torch.arange(4))
    assert scores.confusion is not None
    assert scores.confusion.argmax(dim=1).tolist() == expected[:, 0].tolist()
    assert scores.top1 == (expected[:, 0] == torch.arange(4)).double().mean().item()
