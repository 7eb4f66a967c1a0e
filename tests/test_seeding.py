import torch

from diffaudio.seeding import seeded_generator


def test_a_generator_is_a_function_of_its_seed_and_position():
    draws = [
        torch.rand(3, generator=seeded_generator(*arguments)).tolist()
        for arguments in [(0, 0, 1), (0, 0, 1), (0, 1, 0), (0, 0), (1, 0, 1), (0, 0, 11), (0, 0, 1, 1)]
    ]
    assert draws[0] == draws[1]
    assert len({tuple(draw) for draw in draws}) == 6
