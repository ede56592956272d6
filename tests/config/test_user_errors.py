"""A user's slip: one line that says what to type instead, exit code 2, before anything heavy is imported."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from helpers.commands import Cli, check_line
from helpers.fresh_process import LARGE, answers
from helpers.settings import SMALL

pytestmark = pytest.mark.runs

LIGHT = {
    ("experiment=stagwise",): r"experiment: got 'stagwise', allowed: .*stagewise.*did you mean experiment=stagewise",
    (
        "experiment=gradients/jint",
    ): r"experiment: got 'gradients/jint', allowed: .*did you mean experiment=gradients/joint",
    ("experiment=gradients",): r"experiment: got 'gradients', allowed: gaussian, .*gradients/joint, gradients/type1",
    ("schedule=what_first",): r"schedule: got 'what_first', allowed: joint, .*what_then_where",
    ("expirement=stagewise",): r"expirement: there is no such config key; did you mean experiment",
    ("lr.wat=1",): r"lr\.wat: there is no such config key; did you mean lr\.what",
    ("data.patchs=4", "data=digits"): r"data\.patchs: there is no such config key; did you mean data\.patches",
    ("lr.what=abc",): r"lr\.what: Value 'abc' of type 'str' could not be converted to Float",
    ("lr.what=0",): r"lr\.what: got 0\.0, needs a number above 0; type for example lr\.what=0\.01",
    ("lr.where=-1",): r"lr\.where: got -1\.0, needs",
    ("lr.where=nan",): r"lr\.where: got nan, needs",
    ("schedule.k=0",): r"schedule\.k: got 0, needs a whole number of at least 1",
    ("schedule.epochs=-5",): r"schedule\.epochs: got -5, needs",
    ("schedule.order=what_first",): r"schedule\.order: got 'what_first', allowed: what_then_where, .*did you mean",
    ("data.batch_size=0",): r"data\.batch_size: got 0, needs",
    ("data.train_mosaics=2.5",): r"data\.train_mosaics: got 2\.5, needs a whole number",
    ("data.held_out_mosaics=0",): r"data\.held_out_mosaics: got 0, needs",
    ("data.patches=1",): r"data\.patches: got 1, needs a whole number of at least 2",
    ("data.foreground=[]",): r"data\.foreground: got \[\], needs at least two classes",
    ("data.foreground=3",): r"data\.foreground: got 3, needs a list of class names",
    ("data.foreground=[1,1]",): r"data\.foreground: got \[1, 1\], which names a class twice",
    ("data.foreground=[1,12]",): r"data\.foreground: got class index 12, allowed: 0 to 9",
    ("data.background=[2,3]",): r"data\.background: 2 is also in data\.foreground",
    ("data.background=[]",): r"data\.background: got no class",
    ("data=cifar10", "data.foreground=[hose,ship]"): r"data\.foreground: got class 'hose'.*did you mean horse",
    ("data.foreground=[1,2",): r"data\.foreground=\[1,2: is not a valid override",
    ("precision=float46",): r"precision: got 'float46', allowed: float32, float64.*did you mean precision=float64",
    ("experiment=mnist_sum", "optimized_metric=test/accuracy"): r"optimized_metric: .*allowed: .*test/digit_accuracy",
    ("optimized_metric=test/sum_accuracy",): r"optimized_metric: .*did you mean optimized_metric=\w+/accuracy",
    ("experiment=mnist_sum", "data.operation=sun"): r"data\.operation: got 'sun', allowed: sum, product; did you mean",
    ("experiment=mnist_sum", "data.train_images=0"): r"data\.train_images: got 0, needs a whole number of at least 1",
    ("experiment=mnist_sum", "data.redraw=2"): r"data\.redraw: got 2, needs true or false; type .*data\.redraw=true",
    ("experiment=mnist_sum", "lr.network=0"): r"lr\.network: got 0\.0, needs a number above 0",
    ("experiment=mnist_sum", "optimizer.microbatches=2"): r"optimizer\.microbatches: got 2, .*microbatches=null",
    ("experiment=mnist_sum", "schedule=what_then_where"): r"schedule\.order: got what_then_where, .*schedule=joint",
    ("experiment=mnist_sum", "model=cnn"): r"model: got a where/what pair, but .*type experiment=mnist_sum or",
    ("data=digits_and_number",): r"model: got a where/what pair, but these data are images with a number",
    ("model=sum_net",): r"model\.network: takes images with a number, .*type data=digits_and_number",
    ("experiment=mnist_sum", "+model.where._target_=x"): r"model\.where: a run trains a pair or model\.network, not",
    ("experiment=mnist_sum", "model.where._target_=x"): r"model\.where\._target_: there is no such config key",
    ("model.network._target_=x",): r"model\.network\._target_: there is no such config key",
    ("model.where=null",): r"model\.where: has no value and needs one; type for example model=mlp",
    ("experiment=mnist_sum", "data.patches=4"): r"data\.patches: there is no such config key",
    ("optimized_metric=test/acuracy",): r"optimized_metric: .*did you mean optimized_metric=test/accuracy",
    ("scale=smoke", "data.train_mosaics=abc"): r"data\.train_mosaics: got abc, needs a whole number",
    ("progress=quite",): r"progress: got 'quite', allowed: auto, live, lines, quiet; did you mean progress=quiet\?",
    ("+model.attention=a,b", "-m"): r"model\.attention: got a, but nothing reads this key, allowed: model\.where",
    ("progress=loud", "seed.all=0,1", "-m"): r"progress: got 'loud', allowed: auto, live, lines, quiet",
    ("seed.all=-1",): r"seed\.all: got -1, needs",
    ("seed=1",): r"seed: is a section of keys; type seed\.all=1",
    ("lr.what=0.1,0.2",): r"lr\.what.*add -m to run one job for each value",
    ("stagewise",): r"stagewise: an override is key=value, experiment=stagewise say",
    ("logger=null",): r"logger=null: a group takes the name of a file.*logger=none",
    ("data=digits", "data.std=0"): r"data\.std: got 0, needs a number above 0",
    ("data=digits", "data.mean=abc"): r"data\.mean: got abc, needs a number",
    ("+trainer.val_check_interval=0.3",): r"trainer\.val_check_interval: got 0\.3, needs 1\.0",
    ("data=image_folder", "data.root=split", "data.foreground=[a,b]"): r"hold different classes \(b, c\)",
    ("data=image_folder", "data.root=numbers", "data.foreground=[1,2]"): r"1 may be the class named '1' or .*index 1",
    ("data=image_folder", "data.root=words", "data.foreground=[true,false,unsure]"): (
        r"""data\.foreground: true may be the class named 'true'; .*'data\.foreground=\["true","false",unsure\]'"""
    ),
    ("data=image_folder", "data.root=words", 'data.foreground=["true",unsure]', "data.background=[false]"): (
        r"""data\.background: false may be .*'data\.background=\["false"\]'"""
    ),
    ("--config-dir=own", "experiment=zeros", "data.root=zeros"): (
        r"""data\.foreground: 1 may be the class named '01' or the class at index 1, '02'; .*=\["01","02"\]'"""
    ),
    ("data=cifar10", "data.classes=[1,2,3]"): r"data\.classes: got \[1, 2, 3\], needs a list of class names, in quotes",
    ("data=cifar10", "data.foreground=[[horse],ship]"): r"data\.foreground: got .*, needs a list of class names",
    (
        "+model.attention=sparsemax",
    ): r"model\.attention: got sparsemax, but nothing reads this key, allowed: model\.where",
    ("model.attention=sparsemax",): r"model\.attention: there is no such config key.*\(--cfg job shows them all\)$",
    ("objective.entrpy=1",): r"objective\.entrpy: .*did you mean objective\.entropy.* an argument of its _target_\)$",
    ("+schedule.x=1",): r"schedule\.x: got 1, but nothing reads this key, allowed: schedule\.order, schedule\.k, sch",
    ("+x=3",): r"x: got 3, but nothing reads this key",
    ("+at_most.data.nonsense=3",): r"at_most\.data\.nonsense: got 3, but data has no such count",
    ("ckpt_path=nowhere.ckpt",): r"ckpt_path: 'nowhere\.ckpt' does not exist",
    ("data=image_folder",): r"data\.\w+: has no value and needs one; type data\.\w+=",
    ("data=image_folder", "data.root=pets"): r"data\.foreground: .*\(bird, cat, dog\).*data\.foreground=\[bird,cat\]",
    ("data=image_folder", "data.root=nowhere", "data.foreground=[a,b]"): r"data\.root: 'nowhere' does not exist",
    ("data=image_folder", "data.root=empty", "data.foreground=[a,b]"): r"data\.root: 'empty' holds no folders",
    ("data=image_folder", "data.root=pets", "data.foreground=[cat,dgo]"): r"class 'dgo', allowed: bird, cat, dog.*dog",
}


@pytest.fixture(scope="module")
def told(tmp_path_factory: pytest.TempPathFactory) -> dict[tuple[str, ...], tuple[int, str, list[str]]]:
    """Runs every light slip in one fresh process."""
    folder = tmp_path_factory.mktemp("slips")
    (folder / "empty").mkdir()
    for name in (
        *("pets/cat", "pets/dog", "pets/bird", "split/train/a", "split/train/b", "split/test/a", "split/test/c"),
        *("numbers/1", "numbers/2", "numbers/3", "words/false", "words/other", "words/true", "words/unsure"),
        *("zeros/01", "zeros/02", "zeros/03"),
    ):
        (folder / name).mkdir(parents=True)
        (folder / name / "image.png").touch()
    (folder / "own" / "experiment").mkdir(parents=True)
    (folder / "own" / "experiment" / "zeros.yaml").write_text(
        "# @package _global_\ndefaults: [override /data: image_folder]\nname: zeros\ndata: {foreground: [01, 02]}\n"
    )
    return dict(zip(LIGHT, answers("train", LIGHT, folder, (*LARGE, "numpy")), strict=True))


@pytest.mark.parametrize("arguments", LIGHT, ids=" ".join)
def test_light_slip(told: dict[tuple[str, ...], tuple[int, str, list[str]]], arguments: tuple[str, ...]) -> None:
    code, err, heavy = told[arguments]
    check_line(code, err, LIGHT[arguments])
    assert heavy == []


HEAVY = {
    ("model.where._target_=attnmosaic.nn.networks.MPL",): r"model\.where\._target_: cannot import .*networks\.MLP\?",
    ("model.where._target_=no.such.Net",): r"model\.where\._target_: cannot import 'no\.such\.Net'",
    ("model=cnn",): r"model\.where: .*ConvNet cannot be built with .*in_shape=\(2,\).* choose another model",
    ("model.where._target_=helpers.user_code.MyWhere", "+model.where.depth=3"): (
        r"model\.where: helpers\.user_code\.MyWhere cannot be built with depth=3, .*; leave out model\.where\.depth"
    ),
    ("model.where._target_=attnmosaic.nn.networks.ConvNet",): r"model\.where: .*ConvNet cannot be built with in_shape",
    ("model=cnn", "data=digits", "model.where._target_=attnmosaic.nn.networks.MLP"): (
        r"model\.where: .*MLP cannot be built .*'hidden'.*type \+model\.where\.hidden=VALUE"
    ),
    ("data=digits", "model=cnn", "model.where._target_=helpers.user_code.MyWhere"): (
        r"model\.where: helpers\.user_code\.MyWhere does not take patches of shape \(1, 8, 8\)"
    ),
    (
        "model.what._target_=torch.nn.Flatten",
        "~model.what.hidden",
    ): r"model\.what: .*\(2,\) outputs .*needs \(3,\)",
    ("trainer.devices=2",): r"trainer\.devices: got 2, a run uses one; type trainer=ddp trainer\.devices=2",
    ("+data.bogus=1",): r"data: .*bogus.*; leave out data\.bogus",
    (
        "experiment=stagewise",
        "data.train_set._target_=helpers.user_code.TinyCifar10",
        "data.test_set._target_=helpers.user_code.TinyCifar10",
        "+data.train_set.bogus=1",
    ): r"data\.train_set: TinyCifar10 got an unexpected keyword argument 'bogus'",
    ("+objective.foo=1",): r"objective: .*foo",
    ("scheduler.what=foo",): r"scheduler\.what: got foo, needs a _target_",
    ("trainer.accelerator=gpu",): r"trainer\.accelerator: got gpu, but PyTorch finds no GPU.*trainer\.accelerator=cpu",
    ("+trainer.bogus=1",): r"trainer: .*bogus",
    ("optimizer.what.momentum=-1",): r"optimizer\.what: .*momentum",
    (
        "experiment=stagewise",
        "data.train_set._target_=helpers.user_code.NoDownload",
        "data.test_set._target_=helpers.user_code.NoDownload",
    ): r"could not be downloaded \(Tempor",
}


@pytest.mark.parametrize("arguments", HEAVY, ids=" ".join)
def test_heavy_slip(cli: Cli, tmp_path: Path, arguments: tuple[str, ...]) -> None:
    code, _, err = cli("train", *arguments, "hydra.run.dir=run")
    check_line(code, err, HEAVY[arguments])
    assert err.removeprefix("error: ").strip() in (tmp_path / "run" / "train.log").read_text()
    assert not (tmp_path / "data").exists()
    assert not list(tmp_path.rglob("result.json"))


def test_evaluate_slips(cli: Cli, tmp_path: Path) -> None:
    check_line(*cli("evaluate", "ckpt_pth=no.ckpt")[::2], r"ckpt_pth: there is no such .*did you mean ckpt_path\?")
    check_line(*cli("evaluate")[::2], r"ckpt_path: has no value and needs one; type ckpt_path=outputs")
    check_line(*cli("evaluate", "ckpt_path=no.ckpt")[::2], r"ckpt_path: 'no\.ckpt' does not exist")
    (tmp_path / "text.ckpt").write_text("hello")
    check_line(*cli("evaluate", "ckpt_path=text.ckpt")[::2], r"'text\.ckpt' is no readable attnmosaic checkpoint")


@pytest.mark.parametrize(
    ("door", "added", "said"),
    [
        ("evaluate", "+x=3", r"x: got 3, but nothing reads this key, allowed: name, ckpt_path, data"),
        ("evaluate", "+compute.thread=1", r"compute\.thread: got 1, .*did you mean compute\.threads\?"),
        ("evaluate", "+paths.x=1", r"paths\.x: got 1"),
        ("explain", "+grids=3", r"grids: got 3, .*did you mean grid\?"),
        ("explain", "+paths.x=1", r"paths\.x: got 1"),
        ("predict", "+inverted=true", r"inverted: got True, .*did you mean invert\?"),
    ],
)
def test_a_key_that_another_command_does_not_read(cli: Cli, tmp_path: Path, door: str, added: str, said: str) -> None:
    (tmp_path / "some.ckpt").touch()
    arguments = {"explain": ["images=."], "predict": ["image=x.png", "number=5"]}.get(door, [])
    check_line(*cli(door, "ckpt_path=some.ckpt", *arguments, added)[::2], said)


def test_a_key_that_names_the_folder(cli: Cli, tmp_path: Path) -> None:
    """Hydra's own section may read it, too."""
    code, _, err = cli("train", "+x=mine", "hydra.run.dir=runs/${x}", *SMALL, "schedule.k=1", "schedule.epochs=1")
    assert (code, err) == (0, "")
    assert (tmp_path / "runs" / "mine" / "result.json").exists()


def test_stack_trace_on_request(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "attnmosaic.train", "schedule.k=0"],
        cwd=tmp_path, capture_output=True, text=True, env=os.environ | {"HYDRA_FULL_ERROR": "1"},
    )  # fmt: skip
    assert done.returncode == 1
    assert "Traceback" in done.stderr
    assert "UserError: schedule.k" in done.stderr
