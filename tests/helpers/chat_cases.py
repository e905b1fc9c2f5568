"""A tokenizer with a chat template, as those of vision-language models have."""

from __future__ import annotations

import string
from pathlib import Path

import transformers
from tokenizers import Regex, Tokenizer, models, pre_tokenizers
from tokenizers.processors import TemplateProcessing

TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message.role }}\n"
    "{% if message.content is string %}{{ message.content }}{% else %}"
    "{% for part in message.content %}{% if part.type == 'image' %}"
    "<|vision_start|><|image_pad|><|vision_end|>{% else %}{{ part.text }}{% endif %}{% endfor %}"
    "{% endif %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
SIGNS = [*string.ascii_lowercase, " ", "\n", *string.digits]
SPECIAL = ["<|im_start|>", "<|im_end|>", "<|image_pad|>", "<|video_pad|>", "<|vision_start|>",
           "<|vision_end|>", "<|unk|>", "<|pad|>"]  # fmt: skip


def write_tokenizer(
    folder: Path, template: str | None = TEMPLATE, framing: str | None = None
) -> str:
    """Of letters; the ids of special tokens are those of `vlm_cases`.

    With ``framing`` ("<|pad|> $A <|unk|>") it puts tokens of its own around a text.
    """
    vocabulary = {token: number for number, token in enumerate([*SIGNS, *SPECIAL])}
    file = Tokenizer(models.WordLevel(vocabulary, unk_token="<|unk|>"))
    file.pre_tokenizer = pre_tokenizers.Split(Regex("."), "isolated")
    if framing is not None:
        special = [(token, vocabulary[token]) for token in SPECIAL]
        file.post_processor = TemplateProcessing(single=framing, special_tokens=special)
    made = transformers.PreTrainedTokenizerFast(
        tokenizer_object=file, unk_token="<|unk|>", pad_token="<|pad|>",
        additional_special_tokens=SPECIAL[:6],
    )  # fmt: skip
    made.chat_template = template
    made.save_pretrained(folder)
    return str(folder)
