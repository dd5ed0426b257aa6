"""The laws of environments, over every world: an item and actions give one episode, whatever else is played."""

from __future__ import annotations

import pytest
from env_bench import MAKERS, NONSENSE, chance_policy

from twoclock.contracts import Interactive, Task
from twoclock.tasks.env_play import EpisodeRules
from twoclock.tasks.env_stuck import StuckRule
from twoclock.tasks.env_task import EpisodeTask
from twoclock.tasks.env_transcript import parse_transcript
from twoclock.tasks.environments import Guide, ToolCall
from twoclock.tasks.splits import SPLITS, SplitSizes
from twoclock.types import Conditioning, Item, Request, Sampling

SIZES = SplitSizes(train=3, trial=2, heldout=2)
RULES = EpisodeRules(stuck=StuckRule(repeats=None, max_steps=12), reward="score", max_live=5)
SAMPLING = Sampling(max_new_tokens=200)


@pytest.fixture(params=sorted(MAKERS), scope="module")
def task(request: pytest.FixtureRequest) -> EpisodeTask:
    return EpisodeTask(MAKERS[request.param](), rules=RULES, sizes=SIZES, seed=3)


def requests_for(items: list[Item], *seeds: int) -> list[Request]:
    return [Request(prompt=item.prompt, conditioning=Conditioning(), seeds=seeds) for item in items]


def everything(task: EpisodeTask) -> list[Item]:
    return [item for split in SPLITS for item in task.split(split)]


def test_items_are_distinct_and_follow_from_the_seed(task: EpisodeTask) -> None:
    assert isinstance(task, Interactive)
    plain: Task = task
    items = everything(task)
    assert len({item.id for item in items}) == SIZES.total
    assert all(item.prompt.strip() for item in items)
    assert plain.description
    again = EpisodeTask(task.world, rules=RULES, sizes=SIZES, seed=3)
    assert everything(again) == items
    other = EpisodeTask(task.world, rules=RULES, sizes=SIZES, seed=4)
    assert [i.id for i in everything(other)] != [i.id for i in items]


def test_a_reset_forgets_everything(task: EpisodeTask) -> None:
    first, second = task.split("train")[:2]
    environment, fresh = task.world.make(), task.world.make()
    opening = environment.reset(first)
    for action in (*(opening.actions or ("look",)), "nonsense"):
        if environment.step(action).done:
            break
    environment.reset(second)
    assert environment.reset(first) == opening == fresh.reset(first)
    environment.close()
    environment.close()


def test_replay_is_play(task: EpisodeTask) -> None:
    """What was said and earned follows from item and actions: the grade of the text alone is that of the play."""
    items = everything(task)
    rows = task.play(chance_policy(NONSENSE), items, requests_for(items, 1, 2), SAMPLING)
    steps = 0
    for item, row in zip(items, rows, strict=True):
        for completion in row:
            assert completion.finish in ("stop", "length")
            assert completion.logprobs == ()
            steps += completion.turns
            (known,) = task.grade([item], [completion.text])
            assert task.grade_by_replay(item, completion.text) == known
            transcript = parse_transcript(completion.text)
            assert transcript.text() == completion.text
            assert len(transcript.turns) == completion.turns <= 12
            assert completion.text.split("\n")[-1].startswith("= ") or known.failure
    assert steps > len(items)


def test_an_episode_does_not_depend_on_what_it_is_played_beside(task: EpisodeTask) -> None:
    items = everything(task)
    together = task.play(chance_policy(NONSENSE), items, requests_for(items, 1, 2), SAMPLING)
    for index in (0, 4):
        alone = task.play(chance_policy(NONSENSE), [items[index]], requests_for([items[index]], 2), SAMPLING)
        assert alone[0][0] == together[index][1]


def test_nonsense_costs_steps_and_breaks_nothing(task: EpisodeTask) -> None:
    item = task.split("train")[0]
    environment = task.world.make()
    environment.reset(item)
    for action in ("", "fly", "ö" * 500, "take", "go", ToolCall(name="x"), ToolCall(name="guess", arguments={"z": 1})):
        step = environment.step(action)
        assert step.observation.text
        assert 0.0 <= step.reward <= 1.0
        assert step.success is not True
        if step.done:
            environment.reset(item)
    environment.close()


def test_gold_solves(task: EpisodeTask) -> None:
    if not isinstance(task.world, Guide):
        pytest.skip("this world knows no solutions")
    for item in everything(task):
        actions = task.gold(item)
        if actions is None:
            pytest.skip("this world knows no solutions")
        text = "\n".join(f"> {action}" for action in actions)
        free = EpisodeTask(task.world, rules=EpisodeRules(stuck=StuckRule(repeats=None, max_steps=None)))
        (grade,) = free.grade([item], [text])
        assert grade.reward == 1.0
        (short,) = free.grade([item], ["\n".join(text.split("\n")[:-1])])
        assert short.reward == 0.0


def test_a_text_that_is_no_transcript_is_an_episode_in_which_nothing_was_done(task: EpisodeTask) -> None:
    item = task.split("train")[0]
    for text in ("", "I would look around.", "  > take coin", "= success, reward 1, 1 step", "\x00\ud800"):
        (grade,) = task.grade([item], [text])
        assert grade.reward == 0.0
        assert grade.failure is None
