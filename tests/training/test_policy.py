"""Training of policies: what is drawn, resumed bit for bit, and the command from end to end."""

from __future__ import annotations

import json
import shlex
import shutil
import signal
from dataclasses import replace
from pathlib import Path

import cv2
import h5py
import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from sparsewm.data import TokenCache, open_dataset
from sparsewm.errors import UserError
from sparsewm.model.checkpoint import load
from sparsewm.model.latent import Latent
from sparsewm.proposals.flow import PolicySizes
from sparsewm.proposals.inverse import InverseConfig
from sparsewm.proposals.latent import WEIGHTS, load_policy
from sparsewm.proposals.wam import WamConfig
from sparsewm.training.policy import train_policy
from sparsewm.training.policy_config import PolicyTrainConfig, changed, recorded
from sparsewm.training.state import read_state
from sparsewm.training.stretches import Stretches
from tests.cli.commands import call
from tests.data.tiny import write_dataset
from tests.model.tiny import tiny_encoder
from tests.training.tiny import make_model

SIZES = PolicySizes(8, (4, 4), 2, 4, 3)
TRAIN = (
    "train --env wall --dataset wall.h5 --encoder random --steps 2 --batch 4 --horizon 2 --model.width 24 "
    "--model.heads 2 --model.depth 1 --model.mlp 48 --distance-steps 0 --decoder-steps 0 "
    "--resolution 28 --groups 1 --output run"
)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a small dataset and a world model of it in run/checkpoint."""
    folder = tmp_path_factory.mktemp("policies")
    write_dataset(folder / "wall.h5", [14] * 12)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        code, _, err = call(TRAIN)
    assert code == 0, err
    return folder


@pytest.fixture
def here(place: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(place)
    return place


def config(place: Path, output: str, **changes: object) -> PolicyTrainConfig:
    usual = PolicyTrainConfig(
        env="wall",
        dataset=str(place / "wall.h5"),
        checkpoint=str(place / "run" / "checkpoint"),
        chunk=2,
        steps=6,
        batch=8,
        save_every=3,
        wam=WamConfig(24, 1, 2, 48, 16, tokens=2),
        output=place / output,
    )
    return replace(usual, **changes)  # type: ignore[arg-type]


def of_states(place: Path, output: str, **changes: object) -> PolicyTrainConfig:
    usual = InverseConfig(32, 2, 1, "state", reader_steps=60)
    return config(place, output, **{"kind": "inverse", "inverse": usual} | changes)


@pytest.mark.slow
def test_a_policy_that_is_told_the_state_is_resumed_to_the_last_bit(place: Path) -> None:
    """It looks once: a run that goes on takes what it has learned to see from its folder."""
    whole = train_policy(of_states(place, "told")).folder
    with pytest.raises(KeyboardInterrupt):
        train_policy(of_states(place, "told-again"), interrupting(4))
    resumed = train_policy(of_states(place, "told-again", resume=True)).folder
    one, two = (load_file(folder / WEIGHTS) for folder in (whole, resumed))
    assert any(name.startswith("bodies.reader.") for name in one)
    assert all(torch.equal(one[name], two[name]) for name in one)


@pytest.mark.slow
def test_it_looks_at_other_recordings_too(place: Path, tmp_path: Path) -> None:
    """Of a square that is darker than what is about it, the first recording has no frame."""
    other = write_dataset(tmp_path / "other.h5", [14] * 12, seed=50)
    with h5py.File(other, "r+") as file:
        file["pixels"][...] = 255 - file["pixels"][...]
    data, model, errors = open_dataset(other), load(place / "run" / "checkpoint"), []
    assert data.state is not None
    for name, more in (("one", ()), ("both", (str(other),))):
        usual = InverseConfig(32, 2, 1, "state", more, reader_steps=150)
        folder = train_policy(of_states(place, f"looks-at-{name}", inverse=usual)).folder
        told = load_policy(folder, model).bodies.told(model.encode(data.pixels[:60], data.proprio[:60]))
        errors.append(np.median(np.abs(told.numpy() - data.state[:60])))
    assert errors[1] < 0.05 < 0.15 < errors[0], "of places from 0 to 1"


@pytest.mark.slow
def test_the_state_is_told_by_the_encoders_own_tokens_where_the_model_keeps_less(here: Path) -> None:
    code, _, err = call(TRAIN.replace("--output run", "--output few --features 3 --pool 0.2"))
    assert code == 0, err
    usual = InverseConfig(32, 2, 1, "state", reader_steps=150)
    checkpoint = str(here / "few" / "checkpoint")
    done = train_policy(of_states(here, "few/inverse", inverse=usual, checkpoint=checkpoint))
    model, data = load(checkpoint), open_dataset(here / "wall.h5")
    policy = load_policy(done.folder, model)
    seen = model.encode(data.pixels[:60], data.proprio[:60])
    assert policy.sizes.given_dim == model.encoder.dim > model.config.token_dim == 3
    assert seen.given is not None and torch.equal(Latent.cat([seen[:20], seen[20:]]).given, seen.given)
    assert data.state is not None and policy.bodies.reader.token_mean.abs().max() > 0
    assert np.median(np.abs(policy.bodies.told(seen).numpy() - data.state[:60])) < 0.1
    wam = WamConfig(24, 1, 2, 48, 16, tokens=2, told=True)
    told = train_policy(config(here, "few/wam", kind="wam", wam=wam, checkpoint=checkpoint))
    assert load_policy(told.folder, model).sizes.given_dim == model.encoder.dim


@pytest.mark.slow
def test_a_wam_is_told_by_the_inverse_dynamics_beside_it(place: Path) -> None:
    wam = WamConfig(24, 1, 2, 48, 16, tokens=2, told=True)
    beside = place / "run" / "inverse"
    with pytest.raises(UserError, match="there is no policy 'inverse' of wall"):
        train_policy(config(place, "untold", kind="wam", wam=wam))
    train_policy(config(place, "run/inverse", kind="inverse"))
    with pytest.raises(UserError, match="reads tokens: train one that `reads` state, first"):
        train_policy(config(place, "untold", kind="wam", wam=wam))
    shutil.rmtree(beside)
    train_policy(of_states(place, "run/inverse"))
    done = train_policy(config(place, "told-wam", kind="wam", wam=wam))
    one, two = (load_file(folder / WEIGHTS) for folder in (beside, done.folder))
    same = [name for name in one if name.startswith("bodies.reader.")]
    assert same and all(torch.equal(one[name], two[name]) for name in same)
    model = load(place / "run" / "checkpoint")
    assert load_policy(done.folder, model).sizes.shown == ("x", "y")
    train_policy(config(place, "told-wam", kind="wam", wam=wam, resume=True))
    shutil.rmtree(beside)
    train_policy(replace(of_states(place, "run/inverse"), seed=1))
    with pytest.raises(UserError, match="holds a run with another inverse dynamics: give the same"):
        train_policy(config(place, "told-wam", kind="wam", wam=wam, resume=True))
    shutil.rmtree(beside)


def test_without_recorded_states_it_is_refused(place: Path, tmp_path: Path) -> None:
    stateless = write_dataset(tmp_path / "wall.h5", [14] * 12)
    with h5py.File(stateless, "r+") as file:
        del file["state"]
    with pytest.raises(UserError, match="no recorded states to learn from: give `reads` tokens"):
        train_policy(of_states(place, "stateless", dataset=str(stateless)))
    with h5py.File(stateless, "r+") as file:
        file["state"] = np.zeros((14 * 12, 3))
    with pytest.raises(UserError, match="wall names 2 numbers of a state, recorded are 3"):
        train_policy(of_states(place, "other", dataset=str(stateless)))
    looks = InverseConfig(32, 2, 1, "state", (str(stateless),))
    with pytest.raises(UserError, match="wall names 2 numbers of a state, recorded are 3"):
        train_policy(of_states(place, "looks", inverse=looks))


@pytest.mark.slow
def test_what_to_do_is_learned_without_pictures_and_telling_the_state_with_them(
    place: Path, tmp_path: Path
) -> None:
    seen = place / "wall.h5"
    with h5py.File(seen) as whole, h5py.File(tmp_path / "states.h5", "w") as blind:
        for name in whole:
            if name != "pixels":
                blind[name] = whole[name][:]
        blind["proprio"][...] = whole["state"][:]
        blind.attrs.update({**whole.attrs, "pictures": "none"})
    blind_data = str(tmp_path / "states.h5")
    for other in ({}, {"inverse": InverseConfig(32, 2, 1)}, {"kind": "wam", "inverse": InverseConfig()}):
        with pytest.raises(
            UserError, match="was recorded without pictures: it teaches what to do to a policy"
        ):
            train_policy(of_states(place, "blind", dataset=blind_data, **other))
    looks = replace(of_states(place, "blind").inverse, reader_data=(str(seen),))
    ours = train_policy(of_states(place, "blind", dataset=blind_data, inverse=looks))
    again = train_policy(of_states(place, "seen"))
    assert {*ours.metrics["validation"]} == {*again.metrics["validation"]}
    model = load(place / "run" / "checkpoint")
    about = load_policy(ours.folder, model).sizes
    assert about.felt == (0, 1) and not load_policy(again.folder, model).sizes.felt
    policies = [load_file(done.folder / WEIGHTS) for done in (ours, again)]
    readers = [[v for k, v in one.items() if k.startswith("bodies.reader.")] for one in policies]
    assert readers[0] and all(map(torch.equal, *readers)), "the reader learned from the same pictures"
    with pytest.raises(UserError, match="was recorded without pictures"):
        inverse = replace(looks, reader_data=(str(seen), blind_data))
        train_policy(of_states(place, "both", inverse=inverse))


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("reader_data", ("a.h5",)),
        ("reader_steps", 7),
        ("turned", True),
        ("free", ("x", "nonsense")),
        ("noise", 7.0),
    ],
)
def test_settings_of_a_policy_that_reads_the_state_are_refused_without_it(name: str, value: object) -> None:
    inverse = replace(InverseConfig(), **{name: value})  # type: ignore[arg-type]
    for env in (None, "wall", "granular"):
        with pytest.raises(UserError, match=f"`{name}` is of inverse dynamics that `reads` state: leave it"):
            PolicyTrainConfig(env=env, inverse=inverse)
    PolicyTrainConfig(inverse=replace(inverse, reads="state"))
    for env in ("pusht", "blockpush"):  # what is usual of an environment was not asked for
        usual = PolicyTrainConfig.of("inverse", env)
        replace(usual, inverse=replace(usual.inverse, reads="tokens"))


@pytest.mark.parametrize("still", [True, False])
def test_a_stretch_ends_at_its_goal(still: bool, tmp_path: Path) -> None:
    write_dataset(tmp_path / "data.h5", [5, 2, 9])
    data = open_dataset(tmp_path / "data.h5")
    tokens = TokenCache(data, tiny_encoder())
    model = make_model(data, tokens)
    stretches = Stretches(data, np.array([0, 1, 2]), 2, SIZES, longest=4, still=still, future=2)
    drawn = stretches.draw(np.random.default_rng(0), 300)
    episode = np.repeat([0, 1, 2], [5, 2, 9])
    ahead = drawn.goal - drawn.present
    assert (episode[drawn.goal] == episode[drawn.present]).all() and set(ahead) == {1, 2, 3, 4}
    assert set(drawn.present) == {0, 1, 2, 3, 5, *range(7, 15)}, "a last row has no action"
    assert (drawn.future == np.minimum(drawn.present[:, None] + [[4, 6]], drawn.goal[:, None])).all()
    batch = stretches.batch(drawn, tokens, model)
    raw = model.standardizer.raw_actions(batch["action"]).reshape(300, 6, 2).numpy()
    weight = batch["weight"].reshape(300, 6, 2).numpy()
    for i in range(300):
        taken = data.action[drawn.present[i] : drawn.goal[i]]
        np.testing.assert_allclose(raw[i, : len(taken)], taken, atol=1e-5)
        np.testing.assert_allclose(raw[i, len(taken) :], 0, atol=1e-5)
        assert (weight[i, : len(taken)] == 1).all() and (weight[i, len(taken) :] == still).all()
    wanted = model.standardizer.tokens(tokens.rows(drawn.future))
    assert torch.equal(batch["future"], wanted) and batch["present"].shape == (300, 16, 8)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["inverse", "wam"])
def test_an_interrupted_training_goes_on_bit_for_bit(kind: str, place: Path) -> None:
    whole = train_policy(config(place, f"{kind}-whole", kind=kind))
    half = config(place, f"{kind}-half", kind=kind)
    with pytest.raises(KeyboardInterrupt):
        train_policy(half, interrupting(4))
    with pytest.raises(UserError, match="holds a run already: `resume` it"):
        train_policy(half)
    with pytest.raises(UserError, match="holds a run with another batch, lr: give the same to resume it"):
        train_policy(replace(half, resume=True, batch=9, lr=0.1))
    resumed = train_policy(replace(half, resume=True))
    one, two = (load_file(done.folder / WEIGHTS) for done in (whole, resumed))
    assert one.keys() == two.keys() and all(torch.equal(one[name], two[name]) for name in one)
    metrics = [json.loads((done.folder / "metrics.json").read_text())["metrics"] for done in (whole, resumed)]
    shares = [[entry["validation"] for entry in part] for part in metrics]
    assert shares[0] == shares[1] and [entry["step"] for entry in metrics[0]] == [3, 6]
    assert cv2.imread(str(resumed.folder / "training.png")) is not None


@pytest.mark.slow
@pytest.mark.usefixtures("ctrl_c")
def test_a_training_that_is_asked_to_stop_keeps_its_last_step(place: Path) -> None:
    whole = train_policy(config(place, "asked-whole", kind="inverse"))
    asked = config(place, "asked", kind="inverse")
    with pytest.raises(KeyboardInterrupt):
        train_policy(asked, interrupting(2, asks=True))  # before anything was validated
    found = read_state(asked.output)
    assert found is not None and found[0]["step"] == 2
    with pytest.raises(UserError, match="a run of 2 steps, not validated yet: give more `steps`"):
        train_policy(replace(asked, resume=True, steps=1))
    resumed = train_policy(replace(asked, resume=True))
    one, two = (load_file(done.folder / WEIGHTS) for done in (whole, resumed))
    assert all(torch.equal(one[name], two[name]) for name in one)


class interrupting:
    """Progress that interrupts at a step of training, or as a user does."""

    def __init__(self, step: int, asks: bool = False) -> None:
        self.step, self.asks, self.label = step, asks, ""

    def __call__(self, label: str) -> interrupting:
        self.label = label
        return self

    def __enter__(self) -> interrupting:
        self.report = lambda done, *_: self._stop(done)
        return self.report  # type: ignore[return-value]

    def __exit__(self, *_: object) -> None:
        """Nothing."""

    def _stop(self, done: float) -> None:
        if self.label == "training" and done == self.step:
            if not self.asks:
                raise KeyboardInterrupt
            signal.raise_signal(signal.SIGINT)


SMALL = {
    "inverse": "--inverse.width 16 --inverse.heads 2 --inverse.depth 1",
    "wam": "--wam.width 24 --wam.heads 2 --wam.depth 1 --wam.mlp 48 --wam.action-width 16 --wam.tokens 2",
}


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["inverse", "wam"])
def test_from_the_command_to_a_plan(kind: str, here: Path) -> None:
    """Trained beside the world model, it is found by its name, alone and as candidates."""
    usual = f"train-policy --kind {kind} --env wall --dataset wall.h5 --checkpoint run/checkpoint"
    code, out, err = call(f"{usual} --steps 4 --batch 4 --chunk 2 --save-every 4 {SMALL[kind]}")
    assert code == 0, err
    assert f"policy in run/{kind}\n" in out and "with others' goals" in out
    (line,) = [line for line in out.splitlines() if line.startswith("plan with it: sparsewm ")]
    plan = "--max-steps 4 --run.no-video --run.no-imagine --cost.objective mse --candidates 4 --iterations 1"
    words = shlex.split(line.removeprefix("plan with it: sparsewm "))
    assert words == shlex.split(f"plan --env wall --proposals run/{kind} --checkpoint run/checkpoint")
    for output, more in (
        ("one", shlex.join(words[1:])),
        ("two", f"--env wall --checkpoint run/checkpoint --proposals {kind} --proposals.mode seed"),
        ("three", f"--env wall --checkpoint run/checkpoint --proposals {kind} --run.actor policy"),
    ):
        code, _, err = call(f"plan {more} {plan} --output {output}")
        assert code == 0, err
        found = json.loads((here / output / "results.json").read_text())
        assert found["encoder"]["name"] == "random" and found["checkpoint"] == "run/checkpoint"
    assert call(f"{usual} --steps 4 --batch 4 --chunk 2 --save-every 4 {SMALL[kind]} --resume")[0] == 0
    table = (
        f"eval --envs wall --policies {kind} --yardsticks policy --drops 0.5 --no-noise --no-vision-only "
        "--episodes 1 --timed 1 --max-steps 4 --cost.objective mse --no-mse --candidates 4 --iterations 1 "
        "--run.checkpoint run/checkpoint --output table"
    )
    code, out, err = call(table)
    assert code == 0, err
    rows = json.loads((here / "table" / "eval.json").read_text())["rows"]
    assert [row["selection"] for row in rows] == ["policy", "random"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("--kind invers --env wall", "unknown --kind 'invers'. Did you mean 'inverse'?"),
        ("--env wall --start run", "--start is of kind smolvla: leave it out for inverse"),
        ("--kind wam --env wall --wam.heads 5", "of a wam, width must be a multiple of 4 and of heads"),
        ("", "give an --env whose shipped world model is used, or the --checkpoint of another one"),
        ("--env wall --dataset nowhere.h5", "nowhere.h5"),
        ("--env pointmaze", "there is no data/pointmaze.h5: give a --dataset"),
        ("--env wall --dataset wall.h5 --steps 0", "--steps must be at least 1"),
        ("--env wall --dataset wall.h5 --lr 2", "--lr must be above 0 and below 1"),
        ("--env pusht --dataset wall.h5", "pusht"),
    ],
)
def test_what_cannot_be_trained_is_one_sentence(arguments: str, message: str, here: Path) -> None:
    before = {*here.rglob("*")}
    code, _, err = call(f"train-policy {arguments}")
    said = " ".join(err.split())
    assert code == 2 and message in said and said.startswith("error: ")
    assert {*here.rglob("*")} == before


def test_what_was_no_setting_when_a_run_began_has_its_default() -> None:
    now, before = recorded(PolicyTrainConfig()), recorded(PolicyTrainConfig())
    del before["smolvla"]["goal"], before["wam"], before["chunk"]
    assert changed(now, before) == []
    now["smolvla"]["goal"], now["chunk"], now["steps"] = False, 7, 9
    assert changed(now, before) == ["chunk", "smolvla"], "steps may differ"
