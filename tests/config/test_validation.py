"""Wrong values of a config are reported before training: with the key, the allowed values and what to type."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from omegaconf import DictConfig, OmegaConf

from attnmosaic.config.keys import check_parts
from attnmosaic.config.resolution import with_scale
from attnmosaic.config.validation import check
from attnmosaic.core.errors import UserError

SUM = "experiment=mnist_sum"
VALUES = {
    ("lr.what=0",): r"lr\.what: got 0\.0, needs a number above 0; type for example lr\.what=0\.01",
    ("lr.where=-1",): r"lr\.where: got -1\.0, needs",
    ("lr.where=nan",): r"lr\.where: got nan, needs",
    ("schedule.k=0",): r"schedule\.k: got 0, needs a whole number of at least 1",
    ("schedule.epochs=-5",): r"schedule\.epochs: got -5, needs",
    ("schedule.order=what_first",): r"schedule\.order: got 'what_first', allowed: what_then_where, .*did you mean",
    ("data.batch_size=0",): r"data\.batch_size: got 0, needs",
    ("data.train_mosaics=2.5",): r"data\.train_mosaics: got 2\.5, needs a whole number",
    ("data.train_mosaics=1000000000000",): r"data\.train_mosaics: got \d+, needs a whole number",
    ("data.train_mosaics=2000000000",): r"data\.train_mosaics: got 2000000000, .* GB",
    ("data.points=2000000000",): r"data\.points: got 2000000000, .* GB",
    ("data.patches=1",): r"data\.patches: got 1, needs a whole number of at least 2",
    ("data.foreground=[]",): r"data\.foreground: got \[\], needs at least two classes",
    ("data.foreground=3",): r"data\.foreground: got 3, needs a list",
    ("data.foreground=[1,1]",): r"data\.foreground: got \[1, 1\], .*twice",
    ("data.foreground=[1,12]",): r"data\.foreground: got class index 12, allowed: 0 to 9",
    ("data.background=[2,3]",): r"data\.background: .*data\.foreground \(2\)",
    ("data.background=[]",): r"data\.background: got no class",
    ("data.variance=0",): r"data\.variance: got 0, needs",
    ("data=gaussian_type1", "data.means=[[0,0],[1]]"): r"data\.means: got .*, needs three",
    ("data=cifar10", "data.foreground=[hose,ship]"): r"data\.foreground: got class 'hose'.*did you mean horse",
    ("data=cifar10", "data.classes=[1,2,3]"): r"data\.classes: got \[1, 2, 3\], needs .*in quotes",
    ("data=cifar10", "data.classes=[cat,true]"): r"data\.classes: got ",
    ("data=cifar10", "data.classes=cat"): r"data\.classes: got cat, ",
    ("data=cifar10", "data.foreground=[[horse],ship]"): r"data\.foreground: got .*, needs a list",
    ("data=digits", "data.std=0"): r"data\.std: got 0, needs a number above 0",
    ("data=digits", "data.mean=abc"): r"data\.mean: got abc, needs a number",
    ("precision=float46",): r"precision: got 'float46', allowed: float32, float64.*did you mean precision=float64",
    ("progress=quite",): r"progress: got 'quite', allowed: auto, live, lines, quiet; did you mean progress=quiet\?",
    ("optimized_metric=test/acuracy",): r"optimized_metric: .*did you mean optimized_metric=test/accuracy",
    ("optimized_metric=test/sum_accuracy",): r"optimized_metric: .*did you mean optimized_metric=\w+/accuracy",
    ("seed.all=-1",): r"seed\.all: got -1, needs",
    ("seed.init=99999999999999999999",): r"seed\.init: got \d+, needs .*2\^63",
    ("objective.entropy=2",): r"objective\.entropy: got 2, needs",
    ("compute.cache_gb=-1",): r"compute\.cache_gb: got -1\.0, needs",
    ("ckpt_path=nowhere.ckpt",): r"ckpt_path: 'nowhere\.ckpt' does not exist",
    ("scale=smoke", "data.train_mosaics=abc"): r"data\.train_mosaics: got abc, needs",
    ("+trainer.val_check_interval=0.3",): r"trainer\.val_check_interval: got 0\.3, needs 1\.0",
    ("+trainer.deterministic=maybe",): r"trainer\.deterministic: got maybe, needs",
    ("trainer.devices=2",): r"trainer\.devices: got 2, .*type trainer=ddp trainer\.devices=2",
    # One network with two outputs.
    (SUM, "optimized_metric=test/accuracy"): r"optimized_metric: .*allowed: .*test/digit_accuracy",
    (SUM, "data.operation=sun"): r"data\.operation: got 'sun', allowed: sum, product; did you mean",
    (SUM, "data.train_images=0"): r"data\.train_images: got 0, needs",
    (SUM, "data.redraw=2"): r"data\.redraw: got 2, needs true or false; type .*data\.redraw=true",
    (SUM, "lr.network=0"): r"lr\.network: got 0\.0, needs",
    (SUM, "optimizer.microbatches=2"): r"optimizer\.microbatches: got 2, .*microbatches=null",
    (SUM, "schedule=what_then_where"): r"schedule\.order: got what_then_where, .*schedule=joint",
    (SUM, "model=cnn"): r"model: got a where/what pair, but .*type experiment=mnist_sum or",
    (SUM, "+model.where._target_=x"): r"model\.where: .*pair or model\.network",
    ("data=digits_and_number",): r"model: got a where/what pair, but these data are images with a number",
    ("model=sum_net",): r"model\.network: needs images .*type data=digits_and_number",
    # Nodes and sections.
    ("model.where=null",): r"model\.where: required; type for example model=mlp",
    ("+callbacks.mine=3",): r"callbacks\.mine: got 3, needs a _target_",
    ("~callbacks.cycle._target_",): r"callbacks\.cycle: got .*, needs a _target_ .*see conf/callbacks",
    ("callbacks.tables._target_=[]",): r"callbacks\.tables\._target_: got \[\], needs the name",
    ("model.what._target_=0.5",): r"model\.what\._target_: got 0\.5, needs the name",
    ("+model.what._partial_=7",): r"model\.what\._partial_: got 7, needs true or false",
    ("+data.views.x.weights.new={}",): r"data\.views\.x: got .*, needs .*split.*weights",
    ("+data.views={x: {split: train, weights: 3}}",): r"data\.views\.x\.weights: got 3, needs a _target_",
    ("+data/weights=fixed", "schedule=joint"): r"data\.weights: .*fixed .*type schedule=what_only",
    ("~progress",): r"progress: required; remove '~progress'",
    ("~trainer",): r"trainer: required",
    ("+at_most.data.points=x",): r"at_most\.data: got .*, needs ",
    ("+at_most.data.nonsense=3",): r"at_most\.data: got .*, needs ",
}


def checked(config: DictConfig) -> None:
    """Checks a config in the same way as the command."""
    check_parts(config)
    check(with_scale(config))


@pytest.mark.parametrize("overrides", VALUES, ids=" ".join)
def test_wrong_value_is_a_user_error(config: Callable[..., DictConfig], overrides: tuple[str, ...]) -> None:
    with pytest.raises(UserError, match=f"^{VALUES[overrides]}"):
        checked(config(*overrides, small=False))


def test_text_instead_of_a_section_is_a_user_error(config: Callable[..., DictConfig]) -> None:
    """For example the result of an interpolation in a user's file."""
    config_without_section = config()
    OmegaConf.update(config_without_section, "model", "${name}")
    with pytest.raises(UserError, match=r"^model: got gaussian, needs a section"):
        checked(config_without_section)


def test_unusual_values_are_accepted(config: Callable[..., DictConfig]) -> None:
    """Null, a list with a number for each channel, and a key of a custom data module."""
    allowed = ("optimizer.clip_norm=null", "+trainer.deterministic=warn", "+trainer.benchmark=null", "+data.mine=x")
    checked(config(*allowed))
    checked(config("data=digits", "data.std=[0.5]", "data.foreground=[1,2]"))


FOLDERS = {
    ("data.root=pets",): r"data\.foreground: .*\(bird, cat, dog\).*data\.foreground=\[bird,cat\]",
    ("data.root=missing", "data.foreground=[a,b]"): r"data\.root: 'missing' does not exist",
    ("data.root=empty", "data.foreground=[a,b]"): r"data\.root: 'empty' has no folders",
    ("data.root=3", "data.foreground=[a,b]"): r"data\.root: got 3, needs .*in quotes",
    ("data.root=pets", "data.foreground=[cat,dgo]"): r"data\.foreground: .*'dgo', allowed: bird, cat, dog.*mean dog",
    ("data.root=split", "data.foreground=[a,b]"): r"data\.root: .*different class folders \(b, c\)",
    ("data.root=numbers", "data.foreground=[1,2]"): r"data\.foreground: got 1, .*ambiguous",
    ("data.root=words", "data.foreground=[true,false,unsure]"): (
        r"""data\.foreground: .*'data\.foreground=\["true","false","unsure"\]'$"""
    ),
    ("data.root=words", 'data.foreground=["true",unsure]', "data.background=[false]"): (
        r"""data\.background: .*'data\.background=\["false"\]'$"""
    ),
}


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Creates image folders with one empty image file in each class."""
    folder = tmp_path_factory.mktemp("folders")
    (folder / "empty").mkdir()
    for name in (
        *("pets/cat", "pets/dog", "pets/bird", "split/train/a", "split/train/b", "split/test/a", "split/test/c"),
        *("numbers/1", "numbers/2", "numbers/3", "words/false", "words/other", "words/true", "words/unsure"),
    ):
        (folder / name).mkdir(parents=True)
        (folder / name / "image.png").touch()
    return folder


@pytest.mark.parametrize("overrides", FOLDERS, ids=" ".join)
def test_wrong_image_folder_is_a_user_error(
    config: Callable[..., DictConfig], folders: Path, monkeypatch: pytest.MonkeyPatch, overrides: tuple[str, ...]
) -> None:
    monkeypatch.chdir(folders)
    with pytest.raises(UserError, match=f"^{FOLDERS[overrides]}"):
        checked(config("data=image_folder", *overrides))


NOT_INSTANTIATED = {
    ("model.where._target_=attnmosaic.nn.networks.MPL",): r"model\.where\._target_: .*networks\.MLP\?",
    ("model.where._target_=no.such.Net",): r"model\.where\._target_: .*'no\.such\.Net'",
    ("model.what._target_=abc",): r"model\.what\._target_: .*'abc'",
    ("model=cnn",): r"model\.where: .*ConvNet .*in_shape=\(2,\)",
    ("model.where._target_=helpers.user_code.MyWhere", "+model.where.depth=3"): (
        r"model\.where: helpers\.user_code\.MyWhere cannot be built with depth=3, .*; remove model\.where\.depth"
    ),
    ("model=cnn", "data=digits", "model.where._target_=attnmosaic.nn.networks.MLP"): (
        r"model\.where: .*MLP .*'hidden'.*type \+model\.where\.hidden=VALUE"
    ),
    ("data=digits", "model=cnn", "model.where._target_=helpers.user_code.MyWhere"): (
        r"model\.where: helpers\.user_code\.MyWhere .*\(1, 8, 8\)"
    ),
    ("model.what._target_=torch.nn.Flatten", "~model.what.hidden"): r"model\.what: .*\(2,\) .*needs .*\(3,\)",
    ("+data.bogus=1",): r"data: .*bogus.*; remove data\.bogus",
    (
        "experiment=stagewise",
        "data.train_set._target_=helpers.user_code.TinyCifar10",
        "data.test_set._target_=helpers.user_code.TinyCifar10",
        "+data.train_set.bogus=1",
    ): r"data\.train_set: TinyCifar10 got an unexpected keyword argument 'bogus'",
    ("+objective.foo=1",): r"objective: .*foo",
    ("scheduler.what=foo",): r"scheduler\.what: got foo, needs a _target_",
    ("trainer.accelerator=gpu",): r"trainer\.accelerator: got gpu, .*trainer\.accelerator=cpu",
    ("+trainer.bogus=1",): r"trainer: .*bogus",
    ("optimizer.what.momentum=-1",): r"optimizer\.what: .*momentum",
    (
        "experiment=stagewise",
        "data.train_set._target_=helpers.user_code.NoDownload",
        "data.test_set._target_=helpers.user_code.NoDownload",
    ): r".*downloaded.*\(Tempor",
}


@pytest.mark.parametrize("overrides", NOT_INSTANTIATED, ids=" ".join)
def test_part_that_cannot_be_instantiated_is_a_user_error(
    train: Callable[..., Any], tmp_path: Path, overrides: tuple[str, ...]
) -> None:
    with pytest.raises(UserError, match=f"^{NOT_INSTANTIATED[overrides]}"):
        train(*overrides)
    assert not list(tmp_path.rglob("*.ckpt"))
    assert not list(tmp_path.rglob("result.json"))
