"""DDP looks for unused parameters only where a step may leave some; gradients fit its buckets."""

import pytest
import torch
from experiment_helpers import composed
from gloo import run_ranks
from torch import nn

from multimodal.config import check
from multimodal.inference.checkpoint.load import build_model
from multimodal.models.towers import Tower
from multimodal.training.build import build_module
from multimodal.training.strategies.ddp import ReplicatedStrategy, _laid_out_as, _Replica

EMOJI = {"emoji": ("image", "text")}
TEXT = "model.towers.text.encoder"


def module(*words):
    with composed(*words, "trainer=cpu") as cfg:
        check(cfg)
        return build_module(cfg)


def test_a_step_uses_all_of_clip_and_one_tower_of_imagebind():
    clip = module("+experiment=clip_scratch")
    assert not clip.may_leave_unused(EMOJI)
    assert clip.may_leave_unused({})
    assert clip.may_leave_unused({**EMOJI, "other": ("image",)})
    bind = module("+experiment=imagebind_scratch")
    assert bind.may_leave_unused({"speech": ("image", "audio"), "motion": ("image", "imu")})


def test_a_tower_that_a_pair_only_aims_at_is_left_unused():
    locked = module("+experiment=clip_scratch", "++pairs.image_text.stop_gradient=image")
    assert locked.may_leave_unused(EMOJI)


def test_a_frozen_tower_may_be_left_out():
    lit = module("+experiment=clip_scratch", "model.towers.image.frozen=true")
    assert not lit.may_leave_unused(EMOJI)


def test_of_other_libraries_models_it_is_not_known():
    pytest.importorskip("transformers")
    sizes = {"model_type": "bert", "hidden_size": 16, "num_hidden_layers": 1, "vocab_size": 4096,
             "num_attention_heads": 2, "intermediate_size": 16}  # fmt: skip
    words = [f"++{TEXT}.config.{key}={value}" for key, value in sizes.items()]
    bert = module("+experiment=clip_scratch", f"encoder@{TEXT}=huggingface", *words)
    assert bert.may_leave_unused(EMOJI)


SMALL = {
    "image_small": (3, 64, 64), "image_resnet_small": (3, 64, 64), "depth_small": (1, 64, 64),
    "thermal_imagebind": (1, 224, 224), "audio_small": (1, 64, 144), "imu_small": (6, 200),
    "text_small": None, "text_bag_small": None, "features": (512,),
}  # fmt: skip


@pytest.mark.parametrize("encoder", SMALL)
def test_every_parameter_of_our_encoders_takes_part(encoder):
    """What `may_leave_unused` counts on; with the strides that DDP asks for."""
    modality = "text" if SMALL[encoder] is None else "image"
    more = {"thermal_imagebind": "trunk.num_layers=1", "features": "in_features=512"}
    reduce = [f"++model.towers.image.encoder.{more[encoder]}"] if encoder in more else []
    chosen = f"encoder@model.towers.{modality}.encoder={encoder}"
    with composed("+experiment=clip_scratch", chosen, *reduce) as cfg:
        tower = build_model(cfg).tower(modality)
    assert isinstance(tower, Tower)
    for parameter in tower.parameters():
        parameter.register_hook(_laid_out_as(parameter))
    shape = SMALL[encoder]
    inputs = torch.randint(1, 99, (2, 8)) if shape is None else torch.randn(2, *shape)
    mask = torch.ones(2, 8, dtype=torch.bool) if shape is None else None
    tower(inputs, mask).sum().backward()
    for name, parameter in tower.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.stride() == parameter.stride(), name


def test_a_gradient_of_another_layout_keeps_its_values():
    """As those of 1x1 convolutions on channels-last pictures, of which DDP warns."""
    weight = nn.Conv2d(8, 4, 1).weight
    gradient = torch.randn(4, 8, 1, 1).as_strided((4, 8, 1, 1), (8, 1, 8, 8))
    assert gradient.stride() != weight.stride()
    fitted = _laid_out_as(weight)(gradient)
    assert fitted.stride() == weight.stride()
    assert torch.equal(fitted, gradient)
    large = torch.randn(4, 8, 3, 3).contiguous(memory_format=torch.channels_last)
    assert _laid_out_as(nn.Conv2d(8, 4, 3).weight)(large) is large


def test_a_limit_of_nothing_is_rejected():
    with pytest.raises(ValueError, match="timeout_s=0 must be above 0"):
        ReplicatedStrategy(timeout_s=0)


@pytest.mark.slow
def test_the_first_step_adds_up_gradients_as_every_other(tmp_path):
    """Of three ranks and more; or a resumed run would differ in the last digits."""
    run_ranks(_same_bits_in_every_step, 4, tmp_path)


class _Permuted(nn.Module):
    """Its gradients arrive in another order than that of its parameters."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(13, 13) for _ in range(4))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for number in (2, 0, 3, 1):
            x = self.layers[number](x)
        return x.square().sum()


def _same_bits_in_every_step(rank_: int) -> None:
    torch.manual_seed(0)
    model = _Permuted()
    inputs = torch.randn(5, 13, generator=torch.Generator().manual_seed(rank_))

    def gradients(steps: int, views: bool) -> list[torch.Tensor]:
        replica = _Replica(model, None, gradient_as_bucket_view=views)
        replica.keep_buckets()
        for _ in range(steps):
            replica.zero_grad()
            replica(inputs).backward()
        storages = {p.grad.untyped_storage().data_ptr() for p in replica.parameters()}
        assert len(storages) == (1 if views else len(list(replica.parameters())))
        return [p.grad.clone() for p in replica.parameters()]

    expected = gradients(1, views=False)
    for found in (gradients(3, views=False), gradients(1, views=True), gradients(3, views=True)):
        assert all(torch.equal(a, b) for a, b in zip(expected, found, strict=True))
