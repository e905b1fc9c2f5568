"""Chat templates: ids are those of the tokenizer's own template, of texts and of pictures."""

import pytest
import torch
import transformers
from chat_cases import write_tokenizer
from vlm_cases import IMAGE_TOKEN, KINDS, config, pictures

from multimodal.data.tokenizers.huggingface import HuggingFaceTokenizer
from multimodal.data.transforms.text import TextTransform
from multimodal.inference.export.preprocessing import preprocessing_of
from multimodal.models.encoders.libraries.vision_language import VisionLanguageEncoder


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_tokenizer(tmp_path_factory.mktemp("chat"))


def theirs(folder, content):
    """Ids of a message by the library."""
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    told = tokenizer.apply_chat_template(
        [{"role": "user", "content": content}], tokenize=False, add_generation_prompt=True
    )
    return tokenizer.encode(told, add_special_tokens=False)


@pytest.mark.parametrize(
    ("instruction", "said"),
    [
        (None, "a cat"),
        ("find this ", "find this a cat"),
        ("find {} or none", "find a cat or none"),
    ],
)
def test_a_text_stands_in_a_message(folder, instruction, said):
    tokenizer = HuggingFaceTokenizer(folder)
    told = TextTransform(tokenizer, 99, instruction=instruction, chat=True)
    ids = told("a cat", None).tolist()
    assert ids == theirs(folder, said)
    assert ids != TextTransform(tokenizer, 99, instruction=instruction)("a cat", None).tolist()
    exported = preprocessing_of(told).settings
    assert [*exported["before"], *tokenizer.encode("a cat"), *exported["after"]] == ids
    short = TextTransform(tokenizer, len(ids) - 2, instruction=instruction, chat=True)
    cut = [*told.before, *tokenizer.encode("a c"), *told.after]
    assert short("a cat", None).tolist() == cut  # the end of the template stays


def test_the_template_takes_the_place_of_the_tokenizers_own_frame(tmp_path):
    folder = write_tokenizer(tmp_path, framing="<|pad|> $A <|unk|>")
    tokenizer = HuggingFaceTokenizer(folder)
    assert None not in (tokenizer.start, tokenizer.end)
    plain = TextTransform(tokenizer, 99)("a cat", None).tolist()
    assert plain == [tokenizer.start, *tokenizer.encode("a cat"), tokenizer.end]
    told = TextTransform(tokenizer, 99, chat=True)("a cat", None).tolist()
    assert told == theirs(folder, "a cat")
    one = VisionLanguageEncoder(tokenizer, config=config(), template="{}a cat", chat=True)
    content = [{"type": "image"}, {"type": "text", "text": "a cat"}]
    before, after = one.before.tolist(), one.after.tolist()
    assert [*before, IMAGE_TOKEN, *after] == theirs(folder, content)


@pytest.mark.parametrize("kind", KINDS)
@torch.no_grad()
def test_a_picture_stands_in_a_message(folder, kind):
    torch.manual_seed(0)
    tokenizer = HuggingFaceTokenizer(folder)
    one = VisionLanguageEncoder(
        tokenizer, config=config(kind), template="here {}what is it", chat=True
    ).eval()
    (grid, (inputs, mask)) = (2, 3), pictures((2, 3))
    content = [
        {"type": "text", "text": "here "}, {"type": "image"}, {"type": "text", "text": "what is it"}
    ]  # fmt: skip
    ids = theirs(folder, content)
    place = ids.index(IMAGE_TOKEN)
    ids[place : place + 1] = [IMAGE_TOKEN] * (grid[0] * grid[1])
    output = one(inputs, mask)
    assert output.tokens.shape[1] == len(ids)
    told = torch.tensor([ids])
    pixels = one.patches.of_picture(inputs[0, :, 2:])
    expected = one.model(
        input_ids=told, attention_mask=torch.ones_like(told), pixel_values=pixels,
        image_grid_thw=torch.tensor([[1, 2 * grid[0], 2 * grid[1]]]),
        mm_token_type_ids=(told == IMAGE_TOKEN).int(),
    )  # fmt: skip
    torch.testing.assert_close(
        output.features[0], expected.last_hidden_state[0, -1], rtol=1e-5, atol=1e-5
    )


def test_a_picture_is_enclosed_once(folder):
    with pytest.raises(ValueError, match=r"encloses a picture twice \(id 42\).*chat=true"):
        VisionLanguageEncoder(
            HuggingFaceTokenizer(folder), config=config(),
            template="<|vision_start|>{}<|vision_end|>", chat=True,
        )  # fmt: skip


def test_a_tokenizer_without_a_chat_template_is_refused(tmp_path):
    bare = HuggingFaceTokenizer(write_tokenizer(tmp_path / "bare", None))
    with pytest.raises(ValueError, match=r"chat: .*bare has no chat template; name the folder"):
        TextTransform(bare, 9, chat=True)
    with pytest.raises(ValueError, match="chat: BPETokenizer has no chat template"):
        TextTransform("samples://tokenizer.json", 9, chat=True)
    hidden = HuggingFaceTokenizer(write_tokenizer(tmp_path / "hidden", "user says nothing"))
    with pytest.raises(ValueError, match="shows no text once: 'user says nothing'"):
        TextTransform(hidden, 9, chat=True)


def test_a_template_that_leaves_no_room_is_said(folder):
    with pytest.raises(ValueError, match=r"chat: its \d+ tokens leave no room"):
        TextTransform(HuggingFaceTokenizer(folder), 9, chat=True)
