import copy
from collections.abc import Sequence
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torchvision.models.resnet import Bottleneck, ResNet

from sharpreid.attention.context import ContextUnit
from sharpreid.attention.mask import MaskSampler
from sharpreid.attention.soft import SigmoidConvGate, SigmoidGate
from sharpreid.losses.objective import Objective
from sharpreid.models.network import EmbeddingHead, SharpAttentionNetwork
from sharpreid.models.trunk import ResNetTrunk

TINY = [1, 1, 1, 1]
SHARP = partial(MaskSampler, eps=1e-6)


@pytest.fixture(scope="module")
def trunk() -> ResNetTrunk:
    """Shared: tests that train copy it."""
    torch.manual_seed(0)
    return ResNetTrunk(depths=TINY, strides="v1.5", weights="none").eval()


class SmallTrunk(nn.Module):
    """A thirty-second of a ResNet's channels at its resolutions."""

    channels = (8, 16, 32, 64)

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.stem = nn.Sequential(
            nn.Conv2d(3, 8, 7, stride=2, padding=3), nn.BatchNorm2d(8), nn.ReLU(), nn.MaxPool2d(3, 2, 1)
        )
        stages = [nn.Sequential(Bottleneck(8, 2))]
        for width in (8, 16, 32):
            shortcut = nn.Sequential(nn.Conv2d(width, 2 * width, 1, stride=2), nn.BatchNorm2d(2 * width))
            stages.append(nn.Sequential(Bottleneck(width, width // 2, stride=2, downsample=shortcut)))
        self.stages = nn.ModuleList(stages)


@pytest.fixture(scope="module")
def head() -> EmbeddingHead:
    torch.manual_seed(0)
    made = EmbeddingHead(in_features=2048, hidden_features=1024, embedding_dim=128, init_std=0.001)
    return made.eval()


def network(
    trunk: Any,
    blocks: Sequence[int] = (),
    context_blocks: Sequence[int] = (),
    *,
    head: nn.Module | None = None,
    sampler: Any = SHARP,
    upsample: Any = "deconv",
    combine: Any = "add",
    **unit: Any,
) -> SharpAttentionNetwork:
    torch.manual_seed(1)
    return SharpAttentionNetwork(
        trunk=trunk,
        head=nn.Identity() if head is None else head,
        blocks=blocks,
        context_blocks=context_blocks,
        sampler=sampler,
        context_unit=partial(ContextUnit, strides="v1.5", upsample=upsample, **unit),
        combine=combine,
    ).eval()


def network_on_meta(
    blocks: Sequence[int], context_blocks: Sequence[int], combine: Any = "add"
) -> SharpAttentionNetwork:
    with torch.device("meta"):
        made = ResNetTrunk(depths=TINY, strides="v1.5", weights="none")
        return network(made, blocks, context_blocks, combine=combine)


def torchvision_twin(trunk: ResNetTrunk) -> ResNet:
    """Torchvision's own network with the trunk's weights; its output is the pooled features."""
    with torch.device("meta"):
        twin = ResNet(Bottleneck, TINY)
    twin.fc = nn.Identity()
    twin.load_state_dict(trunk.state_dict(), assign=True)
    return twin.eval()


def images(height: int = 64, width: int = 32, count: int = 2) -> Tensor:
    return torch.randn(count, 3, height, width, generator=torch.Generator().manual_seed(2))


@torch.no_grad()
@pytest.mark.parametrize("size", [(64, 32), (70, 35)])
def test_without_blocks_it_is_the_plain_resnet(trunk: ResNetTrunk, size: tuple[int, int]) -> None:
    embedding, attended = network(trunk)(images(*size))
    assert attended == ()
    torch.testing.assert_close(embedding, torchvision_twin(trunk)(images(*size)))


@torch.no_grad()
def test_strides_of_v1_give_other_features_of_the_same_shape(trunk: ResNetTrunk) -> None:
    with torch.device("meta"):
        v1 = ResNetTrunk(depths=TINY, strides="v1", weights="none")
    v1.load_state_dict(trunk.state_dict(), assign=True)
    one, other = network(v1)(images()).embedding, network(trunk)(images()).embedding
    assert one.shape == other.shape
    assert not torch.allclose(one, other, rtol=0.01)


@torch.no_grad()
def test_block_4_adds_its_attended_features_before_the_pooling(trunk: ResNetTrunk) -> None:
    twin, seen = torchvision_twin(trunk), []
    twin.layer4.register_forward_hook(lambda module, args, output: seen.append(output))
    twin(images())
    attended = torch.sigmoid(seen[0]) * seen[0]
    out = network(trunk, [4], sampler=SigmoidGate)(images())
    torch.testing.assert_close(out.attended[0], attended)
    torch.testing.assert_close(out.embedding, (seen[0] + attended).mean((2, 3)))


@torch.no_grad()
def test_block_1_is_read_by_the_next_stage(trunk: ResNetTrunk) -> None:
    twin = torchvision_twin(trunk)
    twin.layer1.register_forward_hook(lambda module, args, output: output * (1 + torch.sigmoid(output)))
    out = network(trunk, [1], sampler=SigmoidGate)(images())
    torch.testing.assert_close(out.embedding, twin(images()))


@pytest.mark.parametrize("combine", ["add", "concat"])
def test_a_context_unit_may_start_as_the_next_stage(trunk: ResNetTrunk, combine: Any) -> None:
    def units(init: str) -> SharpAttentionNetwork:
        return network(copy.deepcopy(trunk), [1, 2, 3], [1, 3], init=init, combine=combine)

    copied, drawn = units("next_stage"), units("random")
    for stage, down, random in (
        (number, copied.attention[number].context.down, drawn.attention[number].context.down)
        for number in ("1", "3")
    ):
        wanted = trunk.stages[int(stage)][0].state_dict()
        found = down.state_dict()
        assert all(torch.equal(found[key], value) for key, value in wanted.items())
        assert not torch.equal(random.conv2.weight, down.conv2.weight)
        assert down.conv2.weight.data_ptr() != copied.trunk.stages[int(stage)][0].conv2.weight.data_ptr()
    assert torch.equal(copied.attention["1"].context.up.weight, drawn.attention["1"].context.up.weight)


def test_two_levels_of_a_context_unit_start_as_the_next_two_stages(trunk: ResNetTrunk) -> None:
    made = network(trunk, [1, 2], [2], init="next_stage", p=2, q=2)
    for level, bottleneck in enumerate(made.attention["2"].context.bottlenecks):
        assert torch.equal(bottleneck.conv3.weight, trunk.stages[2 + level][0].conv3.weight)
    with pytest.raises(ValueError, match="copies from p = 2 stages, but only 1 come after this block"):
        network(trunk, [3], [3], init="next_stage", p=2, q=2)


def test_a_sampler_that_learns_gets_its_block_s_channels() -> None:
    made = network(SmallTrunk(), [1, 3], sampler=SigmoidConvGate)
    assert [made.attention[key].sampler.convolution.in_channels for key in ("1", "3")] == [8, 32]
    assert not list(network(SmallTrunk(), [1, 3], sampler=SigmoidGate).attention.parameters())


def small_head() -> EmbeddingHead:
    torch.manual_seed(3)
    return EmbeddingHead(in_features=64, hidden_features=32, embedding_dim=16, init_std=0.1)


@torch.no_grad()
@pytest.mark.parametrize("blocks", [[1], [4], [2, 3], [1, 2, 3, 4]])
def test_concatenating_starts_as_adding(blocks: list[int]) -> None:
    """With the weights that there were, for the trunk's half and for the attended half."""
    add, concat, attended_only = (
        network(SmallTrunk(), blocks, head=small_head(), sampler=SigmoidGate, combine=combine)
        for combine in ("add", "concat", "attended_only")
    )
    wanted = add(images()).embedding
    torch.testing.assert_close(concat(images()).embedding, wanted, rtol=1e-4, atol=1e-6)
    assert not torch.allclose(attended_only(images()).embedding, wanted, rtol=1e-2)


@pytest.mark.parametrize("implementation", ["eager", "recompute"])
def test_concatenation_trains_both_halves_apart(implementation: Any) -> None:
    sampler = partial(MaskSampler, eps=1e-6, implementation=implementation)
    made = network(SmallTrunk(), [1, 4], head=small_head(), sampler=sampler, combine="concat").train()
    out = made.training_forward(images(count=4), total_variation=False)
    out.embedding.square().sum().backward()
    for weight, channels in ((made.trunk.stages[1][0].conv1.weight, 8), (made.head[0].weight, 64)):
        assert weight.shape[1] == 2 * channels
        of_trunk, of_attended = weight.grad.split(channels, dim=1)
        assert of_trunk.any()
        assert of_attended.any()
        assert not torch.allclose(of_trunk, of_attended)


def test_concatenation_widens_only_what_reads_an_attention_block() -> None:
    plain, made = (network_on_meta([2], [], combine) for combine in ("add", "concat"))
    wider = {
        key
        for (key, one), other in zip(plain.state_dict().items(), made.state_dict().values(), strict=True)
        if one.shape != other.shape
    }
    assert wider == {"trunk.layer3.0.conv1.weight", "trunk.layer3.0.downsample.0.weight"}


@torch.no_grad()
@pytest.mark.parametrize("blocks", [[1], [4], [3, 1], [2, 3, 4], [4, 3, 2, 1]])
def test_any_subset_of_blocks_attends_its_stages_in_ascending_order(
    trunk: ResNetTrunk, blocks: list[int]
) -> None:
    made = network(trunk, blocks)
    out = made(images())
    assert made.blocks == tuple(sorted(blocks))
    assert [tuple(a.shape) for a in out.attended] == [
        (2, 128 * 2**block, 64 // 2 ** (block + 1), 32 // 2 ** (block + 1)) for block in sorted(blocks)
    ]
    assert out.embedding.shape == (2, 2048)
    assert torch.isfinite(out.embedding).all()


@torch.no_grad()
@pytest.mark.parametrize("size", [(70, 35), (65, 33), (33, 67)])
def test_odd_sizes_give_the_same_shapes_in_every_upsampling(size: tuple[int, int]) -> None:
    trunk = SmallTrunk()
    plain = network(trunk, [1, 2, 3, 4])(images(*size))
    for upsample in ("deconv", "nearest", "bilinear"):
        out = network(trunk, [1, 2, 3, 4], [1, 2, 3], upsample=upsample)(images(*size))
        assert [a.shape for a in out.attended] == [a.shape for a in plain.attended]
        assert out.embedding.shape == plain.embedding.shape
        assert torch.isfinite(out.embedding).all()


def test_context_units_sit_where_they_are_asked_for() -> None:
    made = network_on_meta([1, 2, 4], [2])
    assert {stage: block.context is not None for stage, block in made.attention.items()} == {
        "1": False,
        "2": True,
        "4": False,
    }
    assert made.attention["2"].context.up.weight.shape == (1024, 512, 1, 1)


@pytest.mark.parametrize(
    ("blocks", "context_blocks", "message"),
    [
        ([1, 4], [4], "block 4 cannot have a context-aware unit.*is the last; use a subset of 1-3"),
        ([1, 2], [3], r"context_blocks must be .* among the attention blocks \[1, 2\], got \[3\]"),
        ([], [1], r"among the attention blocks \[\], got \[1\]"),
        ([1, 2], [1, 1], r"context_blocks must be different numbers .* got \[1, 1\]"),
        ([1, 1], [], r"blocks must be different numbers of 1-4, got \[1, 1\]"),
        ([0], [], r"blocks must be different numbers of 1-4, got \[0\]"),
        ([5], [], r"blocks must be different numbers of 1-4, got \[5\]"),
    ],
)
def test_refuses_blocks_that_do_not_exist_or_agree(
    blocks: list[int], context_blocks: list[int], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        network_on_meta(blocks, context_blocks)


def test_temperature_reaches_every_block_and_the_state_dict(trunk: ResNetTrunk) -> None:
    made = network(trunk, [1, 3])
    made.set_temperature(0.75)
    taus = {key: value.item() for key, value in made.state_dict().items() if key.endswith("tau")}
    assert taus == {"attention.1.sampler.tau": 0.75, "attention.3.sampler.tau": 0.75}


def test_a_factor_on_the_noise_reaches_every_block_and_0_is_no_noise(trunk: ResNetTrunk) -> None:
    made = network(trunk, [1, 3]).train()
    made.set_noise_scale(0.25)
    assert [block.sampler.noise_scale for block in made.attention.values()] == [0.25, 0.25]
    made.set_noise_scale(0.0)
    sampler = made.attention["1"].sampler
    x = torch.rand(2, 3, 4, 4)
    assert sampler.mask_params().seed is None
    assert torch.equal(sampler(x), MaskSampler(eps=sampler.eps, train_mask="noise_free")(x))
    with pytest.raises(ValueError, match="factor on the noise must be >= 0, got -1"):
        made.set_noise_scale(-1)


def test_temperature_of_soft_attention_has_no_effect(trunk: ResNetTrunk) -> None:
    made = network(trunk, [1], sampler=SigmoidGate)
    made.set_temperature(0.5)
    assert not any(key.endswith("tau") for key in made.state_dict())


@torch.no_grad()
def test_at_test_an_image_is_embedded_alike_in_any_batch() -> None:
    made = network(SmallTrunk(), [1, 2, 3, 4], sampler=partial(MaskSampler, eps=1e-6, test_mask="sample"))
    together = made(images(count=3)).embedding
    torch.testing.assert_close(made(images(count=3)[1:2]).embedding[0], together[1], atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("implementation", ["eager", "recompute"])
@pytest.mark.parametrize("upsample", ["deconv", "nearest", "bilinear"])
def test_under_autocast_features_are_float32_and_no_gradient_is_nan(
    upsample: Any, implementation: Any
) -> None:
    head = EmbeddingHead(in_features=64, hidden_features=32, embedding_dim=16, init_std=0.001)
    sampler = partial(MaskSampler, eps=1e-6, implementation=implementation)
    made = network(SmallTrunk(), [1, 2, 3, 4], [1, 2, 3], head=head, upsample=upsample, sampler=sampler)
    made.train()
    objective = Objective(margin=0.5, mu=0.01, reduction="relative")
    with torch.autocast("cpu", dtype=torch.bfloat16):
        out = made.training_forward(images(64, 32, count=4), total_variation=True)
        value = objective(out.embedding, torch.tensor([0, 0, 1, 1]), out.total_variation)
    value.total.backward()
    assert {one.total.dtype for one in out.total_variation} == {torch.float32}
    assert all(torch.isfinite(one.total).all() for one in out.total_variation)
    assert torch.isfinite(value.total)
    assert all(torch.isfinite(p.grad).all() for p in made.parameters())


class TestEmbeddingHead:
    def test_has_the_papers_sizes(self, head: EmbeddingHead) -> None:
        assert [tuple(p.shape) for p in head.parameters()] == [
            (1024, 2048),
            (1024,),
            (1024,),
            (1024,),
            (128, 1024),
            (128,),
        ]
        assert head(torch.randn(3, 2048)).shape == (3, 128)

    def test_last_layer_starts_normal_with_the_given_deviation(self, head: EmbeddingHead) -> None:
        weights = head[-1].weight.detach()
        assert weights.std().item() == pytest.approx(0.001, rel=0.02)
        assert abs(weights.mean().item()) < 1e-5
        fourth_moment = ((weights / weights.std()) ** 4).mean().item()
        assert fourth_moment == pytest.approx(3, abs=0.1)

    def test_biases_start_at_zero(self, head: EmbeddingHead) -> None:
        assert not head[0].bias.any()
        assert not head[-1].bias.any()

    def test_has_no_activation_before_its_first_layer_and_does_not_normalise(
        self, head: EmbeddingHead
    ) -> None:
        made, x = copy.deepcopy(head).eval(), torch.randn(3, 2048)
        first, norm, _, last = made
        normed = (x @ first.weight.T) / (1 + norm.eps) ** 0.5
        torch.testing.assert_close(made(x), normed.clamp_min(0) @ last.weight.T, atol=1e-6, rtol=1e-4)
