"""The page itself, made with Gradio. Nothing on it is loaded from elsewhere.

Annotations are evaluated here: Gradio reads those of the functions it calls.
"""

import os
from collections.abc import Iterator
from typing import Any

import cv2
import numpy as np
from matplotlib.figure import Figure

from sparsewm.demo.goals import PLACES
from sparsewm.demo.session import CANDIDATES, ENCODERS, ITERATIONS, MOST_DROPPED, SEEDS, Session, Shown
from sparsewm.errors import UserError, needs_extra
from sparsewm.planners import PLANNERS
from sparsewm.report.plots import COLOURS

SIDE = 336  # pixels of a picture on the page
LOOPBACK = "127.0.0.1"
POLICY = b"default-src 'self' data: blob: 'unsafe-inline' 'unsafe-eval'"
"""Browsers are told to load nothing from elsewhere: Gradio's page names fonts and a script of others."""


class OnlyFromHere:
    """Sends the policy with every answer (an ASGI middleware)."""

    def __init__(self, app: Any) -> None:
        self.app = app

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        async def answer(message: Any) -> None:
            if message["type"] == "http.response.start":
                message["headers"] = [*message["headers"], (b"content-security-policy", POLICY)]
            await send(message)

        await self.app(scope, receive, answer)


def enlarged(picture: np.ndarray) -> np.ndarray:
    """A square picture as large as the page shows it."""
    return cv2.resize(picture, (SIDE, SIDE), interpolation=cv2.INTER_NEAREST)


def strip(pictures: np.ndarray | None) -> np.ndarray | None:
    """Imagined pictures side by side."""
    return None if pictures is None else np.concatenate([enlarged(one) for one in pictures], 1)


def costs_figure(costs: list[np.ndarray]) -> Figure:
    """Costs of the candidates of each iteration, in order; the first iteration is the palest."""
    figure = Figure(figsize=(6, 2.8), layout="constrained")
    axis = figure.subplots()
    for i, row in enumerate(costs):
        finite = np.sort(row[np.isfinite(row)])
        share = np.linspace(0, 100, len(finite))
        axis.plot(share, finite, color=COLOURS[0], alpha=(i + 1) / len(costs), label=f"iteration {i + 1}")
    axis.set(xlabel="candidates, in order of their cost, %", ylabel="cost")
    if costs:
        axis.set_title(f"{len(costs)} iterations of {len(costs[-1])} candidates", fontsize=9)
    return figure


def shown(moment: Shown) -> tuple[Any, ...]:
    """What the outputs of the page get."""
    figure = costs_figure(moment.costs)
    return enlarged(moment.scene), enlarged(moment.kept), strip(moment.imagined), figure, moment.text


def make_page(env: str = "wall") -> Any:
    """The page, a `gradio.Blocks`.

    Args:
        env: environment it begins with.

    Raises:
        UserError: Gradio is not installed, or there is no such environment.
    """
    os.environ.setdefault("GRADIO_ANALYTICS_ENABLED", "False")
    with needs_extra("the demonstration's pages", "demo"):
        import gradio
    if env not in PLACES:
        raise UserError(f"`env` is one of {', '.join(PLACES)}")

    def said(error: UserError) -> Any:
        return gradio.Error(str(error).replace("`", ""), print_exception=False)

    def begin(name: str, encoder: str, seed: float) -> tuple[Any, ...]:
        try:
            session = Session(name, encoder, seed)
        except UserError as error:
            raise said(error) from None
        return session, enlarged(session.goal_picture), *shown(session.restart())

    def loaded(session: Session | None) -> Session:
        if session is None:
            raise said(UserError("the world model is still being loaded"))
        return session

    def again(session: Session | None) -> tuple[Any, ...]:
        return session, *shown(loaded(session).restart())

    def click(session: Session | None, degrees: float, event: gradio.SelectData) -> tuple[Any, ...]:
        session = loaded(session)
        try:
            if None in event.index:  # beside the picture, inside its frame
                raise UserError("click on the picture")
            session.set_goal(event.index[0] / SIDE, event.index[1] / SIDE, degrees)
        except UserError as error:
            raise said(error) from None
        return session, enlarged(session.goal_picture), *shown(session.restart())

    def run(session: Session, once: bool, *settings: Any) -> Iterator[tuple[Any, ...]]:
        over, begun = False, loaded(session).episode
        try:
            while not over and session.episode == begun:
                for moment in session.plan(*settings):
                    over = moment.done or once
                    yield session, *shown(moment)
        except UserError as error:
            raise said(error) from None

    def decide(session: Session, *settings: Any) -> Iterator[tuple[Any, ...]]:
        yield from run(session, True, *settings)

    def episode(session: Session, *settings: Any) -> Iterator[tuple[Any, ...]]:
        yield from run(session, False, *settings)

    def picture(label: str) -> Any:
        with gradio.Column(min_width=200):
            gradio.Markdown(label)  # a label of its own would cover the corner
            return gradio.Image(label=label, show_label=False, interactive=False)

    fonts = {"font": ["system-ui", "sans-serif"], "font_mono": ["ui-monospace", "monospace"]}
    theme = gradio.themes.Default(**fonts)  # type: ignore[arg-type]  # names of fonts that are here
    with gradio.Blocks(title="sparsewm", theme=theme, analytics_enabled=False) as page:
        state = gradio.State()
        gradio.Markdown(
            "## Plan with half of the tokens\nClick on the goal's picture to set the goal, then plan."
        )
        with gradio.Row():
            name = gradio.Dropdown(list(PLACES), value=env, label="Environment")
            encoder = gradio.Dropdown(list(ENCODERS), value=ENCODERS[0], label="Encoder")
            planner = gradio.Dropdown(PLANNERS.names(), value="cem", label="Planner")
            seed = gradio.Number(0, label="Seed of start and goal", minimum=0, maximum=SEEDS - 1, precision=0)
        with gradio.Row():
            drop = gradio.Slider(0, MOST_DROPPED, 0.5, step=0.05, label="Share of tokens dropped")
            candidates = gradio.Slider(*CANDIDATES, 64, step=4, label="Candidates")
            iterations = gradio.Slider(*ITERATIONS, 5, step=1, label="Iterations")
            degrees = gradio.Slider(-180, 180, 0, step=5, label="Turn of the goal, degrees")
        with gradio.Row():
            once = gradio.Button("Plan once", variant="primary")
            whole = gradio.Button("Until the goal")
            stop = gradio.Button("Stop")
            back = gradio.Button("Start again")
        text = gradio.Textbox(label="What happened", interactive=False)
        with gradio.Row():
            scene, goal, kept = (
                picture(label) for label in ("Scene", "Goal: click to set it", "Kept patches")
            )
        imagined = picture("What the plan imagines, one picture a model step")
        costs = gradio.Plot(label="Costs of the candidates")
        moment = [scene, kept, imagined, costs, text]
        settings = [drop, planner, candidates, iterations]
        started = [
            button.click(act, [state, *settings], [state, *moment], api_name=False)
            for button, act in ((once, decide), (whole, episode))
        ]
        page.load(begin, [name, encoder, seed], [state, goal, *moment], api_name=False)
        anew: dict[str, Any] = {"cancels": started, "api_name": False}
        for choice in (name, encoder, seed):
            choice.change(begin, [name, encoder, seed], [state, goal, *moment], **anew)
        goal.select(click, [state, degrees], [state, goal, *moment], **anew)
        back.click(again, [state], [state, *moment], **anew)
        stop.click(None, **anew)
    return page


def serve(env: str, port: int, block: bool = True) -> Any:
    """Serve the page on this machine alone.

    Raises:
        UserError: Gradio is not installed, or the port is taken.
    """
    page = make_page(env)
    from starlette.middleware import Middleware

    page.queue(default_concurrency_limit=1, max_size=16)
    try:
        page.launch(
            server_name=LOOPBACK,
            server_port=port,
            share=False,
            show_api=False,
            quiet=True,
            app_kwargs={"middleware": [Middleware(OnlyFromHere)]},
            prevent_thread_lock=not block,
        )
    except OSError as error:
        raise UserError(f"nothing can be served on `port` {port}: give another one ({error})") from None
    return page
