"""The built-in networks: their sizes against the published ones, shapes, and the block by hand."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from aalp.errors import ModelError
from aalp.models.preact_resnet import PreActBlock, PreActResNet, averaged, preact_resnet18, thin_resnet, wide_resnet
from aalp.models.small_cnn import SmallCNN


def parameters_of(make):
    """How many parameters a network has, without memory for them."""
    with torch.device("meta"):
        return sum(parameter.numel() for parameter in make().parameters())


def block(inputs, outputs):
    """Parameters of a block: two BatchNorms (2 a channel), two 3x3 convolutions, the shortcut if it widens."""
    shortcut = inputs * outputs if inputs != outputs else 0
    return 2 * inputs + 9 * inputs * outputs + 2 * outputs + 9 * outputs * outputs + shortcut


def resnet(stem, widths, blocks, classes, channels):
    """Stem, stages, the last BatchNorm and the head."""
    total, previous = 9 * channels * stem, stem
    for width in widths:
        total += block(previous, width) + (blocks - 1) * block(width, width)
        previous = width
    return total + 2 * previous + previous * classes + classes


@pytest.mark.parametrize(
    ("make", "published", "by_hand"),
    [
        # Known as 11,171,146 without the last BatchNorm and 11,172,170 with it, as in the robust overfitting code:
        # 1,728 + 147,968 + 525,184 + 2,098,944 + 8,392,192 + 2 * 512 + 5,130.
        (lambda: preact_resnet18(10, 3), 11_171_146 + 2 * 512, resnet(64, (64, 128, 256, 512), 2, 10, 3)),
        # "36.5M" in the paper.
        (lambda: wide_resnet(10, 3, 28, 10), 36_479_194, resnet(16, (160, 320, 640), 4, 10, 3)),
        # "46.2M" in the paper.
        (lambda: wide_resnet(10, 3, 34, 10), 46_160_474, resnet(16, (160, 320, 640), 5, 10, 3)),
        # "0.6M" in the paper.
        (lambda: wide_resnet(10, 3, 40, 1), 563_930, resnet(16, (16, 32, 64), 6, 10, 3)),
        # 432 + 4,672 + 14,432 + 57,536 + 229,760 + 2 * 128 + 1,290.
        (lambda: thin_resnet(10, 3), 308_378, resnet(16, (16, 32, 64, 128), 1, 10, 3)),
        # The MNIST network of TRADES: convolutions 320 + 9,248 + 18,496 + 36,928, hidden 1024 * 200 + 200 and
        # 200 * 200 + 200, logits 2,010.
        (lambda: SmallCNN(10, (1, 28, 28)), 312_202, 320 + 9_248 + 18_496 + 36_928 + 205_000 + 40_200 + 2_010),
    ],
    ids=["preact-resnet18", "wrn-28-10", "wrn-34-10", "wrn-40-1", "thin-resnet", "small-cnn"],
)
def test_parameter_counts(make, published, by_hand):
    assert by_hand == published
    assert parameters_of(make) == published


def test_the_depth_of_a_wide_resnet_counts_its_convolutions():
    for depth in (28, 34):
        with torch.device("meta"):
            network = wide_resnet(10, 3, depth, 10)
        convolutions = [m for m in network.modules() if isinstance(m, nn.Conv2d) and m.kernel_size == (3, 3)]
        # And the linear layer, and one shortcut a stage.
        assert len(convolutions) + 3 == depth


@pytest.mark.parametrize(
    ("shape", "flat"),
    [
        # 28: 28 -> 26 -> 24 -> pooled 12 -> 10 -> 8 -> pooled 4: 64 maps of 4x4. 32 likewise: 5x5. 40: 7x7.
        ((1, 28, 28), 64 * 16),
        ((3, 32, 32), 64 * 25),
        ((3, 40, 40), 64 * 49),
        # Smaller ones are padded and only pooled: 8 -> 4 -> 2, 4 -> 2 -> 1, 9 -> 4 -> 2.
        ((1, 8, 8), 64 * 4),
        ((1, 4, 4), 64),
        ((2, 9, 8), 64 * 4),
        # Rectangles: 28x40 gives 4x7 maps, and 8x28, padded for its short side, 2x7.
        ((3, 28, 40), 64 * 28),
        ((1, 8, 28), 64 * 14),
    ],
)
def test_the_small_cnn_fits_images_of_any_size(shape, flat):
    network = SmallCNN(7, shape, hidden=12)
    assert network.hidden[0].in_features == flat
    assert network(torch.rand(2, *shape)).shape == (2, 7)


@pytest.mark.parametrize("shape", [(1, 3, 8), (1, 8, 2)])
def test_images_too_small_for_the_small_cnn_are_refused(shape):
    with pytest.raises(ModelError, match=rf"images of {shape[1]}x{shape[2]} pixels are too small .*at least 4x4"):
        SmallCNN(10, shape)


@pytest.mark.parametrize("shape", [(1, 28, 28), (1, 8, 8)])
def test_the_small_cnn_pools_before_its_relu_and_is_the_original_to_the_bit(shape):
    torch.manual_seed(0)
    network = SmallCNN(10, shape)
    first, second, third, fourth = (layer for layer in network.convolutions if isinstance(layer, nn.Conv2d))
    images = torch.rand(3, *shape, requires_grad=True)
    maps = F.max_pool2d(F.relu(second(F.relu(first(images)))), 2)
    maps = F.max_pool2d(F.relu(fourth(F.relu(third(maps)))), 2)
    original, ours = network.logits(network.hidden(maps.flatten(1))), network(images)
    assert torch.equal(ours, original)
    wanted = [images, *network.parameters()]
    for one, other in zip(
        *(torch.autograd.grad(logits.logsumexp(1).sum(), wanted) for logits in (ours, original)), strict=True
    ):
        assert torch.equal(one, other)


def test_the_small_cnn_features_are_hidden_units():
    network = SmallCNN(7, (1, 8, 8), hidden=12)
    assert network.logits.in_features == 12
    assert (network.hidden(network.convolutions(torch.rand(3, 1, 8, 8))) >= 0).all()


@pytest.mark.parametrize("size", [8, 28, 32])
@pytest.mark.parametrize("channels", [1, 3])
def test_each_later_stage_halves_the_resolution(size, channels):
    network = thin_resnet(6, channels).eval()
    maps = network.stem(torch.rand(2, channels, size, size))
    for stage in network.stages:
        assert maps.shape[-1] == size
        maps = stage(maps)
        size = (size + 1) // 2 if stage.conv1.stride == (2, 2) else size
    assert [stage.conv1.stride for stage in network.stages] == [(1, 1), (2, 2), (2, 2), (2, 2)]
    assert maps.shape[1] == 128
    assert network.logits(F.relu(network.norm(maps)).mean((2, 3))).shape == (2, 6)


def test_a_residual_network_is_its_parts_in_order():
    torch.manual_seed(0)
    network = PreActResNet(4, 2, widths=(5, 6), blocks=2, stem=3).eval()
    images = torch.rand(2, 2, 8, 8)
    maps = network.stem(images)
    for stage in network.stages:
        maps = stage(maps)
    features = F.relu(
        F.batch_norm(maps, network.norm.running_mean, network.norm.running_var, network.norm.weight, network.norm.bias)
    )
    expected = features.flatten(2).mean(2) @ network.logits.weight.T + network.logits.bias
    torch.testing.assert_close(network(images), expected, atol=1e-5, rtol=1e-5)


def test_a_block_whose_last_convolution_is_zero_is_its_shortcut():
    maps = torch.randn(2, 4, 6, 6)
    same = PreActBlock(4, 4, 1)
    wider = PreActBlock(4, 8, 2).eval()
    for made in (same, wider):
        nn.init.zeros_(made.conv2.weight)
    # A block that keeps the shape passes its input on untouched: no shortcut, no ReLU on the way.
    assert same.shortcut is None
    assert torch.equal(same(maps), maps)
    # One that changes it starts its shortcut from the activated input; a fresh BatchNorm divides by sqrt(1 + 1e-5).
    activated = (maps / (1 + 1e-5) ** 0.5).relu()
    torch.testing.assert_close(wider(maps), F.conv2d(activated, wider.shortcut.weight, stride=2))


def test_a_block_by_hand():
    # One channel, one pixel: 3x3 convolutions keep their middle weight alone, 2 and 3. In evaluation BatchNorm is nearly 1.
    made = PreActBlock(1, 1, 1).eval()
    for convolution, weight in ((made.conv1, 2.0), (made.conv2, 3.0)):
        nn.init.zeros_(convolution.weight)
        with torch.no_grad():
            convolution.weight[0, 0, 1, 1] = weight
    # 0.5 + 3 * 2 * 0.5 = 3.5, and a negative input is off in the inner branch.
    torch.testing.assert_close(
        made(torch.tensor([[[[0.5]]], [[[-0.5]]]])).flatten(), torch.tensor([3.5, -0.5]), atol=1e-4, rtol=0
    )


def test_dropout_is_there_only_when_asked_for():
    maps = torch.randn(2, 1, 4, 4)
    for rate in (0.0, 0.5):
        torch.manual_seed(0)
        network = wide_resnet(3, 1, 10, 1, dropout=rate).train()
        rates = {module.p for module in network.modules() if isinstance(module, nn.Dropout)}
        assert rates == {rate}
        assert torch.equal(network(maps), network(maps)) == (rate == 0.0)
        network.eval()
        assert torch.equal(network(maps), network(maps))


def test_convolutions_start_with_the_variance_that_keeps_gradients_alive():
    torch.manual_seed(0)
    network = preact_resnet18(10, 3)
    for module in network.modules():
        if isinstance(module, nn.Conv2d):
            # He et al.: variance 2 / fan-out, fan-out = kernel pixels times outputs. The smallest has 1,728 weights: 8 %.
            fan_out = module.kernel_size[0] ** 2 * module.out_channels
            assert module.bias is None
            assert module.weight.std().item() == pytest.approx((2 / fan_out) ** 0.5, rel=0.08)


@pytest.mark.parametrize("layout", [torch.channels_last, torch.contiguous_format])
def test_averages_have_a_gradient_that_lies_as_the_maps_do(layout):
    torch.manual_seed(0)
    maps = torch.randn(2, 8, 4, 3).contiguous(memory_format=layout).requires_grad_()
    means = averaged(maps)
    assert torch.equal(means, maps.mean((2, 3)))
    (gradient,) = torch.autograd.grad(means, maps, torch.arange(16.0).view(2, 8))
    assert gradient.is_contiguous(memory_format=layout)
    assert torch.equal(gradient, (torch.arange(16.0) / 12).view(2, 8, 1, 1).expand(2, 8, 4, 3))
