"""A recipe says everything, forgets nothing on its way through JSON, and lets nothing wrong in."""

import json
import math
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import MISSING, fields, is_dataclass, replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dermkit.errors import UsageError
from dermkit.files import fingerprint
from dermkit.recipes import formats
from dermkit.recipes import schema as room
from dermkit.recipes.augmentation import AugmentSpec, BlurNoiseSpec, ClaheSpec, CutoutSpec, DistortSpec, HsvSpec
from dermkit.recipes.schema import (
    ClassifierSpec,
    Derivation,
    FieldChange,
    ImageSpec,
    ModelSpec,
    OversampleSpec,
    Recipe,
    SplitSpec,
)
from dermkit.recipes.training_specs import (
    ComputeSpec,
    DistilSpec,
    MetadataSpec,
    MixupSpec,
    OptimSpec,
    Phase,
    SmoteSpec,
)

SPECS = (
    ImageSpec, SplitSpec, ModelSpec, AugmentSpec, DistortSpec, HsvSpec, BlurNoiseSpec, ClaheSpec, CutoutSpec,
    OversampleSpec, MixupSpec, Phase, OptimSpec, ComputeSpec, Recipe, Derivation, FieldChange,
    SmoteSpec, DistilSpec, ClassifierSpec, MetadataSpec,
)  # fmt: skip
RECORD = [
    ("derived_from", "recipe"),
    *(("derived_from", "changes", 0, name) for name in ("field", "before", "after")),
]
PROSE = {("about",), ("system",), ("seed",), ("repeats",), *RECORD}

below_one = st.floats(0, 1, exclude_max=True)
share = st.floats(0, 1)
count = st.integers(0, 10_000)
at_least_one = st.integers(1, 10_000)
not_negative = st.floats(0, 1e6)
seed = st.integers(0, 2**32 - 1)

kernel = st.sampled_from([3, 5, 7])
augments = st.builds(
    AugmentSpec, horizontal_flip=st.booleans(), vertical_flip=st.booleans(), transpose=st.booleans(), p_geometric=share,
    rotate=st.floats(0, 180), shift=share, zoom=below_one, fill=st.sampled_from(["reflect", "black", "edge"]),
    distort=st.none() | st.builds(
        DistortSpec, p=share, optical=share, grid=st.floats(0.1, 1), grid_steps=st.integers(2, 32),
        elastic=st.floats(0, 0.5), elastic_cells=st.integers(1, 32),
    ),
    p_colour=share, brightness=share, contrast=share, saturation=share,
    hsv=st.none() | st.builds(HsvSpec, p=share, hue=st.floats(0, 180), saturation=share, value=share),
    blur_noise=st.none() | st.builds(
        BlurNoiseSpec, p=share, motion=kernel | st.just(0), median=kernel, gaussian=kernel | st.just(0),
        noise=st.lists(st.floats(0, 1e4), min_size=2, max_size=2).map(sorted).map(tuple),
    ),
    clahe=st.none() | st.builds(ClaheSpec, p=share, clip=st.floats(1, 256), tiles=st.integers(1, 16)),
    cutout=st.none() | st.builds(CutoutSpec, p=share, side=share),
)  # fmt: skip
phases = st.sampled_from(["none", 1, 2, 7, "all"]).flatmap(lambda trained: st.builds(
    Phase, epochs=at_least_one, train_backbone=st.just(trained),
    head_lr=not_negative, backbone_lr=not_negative, views=at_least_one, freeze_batch_norm=st.booleans(), patience=count,
    layer_decay=st.just(1.0) if trained in ("none", 1) else st.floats(0.01, 1),
    image_size=st.sampled_from([0] if trained == "none" else [0, 16]),
))  # fmt: skip
splits = st.builds(
    SplitSpec, scheme=st.just("holdout"), seed=seed, validation=st.floats(0.01, 0.4), test=st.floats(0.01, 0.4),
    folds=st.just(0), per_class=count, draw_from=st.text(),
) | st.builds(
    SplitSpec, scheme=st.just("kfold"), seed=seed, validation=st.floats(0.01, 0.4), test=st.just(0.0),
    folds=st.integers(3, 20), per_class=count, draw_from=st.just("train"),
)  # fmt: skip
models = st.builds(
    ModelSpec, backbone=st.text(min_size=1),
    backbone_args=st.dictionaries(
        st.text(), st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text()
    ),
    weights=st.sampled_from(["imagenet", "none"]), skip_blocks=st.lists(st.text()).map(tuple),
    hidden=st.lists(at_least_one).map(tuple), dropout=below_one, drop_path=st.just(0.0), classifier=st.none(),
    metadata=st.none()
    | st.builds(MetadataSpec, fields=st.sampled_from([("age", "site"), ("sex",)]), p_unknown=below_one),
)  # fmt: skip
optims = st.tuples(
    st.sampled_from(["shuffled", "balanced", "square_root"]), st.floats(0, 10)
).flatmap(lambda pair: st.builds(
    OptimSpec, optimizer=st.sampled_from(["adam", "adamw", "sgd"]), momentum=below_one, weight_decay=not_negative,
    class_weights=st.sampled_from(["none", "balanced", "square_root"]), label_smoothing=below_one,
    batch_size=at_least_one, schedule=st.sampled_from(["constant", "cosine"]),
    sampling=st.just(pair[0]), focal_gamma=st.floats(0, 10),
    logit_adjustment=st.just(0.0 if pair[0] == "balanced" else pair[1]), warmup_epochs=st.floats(0, 1),
    ema_decay=below_one, batch_norm_images=st.just(0),
))  # fmt: skip
images = st.builds(
    ImageSpec, size=st.integers(16, 1024), resize=st.sampled_from(["squash", "pad", "crop"]),
    interpolation=st.sampled_from(["bilinear", "bicubic", "lanczos", "box"]),
    normalise=st.sampled_from(["zero_one", "weights"]),
)  # fmt: skip
recipes = st.builds(
    Recipe, name=st.from_regex(r"[A-Za-z0-9][A-Za-z0-9._-]{0,98}[A-Za-z0-9]", fullmatch=True),
    system=st.text(), about=st.text(),
    image=images, split=splits, model=models, augment=augments,
    grow=st.none()
    | st.builds(OversampleSpec, target_fraction=st.floats(0.01, 1), max_copies=at_least_one, augment=augments),
    mix=st.none() | st.builds(MixupSpec, mixup=st.floats(0.1, 5), cutmix=not_negative, p=st.floats(0, 1)),
    compute=st.builds(
        ComputeSpec, precision=st.sampled_from(["float32", "bfloat16", "fastest"]), compile=st.booleans()
    ),
    phases=st.lists(phases, min_size=1, max_size=3).map(tuple), optim=optims,
    monitor=st.sampled_from(["val_loss", "val_accuracy", "val_balanced_accuracy", "val_auroc_macro"]),
    keep=st.sampled_from(["best", "last"]), seed=seed, repeats=at_least_one,
    smote=st.none(), distil=st.none() | st.builds(DistilSpec, weight=st.floats(0.01, 1), temperature=st.floats(1, 100)),
    test_views=st.sampled_from(["identity", "dihedral", "dihedral_crops", "choose"]),
    derived_from=st.none()
    | st.builds(
        Derivation, recipe=st.just("base"),
        changes=st.lists(st.builds(FieldChange, field=st.text(), before=st.text(), after=st.text())).map(tuple),
    ),
)  # fmt: skip


def _with_trained_backbone(recipe: Recipe, drop_path: float, batch_norm_images: int) -> Recipe:
    """Set what acts where a phase trains the backbone; elsewhere it is refused."""
    if all(phase.train_backbone == "none" for phase in recipe.phases):
        return recipe
    optim = replace(recipe.optim, batch_norm_images=batch_norm_images)
    return replace(recipe, model=replace(recipe.model, drop_path=drop_path), optim=optim)


recipes = st.builds(_with_trained_backbone, recipes, below_one, st.integers(0, 10**6))


def example() -> Recipe:
    """Return a recipe in which every field is set and every optional part is present."""
    augment = AugmentSpec(
        horizontal_flip=True, vertical_flip=False, transpose=False, p_geometric=0.85, rotate=20.0, shift=0.1, zoom=0.1,
        fill="reflect", p_colour=0.75, brightness=0.1, contrast=0.1, saturation=0.1,
        distort=DistortSpec(p=0.7, optical=0.5, grid=0.4, grid_steps=5, elastic=0.03, elastic_cells=4),
        hsv=HsvSpec(p=0.5, hue=20.0, saturation=0.1, value=0.1),
        blur_noise=BlurNoiseSpec(p=0.7, motion=5, median=5, gaussian=5, noise=(5.0, 30.0)),
        clahe=ClaheSpec(p=0.7, clip=4.0, tiles=8), cutout=CutoutSpec(p=0.7, side=0.375),
    )  # fmt: skip
    frozen = Phase(
        epochs=10,
        train_backbone="none",
        head_lr=1e-3,
        backbone_lr=0.0,
        views=4,
        freeze_batch_norm=True,
        patience=3,
        layer_decay=1.0,
        image_size=0,
    )
    return Recipe(
        name="example", system="S2", about="for the tests", monitor="val_loss", keep="best", seed=0, repeats=3,
        derived_from=Derivation(
            recipe="base", changes=(FieldChange(field="optim.batch_size", before="16", after="32"),)
        ),
        image=ImageSpec(size=128, resize="squash", interpolation="bilinear", normalise="weights"),
        split=SplitSpec(
            scheme="holdout", seed=0, validation=0.2, test=0.2, folds=0, per_class=584, draw_from="train"
        ),
        model=ModelSpec(
            backbone="resnet50", backbone_args={"in_chans": 3, "bias": True, "rate": 0.5, "pad": "same"},
            weights="imagenet", skip_blocks=("layer4",), hidden=(64, 32), dropout=0.3,
            drop_path=0.0, classifier=None, metadata=None,
        ),
        augment=augment, grow=OversampleSpec(target_fraction=0.5, max_copies=4, augment=augment),
        mix=MixupSpec(mixup=0.2, cutmix=1.0, p=0.5), compute=ComputeSpec(precision="float32", compile=False),
        phases=(frozen, replace(frozen, train_backbone=2, backbone_lr=1e-5, views=0)),
        optim=OptimSpec(
            optimizer="adam", momentum=0.9, weight_decay=0.01, class_weights="none", label_smoothing=0.0,
            batch_size=32, schedule="constant", sampling="shuffled",
            focal_gamma=0.0, logit_adjustment=0.0, warmup_epochs=0.0, ema_decay=0.0, batch_norm_images=0,
        ),
        smote=None, distil=None, test_views="identity",
    )  # fmt: skip


def on_features() -> Recipe:
    """Return a recipe with the parts that need a frozen backbone, or that no recipe of before has."""
    recipe = example()
    classifier = ClassifierSpec(
        kind="svm", penalty=1.0, neighbours=5, iterations=100, learning_rate=0.1, max_leaves=31
    )
    return replace(
        recipe,
        model=replace(recipe.model, classifier=classifier, metadata=MetadataSpec(fields=("age",), p_unknown=0.1)),
        phases=(replace(recipe.phases[0], epochs=1),),
        smote=SmoteSpec(target_fraction=0.5, neighbours=5),
        distil=DistilSpec(weight=0.5, temperature=2.0),
    )


def leaves(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Return the path of every single value inside a recipe's plain form."""
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [leaf for key, item in items for leaf in leaves(item, (*path, key))] or [path]


def put(path: tuple[Any, ...], item: Any) -> dict[str, Any]:
    """Return the plain form of the example that has this path, with one value changed."""
    whole = room.recipe_to_dict(on_features() if path in FEATURE_LEAVES else example())
    place: Any = whole
    for key in path[:-1]:
        place = place[key]
    place[path[-1]] = item
    return whole


def get(path: tuple[Any, ...]) -> Any:
    value: Any = room.recipe_to_dict(on_features() if path in FEATURE_LEAVES else example())
    for key in path:
        value = value[key]
    return value


ABSENT = (("model", "classifier"), ("model", "metadata"), ("smote",), ("distil",))
FEATURE_LEAVES = [
    path for path in leaves(room.recipe_to_dict(on_features())) if path[:1] in ABSENT or path[:2] in ABSENT
]
# The first phase is frozen, where these can have no effect and are refused; the second one's are there.
REFUSED = (("phases", 0, "layer_decay"), ("phases", 0, "image_size"))
LEAVES = [
    path for path in leaves(room.recipe_to_dict(example())) if path not in (*ABSENT, *REFUSED)
] + FEATURE_LEAVES


def names(path: tuple[Any, ...]) -> str:
    return ".".join(map(str, path))


def another(path: tuple[Any, ...]) -> Any:
    """Return a value other than the example's, of the same kind, that a recipe takes."""
    old = get(path)
    words = {
        "resize": "crop", "interpolation": "box", "normalise": "zero_one", "scheme": "kfold", "weights": "none",
        "fill": "edge", "train_backbone": "all", "optimizer": "sgd", "class_weights": "balanced",
        "schedule": "cosine", "sampling": "balanced", "precision": "bfloat16", "monitor": "val_accuracy",
        "keep": "last", "folds": 0, "motion": 3, "median": 0, "gaussian": 7, "layer_decay": 0.5, "image_size": 64,
        "test_views": "dihedral", "kind": "k_nearest",
    }  # fmt: skip
    if path[:-1] == ("model", "metadata", "fields"):
        return "sex"
    if path[-1] in words:
        return words[path[-1]]
    if isinstance(old, bool):
        return not old
    return old + (0.01 if isinstance(old, float) else "x" if isinstance(old, str) else 1)


def change(path: tuple[Any, ...]) -> dict[str, Any]:
    """Return the example's plain form with another valid value at `path`."""
    value = put(path, another(path))
    if path == ("split", "scheme"):
        value["split"]["folds"] = 5
    if path == ("split", "folds"):
        value["split"].update(scheme="kfold", folds=6)
    return value


def test_the_example_has_every_field() -> None:
    named = {part for path in LEAVES for part in path if isinstance(part, str)}
    assert {field.name for spec in SPECS for field in fields(spec)} <= named


def test_no_field_has_a_default() -> None:
    defaults = [
        f"{spec.__name__}.{field.name}"
        for spec in SPECS
        for field in fields(spec)
        if field.default is not MISSING or field.default_factory is not MISSING
    ]
    assert defaults == []


@pytest.mark.parametrize("spec", SPECS, ids=lambda spec: spec.__name__)
def test_specs_are_frozen_and_keyword_only(spec: type) -> None:
    assert is_dataclass(spec)
    assert spec.__dataclass_params__.frozen  # type: ignore[attr-defined]
    assert all(field.kw_only for field in fields(spec))


@pytest.mark.parametrize(
    "path", [path for path in LEAVES if "backbone_args" not in path and path[-1] not in (0, 1)], ids=names
)
def test_a_missing_field_is_named(path: tuple[Any, ...]) -> None:
    value = room.recipe_to_dict(on_features() if path in FEATURE_LEAVES else example())
    place: Any = value
    for key in path[:-1]:
        place = place[key]
    del place[path[-1]]
    with pytest.raises(UsageError, match=f"{names(path)}: Field required"):
        room.parse_recipe(value, "mine.json")


@pytest.mark.parametrize("path", LEAVES, ids=names)
def test_types_are_strict(path: tuple[Any, ...]) -> None:
    old = get(path)
    wrong: list[Any] = [None, [], {}, [old]]
    if "backbone_args" not in path:
        wrong += [7.5] if isinstance(old, str) else [str(old)]
        wrong += [1] if isinstance(old, bool) else [True]
        wrong += [float(old) + 0.5, float(old)] if type(old) is int else []
    for item in wrong:
        with pytest.raises(UsageError, match=names(path)):
            room.parse_recipe(put(path, item), "mine.json")


NOT_NUMBERS = [math.nan, math.inf, -math.inf]


@pytest.mark.parametrize("path", [path for path in LEAVES if isinstance(get(path), float)], ids=names)
def test_what_is_not_a_number_is_refused(path: tuple[Any, ...], tmp_path: Path) -> None:
    for item in NOT_NUMBERS:
        with pytest.raises(UsageError, match="finite number"):
            room.parse_recipe(put(path, item), "mine.json")
    (tmp_path / "mine.json").write_text(json.dumps({"format": 1, **put(path, 0)}).replace(": 0,", ": 1e999,", 1))
    with pytest.raises(UsageError):
        room.load_recipe(tmp_path / "mine.json")


@pytest.mark.parametrize(
    ("path", "wrong"),
    [
        (
            ("name",),
            [
                "",
                ".",
                "..",
                "../x",
                "a/b",
                "a\\b",
                ".x",
                "-x",
                "a b",
                "x\n",
                "é",
                "a\x00",
                "x" * 101,
                "CON",
                "nul.x",
                "a.",
            ],
        ),
        (("seed",), [-1, 2**32]),
        (("repeats",), [0, -1]),
        (("phases",), [[]]),
        (("image", "size"), [15, 0, -128]),
        (("image", "resize"), ["stretch", ""]),
        (("split", "seed"), [-1, 2**32]),
        (("split", "validation"), [0.0, 1.0, -0.1, 0.8]),
        (("split", "test"), [0.0, 1.0, -0.1, 0.8]),
        (("split", "folds"), [1, -1]),
        (("split", "per_class"), [-1]),
        (("model", "backbone"), [""]),
        (("model", "hidden"), [[0], [64, -1]]),
        (("model", "dropout"), [1.0, -0.1]),
        (("augment", "rotate"), [-1.0, 181.0]),
        (("augment", "shift"), [-0.1, 1.1]),
        (("augment", "zoom"), [-0.1, 1.0]),
        (("augment", "brightness"), [-0.1, 1.1]),
        (("augment", "contrast"), [-0.1, 1.1]),
        (("augment", "saturation"), [-0.1, 1.1]),
        (("augment", "transpose"), [0, 1]),
        (("augment", "p_geometric"), [-0.1, 1.1]),
        (("augment", "p_colour"), [-0.1, 1.1]),
        (("augment", "fill"), ["wrap", ""]),
        (("augment", "distort"), [{}, "elastic", True]),
        (("augment", "distort", "p"), [-0.1, 1.1]),
        (("augment", "distort", "optical"), [-0.1, 1.1]),
        (("augment", "distort", "grid"), [-0.1, 1.1]),
        (("augment", "distort", "grid_steps"), [-1, 0, 1, 33]),
        (("augment", "distort", "elastic"), [-0.1, 0.6]),
        (("augment", "distort", "elastic_cells"), [-1, 0, 33]),
        (("augment", "hsv", "p"), [-0.1, 1.1]),
        (("augment", "hsv", "hue"), [-1.0, 181.0]),
        (("augment", "hsv", "saturation"), [-0.1, 1.1]),
        (("augment", "hsv", "value"), [-0.1, 1.1]),
        (("augment", "blur_noise", "p"), [-0.1, 1.1]),
        (("augment", "blur_noise", "motion"), [-1, 1, 2, 4, 9]),
        (("augment", "blur_noise", "median"), [-3, 1, 6, 9]),
        (("augment", "blur_noise", "gaussian"), [-5, 1, 4, 9]),
        (("augment", "blur_noise", "noise"), [[], [5.0], [30.0, 5.0], [-1.0, 5.0], [1.0, 2.0, 3.0], 5.0]),
        (("augment", "clahe", "p"), [-0.1, 1.1]),
        (("augment", "clahe", "clip"), [0.0, 0.9, 257.0]),
        (("augment", "clahe", "tiles"), [0, -1, 17]),
        (("augment", "cutout", "p"), [-0.1, 1.1]),
        (("augment", "cutout", "side"), [-0.1, 1.1]),
        (("grow", "augment", "clahe", "clip"), [0.0]),
        (("grow", "target_fraction"), [0.0, 1.1]),
        (("grow", "max_copies"), [0]),
        (("phases", 0, "epochs"), [0, -1]),
        (("phases", 0, "train_backbone"), ["some", 0, -1, 1.0]),
        (("phases", 0, "head_lr"), [-1e-3]),
        (("phases", 0, "backbone_lr"), [-1e-3]),
        (("phases", 0, "views"), [-1]),
        (("phases", 0, "patience"), [-1]),
        (("optim", "momentum"), [1.0, -0.1]),
        (("optim", "weight_decay"), [-0.1]),
        (("optim", "label_smoothing"), [1.0, -0.1]),
        (("optim", "batch_size"), [0, -1]),
    ],
    ids=lambda item: names(item) if isinstance(item, tuple) else "",
)
def test_a_value_out_of_range_is_refused(path: tuple[Any, ...], wrong: list[Any]) -> None:
    for item in wrong:
        with pytest.raises(UsageError, match=path[0]) as caught:
            room.parse_recipe(put(path, item), "mine.json")
        assert caught.value.exit_code == 2


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"scheme": "kfold", "folds": 2}, "kfold needs folds >= 3"),
        ({"scheme": "kfold", "folds": 0}, "kfold needs folds >= 3"),
        ({"scheme": "holdout", "test": 0.0}, "holdout needs a test fraction"),
        ({"scheme": "given"}, "test must be 0"),
        ({"scheme": "given-as-published"}, "test must be 0"),
        ({"validation": 0.5, "test": 0.5}, "leave something to train on"),
    ],
)
def test_a_split_that_contradicts_itself_is_refused(changes: dict[str, Any], why: str) -> None:
    split = example().split
    with pytest.raises(ValueError, match=why):
        replace(split, **changes)


@given(st.data())
def test_any_negative_number_is_refused(data: st.DataObject) -> None:
    numbers = [path for path in LEAVES if type(get(path)) in (int, float) and "backbone_args" not in path]
    path = data.draw(st.sampled_from(numbers))
    low = st.integers(max_value=-1) if type(get(path)) is int else st.floats(max_value=0, exclude_max=True)
    item = data.draw(low.filter(lambda number: number < 0))
    with pytest.raises(UsageError, match=str(path[0])):
        room.parse_recipe(put(path, item), "mine.json")


@given(recipes)
def test_a_recipe_survives_json(recipe: Recipe) -> None:
    again = room.parse_recipe(json.loads(json.dumps(room.recipe_to_dict(recipe))), "round trip")
    assert again == recipe
    assert room.recipe_fingerprint(again) == room.recipe_fingerprint(recipe)


def test_a_saved_recipe_is_loaded_whole(tmp_path: Path) -> None:
    path = tmp_path / "recipe.json"
    room.save_recipe(example(), path)
    assert json.loads(path.read_text())["format"] == formats.RECIPE_FORMAT
    assert room.load_recipe(path) == example()


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("{", "is not JSON"),
        ("[]", "no `format`"),
        ("{}", "no `format`"),
        ('{"format": true}', "no `format`"),
        ('{"format": 8}', "format 8"),
        ('{"format": 1, "seed": NaN}', "is not JSON: NaN is not a number"),
        ('{"format": 1}', "name: Field required"),
    ],
)
def test_a_file_that_is_no_recipe_is_refused(tmp_path: Path, text: str, why: str) -> None:
    path = tmp_path / "mine.json"
    path.write_text(text)
    with pytest.raises(UsageError, match=why) as caught:
        room.load_recipe(path)
    assert str(path) in caught.value.message and caught.value.remedy


def test_a_recipe_that_is_not_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"none\.json: cannot be read: No such file"):
        room.load_recipe(tmp_path / "none.json")


@pytest.mark.parametrize(
    ("place", "typo", "meant"),
    [
        ((), "sede", "seed"),
        ((), "phase", "phases"),
        (("image",), "sise", "size"),
        (("split",), "fold", "folds"),
        (("model",), "dropuot", "dropout"),
        (("augment",), "rotat", "rotate"),
        (("grow",), "max_copy", "max_copies"),
        (("grow", "augment"), "horizontal_flips", "horizontal_flip"),
        (("phases", 1), "epoch", "epochs"),
        (("optim",), "bach_size", "batch_size"),
    ],
)
def test_a_typo_is_named_with_the_closest_field(place: tuple[Any, ...], typo: str, meant: str) -> None:
    with pytest.raises(UsageError) as caught:
        room.parse_recipe(put((*place, typo), 1), "mine.json")
    assert caught.value.message == (
        f"mine.json: not a valid recipe:\n  {names((*place, typo))}: unknown field; did you mean `{meant}`?"
    )


def test_a_word_close_to_nothing_gets_no_guess() -> None:
    with pytest.raises(UsageError, match="zzzzzz: unknown field\n"):
        room.parse_recipe(put(("zzzzzz",), 1), "mine.json")


def test_every_problem_is_listed_at_once() -> None:
    value = put(("optim", "batch_size"), 0)
    value["sede"] = value.pop("seed")
    with pytest.raises(UsageError) as caught:
        room.parse_recipe(value, "mine.json")
    for part in ("optim.batch_size", "seed: Field required", "did you mean `seed`?"):
        assert part in caught.value.message


@pytest.mark.parametrize("path", LEAVES, ids=names)
def test_the_fingerprint_sees_every_field_but_prose_and_seed(path: tuple[Any, ...]) -> None:
    changed, unchanged = (
        room.parse_recipe(change(path), "changed"),
        on_features() if path in FEATURE_LEAVES else example(),
    )
    assert changed != unchanged
    same = room.recipe_fingerprint(changed) == room.recipe_fingerprint(unchanged)
    assert same == (path in PROSE)


def test_the_fingerprint_sees_absent_parts_and_order() -> None:
    recipe = example()
    different: list[Callable[[], Recipe]] = [
        lambda: recipe,
        lambda: replace(recipe, grow=None),
        lambda: replace(recipe, distil=DistilSpec(weight=0.5, temperature=1.0)),
        on_features,
        lambda: replace(on_features(), smote=None),
        lambda: replace(on_features(), model=recipe.model),
        lambda: replace(recipe, phases=recipe.phases[:1]),
        lambda: replace(recipe, phases=recipe.phases[::-1]),
        lambda: replace(recipe, model=replace(recipe.model, hidden=(32, 64))),
        lambda: replace(recipe, model=replace(recipe.model, backbone_args={})),
    ]
    assert len({room.recipe_fingerprint(make()) for make in different}) == len(different)


def test_the_fingerprint_sees_the_data() -> None:
    prints = [
        room.recipe_fingerprint(example(), **others)
        for others in ({}, {"manifest": "a"}, {"manifest": "b"}, {"split": "a"}, {"manifest": "a", "split": "b"})
    ]
    assert len(set(prints)) == len(prints)


def test_the_fingerprint_is_the_same_on_every_machine() -> None:
    assert room.recipe_fingerprint(example(), manifest="m", split="s") == "02945c3f6d29"


OF_FORMAT_1 = (
    "horizontal_flip", "vertical_flip", "rotate", "shift", "zoom", "brightness", "contrast", "saturation", "fill",
)  # fmt: skip


def underived() -> Recipe:
    """Return the example as a recipe that no command has changed, which is all that formats 1 to 3 had."""
    return replace(example(), derived_from=None)


ADDED_IN_FORMAT_5 = {
    "": ("smote", "distil", "test_views"),
    "model": ("drop_path", "classifier"),
    "optim": ("focal_gamma", "logit_adjustment", "warmup_epochs", "ema_decay"),
    "phases": ("layer_decay", "image_size"),
}


def in_format_6(recipe: Recipe) -> dict[str, Any]:
    """Return a recipe as format 6 spelled it: without images for batch norm."""
    value: dict[str, Any] = room.recipe_to_dict(recipe)
    del value["optim"]["batch_norm_images"]
    return value


def in_format_5(recipe: Recipe) -> dict[str, Any]:
    """Return a recipe as format 5 spelled it: without metadata."""
    value = in_format_6(recipe)
    del value["model"]["metadata"]
    return value


def in_format_4(recipe: Recipe) -> dict[str, Any]:
    """Return a recipe as format 4 spelled it: without what format 5 added."""
    value: dict[str, Any] = in_format_5(recipe)
    for group, added in ADDED_IN_FORMAT_5.items():
        for spec in value["phases"] if group == "phases" else [value[group] if group else value]:
            for name in added:
                del spec[name]
    return value


def in_format_2(recipe: Recipe, *, format: int = 2) -> dict[str, Any]:
    """Return a recipe as format 2 spelled it, written out by hand."""
    value: dict[str, Any] = {**in_format_4(recipe), "format": format}
    del value["derived_from"]
    for augment in (value["augment"], value["grow"]["augment"]):
        augment["moved"], augment["toned"] = augment.pop("p_geometric"), augment.pop("p_colour")
        for name in ("distort", "hsv", "blur_noise", "clahe", "cutout"):
            augment[name]["share"] = augment[name].pop("p")
    value["grow"]["to"] = value["grow"].pop("target_fraction")
    value["grow"]["most_copies"] = value["grow"].pop("max_copies")
    value["mix"]["share"] = value["mix"].pop("p")
    return value


def test_a_recipe_of_format_2_is_read_and_means_what_it_meant(tmp_path: Path) -> None:
    path = tmp_path / "recipe.json"
    path.write_text(json.dumps(in_format_2(example())))
    assert room.load_recipe(path) == underived()
    room.save_recipe(room.load_recipe(path), path)
    saved = json.loads(path.read_text())
    assert saved["format"] == 7 and saved["augment"]["p_geometric"] == example().augment.p_geometric
    assert room.load_recipe(path) == underived()


def test_a_recipe_is_hashed_by_the_names_of_format_2() -> None:
    """Run folders and cached features of before are found again only if these names stay."""
    today, before = in_format_4(example()), in_format_2(example())
    del before["format"], today["derived_from"]
    assert formats.recipe_with_format_2_names(today) == before
    assert formats.with_format_2_names(today["mix"]) == before["mix"]
    free = {**today, "model": {**today["model"], "backbone_args": {"p": 1.0}}}
    assert formats.recipe_with_format_2_names(free)["model"]["backbone_args"] == {"p": 1.0}


@pytest.mark.parametrize("place", [("augment",), ("augment", "hsv"), ("grow",), ("mix",)])
def test_old_and_new_names_side_by_side_are_refused_not_merged(place: tuple[str, ...], tmp_path: Path) -> None:
    old = in_format_2(example())
    spec = old
    for key in place:
        spec = spec[key]
    name, value = {
        "augment": ("p_colour", 0.1),
        "hsv": ("p", 0.1),
        "grow": ("max_copies", 2),
        "mix": ("p", 0.1),
    }[place[-1]]
    spec[name] = value
    path = tmp_path / "recipe.json"
    path.write_text(json.dumps(old))
    with pytest.raises(UsageError, match=names(place)):
        room.load_recipe(path)


def test_the_format_of_a_recipe_without_its_number_is_told_by_its_fields() -> None:
    """model.json holds a recipe without its number; an external evaluation writes it with one."""
    of_format_2 = in_format_2(example())
    of_format_1 = {name: value for name, value in of_format_2.items() if name not in ("compute", "mix")}
    of_format_7, of_format_6 = room.recipe_to_dict(example()), in_format_6(example())
    of_format_5 = in_format_5(example())
    of_format_4 = in_format_4(example())
    of_format_3 = {name: value for name, value in of_format_4.items() if name != "derived_from"}
    recipes = (of_format_1, of_format_2, of_format_3, of_format_4, of_format_5, of_format_6, of_format_7)
    assert [formats.format_of_recipe(recipe) for recipe in recipes] == [1, 2, 3, 4, 5, 6, 7]
    assert formats.migrate_recipe(of_format_2) == {**room.recipe_to_dict(underived()), "format": 7}
    assert formats.migrate_recipe({**of_format_3, "format": 3}) == {
        **room.recipe_to_dict(underived()),
        "format": 7,
    }
    for number, recipe in ((4, of_format_4), (5, of_format_5), (6, of_format_6)):
        assert formats.migrate_recipe({**recipe, "format": number}) == {**of_format_7, "format": 7}
    strange_recipes: list[dict[str, Any]] = [{"format": []}, {"format": 9}, {}]
    for strange in strange_recipes:
        assert formats.migrate_recipe(strange) == strange


def test_a_recipe_of_format_1_is_read_and_means_what_it_meant(tmp_path: Path) -> None:
    old = in_format_2(example(), format=1)
    del old["mix"], old["compute"], old["optim"]["sampling"]
    for place in (old, old["grow"]):
        place["augment"] = {name: place["augment"][name] for name in OF_FORMAT_1}
    path = tmp_path / "recipe.json"
    path.write_text(json.dumps(old))
    plain = replace(
        example().augment,
        p_geometric=1.0,
        p_colour=1.0,
        distort=None,
        hsv=None,
        blur_noise=None,
        clahe=None,
        cutout=None,
    )
    grow = example().grow
    assert grow
    assert room.load_recipe(path) == replace(
        underived(), mix=None, augment=plain, grow=replace(grow, augment=plain)
    )


@pytest.mark.parametrize("broken", [None, 3, "none", []])
def test_a_broken_recipe_of_format_1_is_refused_not_mended(tmp_path: Path, broken: Any) -> None:
    path = tmp_path / "recipe.json"
    for place in (("augment",), ("grow",), ("grow", "augment"), ("optim",)):
        if (place[-1], broken) in (("grow", None), ("augment", "none")):
            continue  # no growth is a recipe; a preset's name is one too
        path.write_text(json.dumps({"format": 1, **put(place, broken)}))
        with pytest.raises(UsageError, match=names(place)):
            room.load_recipe(path)


def test_runs_of_before_keep_their_names() -> None:
    """A recipe that format 4 could spell has the fingerprint that it had then: of its values of format 4 alone."""
    value = formats.recipe_with_format_2_names(in_format_4(example()))
    for name in ("about", "system", "seed", "repeats", "derived_from"):
        del value[name]
    assert room.recipe_fingerprint(example()) == fingerprint(value, {})
    assert "classifier" in formats.without_additions(room.recipe_to_dict(on_features()))["model"]


@pytest.mark.parametrize("broken", [None, 3, "none", [3], [None]])
@pytest.mark.parametrize("group", ["model", "optim", "phases"])
def test_a_broken_group_of_format_4_is_refused_not_mended(tmp_path: Path, group: str, broken: Any) -> None:
    path = tmp_path / "recipe.json"
    path.write_text(json.dumps({"format": 4, **in_format_4(example()), group: broken}))
    with pytest.raises(UsageError, match=group):
        room.load_recipe(path)


def of_features(**changes: Any) -> dict[str, Any]:
    """Return the plain form of the example on features with some parts replaced."""
    return {**room.recipe_to_dict(on_features()), **changes}


def test_parts_that_need_a_frozen_backbone_are_refused_without_one() -> None:
    trained = room.recipe_to_dict(example())["phases"]
    two_epochs = [{**room.recipe_to_dict(on_features())["phases"][0], "epochs": 2}]
    dense = room.recipe_to_dict(example())["model"]
    with pytest.raises(UsageError, match="smote makes features of a frozen backbone"):
        room.parse_recipe(of_features(phases=trained, model=dense), "x")
    for phases in (trained, two_epochs):
        with pytest.raises(UsageError, match=r"model\.classifier is fitted once"):
            room.parse_recipe(of_features(phases=phases, smote=None), "x")
    assert room.parse_recipe(of_features(model=dense, phases=two_epochs), "x").smote


def test_training_images_are_not_larger_than_those_of_validation() -> None:
    with pytest.raises(UsageError, match=r"image_size is larger than image\.size"):
        room.parse_recipe(put(("phases", 1, "image_size"), 129), "x")


@pytest.mark.parametrize(("scheme", "folds", "is_valid"), [
    ("given", 0, True), ("given", 1, False), ("given", 2, True), ("given-as-published", 5, True),
    ("holdout", 1, False), ("holdout", 2, True), ("kfold", 2, False), ("kfold", 3, True),
])  # fmt: skip
def test_folds_of_a_scheme(scheme: str, folds: int, is_valid: bool) -> None:
    values: dict[str, Any] = {"scheme": scheme, "seed": 0, "validation": 0.2, "folds": folds, "per_class": 0}
    test = 0.2 if scheme == "holdout" else 0.0
    with nullcontext() if is_valid else pytest.raises(UsageError, match="folds"):
        assert room.parse_split_spec(**values, test=test, draw_from="").folds == folds


def test_mixing_of_nothing_is_refused() -> None:
    with pytest.raises(UsageError, match="mixup or cutmix must be above 0"):
        room.parse_recipe(put(("mix",), {"mixup": 0.0, "cutmix": 0.0, "p": 1.0}), "x")


def test_mixing_that_could_have_no_effect_is_refused() -> None:
    plain = put(("phases",), [{**room.recipe_to_dict(example())["phases"][0], "views": 0}])
    with pytest.raises(UsageError, match="mix has no effect"):
        room.parse_recipe(plain, "x")
    assert room.parse_recipe({**plain, "mix": None}, "x").mix is None
