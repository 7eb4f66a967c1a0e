"""The parts of training a CLIP: pictures, losses, measures."""

import io
import math

import pytest
import torch
import torch.nn.functional as F
from PIL import Image

from diffaudio.errors import UserError
from diffaudio.training.clip.captioned_images import SMALL_SOURCE, Photograph, draw_crops, hold_out, sampling_weights
from diffaudio.training.clip.measures import kind_of, recall, zero_shot
from diffaudio.training.clip.objective import (
    CaptionBank,
    caption_loss,
    class_embeddings,
    distillation_loss,
    parse_class_numbers,
)

SETS = [("a chihuahua", "a dog", "barking"), ("a poodle", "a dog"), ("rain",)]


def encode(texts: list[str]) -> torch.Tensor:
    """A direction for each text, the same wherever it is encoded."""
    rows = [torch.randn(8, generator=torch.Generator().manual_seed(sum(map(ord, text)))) for text in texts]
    return F.normalize(torch.stack(rows), dim=-1)


def photograph(captions: tuple[str, ...], source: str, number: int) -> Photograph:
    return Photograph(f"{source}{number}".encode(), captions, source)


def test_crops_stay_inside_the_picture_whatever_its_shape():
    pictures = [Image.new("RGB", size, (120, 120, 120)) for size in ((20, 20), (60, 10), (10, 60), (1, 1))]
    crops = draw_crops(pictures, 12, 0.3, torch.Generator().manual_seed(0))
    assert crops.shape == (4, 3, 12, 12)
    assert crops.flatten(1).std(dim=1).max() < 1e-5  # padding would show as black


def test_a_crop_is_a_function_of_its_generator():
    data = io.BytesIO()
    Image.effect_noise((40, 30), 80).convert("RGB").save(data, "PNG")
    picture = Image.open(data).convert("RGB")
    draws = [draw_crops([picture], 8, 0.3, torch.Generator().manual_seed(seed)) for seed in (3, 3, 4)]
    assert torch.equal(draws[0], draws[1])
    assert not torch.equal(draws[0], draws[2])


def test_a_small_source_is_held_out_whole_or_not_at_all():
    photographs = [photograph(("a dog",), f"site {site}", number) for site in range(40) for number in range(3)]
    training, held_out, _ = hold_out(photographs, one_source_in=3, one_picture_in=0, general_source=None)
    assert sorted(training + held_out) == list(range(len(photographs)))
    sources = [{photographs[index].source for index in part} for part in (training, held_out)]
    assert sources[0].isdisjoint(sources[1])
    assert 4 <= len(sources[1]) <= 24


def test_of_a_large_source_single_pictures_are_held_out_and_the_general_source_is_kept_apart():
    photographs = [photograph(("a dog",), "large", number) for number in range(10 * SMALL_SOURCE)]
    photographs += [photograph(("a tench",), "general", 0), photograph(("a dog", "barking"), "general", 1)]
    training, held_out, general = hold_out(photographs, one_source_in=0, one_picture_in=4, general_source="general")
    assert general == [200]  # with several captions it is no picture of general knowledge
    assert 201 in training
    assert 30 <= len(held_out) <= 70


def test_a_caption_set_is_drawn_in_proportion_to_the_square_root_of_its_pictures():
    weights = sampling_weights([("a cat",)] * 16 + [("a dog", "barking")] * 4, sounding_weight=3.0)
    assert weights[:16].sum().item() == pytest.approx(4.0)
    assert weights[16:].sum().item() == pytest.approx(3 * 2.0)


def test_captions_that_a_picture_could_bear_are_no_negatives():
    bank = CaptionBank.build(SETS, ["{}"], encode)
    captions = sorted({caption for names in SETS for caption in names})
    compatible = [{c for c, is_so in zip(captions, row, strict=True) if is_so} for row in bank.compatible.tolist()]
    assert compatible == [{"a chihuahua", "a dog", "barking", "a poodle"}] * 2 + [{"rain"}]
    embeddings = encode(["a chihuahua"])
    number = torch.tensor([captions.index("a chihuahua")])
    loss = caption_loss(embeddings, torch.tensor(5.0), bank, torch.tensor([0]), number, torch.tensor([0]))
    against = 5 * (embeddings @ encode(["a chihuahua", "rain"]).T)
    assert loss.item() == pytest.approx(F.cross_entropy(against, torch.tensor([0])).item(), rel=1e-5)


def test_only_captions_of_the_picture_are_drawn():
    bank = CaptionBank.build(SETS, ["{}", "a photo of {}"], encode)
    caption_set = torch.tensor([0, 1, 2] * 100)
    captions, templates = bank.draw(caption_set, torch.Generator().manual_seed(0))
    drawn = [set(captions[caption_set == index].tolist()) for index in range(3)]
    assert drawn == [set(numbers) for numbers in bank.captions_of]
    assert set(templates.tolist()) == {0, 1}


def test_distillation_is_least_where_the_distributions_agree():
    classes = torch.eye(4)
    embedding = F.normalize(torch.tensor([[1.0, 2.0, 0.0, 0.5]]), dim=-1)
    scale = torch.tensor(3.0)
    same = distillation_loss(embedding, scale, classes, 3 * embedding)
    entropy = torch.distributions.Categorical(logits=3 * embedding).entropy()
    assert same.item() == pytest.approx(entropy.item(), rel=1e-5)
    assert distillation_loss(embedding, scale, classes, torch.eye(4)[2:3] * 9) > same


def test_a_class_lies_between_its_name_and_its_sound():
    plain = class_embeddings(["a cock", "a tench"], {}, encode)
    sounding = class_embeddings(["a cock", "a tench"], {"crowing": [0]}, encode)
    torch.testing.assert_close(sounding[0], F.normalize(encode(["a cock"])[0] + encode(["crowing"])[0], dim=0))
    assert torch.equal(sounding[1], plain[1])


def test_ranges_of_classes_are_read_and_wrong_ones_refused():
    assert parse_class_numbers([7, "10-12"], 1000, where="x") == [7, 10, 11, 12]
    with pytest.raises(UserError, match=r"x: '1-b' is neither a class number nor a range such as 10-12"):
        parse_class_numbers(["1-b"], 1000, where="x")
    with pytest.raises(UserError, match=r"x: class 1000 is past the last, 999"):
        parse_class_numbers(["998-1000"], 1000, where="x")


def test_recall_counts_a_right_neighbour_in_each_direction():
    images = torch.eye(3)
    texts = F.normalize(torch.tensor([[1.0, 0.2, 0], [0.9, 1, 0], [1, 0, 0.5]]), dim=-1)
    values = recall(images, texts, torch.eye(3, dtype=torch.bool), counts=(1, 2))
    assert values["image_to_caption_recall_1"] == pytest.approx(1.0)
    assert values["caption_to_image_recall_1"] == pytest.approx(2 / 3)
    assert values["caption_to_image_recall_2"] == pytest.approx(1.0)


def test_zero_shot_accuracy_is_also_the_mean_over_kinds():
    images = torch.eye(2)[[0, 0, 0, 0]]
    overall, mean = zero_shot(images, torch.tensor([0, 0, 0, 1]), torch.eye(2))
    assert (overall, mean) == (0.75, 0.5)


def test_a_photograph_of_two_kinds_belongs_to_none():
    kinds = {"dog barking": ["a dog"], "rain": ["rain", "rain falling"]}
    assert kind_of(photograph(("a dog", "a puppy"), "x", 0), kinds) == "dog barking"
    assert kind_of(photograph(("a dog", "rain"), "x", 0), kinds) is None
    assert kind_of(photograph(("a cat",), "x", 0), kinds) is None


def test_a_uniform_model_has_the_loss_of_chance():
    bank = CaptionBank.build([("rain",), ("a dog",), ("the sea",)], ["{}"], encode)
    loss = caption_loss(encode(["x"]), torch.tensor(0.0), bank, torch.tensor([0]), torch.tensor([1]), torch.tensor([0]))
    assert loss.item() == pytest.approx(math.log(3), rel=1e-5)
