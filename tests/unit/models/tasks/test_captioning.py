"""Captioning: the loss by a loop, no look ahead, greedy and beam search against all texts."""

import pytest
import torch
from task_helpers import WIDTH, fused, parts
from torch import nn

from multimodal.models.encoders.text import TextTransformer
from multimodal.models.layers.transformer import Transformer
from multimodal.models.tasks.base import TaskContext
from multimodal.models.tasks.captioning import Captioning

VOCABULARY, LENGTH = 5, 6
START, END = 3, 4


def text_tower(causal=True):
    trunk = Transformer(8, 1, 2, causal=causal)
    return TextTransformer(VOCABULARY, LENGTH, trunk, pooling="end")


def make(**options):
    torch.manual_seed(0)
    encoder = text_tower().double()
    task = Captioning(
        TaskContext(WIDTH, {"text": encoder}, ["image"]), VOCABULARY, num_heads=2, **options
    ).double()
    with torch.no_grad():  # large weights: what is said depends on the picture and on every word
        for parameter in (*task.parameters(), *encoder.parameters()):
            if parameter.ndim > 1:
                parameter.copy_(0.7 * torch.randn_like(parameter))
    return task.eval(), encoder.eval()


def batch_of(encoder, ids, lengths, presence=None, keys=None):
    mask = torch.arange(ids.shape[1]) < torch.tensor(lengths)[:, None]
    batch = fused({"text": ids}, presence, count=len(ids), keys=keys)
    batch.masks = {"text": mask}
    batch.encoded = {**batch.encoded, "text": encoder(ids, mask)}
    return batch


def log_chances(task, encoder, ids, context, mask=None):
    """``[V]``: of the word after ``ids``."""
    words = torch.tensor([ids])
    tokens = encoder(words, torch.ones_like(words, dtype=torch.bool)).tokens
    return task.decode(tokens, context, mask)[0, -1].log_softmax(0)


def test_the_loss_is_the_likelihood_of_every_real_word():
    task, encoder = make()
    ids = torch.tensor([[3, 1, 2, 4, 0], [3, 2, 4, 0, 0], [3, 0, 1, 2, 4]])
    lengths = [4, 3, 5]
    there = {"text": torch.tensor([True, False, True])}
    batch = batch_of(encoder, ids, lengths, there)
    term = task.loss(batch)["caption"]
    expected = 0.0
    for i in (0, 2):
        text = ids[i, : lengths[i]].tolist()
        for place in range(1, len(text)):
            context = batch.fused.tokens[i : i + 1]
            expected -= log_chances(task, encoder, text[:place], context)[text[place]]
    assert term.total.item() == pytest.approx(float(expected), rel=1e-9)
    assert term.count.item() == 3 + 4


def test_no_word_sees_a_later_one():
    task, encoder = make()
    context = torch.randn(1, 2, WIDTH, dtype=torch.float64)
    one, other = torch.tensor([[3, 1, 2, 2]]), torch.tensor([[3, 1, 0, 1]])
    mask = torch.ones_like(one, dtype=torch.bool)
    said = [task.decode(encoder(ids, mask).tokens, context, None)[0, :2] for ids in (one, other)]
    torch.testing.assert_close(said[0], said[1], rtol=0, atol=0)


def test_a_sample_without_anything_to_tell_from_is_left_out():
    task, encoder = make()
    ids = torch.tensor([[3, 1, 4], [3, 2, 4]])
    batch = batch_of(encoder, ids, [3, 3])
    batch.fused.mask = torch.tensor([[True], [False]])
    assert task.loss(batch)["caption"].count.item() == 2
    batch.fused.mask = torch.zeros(2, 1, dtype=torch.bool)
    assert task.loss(batch) == {}


def test_label_smoothing_counts_in_training_only():
    task, encoder = make(label_smoothing=0.2)
    batch = batch_of(encoder, torch.tensor([[3, 1, 4]]), [3])
    context = batch.fused.tokens
    chances = [log_chances(task, encoder, ids, context) for ids in ([3], [3, 1])]
    right = sum(-each[word] for each, word in zip(chances, (1, 4), strict=True))
    even = sum(-each.mean() for each in chances)
    assert task.loss(batch)["caption"].total.item() == pytest.approx(right.item())
    task.train()
    smooth = 0.8 * right + 0.2 * even
    assert task.loss(batch)["caption"].total.item() == pytest.approx(smooth.item())


def test_captions_are_compared_under_ten_pictures():
    task, encoder = make()
    count = 12
    ids = torch.randint(3, (count, 4), generator=torch.Generator().manual_seed(1))
    ids[:, 0], ids[:, -1] = START, END
    keys = torch.arange(count)
    keys[1] = keys[0]  # these two are not fair competition
    batch = batch_of(encoder, ids, [4] * count, keys=keys)
    found = task.observe(batch)
    fair = [i for i in range(count) if keys[i] not in [keys[(i + s) % count] for s in range(1, 10)]]
    assert len(found["likelihood"]) == len(fair) < count
    for row, i in enumerate(fair):
        for step in range(10):
            context = batch.fused.tokens[(i + step) % count][None]
            text = ids[i].tolist()
            expected = sum(
                log_chances(task, encoder, text[:place], context)[text[place]]
                for place in (1, 2, 3)
            )
            assert found["likelihood"][row, step].item() == pytest.approx(expected.item())
    assert found["words"].tolist() == [3] * len(fair)
    assert task.observe(batch_of(encoder, ids[:9], [4] * 9)) == {}


def test_scores_of_known_likelihoods():
    task, _ = make()
    likelihood = torch.tensor([[-1.0, *[-3.0] * 9], [-4.0, -2.0, *[-6.0] * 8]])
    scores = task.score({"likelihood": likelihood, "words": torch.tensor([2, 4])})
    assert scores.values["first_of_ten"] == 0.5
    assert scores.values["perplexity"] == pytest.approx(torch.tensor(5 / 6).exp().item())
    others = (2 + 48) / 9
    assert scores.values["gain_per_word"] == pytest.approx((-1 + 3 - 4 + others) / 6)
    assert scores.chance["first_of_ten"] == 0.1


def every_text(task, encoder, context, mask, most):
    """All texts that end within ``most`` words, or are cut off there: words -> log likelihood."""
    found = {}

    def go(ids, total):
        chances = log_chances(task, encoder, ids, context, mask)
        for word in range(VOCABULARY):
            words, sum_ = [*ids, word], total + chances[word].item()
            if word == END or len(words) == most + 1:
                found[tuple(words[1:])] = sum_
            else:
                go(words, sum_)

    go([START], 0.0)
    return found


def encode_with(encoder):
    return lambda ids: encoder(ids, torch.ones_like(ids, dtype=torch.bool)).tokens


def trimmed(text):
    return [word for word in text if word != END]


def test_greedy_takes_the_likeliest_word_each_time():
    task, encoder = make()
    context = torch.randn(
        4, 2, WIDTH, dtype=torch.float64, generator=torch.Generator().manual_seed(1)
    )
    mask = torch.tensor([[True, True], [True, False], [True, True], [False, True]])
    found = task.generate(encode_with(encoder), context, mask, START, END, 4)
    for i in range(4):
        ids = [START]
        while len(ids) <= 4 and ids[-1] != END:
            chances = log_chances(task, encoder, ids, context[i : i + 1], mask[i : i + 1])
            ids.append(int(chances.argmax()))
        assert found[i] == trimmed(ids[1:])


@pytest.mark.parametrize("penalty", [0.0, 1.0])
def test_beams_as_wide_as_all_texts_find_the_best_of_all(penalty):
    task, encoder = make()
    context = torch.randn(
        3, 2, WIDTH, dtype=torch.float64, generator=torch.Generator().manual_seed(2)
    )
    wide = task.generate(
        encode_with(encoder), context, None, START, END, 3, beams=80, length_penalty=penalty
    )
    better = 0
    greedy = task.generate(encode_with(encoder), context, None, START, END, 3)
    for i in range(3):
        texts = every_text(task, encoder, context[i : i + 1], None, 3)
        score = {text: total / len(text) ** penalty for text, total in texts.items()}
        best = max(score, key=score.get)
        assert wide[i] == trimmed(best)
        better += wide[i] != greedy[i]
    assert better  # or the search would have had nothing to find


def test_a_narrow_beam_is_the_search_of_the_definition():
    task, encoder = make()
    context = torch.randn(
        3, 2, WIDTH, dtype=torch.float64, generator=torch.Generator().manual_seed(3)
    )
    found = task.generate(encode_with(encoder), context, None, START, END, 4, beams=2)
    for i in range(3):
        beams = [([START], 0.0)]
        for _ in range(4):
            grown = []
            for ids, total in beams:
                if ids[-1] == END:
                    grown.append((ids, total))
                    continue
                chances = log_chances(task, encoder, ids, context[i : i + 1])
                grown += [([*ids, w], total + chances[w].item()) for w in range(VOCABULARY)]
            grown.sort(key=lambda pair: pair[1] / (len(pair[0]) - 1), reverse=True)
            beams = grown[:2]
        assert found[i] == trimmed(beams[0][0][1:])


def test_texts_of_a_batch_do_not_depend_on_each_other():
    task, encoder = make()
    context = torch.randn(
        4, 2, WIDTH, dtype=torch.float64, generator=torch.Generator().manual_seed(4)
    )
    arguments = (None, START, END, 4, 2)
    together = task.generate(encode_with(encoder), context, *arguments)
    alone = [
        task.generate(encode_with(encoder), context[i : i + 1], *arguments)[0] for i in range(4)
    ]
    assert together == alone
    assert len({len(text) for text in together}) > 1


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (lambda: Captioning(parts(), 5, 2), "the fusion reads 'text'"),
        (lambda: Captioning(TaskContext(6, {"text": text_tower(False)}, []), 5, 2), "causal=true"),
        (lambda: Captioning(TaskContext(6, {"text": nn.Linear(2, 2)}, []), 5, 2), "causal=true"),
        (lambda: Captioning(TaskContext(6, {"text": text_tower()}, []), 4, 2), "reads 5 ids"),
        (
            lambda: make()[0].generate(encode_with(None), torch.zeros(1, 1, 6), None, 3, 4, 3, 0),
            "must be at least 1",
        ),
    ],
)
def test_invalid_arguments_are_rejected(given, message):
    with pytest.raises(ValueError, match=message):
        given()
