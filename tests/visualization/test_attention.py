import pytest
import torch
from PIL import Image

from sharpreid.attention.block import SharpAttentionBlock
from sharpreid.attention.mask import MaskSampler
from sharpreid.models.network import EmbeddingHead, SharpAttentionNetwork
from sharpreid.models.trunk import ResNetTrunk
from sharpreid.visualization.attention import (
    BlockAttention,
    RankedImage,
    denormalise,
    draw_before_and_after,
    draw_mask_comparison,
    draw_masks,
    draw_ranked_lists,
    mask_sharpness,
    overlay_mask,
    record_attention,
)


@pytest.fixture
def network() -> SharpAttentionNetwork:
    torch.manual_seed(0)
    trunk = ResNetTrunk(depths=[1, 1, 1, 1], strides="v1", weights="none")
    head = EmbeddingHead(in_features=2048, hidden_features=8, embedding_dim=4, init_std=0.1)
    return SharpAttentionNetwork(
        trunk=trunk,
        head=head,
        blocks=[1, 3],
        context_blocks=[],
        sampler=lambda: MaskSampler(eps=1e-6),
        context_unit=lambda channels: None,  # type: ignore[arg-type, return-value]
    )


def test_recorded_attention_satisfies_eq_1_and_the_network_is_unchanged(
    network: SharpAttentionNetwork,
) -> None:
    network.train()
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    images = torch.randn(2, 3, 64, 32)
    found = record_attention(network, images)
    assert [one.block for one in found] == [1, 3]
    for one in found:
        assert torch.equal(one.attended, one.mask * one.trunk)  # Eq. 1
        assert one.mask.min() >= 0
        assert one.mask.max() <= 1
        assert len(one.mask) == 2
    assert network.training
    assert all(torch.equal(before[name], tensor) for name, tensor in network.state_dict().items())
    blocks = [m for m in network.modules() if isinstance(m, SharpAttentionBlock)]
    assert not any(block._forward_hooks for block in blocks)


def test_hooks_are_removed_after_an_error(network: SharpAttentionNetwork) -> None:
    with pytest.raises(RuntimeError):
        record_attention(network, torch.randn(1, 4, 64, 32))
    assert not any(m._forward_hooks for m in network.modules())


def test_denormalise_restores_the_photo() -> None:
    from sharpreid.data.transforms import to_tensor

    picture = Image.new("RGB", (4, 6), (10, 200, 77))
    assert denormalise(to_tensor(picture)).tobytes() == picture.tobytes()


def test_an_attended_place_is_brighter_on_the_photo() -> None:
    mask = torch.zeros(8, 4)
    mask[:4] = 1.0
    shown = overlay_mask(Image.new("RGB", (32, 64), (0, 0, 0)), mask)
    assert min(shown.getpixel((16, 8))) > 100  # type: ignore[arg-type, type-var]
    assert shown.getpixel((16, 60)) == (0, 0, 0)


def attention(block: int) -> BlockAttention:
    trunk = torch.rand(2, 3, 4, 2)
    mask = (trunk > 0.5).float()
    return BlockAttention(block, trunk, mask, mask * trunk)


def test_a_sheet_has_a_row_for_each_image_and_a_column_for_each_block() -> None:
    one_person, two = torch.zeros(1, 3, 32, 16), torch.zeros(2, 3, 32, 16)
    short = [one._replace(**{key: getattr(one, key)[:1] for key in ("trunk", "mask", "attended")})
             for one in (attention(1), attention(2))]  # fmt: skip
    low = draw_masks(one_person, short, channels=0)
    both = draw_masks(two, [attention(1), attention(2)], channels=0)
    assert both.height - 4 == 2 * (low.height - 4)
    assert both.width == low.width
    alone = draw_masks(two, [attention(1)], channels=0)
    assert alone.width < both.width
    assert alone.height == both.height
    assert draw_masks(two, [attention(1)], channels=2).height > 2 * alone.height
    with pytest.raises(ValueError, match="no attention blocks"):
        draw_masks(two, [], channels=1)


def test_a_sheet_has_a_colour_bar_from_black_to_white() -> None:
    sheet = draw_masks(torch.zeros(2, 3, 32, 16), [attention(1)], channels=0)
    column = sheet.width - 4 - 48 + 2 + 6
    assert sheet.getpixel((column, 4 + 2)) == pytest.approx((255, 255, 255), abs=12)
    assert sheet.getpixel((column, 4 + 176 - 3)) == pytest.approx((0, 0, 0), abs=12)


def test_before_and_after_needs_the_block_in_every_network() -> None:
    images = torch.zeros(2, 3, 32, 16)
    alone = draw_before_and_after(images, {"sharp": [attention(1)]}, block=1)
    two = draw_before_and_after(images, {"soft": [attention(1)], "sharp": [attention(1)]}, block=1)
    assert two.height == alone.height
    assert two.width > alone.width
    with pytest.raises(ValueError, match="soft: no attention block 2"):
        draw_before_and_after(images, {"soft": [attention(1)]}, block=2)


def test_matches_are_green_others_red_and_junk_grey_without_a_rank() -> None:
    red, blue = Image.new("RGB", (80, 160), (255, 0, 0)), Image.new("RGB", (80, 160), (0, 0, 255))
    found = [RankedImage(red, "match", 0.1), RankedImage(red, "junk", 0.2), RankedImage(blue, "other", 0.3)]
    sheet = draw_ranked_lists([(blue, found)])
    frames = [sheet.getpixel((4 + 92 * place + 1, 5)) for place in range(4)]
    assert frames == [(0, 114, 178), (0, 146, 71), (150, 150, 150), (213, 45, 30)]
    middle = sheet.getpixel((4 + 92 * 2 + 40, 80))
    assert isinstance(middle, tuple)
    assert len(set(middle)) == 1  # the junk image was red


def test_sharpness_of_a_decided_mask() -> None:
    assert mask_sharpness([attention(4)]) == {4: (1.0, 0.0)}


def test_masks_of_two_networks_are_drawn_side_by_side(network: SharpAttentionNetwork) -> None:
    images = torch.randn(2, 3, 64, 32)
    sharp = record_attention(network, images)
    soft = [one._replace(mask=torch.ones_like(one.mask)) for one in sharp]
    sheet = draw_mask_comparison(images, ["a", "b"], {"soft": soft, "sharp": sharp})
    alone = draw_mask_comparison(images, ["a", "b"], {"sharp": sharp})
    assert sheet.width > alone.width
    assert sheet.height == alone.height
    with pytest.raises(ValueError, match="must have the same attention blocks"):
        draw_mask_comparison(images, ["a", "b"], {"soft": soft[:1], "sharp": sharp})
