"""The chat tasks: letters by logits, answers by the engine, programs in the sandbox, ChatCORE."""

from __future__ import annotations

from itertools import combinations
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from nanochat.evaluation.chat import Chat, ChatSettings, Problems, TaskResult, Tick, chatcore, no_tick
from nanochat.evaluation.figure import centered, proportion
from nanochat.evaluation.items import Item
from nanochat.evaluation.sandbox import Sandbox
from nanochat.inference import Engine, Sampling
from nanochat.model.transformer import Transformer
from nanochat.runtime.distributed import ALONE, World
from nanochat.spec.stages import CHATCORE, ChatEvaluation
from nanochat.spec.training import RlStage, SftStage
from nanochat.stages import rl, sft
from nanochat.tokenizer import Tokenizer
from nanochat.tokenizer.chat import render_prompt
from tasks import Example, Program, Task
from tasks.choice import choice_example, is_letter

SETTINGS = ChatSettings(batch_size=3, max_new_tokens=8, seed=1)


class FakeChoices(Task):
    name = "fake-choices"
    kind = "choice"
    baseline = 0.25
    splits = ("test",)

    def __len__(self) -> int:
        return 40

    def __getitem__(self, index: int) -> Example:
        return choice_example("x" * (index % 7), [str(index), "b", "c", "d"][: 3 + index % 2], index % 3)

    def grade(self, example: Example, completion: str) -> bool:
        return is_letter(example, completion)


class FakeAnswers(Task):
    """Right where the model says what it was seen to say for questions of even number."""

    name = "fake-answers"
    kind = "generative"
    splits = ("test",)
    says: tuple[str, ...] = ()

    def __len__(self) -> int:
        return 12

    def __getitem__(self, index: int) -> Example:
        messages = [{"role": "user", "content": f"q{index}"}, {"role": "assistant", "content": "?"}]
        return Example(messages, reference=index)

    def grade(self, example: Example, completion: str) -> bool:
        return example.reference % 2 == 0 and completion == self.says[example.reference]


class FakeForgiving(FakeAnswers):
    name = "fake-forgiving"

    def lenient(self, example: Example, completion: str) -> bool:
        return self.grade(example, completion) or example.reference == 1


class FakePrograms(FakeAnswers):
    name = "fake-programs"
    kind = "program"

    def grade(self, example: Example, completion: str) -> Program:
        source = f"def f(): return {example.reference % 3}"
        return Program(source, "def check(candidate): assert candidate() == 0", "f")


@pytest.fixture
def long_model(model: Transformer) -> Transformer:
    """One whose context takes the multiple-choice questions whole."""
    return _with_context(model, 256)


def _with_context(model: Transformer, length: int) -> Transformer:
    from dataclasses import replace

    other = Transformer(replace(model.config, sequence_length=length))
    other.load_state_dict(model.state_dict())
    return other


def measure(
    model: Transformer,
    tokenizer: Tokenizer,
    task: Task,
    rows: int,
    *,
    settings: ChatSettings = SETTINGS,
    world: World = ALONE,
    tick: Tick = no_tick,
) -> TaskResult:
    """What a rank makes of its part of a task's first rows."""
    items = examine(model, tokenizer, [Problems.of(task, range(world.rank, rows, world.size))], settings, world, tick)
    return TaskResult.of(task, items, world=world, pass_at=settings.pass_at)


def examine(
    model: Transformer,
    tokenizer: Tokenizer,
    work: list[Problems],
    settings: ChatSettings = SETTINGS,
    world: World = ALONE,
    tick: Tick = no_tick,
) -> list[Item]:
    return [item for some in Chat(model, tokenizer, settings, world=world).examine(work, tick=tick) for item in some]


def test_letters_are_those_of_a_forward_pass_each(long_model: Transformer, tokenizer: Tokenizer) -> None:
    task = FakeChoices(Path(), "test")
    right = 0
    for example in task:
        ids = render_prompt(tokenizer, example.prompt)
        with torch.inference_mode():
            logits = long_model(torch.tensor([ids]))[0, -1]
        best = max(example.letters, key=lambda letter: float(logits[tokenizer.encode(letter)[0]]))
        right += best == example.reference
    done: list[int] = []
    result = measure(long_model, tokenizer, task, 40, tick=done.append)
    assert result.accuracy == proportion(right, 40)
    assert result.centered == centered(result.accuracy, 0.25)
    assert (sum(done), result.cut) == (40, 0)


def test_questions_longer_than_the_context_are_counted(model: Transformer, tokenizer: Tokenizer) -> None:
    assert measure(model, tokenizer, FakeChoices(Path(), "test"), 10).cut == 10
    chat = Chat(model, tokenizer, SETTINGS, world=World())
    assert chat.ask([{"role": "user", "content": "long " * 100}]).ids


def test_answers_come_from_the_engine(model: Transformer, tokenizer: Tokenizer) -> None:
    task = FakeAnswers(Path(), "test")
    alone = Engine(model, tokenizer, slots=1)
    sampling = Sampling(max_tokens=8)
    task.says = tuple(alone.generate([render_prompt(tokenizer, example.prompt)], sampling)[0].text for example in task)
    result = measure(model, tokenizer, task, 11)
    assert result.accuracy == proportion(6, 11) and result.lenient is None
    assert result.accuracy.stderr == pytest.approx((6 / 11 * 5 / 11 / 11) ** 0.5)


def test_a_lenient_verdict_stands_beside_the_grade(model: Transformer, tokenizer: Tokenizer) -> None:
    task = FakeForgiving(Path(), "test")
    task.says = tuple(
        completion.text
        for completion in Engine(model, tokenizer, slots=3).generate(
            [render_prompt(tokenizer, example.prompt) for example in task], Sampling(max_tokens=8)
        )
    )
    result = measure(model, tokenizer, task, 11)
    assert (result.accuracy, result.lenient) == (proportion(6, 11), proportion(7, 11))


def test_sampled_answers_depend_on_the_problem_and_not_on_the_rank(model: Transformer, tokenizer: Tokenizer) -> None:
    said: dict[int, str] = {}

    class Listening(FakeAnswers):
        def grade(self, example: Example, completion: str) -> bool:
            assert said.setdefault(example.reference, completion) == completion
            return True

    settings = ChatSettings(batch_size=3, max_new_tokens=6, temperature=1.0, top_k=20, seed=1)
    task = Listening(Path(), "test")
    for size in (1, 2):
        for rank in range(size):
            measure(model, tokenizer, task, 12, settings=settings, world=FakeWorld(rank=rank, size=size))
    assert len(set(said.values())) > 6


class FakeWorld(World):
    """A rank without peers."""

    def sum(self, *values: float) -> list[float]:
        return list(values)


def test_programs_are_judged_by_the_sandbox(model: Transformer, tokenizer: Tokenizer) -> None:
    if reason := Sandbox().unavailable():
        pytest.skip(reason)
    result = measure(model, tokenizer, FakePrograms(Path(), "test"), 6)
    assert result.accuracy == proportion(2, 6)


def test_chatcore_is_the_mean_above_guessing() -> None:
    results = {
        name: TaskResult(proportion(30 + i, 100), centered(proportion(30 + i, 100), 0.25 * (i < 3)), 0.25 * (i < 3), 0)
        for i, name in enumerate(CHATCORE)
    }
    expected = sum(((30 + i) / 100 - 0.25 * (i < 3)) / (1 - 0.25 * (i < 3)) for i in range(6)) / 6
    figure = chatcore(results)
    assert figure.value == pytest.approx(expected)
    assert figure.n == 600


def test_the_rows_run_out_of_work_once_for_all_tasks(model: Transformer, tokenizer: Tokenizer) -> None:
    class Others(FakeAnswers):
        name = "other-answers"

    tasks = [FakeAnswers(Path(), "test"), Others(Path(), "test")]
    for task in tasks:
        task.says = ("",) * 12
    chat = Chat(model, tokenizer, SETTINGS, world=ALONE)
    engine, busy = chat._engine, []

    def tick(done: int) -> None:
        if engine.waiting:
            busy.append(engine.running + done)

    work = [Problems.of(task, range(12)) for task in tasks]
    items = [item for some in chat.examine(work, tick=tick) for item in some]
    assert {(item.task, item.index) for item in items} == {(task.name, i) for task in tasks for i in range(12)}
    assert len(items) == 24 and len(busy) > 10 and set(busy) == {SETTINGS.batch_size}


def test_samples_of_a_problem_and_pass_at_k(model: Transformer, tokenizer: Tokenizer) -> None:
    task = FakeForgiving(Path(), "test")
    settings = ChatSettings(
        batch_size=3, max_new_tokens=2, temperature=1.0, top_k=2, seed=1, samples=5, pass_at=(2, 4, 5)
    )
    task.says = ("",) * 12
    said = examine(model, tokenizer, [Problems.of(task, range(12))], settings)
    assert all(len(item.answers) == 5 for item in said) and any(len(set(item.answers)) > 1 for item in said)
    task.says = tuple(item.answers[0] for item in sorted(said, key=lambda item: item.index))
    result = measure(model, tokenizer, task, 12, settings=settings)
    items = examine(model, tokenizer, [Problems.of(task, range(12))], settings)
    shares = [item.right for item in items]
    assert any(0 < share < 1 for share in shares)
    assert result.accuracy.value == pytest.approx(sum(shares) / 12)
    assert result.accuracy.stderr == pytest.approx((sum((s - sum(shares) / 12) ** 2 for s in shares) / 12 / 12) ** 0.5)
    for k in settings.pass_at:
        drawn = [[any(some) for some in combinations(item.verdicts, k)] for item in items]
        assert result.passes[k].value == pytest.approx(sum(sum(each) / len(each) for each in drawn) / 12)
    alone = ChatSettings(batch_size=3, max_new_tokens=2, temperature=1.0, top_k=2, seed=1)
    first = examine(model, tokenizer, [Problems.of(task, range(12))], alone)
    assert [i.answers[0] for i in first] == [i.answers[0] for i in items]


def test_sft_measures_tasks_of_multiple_choice(
    model: Transformer, tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    task = FakeChoices(Path(), "test")
    monkeypatch.setattr(sft, "choice_tasks", lambda spec: ["fake-choices"])
    monkeypatch.setattr(sft, "open_task", lambda context, name: task)
    spec = SimpleNamespace(stages=SimpleNamespace(eval_chat=ChatEvaluation()), seed=1)
    said: list[str] = []
    session: Any = SimpleNamespace(
        model=model,
        tokenizer=tokenizer,
        world=ALONE,
        alive=lambda *doing: said.extend(doing),
        context=SimpleNamespace(spec=spec),
    )
    settings = SftStage.model_validate({"deviceBatchSize": 3, "tasksRows": 17})
    expected = measure(model, tokenizer, task, 17).accuracy.value
    assert sft.choices(session, settings) == {"task/fake-choices": expected}
    assert said == ["measuring fake-choices, task 1 of 1"]


@pytest.mark.parametrize(("samples", "shares"), [(1, [0.5]), (3, [0.5, 5 / 6, 1.0])])
def test_rl_measures_pass_at_k(samples: int, shares: list[float]) -> None:
    """Two problems: of the first's three samples one is right, of the second's two."""
    said = {"pass@1/0": "right", "pass@1/1": "wrong", "pass@1/0/1": "wrong", "pass@1/0/2": "wrong"}
    said |= {"pass@1/1/1": "right", "pass@1/1/2": "right"}
    problem = SimpleNamespace(reward=lambda text: float(text == "right"))
    objective: Any = SimpleNamespace(sample=lambda prompts, names: [SimpleNamespace(text=said[name]) for name in names])
    settings = RlStage.model_validate({"evalSamples": samples})
    session: Any = SimpleNamespace(world=ALONE, context=SimpleNamespace(settings=settings))
    found = rl.passed(session, objective, [problem, problem])  # type: ignore[list-item]
    assert list(found) == ["val/pass_at_1", "val/pass_at_2", "val/pass_at_3"][: len(shares)]
    assert list(found.values()) == pytest.approx(shares)
