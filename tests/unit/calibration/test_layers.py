"""Which layers a network calls, and which of them get the same tensor."""

import pytest
import torch
from torch import Tensor, nn

from lbm_lora.calibration import find_layers
from lbm_lora.calibration.layers import unmeasured
from lbm_lora.errors import InputError
from lbm_lora.naming import ModuleName


class Net(nn.Module):
    """Two linears on one tensor, one on an equal copy, a conv, a grouped conv, and one that is never called."""

    def __init__(self) -> None:
        super().__init__()
        self.late = nn.Conv2d(4, 2, (3, 2))
        self.grouped = nn.Conv2d(4, 4, 1, groups=2)
        self.query, self.key, self.other = (nn.Linear(6, 6) for _ in range(3))
        self.unused = nn.Linear(6, 6)

    def forward(self, tokens: Tensor) -> Tensor:
        mixed = self.query(tokens) + self.key(tokens) + self.other(tokens.clone())
        return self.late(self.grouped(mixed))


def test_convs_share_an_input_where_their_kernels_cover_the_same() -> None:
    wide, same, strided = nn.Conv2d(4, 2, 3, padding=1), nn.Conv2d(4, 5, 3, padding=1), nn.Conv2d(4, 2, 3, stride=2)
    net, image = nn.ModuleDict({"wide": wide, "same": same, "strided": strided}), torch.zeros(1, 4, 8, 8)
    layers = find_layers(net, lambda: [conv(image) for conv in (wide, same, strided)])
    assert {name: layer.inputs for name, layer in layers.items()} == {
        "wide": "wide", "same": "wide", "strided": "strided"
    }  # fmt: skip
    assert {layer.columns for layer in layers.values()} == {36}


class Mixed(nn.Module):
    """Layers called once and several times, and all kinds that are not measured."""

    def __init__(self) -> None:
        super().__init__()
        self.words, self.tied = nn.Embedding(9, 6), nn.Linear(6, 9, bias=False)
        self.tied.weight = self.words.weight
        self.twice, self.also_twice, self.once = (nn.Linear(6, 6) for _ in range(3))
        self.attention = nn.MultiheadAttention(6, 2, batch_first=True)

    def forward(self, tokens: Tensor) -> Tensor:
        before = hidden = self.words(tokens)
        for _ in range(2):
            before = hidden
            hidden = torch.tanh(self.twice(before) + self.also_twice(before))
        hidden = hidden + self.once(before)
        return self.tied(self.attention(hidden, hidden, hidden)[0])


def test_layers_that_are_called_several_times_share_what_they_share_in_all_calls() -> None:
    net = Mixed()
    layers = find_layers(net, lambda: net(torch.zeros(1, 3, dtype=torch.long)))
    assert {name: (layer.inputs, layer.calls) for name, layer in layers.items()} == {
        "twice": ("twice", 2),
        "also_twice": ("twice", 2),
        "once": ("once", 1),  # the same tensor as the second call of the others
    }
    (only,) = find_layers(net, lambda: net(torch.zeros(1, 3, dtype=torch.long)), {ModuleName("once")})
    assert only == "once"


def test_weights_that_are_no_matrices_of_a_layer_are_named_with_the_reason() -> None:
    assert unmeasured(Mixed()) == {
        "words": "Embedding",
        "tied": "a shared weight",
        "attention.out_proj": "part of MultiheadAttention",
    }
    assert unmeasured(Net()) == {"grouped": "grouped Conv2d"}


def test_a_keyword_argument_is_refused() -> None:
    net = nn.Linear(2, 2)
    with pytest.raises(InputError, match="is called with a keyword argument, which cannot be measured"):
        find_layers(net, lambda: net(input=torch.zeros(1, 2)))
