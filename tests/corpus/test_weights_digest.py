import copy

import torch
from torch import nn

from diffaudio.corpus.weights_digest import describe_weights, has_same_weights


def network(seed: int) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4))


def test_the_weights_of_a_network_are_recognised_also_rounded_to_half_precision():
    described = describe_weights(network(0))
    assert has_same_weights(described, network(0))
    rounded = copy.deepcopy(network(0)).half().float()
    assert describe_weights(rounded)["weights"] != described["weights"]
    assert has_same_weights(described, rounded)


def test_other_weights_and_renamed_ones_are_not_the_same():
    described = describe_weights(network(0))
    assert not has_same_weights(described, network(1))
    assert not has_same_weights(described, nn.Sequential(nn.Identity(), *network(0)))
    changed = network(0)
    changed[1].num_batches_tracked += 1  # an integer
    assert not has_same_weights(described, changed)


def test_a_manifest_of_an_older_version_matches_any_weights():
    assert has_same_weights({"weights": "0123456789abcdef"}, network(1))
    assert has_same_weights({}, network(1))
