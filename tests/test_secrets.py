"""What looks like a key is written down nowhere: folder, logs, checkpoints, sweep, wandb."""

from __future__ import annotations

from multimodal.runs.secrets import REDACTED, redacted, secrets_in

TYPED = "correct-horse-battery-42"  # secret by the name of its key
TOKEN = "hf_" + "aB3" * 10  # secret by its form, from the environment


def test_keys_are_known_by_their_form_or_their_name():
    tree = {
        "a": {
            "api_key": TYPED,
            "layer_key": "short1",
            "token": "${oc.env:X}",
            "key": "no-digit-here",
        },
        "url": "s3://user:pass123@host/x",
        "list": [f"Bearer {TOKEN}"],
        "words": [f"+a.b.api_key={TYPED}", f"+c={{_target_: x.Y, password: {TYPED}2, key: 3}}"],
        "keys": "monkey=banana-banana-1 lr=0.123456789012 key=${oc.env:SOME_NAME_1}",
        "mean": [0.5],
    }
    assert dict(secrets_in(tree)) == {
        "a.api_key": TYPED, "url": "user:pass123", "list[0]": TOKEN,
        "words[0]": TYPED, "words[1]": f"{TYPED}2",
    }  # fmt: skip
    assert redacted(f"x {TOKEN} y {TYPED}", [TYPED, TOKEN]) == f"x {REDACTED} y {REDACTED}"
