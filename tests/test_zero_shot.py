"""Zero-shot scores against scikit-learn, and ties against their expectation."""

from __future__ import annotations

import pytest
import torch
from sklearn.metrics import balanced_accuracy_score, confusion_matrix, top_k_accuracy_score
from torch.nn.functional import normalize

from multimodal.evaluation.zero_shot import class_embeddings, zero_shot


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
    assert (scores.chance_top1, scores.chance_top5) == (1 / 9, 5 / 9)
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


def test_class_embeddings_weigh_every_prompt_alike():
    prompts = [torch.tensor([[10.0, 0.0], [0.0, 0.1]]), torch.tensor([[3.0, 4.0]])]
    half = 2**-0.5
    expected = torch.tensor([[half, half], [0.6, 0.8]])
    torch.testing.assert_close(class_embeddings(prompts), expected)


def test_refuses_what_does_not_fit():
    with pytest.raises(ValueError, match=r"labels must lie in \[0, 2\).*got 0 to 2"):
        zero_shot(torch.eye(3), torch.eye(3)[:2], torch.tensor([0, 1, 2]))
    with pytest.raises(ValueError, match="one label for each"):
        zero_shot(torch.eye(3), torch.eye(3), torch.tensor([0, 1]))
    with pytest.raises(ValueError, match="holds NaN"):
        zero_shot(torch.full((1, 2), float("nan")), torch.eye(2), torch.tensor([0]))
    with pytest.raises(ValueError, match=r"\[P, D\] per class; got \[\[0, 2\]\]"):
        class_embeddings([torch.ones(3, 2), torch.ones(0, 2)])
    with pytest.raises(ValueError, match="no class"):
        class_embeddings([])
