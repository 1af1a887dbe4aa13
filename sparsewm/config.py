"""How a world model is planned in: one tree of settings, the only source of every default.

The command line, the YAML files in `configs/environments`, `Agent` and the `settings` of results.json are
this tree. A file or a flag names what differs from it: ``--search.iterations 8``, or in YAML

    search: {iterations: 8}
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

from tyro.conf import arg

from sparsewm import envs
from sparsewm.envs.looks import Look
from sparsewm.errors import UserError, suggest
from sparsewm.planners import PLANNERS, ProposalMode
from sparsewm.trees import at_least, leaf_sections, merged, one_of, plain, read_yaml

Frame = Literal["last", "min"]
Resample = Literal["iteration", "plan", "episode"]
TokenSelection = Literal["random", "none"]
GoalSource = Literal["random", "trajectory"]
TaskSet = Literal["drawn", "validation", "test"]
Rule = Literal["arrival", "strict"]
Actor = Literal["planner", "oracle", "nothing", "random", "policy"]

NO_PROPOSALS = "none"
OWN_SAMPLER = "own"
"""Source of proposals where a sampler is handed over in Python."""

USUAL_ELITES = 8
"""Of a search that names none."""

_GIVEN = "the given settings"

EPISODES_PER_SEED = 100_000
"""Two seeds have no episode in common: those of seed s are s * EPISODES_PER_SEED and the following."""

SEEDS = 9_000
"""Seeds of an evaluation are below; those of recorded data are not held out from it otherwise."""


def usual(*names: str) -> Any:
    """Short flags of a setting that most people need."""
    return arg(aliases=tuple(f"--{name}" for name in names))


@dataclass(frozen=True)
class GoalConfig:
    """Where episodes start and what they are to reach."""

    source: GoalSource = "random"
    """random: as the environment draws them. trajectory: two moments of one held-out trajectory."""
    offset: int = 25
    """Environment steps between start and goal of a trajectory."""
    max_steps: Annotated[int, usual("max-steps")] = 100
    """Environment steps an episode may take."""
    tasks: TaskSet = "drawn"
    """drawn: with the seed. validation, test: frozen (`configs/tasks`), the same for every seed: the first to
    choose settings on, the second to report."""
    rule: Rule = "arrival"
    """Where an episode ends before its steps are spent: on arrival, or only at strict success, a goal still
    reached after three steps of doing nothing (PushT: within 10 px and 10 degrees). Results count both."""


@dataclass(frozen=True)
class SearchConfig:
    """How action sequences are searched for."""

    planner: Annotated[str, usual("planner")] = "cem"
    """cem, icem, mppi, gd, or module:Class of your own."""
    candidates: Annotated[int, usual("candidates")] = 64
    """Action sequences scored in an iteration."""
    elites: int | None = None
    """Candidates the distribution is refitted to (cem, icem); 8 when left out, half of the candidates where
    these are fewer than 16."""
    iterations: Annotated[int, usual("iterations")] = 5
    """Iterations of a plan."""
    horizon: Annotated[int, usual("horizon")] = 5
    """Model steps imagined."""
    execute: int = 5
    """Model steps executed before planning again; the whole horizon where that is shorter."""
    init_std: float = 1.0
    """Deviation of the first candidates, in deviations of the recorded actions."""
    action_repeat: bool = True
    """Plan one action per model step, held for its environment steps."""
    deadline_ms: float | None = None
    """Milliseconds from observation to actions: the search ends in time. Plans then depend on the machine."""


@dataclass(frozen=True)
class CostConfig:
    """What a candidate is scored by."""

    objective: str = "mse"
    """mse: squared error of tokens. temporal: learned number of steps to the goal. Or module:Class."""
    proprio_weight: float = 1.0
    """Weight of the proprioception error; 0 plans by vision alone."""
    frame: Frame = "last"
    """Imagined frame compared with the goal: the last, or the nearest of all (min), where execution stops."""


@dataclass(frozen=True)
class TokenConfig:
    """Which tokens are imagined, and which of these are compared with the goal (docs/howto/tokens.md)."""

    drop: Annotated[float, usual("drop")] = 0.5
    """Fraction dropped, at least 0 and below 1."""
    selection: TokenSelection = "random"
    """random, or none: proprioception alone is scored (a yardstick)."""
    resample: Resample = "iteration"
    """When another subset is drawn: at every iteration, plan or episode."""
    choose: str = "random"
    """random (as published), grid, attention, ranking, motion, goal, mixture, merge, drop_merge, grids, or
    module:Class of your own."""
    temperature: float = 1.0
    """Of a choice by scores: 0 keeps the highest, 1 draws in proportion, more is nearer to random."""
    cost: str = "all"
    """Imagined tokens that are compared with the goal: all, or a choice by scores, such as goal."""
    cost_drop: float = 0.5
    """Fraction of the imagined tokens that such a choice leaves out of the cost."""


@dataclass(frozen=True)
class ProposalConfig:
    """Action sequences that a policy proposes as candidates."""

    source: Annotated[str, usual("proposals")] = NO_PROPOSALS
    """none, inverse or wam (by sparsewm train-policy; inverse is included for PushT, Block Push, the cube
    and Meta-World's ten tasks), vla
    (included), a policy's folder, the hub name of one of LeRobot's, or module:name of your own."""
    mode: ProposalMode = "replace"
    """replace: score the proposals, take the best. seed: mix them into the first iteration. prior: search
    from a Gaussian fitted to them."""
    samples: int = 16
    """Proposals per plan."""
    instruction: str | None = None
    """What a language-conditioned policy is told; the environment's own text when left out."""
    names: Path | None = None
    """YAML file that maps a policy's cameras, states and actions (docs/howto/policy.md)."""
    action_steps: int = 4
    """Denoising steps of inverse's and wam's actions."""
    future_steps: int | None = None
    """Steps of wam's imagined future, which then stays as noisy as it is while actions go on; 0: it imagines
    none. As many as the actions' when left out."""
    ranked: int = 1
    """Candidates wam draws for each it proposes: it keeps those whose imagined futures come nearest to the
    goal."""


@dataclass(frozen=True)
class RunConfig:
    """What is run, on what, and what is written."""

    actor: Actor = "planner"
    """Who acts: planner; or a yardstick: oracle (plans in the true simulator), nothing, random, policy
    (executes the first proposal)."""
    episodes: Annotated[int, usual("episodes")] = 1
    """Episodes."""
    batch: int = 1
    """Episodes planned at once. Each draws its own random numbers; the others change nothing of it but the
    last bits of float32."""
    seed: Annotated[int, usual("seed")] = 0
    """Seed of tasks, candidates and dropped tokens."""
    checkpoint: Annotated[str | None, usual("checkpoint")] = None
    """Folder of a world model, or user/name on the hub; the shipped one when left out."""
    encoder: Annotated[str | None, usual("encoder")] = None
    """Encoder the checkpoint must have been trained on; without a checkpoint, the shipped one on it."""
    encoder_weights: Annotated[Path | None, usual("encoder-weights")] = None
    """Local weights file of the encoder."""
    hub_repo: Annotated[Path | None, usual("hub-repo")] = None
    """Local clone of the encoder's torch.hub repository."""
    letterbox: bool = False
    """Pad pictures of another aspect ratio than the training data's instead of refusing them."""
    look: Annotated[str, usual("look")] = ""
    """Another look than in the data, as KIND:DEGREE, several with commas (docs/howto/looks.md): background,
    object, size, light, shift, distractor, blur. Colours and places are drawn anew for each episode."""
    adapt: Annotated[bool, usual("adapt")] = False
    """Test-time adaptation: put pictures into the place and the colours of the background of the training
    data's mean picture, which a world model with a decoder has."""
    device: Annotated[str, usual("device")] = "auto"
    """auto, cpu, cuda, ...; several, as cuda:0,cuda:1, share the episodes."""
    dtype: str = "auto"
    """Precision of the predictor: auto (bfloat16 or float32, whichever is faster), bfloat16, float32, or
    int8 (rounded further, where the processor has it)."""
    memory_gb: float | None = None
    """Gigabytes that imagined candidates may take; more of them are imagined in parts."""
    video: bool = True
    """Write a video per episode."""
    imagine: bool = True
    """Show imagined frames, where the world model has a decoder."""
    landscape: Annotated[bool, usual("landscape")] = False
    """Draw the cost of a grid of first actions of the first episode, of all and of the kept tokens, beside
    the true distance: landscape.png, landscape.json."""
    output: Annotated[Path, usual("output")] = Path("runs/plan")
    """Folder of results.json, plan.png and the videos."""


@dataclass(frozen=True)
class PlanConfig:
    """Reach goals by model-predictive control in a world model.

    Writes results.json, a video per episode and plan.png.

    Example: sparsewm plan --env pusht --drop 0.5 --episodes 3
    """

    env: str = "pusht"
    """Environment: a name of sparsewm's or of a benchmark's, a Gymnasium id, or module:Class."""
    goal: GoalConfig = field(default_factory=GoalConfig)
    search: SearchConfig = field(default_factory=SearchConfig)
    cost: CostConfig = field(default_factory=CostConfig)
    tokens: TokenConfig = field(default_factory=TokenConfig)
    proposals: ProposalConfig = field(default_factory=ProposalConfig)
    run: RunConfig = field(default_factory=RunConfig)

    @classmethod
    def of(cls, env: str, max_steps: int | None = None, **sections: Any) -> PlanConfig:
        """The tree's defaults under an environment's own (`configs/environments`), where there are any.

        Args:
            env: its name. max_steps: of an episode; the environment's own when left out.
            sections: what goes on top, as in YAML.
        """
        env = envs.canonical(env)
        config = cls(env)
        if max_steps is None and env in envs.names():
            max_steps = envs.max_episode_steps(env)
        if max_steps is not None:
            config = replace(config, goal=replace(config.goal, max_steps=max_steps))
        path = environment_file(env)
        usual = read_yaml(path).get("plan", {}) if path.is_file() else {}
        return merged(merged(config, usual, str(path)), sections, _GIVEN)

    def updated(self, **settings: Any) -> PlanConfig:
        """The tree with other values, given by the name of a leaf, or by section as a mapping.

        >>> PlanConfig().updated(drop=0.3, search={"iterations": 8}).search.iterations
        8

        Raises:
            UserError: no setting is called so.
        """
        changes: dict[str, Any] = {}
        leaves, parts = leaf_sections(self), [part.name for part in fields(self)]
        for name, value in settings.items():
            if name == "proposals" and not isinstance(value, Mapping):
                value = {"source": value}
            if name in parts:
                changes[name] = changes.get(name, {}) | value if isinstance(value, Mapping) else value
            elif len(sections := leaves.get(name, [])) == 1:
                changes[sections[0]] = {**changes.get(sections[0], {}), name: value}
            elif sections:
                shown = " or ".join(f'{section}={{"{name}": ...}}' for section in sections)
                raise UserError(f"`{name}` is a setting of {' and '.join(sections)}: give {shown}")
            else:
                near = suggest(name, [*leaves, *parts])
                raise UserError(f"there is no setting `{name}`.{near} See sparsewm.config")
        return merged(self, changes, _GIVEN)

    def checked(self) -> PlanConfig:
        """The tree, with what follows from other settings filled in.

        Elites that are left out become `USUAL_ELITES`, half of the candidates where that is fewer; no more is
        executed than the horizon. Nothing is searched where proposals replace candidates: these are
        scored as they are, without action repeat.

        Raises:
            UserError: a value is out of range, or two of them contradict each other.
        """
        self = merged(self, asdict(self), _GIVEN)  # of the declared kinds, whoever made it
        goal, search, cost, tokens, run = self.goal, self.search, self.cost, self.tokens, self.run
        for section, name, kinds in (
            (goal, "source", GoalSource),
            (goal, "tasks", TaskSet),
            (goal, "rule", Rule),
            (cost, "frame", Frame),
            (tokens, "selection", TokenSelection),
            (tokens, "resample", Resample),
            (self.proposals, "mode", ProposalMode),
            (run, "actor", Actor),
        ):
            one_of(name, getattr(section, name), get_args(kinds))
        for name, drop in (("drop", tokens.drop), ("cost_drop", tokens.cost_drop)):
            if not 0 <= drop < 1:
                raise UserError(
                    f"`{name}` must be at least 0 and below 1, got {drop:g}: 0.5 drops half of the tokens"
                )
        gradient = search.planner == "gd"
        at_least(1 if gradient else 2, candidates=search.candidates)
        at_least(2, elites=search.elites)
        at_least(1, iterations=search.iterations, horizon=search.horizon, execute=search.execute)
        at_least(1, max_steps=goal.max_steps, offset=goal.offset, episodes=run.episodes, batch=run.batch)
        at_least(1, samples=self.proposals.samples, deadline_ms=search.deadline_ms)
        at_least(1, action_steps=self.proposals.action_steps, ranked=self.proposals.ranked)
        at_least(0, future_steps=self.proposals.future_steps)
        at_least(0, proprio_weight=cost.proprio_weight, temperature=tokens.temperature)
        at_least(1e-3, init_std=search.init_std, memory_gb=run.memory_gb)
        Look.parse(run.look)
        if not 0 <= run.seed < SEEDS:
            raise UserError(f"`seed` must be at least 0 and below {SEEDS}, got {run.seed}")
        if run.episodes > EPISODES_PER_SEED:
            raise UserError(f"`episodes` must be at most {EPISODES_PER_SEED}: give another `seed` as well")
        PLANNERS.get(search.planner)
        if run.actor == "oracle" and gradient:
            raise UserError("gradient descent cannot see through the simulator: give another `planner`")
        if run.landscape and run.actor != "planner":
            raise UserError(f"`actor` {run.actor} imagines nothing: leave `landscape` out")
        if tokens.selection == "none":
            if cost.objective != "mse":
                raise UserError(
                    f"`objective` {cost.objective} reads tokens: give mse where none are selected"
                )
            if cost.proprio_weight == 0:
                raise UserError("nothing is left of the cost: raise `proprio_weight`, or select tokens")
        planless = run.actor in ("nothing", "random", "policy")
        if search.deadline_ms is not None and (run.batch > 1 or planless):
            raise UserError("`deadline_ms` is for one episode at a time, and for an actor that plans")
        if self.proposals.source == NO_PROPOSALS and run.actor == "policy":
            raise UserError(
                "a policy's proposals are to be executed: say with `proposals` where they come from"
            )
        if self.proposals.source != NO_PROPOSALS and run.actor in ("nothing", "random"):
            raise UserError(f"`actor` {run.actor} asks for no proposals: leave `proposals` out")
        if goal.source == "trajectory" and goal.offset > goal.max_steps:
            raise UserError(
                f"`offset` {goal.offset} is more than the {goal.max_steps} steps of `max_steps`: lower it"
            )
        repeat = search.action_repeat and (
            self.proposals.source == NO_PROPOSALS or self.proposals.mode != "replace"
        )
        elites = search.elites
        if elites is None:
            elites = min(USUAL_ELITES, max(2, search.candidates // 2))
        elif elites > search.candidates:
            raise UserError(f"`elites` {elites} is more than `candidates` {search.candidates}: lower it")
        execute = min(search.execute, search.horizon)
        search = replace(search, elites=elites, execute=execute, action_repeat=repeat)
        return replace(self, search=search)

    def settings(self) -> dict[str, Any]:
        """The tree as JSON takes it."""
        return plain(asdict(self))


def config_folder() -> Path:
    """`configs/` as it was installed with the package."""
    return Path(__file__).parent / "configs"


def encoder_file(name: str) -> Path:
    """The settings of an encoder, where there are any; what follows an @ says where its weights are from."""
    return config_folder() / "encoders" / f"{name.partition('@')[0].replace(':', '-').replace('/', '-')}.yaml"


def environment_file(name: str) -> Path:
    """The settings of an environment, where there are any; a benchmark's task may have those of all."""
    folder = config_folder() / "environments"
    own, family = folder / f"{name}.yaml", folder / f"{name.partition('/')[0]}.yaml"
    return family if "/" in name and not own.is_file() and family.is_file() else own
