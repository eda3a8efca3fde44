"""Augmentation of samples: what decides the draws, dropout, masking, crops, and the ridge that noise amounts to."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shards.augment import Augment, Augmenter
from shards.batch import Batch
from shards.errors import ConfigError
from shards.reader import Dataset
from shards.schema import FieldSpec, ModalitySpec, Sample
from shards.statistics import deviations
from shards.stream import BatchStream
from shards.vocabulary import FIRST, MASK


def vector(name: str, width: int = 4, dtype: str = "float32") -> ModalitySpec:
    return ModalitySpec(name=name, kind="vector", fields={"values": FieldSpec(dtype=dtype, shape=(width,))})


SPECS = {
    "a": vector("a"),
    "b": vector("b"),
    "text": ModalitySpec(name="text", kind="text"),
    "smiles": ModalitySpec(
        name="smiles",
        kind="sequence",
        fields={
            "tokens": FieldSpec(dtype="int32", shape=("tokens",)),
            "weights": FieldSpec(dtype="float32", shape=("tokens",)),
        },
    ),
    "sem": ModalitySpec(
        name="sem", kind="image", fields={"pixels": FieldSpec(dtype="uint8", shape=("images", 1, 12, 16))}
    ),
    "process": ModalitySpec(
        name="process",
        kind="table",
        fields={
            "numeric": FieldSpec(dtype="float32", shape=(3,)),
            "known": FieldSpec(dtype="uint8", shape=(3,)),
            "categories": FieldSpec(dtype="int32", shape=(2,)),
        },
    ),
}


def sample(number: int = 0) -> Sample:
    rng = np.random.default_rng(number)
    return Sample(
        id=f"s{number}",
        arrays={
            "a": {"values": rng.normal(size=4).astype(np.float32)},
            "b": {"values": rng.normal(size=4).astype(np.float32)},
            "smiles": {
                "tokens": np.arange(FIRST, FIRST + 50, dtype=np.int32),
                "weights": np.arange(FIRST, FIRST + 50, dtype=np.float32),
            },
            "sem": {"pixels": np.arange(3 * 12 * 16, dtype=np.int64).astype(np.uint8).reshape(3, 1, 12, 16)},
            "process": {
                "numeric": np.array([1, 0, 3], dtype=np.float32),
                "known": np.array([1, 0, 1], dtype=np.uint8),
                "categories": np.array([2, 0], dtype=np.int32),
            },
        },
        text={"text": "one two three four five six"},
        labels={"y": 1.0},
        group="g",
    )


def same(one: Sample, other: Sample) -> bool:
    return one.modalities == other.modalities and all(
        one.text[name] == other.text[name]
        if name in one.text
        else all(np.array_equal(one.arrays[name][field], other.arrays[name][field]) for field in one.arrays[name])
        for name in one.modalities
    )


STRONG = {
    "a": Augment(noise=0.2, drop=0.3),
    "b": Augment(scale=0.2, drop=0.3),
    "text": Augment(drop_words=0.3, mask_words=0.3, drop=0.2),
    "smiles": Augment(drop_tokens=0.2, mask_tokens=0.2),
    "sem": Augment(crop=8, flip=0.5, rotate=0.5),
    "process": Augment(gaussian_noise=0.1),
}
SCALES = {"process": {"numeric": np.ones(3)}}


class TestDraws:
    def test_without_strengths_the_sample_is_the_same_object(self) -> None:
        given = sample()
        for augments in ({}, {name: Augment() for name in SPECS}, {"text": Augment(mask_with="<mask>")}):
            assert Augmenter(SPECS, augments)(given, 3) is given

    def test_the_input_stays_as_it_is(self) -> None:
        given = sample()
        Augmenter(SPECS, STRONG, scales=SCALES)(given, 0)
        assert same(given, sample()) and given.labels == {"y": 1.0}

    @given(st.integers(0, 2**40), st.integers(0, 10_000), st.integers(0, 10_000))
    @settings(max_examples=40, deadline=None)
    def test_seed_epoch_and_sample_decide(self, seed: int, epoch: int, number: int) -> None:
        first = Augmenter(SPECS, STRONG, seed=seed, scales=SCALES)(sample(number), epoch)
        assert same(first, Augmenter(SPECS, STRONG, seed=seed, scales=SCALES)(sample(number), epoch))
        assert not same(first, Augmenter(SPECS, STRONG, seed=seed + 1, scales=SCALES)(sample(number), epoch))
        assert not same(first, Augmenter(SPECS, STRONG, seed=seed, scales=SCALES)(sample(number), epoch + 1))
        assert first.labels == {"y": 1.0} and first.group == "g" and first.id == f"s{number}"

    def test_other_modalities_do_not_decide(self) -> None:
        alone = Augmenter(SPECS, {"a": STRONG["a"]}, seed=5)
        together = Augmenter(SPECS, STRONG, seed=5, scales=SCALES)
        kept = 0
        for number in range(40):
            one, other = alone(sample(number), 1), together(sample(number), 1)
            assert ("a" in one.arrays) == ("a" in other.arrays)
            if "a" in one.arrays:
                kept += 1
                assert np.array_equal(one.arrays["a"]["values"], other.arrays["a"]["values"])
        assert 15 < kept < 40

    @pytest.mark.parametrize("world", [1, 2, 3])
    @pytest.mark.parametrize("workers", [0, 1, 3])
    def test_ranks_workers_and_batches_do_not_decide(self, toy: Dataset, world: int, workers: int) -> None:
        augments = {"a": Augment(noise=0.3), "b": Augment(drop=0.4), "text": Augment(drop_words=0.4)}
        augmenter = Augmenter(toy.modalities, augments, seed=1)
        positions = toy.positions("chemical_system", "train")

        def seen(batch_size: int, world: int, workers: int) -> dict[str, list]:
            batches = [
                batch
                for rank in range(world)
                for batch in BatchStream(
                    toy,
                    positions,
                    batch_size=batch_size,
                    rank=rank,
                    world=world,
                    workers=workers,
                    augmenter=augmenter,
                ).epoch(4)
            ]
            return {sample_id: row for batch in batches for sample_id, row in rows(batch).items()}

        expected = {}
        for position in positions:
            changed = augmenter(toy[int(position)], 4)
            values = [changed.arrays[name]["values"].tobytes() if name in changed.arrays else None for name in "ab"]
            expected[changed.id] = [*values, changed.text.get("text")]
        assert seen(7, world, workers) == expected
        assert seen(4, world, workers) == expected


def rows(batch: Batch) -> dict[str, list]:
    """Values of modalities a, b and text by sample."""
    found: dict[str, list] = {sample_id: [] for sample_id in batch.ids}
    for name in ("a", "b", "text"):
        left = iter(batch.inputs[name]["text" if name == "text" else "values"]) if name in batch.inputs else iter(())
        for sample_id, here in zip(batch.ids, batch.present[name], strict=True):
            value = next(left) if here else None
            found[sample_id].append(value.numpy().tobytes() if hasattr(value, "numpy") else value)
    return found


class TestModalityDropout:
    def test_frequency(self) -> None:
        augmenter = Augmenter(SPECS, {"a": Augment(drop=0.3), "text": Augment(drop=0.1)})
        counts = Counter(name for epoch in range(4000) for name in augmenter(sample(), epoch).modalities)
        assert abs(counts["a"] / 4000 - 0.7) < 0.03 and abs(counts["text"] / 4000 - 0.9) < 0.02
        assert counts["b"] == 4000

    def test_dropped_is_absent(self) -> None:
        without = Augmenter(SPECS, {"a": Augment(drop=1.0), "text": Augment(drop=1.0)})(sample(), 0)
        assert without.modalities == set(SPECS) - {"a", "text"}
        assert without.value("a") is None and without.value("text") is None

    def test_the_last_modality_stays_each_as_often(self) -> None:
        few = Sample(id="few", arrays={name: sample().arrays[name] for name in ("a", "b")}, text=sample().text)
        augmenter = Augmenter(SPECS, {name: Augment(drop=1.0) for name in ("a", "b", "text")})
        left = Counter()
        for epoch in range(3000):
            (name,) = augmenter(few, epoch).modalities
            left[name] += 1
        assert all(abs(left[name] / 3000 - 1 / 3) < 0.04 for name in ("a", "b", "text"))

    def test_a_lone_modality_is_never_dropped(self) -> None:
        lone = Sample(id="lone", arrays={"a": sample().arrays["a"]})
        augmenter = Augmenter(SPECS, {"a": Augment(drop=0.9)})
        assert all(augmenter(lone, epoch) is lone for epoch in range(100))

    def test_progressive(self) -> None:
        config = Augment(drop_from=0.1, drop=0.5, drop_epochs=20)
        assert [config.drop_probability(epoch) for epoch in (0, 10, 20, 500)] == pytest.approx([0.1, 0.3, 0.5, 0.5])
        down = Augment(drop_from=0.8, drop=0.0, drop_epochs=4)
        assert [down.drop_probability(epoch) for epoch in (0, 1, 4, 9)] == pytest.approx([0.8, 0.6, 0.0, 0.0])
        augmenter = Augmenter(SPECS, {"a": config})

        def frequency(epoch: int) -> float:
            return np.mean(["a" not in augmenter(sample(number), epoch).arrays for number in range(2000)])

        assert [frequency(epoch) for epoch in (0, 10, 30)] == pytest.approx([0.1, 0.3, 0.5], abs=0.03)

    def test_a_ramp_without_length_is_refused(self) -> None:
        with pytest.raises(ValueError, match="drop_epochs"):
            Augment(drop_from=0.2, drop=0.5)

    def test_the_anchor_is_refused(self) -> None:
        with pytest.raises(ConfigError, match="anchor"):
            Augmenter(SPECS, {"a": Augment(drop=0.1)}, keep=["a"])
        Augmenter(SPECS, {"a": Augment(noise=0.1), "b": Augment(drop=0.1)}, keep=["a"])


class TestMasking:
    def test_tokens(self) -> None:
        augmenter = Augmenter(SPECS, {"smiles": Augment(mask_tokens=0.2)})
        masked, given = 0, sample().arrays["smiles"]["tokens"]
        for epoch in range(400):
            tokens = augmenter(sample(), epoch).arrays["smiles"]["tokens"]
            assert tokens.dtype == np.int32 and np.isin(tokens[tokens != given], [MASK]).all()
            masked += (tokens == MASK).sum()
        # one token is always spared: 0.2 x 49 of 50
        assert abs(masked / 400 / 50 - 0.196) < 0.01

    def test_left_out_tokens_take_their_other_fields_along(self) -> None:
        augmenter = Augmenter(SPECS, {"smiles": Augment(drop_tokens=0.4)})
        lengths = []
        for epoch in range(200):
            value = augmenter(sample(), epoch).arrays["smiles"]
            assert np.array_equal(value["tokens"], value["weights"].astype(int))
            assert (np.diff(value["tokens"]) > 0).all()
            lengths.append(len(value["tokens"]))
        assert abs(np.mean(lengths) - (50 - 0.4 * 49)) < 1

    @pytest.mark.parametrize("strength", ["mask_tokens", "drop_tokens"])
    def test_one_token_is_spared(self, strength: str) -> None:
        augmenter = Augmenter(SPECS, {"smiles": Augment(**{strength: 0.999})})
        for epoch in range(50):
            assert (augmenter(sample(), epoch).arrays["smiles"]["tokens"] >= FIRST).any()

    def test_words(self) -> None:
        augmenter = Augmenter(SPECS, {"text": Augment(mask_words=0.5, mask_with="<mask>")})
        words = sample().text["text"].split()
        masked = Counter()
        for epoch in range(600):
            found = augmenter(sample(), epoch).text["text"].split()
            assert len(found) == 6 and set(found) != {"<mask>"}
            assert all(new in (old, "<mask>") for new, old in zip(found, words, strict=True))
            masked.update(i for i, word in enumerate(found) if word == "<mask>")
        assert all(abs(masked[i] / 600 - 0.5 * 5 / 6) < 0.08 for i in range(6))


class TestPictures:
    def test_random_crops_are_windows_of_their_picture(self) -> None:
        augmenter = Augmenter(SPECS, {"sem": Augment(crop=8)})
        given, corners = sample().arrays["sem"]["pixels"], Counter()
        windows = np.lib.stride_tricks.sliding_window_view(given[:, 0], (8, 8), axis=(1, 2))
        for epoch in range(300):
            pixels = augmenter(sample(), epoch).arrays["sem"]["pixels"]
            assert pixels.shape == (3, 1, 8, 8) and pixels.dtype == np.uint8
            for picture, of in zip(pixels[:, 0], windows, strict=True):
                places = np.argwhere((of == picture).all(axis=(2, 3)))
                assert len(places)
                corners[tuple(places[0])] += 1
        assert len(corners) == 5 * 9 and max(corners.values()) < 4 * min(corners.values())

    def test_evaluation_cuts_the_centre(self) -> None:
        augmenter = Augmenter(SPECS, {**STRONG, "sem": Augment(crop=8, flip=1.0, rotate=1.0)}, training=False)
        seen = augmenter(sample(), 0)
        assert same(seen, augmenter(sample(), 7))
        assert np.array_equal(seen.arrays["sem"]["pixels"], sample().arrays["sem"]["pixels"][..., 2:10, 4:12])
        assert augmenter.specs["sem"].fields["pixels"].shape == ("images", 1, 8, 8)
        augmenter.specs["sem"].check(seen.arrays["sem"])
        rest = {name for name in SPECS if name != "sem"}
        without = Sample(id="s0", arrays={n: sample().arrays[n] for n in rest - {"text"}}, text=sample().text)
        assert augmenter(without, 0) is without

    def test_turns(self) -> None:
        square = np.arange(64, dtype=np.uint8).reshape(1, 1, 8, 8)
        fields = {"pixels": FieldSpec(dtype="uint8", shape=("images", 1, 8, 8))}
        spec = {"sem": ModalitySpec(name="sem", kind="image", fields=fields)}
        symmetries = {
            np.rot90(np.flip(square, 3) if mirrored else square, turn, axes=(2, 3)).tobytes()
            for turn in range(4)
            for mirrored in (False, True)
        }
        augmenter = Augmenter(spec, {"sem": Augment(rotate=0.75, flip=0.5)})
        found = Counter(
            augmenter(Sample(id="s", arrays={"sem": {"pixels": square}}), epoch).arrays["sem"]["pixels"].tobytes()
            for epoch in range(800)
        )
        assert set(found) == symmetries and min(found.values()) > 60
        # a picture that is no square keeps its shape
        wide = Augmenter(SPECS, {"sem": Augment(rotate=1.0)})(sample(), 0).arrays["sem"]["pixels"]
        assert np.array_equal(wide, sample().arrays["sem"]["pixels"][..., ::-1, ::-1])


class TestGaussianNoise:
    def test_categories_and_unknown_entries_stay(self) -> None:
        scales = {"process": {"numeric": np.array([2.0, 2.0, 0.0])}}
        augmenter = Augmenter(SPECS, {"process": Augment(gaussian_noise=0.5)}, scales=scales)
        drawn = [augmenter(sample(), epoch).arrays["process"] for epoch in range(2000)]
        for value in drawn:
            assert np.array_equal(value["known"], [1, 0, 1]) and np.array_equal(value["categories"], [2, 0])
        numbers = np.stack([value["numeric"] for value in drawn])
        assert (numbers[:, 1:] == [0, 3]).all()
        assert numbers[:, 0].std() == pytest.approx(1.0, abs=0.05) and numbers[:, 0].mean() == pytest.approx(1, abs=0.1)

    @pytest.mark.parametrize("strength", [{"crop": 4}, {"flip": 0.5, "rotate": 0.7}])
    def test_each_pixel_has_its_own_deviation_wherever_it_is_moved(self, strength: dict) -> None:
        """Pixel k is 100 k and its noise a thousandth of it, so that noise tells which deviation a pixel got."""
        spec = ModalitySpec(name="sem", kind="image", fields={"pixels": FieldSpec(dtype="float32", shape=(1, 6, 6))})
        pixels = 100 * np.arange(1, 37, dtype=np.float32).reshape(1, 6, 6)
        augment = Augment(gaussian_noise=0.001, **strength)
        augmenter = Augmenter({"sem": spec}, {"sem": augment}, scales={"sem": {"pixels": pixels}})
        noise = []
        for epoch in range(300):
            value = augmenter(Sample(id="s", arrays={"sem": {"pixels": pixels}}), epoch).arrays["sem"]["pixels"]
            stored = 100 * np.round(value / 100)
            noise.append(((value - stored) / stored).ravel())
        assert np.abs(np.concatenate(noise)).max() < 0.006
        assert np.concatenate(noise).std() == pytest.approx(0.001, rel=0.05)

    def test_noise_without_scales_is_refused(self) -> None:
        with pytest.raises(ConfigError, match="standard deviations"):
            Augmenter(SPECS, {"process": Augment(gaussian_noise=0.1)})
        Augmenter(SPECS, {"process": Augment(gaussian_noise=0.1)}, training=False)

    def test_a_linear_model_converges_to_ridge(self) -> None:
        """Noise of standard deviation s_j on feature j is ridge with lambda_j = n s_j^2 (Bishop 1995)."""
        rng = np.random.default_rng(4)
        n, width, strength = 30, 4, 0.4
        x = rng.normal(size=(n, width)) @ (np.eye(width) + 0.6) * [0.1, 1.0, 5.0, 1.0]
        y = x @ [20.0, -1.0, 0.3, 2.0] + rng.normal(size=n)
        spec = vector("x", width, "float64")
        samples = [Sample(id=f"s{i}", arrays={"x": {"values": row}}) for i, row in enumerate(x)]
        scales = deviations(spec, [sample.arrays["x"] for sample in samples])

        def trained(scales: dict, *, strength: float = strength, epochs: int = 1000) -> np.ndarray:
            """Least squares over all that training sees in its epochs."""
            augmenter = Augmenter({"x": spec}, {"x": Augment(gaussian_noise=strength)}, scales={"x": scales}, seed=1)
            gram, moment = np.zeros((width, width)), np.zeros(width)
            for epoch in range(epochs):
                seen = np.stack([augmenter(sample, epoch).arrays["x"]["values"] for sample in samples])
                gram, moment = gram + seen.T @ seen, moment + seen.T @ y
            return np.linalg.solve(gram, moment)

        lambdas = n * (strength * x.std(0)) ** 2
        ridge = np.linalg.solve(x.T @ x + np.diag(lambdas), x.T @ y)

        def distance(weights: np.ndarray) -> float:
            """Relative distance in units of the features' deviations, so that no feature counts for nothing."""
            return np.linalg.norm((weights - ridge) * x.std(0)) / np.linalg.norm(ridge * x.std(0))

        assert distance(trained(scales)) < 0.02
        # no noise, one deviation for all features, noise that is drawn once
        assert distance(trained(scales, strength=0.0, epochs=1)) > 0.1
        assert distance(trained({"values": np.full(width, x.std())}, epochs=100)) > 0.1
        assert distance(trained(scales, epochs=1)) > 0.05


@pytest.mark.parametrize(
    ("name", "strength"),
    [
        ("text", {"noise": 0.1}), ("a", {"crop": 3}), ("a", {"drop_words": 0.1}), ("sem", {"gaussian_noise": 0.1}),
        ("smiles", {"jitter_a": 0.1}), ("process", {"roll": 0.5}),
    ],
)  # fmt: skip
def test_a_strength_that_does_nothing_is_refused(name: str, strength: dict) -> None:
    with pytest.raises(ConfigError, match=f"'{next(iter(strength))}' does nothing to modality '{name}'"):
        Augmenter(SPECS, {name: Augment(**strength)})


def test_graphs_without_coordinates_have_no_jitter() -> None:
    fields = {"number": FieldSpec(dtype="uint8", shape=("atoms",))}
    bonds = {"bonds": ModalitySpec(name="bonds", kind="graph", fields=fields)}
    for strength in ({"jitter_a": 0.1}, {"strain": 0.1}):
        with pytest.raises(ConfigError, match="does nothing"):
            Augmenter(bonds, {"bonds": Augment(**strength)})


def test_a_crop_larger_than_the_pictures_and_an_unknown_modality_are_refused() -> None:
    with pytest.raises(ConfigError, match="12 x 16"):
        Augmenter(SPECS, {"sem": Augment(crop=13)})
    with pytest.raises(ConfigError, match="text"):
        Augmenter(SPECS, {"texts": Augment(drop=0.1)})
